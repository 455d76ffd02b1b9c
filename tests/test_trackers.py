"Trackers: a live figure is one output in a real kernel, the real packages where they are, and a run that goes on"
import csv, json, logging, subprocess, sys
import pytest, torch
from jumprelu_sae import trackers as module
from jumprelu_sae.core import Scaler, Settings, SyntheticStream, TensorStream, UserError
from jumprelu_sae.recipe import Telling, plan_sae, train_plans, train_sae
from jumprelu_sae.train import lr_factor, sparsity_factor
from jumprelu_sae.trackers import LivePlot, csv_tracker, tensorboard_tracker, trackio_tracker, wandb_tracker


class Made:
    d_in, site = 32, 'resid.2'

    def __init__(self, n=2048):
        self.x = SyntheticStream(seed=5).draw(n)[0]
        self.scaler = Scaler.fit(self.x)

    def identity(self): return dict(corpus='made', n_train=len(self.x))
    def stream(self, batch, seed=0): return TensorStream(self.x, batch, seed, self.scaler, self.identity())
    def metadata(self): return dict(jumprelu_sae=dict(data=self.identity()))


acts, quiet = Made(), Settings(progress=False)
RUN = dict(d_sae=64, l0=4, batch=128, settings=quiet)


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def said():
    "What the package's logger says"
    lines, log, handler = [], logging.getLogger('jumprelu_sae'), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


# -- what a run tells --------------------------------------------------------------------------------------------------
def test_log_every_and_what_is_told():
    rows = []
    train_sae('topk', acts, track=lambda *a: rows.append(a), log_every=5, **RUN)
    assert [step for step, _ in rows] == [5, 10, 15, 16]
    assert set(rows[0][1]) == {'loss', 'mse', 'l0', 'dead', 'lr', 'sparsity_warmup', 'tokens'}
    assert [v['tokens'] for _, v in rows] == [128*step for step, _ in rows]


def test_the_schedules_are_those_of_the_step():
    rows = []
    cfg = plan_sae('topk', 32, 2048, 64, l0=4, batch=128).train
    train_sae('topk', acts, track=lambda *a: rows.append(a), **RUN)
    # the first step's, and not the second's
    assert rows[0][1]['lr'] < cfg.lr * 0.11 and rows[0][1]['sparsity_warmup'] == 0
    assert [v['lr'] for _, v in rows] == [cfg.lr*lr_factor(i, cfg) for i in range(16)]
    assert [v['sparsity_warmup'] for _, v in rows] == [sparsity_factor(i, cfg) for i in range(16)]


def test_a_tracker_changes_nothing():
    "Neither the numbers of the run, nor what the next tracker hears"

    def spoil(step, values):
        values.clear()
        torch.rand(3)

    rows = []
    a = train_sae('jumprelu', acts, **RUN)
    b = train_sae('jumprelu', acts, track=[spoil, lambda *v: rows.append(v)], **RUN)
    assert len(rows) == 16 and all(v for _, v in rows)
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k
    assert a.metadata == b.metadata


def test_each_failure_is_one_line(said):
    heard = []

    def first(step, values): raise RuntimeError('a\nb ' + 'c'*500)

    class Second:
        def __call__(self, step, values): heard.append(step)
        def close(self): raise OSError('the disk is full')

    train_sae('topk', acts, track=[first, Second()], **RUN)
    assert heard == list(range(1, 17))
    assert len(said) == 2 and all('\n' not in line and len(line) < 300 for line in said)
    assert said[0].startswith('tracker first failed at step 1 (RuntimeError: a b ccc')
    assert said[1] == 'tracker Second failed on closing (OSError: the disk is full): training goes on'


def test_a_tracker_that_recovers_hears_the_rest(said):
    heard = []

    def late(step, values):
        if step < 4: raise ConnectionError('not yet')
        heard.append(step)

    train_sae('topk', acts, track=late, **RUN)
    assert heard == list(range(4, 17)) and len(said) == 1


def test_a_stop_in_a_tracker_is_a_stop():
    closed = []

    class Stop:
        def __call__(self, step, values):
            if step == 3: raise KeyboardInterrupt
        def close(self): closed.append(True)

    with pytest.raises(KeyboardInterrupt): train_sae('topk', acts, track=Stop(), **RUN)
    assert closed == [True]


