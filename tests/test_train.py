"""Training: settings, identity, checkpoints that are compared before they are loaded, streams that break, what a
subclass says, recipes and plans"""
import copy, json, logging, math, os, signal, subprocess, sys, threading
from dataclasses import asdict, replace
from pathlib import Path
import pytest, torch
from jumprelu_sae import train as module
from jumprelu_sae.core import Scaler, Settings, SyntheticStream, TensorStream, UserError, read_json, write_json
from jumprelu_sae.recipe import PAPER, SHORT, plan_sae, train_plans, train_sae
from jumprelu_sae.sae import ARCHITECTURES, JumpReLUSAE, ReLUSAE, SAEConfig, TopKSAE, make_sae, own_settings
from jumprelu_sae.train import (
    CheckpointRefused,
    Paths,
    Progress,
    TrainConfig,
    Trainer,
    Windows,
    adam_state,
    lr_factor,
    make_adam,
    sae_facts,
    sole_writer,
    sparsity_factor,
    start_marks,
    train_key,
    train_saes,
    train_step,
)

RUN = dict(batch=64, lr=5e-3, lr_warmup=.1, sparsity_warmup=.2, lr_decay=.2, dead_after=300)
OWN = dict(k=4, coef=.05, bandwidth=.1, theta_init=.1, aux_coef=1/32)

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(n)

def config(arch, **kw): return SAEConfig(arch, 32, 64, **own_settings(arch, OWN | kw))
def trainer(names=tuple(ARCHITECTURES), seed=1, stream=None, path='auto', n=20, **kw):
    return Trainer(
        {a: make_sae(config(a), seed) for a in names},
        stream or SyntheticStream(batch=64, seed=5),
        TrainConfig(64 * n, **(RUN | kw)),
        path=path,
    )
def quietly(tr, folder=None, **kw): return train_saes(tr, folder, progress=False, **kw)
def same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items()), [
        k for k in a if not torch.equal(a[k], b[k])
    ]
def stop_at(n):
    def f(tr): tr.stop = tr.step == n
    return f

@pytest.fixture(scope='module')
def whole(): return quietly(trainer())

@pytest.fixture
def stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt): quietly(trainer(), tmp_path/'ck', after_step=stop_at(7))
    return tmp_path/'ck'

# settings

BAD = (
    [dict(n_tokens=v) for v in (0, -5, 63, 1e4, '640', None, True)]
    + [dict(batch=v) for v in (0, -1, 2.5, None, math.nan)]
    + [{k: v} for k in ('lr', 'eps', 'threshold_lr') for v in (0, -1e-3, math.nan, math.inf, '1e-3', True)]
    + [{k: v} for k in ('beta1', 'beta2', 'lr_decay') for v in (1, 1.5, -0.1, math.nan, None)]
    + [{k: v} for k in ('lr_warmup', 'sparsity_warmup', 'start') for v in (-1, 21, math.inf, math.nan, 'all', None)]
    + [dict(start=20)]
    + [{k: v} for k in ('dead_after', 'log_every') for v in (0, -1, 1.5, math.inf)]
)

@pytest.mark.parametrize('bad', BAD, ids=str)
def test_settings_are_refused(bad):
    with pytest.raises(UserError) as e: TrainConfig(**(dict(n_tokens=64*20) | RUN | bad))
    assert '\n' not in str(e.value) and (next(iter(bad)) in str(e.value) or 'make no batch' in str(e.value))

def test_warmups_are_refused_with_the_numbers():
    with pytest.raises(UserError, match='sparsity_warmup lasts 10,000 steps and the run has 4,000 .16,384,000 tokens '
        'in batches of 4,096.: ask for at least 40,960,000 tokens'): TrainConfig(16_384_000)
    c = TrainConfig(640, batch=64, lr_warmup=10, sparsity_warmup=10)
    assert (c.n_steps, lr_factor(9, c) < 1, sparsity_factor(5, c)) == (10, True, .5)
    with pytest.raises(Exception): c.batch = 3

