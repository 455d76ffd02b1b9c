"""Which recipe trains JumpReLU with a thousandth of the paper's tokens? The runs behind 21_recipe, on the laptop
preset's activations.

    python benchmarks/recipe.py ingredients levels ablation paper
    jumprelu-sae tune --preset laptop                   # the equal tuning of all architectures

Each run but those of `paper` is one SAE at L0 = 32 on 249,856 tokens, judged on validation documents, which are neither
trained on nor tested on. `levels` finds the settings at which rows without a target end near L0 = 32; `ablation` uses
them. `paper` is the paper's own recipe at a million tokens, judged on the test documents as the other results of the
laptop-full preset are. Finished runs are kept in results/recipe/<part>.json and not repeated; stop at any time."""
import argparse, math, time
from dataclasses import replace
from pathlib import Path
import torch
from jumprelu_sae.activations import Activations, activations
from jumprelu_sae.core import Settings, fingerprint, read_json, run_env, write_json
from jumprelu_sae.evaluate import LMEval, evaluate_activations
from jumprelu_sae.presets import Preset, get_preset
from jumprelu_sae.recipe import PAPER, SHORT
from jumprelu_sae.sae import AUXK, SAEConfig, make_sae
from jumprelu_sae.train import TrainConfig, Trainer, train_saes

OUT = Path(__file__).parent.parent/'results'/'recipe'
L0 = 32
N_TOKENS, N_PAPER = 249_856, 999_936  # training tokens of a run, of a run of `paper`
KEYS = dict(k=L0, target_l0=float(L0))
LETTER = PAPER['jumprelu']


class ToTheLetter(TrainConfig):
    """A run that may end before its warm-ups do. `TrainConfig` refuses that, rightly so; here it is the question:
    what do the paper's warm-ups of 1,000 and 10,000 steps do in a run of some hundred? The factors of each step are
    those of `lr_factor` and `sparsity_factor`; the later ones are never reached."""
    def check_warmups(self) -> None: pass


def get_acts(p: Preset) -> Activations:
    "A preset's activations, in memory"
    settings = Settings(in_memory=True, progress=False, dtype='bfloat16')
    return activations(p.model, p.corpus, site=p.site, n_train=p.n_train, n_val=p.n_val, n_test=p.n_test,
        seq_len=p.seq_len, massive=p.massive, centre=p.centre, settings=settings)


class Controlled(Trainer):
    "A trainer that changes a setting of its SAE after each step"
    def one_step(self) -> dict:
        terms = super().one_step()
        for n, s in self.saes.items():
            if s.selection is None: self.control(s, float(terms[n]['l0']))
        return terms


class Lambda(Controlled):
    "λ rises while L0 is above its target and falls while it is below (λ‖f‖₀ as in eq 9, no target in the loss)"
    def control(self, s, l0):
        coef = 1e-3 if s.cfg.target_l0 else s.cfg.coef  # its first call takes the target away
        s.cfg = replace(s.cfg, start=None, target_l0=None, coef=coef*math.exp(.05*max(-1., min(1., l0/L0 - 1))))


class Annealed(Controlled):
    "The bandwidth falls geometrically from 0.2 to 0.02 over the run"
    def control(self, s, l0): s.cfg = replace(s.cfg, bandwidth=.2*.1**(self.step/self.cfg.n_steps))


class PerLatent(Controlled):
    """Every 20 steps each latent gets the bandwidth at which its window holds the same number of examples: as many as
    the common one would hold on average"""
    def control(self, s, l0):
        if self.step % 20 and isinstance(s.cfg.bandwidth, torch.Tensor): return
        with torch.no_grad(): d = (s.pre(self.sample) - s.threshold).abs().sort(0).values
        k = max(1, round(float((d < .025).sum(0).float().mean())))
        s.cfg.bandwidth = (2*d[k - 1]).clamp(.005, .5)


TRAINERS = {None: Trainer, 'lambda': Lambda, 'anneal': Annealed, 'latent': PerLatent}


