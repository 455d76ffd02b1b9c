"""Many processes: equal to one on the joint batch, for two to four ranks; real processes under torchrun, accelerate
launch and notebook_launcher; agreement about stops and errors"""
import copy, json, os, random, socket, subprocess, sys, threading, time
from collections import Counter
from pathlib import Path
import pytest, torch
from jumprelu_sae.core import SyntheticStream, TensorStream, UserError, load_tensors, read_json
from jumprelu_sae.distributed import (
    DistTrainer,
    PerRankStream,
    Ranks,
    SplitStream,
    average_gradients,
    harvest_share,
    joint_keep,
    joint_line,
    open_shares,
    pack_apart,
    train_together,
)
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sae import SAEConfig, make_sae, own_settings
from jumprelu_sae.text import Document, generated_corpus
from jumprelu_sae.train import TrainConfig, Trainer, train_saes

KILLS = int(os.environ.get('KILLS', 1))  # of one of four processes, each at another moment

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    n = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(n)

class Threads(Ranks):
    "Ranks that are threads of this process"

    def __init__(self, rank, world, box, barrier):
        self.rank, self.world, self.device, self.bytes, self.box, self.barrier = (
            rank,
            world,
            torch.device('cpu'),
            Counter(),
            box,
            barrier,
        )
    def gather(self, obj):
        self.box[self.rank] = copy.deepcopy(obj)
        self.barrier.wait(60)
        out = list(self.box)
        self.barrier.wait(60)
        return out
    def all_reduce(self, t, op):
        s = torch.stack(self.gather(t.detach().clone()))
        t.copy_(s.sum(0) if op == 'sum' else s.amin(0) if op == 'min' else s.amax(0))
    def broadcast(self, t, source=0): t.copy_(self.gather(t.detach().clone())[source])

def together(f, world=2):
    box, barrier, out, errors = [None]*world, threading.Barrier(world), [None]*world, []
    def go(r):
        try: out[r] = f(Threads(r, world, box, barrier))
        except threading.BrokenBarrierError: pass
        except BaseException as e: errors.append(e); barrier.abort()
    ts = [threading.Thread(target=go, args=(r,)) for r in range(world)]
    for t in ts: t.start()
    for t in ts: t.join()
    if errors: raise errors[0]
    return out

@pytest.mark.parametrize('seed', range(30))
def test_joint_selection_is_the_sorted_one(seed):
    r = random.Random(seed); g = torch.Generator().manual_seed(seed); world = r.choice([1, 2, 3, 4])
    v = [
        torch.randn(r.choice([0, 1, 7, 100]), generator=g, dtype=torch.float64 if seed % 2 else torch.float32)
        * 10 ** r.uniform(-8, 8)
        for _ in range(world)
    ]
    if seed % 3 == 0: v = [o.sign()*2 for o in v]   # nothing but ties
    every = torch.cat(v); n = r.randint(1, max(2, len(every)))
    want = every[every > 0].sort(descending=True).values[:n].tolist()
    keep = together(lambda k: joint_keep(v[k.rank], n, k), world)
    assert sorted(torch.cat([o[m] for o, m in zip(v, keep)]).tolist(), reverse=True) == want
    line, left = together(lambda k: joint_line(v[k.rank], n, k), world)[-1]
    if len(want) == n: assert float(line) == want[-1] and left == want.count(want[-1])
    else: assert (float(line), left) == (0, 0)

aux = dict(aux_coef=1/32, k_aux=3)
CASES = dict(
    relu={},
    gated={},
    topk=aux,
    batchtopk=aux,
    jumprelu=aux | dict(dead_coef=0.02),
    aimed=dict(arch='jumprelu', target_l0=4.0) | aux,
    started=dict(arch='jumprelu', target_l0=4.0, start='batchtopk') | aux,
    kde=dict(arch='jumprelu', target_l0=4.0, per_example=True, estimator='kde', log_threshold=False, pre_bias=True),
    tanh=dict(arch='jumprelu', penalty='tanh', start='topk', target_l0=4.0),
)
cfg = TrainConfig(
    120 * 8, batch=120, lr=5e-3, beta1=0.5, lr_warmup=0.2, sparsity_warmup=0.2, start=0.5, dead_after=150, log_every=2
)

