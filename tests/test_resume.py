"""A run that is killed and started again ends in the numbers of a run left alone, and goes on from its checkpoint
(`python tools/kill_test.py 50` does it fifty times)."""
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from jumprelu_sae.core import load_tensors, read_json
sys.path.insert(0, str(Path(__file__).parent.parent/'tools'))
from kill_test import kill_test

TRAIN = '''
import logging, os, signal, sys, torch
torch.set_num_threads(1)
from jumprelu_sae.core import SyntheticStream
from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, make_sae, own_settings
from jumprelu_sae.train import TrainConfig, Trainer, train_saes
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
folder, kill, sig, where = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
cfg = TrainConfig(64*40, batch=64, lr=5e-3, lr_warmup=.1, sparsity_warmup=.2, lr_decay=.2, dead_after=300, start=.5)
own = dict(k=4, coef=.05, bandwidth=.1, theta_init=.1, aux_coef=1/32)
saes = {a: make_sae(SAEConfig(a, 32, 64, **own_settings(a, own)), 1) for a in ARCHITECTURES}
saes['started'] = make_sae(SAEConfig('jumprelu', 32, 64, target_l0=4., start='topk', coef=10., bandwidth=.1, aux_coef=1/32, dead_coef=.01), 1)
tr = Trainer(saes, SyntheticStream(batch=64, seed=5), cfg)
one_step, step_of = tr.one_step, tr.step_of
def fire(at):
    if at == where and tr.step == kill: os.kill(os.getpid(), getattr(signal, sig))
def step():
    fire('before')
    terms = one_step()
    fire('after')
    return terms
def inside(*a):
    out = step_of(*a)
    fire('inside')
    return out
tr.one_step, tr.step_of = step, inside
try: train_saes(tr, folder, save_every=0., progress=False)
except KeyboardInterrupt: sys.exit(130)
'''

def train(tmp, folder, kill=-1, sig='SIGKILL', where='before'):
    (tmp/'train.py').write_text(TRAIN)
    p = subprocess.run(
        [sys.executable, str(tmp / 'train.py'), str(folder), str(kill), sig, where],
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1'),
    )
    assert p.returncode in (0, 130, -9), p.stdout + p.stderr
    return p.returncode, [int(n) for n in re.findall(r'resumed at step (\d+) of 40', p.stdout)]

@pytest.mark.timeout(600)
def test_killed_at_a_step(tmp_path):
    "SIGKILL, SIGTERM and SIGINT before, inside and after a step: always on from the checkpoint, and to the same bits"
    assert train(tmp_path, tmp_path/'alone') == (0, [])
    shots = [
        (5, 'SIGKILL', 'inside', []),
        (9, 'SIGTERM', 'inside', [5]),
        (17, 'SIGINT', 'before', [10]),
        (25, 'SIGKILL', 'before', [18]),
        (30, 'SIGKILL', 'after', [25]),
    ]
    for kill, sig, where, resumed in shots:
        code, steps = train(tmp_path, tmp_path/'killed', kill, sig, where)
        assert code == (-9 if sig == 'SIGKILL' else 130) and steps == resumed, (kill, sig, where, code, steps)
    assert train(tmp_path, tmp_path/'killed') == (0, [29])
    a, b = (read_json(tmp_path/f/'checkpoint.json') for f in ('alone', 'killed'))
    assert a['step'] == b['step'] == 40 and {k: v for k, v in a.items() if k != 'sha256'} == {
        k: v for k, v in b.items() if k != 'sha256'
    }
    t, u = (load_tensors(tmp_path/f/d['file'])[0] for f, d in (('alone', a), ('killed', b)))
    assert t.keys() == u.keys() and all(torch.equal(v, u[k]) for k, v in t.items())

@pytest.mark.timeout(900)
def test_killed_and_resumed_is_the_same(tmp_path):
    """The whole road: killed at training steps and at files, and no number differs; some of the trainings went on from
    a checkpoint"""
    killed, alone, resumed = kill_test(tmp_path, times=5, seed=1)
    assert resumed, 'no killed run went on from a checkpoint: nothing was tested'
    assert killed == alone

SWEEP = '''
import logging, sys
from dataclasses import replace
from pathlib import Path
from jumprelu_sae.core import Settings
from jumprelu_sae.experiment import run_experiment
from jumprelu_sae.presets import PRESETS
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')
p = replace(PRESETS['tiny'], n_train=32768, batch=64, d_sae=1024, grid=dict(topk=(4, 8), jumprelu=(4, 8)))
try: run_experiment(p, Settings(workers=int(sys.argv[2]), threads=1, save_every=.05, out=Path(sys.argv[1])), say=print)
except KeyboardInterrupt: sys.exit(130)
'''  # on purpose without `if __name__ == '__main__'`