def test_refused_before_anything(monkeypatch):
    monkeypatch.setattr(Made, 'stream', lambda *a: pytest.fail('the stream was asked for'))
    for bad in (7, 'run.csv', LivePlot, [print, 7], dict(a=print)):
        with pytest.raises(UserError, match='track='): train_sae('topk', acts, track=bad, **RUN)
    assert Telling(None).trackers == Telling([]).trackers == []


# -- a run that goes on ------------------------------------------------------------------------------------------------
def test_one_axis_over_two_runs(tmp_path):
    "Stopped at step 9 with a checkpoint and taken up by another process' tracker: the file of one run"

    def go(folder, after=None):
        plan = plan_sae('jumprelu', 32, 2048, 64, l0=4, batch=128)
        track = csv_tracker(tmp_path/f'{folder}.csv')
        return train_plans([plan], acts, tmp_path/folder, quiet, after_step=after, track=track)

    def halt(trainer): trainer.stop = trainer.step == 9

    go('whole')
    with pytest.raises(KeyboardInterrupt): go('parts', halt)
    assert len((tmp_path/'parts.csv').read_text().splitlines()) == 10
    go('parts')
    whole = (tmp_path/'whole.csv').read_text()
    assert (tmp_path/'parts.csv').read_text() == whole
    (tmp_path/'whole.csv').unlink()
    go('whole')  # it was finished: nothing is trained, and the curve is there again
    assert (tmp_path/'whole.csv').read_text() == whole
    assert [int(r['step']) for r in csv.DictReader((tmp_path/'whole.csv').open())] == list(range(1, 17))


# -- the live figure ---------------------------------------------------------------------------------------------------
LIVE = '''
from jumprelu_sae.trackers import LivePlot, in_kernel
assert in_kernel()
plot = LivePlot(seconds=0)
for step in range(1, 21): plot(step, dict(loss=1/step, l0=4., lr=.1))
plot.close()
'''

COUNTED = '''
plot, drawn = LivePlot(seconds=0), []
show = plot.show
plot.show = lambda: drawn.append(show())
for step in range(1, 4): plot(step, dict(loss=1/step, l0=4.))
plot.close()
print(len(drawn))
'''


def outputs_of(*cells):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    return [c.outputs for c in nb.cells]


@pytest.mark.timeout(180)
def test_twenty_updates_are_one_output():
    short = LIVE.replace('21', '3')
    again = short.partition('plot = ')[2].partition('\n')[2]  # a second run, of the same object
    once, counted, two = outputs_of(LIVE, COUNTED, short + again)
    assert [o.output_type for o in once] == ['display_data'] and 'image/png' in once[0].data
    assert [o.get('text') for o in counted if o.output_type == 'stream'] == ['4\n']  # each row, and the end
    assert sum(o.output_type == 'display_data' for o in counted) == 1
    assert [o.output_type for o in two] == ['display_data']*2  # two runs, two figures
    last = two[0].data['image/png']
    assert last == two[1].data['image/png'] != once[0].data['image/png']


@pytest.mark.timeout(180)
def test_the_last_drawing_is_what_stays():
    first, all_of_it = outputs_of(LIVE.replace('21', '2'), LIVE.replace('21', '4'))
    assert first[0].data['image/png'] != all_of_it[0].data['image/png']
    import base64, io
    plot = LivePlot()
    for step in range(1, 4): plot(step, dict(loss=1/step, l0=4., lr=.1))
    png = io.BytesIO()
    plot.figure().savefig(png, format='png', dpi=100)
    assert base64.b64decode(all_of_it[0].data['image/png']) == png.getvalue()


def test_without_a_kernel_it_is_drawn_once():
    shell = pytest.importorskip('execnb.shell').CaptureShell()
    outs = shell.run(LIVE.replace('assert in_kernel()', 'assert not in_kernel()'))
    assert shell.exc is None, shell.exc
    assert [o['output_type'] for o in outs] == ['display_data'] and 'image/png' in outs[0]['data']
    shell.close()


def test_in_a_plain_program_nothing_is_shown():
    code = LIVE.replace('assert in_kernel()', 'assert not in_kernel()') + 'print(len(plot.figure().axes))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '2\n'), done.stderr