def test_schedules_by_hand():
    c = TrainConfig(64*100, batch=64, lr_warmup=.1, sparsity_warmup=20, lr_decay=.25)
    assert [round(lr_factor(i, c), 6) for i in (0, 5, 10, 75, 80, 99)] == [.1, .55, 1, 1, .8, .04]
    assert [sparsity_factor(i, c) for i in (0, 10, 20, 50)] == [0, .5, 1, 1]

# going on

def test_resumed_is_the_same(stopped, whole):
    tr = trainer()
    for s in tr.saes.values(): s.load_state_dict({k: v for k, v in s.state_dict().items()})
    a = quietly(tr, stopped)
    same(a.tensors(), whole.tensors())
    assert a.history == whole.history and a.paths.state() == whole.paths.state() and a.stream.step == 20
    assert read_json(stopped/'checkpoint.json')['step'] == 20 and len(list(stopped.glob('step-*'))) == 1

def test_everything_comes_from_the_file(stopped, whole):
    tr = trainer()
    assert tr.identity() == read_json(stopped/'checkpoint.json')['identity']
    for s in tr.saes.values():
        for v in s.state_dict().values(): v.fill_(1)
    for t in tr.silent.values(): t.fill_(99)
    same(quietly(tr, stopped).tensors(), whole.tensors())

def test_goes_back(whole):
    """A trainer that is ahead of a checkpoint goes back to it, moments and all, also to one from before a parameter had
    moments"""
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        tr = trainer()
        tr.save(d)
        for _ in range(9): tr.one_step()
        tr.load(d)
        assert tr.step == 0 and not any('/adam/' in k for k in tr.tensors())
        same(quietly(tr).tensors(), whole.tensors())

def test_names_with_slashes(tmp_path):
    def named():
        return Trainer(
            {n: make_sae(config('relu'), i) for i, n in enumerate(('a', 'a/sae', 'a%2Fsae', 'b/adam/0', '../x'))},
            SyntheticStream(batch=64),
            TrainConfig(64 * 8, **RUN),
        )
    with pytest.raises(KeyboardInterrupt): quietly(named(), tmp_path, after_step=stop_at(3))
    same(quietly(named(), tmp_path).tensors(), quietly(named()).tensors())

class Penalised(ReLUSAE):
    def gate(self, pre):
        f = pre.relu()
        return f, self.cfg.coef*(f + 1e-6).sqrt().sum(-1).mean()

def other_class():
    tr = trainer()
    return Trainer(tr.saes | dict(relu=Penalised(config('relu'), 1)), tr.stream, tr.cfg)
def other_start():
    tr = trainer()
    tr.saes['topk'].W_enc.data[0, 0] += 1
    return tr
def other_loss():
    tr = trainer()
    s = tr.saes['relu']
    s.loss = lambda *a, **kw: type(s).loss(s, *a, **kw)
    return tr
def half():
    tr = trainer()
    return Trainer({n: s.bfloat16() for n, s in tr.saes.items()}, tr.stream, tr.cfg)
x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
OTHER = dict(
    data_seed=(lambda: trainer(stream=SyntheticStream(batch=64, seed=6)), 'data.seed: 5 in the checkpoint, 6 now'),
    corpus=(lambda: trainer(stream=TensorStream(x, 64)), 'data.stream'),
    tokens=(lambda: trainer(n=21), 'train.n_tokens: 1280 in the checkpoint, 1344 now'),
    lr=(lambda: trainer(lr=4e-3), 'train.lr'),
    path=(lambda: trainer(path='dense'), 'path'),
    seed=(lambda: trainer(seed=2), 'seeds.relu: 1'),
    saes=(lambda: trainer(('relu', 'topk')), 'saes.gated'),
    cls=(other_class, 'saes.relu.of.name'),
    start=(other_start, 'saes.topk.start.W_enc'),
    loss=(other_loss, 'saes.relu.of.own'),
    dtype=(half, 'saes.relu.dtype'),
)

