"""How often does the falsifier say what is true? Its full confusion table on invented frontiers, which 31_frontier
reads and draws.

    python benchmarks/falsifier.py [--draws 200] [--out results/evaluate/falsifier.json]

`one_seed`: JumpReLU wins by 3 %, ties, loses by 3 %, and the baseline trained again, each at three levels of scatter
between documents. `three_seeds`: ties and wins when a seed moves a whole frontier by 2 %, judged from three seeds.
`effects`: how the chance of 'held' grows with the size of a win, at 5 % scatter. One thread, some minutes, no model and
no data."""
import argparse, os, time
for k in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ[k] = '1'  # before numpy is loaded
import torch
from pathlib import Path
from jumprelu_sae.core import run_env, write_json
from jumprelu_sae.frontier import SUBJECT, TRUTHS, confusion, text_table

OUT = Path(__file__).parent.parent/'results'/'evaluate'/'falsifier.json'
EFFECTS = (.99, .98)


def main(draws: int, out: Path) -> dict:
    t = time.monotonic()
    parts = dict(one_seed=dict(),
        three_seeds=dict(truths={k: TRUTHS[k] for k in ('ties', 'wins')}, noises=(.05,), seeds=3, seed_noise=.02,
        seed=1_000_000),
        effects=dict(truths={f'{100*(1-r):.1f} % lower': (SUBJECT, r) for r in EFFECTS}, noises=(.05,), seed=2_000_000))
    d = dict(format=1, command=f'python benchmarks/falsifier.py --draws {draws}', draws=draws)
    for name, kw in parts.items():
        d[name] = confusion(draws=draws, **kw)
        print(text_table(d[name]), flush=True)
    d |= dict(seconds=round(time.monotonic() - t, 1), threads=torch.get_num_threads(), env=run_env())
    write_json(out, d)
    return d


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--draws', type=int, default=200, help='invented sweeps a row')
    p.add_argument('--out', type=Path, default=OUT, help='the JSON file to write')
    a = p.parse_args()
    main(a.draws, a.out)
