"""What does a training step cost, ours and others'? One table from one run, in units of the encoder's product.

    python benchmarks/train_step.py                 # everything that a CPU can do: some 25 minutes on two cores
    python benchmarks/train_step.py --part step     # only the comparison with other libraries
    python benchmarks/train_step.py --part before --threads 1 --before FOLDER   # beside an earlier checkout's steps
    python benchmarks/train_step.py --device cuda   # the sizes for a GPU

Every contender is a process of its own, other libraries in virtual environments that are made here from PyPI with exact
versions. The processes take turns, one step each, so that all see the same machine; medians are reported. Writes
results/benchmarks/train_step.json."""
import argparse, json, math, os, statistics, subprocess, sys, threading, time, venv
from pathlib import Path
import torch
from jumprelu_sae.core import SyntheticStream, cache_dir, read_json, run_env, write_json
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.sparse import Screen, bags, find_support, find_topk, pair_products
from jumprelu_sae.train import TrainConfig, Trainer, make_adam, train_saes

here = Path(__file__).parent
OUT = here.parent/'results'/'benchmarks'/'train_step.json'
TORCH = 'torch==2.13.0'
PEERS = {'SAELens': 'sae-lens==6.54.12', 'dictionary_learning': 'dictionary_learning==0.1.0'}
OURS = ('encoder product', 'ours, sparse', 'ours, dense', 'ours, sparse, short recipe', 'ours, dense, short recipe')
OUR_STEPS = ('ours, sparse', 'ours, dense', 'ours, sparse, short recipe')
SIZES = dict(cpu=[(640, 16_384, 2048), (2304, 16_384, 2048)], cuda=[(2304, 65_536, 4096), (3584, 131_072, 4096)])


def python_of(who: str, pip_args: list) -> str:
    "The contender's interpreter; a peer's environment is made on the first call"
    if who not in PEERS: return sys.executable
    home = cache_dir()/'peers'/PEERS[who].replace('==', '-')
    python = home/'bin'/'python'
    if not (home/'ready').exists():
        print(f'making an environment for {PEERS[who]} (once)', flush=True)
        venv.create(home, with_pip=True, clear=True)
        pip = [python, '-m', 'pip', '--disable-pip-version-check', '-q']
        subprocess.run([*pip, 'install', *pip_args, TORCH], check=True)
        subprocess.run([*pip, 'install', *pip_args, TORCH, PEERS[who]], check=True)
        # built for another torch, where it comes along at all
        subprocess.run([*pip, 'uninstall', '-y', 'torchvision'], check=True)
        (home/'ready').touch()
    return str(python)


class Contender:
    "A worker process that does one step when asked"
    def __init__(self, who: str, args: dict, pip_args: list, package: Path = here.parent):
        self.who, self.times, self.peak = who, [], math.nan
        cmd = [python_of(who, pip_args), str(here / 'worker.py'), '--who', who] + [
            s for k, v in args.items() for s in (f"--{k.replace('_', '-')}", str(v))
        ]
        self.p = subprocess.Popen(
            cmd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | dict(OMP_NUM_THREADS=str(args['threads']), PYTHONPATH=str(package)),
        )
        self.err = []
        threading.Thread(target=lambda: self.err.extend(self.p.stderr), daemon=True).start()
        self.facts = self.read()

    def read(self) -> dict:
        line = self.p.stdout.readline()
        if not line: self.p.wait(); time.sleep(.2); raise RuntimeError(f'{self.who} died:\n' + ''.join(self.err[-20:]))
        return json.loads(line)

    def step(self, keep: bool = True) -> None:
        self.p.stdin.write('go\n'); self.p.stdin.flush()
        d = self.read()
        self.peak = d['peak']
        if keep: self.times.append(d['seconds'])

    def close(self) -> None: self.p.stdin.close(); self.p.wait()