@pytest.mark.parametrize('what', OTHER)
def test_another_run_is_refused_and_unchanged(stopped, what):
    make, says = OTHER[what]
    tr = make()
    was, stream, files = (
        copy.deepcopy(tr.tensors()),
        copy.deepcopy(tr.stream.state_dict()),
        sorted(p.read_bytes() for p in stopped.iterdir()),
    )
    for f in (lambda: quietly(tr, stopped), lambda: tr.load(stopped)):
        with pytest.raises(CheckpointRefused) as e: f()
        assert '\n' not in str(e.value) and str(stopped) in str(e.value) and 'delete it' in str(e.value)
    assert any(
        says in d
        for d in module.differences(
            read_json(stopped / 'checkpoint.json')['identity'], tr.identity(), ('in the checkpoint', 'now')
        )
    )
    same(tr.tensors(), was)
    assert (
        tr.stream.state_dict() == stream and tr.step == 0 and files == sorted(p.read_bytes() for p in stopped.iterdir())
    )

def test_two_scalers_are_two_runs(tmp_path):
    def scaled(scale): return trainer(stream=TensorStream(x, 64, scaler=Scaler(torch.zeros(32), scale)))
    with pytest.raises(KeyboardInterrupt): quietly(scaled(5.), tmp_path, after_step=stop_at(3))
    with pytest.raises(CheckpointRefused, match='data.scaler'): quietly(scaled(6.), tmp_path)

DAMAGE = [
    dict(format=2),
    dict(file='../elsewhere'),
    dict(file=None),
    dict(sha256='0' * 64),
    dict(sha256=3),
    dict(step=-1),
    dict(step=21),
    dict(step='7'),
    dict(history={}),
    dict(history=[]),
    dict(paths={}),
    dict(paths=dict(now={}, log={})),
    dict(stream={}),
    dict(stream=[]),
    dict(stream=dict(identity={})),
]

@pytest.mark.parametrize('damage', DAMAGE, ids=str)
def test_damaged_checkpoint(stopped, damage):
    d = read_json(stopped/'checkpoint.json')
    if damage.get('stream') == dict(identity={}):
        damage = dict(stream=dict(identity=d['stream']['identity']))  # a place that says whose it is, but not where
    write_json(stopped/'checkpoint.json', d | damage)
    tr = trainer()
    was = copy.deepcopy(tr.tensors())
    with pytest.raises(CheckpointRefused) as e: quietly(tr, stopped)
    assert '\n' not in str(e.value)
    same(tr.tensors(), was)
    assert tr.step == 0 and tr.stream.step == 0

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '3', '\x00'])
def test_damaged_json(stopped, text):
    (stopped/'checkpoint.json').write_text(text)
    with pytest.raises(CheckpointRefused): quietly(trainer(), stopped)

def test_damaged_tensors(stopped):
    f = next(stopped.glob('step-*'))
    raw = f.read_bytes()
    for bad in (raw[:-5], raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], b''):
        f.write_bytes(bad)
        with pytest.raises(CheckpointRefused, match='altered or truncated'): quietly(trainer(), stopped)
    f.write_bytes(raw)
    t, _ = module.load_tensors(f)
    for change in (dict(drop='relu/sae/b_enc'), dict(add='relu/sae/more'), dict(shape='topk/silent')):
        u = dict(t)
        if 'drop' in change: u.pop(change['drop'])
        if 'add' in change: u[change['add']] = torch.zeros(2)
        if 'shape' in change: u[change['shape']] = torch.zeros(3, dtype=torch.long)
        sha = module.save_tensors(f, u)
        write_json(stopped/'checkpoint.json', read_json(stopped/'checkpoint.json') | dict(sha256=sha))
        with pytest.raises(CheckpointRefused, match=next(iter(change.values()))): quietly(trainer(), stopped)
    f.unlink()
    with pytest.raises(CheckpointRefused): quietly(trainer(), stopped)

