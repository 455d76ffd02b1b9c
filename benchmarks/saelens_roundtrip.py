"""Is the folder that `SAE.save` writes one that SAELens opens, with the same numbers?

`python benchmarks/saelens_roundtrip.py --peer-python PEER/bin/python` trains a small SAE of every registered
architecture on activations with a centre and a scale, with and without the pre-encoder bias where there is one,
finishes and saves it, and lets the other interpreter (one with sae-lens==6.54.12) open the folder with
`sae_lens.SAE.load_from_disk`. Compared are latents, their support and the reconstruction for raw activations:
SAELens' against ours, and against the SAE as it was trained, in scaled units. Writes
results/benchmarks/saelens_roundtrip.json; exits with 1 unless all agree."""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
D_IN, D_SAE, N = 32, 256, 4096
TOLERANCE = 1e-5  # largest difference, relative to the largest value there is
# what makes a small SAE of an architecture sparse in a short run; an architecture that is not here: its own defaults
SMALL = dict(
    relu=dict(coef=0.05),
    gated=dict(coef=0.1),
    topk=dict(k=8),
    batchtopk=dict(k=8),
    jumprelu=dict(target_l0=8.0, coef=0.3, bandwidth=0.05, theta_init=0.05),
)

PEER = '''
import json, sys
from importlib.metadata import version
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
folder, x_file, out = sys.argv[1:]
sae = SAE.load_from_disk(folder, device='cpu')
x = load_file(x_file)['x']
with torch.no_grad():
    f = sae.encode(x)
    save_file(dict(f=f.contiguous(), x_hat=sae.decode(f).contiguous()), out)
facts = dict(cls=type(sae).__name__, sae_lens=version('sae-lens'), torch=torch.__version__)
print(json.dumps(facts | dict(meta=sae.cfg.metadata.to_dict())))
'''


def variants():
    "Every registered architecture, also with the pre-encoder bias where its settings know it: list of (name, settings)"
    from jumprelu_sae.sae import ARCHITECTURES

    out = []
    for name, arch in ARCHITECTURES.items():
        known = {f.name for f in fields(arch.config)}
        small = {k: v for k, v in SMALL.get(name, {}).items() if k in known}
        out.append((name, small))
        if 'pre_bias' in known:
            out.append((name, small | dict(pre_bias=True)))
    return out


def raw_activations():
    """Seeded activations with a centre far from zero and a scale far from one: training and held-out ones, each (n,
    d_in)"""
    import torch
    from jumprelu_sae.core import SyntheticStream

    made = SyntheticStream(d_in=D_IN, n_true=128, seed=3)
    centre = torch.randn(D_IN, generator=torch.Generator().manual_seed(5)) * 20
    return made.draw(16_384, 10**8)[0] * 70 + centre, made.draw(N)[0] * 70 + centre


def trained(name, settings, x):
    "An SAE after a few hundred steps: as it was trained, in scaled units; its scaler; finished, in raw units"
    from jumprelu_sae.core import Scaler, TensorStream
    from jumprelu_sae.sae import SAEConfig, make_sae
    from jumprelu_sae.train import TrainConfig, Trainer, train_saes

    scaler = Scaler.fit(x)
    sae = make_sae(SAEConfig(name, D_IN, D_SAE, **settings), seed=0)
    run = TrainConfig(n_tokens=300 * 256, batch=256, lr=2e-3, lr_warmup=0.05, sparsity_warmup=0.2)
    train_saes(Trainer({name: sae}, TensorStream(x, 256, scaler=scaler), run), progress=False)
    meta = dict(
        model_name='none',
        hook_name='blocks.2.hook_resid_post',
        hf_hook_name='model.layers.2.output',
        prepend_bos=True,
        context_size=128,
    )
    return sae.eval(), scaler, sae.finish(scaler, meta)


def compare(ours, theirs):
    "Largest difference relative to the largest value, and entries that are on in one only"
    worst = float((ours - theirs).abs().max() / ours.abs().max())
    return worst, int(((ours != 0) != (theirs != 0)).sum())


