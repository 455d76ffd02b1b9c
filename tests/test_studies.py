"""What the studies in benchmarks/ share: a coefficient is corrected until the wanted L0 lies between two runs, a ladder
of learning rates goes on at an edge, and a wider SAE's tuning begins where the narrow one's ended"""
import ast
import importlib.util
import math
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace as Bag

import pytest

BENCHMARKS = Path(__file__).parent.parent/'benchmarks'
sys.path.insert(0, str(BENCHMARKS))
import fair  # noqa: E402
from auxk_only import AuxKOnly, Wider  # noqa: E402
from one_run import CORRECTED, read_between, runs_until_near  # noqa: E402
from wide import Wide  # noqa: E402

spec = importlib.util.spec_from_file_location('tokens_study', BENCHMARKS/'tokens.py')  # a name that nothing else has
tokens_study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tokens_study)


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


class Bowl:
    "A study of told architectures whose runs end at once: FVU is least at a learning rate and at one second setting"
    def __init__(self, best_lr: float, best_dead_after: int = 25_000):
        self.best, self.ended = (best_lr, best_dead_after), {}

    def has(self, part, job): return (part, job.name) in self.ended
    def result(self, part, job): return self.ended[part, job.name]

    def train_all(self, part, jobs, target):
        while waiting := [j for j in jobs() if not self.has(part, j)]: self.train(part, waiting[0], target)

    def train(self, part, job, target):
        lr, dead_after = self.best
        fvu = .1 + math.log(job.train.lr/lr)**2 + .01*(job.train.dead_after != dead_after)
        self.ended[part, job.name] = Bag(metrics=dict(fvu=fvu, dead=0., l0=target), config={})


@pytest.fixture
def wide():
    study = Wide(4096)
    study.begin = lambda arch, l0: dict(lr=.002, dead_after=8000)
    return study


def tried(wide, best_lr):
    wide.study = Bowl(best_lr)
    wide.train('tune', ('topk',), (16,))
    return [(j.train.lr, j.train.dead_after) for j in wide.tuning_jobs('topk', 16)]


def test_a_width_begins_where_the_narrow_one_ended(wide):
    "Three rates about the best with its other setting, then the other value at the best of the three"
    assert tried(wide, .002) == [(.001, 8000), (.002, 8000), (.004, 8000), (.002, 25_000)]
    assert wide.winner('topk', 16)['settings'] == dict(lr=.002, dead_after=25_000)
    assert not wide.winner('topk', 16)['edge']
    assert {j.cfg.d_sae for j in wide.tuning_jobs('topk', 16)} == {4096}


@pytest.mark.parametrize('best_lr, further, edge', [(.008, [.008, .016], False), (.001, [.0005], False),
    (.1, [.008, .016, .032], True)])
def test_a_ladder_goes_on_at_an_edge(wide, best_lr, further, edge):
    assert [lr for lr, _ in tried(wide, best_lr)[4:]] == further
    assert wide.winner('topk', 16)['edge'] is edge


def test_a_width_is_reported_when_all_its_sparsities_are_there(wide):
    tried(wide, .002)
    wide.train('tune', ('topk',), (64,))
    for l0 in (16, 32): wide.train('run', ('topk',), (l0,))
    assert wide.done('topk') == {}
    wide.train('run', ('topk',), (64,))
    assert [len(rs) for rs in wide.done('topk').values()] == [3, 3, 3]


def test_dead_latents_left_to_auxk():
    "Six runs at each L0, in all of which one loss is left out; nothing else but what tuning chose from"
    study = AuxKOnly()
    for l0 in study.tuned_at:
        jobs = study.first_jobs('jumprelu', l0)
        assert len(jobs) == len({(j.train.lr, j.train.dead_after) for j in jobs}) == 6
        usual = fair.plan_sae('jumprelu', 640, fair.N, 2048, l0, 'short', 0, dead_coef=0.)
        assert all(j.cfg == usual.cfg for j in jobs) and usual.cfg.dead_coef == 0 < usual.cfg.aux_coef
    assert fair.MAIN.first_jobs('jumprelu', 64)[0].cfg.dead_coef == .01


