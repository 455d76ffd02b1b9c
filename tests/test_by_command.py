"""One command on several processes: the run of one process, streamed or from disk, sharing batches or SAEs; who fails
ends all, and has the last word"""
import os, socket, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
from jumprelu_sae.core import load_tensors, read_json
from jumprelu_sae.presets import PRESETS

BASE = replace(PRESETS['tiny'], n_train=2048, n_val=256, n_test=512, n_lm=128,
    grid=dict(topk=(4,), jumprelu=(4, 8), batchtopk=(4,), relu=(1.,)))

RUN = r'''
import json, logging, os, sys, time, torch
torch.set_num_threads(1)
import test_by_command as t
from jumprelu_sae import experiment
from jumprelu_sae.cli import said_in_one_line
from jumprelu_sae.core import Settings
from jumprelu_sae.train import Trainer
out, store, share, fails = sys.argv[1:]
logging.basicConfig(level=logging.INFO if os.environ.get('RANK', '0') == '0' else logging.ERROR)
experiment.BUCKET = 700
if os.environ.get('WORLD_SIZE') == '2': experiment.TOKENS_IN_MEMORY = 1000  # streamed: tokens from a file
where, _, who = fails.partition('@')
if who == os.environ.get('RANK'):
    def mark():
        with open(out + '.failed', 'w') as f: f.write(str(time.time()))
    def broken(*a, **kw):
        mark()
        raise OSError('no such disk')
    if where == 'killed': experiment.evaluate_job = lambda *a, **kw: (mark(), os.kill(os.getpid(), 9))
    if where == 'step':
        step = Trainer.one_step
        Trainer.one_step = lambda self: broken() if self.step == 3 else step(self)
    if where == 'harvest': experiment.harvest_together = broken
    if where == 'evaluate': experiment.evaluate_job = broken
elif where == 'step':  # the others are in the middle of something long
    step = Trainer.one_step
    Trainer.one_step = lambda self: (time.sleep(.3), step(self))[1]
elif where in ('evaluate', 'killed'):
    experiment.evaluate_job = lambda *a, **kw: time.sleep(100)
try: results = experiment.run_experiment(t.BASE, Settings(progress=False, out=out, store=store, share=share))
except Exception as e:
    sys.stderr.write(f'error: {e}\n')
    sys.exit(2)
steps = sum(r.config['train']['n_tokens'] for r in results)
sys.stdout.write(f'TOKENS {steps} {len(results)}\n')  # in one piece: the processes share a screen
sys.stdout.flush()
'''

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

def env_of(tmp, **more):
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    return os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=here, JUMPRELU_SAE_CACHE=str(tmp)) | more

def start(tmp, world, out, store, share='auto', fails='', cache='cache'):
    "Processes as a launcher starts them, with one screen; their exit codes, what they said, seconds"
    meet = dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    args, screen, began = [sys.executable, '-c', RUN, str(tmp/out), store, share, fails], tmp/f'{out}.txt', time.time()
    with screen.open('w') as f:
        ps = [subprocess.Popen(args, env=env_of(tmp/cache, **meet, RANK=str(r), LOCAL_RANK=str(r)), stdout=f, stderr=f)
            for r in range(world)]
        try: codes = [p.wait(400) for p in ps]
        finally:
            for p in ps: p.kill()
    return codes, screen.read_text(), time.time() - began

def weights(folder): return {f.parent.name: load_tensors(f)[0] for f in sorted(folder.glob('saes/*/*.safetensors'))}
def keys(folder): return {r['name']: r['config']['key'] for r in read_json(folder/'results.json')['results']}