def test_sole_writer(tmp_path):
    with sole_writer(tmp_path/'a'):
        with pytest.raises(UserError, match='another run is writing'): quietly(trainer(), tmp_path/'a')
    code = f"import sys; from jumprelu_sae.train import sole_writer\nwith sole_writer({str(tmp_path / 'b')!r}): print('in', flush=True); sys.stdin.read()"
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'in\n'
        with pytest.raises(UserError, match='another run is writing'): quietly(trainer(), tmp_path/'b')
        p.kill(); p.wait()
        quietly(trainer(n=8), tmp_path/'b')     # the lock went with the process
    finally: p.kill()
    (tmp_path/'f').write_text('')
    with pytest.raises(UserError, match='a file of that name'): quietly(trainer(), tmp_path/'f')

def test_disk_full(tmp_path, monkeypatch):
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    quietly(trainer(n=8), tmp_path)
    tr = trainer(n=8)
    tr.load(tmp_path)
    monkeypatch.setattr(module, 'save_tensors', full)
    with pytest.raises(UserError, match='No space left'): tr.save(tmp_path)
    monkeypatch.undo()
    assert quietly(trainer(n=8), tmp_path).step == 8

# streams

class Breaks(SyntheticStream):
    error = None
    def __next__(self):
        x = super().__next__()          # it has moved when it fails
        if self.step == 12 and self.error is not None: raise self.error
        return x

@pytest.mark.parametrize(
    'error,says',
    [
        (OSError('no such disk'), 'failed at batch 11 .OSError: no such disk'),
        (StopIteration(), 'ended after 11 of 20 steps.*ask for 704 tokens'),
        (KeyError('epoch'), "KeyError"),
        (UserError('the corpus ended'), 'the corpus ended'),
    ],
    ids=lambda v: str(type(v).__name__),
)
@pytest.mark.parametrize('save_every', [0., 1e9])
def test_stream_breaks(tmp_path, whole, error, says, save_every):
    tr = trainer(stream=Breaks(batch=64, seed=5))
    tr.stream.error = error
    with pytest.raises(UserError, match=says): quietly(tr, tmp_path, save_every=save_every)
    assert read_json(tmp_path/'checkpoint.json')['step'] == 11
    same(quietly(trainer(), tmp_path).tensors(), whole.tensors())

@pytest.mark.parametrize(
    'batch',
    [
        torch.zeros(63, 32),
        torch.zeros(64, 31),
        torch.zeros(64),
        torch.zeros(64, 32, dtype=torch.long),
        torch.full((64, 32), math.nan),
        [1.0],
        None,
    ],
    ids=lambda v: str(getattr(v, 'shape', v)),
)
def test_wrong_batches(batch):
    class Wrong:
        d_in = 32
        def __next__(self): return batch
    tr = trainer(stream=Wrong())
    was = copy.deepcopy(tr.tensors())
    with pytest.raises(UserError): quietly(tr)
    same(tr.tensors(), was)

def test_unlike_streams():
    with pytest.raises(UserError, match='deals batches of 256 and the run wants '
        '64'): trainer(stream=SyntheticStream(seed=5))
    with pytest.raises(UserError, match='set d_in=16'): trainer(stream=SyntheticStream(d_in=16, batch=64))
    for saes in (
        {},
        {'': make_sae(config('relu'))},
        {1: make_sae(config('relu'))},
        dict.fromkeys('ab', make_sae(config('relu'))),
        {'a': make_sae(config('relu')).finish()},
    ):
        with pytest.raises(UserError): Trainer(saes, SyntheticStream(batch=64), TrainConfig(640, **RUN))

def test_nameless_stream(tmp_path, whole):
    class Nameless:
        d_in = 32
        def __init__(self): self.s = SyntheticStream(batch=64, seed=5)
        def __next__(self): return next(self.s)
    same(quietly(trainer(stream=Nameless())).tensors(), whole.tensors())
    tr = trainer(stream=Nameless())
    for f in (lambda: quietly(tr, tmp_path/'x'), lambda: tr.save(tmp_path/'x'), tr.identity):
        with pytest.raises(UserError, match='no checkpoint of it can be kept'): f()
    assert tr.step == 0 and not (tmp_path/'x').exists()

