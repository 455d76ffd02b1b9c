"""On any machine with a CUDA card: is it right there, how fast is it, and what does the card's preset give?

    python benchmarks/gpu.py                          # every piece that is missing, one after the other
    python benchmarks/gpu.py check step-9b            # only these
    python benchmarks/gpu.py peers-9b --saelens ENV/bin/python   # with the interpreter of another environment
    python benchmarks/gpu.py --list                   # what there is, and what is done
    python benchmarks/gpu.py preset --preset scope-270m-sotu     # another preset, such as the one without a network
    python benchmarks/gpu.py --cpu-tiny --out FOLDER  # a rehearsal: every piece at toy size on the CPU

A piece takes less than ten minutes and writes results/gpu/<piece>.json with device, versions and a key. It is skipped
when its file is there with the same key (piece, sizes, device, torch), so the same command goes on after a stop. The
preset's piece is stopped after --minutes, with a checkpoint, and goes on at the next call until it is done. The pieces
peers-2b and peers-9b put SAELens 6.54.12 beside our JumpReLU step, one process after the other, each alone on the card;
they are skipped with a line where SAELens cannot be imported. It may live in an environment of its own, whose
interpreter --saelens names. Departures: the steps run on noise, the harvests on models of true size with random
weights; both are for speed and memory only."""
import argparse, json, os, signal, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jumprelu_sae.core import (Scaler, Settings, TensorStream, UserError, device_name, fingerprint, matmul_precision,
    read_json, run_env, versions, write_json)

SIZES = {'step-2b': (2304, 65_536, 4096), 'step-9b': (3584, 131_072, 4096)}
TINY_SIZES = {'step-2b': (16, 64, 32), 'step-9b': (24, 96, 32)}
PEERS = {'peers-2b': 'step-2b', 'peers-9b': 'step-9b'}  # piece -> whose sizes
SAELENS = '6.54.12'
HARVESTS = {'harvest-2b': 'gemma-2-2b', 'harvest-9b': 'gemma-2-9b'}
L0 = 50


def wait(device: str) -> None:
    if device.startswith('cuda'): torch.cuda.synchronize()


# -- is it right? ------------------------------------------------------------------------------------------------------
def check(a) -> dict:
    "Each architecture, dense and sparse: a step on the device and on the CPU; a run stopped, resumed and judged there"
    from jumprelu_sae.evaluate import evaluate_activations
    from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, load_sae, make_sae, own_settings
    from jumprelu_sae.train import TrainConfig, Trainer, make_adam, train_saes, train_step
    own = dict(k=8, coef=.02, bandwidth=.1, theta_init=.05, aux_coef=1/32, k_aux=16)
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))/8
    cfg = TrainConfig(256*16, batch=256, lr=1e-3, lr_warmup=.1, sparsity_warmup=.1, dead_after=512)

    def sae(arch): return make_sae(SAEConfig(arch, 64, 512, **own_settings(arch, own)), 1)

    def weights(arch, device, path):
        s = sae(arch).to(device).train()
        opt, silent = make_adam(s, cfg), torch.zeros(512, dtype=torch.long, device=device)
        for i in range(5): train_step(s, opt, x[256*i:256*i+256].to(device), i, cfg, silent, path)
        return {k: v.detach().cpu().double() for k, v in s.state_dict().items()}

    rows = []
    for arch in ARCHITECTURES:
        for path in ('dense', 'sparse'):
            here, there = weights(arch, 'cpu', path), weights(arch, a.device, path)
            rows.append(
                dict(arch=arch, path=path, difference=max(float((here[k] - there[k]).abs().max()) for k in here))
            )

    def run(folder=None, halt=None):
        tr = Trainer({n: sae(n).to(a.device) for n in ARCHITECTURES}, TensorStream(x, 256, scaler=Scaler.fit(x)), cfg)
        def after(t): t.stop = t.step == halt
        try: return train_saes(tr, folder, 1e9, progress=False, after_step=after)
        except KeyboardInterrupt: return tr

    with tempfile.TemporaryDirectory() as d:
        whole, _, again = run(), run(d, 7), run(d)
        apart = max(float((v - again.tensors()[k]).abs().max()) for k, v in whole.tensors().items())
        judged = {}
        for n, s in again.saes.items():
            s.finish(Scaler.fit(x), {}).save(Path(d)/n)
            both = [evaluate_activations(load_sae(Path(d)/n, where), x[:1024].bfloat16(), torch.arange(1024)//64,
                mean=x.mean(0))[0] for where in ('cpu', a.device)]
            judged[n] = max(abs(both[0][k] - both[1][k]) for k in ('l0', 'fvu', 'dead'))
    good = max(r['difference'] for r in rows) < 5e-3 and apart < 1e-6 and max(judged.values()) < .05
    return dict(rows=rows, resumed_differs_by=apart, judged_differs_by=judged, good=good)