def saes(names=CASES, seed=1, dtype=torch.float64):
    def one(kw):
        return make_sae(
            SAEConfig(kw['arch'], 16, 48, **own_settings(kw['arch'], {k: v for k, v in kw.items() if k != 'arch'})),
            seed,
        )
    plain = dict(k=4, coef=.1, bandwidth=.1, theta_init=.1)
    out = {n: one(dict(arch=n) | plain | CASES[n]).to(dtype) for n in names}
    for s in out.values(): s.b_enc.data[:8] = -.4
    return out
def stream(): return SyntheticStream(d_in=16, n_true=32, batch=120, seed=3)

@pytest.mark.timeout(600)
@pytest.mark.parametrize('world,path', [(2, 'sparse'), (3, 'auto'), (4, 'dense')])
def test_equal_to_one_process(world, path):
    names = CASES if world == 2 else ('batchtopk', 'aimed', 'started', 'kde')
    alone = train_saes(Trainer(saes(names), stream(), cfg, path=path), progress=False)
    trs = together(
        lambda r: train_together(
            DistTrainer(saes(names, 1 + r.rank), SplitStream(stream(), r), cfg, r, path=path), progress=False
        ),
        world,
    )
    want, got = alone.tensors(), trs[0].tensors()
    assert want.keys() == got.keys() and max(r[4] for h in alone.history.values() for r in h) > 0
    for k in want:
        assert (want[k].double() - got[k].double()).abs().max() < 1e-9, k
        assert all(torch.equal(got[k], t.tensors()[k]) for t in trs)
    assert all(t.tokens == 8 * 120 for t in trs) and all(
        t.history == trs[0].history and t.paths.log == trs[0].paths.log for t in trs
    )
    for n, h in alone.history.items():
        for a, b in zip(h, trs[0].history[n]):
            assert (
                a[0] == b[0] and a[4] == b[4] and all(abs(p - q) < 1e-5 * (1 + abs(p)) for p, q in zip(a[1:4], b[1:4]))
            )

@pytest.mark.parametrize('bucket', [1, 17, 10**6])
def test_messages_of_any_size(bucket):
    "Whatever the pieces, every gradient is the mean, and a gradient with odd strides too"
    def one(r):
        s = saes(['gated'])['gated']
        for i, p in enumerate(s.parameters()): p.grad = torch.full_like(p, r.rank + i)
        s.W_dec.grad = torch.arange(4*s.W_dec.numel(), dtype=torch.float64)[::4].view_as(s.W_dec)*(r.rank + 1)
        average_gradients(s, r, bucket)
        return s
    for s in together(one):
        for i, (n, p) in enumerate(s.named_parameters()):
            assert (
                p.grad
                == (torch.arange(4 * p.numel(), dtype=torch.float64)[::4].view_as(p) * 1.5 if n == 'W_dec' else i + 0.5)
            ).all(), n