# what a subclass says

class OwnStep(Penalised):
    def gate_pairs(self, pre, pairs):
        f = pre.relu()
        return f, self.cfg.coef*((f + 1e-6).sqrt().sum() + 1e-3*(pairs.n_rows*pairs.d_sae - len(pre)))/pairs.n_rows

def test_subclasses_are_trained_on_what_they_say():
    def run(cls, path):
        return quietly(
            Trainer(
                dict(s=cls(SAEConfig('relu', 32, 256, coef=0.3))),
                SyntheticStream(n_true=128, batch=64, seed=3),
                TrainConfig(64 * 80, **(RUN | dict(lr=1e-2))),
                path=path,
            )
        )

    dense, auto, own, plain = (
        run(Penalised, 'dense'),
        run(Penalised, 'auto'),
        run(OwnStep, 'auto'),
        run(ReLUSAE, 'auto'),
    )
    same(dense.tensors(), auto.tensors())
    assert [t.paths.sparse_steps('s', 80) for t in (auto, plain, own)] == [
        0,
        pytest.approx(70, abs=30),
        pytest.approx(70, abs=30),
    ]
    assert (
        own.history['s'][-1][1] == pytest.approx(dense.history['s'][-1][1], rel=0.02)
        and abs(plain.history['s'][-1][1] / dense.history['s'][-1][1] - 1) > 0.05
    )
    with pytest.raises(UserError, match="brings no sparse step.*path='auto' or 'dense'"): run(Penalised, 'sparse')

def test_own_loss_is_called():
    calls = []
    class Own(TopKSAE):
        def loss(self, x, warm=1., dead=None):
            calls.append(warm)
            return super().loss(x, warm, dead)
    quietly(Trainer(dict(s=Own(config('topk'))), SyntheticStream(batch=64), TrainConfig(640, **RUN)))
    assert len(calls) == 10
    tr = trainer(('jumprelu',))
    tr.saes['jumprelu'].loss = lambda x, warm, dead: dict(loss=x.sum())
    with pytest.raises(UserError, match='lacks mse, l0, fired'): quietly(tr)

def test_changed_in_the_middle():
    "A loss that is set while the SAE is trained sparsely is trained densely from then on"
    tr, calls = trainer(('topk',)), []
    s = tr.saes['topk']
    for _ in range(5): tr.one_step()
    assert tr.paths.now['topk'] == 'sparse'
    s.loss = lambda *a, **kw: calls.append(1) or type(s).loss(s, *a, **kw)
    for _ in range(5): tr.one_step()
    assert len(calls) == 5 and tr.paths.now['topk'] == 'dense'

def test_code_is_identity():
    def made(constant):
        class Mine(ReLUSAE):
            def gate(self, pre):
                f = pre.relu()
                return f, constant*self.cfg.coef*f.sum(-1).mean()
        return Mine
    scope = {}
    for name, power in (('a', 2), ('b', 3), ('c', 2)):
        exec(f'class Mine(ReLUSAE):\n    def gate(self, pre): return pre.relu(), '
            f'(pre.relu()**{power}).mean()', globals() | dict(__name__='elsewhere'), scope)
        scope[name] = sae_facts(scope['Mine'](config('relu')))['of']
    assert scope['a'] == scope['c'] != scope['b']

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype, tmp_path):
    def made(n=20):
        tr = trainer(n=n, eps=1e-4, lr=1e-3)
        saes = tr.saes | dict(started=make_sae(config('jumprelu', target_l0=4., start='topk', coef=1.), 1))
        return Trainer({n: s.to(dtype) for n, s in saes.items()}, tr.stream, replace(tr.cfg, start=.5))
    whole = quietly(made())
    for n, s in whole.saes.items():
        assert s.W_enc.dtype == dtype and all(math.isfinite(v) for r in whole.history[n] for v in r[:5])
    with pytest.raises(KeyboardInterrupt): quietly(made(), tmp_path, after_step=stop_at(8))
    same(quietly(made(), tmp_path).tensors(), whole.tensors())