# -- how fast? ---------------------------------------------------------------------------------------------------------
def median_ms(work, device: str, seconds: float) -> tuple[float, int]:
    "Milliseconds of a call, the median of what fits the time after two unmeasured ones, and how many these were"
    def one():
        t = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - t
    one(), one()
    times, end = [one()], time.perf_counter() + seconds
    while time.perf_counter() < end: times.append(one())
    return 1e3*statistics.median(times), len(times)

def step_row(a, arch: str, path: str, matmul: str, size: tuple) -> dict:
    "One architecture's step at one size"
    from jumprelu_sae.sae import SAEConfig, make_sae, own_settings
    from jumprelu_sae.train import TrainConfig, make_adam, train_step
    d_in, d_sae, batch = size
    cuda, k = a.device.startswith('cuda'), min(L0, d_sae//4)
    sae = make_sae(SAEConfig(arch, d_in, d_sae, **own_settings(arch, dict(k=k)))).to(a.device).train()
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0)).to(a.device)/d_in**.5
    if hasattr(sae, 'init_thresholds'): sae.init_thresholds(x, k)
    cfg = TrainConfig(batch*10**6, batch=batch)
    opt, silent = make_adam(sae, cfg), torch.zeros(d_sae, dtype=torch.long, device=a.device)
    if cuda: torch.cuda.reset_peak_memory_stats()
    with matmul_precision(matmul):
        terms = train_step(sae, opt, x, 0, cfg, silent, path)
        ms, n = median_ms(lambda: train_step(sae, opt, x, 0, cfg, silent, path), a.device, a.seconds)
        product = median_ms(lambda: x @ sae.W_enc, a.device, a.seconds/4)[0]
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return dict(arch=arch, path=path, matmul=matmul, d_in=d_in, d_sae=d_sae, batch=batch, l0=float(terms['l0']), ms=ms,
        steps=n, tokens_per_s=1e3*batch/ms, encoder_product_ms=product, products=ms/product,
        product_tflops=2*batch*d_in*d_sae/product/1e9, peak_gib=peak and peak/2**30)

def steps(a, piece: str) -> dict:
    "JumpReLU by the paper's recipe and TopK; what the probe foretells of memory; where dense and sparse meet"
    from jumprelu_sae.presets import PRESETS
    from jumprelu_sae.probe import step_bytes
    from jumprelu_sae.sae import SAEConfig, make_sae
    from jumprelu_sae.sparse import calibrate
    size, rows = (TINY_SIZES if a.cpu_tiny else SIZES)[piece], []
    for arch in ('jumprelu', 'topk'):
        for path in ('dense', 'sparse'):
            for matmul in ('float32', 'tf32'):
                try: rows.append(step_row(a, arch, path, matmul, size))
                except torch.OutOfMemoryError as e:
                    rows.append(dict(arch=arch, path=path, matmul=matmul, failed=str(e)[:200]))
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
                if a.device.startswith('cuda'): torch.cuda.empty_cache()
    p = replace(
        PRESETS['gemma-2-9b'], d_sae=size[1], batch=size[2], grid=dict(jumprelu=(6e-4,), topk=(min(32, size[1]),))
    )
    foretold = {arch: step_bytes(p, arch, size[0])[1]/2**30 for arch in p.grid}
    share = calibrate(make_sae(SAEConfig('relu', *size[:2])).to(a.device), size[2], seconds=min(3., a.seconds))
    return dict(rows=rows, foretold_peak_gib=foretold, sparse_pays_below=share)