def test_own_streams_resume(tmp_path):
    "A stream for each rank: stopped in the middle, it goes on in the same bits, with as many ranks and no fewer"

    def trainer(r):
        return DistTrainer(
            saes(['batchtopk']),
            PerRankStream(SyntheticStream(d_in=16, n_true=32, batch=120 // r.world, seed=3 + r.rank), r),
            cfg,
            r,
        )
    def first(r):
        tr = trainer(r)
        def ask(t): t.stop = t.step == 3 and r.rank == 0
        with pytest.raises(KeyboardInterrupt): train_together(tr, tmp_path, progress=False, after_step=ask)
    together(first)
    at = read_json(tmp_path/'checkpoint.json')['stream']
    assert [r['step'] for r in at['ranks']] == [4, 4] and [r['seed'] for r in at['identity']['ranks']] == [3, 4]
    with pytest.raises(UserError, match='another run'): together(lambda r: trainer(r).load(tmp_path), 1)

    def exchanged(r):
        return DistTrainer(
            saes(['batchtopk']),
            PerRankStream(SyntheticStream(d_in=16, n_true=32, batch=60, seed=4 - r.rank), r),
            cfg,
            r,
        )
    with pytest.raises(UserError, match='data.ranks'): together(lambda r: exchanged(r).load(tmp_path))
    a, b = (together(lambda r: train_together(trainer(r), f, progress=False))[1] for f in (tmp_path, None))
    assert all(torch.equal(v, b.tensors()[k]) for k, v in a.tensors().items())

def test_saves_by_rank_zeros_clock(tmp_path):
    "Only rank 0's clock counts, all save after the same step, and only rank 0 writes"
    steps = [[], []]
    def one(r):
        class Noted(DistTrainer):
            def save(self, folder): steps[r.rank].append(self.step); super().save(folder)

        train_together(
            Noted(saes(['relu']), SplitStream(stream(), r), cfg, r),
            tmp_path,
            save_every=0.0 if r.rank == 0 else 1e9,
            progress=False,
        )
    together(one)
    assert steps[0] == steps[1] == list(range(1, 9)) and len(list(tmp_path.glob('step-*'))) == 1

def test_harvest_refuses(tmp_path):
    lm, docs = load_lm('tiny-gemma2'), generated_corpus(6, sentences=1)
    together(lambda r: harvest_share(lm, docs, 'resid.0', tmp_path/'a', 32, r, progress=False), 1)
    assert [d for s in open_shares(tmp_path/'a') for d in s.doc_ids] == [d.id for d in docs]
    same = [Document('x', d.text) for d in docs]
    for r in range(2): harvest_share(lm, same, 'resid.0', tmp_path/'b', 32, Threads(r, 2, None, None), progress=False)
    with pytest.raises(UserError, match="'x' is in several parts"): open_shares(tmp_path/'b')
    with pytest.raises(UserError, match='found: none'): open_shares(tmp_path/'c')
    t = pack_apart(docs, lm.tokenizer, 16)
    assert t.n_tokens == sum(len(d.text) for d in docs) and ((t.doc >= 0) | ~t.mask).all()

SCRIPT = '''
import atexit, os, sys, torch
torch.set_num_threads(1)
from test_distributed import *

def look(): # after what Ranks has registered: the last comes first
    # a thread of gloo that outlives the group may drop a tensor while Python ends, and abort the process
    left = [f.read_text().strip() for f in Path('/proc/self/task').glob('*/comm') if 'gloo' in f.read_text()]
    Path(f'{sys.argv[1]}-left-{os.getpid()}').write_text(str(left))  # a file each: two that print may write into one line
    if left: os._exit(7)
atexit.register(look)
ranks = Ranks(cpu=True)
assert ranks.world == 2
names = ['batchtopk', 'aimed']
tr = train_together(DistTrainer(saes(names, 1 + ranks.rank), SplitStream(stream(), ranks), cfg, ranks, path='dense'), progress=False)
tr.save(sys.argv[1])
'''

NOTEBOOK = """
import sys, runpy
from accelerate import notebook_launcher
if __name__ == '__main__':
    work, out, port = sys.argv[1:]
    def main():
        sys.argv = [work, out]; runpy.run_path(work, run_name='__main__')
    notebook_launcher(main, num_processes=2, use_port=port)
"""

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return str(s.getsockname()[1])

LAUNCHERS = dict(
    torchrun=lambda tmp: [
        '-m',
        'torch.distributed.run',
        '--nproc-per-node',
        '2',
        '--standalone',
        str(tmp / 'work.py'),
        str(tmp / 'out'),
    ],
    accelerate=lambda tmp: [
        '-m',
        'accelerate.commands.launch',
        '--multi_gpu',
        '--num_processes',
        '2',
        '--num_machines',
        '1',
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--main_process_port',
        free_port(),
        str(tmp / 'work.py'),
        str(tmp / 'out'),
    ],
    notebook_launcher=lambda tmp: [str(tmp / 'nb.py'), str(tmp / 'work.py'), str(tmp / 'out'), free_port()],
)

@pytest.mark.timeout(600)
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_two_real_processes(tmp_path, launcher):
    (tmp_path/'nb.py').write_text(NOTEBOOK)
    (tmp_path/'work.py').write_text(SCRIPT)
    env = os.environ | dict(
        OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')])
    )
    r = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher](tmp_path)], env=env, capture_output=True, text=True, timeout=500
    )
    assert r.returncode == 0, r.stdout + r.stderr
    if launcher != 'notebook_launcher':
        assert [f.read_text() for f in tmp_path.glob('out-left-*')] == ['[]'] * 2  # a fork ends without looking
    alone = train_saes(Trainer(saes(['batchtopk', 'aimed']), stream(), cfg, path='dense'), progress=False).tensors()
    got, _ = load_tensors(tmp_path/'out'/read_json(tmp_path/'out'/'checkpoint.json')['file'])
    assert got.keys() == alone.keys() and all((got[k].double() - alone[k].double()).abs().max() < 1e-9 for k in got)