def race(names, args: dict, rounds: int, pip_args: list, before: tuple = (None, ())) -> list[dict]:
    """All contenders on one problem, in turns, some also as an earlier checkout has them; rows of medians, the first
    the unit"""
    cs = [Contender(n, args, pip_args) for n in names]
    for n in before[1]:
        cs.append(Contender(n, args, pip_args, before[0]))
        cs[-1].who += ', before'
    for c in cs: c.step(keep=False)
    for _ in range(rounds):
        for c in cs: c.step()
    for c in cs: c.close()
    unit = statistics.median(cs[0].times)
    return [
        dict(
            who=c.who,
            d_in=args['d_in'],
            d_sae=args['d_sae'],
            batch=args['batch'],
            l0=c.facts['l0'],
            window=c.facts['window'],
            bandwidth=c.facts['bandwidth'],
            seconds=(m := statistics.median(c.times)),
            fastest=min(c.times),
            slowest=max(c.times),
            products=m / unit,
            tokens_per_s=args['batch'] / m,
            peak_gib=c.peak,
            at_start_gib=c.facts['ready'],
            rounds=rounds,
        )
        for c in cs
    ]


def show(rows: list[dict]) -> None:
    print(
        f"{'':28}{'d_in':>6}{'d_sae':>7}{'L0':>5}{'window':>7} {'ms':>8} {'products':>9} {'tokens/s':>9} {'peak GiB':>9}"
    )
    for r in rows:
        print(
            f"{r['who']:28}{r['d_in']:6}{r['d_sae']:7}{r['l0']:5.0f}{r['window']:7.0f} "
            f"{1e3 * r['seconds']:8.0f} {r['products']:9.2f} {r['tokens_per_s']:9.0f} {r['peak_gib']:9.2f}",
            flush=True,
        )