def saelens(a) -> tuple[str, str] | str: # interpreter and version; a sentence that says why there is none
    "An interpreter that can import SAELens: the one that was given, or this one"
    python = a.saelens or sys.executable
    try:
        r = subprocess.run(
            [python, '-c', 'import sae_lens; print(sae_lens.__version__)'], capture_output=True, text=True
        )
    except OSError as e:
        return f'{python} does not run ({e.strerror}): give --saelens the interpreter of an environment'
    if r.returncode:
        return f'no SAELens for {python}: give --saelens the interpreter of an environment with sae-lens=={SAELENS}'
    return python, r.stdout.split()[-1]

def worker_row(a, who: str, python: str, size: tuple) -> dict:
    "One contender of benchmarks/worker.py: two unmeasured steps, then what fits the time"
    d_in, d_sae, batch = size
    args = dict(who=who, d_in=d_in, d_sae=d_sae, batch=batch, l0=min(L0, d_sae//8), device=a.device,
        threads=torch.get_num_threads())
    words = [w for k, v in args.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
    with (
        tempfile.TemporaryFile('w+') as err,
        subprocess.Popen(
            [python, str(HERE / 'worker.py'), *words],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
        ) as p,
    ):
        def said():
            line = p.stdout.readline()
            if line: return json.loads(line)
            p.wait()
            err.seek(0)
            raise RuntimeError((err.read().strip().splitlines() or [f'status {p.returncode}'])[-1][:200])
        def step():
            print('go', file=p.stdin, flush=True)
            return said()
        try:
            facts, rows = said(), [step(), step()]
            times, end = [step()['seconds']], time.perf_counter() + a.seconds
            while time.perf_counter() < end: times.append(step()['seconds'])
            peak = step()['peak']
        except (RuntimeError, OSError) as e:
            p.kill()
            return args | dict(failed=str(e))
        p.stdin.close()
    ms = 1e3*statistics.median(times)
    return args | dict(
        l0=facts['l0'], window=facts['window'], ms=ms, steps=len(times), tokens_per_s=1e3 * batch / ms, peak_gib=peak
    )

def peers(a, piece: str) -> dict:
    "SAELens' JumpReLU step beside ours on the same weights, threshold and bandwidth; a sentence where there is none"
    found = saelens(a)
    if isinstance(found, str): return dict(skipped=found)
    python, version = found
    size, rows = (TINY_SIZES if a.cpu_tiny else SIZES)[PEERS[piece]], []
    for who in ('encoder product', 'ours, sparse', 'ours, dense', 'SAELens'):
        rows.append(worker_row(a, who, python if who == 'SAELens' else sys.executable, size))
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return dict(rows=rows, saelens=version)

def harvest(a, piece: str) -> dict:
    "The forward pass of a model of true size with random weights, up to the site and to the end"
    from jumprelu_sae.presets import PRESETS
    from jumprelu_sae.probe import probe
    p = PRESETS['tiny'] if a.cpu_tiny else PRESETS[HARVESTS[piece]]
    if not a.cpu_tiny: p = replace(p, grid=dict(topk=(32,)))
    return probe(p, a.device, random_weights=True, seconds=6*a.seconds)


# -- what does the card's preset give? ---------------------------------------------------------------------------------
CHILD = '''
import sys
from dataclasses import replace
from pathlib import Path
from jumprelu_sae.core import Settings, UserError
from jumprelu_sae.experiment import run_experiment
from jumprelu_sae.presets import PRESETS
name, device, out, path = sys.argv[1:]
p = PRESETS[name]
if name == 'tiny': p = replace(p, n_train=1024, n_val=256, n_test=512, n_lm=128, grid=dict(topk=(4,), jumprelu=(4,)))
try: run_experiment(p, Settings(device=device, path=path, progress=False, out=Path(out)), say=lambda s: print(s, flush=True))
except KeyboardInterrupt: sys.exit(130)
except UserError as e: sys.exit(f'error: {e}')
'''

def preset(a) -> dict:
    "The whole preset, as far as the minutes go; a stopped one goes on at the next call"
    out, env = (
        a.out / a.preset,
        os.environ | dict(PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])),
    )
    path = 'auto' if a.cpu_tiny else 'calibrate'
    p = subprocess.Popen([sys.executable, '-c', CHILD, a.preset, a.device, str(out), path], env=env)
    try: code = p.wait(60*a.minutes)
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGTERM)          # after the step in hand, with a checkpoint
        try: code = p.wait(45)
        except subprocess.TimeoutExpired:
            p.kill()
            code = p.wait()
    if code in (130, -signal.SIGTERM, -signal.SIGKILL): return dict(done=False)
    if code: raise SystemExit(f'the preset {a.preset} failed (status {code}); its own words are above')
    from jumprelu_sae.presets import departures_of
    d = read_json(out/'results.json')
    return dict(
        done=True,
        preset=a.preset,
        stages=d['stages'],
        settings=d['settings'],
        departures=departures_of(d['preset']),
        rows=[
            dict(name=r['name']) | {k: r['metrics'][k] for k in ('l0', 'fvu', 'delta_lm_loss', 'dead')}
            for r in d['results']
        ],
    )