FAILS = """
import sys, time, torch
torch.set_num_threads(1)
from test_distributed import *
ranks = Ranks(cpu=True)
where, folder = sys.argv[1:]
tr = DistTrainer(saes(['batchtopk', 'aimed']), SplitStream(stream(), ranks), cfg, ranks, path='dense')
fails = ranks.rank == (0 if where == 'save' else 1)
def broken(*a, **kw): raise OSError('no such disk')
def after(t):
    if fails and t.step == 3 and where == 'after_step': broken()
    if fails and t.step == 3 and where == 'loss': t.saes['aimed'].loss = broken
    if fails and t.step == 3 and where == 'stream': t.stream.stream.draw = broken
if fails and where == 'save': tr.tensors = broken
if fails and where == 'killed': tr.stream.stream.draw = lambda *a: os.kill(os.getpid(), 9)
try: train_together(tr, folder, save_every=0., progress=False, after_step=after)
except Exception as e:
    print('ENDED', ranks.rank, type(e).__name__, e, flush=True)
    if fails: time.sleep(120)   # a process that failed may live on, as in a notebook: the others must not wait for it
"""

@pytest.mark.timeout(300)
@pytest.mark.parametrize('where', ['stream', 'save', 'after_step', 'loss', 'killed'])
def test_one_fails_and_none_waits(tmp_path, where):
    "An error in one process ends the other within a minute, and each says what is known; what was saved is kept"
    (tmp_path/'work.py').write_text(FAILS)
    env = os.environ | dict(
        OMP_NUM_THREADS='1',
        WORLD_SIZE='2',
        LOCAL_WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=free_port(),
        PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')]),
    )
    ps = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / 'work.py'), where, str(tmp_path / 'out')],
            env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
            stdout=open(tmp_path / f'{r}.txt', 'w'),
            stderr=subprocess.STDOUT,
        )
        for r in range(2)
    ]
    other = 1 if where == 'save' else 0
    try: ps[other].wait(60)
    finally:
        for p in ps: p.kill()
        for p in ps: p.wait()
    own, told = ((tmp_path/f'{r}.txt').read_text() for r in (1 - other, other))
    assert 'OtherFailed' in told and 'Traceback' not in told, told
    if where != 'killed': assert 'no such disk' in own, own
    if where in ('stream', 'save'): assert 'no such disk' in told     # agreed upon: the reason is told
    if where in ('stream', 'after_step', 'loss'): assert read_json(tmp_path/'out'/'checkpoint.json')['step'] >= 2