def test_l0_is_counted_in_whole_numbers():
    s = make_sae(SAEConfig('relu', 8, 4096)).bfloat16()
    s.b_enc.data += 10
    for path in ('dense', 'sparse'):
        c = TrainConfig(640, **RUN)
        t = train_step(
            s, make_adam(s, c), torch.zeros(64, 8).bfloat16(), 0, c, torch.zeros(4096, dtype=torch.long), path
        )
        assert float(t['l0']) == 4096 and t['fired'].all()

def test_adam_state_goes_to_the_parameter():
    saved = dict(step=torch.tensor(3.), exp_avg=torch.ones(2), exp_avg_sq=torch.ones(2))
    for p in (torch.empty(2, device='meta'), torch.empty(2, dtype=torch.float64)):
        s = adam_state(saved, p)
        assert (
            {v.device for v in s.values()} == {p.device}
            and s['step'].dtype == torch.float32
            and s['exp_avg'].dtype == p.dtype
        )
    tr = trainer(('relu',))
    tr.one_step()
    for p in tr.parameters('relu'):
        assert tr.opts['relu'].state[p]['step'].device == p.device and tr.opts['relu'].defaults['fused']

# progress and signals

def test_a_line_a_minute(monkeypatch, caplog):
    clock = [0.]
    def tick(tr): clock[0] += 13.
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger='jumprelu_sae'):
        train_saes(trainer(('topk',)), desc='here', after_step=tick, clock=lambda: clock[0])
        said = [r.getMessage() for r in caplog.records]
        caplog.clear()
        quietly(trainer(('topk',)), clock=lambda: clock[0], after_step=tick)
        assert not caplog.records
    steps = [int(s.split('step ')[1].split(' ')[0]) for s in said]
    assert all(s.startswith('here: step') and 'about' in s and 'loss' in s and 'L0 4' in s for s in said)
    assert max(b - a for a, b in zip([0, *steps], [*steps, 20])) * 13 <= 60

def test_signals_are_answered_and_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        quietly(
            trainer(), tmp_path, after_step=lambda tr: os.kill(os.getpid(), signal.SIGTERM) if tr.step == 4 else None
        )
    assert read_json(tmp_path/'checkpoint.json')['step'] == 4 and signal.getsignal(signal.SIGTERM) == before
    done = []
    t = threading.Thread(target=lambda: done.append(quietly(trainer(), tmp_path).step))
    t.start(); t.join()
    assert done == [20]

def test_after_a_step_may_fail(tmp_path):
    with pytest.raises(ZeroDivisionError):
        quietly(trainer(), tmp_path, save_every=0.0, after_step=lambda tr: 1 / (tr.step - 6))
    assert read_json(tmp_path/'checkpoint.json')['step'] == 5

def test_loss_that_is_not_finite():
    with pytest.raises(UserError, match='lower the learning rate'): quietly(trainer(('relu',), lr=1e30, n=40))

# recipes

class Fake:
    d_in, site = 32, 'resid.2'
    def __init__(self, seed=5, n=4096):
        self.x, self.seed = SyntheticStream(seed=seed).draw(n)[0]*7 + 3, seed
        self.scaler = Scaler.fit(self.x)
    def identity(self): return dict(corpus=self.seed, n_train=len(self.x))
    def stream(self, batch, seed=0): return TensorStream(self.x, batch, seed, self.scaler, self.identity())
    def metadata(self): return dict(hook_name='none', jumprelu_sae=dict(data=self.identity()))
acts, quiet = Fake(), Settings(progress=False)

