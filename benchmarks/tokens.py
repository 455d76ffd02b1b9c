"""The gap against tokens: who leads at L0 = 32 after 62 thousand to a million training tokens?

    python benchmarks/tokens.py tune     # six runs an architecture at the smallest budget
    python benchmarks/tokens.py gap      # three seeds at five budgets, settings interpolated in log tokens
    python benchmarks/tokens.py report   # FVU ratios to JumpReLU with intervals, from what is there

Layer 9 of Gemma 3 270M, 2,048 latents, batch 512, SHORT recipe, held-out documents as everywhere. The largest budget is
that of `fair.py`, whose settings and runs at L0 = 32 are taken over; the smallest is tuned here in the same way: six
runs an architecture, three learning rates by the same second setting, judged on validation documents (Gated cannot be
told an L0: its second setting is the coefficient, corrected as in `fair.py`, and FVU is read at 32 between two runs).
The gap is judged on test documents. A run that ends beside L0 = 32 is read there along the slope of FVU in log L0 that
Gated's two runs of the same budget and seed show.

Rule, written before any run: JumpReLU leads (trails) an architecture at a budget if the 95 % interval of the FVU ratio
over documents and seeds lies below (above) 1; where an interval holds 1, nobody leads. "Gated overtakes between A and
B" is said if JumpReLU leads at A and all smaller budgets, and trails at B and all larger ones, or the other way round.

Every run is written to results/tokens when it ends, and is not repeated; a stopped one goes on where it stopped.
Several processes may work at the same time if each is given its architecture: `--arch`. One thread each:
OMP_NUM_THREADS=1."""
import argparse
import logging
import math
from itertools import product
from pathlib import Path

import fair
import numpy as np
from one_run import HOW, Study, near, read_between, runs_until_near

from jumprelu_sae.activations import activations
from jumprelu_sae.core import Result, run_env, write_json
from jumprelu_sae.frontier import resampled
from jumprelu_sae.intervals import effective_documents, mean_intervals
from jumprelu_sae.recipe import Plan, plan_sae

STUDY = Study(Path(__file__).parent.parent/'results'/'tokens')
ARCHS = ('jumprelu', 'topk', 'batchtopk', 'gated')
BUDGETS = (62_464, 124_928, 249_856, 499_712, fair.N)
SEEDS = (0, 1, 2)
AT = 32  # the L0 of the comparison
LRS = (4e-3, 8e-3, 1.6e-2)  # at the smallest budget
COEFS = (.12, .19)  # there, of Gated: about L0 = 32
AROUND = .88, 1.14  # Gated's two coefficients about the one that should give L0 = 32


def job(arch: str, n: int, seed: int, **settings) -> Plan:  # one run
    said = '-'.join(f'{k}{v:.3g}' for k, v in settings.items())
    l0 = None if arch == 'gated' else AT
    return plan_sae(arch, 640, n, 2048, l0, 'short', seed, name=f'{arch}-{n}-{said}-seed{seed}', **settings)


def tuning_jobs(arch: str) -> list[Plan]:  # six, at the smallest budget
    if arch == 'gated': return [j for lr in LRS for j in gated_at(lr)]
    return [job(arch, BUDGETS[0], 0, lr=lr, **m) for lr in LRS for m in fair.second_settings(arch, AT)]


def gated_at(lr: float) -> list[Plan]:  # two runs, and corrected ones where these end far from L0 = 32
    return runs_until_near(STUDY, 'tune', lambda c: job('gated', BUDGETS[0], 0, lr=lr, coef=c), COEFS, AT)


def winner(arch: str) -> dict:  # settings
    "The best at the smallest budget on validation documents; FVU of Gated is read at L0 = 32"
    if arch != 'gated':
        best = min(tuning_jobs(arch), key=lambda j: STUDY.result('tune', j).metrics['fvu'])
        return fair.varied(best)
    best = None
    for lr in LRS:
        pair = near([STUDY.result('tune', j) for j in gated_at(lr)], AT)
        l0s = [r.metrics['l0'] for r in pair]
        tried = dict(fvu=[r.metrics['fvu'] for r in pair], coef=[r.config['sae']['coef'] for r in pair])
        read = {k: read_between(l0s, v, AT) for k, v in tried.items()}
        if best is None or read['fvu'] < best['fvu']: best = read | dict(lr=lr)
    return {k: best[k] for k in ('lr', 'coef')}


def settings_at(arch: str, n: int) -> dict:
    "Between the winners at both ends, straight in log tokens and log setting"
    small, large = winner(arch), fair.MAIN.settings_at(arch, AT)
    return fair.between((BUDGETS[0], BUDGETS[-1]), (small, large), n)


def taken_over(arch: str, n: int) -> bool: return n == BUDGETS[-1] and arch != 'gated'  # the run is one of `fair.py`


