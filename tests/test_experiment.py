"What is found in a run's folder is used only if it is this run's; what the machine decided is kept."
import json, logging
from dataclasses import replace
from pathlib import Path
import pytest
from jumprelu_sae import experiment
from jumprelu_sae.activations import decide_in_memory
from jumprelu_sae.core import Settings, UserError, read_json
from jumprelu_sae.experiment import in_checkpoint, job_identity, jobs, run_experiment, what_differs
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.train import Trainer
from jumprelu_sae.tuning import tune

BASE = replace(PRESETS['tiny'], n_train=2048, n_val=256, n_test=512, n_lm=128, grid=dict(topk=(4,)))

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, caplog):
    "Every test has a cache and a working directory of its own"
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, 'jumprelu_sae')

def run(p=BASE, out='out', **settings):
    return {r.name: r for r in run_experiment(p, Settings(progress=False, out=Path(out), **settings))}

def metrics(results): return {n: r.metrics for n, r in results.items()}

def stopped_at(monkeypatch, at, p=BASE, out='out', **settings):
    "Run until a step, as Ctrl-C would"
    step = Trainer.one_step
    def stops(self):
        t = step(self)
        self.stop = self.step == at
        return t
    with monkeypatch.context() as m:
        m.setattr(Trainer, 'one_step', stops)
        with pytest.raises(KeyboardInterrupt): run(p, out, **settings)

def steps_seen(monkeypatch):
    "A list that grows by (names, step) with each training step"
    seen, step = [], Trainer.one_step
    def counts(self):
        seen.append((tuple(self.saes), self.step))
        return step(self)
    monkeypatch.setattr(Trainer, 'one_step', counts)
    return seen

def corpus(name, word):
    d = Path(name)
    d.mkdir(exist_ok=True)
    for i in range(60): (d/f'{i}.txt').write_text(' '.join(f'{word} {i} {j} of many words in a document;' for j in range(40)))
    return str(d)

OTHERS = dict(site=dict(site='mlp.1'), seq_len=dict(seq_len=24), massive=dict(massive=5.), centre=dict(centre=False), batch=dict(batch=128), tokens=dict(n_train=1536),
    model=dict(model='tiny-gemma3'), width=dict(d_sae=48), schedule=dict(schedule=dict(lr=1e-3)))

@pytest.mark.parametrize('what', ('site', 'seq_len', 'centre', 'width', 'model'))
def test_a_stopped_run_is_not_continued_with_other_settings(monkeypatch, caplog, what):
    other = replace(BASE, **OTHERS[what])
    stopped_at(monkeypatch, 4)
    seen = steps_seen(monkeypatch)
    mixed = run(other)
    assert seen[0][1] == 0 and 'start again' in caplog.text
    clean = run(other, 'clean')
    assert metrics(mixed) == metrics(clean)
    assert {n: r.config['key'] for n, r in mixed.items()} == {n: r.config['key'] for n, r in clean.items()}

@pytest.mark.parametrize('what', ('site', 'massive', 'tokens', 'schedule', 'batch'))
def test_a_finished_run_is_not_taken_for_another(caplog, what):
    first = run()
    other = replace(BASE, **OTHERS[what])
    caplog.clear()
    mixed = run(other)
    assert 'trained again' in caplog.text and 'evaluated again' in caplog.text
    assert metrics(mixed) == metrics(run(other, 'clean'))
    assert [r.config['key'] for r in mixed.values()] != [r.config['key'] for r in first.values()]

def test_an_edited_corpus_under_the_same_name(monkeypatch, caplog):
    mine = replace(BASE, corpus=corpus('texts', 'some'), n_train=1792)
    stopped_at(monkeypatch, 4, mine)
    corpus('texts', 'other')
    seen = steps_seen(monkeypatch)
    mixed = run(mine)
    assert seen[0][1] == 0 and 'start again' in caplog.text
    assert metrics(mixed) == metrics(run(mine, 'clean'))

def test_a_stopped_run_goes_on(monkeypatch):
    whole = run(out='whole')
    stopped_at(monkeypatch, 4)
    seen = steps_seen(monkeypatch)
    assert metrics(run()) == metrics(whole)
    assert [s for _, s in seen] == list(range(4, 8))

def test_an_added_sparsity_leaves_the_others_alone(monkeypatch):
    p = replace(BASE, grid=dict(topk=(4, 8)))
    run()
    before = Path('out/saes/topk-4-seed0/sae_weights.safetensors').stat()
    seen = steps_seen(monkeypatch)
    more = run(p)
    assert {n for n, _ in seen} == {('topk-8-seed0',)}
    after = Path('out/saes/topk-4-seed0/sae_weights.safetensors').stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert metrics(more) == metrics(run(p, 'fresh'))

def test_a_sparsity_taken_out_of_a_stopped_group(monkeypatch, caplog):
    stopped_at(monkeypatch, 4, replace(BASE, grid=dict(topk=(4, 8))))
    assert in_checkpoint(Path('out/checkpoints/topk-seed0')) == ['topk-4-seed0', 'topk-8-seed0']
    assert metrics(run()) == metrics(run(out='fresh'))
    assert not Path('out/checkpoints/topk-seed0').exists()