@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_train_sae(arch, tmp_path):
    kw = {'l0': 4} if SHORT[arch]['setting'] in ('k', 'target_l0') else dict(coef=.3)
    sae = train_sae(arch, acts, d_sae=64, batch=128, settings=quiet, folder=tmp_path, dead_after=1000, **kw)
    m = sae.metadata['jumprelu_sae']
    assert (
        sae.finished
        and (m['arch'], m['recipe'], m['n_tokens'], m['seed'], m['config']['d_sae']) == (arch, 'short', 4096, 0, 64)
        and m['data'] == acts.identity()
    )
    assert json.loads(json.dumps(sae.metadata)) == sae.metadata and not any(p.requires_grad for p in sae.parameters())
    fvu = float((acts.x - sae(acts.x)).square().sum()/(acts.x - acts.x.mean(0)).square().sum())
    assert fvu < .8
    kept = plan_sae(arch, 32, 4096, 64, batch=128, dead_after=1000, **kw)
    assert m['key'] == kept.key(acts.stream(128).identity()) != kept.key(Fake(6).stream(128).identity())
    again = train_sae(arch, acts, d_sae=64, batch=128, settings=quiet, folder=tmp_path, dead_after=1000, **kw)
    same(again.state_dict(), sae.state_dict())
    with pytest.raises(CheckpointRefused, match='data.data.corpus'):
        train_sae(arch, Fake(6), d_sae=64, batch=128, settings=quiet, folder=tmp_path, dead_after=1000, **kw)

def test_the_committed_recipe():
    "The settings that made the committed numbers, one by one"
    t = SHORT.train('jumprelu', 249_856, 512)
    assert asdict(t) == dict(
        n_tokens=249_856,
        batch=512,
        lr=4e-3,
        threshold_lr=1e-2,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        lr_warmup=0.05,
        sparsity_warmup=0.1,
        lr_decay=0.5,
        start=0.5,
        dead_after=8_000,
        log_every=None,
    )
    assert {
        a: (SHORT[a]['train'].get('lr'), SHORT.train(a, 249_856, 512).lr_decay)
        for a in ARCHITECTURES
        if a in ('relu', 'gated', 'topk', 'batchtopk')
    } == dict(relu=(8e-3, 0.2), gated=(8e-3, 0.2), topk=(4e-3, 0.2), batchtopk=(4e-3, 0.2))
    c = SHORT.sae('jumprelu', 640, 2048, target_l0=32)
    assert (c.start, c.coef, c.bandwidth, c.aux_coef, c.dead_coef, c.log_threshold, c.theta_init) == (
        'topk',
        10.0,
        0.05,
        1 / 32,
        0.0,
        True,
        0.001,
    )
    assert (
        SHORT.sae('gated', 640, 2048, coef=0.1).free_rows,
        SHORT.sae('topk', 640, 2048, k=32).aux_coef,
        SHORT.sae('batchtopk', 640, 2048, k=32).aux_coef,
    ) == (False, 1 / 8, 1 / 8)
    assert PAPER.train('jumprelu', 8*10**9, 4096) == TrainConfig(8*10**9)

@pytest.mark.parametrize(
    'kw,says',
    [
        (dict(l0=32, what='relu'), 'give coef=, such as 0.04'),
        (dict(l0=32, what='gated'), 'give coef='),
        (dict(), 'how sparse'),
        (dict(l0=0), 'l0=0'),
        (dict(l0=-4), 'l0=-4'),
        (dict(l0=65), 'd_sae=64'),
        (dict(l0=2.5, what='topk'), 'whole'),
        (dict(l0=math.inf), 'l0='),
        (dict(l0='4'), 'l0='),
        (dict(l0=4, k=4, what='topk'), 'twice'),
        (dict(l0=4, lrr=1), 'did you mean lr'),
        (dict(l0=4, bandwidht=1), 'did you mean bandwidth'),
        (dict(l0=4, recipe='papers'), 'no such recipe'),
        (dict(l0=4, recipe=dict(rate=1)), 'a recipe has'),
        (dict(l0=4, batch=5000), 'make no batch'),
        (dict(l0=4, batch=-1), 'batch=-1'),
        (dict(l0=4, d_sae=2.5), 'd_sae=2.5'),
        (dict(l0=4, seed=-1), 'seed=-1'),
        (dict(l0=4, n_tokens=0), 'n_tokens=0'),
        (dict(coef=1e-3, recipe='paper'), 'sparsity_warmup lasts 10,000'),
        (dict(what='jump', l0=4), 'no such architecture'),
        (dict(what=7, l0=4), 'cannot train'),
        (dict(l0=4, acts=torch.zeros(3, 3)), 'no set of activations'),
        (dict(l0=4, lr=0), 'lr=0'),
        (dict(l0=4, start='soft'), 'start='),
        (dict(l0=4, start=2.0), 'start'),
    ],
    ids=lambda v: str(v)[:50],
)
def test_train_sae_refuses_before_anything(kw, says, monkeypatch):
    if 'start' in kw and kw['start'] == 2.: kw = kw | dict(start=500.)
    monkeypatch.setattr(Fake, 'stream', lambda *a: pytest.fail('the stream was asked for'))
    given = dict(what='jumprelu', acts=acts, d_sae=64, batch=128, settings=quiet) | kw
    with pytest.raises(UserError, match=says) as e: train_sae(**given)
    assert '\n' not in str(e.value)