KILLED = """
import json, sys, time, traceback, torch
torch.set_num_threads(1)
import accelerate, torch.distributed.nn.functional
from test_distributed import *
long = TrainConfig(120*24, batch=120, lr=5e-3, beta1=.5, lr_warmup=.2, sparsity_warmup=.2, start=.5, dead_after=150)

def one(folder, who, at, where, n):
    ranks = Ranks(cpu=True)
    assert ranks.world == n
    def fire(now, tr):
        if ranks.rank == who and tr.step == at and now == where: os.kill(os.getpid(), 9)
    class Shot(DistTrainer):
        def batch(self): fire('draw', self); return super().batch()
        def step_of(self, *a):
            out = super().step_of(*a)
            fire('step', self)
            return out
        def save(self, folder): fire('save', self); super().save(folder)
    tr = Shot(saes(['batchtopk', 'started'], 1 + ranks.rank), SplitStream(stream(), ranks), long, ranks, path='dense')
    try: train_together(tr, folder, save_every=0., progress=False)
    except Exception as e:
        print('ENDED', ranks.rank, type(e).__name__, e)
        return 1
    print('FINISHED', tr.step)
    ranks.close()
    return 0

def processes(n, folder, who=-1, at=-1, where=''):
    port, pids, ends = free_port(), [], {}
    for r in range(n):
        pids.append(os.fork())
        if pids[-1]: continue
        os.environ.update(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        sys.stdout = sys.stderr = open(f'{folder}-{n}-{r}.txt', 'w')
        try: code = one(folder, who, at, where, n)
        except BaseException: code = traceback.print_exc() or 2
        sys.stdout.flush()
        os._exit(code)
    while len(ends) < n:
        pid, status = os.wait()
        ends[pids.index(pid)] = time.monotonic(), os.waitstatus_to_exitcode(status)
    after = max(t for t, _ in ends.values()) - ends[max(who, 0)][0]
    said = [Path(f'{folder}-{n}-{r}.txt').read_text() for r in range(n)]
    return dict(seconds=after, codes=[ends[r][1] for r in range(n)], said=said, step=read_json(Path(folder)/'checkpoint.json')['step'])

folder, who, at, where, again = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
killed = processes(4, folder, who, at, where)
print(json.dumps([killed, processes(again, folder)]))
"""

@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks, to import everything once')
@pytest.mark.parametrize('seed', range(KILLS))
def test_one_of_four_is_killed(tmp_path, seed):
    """kill -9 of one: all have ended within a minute, nothing is lost, and two or four go on to where one process alone
    gets"""
    r = random.Random(seed)
    (tmp_path/'work.py').write_text(KILLED)
    who, at, where, again = r.randrange(4), r.randrange(2, 22), r.choice(('draw', 'step', 'save')), (2, 4)[seed % 2]
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')])
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=path)
    p = subprocess.Popen(
        [sys.executable, str(tmp_path / 'work.py'), str(tmp_path / 'out'), str(who), str(at), where, str(again)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try: said, _ = p.communicate(timeout=600)
    finally:
        try: os.killpg(p.pid, 9)
        except ProcessLookupError: pass
    assert p.returncode == 0, said
    shot, rest = json.loads(said)
    assert shot['seconds'] < 60 and shot['codes'][who] == -9 and all(shot['codes']), shot
    assert all('OtherFailed' in t and 'Traceback' not in t for i, t in enumerate(shot['said']) if i != who), shot
    assert shot['step'] >= at - 1 and not any(rest['codes']) and all('FINISHED 24' in t for t in rest['said']), (
        shot,
        rest,
    )
    long = TrainConfig(120*24, batch=120, lr=5e-3, beta1=.5, lr_warmup=.2, sparsity_warmup=.2, start=.5, dead_after=150)
    alone = train_saes(Trainer(saes(['batchtopk', 'started']), stream(), long, path='dense'), progress=False).tensors()
    d = read_json(tmp_path/'out'/'checkpoint.json')
    got, _ = load_tensors(tmp_path/'out'/d['file'])
    apart = max(float((got[k].double() - v.double()).abs().max()) for k, v in alone.items())
    print(
        f"rank {who} killed at step {at} ({where}): {shot['seconds']:.1f} s until all had ended, kept {shot['step']}, {again} went on, apart {apart:.0e}"
    )
    assert d['step'] == 24 and got.keys() == alone.keys() and apart < 1e-8

def test_calibrated_once_for_all(tmp_path):
    "What rank 0 timed decides for all, is in the checkpoint, and is not timed again"
    def one(r):
        tr = DistTrainer(saes(['relu']), SplitStream(stream(), r), cfg, r, path='calibrate')
        def ask(t): t.stop = t.step == 3
        try: train_together(tr, tmp_path, progress=False, after_step=ask)
        except KeyboardInterrupt: pass
        return tr.paths.path
    first = together(one)
    assert (
        len(set(first)) == 1
        and first[0].startswith('auto<')
        and read_json(tmp_path / 'checkpoint.json')['identity']['path'] == first[0]
    )
    def again(r):
        tr = DistTrainer(saes(['relu']), SplitStream(stream(), r), cfg, r, path='calibrate')
        tr.calibrated = lambda: 1/0
        return train_together(tr, tmp_path, progress=False).paths.path
    assert together(again) == first