def run(acts, name, arch, sae, train, init=None, seed=0, fixed=False, control=None, path='auto',
        n_tokens=N_TOKENS) -> dict:
    "Train one SAE, judge it on the validation documents"
    cfg = ToTheLetter(n_tokens=n_tokens, batch=512, **(SHORT.schedule | train))
    stream = acts.stream(cfg.batch, seed)
    def some(n): return acts.scaler(stream.x[stream.permutation(0)[:n]])
    s = make_sae(SAEConfig(arch, acts.d_in, 2048, **sae), seed)
    if init: s.init_thresholds(some(8192), init)
    if fixed: s.theta_param.requires_grad_(False)
    t = time.monotonic()
    tr = TRAINERS[control]({'s': s}, stream, cfg, path=path)
    tr.sample = some(4096)
    tr = train_saes(tr, progress=False)
    # one bandwidth a latent is no setting that an SAE could be saved with; a finished one has no use for it
    if control == 'latent': s.cfg = replace(s.cfg, bandwidth=float(s.cfg.bandwidth.median()))
    val = acts.part('val')
    m, _ = evaluate_activations(s.eval().finish(acts.scaler), val['x'], val['doc'], acts.rule, mean=acts.mean)
    how = dict(name=name, arch=arch, seed=seed, sae=sae, train=train, init=init, theta_fixed=fixed, control=control)
    got = dict(l0=m['l0'], fvu=m['fvu'], dead=m['dead'], shrinkage=m.get('shrinkage'))
    return how | got | dict(final_train_error=tr.history['s'][-1][2], seconds=time.monotonic() - t)


def spec(arch, sae=None, train=None, **kw):
    "The short recipe of an architecture at L0 = 32, with changes"
    r = SHORT[arch]
    knob = {r['setting']: KEYS[r['setting']]} if r['setting'] in KEYS else {}
    return dict(arch=arch, sae=r['sae'] | knob | (sae or {}), train=r['train'] | (train or {})) | kw


def ingredients() -> dict:
    "One change at a time: taken from the short recipe, or given to a plain start"
    J = lambda s=None, t=None, **kw: spec('jumprelu', s, t, **kw)
    plain_s, plain_t = dict(start=None, aux_coef=0.), dict(start=0., beta1=0., lr_decay=.2)
    P = lambda s=None, t=None, **kw: spec('jumprelu', plain_s | (s or {}), plain_t | (t or {}), **kw)
    out = {
        'short recipe': J(),
        'without the start (quantiles)': J(dict(start=None), dict(start=0.0), init=L0),
        'start by BatchTopK': J(dict(start='batchtopk')),
        'without momentum': J(t=dict(beta1=0.0)),
        'without AuxK': J(dict(aux_coef=0.0)),
        'with a loss on dead latents': J(dict(dead_coef=0.01)),
        'dead after 25,000 tokens': J(t=dict(dead_after=25_000)),
        'bandwidth 0.02': J(dict(bandwidth=0.02)),
        'bandwidth 0.2': J(dict(bandwidth=0.2)),
        'KDE estimator': J(dict(estimator='kde')),
        'raw θ': J(dict(log_threshold=False), dict(threshold_lr=1e-3)),
        'threshold lr 1e-3': J(t=dict(threshold_lr=1e-3)),
        'target of each example': J(dict(per_example=True, coef=1.0)),
        'plain': P(init=L0),
        'plain + start': P(dict(start='topk'), dict(start=0.5)),
        'plain + momentum': P(t=dict(beta1=0.9), init=L0),
        'plain + AuxK': P(dict(aux_coef=AUXK), init=L0),
        'plain + loss on dead latents': P(dict(dead_coef=0.01), init=L0),
        'plain + bandwidth 0.2': P(dict(bandwidth=0.2), init=L0),
    }
    letter = dict(lr_warmup=1000, sparsity_warmup=10_000, lr_decay=0., dead_after=10_000_000)
    paper_sae, paper_train = LETTER['sae'] | dict(coef=6e-4), LETTER['train']
    out["the paper's recipe"] = dict(arch='jumprelu', sae=paper_sae, train=paper_train | letter)
    out["the paper's recipe, warm-ups shortened"] = dict(arch='jumprelu', sae=paper_sae, train=paper_train)
    out |= {
        'a controller sets λ': J() | dict(control='lambda'),
        'bandwidth annealed, 0.2 to 0.02': J() | dict(control='anneal'),
        'bandwidth of each latent': J() | dict(control='latent', path='dense'),
        'tanh penalty': J(dict(penalty='tanh', target_l0=22.0)),
        "Gated with free rows (RI-L1)": dict(arch='gated', sae=dict(coef=0.33), train=dict(lr=8e-3)),
        "Gated with unit rows": spec('gated', dict(coef=0.14)),
    }
    survivors = (
        'short recipe',
        'without the start (quantiles)',
        'start by BatchTopK',
        'without momentum',
        'KDE estimator',
        'target of each example',
        'a controller sets λ',
        'bandwidth annealed, 0.2 to 0.02',
        'bandwidth of each latent',
        'tanh penalty',
    )
    return out | {f'{n}, seed {s}': out[n] | dict(seed=s) for s in (1, 2) for n in survivors}


