"""One SAE of a study, trained, judged and written down once: what `tokens.py`, `fair.py` and `lasts.py` share.

A study names the precision of the language model. Left to the machine it would be bfloat16 on one and float32 on
another, whose activations differ by a tenth of a percent, and a study that is finished elsewhere would mix both."""
import logging
import math
import shutil
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Callable

from jumprelu_sae.core import Result, Settings, UserError, cache_dir, run_env
from jumprelu_sae.evaluate import LMEval, evaluate_activations
from jumprelu_sae.recipe import Plan, train_plans
from jumprelu_sae.tuning import line_through

HOW = Settings(progress=False, in_memory=True, dtype='bfloat16')
REACH = 1.5  # how far a line through two runs is followed beyond them, as a factor of L0
NEAR, CORRECTED = 1.25, 2  # how far beside its runs an L0 may lie, as a factor; how often a coefficient is corrected


def read_between(l0s: list, values: list, at: float) -> float:
    "A value at an L0, straight in logs through two runs; far from both, at the farthest that such a line reaches"
    read = line_through(l0s, values, min(max(at, min(l0s)/REACH), max(l0s)*REACH)) if l0s[0] != l0s[1] else values[0]
    return min(max(read, min(values)/2), 2*max(values))  # two runs of about the same L0 make a steep line


def near(results: list[Result], l0: float) -> list[Result]:
    "The two whose L0 is nearest, in logs"
    return sorted(results, key=lambda r: abs(math.log(r.metrics['l0']/l0)))[:2]


def runs_until_near(study, part: str, make: Callable[[float], Plan], coefs: list[float], l0: float) -> list[Plan]:
    """For an architecture that cannot be told an L0: its runs at `coefs` and, once these have ended all above or all below
    the L0 and none near it, up to two more, each with the coefficient that the line through the two nearest gives"""
    jobs = [make(c) for c in coefs]
    for _ in range(CORRECTED):
        if not all(study.has(part, j) for j in jobs): return jobs
        rs = [study.result(part, j) for j in jobs]
        l0s = [r.metrics['l0'] for r in rs]
        if min(l0s)/NEAR <= l0 <= max(l0s)*NEAR: return jobs
        (xa, a), (xb, b) = ((r.metrics['l0'], r.config['sae']['coef']) for r in near(rs, l0))
        at = line_through((xa, xb), (a, b), l0) if xa != xb else 0.
        jobs.append(make(float(f'{min(max(at, min(a, b)/4), 4*max(a, b)):.3g}')))
    return jobs


class Study:
    """A folder of runs: `tune` is judged on validation documents, every other part on test documents, there with the
    language model's loss on `n_lm` predictions too"""
    def __init__(self, out: Path, acts=None, n_lm: int = 0):
        self.out, self.acts, self.n_lm = out, acts, n_lm

    @cached_property
    def lm_eval(self) -> LMEval:
        return LMEval(self.acts.lm, self.acts.tokens['test'], self.acts.site, self.n_lm)

    def path(self, part: str, plan: Plan) -> Path: return self.out/part/'runs'/f'{plan.name}.json'
    def result(self, part: str, plan: Plan) -> Result: return Result.load(self.path(part, plan))
    def has(self, part: str, plan: Plan) -> bool: return self.path(part, plan).exists()

    def train_all(self, part: str, jobs: Callable[[], list[Plan]], target: float) -> None:
        "One after the other; `jobs` is asked again after each, since a later run may depend on an earlier one"
        seen = set()
        while waiting := [j for j in jobs() if j.name not in seen]:
            self.train(part, waiting[0], target)
            seen.add(waiting[0].name)

    def train(self, part: str, plan: Plan, target: float) -> None:
        "Trained, judged and written down, unless it is there; goes on from a checkpoint"
        path, acts = self.path(part, plan), self.acts
        key = plan.key(acts.stream(plan.train.batch, plan.seed).identity())
        if path.exists():
            if Result.load(path).config['key'] == key: return
            if part == 'tune':  # only chooses settings
                logging.info('%s was made on other activations or by another version, and is kept', path)
                return
            raise UserError(f'{path} is of other data or settings: move it away')
        began, folder = time.process_time(), cache_dir()/self.out.name/part/plan.name
        [sae] = train_plans([plan], acts, folder, Settings(progress=False, threads=1))
        on = 'val' if part == 'tune' else 'test'
        held = acts.part(on)
        m, arrays = evaluate_activations(sae, held['x'], held['doc'], acts.rule, mean=acts.mean)
        config = dict(arch=plan.cfg.arch, target=target, seed=plan.seed, key=key, sae=asdict(plan.cfg))
        config |= dict(train=asdict(plan.train), judged_on=dict(part=on), seconds=time.process_time() - began)
        sums = {k: v for k, v in arrays.items() if k in ('docs', 'tokens', 'sse', 'sst', 'l0')}
        if self.n_lm and on == 'test':
            delta, more = self.lm_eval.delta(sae, acts.rule)
            m, sums = m | delta, sums | more
        Result(plan.name, config, m, sums, run_env()).save(path)
        shutil.rmtree(folder, ignore_errors=True)
        said = (m[k] for k in ('l0', 'fvu', 'dead'))
        logging.info('%s: L0 %.1f, FVU %.4f, dead %.3f, %.0f s', plan.name, *said, config['seconds'])