PIECES = dict(check=lambda a: check(a), **{k: (lambda a, k=k: steps(a, k)) for k in SIZES},
    **{k: (lambda a, k=k: peers(a, k)) for k in PEERS}, **{k: (lambda a, k=k: harvest(a, k)) for k in HARVESTS},
    preset=preset)

def key_of(a, piece: str) -> str:
    "What a piece's numbers depend on"
    what = [piece, a.cpu_tiny, device_name(a.device), versions()['torch'], a.preset if piece == 'preset' else None]
    return fingerprint([*what, SIZES.get(PEERS.get(piece, piece))])

def state(a, piece: str) -> str:
    f = a.out/f'{piece}.json'
    if not f.exists(): return 'missing'
    try: d = read_json(f)
    except UserError: return 'missing'
    if d.get('key') != key_of(a, piece): return 'of another device or version'
    return 'done' if d.get('done', True) else 'begun'

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pieces', nargs='*', help=f"of {', '.join(PIECES)}; none: all")
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--preset', default='scope-270m', help='of the piece `preset`')
    parser.add_argument('--minutes', type=float, default=9., help='after which the preset is stopped, to go on later')
    parser.add_argument('--seconds', type=float, default=5., help='of measuring a step')
    parser.add_argument('--out', type=Path, default=HERE.parent/'results'/'gpu')
    parser.add_argument('--cpu-tiny', action='store_true', help='a rehearsal on the CPU')
    parser.add_argument('--saelens', metavar='PYTHON', help='interpreter that can import sae_lens (default: this one)')
    parser.add_argument('--list', action='store_true', help='only say what is done')
    a = parser.parse_args()
    unknown = [p for p in a.pieces if p not in PIECES]
    if unknown: parser.error(f"no such piece {', '.join(unknown)}: there are {', '.join(PIECES)}")
    if a.cpu_tiny:
        a.device, a.preset, a.seconds = 'cpu', 'tiny', .05
        if a.out == parser.get_default('out'): parser.error('--cpu-tiny wants --out: its numbers are no results')
    try: Settings(device=a.device)
    except UserError as e:
        print(f'{e}; or rehearse with --cpu-tiny --out FOLDER', file=sys.stderr)
        return 1
    a.out.mkdir(parents=True, exist_ok=True)
    for piece in a.pieces or PIECES:
        if a.list or state(a, piece) == 'done':
            print(f'{piece}: {state(a, piece)}', flush=True)
            continue
        print(f'{piece}: running', flush=True)
        began = time.perf_counter()
        found = PIECES[piece](a)
        if 'skipped' in found:
            print(f"{piece}: skipped: {found['skipped']}", flush=True)
            continue
        d = dict(
            piece=piece, key=key_of(a, piece), env=run_env(a.device), seconds=round(time.perf_counter() - began, 1)
        )
        write_json(a.out/f'{piece}.json', d | found)
        print(f'{piece}: {state(a, piece)} in {d["seconds"]} s', flush=True)
        if piece == 'check' and not found['good']:
            print(f'{piece}: the device does not compute what the CPU does, see {a.out/"check.json"}', file=sys.stderr)
            return 1
    return 0

if __name__ == '__main__': sys.exit(main())