def of_fair(study): return [('run', j) for a in study.archs for j in judged(study, a)]


def of_wider(width):  # not tuned there
    return [('run', Wider(width).run_job('jumprelu', l0, s)) for l0 in Wider(width).l0s for s in fair.SEEDS]


def judged(study, arch):  # the runs that the study would make where its tuning is complete
    there = set(study.tuned(arch))
    l0s = [l0 for l0 in study.l0s if there.issuperset(study.tuned_around(l0))]
    return [study.run_job(arch, l0, s) for l0 in l0s for s in fair.SEEDS]


def of_tokens():
    places = [(a, n) for a in tokens_study.ARCHS for n in tokens_study.BUDGETS if tokens_study.tuned(a, n)]
    return [('gap', j) for a, n in places if not tokens_study.taken_over(a, n) for s in tokens_study.SEEDS
        for j in tokens_study.gap_jobs(a, n, s)]


@pytest.mark.parametrize('study, jobs, at_least', [
    (fair.MAIN.study, lambda: of_fair(fair.MAIN), 90),
    (Wide(4096).study, lambda: of_fair(Wide(4096)), 27),
    (AuxKOnly().study, lambda: of_fair(AuxKOnly()), 18),
    (Wider(4096).study, lambda: of_wider(4096), 9),
    (tokens_study.STUDY, of_tokens, 60)], ids=['fair', 'wide', 'auxk', 'auxk wider', 'tokens'])
def test_committed_runs_are_those_the_study_would_make(study, jobs, at_least):
    "To the last digit of a setting: otherwise a run that goes on elsewhere would refuse what is there"
    there = [(study.result(part, j), j) for part, j in jobs() if study.has(part, j)]
    assert len(there) >= at_least
    for r, j in there:
        assert (r.config['train'], r.config['sae']) == (asdict(j.train), asdict(j.cfg)), r.name


NO_MODEL = {  # these settings open no language model, or one that is given
    'one_run.py': 'trains plans on activations that are there',
    'gpu.py': 'a card has its own precision, which is written down',
    'second_opinion.py': 'the model is loaded in float32 and given',
    'workers.py': 'trains on activations that are there',
    'switch.py': 'trains on activations that are there',
}


def calls(file, *names):
    "The calls of some functions in a program"
    called = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
    return [n for n in called if getattr(n.func, 'id', getattr(n.func, 'attr', '')) in names]


def test_a_study_names_the_precision_of_its_model():
    "Or the processor would choose it, and two machines would judge by different activations"
    said = {f.name: [{k.arg for k in c.keywords} for c in calls(f, 'Settings')] for f in BENCHMARKS.glob('*.py')}
    silent = {f for f, given in said.items() if any('dtype' not in g for g in given)}
    assert silent == set(NO_MODEL)
    by_settings = [c for f in BENCHMARKS.glob('*.py') for c in calls(f, 'activations')]
    assert len(by_settings) > 8 and all('settings' in {k.arg for k in c.keywords} for c in by_settings)


def test_tokens_without_the_loss_begin_where_auxk_only_ended():
    t = tokens_study
    small, large = (t.ends(t.AUXK)[n] for n in t.ENDS)
    first = small.first_jobs('jumprelu', t.AT)
    assert {(j.train.lr, j.train.dead_after) for j in first} == {(lr, n) for lr in t.LRS for n in fair.DEAD_AFTER}
    begun = AuxKOnly().settings_at('jumprelu', t.AT)
    assert large.rates('jumprelu', t.AT) == [begun['lr']/2, begun['lr'], 2*begun['lr']]
    seconds = [m['dead_after'] for m in large.second_settings('jumprelu', t.AT)]
    assert sorted(seconds) == sorted(fair.DEAD_AFTER) and seconds[0] == begun['dead_after']
    asked = [j for n in t.ENDS for j in t.tuning_jobs(t.AUXK, n)]
    assert all(j.cfg.dead_coef == 0 for j in asked) and len(asked) >= 9
    with_loss = {j.name for n in t.ENDS for j in t.tuning_jobs('jumprelu', n)}
    assert with_loss.isdisjoint(j.name for j in asked)  # both are in one folder
    [million] = t.gap_jobs(t.AUXK, fair.N, 1)
    assert million.cfg.dead_coef == 0 and t.has(t.AUXK, fair.N, million)  # taken over from auxk_only.py
    [old] = t.gap_jobs('jumprelu', fair.N, 1)
    assert old.cfg.dead_coef == .01 and t.has('jumprelu', fair.N, old)


