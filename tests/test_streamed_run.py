"""A run whose training activations never touch a disk: chosen by size, several SAEs on one pass, the same bits after
kills"""
import json, logging, os, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from jumprelu_sae import experiment
from jumprelu_sae.core import Settings, UserError, read_json
from jumprelu_sae.experiment import (
    Stages,
    SweepTrainer,
    decided_store,
    get_activations,
    in_checkpoint,
    jobs,
    new_trainer,
    passes_of,
    run_experiment,
)
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.sae import load_sae
from jumprelu_sae.train import Trainer

BASE = replace(PRESETS['tiny'], n_train=2048, n_val=256, n_test=512, n_lm=128, passes=2,
    grid=dict(topk=(4,), jumprelu=(4, 8), relu=(1.,)))  # 16 steps

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, 'BUCKET', 700)  # buckets that end within a block of rows
    caplog.set_level(logging.INFO, 'jumprelu_sae')
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)

def run(p=BASE, out='out', store='stream', **settings):
    return {r.name: r for r in run_experiment(p, Settings(progress=False, out=Path(out), store=store, **settings))}

def stopped_at(monkeypatch, at, out='out', **settings):
    step = Trainer.one_step
    def stops(self):
        t = step(self)
        self.stop = self.step == at
        return t
    with monkeypatch.context() as m:
        m.setattr(Trainer, 'one_step', stops)
        with pytest.raises(KeyboardInterrupt): run(out=out, **settings)

def saes(out): return {str(f.relative_to(out)): f.read_bytes() for f in sorted(Path(out).glob('saes/*/*'))}
def metrics(rs): return {n: r.metrics for n, r in rs.items()}
def key(name): return read_json(Path('out/saes')/name/'cfg.json')['metadata']['jumprelu_sae']['key']

KILLED = '''
import os, signal, sys, torch
torch.set_num_threads(1)
import test_streamed_run as t
from jumprelu_sae import experiment
from jumprelu_sae.train import Trainer
experiment.BUCKET, step = 700, Trainer.one_step
def killed(self):
    if self.step == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Trainer.one_step = killed
t.run(out=sys.argv[1], save_every=1e-9)
'''

def test_killed_and_stopped_it_ends_in_the_same_bits(monkeypatch, caplog):
    "kill -9 twice and stopped twice, at four places in and between buckets and in both passes"
    whole = run(out='whole')
    assert 'resumed' not in caplog.text
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    env = os.environ | dict(PYTHONPATH=here, OMP_NUM_THREADS='1')
    def kill(at):
        p = subprocess.run([sys.executable, '-c', KILLED, 'out', str(at)], env=env, capture_output=True, text=True)
        assert p.returncode == -signal.SIGKILL, p.stderr
    kill(3)
    stopped_at(monkeypatch, 7)
    kill(9)
    stopped_at(monkeypatch, 12)
    again = run()
    resumed = [r.getMessage() for r in caplog.records if 'resumed at step' in r.getMessage()]  # in this process
    print(len(resumed) + 1, 'resumes; here:', resumed)
    assert [int(m.split('resumed at step ')[1].split()[0]) for m in resumed] == [3, 9, 12]
    a, b = saes('whole'), saes('out')
    assert a == b and len(a) >= 2*len(whole) and metrics(again) == metrics(whole)
    for n in whole:
        x, y = (load_sae(Path(o)/'saes'/n).state_dict() for o in ('whole', 'out'))
        assert all(torch.equal(x[k], y[k]) for k in x)

def test_nothing_of_the_training_side_is_on_disk():
    run()
    stores = [read_json(f) for f in Path('cache/stores').glob('*/manifest.json')]
    assert sorted(s['facts']['n_tokens'] for s in stores) == [BASE.n_val, BASE.n_test]
    biggest = max(f.stat().st_size for f in Path('out').rglob('*') if f.is_file())
    assert biggest < BASE.n_train*32*4/2  # a store of the training side alone would be larger

def test_all_saes_on_one_pass(monkeypatch):
    "One trainer for architectures with settings of their own, one stream; each SAE is what it would be alone"
    seen, step = set(), Trainer.one_step
    def counts(self):
        seen.add((type(self).__name__, tuple(self.saes)))
        return step(self)
    monkeypatch.setattr(Trainer, 'one_step', counts)
    together = run()
    assert seen == {('SweepTrainer', tuple(together))}
    assert len({json.dumps(r.config['train']) for r in together.values()}) > 1
    for name, r in together.items():
        alone = run(replace(BASE, grid={r.config['arch']: (r.config['target'],)}), out=name)
        assert saes(name) == {k: v for k, v in saes('out').items() if k.split('/')[1] == name}
        assert alone[name].config['key'] == r.config['key'] == key(name)

