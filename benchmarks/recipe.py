"""Which recipe trains JumpReLU with a thousandth of the paper's tokens? The runs behind 21_recipe, on the laptop preset's activations.

    python benchmarks/recipe.py ingredients ablation
    jumprelu-sae tune --preset laptop                   # the equal tuning of all architectures

Each run is one SAE at L0 = 32 on 249,856 tokens, judged on validation documents, which are neither trained on nor tested on.
Finished runs are kept in results/recipe/<part>.json and not repeated; stop at any time."""
import argparse, time
from dataclasses import asdict
from pathlib import Path
import torch
from jumprelu_sae.core import TensorStream, fingerprint, read_json, run_env, write_json
from jumprelu_sae.evaluate import evaluate_activations
from jumprelu_sae.recipe import AUXK, PAPER, SHORT, SHORT_RUN
from jumprelu_sae.reproduction import Stages, get_data, get_preset
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.train import TrainConfig, Trainer, train_saes

OUT = Path(__file__).parent.parent/'results'/'recipe'
L0 = 32
KEYS = dict(k=L0, target_l0=float(L0))


def run(data, name, arch, sae, train, init=None, seed=0, fixed=False) -> dict:
    "Train one SAE, judge it on the validation documents"
    cfg = TrainConfig(n_tokens=249_856, batch=512, **(SHORT_RUN | train))
    stream = TensorStream(data.x_train, cfg.batch, seed, data.scaler)
    s = make_sae(SAEConfig(arch, data.x_train.shape[1], 2048, **sae), seed)
    if init: s.init_thresholds(data.scaler(data.x_train[stream.order(0)[:8192]]), init)
    if fixed: s.theta_param.requires_grad_(False)
    t = time.monotonic()
    tr = train_saes(Trainer({'s': s}, stream, cfg), progress=False)
    val = data.stores['val']
    m, _ = evaluate_activations(s, data.scaler, val['x'], val['doc'], data.rule, mean=data.mean)
    return dict(name=name, arch=arch, seed=seed, sae=sae, train=train, init=init, theta_fixed=fixed, l0=m['l0'], fvu=m['fvu'], dead=m['dead'], shrinkage=m.get('shrinkage'),
        final_train_error=tr.history['s'][-1][2], seconds=time.monotonic() - t)


def spec(arch, sae=None, train=None, **kw):
    "The short recipe of an architecture at L0 = 32, with changes"
    r = SHORT[arch]
    knob = {r['setting']: KEYS[r['setting']]} if r['setting'] in KEYS else {}
    return dict(arch=arch, sae=r['sae'] | knob | (sae or {}), train=r['train'] | (train or {})) | kw


def ingredients() -> dict:
    "One change at a time: taken from the short recipe, or given to a plain start"
    J = lambda s=None, t=None, **kw: spec('jumprelu', s, t, **kw)
    plain_s, plain_t = dict(start=None, aux_coef=0., dead_coef=0.), dict(start=0., beta1=0., lr_decay=.2)
    P = lambda s=None, t=None, **kw: spec('jumprelu', plain_s | (s or {}), plain_t | (t or {}), **kw)
    out = {'short recipe': J(), 'without the start (quantiles)': J(dict(start=None), dict(start=0.), init=L0), 'start by BatchTopK': J(dict(start='batchtopk')),
        'without momentum': J(t=dict(beta1=0.)), 'without AuxK': J(dict(aux_coef=0.)), 'without the loss of dead latents': J(dict(dead_coef=0.)),
        'bandwidth 0.02': J(dict(bandwidth=.02)), 'bandwidth 0.2': J(dict(bandwidth=.2)), 'KDE estimator': J(dict(estimator='kde')), 
        'raw θ': J(dict(log_threshold=False), dict(threshold_lr=1e-3)), 'threshold lr 1e-3': J(t=dict(threshold_lr=1e-3)), 'target of each example': J(dict(per_example=True, coef=1.)),
        'plain': P(init=L0), 'plain + start': P(dict(start='topk'), dict(start=.5)), 'plain + momentum': P(t=dict(beta1=.9), init=L0), 'plain + dead latents': P(dict(aux_coef=AUXK, dead_coef=.01), init=L0), 'plain + bandwidth 0.2': P(dict(bandwidth=.2), init=L0)}
    out["the paper's recipe"] = dict(arch='jumprelu', sae=PAPER['sae'] | dict(coef=6e-4), train=PAPER['train'] | dict(lr_warmup=1000, sparsity_warmup=10_000, lr_decay=0., dead_after=10_000_000))
    out["the paper's recipe, warm-ups shortened"] = dict(arch='jumprelu', sae=PAPER['sae'] | dict(coef=6e-4), train=PAPER['train'])
    return out


def ablation() -> dict:
    "Same weights, data, optimiser and budget for all; only the activation, the penalty or the estimator differs; three seeds"
    t = SHORT['jumprelu']['train'] | dict(start=0.)
    base = dict(bandwidth=SHORT['jumprelu']['sae']['bandwidth'], dead_coef=.01)
    l0 = base | dict(coef=SHORT['jumprelu']['sae']['coef'], target_l0=float(L0))
    rows = {'ReLU + L1': dict(arch='relu', sae=dict(coef=.12)), 'JumpReLU + L1': dict(arch='jumprelu', sae=base | dict(penalty='l1', coef=.08), init=L0),
        'JumpReLU + L0, STE': dict(arch='jumprelu', sae=l0, init=L0), 'JumpReLU + L0, KDE': dict(arch='jumprelu', sae=l0 | dict(estimator='kde'), init=L0), 'JumpReLU + L0, STE into π': dict(arch='jumprelu', sae=l0 | dict(estimator='input'), init=L0),
        'JumpReLU, θ fixed': dict(arch='jumprelu', sae=base | dict(coef=0.), init=L0, fixed=True), 'TopK': dict(arch='topk', sae=dict(k=L0)), 'BatchTopK': dict(arch='batchtopk', sae=dict(k=L0)),
        'JumpReLU + L0, triangle': dict(arch='jumprelu', sae=l0 | dict(kernel='triangle'), init=L0), 'JumpReLU + L0, Epanechnikov': dict(arch='jumprelu', sae=l0 | dict(kernel='epanechnikov'), init=L0), 'JumpReLU + L0, Gaussian': dict(arch='jumprelu', sae=l0 | dict(kernel='gaussian'), init=L0)}
    return {f'{n}, seed {s}': r | dict(train={k: v for k, v in t.items() if k != 'threshold_lr' or r['arch'] == 'jumprelu'}, seed=s) for n, r in rows.items() for s in range(3)}


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', nargs='+', choices=('ingredients', 'ablation'))
    p.add_argument('--only', default='', help='runs whose name begins so')
    a = p.parse_args()
    data = get_data(get_preset('laptop'), Stages(), progress=False)
    for part in a.part:
        path = OUT/f'{part}.json'
        d = read_json(path) if path.exists() else dict(format=1, preset='laptop', n_tokens=249_856, at_l0=L0, judged_on='validation documents', command=f'python benchmarks/recipe.py {part}', rows={})
        for name, r in globals()[part]().items():
            key = fingerprint(r)
            if not name.startswith(a.only) or d['rows'].get(name, {}).get('key') == key: continue
            row = run(data, name, **r) | dict(key=key)
            d['rows'][name] = row
            write_json(path, d | dict(env=run_env()))
            print(f"{name:45} L0 {row['l0']:6.1f}  FVU {row['fvu']:.4f}  dead {row['dead']:.3f}  {row['seconds']:.0f} s", flush=True)
