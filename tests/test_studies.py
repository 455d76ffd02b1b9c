"""What the studies in benchmarks/ share: a coefficient is corrected until the wanted L0 lies between two runs"""
import sys
from pathlib import Path
from types import SimpleNamespace as Bag

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
from one_run import CORRECTED, read_between, runs_until_near  # noqa: E402


class Law:
    "A study whose runs end at once, with L0 = scale/coef and FVU = (1/L0)**.3"
    def __init__(self, scale: float): self.scale, self.done = scale, {}
    def has(self, part, job): return job.name in self.done
    def result(self, part, job): return self.done[job.name]

    def end(self, job):
        l0 = self.scale/job.coef
        self.done[job.name] = Bag(metrics=dict(l0=l0, fvu=l0**-.3), config=dict(sae=dict(coef=job.coef)))


def make(coef): return Bag(name=f'{coef:g}', coef=coef)


def coefs_tried(law, l0):
    "As `train_all` asks: again after each run"
    while waiting := [j for j in runs_until_near(law, 'tune', make, [.1, .2], l0) if not law.has('tune', j)]:
        law.end(waiting[0])
    return [j.coef for j in runs_until_near(law, 'tune', make, [.1, .2], l0)]


@pytest.mark.parametrize('l0', [32, 25, 63, 45])
def test_near_l0_needs_no_correction(l0):  # runs at 30 and 60
    assert coefs_tried(Law(6), l0) == [.1, .2]


@pytest.mark.parametrize('l0', [8, 16, 256])
def test_far_l0_is_found(l0):
    law = Law(6)
    tried = coefs_tried(law, l0)
    assert 2 < len(tried) <= 2 + CORRECTED
    assert min(abs(r.metrics['l0']/l0 - 1) for r in law.done.values()) < .1


def test_uncorrected_reading_would_flatter():
    "Why: the line is followed only so far, and there FVU is lower than at the wanted L0"
    l0s = [60, 30]
    assert read_between(l0s, [v**-.3 for v in l0s], 8) < 8**-.3