def roundtrip(name, settings, x, held_out, peer, folder):
    "One row: what SAELens made of the folder beside what we say"
    import torch
    from safetensors.torch import load_file, save_file
    from jumprelu_sae.sae import load_sae

    inner, scaler, sae = trained(name, settings, x)
    sae.save(folder / 'sae')
    back = load_sae(folder / 'sae')
    save_file(dict(x=held_out), folder / 'x.safetensors')
    args = [peer, '-c', PEER, str(folder / 'sae'), str(folder / 'x.safetensors'), str(folder / 'theirs.safetensors')]
    r = subprocess.run(args, capture_output=True, text=True, cwd=folder)
    if r.returncode:
        raise RuntimeError(f'{name} {settings}: SAELens does not open the folder:\n{r.stderr[-2000:]}')
    said, theirs = json.loads(r.stdout.splitlines()[-1]), load_file(folder / 'theirs.safetensors')
    with torch.no_grad():
        f, again = sae.encode(held_out), back.encode(held_out)
        x_hat = sae.decode(f)
        inner_f = inner.encode(scaler(held_out))
        inner_hat = scaler.inverse(inner.decode(inner_f))
    latents, support = compare(f, theirs['f'])
    recon, _ = compare(x_hat, theirs['x_hat'])
    inner_latents, inner_support = compare(
        inner_f * scaler.scale * inner.W_dec.norm(dim=1), theirs['f']
    )  # a finished SAE has unit rows
    inner_recon, _ = compare(inner_hat, theirs['x_hat'])
    kept = {k: said['meta'].get(k) for k in ('model_name', 'hook_name', 'hf_hook_name', 'prepend_bos', 'context_size')}
    return (
        dict(
            arch=name,
            settings=settings,
            opened_as=said['cls'],
            l0=round(float((f > 0).float().sum(1).mean()), 3),
            fvu=round(float((x_hat - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()), 4),
            latents=latents,
            reconstruction=recon,
            support_differs=support,
            entries=f.numel(),
            trained_latents=inner_latents,
            trained_reconstruction=inner_recon,
            trained_support_differs=inner_support,
            loaded_again_differs=float((f - again).abs().max()),
            metadata_kept=kept == {k: sae.metadata[k] for k in kept},
            ok=max(latents, recon, inner_latents, inner_recon) <= TOLERANCE,
        ),
        said,
    )


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--peer-python', required=True, help='interpreter of an environment with sae-lens==6.54.12')
    p.add_argument('--out', type=Path, default=ROOT / 'results' / 'benchmarks' / 'saelens_roundtrip.json')
    args = p.parse_args(argv)
    import torch
    from jumprelu_sae.core import run_env, write_json

    torch.manual_seed(0)
    x, held_out = raw_activations()
    rows, said = [], {}
    print(
        f"{'architecture':34s} {'opened as':22s} {'L0':>7s} {'FVU':>7s} {'latents':>9s} {'recon':>9s}  support  | as"
        " trained: the same"
    )
    for name, settings in variants():
        with tempfile.TemporaryDirectory() as d:
            row, said = roundtrip(name, settings, x, held_out, args.peer_python, Path(d))
        rows.append(row)
        label = name + (' (pre_bias)' if settings.get('pre_bias') else '')
        print(
            f"{label:34s} {row['opened_as']:22s} {row['l0']:7.2f} {row['fvu']:7.4f} {row['latents']:9.1e}"
            f" {row['reconstruction']:9.1e}  {row['support_differs']:7d}  | {row['trained_latents']:9.1e}"
            f" {row['trained_reconstruction']:9.1e}"
            f" {row['trained_support_differs']:4d}{'' if row['ok'] else '  DIFFERS'}",
            flush=True,
        )
    command = 'python benchmarks/saelens_roundtrip.py --peer-python PEER/bin/python'
    peer = dict(sae_lens=said['sae_lens'], torch=said['torch'])
    write_json(
        args.out,
        dict(
            format=1, command=command, tolerance=TOLERANCE, d_in=D_IN, d_sae=D_SAE, peer=peer, rows=rows, env=run_env()
        ),
    )
    bad = [r for r in rows if not (r['ok'] and r['metadata_kept'])]
    print(f'{len(rows)} folders, {len(bad)} differ by more than {TOLERANCE} or lost what their metadata says')
    return int(bool(bad))


if __name__ == '__main__':
    sys.exit(main())
