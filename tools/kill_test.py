"""Kill `reproduce --preset tiny` at training steps and at files being written, again and again, and compare.

    python tools/kill_test.py [KILLS] [SEED]

Every kill is aimed: a child of this script counts its training steps and its files, and sends itself the signal at the
chosen one: before, inside or after a step, before or after a file is in its place. Its numbers must be those of a run
left alone. Trainings that went on from a checkpoint are counted; without any, the test has tested nothing."""
import contextlib, json, os, random, re, shutil, signal, subprocess, sys, tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGINT')


@dataclass
class Shot:
    "When a child kills itself"
    what: str # 'step' or 'file'
    number: int # of the training step or the file in this process, from 1
    where: str # 'before', 'inside' or 'after'
    sig: str # a signal's name
    save_every: int # training steps between checkpoints


def draw(rng):
    "Three in four at a training step, one in four at a file"
    sig = rng.choice(SIGNALS)
    if rng.random() < .75:
        return Shot('step', rng.randint(2, 60), rng.choice(('before', 'inside', 'after')), sig, rng.choice((1, 5)))
    return Shot('file', rng.randint(1, 40), rng.choice(('before', 'after')), sig, 5)


def child(args, shot):
    "In the child: count, kill, and tell what was resumed; otherwise the command line as it is"
    sys.path.insert(0, str(ROOT))
    from jumprelu_sae import core, train
    count = dict(step=0, file=0)

    def fire(what, where):
        if shot and (what, count[what], where) == (shot.what, shot.number, shot.where):
            os.kill(os.getpid(), getattr(signal, shot.sig))

    T = train.Trainer
    one_step, step_of, alone_in, load, writing = T.one_step, T.step_of, T.alone_in, T.load, core.writing

    def counted(self):
        count['step'] += 1
        fire('step', 'before')
        terms = one_step(self)
        fire('step', 'after')
        due = shot and self.step % shot.save_every == 0 and self.step < self.cfg.n_steps
        if due and self.folder_of_kill and not self.stop: self.save(self.folder_of_kill)
        return terms

    def inside(self, *a):
        out = step_of(self, *a)
        fire('step', 'inside')
        return out

    def in_folder(self, folder):
        self.folder_of_kill = folder
        return alone_in(self, folder)

    def told(self, folder):
        load(self, folder)
        if self.folder_of_kill:
            print(f'resumed at step {self.step} of {self.cfg.n_steps}', flush=True)  # train_saes asked

    @contextlib.contextmanager
    def write(path):
        count['file'] += 1
        with writing(path) as tmp:
            yield tmp
            fire('file', 'before')
        fire('file', 'after')

    T.folder_of_kill, T.one_step, T.step_of, T.alone_in, T.load = None, counted, inside, in_folder, told
    core.writing = write
    from jumprelu_sae.cli import main
    sys.argv = ['jumprelu-sae', *args]
    sys.exit(main())


def run(out, cache, shot=None):
    "One child; its exit code and the steps in the middle of a training at which it resumed"
    command = [sys.executable, str(Path(__file__).resolve()), '--child', json.dumps(shot and vars(shot))]
    command += ['reproduce', '--preset', 'tiny', '--quiet', '--out', str(out)]
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, JUMPRELU_SAE_CACHE=str(cache), PYTHONPATH=path)
    p = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if p.returncode in (1, 2): raise SystemExit(f'the run failed instead of going on ({shot}):\n{p.stdout}')
    resumed = [(int(n), int(end)) for n, end in re.findall(r'resumed at step (\d+) of (\d+)', p.stdout)]
    return p.returncode, [n for n, end in resumed if 0 < n < end]


def numbers(out): # everything measured, without dates and commits
    results = json.loads((Path(out)/'results.json').read_text())['results']
    return [{k: r[k] for k in ('name', 'config', 'metrics', 'arrays')} for r in results]


def kill_test(folder, times, seed=0, say=print):
    "Numbers of a run killed `times` times, numbers of one left alone, and the steps at which killed runs resumed"
    folder, rng, kills, resumed, finished = Path(folder), random.Random(seed), 0, [], 0
    assert run(folder/'alone', folder/'cache-alone')[0] == 0
    alone = numbers(folder/'alone')
    while kills < times:
        shot = draw(rng)
        code, steps = run(folder/'killed', folder/'cache-killed', shot)
        resumed += steps
        kills += code != 0
        say(f"{kills}: {shot.sig} {shot.where} {shot.what} {shot.number}, exit code "
            f"{code}{', resumed at step ' + ', '.join(map(str, steps)) if steps else ''}")
        if code == 0:   # the shot came after the end
            finished += 1
            if numbers(folder/'killed') != alone: return numbers(folder/'killed'), alone, resumed
            shutil.rmtree(folder/'killed')
            if finished % 2: shutil.rmtree(folder/'cache-killed')   # now and then the harvest, too, begins again
    code, steps = run(folder/'killed', folder/'cache-killed')
    assert code == 0
    return numbers(folder/'killed'), alone, resumed + steps


if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']:
        aim = json.loads(sys.argv[2])
        child(sys.argv[3:], aim and Shot(**aim))
    times, seed = (int(v) for v in (sys.argv[1:] + ['10', '0'][len(sys.argv) - 1:])[:2])
    with tempfile.TemporaryDirectory() as d: killed, alone, resumed = kill_test(d, times, seed)
    print(f"{times} kills, {len(resumed)} trainings resumed from a checkpoint, "
        f"{'the same numbers' if killed == alone else 'DIFFERENT numbers'}")
    sys.exit(killed != alone or not resumed)
