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
    for i in range(60):
        (d / f'{i}.txt').write_text(' '.join(f'{word} {i} {j} of many words in a document;' for j in range(40)))
    return str(d)

OTHERS = dict(
    site=dict(site='mlp.1'),
    seq_len=dict(seq_len=24),
    massive=dict(massive=5.0),
    centre=dict(centre=False),
    batch=dict(batch=128),
    tokens=dict(n_train=1536),
    model=dict(model='tiny-gemma3'),
    width=dict(d_sae=48),
    schedule=dict(schedule=dict(lr=1e-3)),
)

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
    assert {k: v for k, v in read_json('out/decisions.json').items() if k not in ('attention', 'store')} == dict(
        model='tiny-gemma2', dtype='float32', in_memory=False, path='dense'
    )
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
    assert (
        what_differs(a, b)
        == 'data.site: "mlp.1" now, "resid.2" there; data.n: 1 now, 2 there; data.m: 1 now, 2 there and 1 more'
    )

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
    acts = js.activations(
        lm,
        'generated',
        site='resid.2',
        n_train=2048,
        n_val=256,
        n_test=512,
        seq_len=32,
        settings=js.Settings(progress=False),
    )
    sae = js.train_sae('jumprelu', acts, d_sae=64, l0=4, batch=256, settings=js.Settings(progress=False))
    e = js.evaluate(sae, acts, n_lm=128)
    assert 'FVU' in str(e)
    sae.save('my-sae')
    again = js.load_sae('my-sae')
    x = acts.part('test')['x']
    assert torch.equal(again.encode(x), sae.encode(x)) and again.encode(x[0]).shape == (64,)
    assert js.evaluate(again, acts, n_lm=128).metrics == e.metrics
    # finds out by itself what to be judged on
    assert js.evaluate(again, n_lm=128, n_test=512).config['elsewhere'] == []
    topk = js.evaluate(
        js.train_sae(js.TopKSAE, acts, d_sae=64, l0=4, batch=256, settings=js.Settings(progress=False)),
        acts,
        n_lm=128,
        full=False,
    )
    f = js.frontier([e, topk])
    assert {r['arch'] for r in f.rows} == {'jumprelu', 'topk'} and f.figure.axes
    other = js.activations(
        lm,
        'generated',
        site='resid.1',
        n_train=2048,
        n_val=256,
        n_test=512,
        seq_len=32,
        settings=js.Settings(progress=False),
    )
    with pytest.raises(js.UserError, match='site'): js.evaluate(sae, other, n_lm=128)

TWO = replace(BASE, grid=dict(topk=(4, 8), jumprelu=(4,)))

def left_behind(out):
    "Bytes of all finished SAEs"
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(Path(out).glob('saes/*/*'))}

@pytest.mark.parametrize('in_memory', (True, False))
def test_workers_write_the_bytes_of_one_process(in_memory):
    one = run(TWO, 'one', workers=1, threads=1, in_memory=in_memory)
    two = run(TWO, 'two', workers=2, threads=1, in_memory=in_memory)
    assert metrics(one) == metrics(two) and left_behind('one') == left_behind('two') and len(left_behind('one')) >= 6
    assert {n: (r.config, r.arrays) for n, r in one.items()} == {n: (r.config, r.arrays) for n, r in two.items()}

def test_begun_together_and_ended_by_workers(monkeypatch, caplog):
    "And the other way round: a checkpoint is anybody's"
    stopped_at(monkeypatch, 4, TWO, 'a', workers=1)
    assert in_checkpoint(Path('a/checkpoints/topk-seed0')) == ['topk-4-seed0', 'topk-8-seed0']
    caplog.clear()
    mixed = run(TWO, 'a', workers=2)
    whole = run(TWO, 'whole', workers=1)
    assert metrics(mixed) == metrics(whole) and left_behind('a') == left_behind('whole')
    assert not list(Path('a/checkpoints').glob('*'))
    stopped_at(monkeypatch, 4, replace(TWO, grid=dict(topk=(4,))), 'b', workers=1)
    Path('b/checkpoints/topk-seed0').rename('b/checkpoints/topk-4-seed0')  # as a worker names it
    seen = steps_seen(monkeypatch)
    assert metrics(run(TWO, 'b', workers=1)) == metrics(whole) and seen[0] == (('topk-4-seed0',), 4)