def test_killed_between_two_finished_saes(monkeypatch):
    "The last checkpoint is there until all SAEs of the group are: nothing is trained twice"
    p, keep = replace(BASE, grid=dict(topk=(4, 8))), experiment.keep_finished
    def once(job, *a):
        if job.value == 8: raise KeyboardInterrupt
        return keep(job, *a)
    with monkeypatch.context() as m:
        m.setattr(experiment, 'keep_finished', once)
        with pytest.raises(KeyboardInterrupt): run(p)
    seen = steps_seen(monkeypatch)
    assert metrics(run(p)) == metrics(run(p, 'fresh'))
    assert len(seen) == 8  # those of the fresh run only

def test_decisions_are_kept(monkeypatch):
    with monkeypatch.context() as m:
        m.setitem(decide_in_memory.__globals__, 'free_memory', lambda *_: 0)
        disk = run(path='dense')
    assert {k: v for k, v in read_json('out/decisions.json').items() if k != 'attention'} == dict(model='tiny-gemma2', dtype='float32', in_memory=False, path='dense')
    assert metrics(run()) == metrics(disk)
    for contradiction in (dict(path='sparse'), dict(in_memory=True), dict(dtype='bfloat16')):
        with pytest.raises(UserError, match='leave it out, or give another folder'): run(**contradiction)
    assert metrics(run(path='dense', in_memory=False, dtype='float32')) == metrics(disk)

def test_a_stop_and_a_change_of_memory(monkeypatch):
    "Begun from disk, gone on when there is memory: the same command, the same numbers"
    with monkeypatch.context() as m:
        m.setitem(decide_in_memory.__globals__, 'free_memory', lambda *_: 0)
        whole = run(out='whole')
        stopped_at(m, 4)
    seen = steps_seen(monkeypatch)
    assert metrics(run()) == metrics(whole) and seen[0][1] == 4

def test_results_say_where_they_were_made():
    r = run(threads=1)['topk-4-seed0']
    assert r.env['device'].startswith('CPU') and r.env['device'].endswith('1 threads')
    assert read_json('out/results.json')['settings']['device'] == 'cpu' and r.config['data']['site'] == 'resid.2'

def test_a_damaged_result_is_evaluated_again(caplog):
    first = run()
    Path('out/runs/topk-4-seed0.json').write_text('{"name": 3')
    assert metrics(run()) == metrics(first) and 'evaluated again' in caplog.text

def test_one_key_everywhere(monkeypatch):
    "Checkpoint, SAE, result and job have one key"
    keys = []
    keep = experiment.keep_finished
    def spy(job, tr, acts, out):
        keys.extend([tr.key(job.name), job_identity(job, acts)['key']])
        return keep(job, tr, acts, out)
    monkeypatch.setattr(experiment, 'keep_finished', spy)
    r = run()['topk-4-seed0']
    keys += [r.config['key'], read_json('out/saes/topk-4-seed0/cfg.json')['metadata']['jumprelu_sae']['key']]
    assert len(set(keys)) == 1

def test_differences_are_few_and_named():
    a, b = dict(key='x', data=dict(site='mlp.1', n=1, m=1, k=1)), dict(data=dict(site='resid.2', n=2, m=2, k=2))
    assert what_differs(a, b) == 'data.site: "mlp.1" now, "resid.2" there; data.n: 1 now, 2 there; data.m: 1 now, 2 there and 1 more'

def test_tuning_one_architecture_keeps_the_others(monkeypatch):
    from jumprelu_sae import tuning
    monkeypatch.setattr(tuning, 'TUNE_GRID', dict(lr=(4e-3,), lr_decay=(.2,)))
    p, s = replace(BASE, n_train=1024, grid=dict(topk=(4,), relu=(1.,))), Settings(progress=False, out=Path('t'))
    one = tune(p, s, only='topk')
    both = tune(p, s, only='relu')
    assert both['rows'][:2] == one['rows'] and len(both['rows']) == 4
    before = Path('t/tuning.json').read_text()
    with pytest.raises(UserError, match='choose one of'): tune(p, s, only='topkek')
    assert Path('t/tuning.json').read_text() == before

def test_the_door_from_text_to_numbers():
    "Ten lines, nothing but public names; what was saved is what was judged"
    import torch
    import jumprelu_sae as js
    lm = js.load_lm('tiny-gemma2')
    acts = js.activations(lm, 'generated', site='resid.2', n_train=2048, n_val=256, n_test=512, seq_len=32, settings=js.Settings(progress=False))
    sae = js.train_sae('jumprelu', acts, d_sae=64, l0=4, batch=256, settings=js.Settings(progress=False))
    e = js.evaluate(sae, acts, n_lm=128)
    assert 'FVU' in str(e)
    sae.save('my-sae')
    again = js.load_sae('my-sae')
    x = acts.part('test')['x']
    assert torch.equal(again.encode(x), sae.encode(x)) and again.encode(x[0]).shape == (64,)
    assert js.evaluate(again, acts, n_lm=128).metrics == e.metrics
    assert js.evaluate(again, n_lm=128, n_test=512).config['elsewhere'] == []          # finds out by itself what to be judged on
    topk = js.evaluate(js.train_sae(js.TopKSAE, acts, d_sae=64, l0=4, batch=256, settings=js.Settings(progress=False)), acts, n_lm=128, full=False)
    f = js.frontier([e, topk])
    assert {r['arch'] for r in f.rows} == {'jumprelu', 'topk'} and f.figure.axes
    other = js.activations(lm, 'generated', site='resid.1', n_train=2048, n_val=256, n_test=512, seq_len=32, settings=js.Settings(progress=False))
    with pytest.raises(js.UserError, match='site'): js.evaluate(sae, other, n_lm=128)
