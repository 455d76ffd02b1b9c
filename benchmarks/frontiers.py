"""Does the answer depend on where one looks? The laptop's frontier at another layer, at the MLP's and the attention's
output, and at another width.

    python benchmarks/frontiers.py                      # all; or: python benchmarks/frontiers.py mlp attn
    python benchmarks/frontiers.py --areas FILE         # no run: JumpReLU against each rival in what is there

One seed, 299,520 training tokens, five sparsities, five architectures, the recipes of the main site (found there, at
2,048 latents; not tuned again). Finished SAEs, stores and evaluations are kept under --out and the cache; stop at any
time. The evidence goes to results/laptop-<name>/results.json.

All of it was run again on 2026-11-29, when the short recipe had lost its loss on JumpReLU's dead latents and counted a
latent as dead after 8,000 tokens. What the runs of before said is in results/benchmarks/sites_before.json."""
import argparse, shutil
from dataclasses import replace
from pathlib import Path
from jumprelu_sae.core import Result, Settings, read_json, write_json
from jumprelu_sae.frontier import falsifier, opponents
from jumprelu_sae.presets import LAPTOP
from jumprelu_sae.reproduction import reproduce

RESULTS = Path(__file__).parent.parent/'results'
L0S = (8, 16, 32, 64, 128)
GRID = dict(relu=(.03, .053, .088, .13, .195), gated=(.055, .08, .12, .18, .27)) | dict.fromkeys(
    ('topk', 'batchtopk', 'jumprelu'), L0S)
BASE = replace(LAPTOP, n_train=299_520, grid=GRID)
RUNS = dict(layer=replace(BASE, name='laptop-layer', about='residual stream after layer 14', site='resid.14'),
    mlp=replace(BASE, name='laptop-mlp', about='output of the MLP of layer 9', site='mlp.9'),
    attn=replace(BASE, name='laptop-attn', about='attention of layer 9, before its output matrix', site='attn.9'),
    main=replace(BASE, name='laptop-main', about='the main site, for comparison', site='resid.9'),
    wide=replace(BASE, name='laptop-wide', about='the main site, twice as wide', d_sae=4096))

def areas() -> list[dict]:  # name, rival, metric, area, both, verdict, and of JumpReLU's recipe what changed once
    "JumpReLU against each rival at equal L0, at every place that is there"
    out = []
    for f in sorted(RESULTS.glob('laptop*/results.json')):
        d = read_json(f)
        rs = [Result(**r) for r in d['results']]
        ours = next(r.config for r in rs if r.config['arch'] == 'jumprelu')
        how = dict(dead_coef=ours['sae']['dead_coef'], dead_after=ours['train']['dead_after'])
        for rival in opponents(rs):
            for m in ('fvu', 'delta_lm_loss'):
                v = falsifier(rs, 'jumprelu', rival, m)
                out.append(dict(name=f.parent.name, rival=rival, metric=m, area=v.area, both=v.both, verdict=v.verdict,
                    values=dict(zip((f'{x:.0f}' for x in v.l0s[::8]), v.values[::8])), commit=d['env']['commit']) | how)
    return out


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help=f"which ({', '.join(RUNS)}); default: all")
    p.add_argument('--out', type=Path, default=Path('reports/frontiers'), help='where SAEs and checkpoints go')
    p.add_argument('--areas', type=Path, help='write what the results that are there say to this file')
    a = p.parse_args()
    if a.areas: write_json(a.areas, dict(format=1, command='python benchmarks/frontiers.py --areas FILE', rows=areas()))
    for name in [] if a.areas else a.names or RUNS:
        reproduce(RUNS[name], a.out/name, Settings(progress=False, dtype='bfloat16'), report=False, say=print)
        to = RESULTS/f'laptop-{name}'
        to.mkdir(exist_ok=True)
        for f in ('results.json', 'frontier.csv'): shutil.copy(a.out/name/f, to/f)