def test_what_is_finished_needs_no_worker(monkeypatch):
    first = run(TWO, workers=1)
    monkeypatch.setattr(experiment, 'Pool', None)
    assert metrics(run(TWO, workers=2)) == metrics(first)
    Path('out/checkpoints/topk-4-seed0').mkdir(parents=True)  # left by a kill between the SAE and its checkpoint's end
    Path('out/checkpoints/topk-4-seed0/checkpoint.json').write_text('{"identity": {"saes": {"topk-4-seed0": 1}}}')
    run(TWO, workers=2)
    assert not Path('out/checkpoints/topk-4-seed0').exists()

def test_one_that_is_missing_is_trained_here_with_a_workers_threads(monkeypatch):
    import shutil, torch
    run(TWO, workers=1)
    shutil.rmtree('out/saes/topk-4-seed0')
    monkeypatch.setattr(experiment, 'Pool', None)
    seen, step, was = [], Trainer.one_step, torch.get_num_threads()
    def counts(self):
        seen.append(torch.get_num_threads())
        return step(self)
    monkeypatch.setattr(Trainer, 'one_step', counts)
    torch.set_num_threads(3)
    try: run(TWO, workers=2)
    finally: torch.set_num_threads(was)
    assert set(seen) == {1}

def test_a_workers_own_error_is_the_last_word(caplog):
    "Said in one line, as one process says it; the other worker's checkpoint stays"
    with pytest.raises(UserError, match='the loss is .* lower the learning rate') as e:
        run(replace(TWO, schedule=dict(lr=1e30)), workers=2)
    assert '\n' not in str(e.value)

def test_a_workers_fault_is_named_with_its_traceback(caplog):
    from jumprelu_sae.experiment import Pool, SweepProgress, get_activations, Stages
    out = Path('out')
    out.mkdir()
    acts, settings = get_activations(TWO, Settings(progress=False), out, Stages())
    pool = Pool('jumprelu_sae.core:no_such_function', [1, 2], ['first', 'second'], acts, out, settings)
    with pytest.raises(RuntimeError, match='(first|second): AttributeError: .*no_such_function'):
        pool.run(2, SweepProgress(2, 0, False), [1, 1])
    assert 'Traceback' in caplog.text and not any(w.process.poll() is None for w in pool.workers)

def test_a_worker_that_cannot_start(monkeypatch):
    monkeypatch.setattr(experiment, 'START', 'import no_such_module')
    with pytest.raises(
        UserError, match=r"topk-[48]-seed0 ended \(status 1: ModuleNotFoundError: No module named 'no_such_module'\)"
    ):
        run(TWO, workers=2)

def test_nothing_is_given_to_a_worker_that_was_let_go():
    "A stop and a worker's 'done' may come at once: the next task stays where it is"
    class Left:
        left, given = True, []
        def give(self, task): self.given.append(task)
        def leave(self): pass
    pool, w = object.__new__(experiment.Pool), Left()
    pool.waiting, pool.stop, pool.failure = [7], False, None
    pool.next(w)
    w.left, pool.stop = False, True
    pool.next(w)
    assert w.given == [] and pool.waiting == [7]
    pool.stop = False
    pool.next(w)
    assert w.given == [7] and pool.waiting == []

def test_warnings_of_workers_are_said_by_the_parent(caplog):
    run(TWO, workers=1)
    for name in ('topk-4-seed0', 'topk-8-seed0'): Path(f'out/saes/{name}/sae_weights.safetensors').write_bytes(b'x')
    caplog.clear()
    run(TWO, workers=2)
    assert caplog.text.count('trained again') == 2

def test_stop_and_go_from_disk_to_workers(monkeypatch):
    "What the machine decided is kept by workers, too"
    whole = run(TWO, 'whole', workers=2, in_memory=False)
    stopped_at(monkeypatch, 4, TWO, workers=1, in_memory=False)
    assert metrics(run(TWO, workers=2)) == metrics(whole)