def test_cut_to_passes_that_fit(monkeypatch):
    "As many SAEs at a time as memory holds, to the same bytes; a pass cut otherwise goes on"
    all_jobs = jobs(BASE, 32)
    room = (2.9*experiment.kept_bytes(all_jobs[1].plan) + 8*4*BASE.batch*BASE.d_sae)/.8
    whole = run(out='whole')
    with monkeypatch.context() as m:
        m.setitem(passes_of.__globals__, 'free_memory', lambda *_: room)
        names = passes_of(all_jobs)
    assert sorted(set(names.values())) == ['stream-seed0', 'stream-seed0-2']
    with monkeypatch.context() as m:
        m.setattr(experiment, 'passes_of', lambda *_: names)
        stopped_at(m, 5)
    held = in_checkpoint(Path('out/checkpoints/stream-seed0'))
    assert held == [n for n, o in names.items() if o == 'stream-seed0'] and 0 < len(held) < len(whole)
    assert metrics(run()) == metrics(whole) and saes('out') == saes('whole')
    assert not list(Path('out/checkpoints').glob('*'))

def test_the_choice_is_written_down_and_kept(monkeypatch):
    disk = run(store='auto')
    kinds = [read_json('out/decisions.json')['store']['kind'], read_json('out/results.json')['facts']['store']['kind']]
    assert kinds == ['disk', 'disk']
    with pytest.raises(UserError, match="begun with store='disk', and store='stream' is asked"): run()
    with monkeypatch.context() as m:
        m.setattr(experiment, 'STREAM_BYTES', 1000)
        said = []
        streamed = run_experiment(BASE, Settings(progress=False, out=Path('large')), said.append)
        assert any(l.startswith('[activations]') and 'stream: 2,048 training activations would' in l for l in said)
    store = read_json('large/decisions.json')['store']
    assert store == decided_store(Path('large')) == read_json('large/results.json')['facts']['store']
    assert store['kind'] == 'stream' and 'more than' in store['why'] and store['bucket'] == 512
    assert read_json('large/results.json')['settings']['store'] == 'stream'
    monkeypatch.setattr(experiment, 'BUCKET', 300)  # another machine: the run keeps its bucket
    again = {r.name: r for r in run_experiment(BASE, Settings(progress=False, out=Path('large')))}
    assert metrics(again) == {r.name: r.metrics for r in streamed} and again.keys() == disk.keys()
    assert all(again[n].config['key'] != disk[n].config['key'] for n in disk)

def test_the_scale_is_fitted_once(monkeypatch):
    "On a GPU a second fit might differ in its last bit, and refuse the run's own checkpoint"
    stopped_at(monkeypatch, 5)
    monkeypatch.setattr(experiment.StreamedActivations, 'fitted', lambda self: 1/0)
    run()

def test_about_as_good_as_from_disk():
    a, b = run(), run(out='disk', store='disk')
    for n in a: assert abs(a[n].metrics['fvu']/b[n].metrics['fvu'] - 1) < .05, n

def test_streams_of_a_seed_and_of_another():
    acts, _ = get_activations(BASE, Settings(progress=False, store='stream'), Path('.'), Stages())
    a, b, c = (acts.stream(64, s) for s in (0, 0, 1))
    x, y, z = (torch.cat([next(s) for _ in range(32)]) for s in (a, b, c))
    assert torch.equal(x, y) and not torch.equal(x, z) and a.identity() == b.identity() != c.identity()
    assert abs(float(x.square().sum(1).mean()) - 1) < .1
    all_jobs = jobs(BASE, 32)
    tr = new_trainer(all_jobs, acts)
    assert isinstance(tr, SweepTrainer)
    for j in all_jobs: assert tr.opts[j.name].param_groups[-1]['betas'][0] == j.plan.train.beta1
    with pytest.raises(UserError, match='share batch'):
        new_trainer(all_jobs[:1] + jobs(replace(BASE, passes=1, grid=dict(relu=(2.,))), 32), acts)