def levels() -> dict:
    "What the rows without a target need to end near L0 = 32"
    rows = ablation(False)
    return (
        {
            f'JumpReLU + L1, λ = {c}': rows['JumpReLU + L1, seed 0']
            | dict(sae=rows['JumpReLU + L1, seed 0']['sae'] | dict(coef=c))
            for c in (0.005, 0.01, 0.02, 0.04)
        }
        | {
            f'JumpReLU, θ fixed at L0 = {i}': rows['JumpReLU, θ fixed, seed 0'] | dict(init=i)
            for i in (48, 64, 96, 128, 192, 256, 320)
        }
        | {
            f'ReLU + L1, λ = {c}': rows['ReLU + L1, seed 0'] | dict(sae=dict(coef=c))
            for c in (0.06, 0.08, 0.1, 0.12, 0.14)
        }
    )


def at_level(name, key, default):
    "The setting of the run of `levels` that ended nearest to L0 = 32"
    rows = (
        [r for n, r in read_json(OUT / 'levels.json')['rows'].items() if n.startswith(name)]
        if (OUT / 'levels.json').exists()
        else []
    )
    best = min(rows, key=lambda r: abs(math.log(max(r['l0'], 1e-9)/L0)), default=None)
    return default if best is None else best['init'] if key == 'init' else best['sae'][key]


def ablation(level=True) -> dict:
    """Same weights, data, optimiser and budget for all; only the activation, the penalty or the estimator differs;
    three seeds"""
    t = SHORT['jumprelu']['train'] | dict(start=0.)
    base = dict(bandwidth=SHORT['jumprelu']['sae']['bandwidth'])
    l0 = base | dict(coef=SHORT['jumprelu']['sae']['coef'], target_l0=float(L0))
    l1, j1, fixed = (
        (
            at_level('ReLU + L1', 'coef', 0.12),
            at_level('JumpReLU + L1', 'coef', 0.08),
            at_level('JumpReLU, θ fixed', 'init', L0),
        )
        if level
        else (0.12, 0.08, L0)
    )
    rows = {
        'ReLU + L1': dict(arch='relu', sae=dict(coef=l1)),
        'JumpReLU + L1': dict(arch='jumprelu', sae=base | dict(penalty='l1', coef=j1), init=L0),
        'JumpReLU + L0, STE': dict(arch='jumprelu', sae=l0, init=L0),
        'JumpReLU + L0, KDE': dict(arch='jumprelu', sae=l0 | dict(estimator='kde'), init=L0),
        'JumpReLU + L0, STE into π': dict(arch='jumprelu', sae=l0 | dict(estimator='input'), init=L0),
        'JumpReLU, θ fixed': dict(arch='jumprelu', sae=base | dict(coef=0.0), init=fixed, fixed=True),
        'TopK': dict(arch='topk', sae=dict(k=L0)),
        'BatchTopK': dict(arch='batchtopk', sae=dict(k=L0)),
        'JumpReLU + L0, triangle': dict(arch='jumprelu', sae=l0 | dict(kernel='triangle'), init=L0),
        'JumpReLU + L0, Epanechnikov': dict(arch='jumprelu', sae=l0 | dict(kernel='epanechnikov'), init=L0),
        'JumpReLU + L0, Gaussian': dict(arch='jumprelu', sae=l0 | dict(kernel='gaussian'), init=L0),
    }
    return {
        f'{n}, seed {s}': r
        | dict(train={k: v for k, v in t.items() if k != 'threshold_lr' or r['arch'] == 'jumprelu'}, seed=s)
        for n, r in rows.items()
        for s in range(3)
    }