def apart(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys() and len(a) == 5
    return max(float((t.double() - b[n][k].double()).abs().max()) for n in a for k, t in a[n].items())

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The run of one process, from disk and streamed"
    tmp = tmp_path_factory.mktemp('alone')
    for store in ('disk', 'stream'):
        codes, said, _ = start(tmp, 1, store, store)
        assert codes == [0], said
    return tmp

CASES = [(2, 'disk', 'batches', 1e-4), (2, 'disk', 'saes', 0), (2, 'stream', 'batches', 1e-4), (2, 'stream', 'saes', 0),
    (4, 'stream', 'batches', 1e-4)]

@pytest.mark.timeout(600)
@pytest.mark.parametrize('world,store,share,most', CASES)
def test_many_are_one(alone, tmp_path, world, store, share, most):
    "The keys of one process, all tokens, the same parameters; the store file by file; written down what was shared"
    codes, said, seconds = start(tmp_path, world, 'out', store, share)
    assert codes == [0]*world, said
    assert [l for l in said.splitlines() if l.startswith('TOKENS')] == [f'TOKENS {5*2048} 5']*world, said
    assert keys(tmp_path/'out') == keys(alone/store)
    far = apart(tmp_path/'out', alone/store)
    print(f'{world} processes, {store}, {share}: parameters at most {far:.1e} apart from one process, {seconds:.0f} s')
    assert far <= most
    facts = read_json(tmp_path/'out/results.json')['facts']
    assert (facts['share']['of'], facts['share']['processes'], facts['store']['kind']) == (share, world, store)
    assert not list(tmp_path.glob('cache/stores/*-part-*')) and not list((tmp_path/'out').glob('.ranks-*'))
    if store == 'disk':
        mine, theirs = (sorted((f.relative_to(c).as_posix(), f.read_bytes()) for f in c.glob('stores/*/shard-*'))
            for c in (tmp_path/'cache', alone/'cache'))
        assert mine == [o for o in theirs if o[0] in dict(mine)] and len(mine) >= 3

FAILS = [
    ('step@1', 'disk', 'saes'),
    ('step@0', 'stream', 'batches'),
    ('harvest@1', 'disk', 'auto'),
    ('evaluate@0', 'disk', 'saes'),
]

@pytest.mark.timeout(300)
@pytest.mark.parametrize('fails,store,share', FAILS)
def test_the_one_that_fails_has_the_last_word(tmp_path, fails, store, share):
    "All have ended within a minute of the error; its own message is the last line, the other's is one line before"
    codes, said, _ = start(tmp_path, 2, 'out', store, share, fails)
    seconds = time.time() - float((tmp_path/'out.failed').read_text())
    who, lines = int(fails[-1]), said.strip().splitlines()
    print(f'{fails}, {store}, {share}: all had ended {seconds:.1f} s after the error; last: {lines[-1]}')
    assert seconds < 60 and codes[who] == 2 and codes[1 - who] not in (0, 2), said
    assert lines[-1] == 'error: no such disk', said
    assert f'process {1 - who} ends: process {who} failed, and says why' in lines, said

@pytest.mark.timeout(300)
def test_one_is_killed_while_the_other_works_alone(tmp_path):
    "No launcher and no message: the other learns of it by the lock, and does not work on for a hundred seconds"
    codes, said, _ = start(tmp_path, 2, 'out', 'disk', 'saes', 'killed@1')
    seconds = time.time() - float((tmp_path/'out.failed').read_text())
    trained = said.index('[train]')
    assert codes[1] == -9 and codes[0] not in (0, 2), said
    assert 'process 0 ends: process 1 was killed' in said[trained:].splitlines(), said
    print(f'all had ended {seconds:.1f} s after the kill')
    assert seconds < 60


LAUNCHERS = dict(
    torchrun=['torch.distributed.run', '--nproc-per-node', '2', '--standalone'],
    accelerate=['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1',
        '--mixed_precision', 'no', '--dynamo_backend', 'no', '--num_cpu_threads_per_process', '1'])

@pytest.mark.timeout(600)
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_a_launcher_reproduces(tmp_path, launcher):
    "The commands of the issue, whole: harvest, training, evaluation and a report by two processes"
    args = ['-m', 'jumprelu_sae', 'reproduce', '--preset', 'tiny', '--quiet', '--tokens', '2048']
    args += ['--store', 'stream', '--out', str(tmp_path/'out')]
    more = ['--main_process_port', free_port()] if launcher == 'accelerate' else []
    p = subprocess.run([sys.executable, '-m', *LAUNCHERS[launcher], *more, *args], env=env_of(tmp_path/'cache'),
        capture_output=True, text=True, cwd=tmp_path)
    assert p.returncode == 0, p.stdout + p.stderr
    facts = read_json(tmp_path/'out/results.json')['facts']
    print(launcher, facts['share'], facts['store'])
    assert facts['share']['processes'] == 2 and facts['store']['kind'] == 'stream'
    assert (tmp_path/'out/report.html').exists() and p.stdout.count('wall time') == 1
