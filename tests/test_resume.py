"A run that is killed and started again ends in the numbers of a run left alone, and goes on from its checkpoint (`python tools/kill_test.py 50` does it fifty times)."
import os, re, subprocess, sys
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
    p = subprocess.run([sys.executable, str(tmp/'train.py'), str(folder), str(kill), sig, where], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert p.returncode in (0, 130, -9), p.stdout + p.stderr
    return p.returncode, [int(n) for n in re.findall(r'resumed at step (\d+) of 40', p.stdout)]

@pytest.mark.timeout(600)
def test_killed_at_a_step(tmp_path):
    "SIGKILL, SIGTERM and SIGINT before, inside and after a step: always on from the checkpoint, and to the same bits"
    assert train(tmp_path, tmp_path/'alone') == (0, [])
    shots = [(5, 'SIGKILL', 'inside', []), (9, 'SIGTERM', 'inside', [5]), (17, 'SIGINT', 'before', [10]), (25, 'SIGKILL', 'before', [18]), (30, 'SIGKILL', 'after', [25])]
    for kill, sig, where, resumed in shots:
        code, steps = train(tmp_path, tmp_path/'killed', kill, sig, where)
        assert code == (-9 if sig == 'SIGKILL' else 130) and steps == resumed, (kill, sig, where, code, steps)
    assert train(tmp_path, tmp_path/'killed') == (0, [29])
    a, b = (read_json(tmp_path/f/'checkpoint.json') for f in ('alone', 'killed'))
    assert a['step'] == b['step'] == 40 and {k: v for k, v in a.items() if k != 'sha256'} == {k: v for k, v in b.items() if k != 'sha256'}
    t, u = (load_tensors(tmp_path/f/d['file'])[0] for f, d in (('alone', a), ('killed', b)))
    assert t.keys() == u.keys() and all(torch.equal(v, u[k]) for k, v in t.items())

@pytest.mark.timeout(900)
def test_killed_and_resumed_is_the_same(tmp_path):
    "The whole road: killed at training steps and at files, and no number differs; some of the trainings went on from a checkpoint"
    killed, alone, resumed = kill_test(tmp_path, times=5, seed=1)
    assert resumed, 'no killed run went on from a checkpoint: nothing was tested'
    assert killed == alone