def test_drawn_now_and_then(monkeypatch):
    now, drawn = [0.], []
    monkeypatch.setattr(module, 'in_kernel', lambda: True)
    plot = LivePlot(seconds=10, clock=lambda: now[0])

    def show():
        drawn.append(now[0])
        plot.drawn = now[0]

    plot.show = show
    for now[0] in range(0, 35): plot(int(now[0]) + 1, dict(loss=1., l0=2.))
    assert drawn == [0, 10, 20, 30]


def test_the_figure_shows_the_run():
    plot = LivePlot(('l0', 'dead'))
    for step in (1, 2): plot(step, {'a/l0': 10.**step, 'a/dead': 0, 'b/x/l0': 100.**step, 'b/x/dead': 1, 'lr': .1})
    l0, dead = plot.figure().axes
    assert [line.get_label() for line in l0.lines] == ['a', 'b/x']
    assert [list(line.get_ydata()) for line in l0.lines] == [[10, 100], [100, 10_000]]
    assert [list(line.get_xdata()) for line in dead.lines] == [[1, 2]]*2
    assert (l0.get_yscale(), dead.get_yscale()) == ('log', 'linear')
    assert len({line.get_color() for line in l0.lines}) == 2


# -- the real packages, where they are installed -----------------------------------------------------------------------
def curves(make):
    rows = []
    sae = train_sae('topk', acts, track=[make, lambda *a: rows.append(a)], **RUN)
    assert sae.finished
    return rows


def log_records(data, head=7, block=2**15):
    "The records of a file in LevelDB's log format, which W&B writes after a header of 7 bytes"
    at, part = head, b''
    while at + 7 <= len(data):
        if block - at % block < 7:  # what is left of a block is padding
            at += block - at % block
            continue
        size, kind = int.from_bytes(data[at+4:at+6], 'little'), data[at+6]
        part, at = part + data[at+7:at+7+size], at + 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield part
            part = b''


def test_trackio(tmp_path, said, monkeypatch):
    pytest.importorskip('trackio')
    code = f'''
import os, sys
os.environ['TRACKIO_DIR'] = {str(tmp_path)!r}
sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})
from test_trackers import curves, trackio_tracker
rows = curves(trackio_tracker('p', 'n', l0=4))
import json
open(os.environ['TRACKIO_DIR'] + '/rows.json', 'w').write(json.dumps(rows))
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path/'rows.json').read_text())
    import sqlite3
    with sqlite3.connect(next(tmp_path.glob('*.db'))) as db:
        kept = db.execute('select step, metrics from metrics order by step').fetchall()
    assert [[step, json.loads(m)] for step, m in kept] == rows and len(rows) == 16


def test_wandb(tmp_path, said):
    pytest.importorskip('wandb')
    rows = curves(wandb_tracker('p', 'n', folder=tmp_path, l0=4))
    files = list(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
    assert len(files) == 1 and not said
    from wandb.proto import wandb_internal_pb2 as pb
    steps, seen = [], []
    for data in log_records(files[0].read_bytes()):
        record = pb.Record()
        record.ParseFromString(data)
        if record.WhichOneof('record_type') != 'history': continue
        items = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        steps.append(items.get('_step', record.history.step.num))
        seen.append({k: v for k, v in items.items() if not k.startswith('_')})
    assert list(zip(steps, seen)) == rows


def test_tensorboard(tmp_path, said):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    track = tensorboard_tracker(tmp_path)
    rows = curves(track)
    curves(track)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['run-1', 'run-2'] and not said
    named = tensorboard_tracker(tmp_path, 'mine')
    named(1, dict(loss=9.))
    named(40, dict(loss=9.))
    named.close()
    again = curves(tensorboard_tracker(tmp_path, 'mine'))  # the same name again: the curve is replaced
    for folder, want in (('run-1', rows), ('mine', again)):
        events = EventAccumulator(str(tmp_path/folder), purge_orphaned_data=True).Reload()
        for key in ('loss', 'l0', 'lr', 'tokens'):
            got = [(e.step, e.value) for e in events.Scalars(key)]
            assert [s for s, _ in got] == [s for s, _ in want]
            assert torch.allclose(torch.tensor([v for _, v in got]), torch.tensor([float(v[key]) for _, v in want]))