def test_together_is_apart():
    plans = [
        plan_sae(a, 32, 4096, 64, l0=4, batch=128, lr=4e-3, lr_decay=0.2, start=0.5)
        for a in ('topk', 'batchtopk', 'jumprelu')
    ]
    plans[2] = replace(plans[2], train=plans[0].train)
    got = train_plans(plans, acts, settings=quiet)
    for p, s in zip(plans, got): same(s.state_dict(), train_plans([p], acts, settings=quiet)[0].state_dict())
    with pytest.raises(UserError, match='share training settings and seed'):
        train_plans([plans[0], replace(plans[1], seed=1)], acts)
    with pytest.raises(UserError, match='same name'): train_plans([plans[0], plans[0]], acts)

def test_a_given_sae_is_known_by_its_start(tmp_path):
    "Training on from weights of one's own is another run than training from scratch"
    first = train_sae('topk', acts, d_sae=64, l0=4, batch=128, settings=quiet)
    on = first.scaled(acts.scaler)
    a, b = (
        plan_sae(on, 32, 4096, batch=128, name='s'),
        plan_sae(make_sae(on.cfg, on.seed), 32, 4096, batch=128, name='s'),
    )
    assert a.key({}) != b.key({}) and start_marks(on) != start_marks(make_sae(on.cfg, on.seed))
    better = train_plans([a], acts, settings=quiet)[0]
    fvu = [float((acts.x - s(acts.x)).square().sum()) for s in (first, better)]
    assert fvu[1] < fvu[0]
    with pytest.raises(UserError, match='finished'): train_sae(first, acts, batch=128)

def test_threads_are_given_back():
    n = torch.get_num_threads()
    train_sae('topk', acts, d_sae=64, l0=4, batch=128, settings=Settings(progress=False, threads=n + 1))
    assert torch.get_num_threads() == n


def test_a_checkpoint_with_a_mean_that_nobody_needs(tmp_path):
    "Checkpoints written before hold Adam's mean of gradients also where beta1 is 0: they go on, to the same numbers"
    from safetensors.torch import load_file
    from jumprelu_sae.train import write_checkpoint
    whole = quietly(trainer())
    with pytest.raises(KeyboardInterrupt): quietly(trainer(), tmp_path, after_step=stop_at(7))
    facts = read_json(tmp_path/'checkpoint.json')
    tensors = load_file(tmp_path/facts['file'])
    assert not any(k.endswith('/exp_avg') for k in tensors)
    mean = {k.removesuffix('_sq'): torch.full_like(v, 7.) for k, v in tensors.items() if k.endswith('/exp_avg_sq')}
    write_checkpoint(
        tmp_path, tensors | mean, {k: facts[k] for k in ('identity', 'step', 'stream', 'history', 'paths')}
    )
    again = quietly(trainer(), tmp_path)
    assert again.tensors().keys() == whole.tensors().keys()
    for k, v in whole.tensors().items(): assert torch.equal(v, again.tensors()[k]), k