def part_step(a) -> list[dict]:
    rows = []
    for d_in, d_sae, batch in SIZES[a.device.split(':')[0]]:
        for l0 in (20, 50, 100):
            new = race(
                [*OURS, *PEERS],
                dict(
                    d_in=d_in,
                    d_sae=d_sae,
                    batch=batch,
                    l0=l0,
                    threads=a.threads,
                    device=a.device,
                    precision=a.precision,
                ),
                a.rounds if d_in < 1000 else max(3, a.rounds // 3),
                a.pip_args,
            )
            show(new); rows += new
    return rows


def part_before(a) -> list[dict]:
    "The sizes of the long runs: now, before, and by other libraries, all in turns"
    if not a.before: raise SystemExit('--part before wants --before FOLDER, a checkout of an earlier commit')
    rows = []
    for d_sae, batch, l0, rounds in (
        (2048, 128, 50, 15),
        (2048, 512, 50, 15),
        (2048, 512, 200, 9),
        (16_384, 2048, 50, 3),
    ):
        args = dict(
            d_in=640, d_sae=d_sae, batch=batch, l0=l0, threads=a.threads, device=a.device, precision=a.precision
        )
        new = race(['encoder product', *OUR_STEPS, *PEERS], args, rounds, a.pip_args, (a.before.resolve(), OUR_STEPS))
        show(new)
        rows += new
    return rows


def part_scaling(a) -> list[dict]:
    "Width at fixed L0; and at one width, more and more pairs, to see where dense and sparse meet"
    rows = []
    common = dict(threads=a.threads, device=a.device, precision=a.precision)
    for d_sae in (4096, 8192, 16_384, 32_768, 65_536):
        new = race(
            OURS[:3] if d_sae < 65_536 else OURS[:2],
            dict(d_in=640, d_sae=d_sae, batch=2048, l0=50, **common),
            a.rounds,
            a.pip_args,
        )
        show(new); rows += [r | dict(part='width') for r in new]
    for d_in, d_sae, batch in ((640, 16_384, 2048), (640, 2048, 512), (2304, 16_384, 512)):
        for share in (.02, .05, .1, .2, .4):
            new = race(
                OURS[:3],
                dict(d_in=d_in, d_sae=d_sae, batch=batch, l0=share * d_sae * 2 / 3, **common),
                max(3, a.rounds // 2),
                a.pip_args,
            )
            show(new); rows += [r | dict(part='crossing', share=(r['l0'] + r['window']/2)/d_sae) for r in new]
    return rows


def part_pieces(a) -> list[dict]:
    "Each product on the list, by torch's CSR operations and by embedding_bag, in turns"
    g = torch.Generator().manual_seed(0)
    d_in, d_sae, batch = 640, 16_384, 2048
    W = torch.randn(d_sae, d_in, generator=g); W /= W.norm(dim=1, keepdim=True)
    x, grad = (torch.randn(batch, d_in, generator=g)/math.sqrt(d_in) for _ in range(2))
    low = float((x[:64] @ W.T).flatten().topk(64*75).values[-1])
    s, v = find_support(x, W.T, torch.zeros(d_sae), torch.full((d_sae,), low))
    csr = lambda starts, ids, val, shape: torch.sparse_csr_tensor(
        starts.int(), ids.int(), val, shape, check_invariants=False
    )
    A, At = (
        csr(s.row_starts, s.latent[s.by_row], v[s.by_row], (batch, d_sae)),
        csr(s.latent_starts, s.row, v, (d_sae, batch)),
    )
    zero = csr(s.latent_starts, s.row, torch.zeros_like(v), (d_sae, batch))
    out = torch.empty(batch, d_sae)
    sae = make_sae(SAEConfig('jumprelu', d_in, d_sae))
    adam = make_adam(sae, TrainConfig(10**9, lr=1e-12))
    for p in sae.parameters(): p.grad = torch.randn_like(p)
    def norms(): sae.before_step(); sae.after_step()

    def above(): find_support(x, W.T, torch.zeros(d_sae), torch.full((d_sae,), low))

    def largest(): find_topk(x, W.T, torch.zeros(d_sae), 75)

    def unscreened(search):
        can, Screen.pays = Screen.pays, lambda x, n: 0.0
        try: search()
        finally: Screen.pays = can
    pieces = {
        ('encoder product', 'dense'): lambda: torch.mm(x, W.T, out=out),
        ('search above a line', 'in float32'): lambda: unscreened(above),
        ('search above a line', 'screened'): above,
        ('search of the largest', 'in float32'): lambda: unscreened(largest),
        ('search of the largest', 'screened'): largest,
        ('decode', 'embedding_bag'): lambda: bags(s.latent[s.by_row], W, s.row_starts, v[s.by_row]),
        ('decode', 'torch CSR'): lambda: A @ W,
        ('gradient of the latents', 'embedding_bag'): lambda: pair_products(s, W, grad),
        ('gradient of the latents', 'torch CSR'): lambda: torch.sparse.sampled_addmm(zero, W, grad.T, beta=0.0),
        ('gradient of W_dec', 'embedding_bag'): lambda: bags(s.row, grad, s.latent_starts, v),
        ('gradient of W_dec', 'torch CSR'): lambda: At @ grad,
        ('gradient of W_enc', 'embedding_bag'): lambda: bags(s.row, x, s.latent_starts, v),
        ('gradient of W_enc', 'torch CSR'): lambda: At @ x,
        ('Adam, both matrices', 'torch, fused'): adam.step,
        ('unit norms', 'ours'): norms,
    }
    times = {k: [] for k in pieces}
    torch.testing.assert_close(A @ W, bags(s.latent[s.by_row], W, s.row_starts, v[s.by_row]), rtol=1e-4, atol=1e-5)
    for i in range(a.rounds + 1):
        for k, f in pieces.items():
            t = time.perf_counter(); f()
            if i: times[k].append(time.perf_counter() - t)
    unit = statistics.median(times['encoder product', 'dense'])
    rows = [
        dict(piece=p, by=b, seconds=(m := statistics.median(t)), products=m / unit, pairs=len(s))
        for (p, b), t in times.items()
    ]
    for r in rows:
        print(f"{r['piece']:40}{r['by']:16}{1e3 * r['seconds']:8.1f} ms {r['products']:7.3f} products", flush=True)
    return rows


def part_curves(a) -> dict:
    """500 steps, dense and sparse, from one seed: the paper's loss and the short recipe, on activations with a known
    dictionary"""
    out = {}
    recipes = {
        "the paper's loss": dict(coef=0.004, bandwidth=0.02, theta_init=0.02),
        'the short recipe': dict(coef=10.0, target_l0=32.0, bandwidth=0.05, dead_coef=0.01),
    }
    for name, cfg in recipes.items():
        runs = {}
        for run in ('dense', 'sparse', 'auto', 'nudged', 'dense64', 'sparse64'):
            dtype, path = (
                torch.float64 if run.endswith('64') else torch.float32,
                'dense' if run == 'nudged' else run.removesuffix('64'),
            )
            sae = make_sae(SAEConfig('jumprelu', 256, 2048, **cfg), 0)
            if name == 'the short recipe': sae.init_thresholds(SyntheticStream(256, 1024, 24., 512).draw(4096)[0], 32.)
            if run == 'nudged':  # one part in 2**24 more: the last digit of every weight
                with torch.no_grad(): sae.W_enc.copy_(torch.nextafter(sae.W_enc, torch.tensor(2.)))
            tr = Trainer(
                {'sae': sae.to(dtype)},
                SyntheticStream(256, 1024, 24.0, 512),
                TrainConfig(
                    500 * 512,
                    512,
                    lr=1e-3,
                    threshold_lr=1e-2 if 'target_l0' in cfg else None,
                    lr_warmup=0.05,
                    sparsity_warmup=0.1,
                    lr_decay=0.2,
                    dead_after=25_000,
                    log_every=1,
                ),
                path=path,
            )
            t = time.perf_counter(); train_saes(tr, progress=False)
            runs[run] = dict(history=tr.history['sae'], seconds=time.perf_counter() - t, log=tr.paths.log['sae'])
            if run == 'sparse': last = sae
        gap = lambda a, b: max(abs(r[1] - q[1])/q[1] for r, q in zip(runs[a]['history'], runs[b]['history']))
        out[name] = dict(
            steps=500,
            loss={k: [h[1] for h in r['history']] for k, r in runs.items()},
            l0={k: [h[3] for h in runs[k]['history']] for k in ('dense', 'sparse')},
            seconds={k: r['seconds'] for k, r in runs.items()},
            switches=runs['auto']['log'],
            largest_relative_difference={
                k: gap(k, 'dense64' if k == 'sparse64' else 'dense') for k in ('sparse', 'auto', 'nudged', 'sparse64')
            },
        )
        print(
            name,
            {k: out[name][k] for k in ('seconds', 'switches', 'largest_relative_difference')},
            'final L0',
            runs['sparse']['history'][-1][3],
            flush=True,
        )
        # which latents would an optimiser have touched?
        def touched(b):
            x = SyntheticStream(256, 1024, 24., b).draw(b)[0]
            support, _ = find_support(x, last.W_enc, last.b_enc, last.support_threshold())
            return support.latent.unique().numel()/2048
        out[name]['touched'] = {b: touched(b) for b in (128, 512, 2048, 4096)}
        print('latents with a pair in a batch:', out[name]['touched'], flush=True)
    return out


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        '--part',
        nargs='*',
        choices=('step', 'scaling', 'pieces', 'curves', 'before'),
        default=None,
        help='default: all (on a GPU: step)',
    )
    p.add_argument('--rounds', type=int, default=9, help='steps of each contender that count')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--device', default='cpu')
    p.add_argument('--precision', choices=('highest', 'high'), default='highest')
    p.add_argument('--before', type=Path, default=None, help='an earlier checkout, for --part before')
    p.add_argument('--out', type=Path, default=None)
    p.add_argument('--pip-args', nargs='*', default=[], help='for the environments of the other libraries')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    out = a.out or (OUT if a.device == 'cpu' else OUT.with_name('train_step_gpu.json'))
    for part in a.part or (('pieces', 'curves', 'step', 'scaling') if a.device == 'cpu' else ('step',)):
        print(f'\n# {part}', flush=True)
        t = time.monotonic()
        rows = globals()[f'part_{part}'](a)
        d = read_json(out) if out.exists() else dict(format=1)
        d[part] = dict(
            command=f"python benchmarks/train_step.py --part {part} --rounds {a.rounds} --threads {a.threads}"
            + (' --before FOLDER' if part == 'before' else '')
            + (f' --device {a.device} --precision {a.precision}' if a.device != 'cpu' else ''),
            minutes=(time.monotonic() - t) / 60,
            rounds=a.rounds,
            threads=a.threads,
            peers=PEERS,
            processor=torch.cpu.get_capabilities().get('cpu_name', ''),
            screened=Screen.pays(torch.empty(2048, 640), 2048),  # up to which share of candidates; 0: not here
            env=run_env(),
            rows=rows,
        )
        write_json(out, d)