# -- what is there is used again only if it is the same ---------------------------------------------------------------

def program(name):
    "A program of benchmarks/ as a module that nothing else has"
    spec = importlib.util.spec_from_file_location(f'{name}_program', BENCHMARKS/f'{name}.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


def acts_of(scale):
    ours = dict(data=dict(site='resid.9'), massive=dict(factor=20.), scale=scale)
    return lambda: Bag(metadata=lambda: dict(jumprelu_sae=ours))


def test_scores_of_another_sae_or_of_other_activations_are_made_again(tmp_path, monkeypatch):
    m, made = program('interpret'), []
    monkeypatch.setattr(m, 'OUT', tmp_path)
    def score(sae, acts, name, config, every):
        made.append(config['key'])
        numbers = dict.fromkeys(('l0', 'r3.scored', 'r3.all', 'r3.firing', 'cpu_seconds'), 1.)
        return Bag(save=lambda path: m.write_json(path, dict(config=config, metrics=numbers)), metrics=numbers)
    monkeypatch.setattr(m, 'score_sae', score)
    for key, scale in (('a', 1.), ('a', 1.), ('b', 1.), ('b', 1.), ('b', 2.), ('b', 2.)):
        m.arm('topk-32-seed0', dict(arch='topk', target=32, seed=0, floor=None, key=key), lambda: None, acts_of(scale))
    assert made == ['a', 'b', 'b']


def test_committed_scores_are_all_of_the_same_activations():
    m = program('interpret')
    files = [p for p in m.OUT.glob('*.json') if p.stem not in ('summary', 'examples')]
    configs = [m.read_json(p)['config'] for p in files]
    saes = [c for c in configs if not c['floor']]
    assert len(saes) == 60 == len({c['key'] for c in saes})
    few = ('rerandomised', 'fewtokens')  # they have activations of their own
    assert len({c['acts'] for c in configs if c['floor'] not in few}) == 1
    trained = {c['key'] for c in configs if str(c['floor']).startswith('soft-frozen') or c['floor'] in few}
    assert trained == {m.recipe_key('topk'), m.recipe_key('jumprelu')}  # by the recipe as it is


@pytest.mark.parametrize('part', ['ingredients', 'levels', 'ablation', 'paper'])
def test_committed_rows_of_the_recipe_are_of_the_recipe_as_it_is(part, monkeypatch):
    m = program('recipe')
    rows = m.read_json(m.OUT/f'{part}.json')['rows']
    wanted = {name: m.key_of(part, r) for name, r in getattr(m, part)().items()}
    assert {name: rows[name]['key'] for name in wanted} == wanted
    other = m.replace(m.SHORT, schedule=m.SHORT.schedule | dict(dead_after=25_000))
    monkeypatch.setattr(m, 'SHORT', other)  # rows that take the schedule from there would be made again
    again = [name for name, r in getattr(m, part)().items() if m.key_of(part, r) != rows[name]['key']]
    assert len(again) == (0 if part == 'paper' else len(wanted))


def test_committed_truth_is_of_the_recipe_as_it_is():
    m = program('truth')
    d = m.read_json(m.OUT)
    for name, part in d['rows'].items():
        arch, width, seed = name.replace('width ', '').replace('seed ', '').split(', ')
        for r in part['rows']:
            assert r['train'] | dict(lr=None) == m.SHORT.schedule | m.SHORT[arch]['train'] | dict(lr=None), name
            assert r['sae'] == m.SHORT[arch]['sae'], name
    assert len(d['rows']) == 30