def children(pid):
    "Processes whose parent is `pid`"
    kids = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try: fields = stat.read_text().rpartition(')')[2].split()
        except OSError: continue
        if int(fields[1]) == pid and fields[0] != 'Z': kids.append(int(stat.parent.name))
    return kids

def steps_in(out):
    "Checkpoint -> its step"
    found = {}
    for f in out.glob('checkpoints/*/checkpoint.json'):
        try: found[f.parent.name] = json.loads(f.read_text())['step']
        except (OSError, ValueError): pass
    return found

def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.005)

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

class Sweep:
    "A sweep in a process of its own, with worker processes below it"
    def __init__(self, tmp, out, workers=2):
        (tmp/'sweep.py').write_text(SWEEP)
        self.out, env = out, os.environ | dict(OMP_NUM_THREADS='1', JUMPRELU_SAE_CACHE=str(tmp/'cache'))
        self.log = open(tmp/'sweep.log', 'w+')
        self.p = subprocess.Popen(
            [sys.executable, str(tmp / 'sweep.py'), str(out), str(workers)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )

    def shoot(self, whom, sig):
        """Once two checkpoints are newer than this run: kill the parent or a worker; what was said, the exit status,
        whose checkpoints"""
        before = steps_in(self.out)
        def newer(): return {k for k, v in steps_in(self.out).items() if v > before.get(k, 0)}
        until(lambda: len(newer()) >= 2 or self.p.poll() is not None)
        workers, seen = children(self.p.pid), newer()
        assert self.p.poll() is None and len(workers) == 2, self.said()
        if whom == 'terminal': os.killpg(self.p.pid, sig)  # as Ctrl-C there: to all in the foreground
        else: os.kill(self.p.pid if whom == 'parent' else workers[0], sig)
        self.p.wait(120)
        until(lambda: not any(map(alive, workers)), 60)
        return self.said(), self.p.returncode, seen

    def said(self):
        self.p.poll()
        self.log.seek(0)
        return self.log.read()

    def end(self):
        assert self.p.wait(300) == 0, self.said()
        return self.said()

def finished_files(out):
    "Everything that a run leaves behind, without times and circumstances"
    files = {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.glob('saes/*/*'))}
    for f in (*sorted(out.glob('runs/*.json')), out/'results.json'):
        d = read_json(f)
        d = {k: v for k, v in d.items() if k not in ('env', 'stages', 'peak_memory_gib', 'settings')}
        if 'facts' in d:
            d['facts'] = {k: v for k, v in d['facts'].items() if k != 'store'} | dict(store=d['facts']['store']['kind'])
        if 'results' in d: d['results'] = [{k: v for k, v in r.items() if k != 'env'} for r in d['results']]
        files[f.name] = d
    return files

@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes in /proc')
def test_workers_are_killed_and_resumed(tmp_path):
    """Parent and workers shot in turn: always on from checkpoints, never an orphan, and to the bytes of one process
    left alone"""
    out, resumed = tmp_path/'shot', 0
    shots = [
        ('terminal', 'SIGINT', 130),
        ('worker', 'SIGKILL', 1),
        ('parent', 'SIGKILL', -9),
        ('parent', 'SIGTERM', 130),
    ]
    for whom, sig, code in shots:
        said, status, seen = Sweep(tmp_path, out).shoot(whom, getattr(signal, sig))
        resumed += len(re.findall(r'resumed at step [1-9]\d* of 512', said))
        assert status == code, (whom, sig, said)
        if whom == 'worker':
            last = said.strip().splitlines()[-1]
            assert (
                'was killed (signal 9' in last
                and 'run again, and it goes on from its last checkpoint' in last
                and '-seed0' in last
            )
        left = steps_in(out)
        lost = [n for n in seen if n not in left and not any(out.glob(f'saes/{n}/*'))]  # one may have ended since
        assert left and not lost, f'{whom} {sig}: no checkpoint of {lost}'
    said = Sweep(tmp_path, out).end()
    resumed += len(re.findall(r'resumed at step [1-9]\d* of 512', said))
    assert '2 worker processes' in said and not list(out.glob('checkpoints/*'))
    # two at a time go on, less those that ended between a look and a shot
    assert resumed >= len(shots), f'only {resumed} trainings went on from a checkpoint'
    print(f'{resumed} trainings went on from a checkpoint after {len(shots)} kills')
    assert '[train]' in Sweep(tmp_path, tmp_path/'alone', 1).end()
    a, b = finished_files(tmp_path/'alone'), finished_files(out)
    assert len(a) >= 4*2 + 4 + 1 and a.keys() == b.keys()
    for n in a: assert a[n] == b[n], n