def gap_jobs(arch: str, n: int, seed: int) -> list[Plan]:
    if taken_over(arch, n): return [fair.MAIN.run_job(arch, AT, seed)]
    s = settings_at(arch, n)
    if arch != 'gated': return [job(arch, n, seed, **s)]
    coefs = [s['coef']*a for a in AROUND]
    return runs_until_near(STUDY, 'gap', lambda c: job(arch, n, seed, lr=s['lr'], coef=c), coefs, AT)


def has(arch: str, n: int, j: Plan) -> bool:
    return fair.MAIN.study.has('run', j) if taken_over(arch, n) else STUDY.has('gap', j)


def result(arch: str, n: int, j: Plan) -> Result:
    return fair.MAIN.study.result('run', j) if taken_over(arch, n) else STUDY.result('gap', j)


def read_at_32(results: list[Result], slope: float, draws: int) -> np.ndarray:  # log FVU at L0 = 32, (1 + draws,)
    y, x = (np.log(resampled(results, k, draws)) for k in ('fvu', 'l0'))
    if len(results) == 1: return y[:, 0] + slope*(math.log(AT) - x[:, 0])
    (xa, xb), (ya, yb) = x.T, y.T
    return ya + (yb - ya)*(math.log(AT) - xa)/(xb - xa)


def report(draws: int = 2000) -> dict:
    "Ratio of JumpReLU's FVU to each of the others at L0 = 32, by budget"
    rows = []
    for n in BUDGETS:
        logs, used = {}, []
        for seed in SEEDS:
            jobs = {a: gap_jobs(a, n, seed) for a in ARCHS}
            if not all(has(a, n, j) for a, js in jobs.items() for j in js): continue
            rs = {a: near([result(a, n, j) for j in js], AT) for a, js in jobs.items()}
            l0s, fvus = ([r.metrics[k] for r in rs['gated']] for k in ('l0', 'fvu'))
            slope = math.log(fvus[1]/fvus[0])/math.log(l0s[1]/l0s[0])
            for a in ARCHS: logs.setdefault(a, []).append(read_at_32(rs[a], slope, draws))
            used.append(seed)
        if not used: continue
        docs = effective_documents(rs['jumprelu'][0].arrays['sst'])
        for a in ARCHS[1:]:
            d = np.stack([p - q for p, q in zip(logs['jumprelu'], logs[a])], 1)
            iv = mean_intervals(d, docs)
            lo, hi = np.exp(iv.both)
            word = 'leads' if hi < 1 else 'trails' if lo > 1 else 'level'
            ratio = dict(ratio=float(np.exp(iv.mean)), lo=float(lo), hi=float(hi))
            rows.append(dict(tokens=n, against=a, **ratio, jumprelu=word, seeds=used))
            print(f'{n:9,} tokens, JumpReLU/{a}: {np.exp(iv.mean):.3f} [{lo:.3f}, {hi:.3f}] {word} ({len(used)} seeds)')
    chosen = {a: {n: settings_at(a, n) for n in BUDGETS} for a in ARCHS}
    command = 'python benchmarks/tokens.py report'
    ours = [(p, j) for a in ARCHS for p, js in all_jobs(a) for j in js if STUDY.has(p, j)]
    spent = math.fsum(STUDY.result(p, j).config['seconds'] for p, j in ours)
    d = dict(format=1, command=command, at_l0=AT, rows=rows, settings=chosen, seconds=spent, env=run_env())
    write_json(STUDY.out/'tokens.json', d)
    return d


def all_jobs(arch: str) -> list:  # (part, its runs) of this study; those of `fair.py` are counted there
    gap = [j for n in BUDGETS if not taken_over(arch, n) for s in SEEDS for j in gap_jobs(arch, n, s)]
    return [('tune', tuning_jobs(arch)), ('gap', gap)]


def train(part: str, archs: tuple, budgets: tuple) -> None:
    "All runs of a part that are not there yet"
    if part == 'tune':
        for a in archs: STUDY.train_all(part, lambda: tuning_jobs(a), AT)
        return
    for n, a, s in product(budgets, archs, SEEDS):
        if not taken_over(a, n): STUDY.train_all(part, lambda: gap_jobs(a, n, s), AT)


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', nargs='+', choices=('tune', 'gap', 'report'), help='one or several, done in this order')
    a.add_argument('--arch', nargs='*', choices=ARCHS, default=ARCHS)
    a.add_argument('--budgets', nargs='*', type=int, choices=BUDGETS, default=BUDGETS)
    a = a.parse_args()
    if a.part != ['report']:
        STUDY.acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=fair.N_TRAIN, settings=HOW)
    for part in a.part:
        if part == 'report': report()
        else: train(part, a.arch, a.budgets)