def paper() -> dict:
    """PAPER at a million tokens: to the letter (its batch, its warm-ups in steps), and with warm-ups as fractions of
    the run and the laptop's batch, so that λ is reached"""
    short = dict(train=LETTER['train'] | SHORT.schedule | dict(lr_decay=0., dead_after=25_000), batch=512)
    letter = dict(train=LETTER['train'], batch=4096)
    def at(coef, how): return dict(sae=LETTER['sae'] | dict(coef=coef)) | how
    rows = {'to the letter, λ = 0.0006': at(6e-4, letter)}
    rows |= {f'warm-ups shortened, λ = {c:g}': at(c, short) for c in (6e-4, 6e-2)}
    return {f'{n}, seed {s}': r | dict(seed=s) for s in range(3) for n, r in rows.items()}


def run_paper(acts, lm_eval, name, sae, train, batch, seed, n_tokens=N_PAPER) -> dict:
    "Train by the paper's recipe, judge on the test documents"
    cfg = ToTheLetter(n_tokens=n_tokens, batch=batch, **train)
    s = make_sae(SAEConfig('jumprelu', acts.d_in, 2048, **sae), seed)
    t = time.monotonic()
    tr = train_saes(Trainer({'s': s}, acts.stream(batch, seed), cfg), progress=False)
    test, done = acts.part('test'), s.eval().finish(acts.scaler)
    m, _ = evaluate_activations(done, test['x'], test['doc'], acts.rule, mean=acts.mean)
    d, _ = lm_eval.delta(done, acts.rule)
    how = dict(name=name, arch='jumprelu', seed=seed, sae=sae, train=train, batch=batch)
    how |= dict(n_tokens=cfg.n_tokens, n_steps=cfg.n_steps)
    got = dict(l0=m['l0'], fvu=m['fvu'], dead=m['dead'], delta_lm_loss=d['delta_lm_loss'])
    got |= dict(threshold_median=float(s.threshold.detach().median()), history=tr.history['s'])
    return how | got | dict(seconds=time.monotonic() - t)


def new_file(part: str, preset: str) -> dict:
    "What a part's results begin with"
    where = dict(n_tokens=N_TOKENS, at_l0=L0, judged_on='validation documents')
    if part == 'paper': where = dict(n_tokens=N_PAPER, at_l0=L0, judged_on='test documents')
    return dict(format=1, preset=preset, **where, command=f'python benchmarks/recipe.py {part}', rows={})


def key_of(part: str, r: dict) -> str:
    "Of all that a run is told: its own settings, and the schedule that it takes from the short recipe"
    return fingerprint(r if part == 'paper' else [r, SHORT.schedule])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('part', nargs='+', choices=('ingredients', 'levels', 'ablation', 'paper'))
    p.add_argument('--only', default='', help='runs whose name begins so')
    a = p.parse_args()
    known = {}  # preset -> its activations
    for part in a.part:
        preset = 'laptop-full' if part == 'paper' else 'laptop'
        if preset not in known: known = {preset: get_acts(get_preset(preset))}
        acts = known[preset]
        if part == 'paper': lm_eval = LMEval(acts.lm, acts.tokens['test'], acts.site, get_preset(preset).n_lm)
        path = OUT/f'{part}.json'
        d = read_json(path) if path.exists() else new_file(part, preset)
        for name, r in globals()[part]().items():
            key = key_of(part, r)
            if not name.startswith(a.only) or d['rows'].get(name, {}).get('key') == key: continue
            row = run_paper(acts, lm_eval, name, **r) if part == 'paper' else run(acts, name, **r)
            d['rows'][name] = row | dict(key=key)
            write_json(path, d | dict(env=run_env()))
            scores = f"L0 {row['l0']:6.1f}  FVU {row['fvu']:.4f}  dead {row['dead']:.3f}"
            print(f"{name:45} {scores}  {row['seconds']:.0f} s", flush=True)
