"""How fast do activations leave the model? Ours to disk and as a stream, and SAELens' store, against the bare forward.

    python benchmarks/harvest.py                                   # a CPU: Gemma 3 270M, layer 9, the presidential addresses: some 5 minutes on two cores
    python benchmarks/harvest.py --device cuda --model google/gemma-2-2b --random-weights --site resid.12 --corpus generated --seq-len 1024 --rows 16 --round-rows 128
    python benchmarks/harvest.py --device cuda --model google/gemma-2-9b --random-weights --site resid.20 --corpus generated --seq-len 1024 --rows 8 --round-rows 64 --d-sae 131072

The contenders take turns on the same packed rows, a round each, so that all see the same machine; medians are reported,
and the median of each round's share of that round's bare forward. The bare forward is the decoder cut off after the
site's layer, called on the ids, nothing hooked and nothing kept. SAELens runs in a virtual environment of its own (made
from PyPI, or --peer-python) on the same weights, attention, dtype, rows and buffer size. With --d-sae an SAE is trained
on the stream as well: alone, one after the other, and (after the race, by itself) overlapped. Shares of the matrix rate
are of the rate measured here, in the model's dtype. Writes results/benchmarks/harvest.json, or harvest_gpu.json."""
import argparse, contextlib, itertools, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import torch

here = Path(__file__).parent


def clock(f, device: str) -> float: # seconds
    cuda = device.startswith('cuda')
    if cuda: torch.cuda.synchronize()
    t = time.perf_counter()
    f()
    if cuda: torch.cuda.synchronize()
    return time.perf_counter() - t


# -- the peer: runs with its own Python and imports nothing of ours ----------------------------------------------------
def worker() -> None:
    "SAELens' store: deals some batches for each line it reads, and says how long that took"
    say, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints stays out of the protocol
    def answer(d): print(json.dumps(d), file=say, flush=True)
    a = json.loads(sys.stdin.readline())
    from importlib import metadata
    from datasets import Dataset
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(a['threads'])
    ids, name = load_file(a['ids'])['ids'], f"model.layers.{a['layer']}"
    model = (
        AutoModelForCausalLM.from_pretrained(
            a['folder'], dtype=getattr(torch, a['dtype']), attn_implementation=a['attention']
        )
        .to(a['device'])
        .eval()
        .requires_grad_(False)
    )
    store = ActivationsStore(
        HookedProxyLM(model, None, [name]),
        Dataset.from_dict(dict(input_ids=ids.tolist())),
        False,
        name,
        None,
        context_size=ids.shape[1],
        d_in=a['d_in'],
        n_batches_in_buffer=a['bucket'] // ids.shape[1],
        total_training_tokens=ids.numel(),
        store_batch_size_prompts=a['rows'],
        train_batch_size_tokens=a['batch'],
        prepend_bos=True,
        normalize_activations='none',
        device=torch.device(a['device']),
        dtype=a['dtype'],
        exclude_special_tokens=torch.tensor(a['special']),
    )
    norm = float(store.get_activations(ids[:4].to(a['device']))[:, 1:].float().square().sum(-1).mean())
    answer(
        dict(
            versions={k: metadata.version(k) for k in ('sae-lens', 'transformer-lens', 'transformers', 'torch')},
            norm=norm,
        )
    )
    for line in sys.stdin:
        n = int(line)
        answer(dict(seconds=clock(lambda: [store.next_batch() for _ in range(n)], a['device'])))


class Peer:
    "SAELens in a process of its own"
    def __init__(self, python: str, cfg: dict):
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(OMP_NUM_THREADS=str(cfg['threads']))
        self.p = subprocess.Popen(
            [python, __file__, '--worker'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.facts = self.ask(json.dumps(cfg))

    def ask(self, line) -> dict:
        self.p.stdin.write(f'{line}\n'); self.p.stdin.flush()
        got = self.p.stdout.readline()
        if not got: raise RuntimeError(f'SAELens died with exit code {self.p.wait()}: see its messages above')
        return json.loads(got)

    def close(self) -> None: self.p.stdin.close(); self.p.wait()


# -- ours --------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def cut_after(lm, layer: int):
    "The decoder without the layers behind the site"
    layers = lm.decoder.layers
    lm.decoder.layers = layers[:layer+1]
    try: yield
    finally: lm.decoder.layers = layers


def flops_per_token(lm, layer: int, seq_len: int) -> float:
    """Of the forward to a layer: two for each weight of its matrices, and the useful (causal) half of the attention's
    two products"""
    heads = lm.config.num_attention_heads*lm.config.head_dim
    return sum(2*sum(p.numel() for p in l.parameters() if p.ndim == 2) + 2*seq_len*heads for l in lm.layers[:layer+1])


def matrix_rate(dtype, device: str) -> float: # FLOP/s, the best of some large products
    n = 8192 if device.startswith('cuda') else 1024
    x = torch.randn(n, n, device=device).to(dtype)
    return 2*n**3 / min(clock(lambda: x @ x, device) for _ in range(6))


class Ours:
    "Our contenders: each does round i and returns its seconds"
    def __init__(self, a, lm, tokens, site, tmp: str):
        from jumprelu_sae.stream import LMStream, TableRows
        self.a, self.lm, self.tokens, self.site, self.tmp = a, lm, tokens, site, Path(tmp)
        self.batch, self.bucket = a.round_tokens//8, a.round_tokens
        self.make = lambda **kw: LMStream(
            lm, TableRows(tokens, a.rows), site, self.batch, self.bucket, store_device=a.device, **kw
        )
        self.stream = self.make()

    def part(self, i: int): return self.tokens[i*self.a.round_rows % len(self.tokens):][:self.a.round_rows]

    def bare(self, i: int) -> float:
        part = self.part(i)
        def go():
            with torch.no_grad(), cut_after(self.lm, self.site.layer):
                for j in range(0, len(part), self.a.rows):
                    self.lm.decoder(input_ids=part.ids[j : j + self.a.rows].to(self.lm.device), use_cache=False)
        return clock(go, self.a.device)

    def disk(self, i: int) -> float:
        from jumprelu_sae.harvest import harvest
        part, folder = self.part(i), self.tmp/f'{i}-{time.monotonic_ns()}'
        return clock(
            lambda: harvest(self.lm, part, self.site, folder, self.a.rows, self.a.round_rows, progress=False),
            self.a.device,
        )

    def deal(self, i: int) -> float: return clock(lambda: [next(self.stream) for _ in range(8)], self.a.device)


class Training:
    "An SAE trained on the stream: alone on one batch again and again, after each other, and overlapped"
    def __init__(self, a, ours: Ours):
        from jumprelu_sae.sae import SAEConfig, make_sae
        from jumprelu_sae.stream import fit_stream
        from jumprelu_sae.train import TrainConfig, Trainer
        scaler, rule = fit_stream(ours.stream, min(ours.bucket, 2**15))
        streams = {
            k: ours.make(scaler=scaler, rule=rule, prefetch=k == 'overlapped')
            for k in ('after each other', 'overlapped')
        }
        class Same:
            d_in, x = streams['after each other'].d_in, next(streams['after each other'])
            def __next__(self): return self.x
        sae = make_sae(SAEConfig('jumprelu', Same.d_in, a.d_sae, coef=6e-4), 0).to(a.device)
        self.trainers = {
            k: Trainer({'s': sae}, s, TrainConfig(10**6 * ours.batch, ours.batch, log_every=10**9), path='dense')
            for k, s in (streams | {'training alone': Same()}).items()
        }
        self.device, self.streams = a.device, streams

    def run(self, kind: str) -> float:
        return clock(lambda: [self.trainers[kind].one_step() for _ in range(8)], self.device)
    def close(self) -> None:
        for s in self.streams.values(): s.close()


def load(a):
    "Model, packed rows and site; the rows are enough for all rounds or begin again"
    from jumprelu_sae.lm import load_lm
    from jumprelu_sae.sites import parse_site
    from jumprelu_sae.text import load_corpus, pack
    lm = load_lm(a.model, device=a.device, dtype=a.dtype, random_weights=bool(a.random_weights))
    docs = load_corpus(a.corpus)
    if a.corpus == 'generated': docs = load_corpus('generated', n_docs=1 + a.round_rows*a.seq_len*(a.rounds+2)//1500)
    t = pack(docs, lm.tokenizer, a.seq_len)
    t = t[:min(len(t)//a.round_rows, a.rounds+2)*a.round_rows]
    return lm, t, parse_site(a.site, lm.n_layers)


def start_peer(a, lm, tokens, site, tmp: str) -> Peer|None:
    "SAELens on the same model and rows; it can read an output of a layer, so: 'resid' only"
    from jumprelu_sae.core import save_tensors
    from jumprelu_sae.lm import embedded_gemma
    from jumprelu_sae.text import special_ids
    if a.no_peer or a.random_weights or site.kind != 'resid': return None
    python = a.peer_python
    if not python:
        from train_step import python_of
        python = python_of('SAELens', a.pip_args)
    folder = embedded_gemma() if a.model == 'gemma3-270m' else Path(a.model)
    if not folder.is_dir():
        folder = Path(tmp)/'model'
        lm.model.save_pretrained(folder)
    save_tensors(Path(tmp)/'ids.safetensors', dict(ids=tokens.ids))
    return Peer(
        python,
        dict(
            folder=str(folder),
            ids=f'{tmp}/ids.safetensors',
            layer=site.layer,
            d_in=lm.d_model,
            dtype=lm.info['dtype'],
            attention=lm.info['attention'],
            device=a.device,
            threads=a.threads,
            rows=a.rows,
            batch=a.round_tokens // 8,
            bucket=a.round_rows * a.seq_len,
            special=special_ids(lm.tokenizer),
        ),
    )


def race(a, contenders: dict) -> list[dict]:
    "In turns; rows of medians, the first being the unit"
    times = {k: [] for k in contenders}
    for f in contenders.values(): f(0)
    for i in range(a.rounds):
        for k in (list(contenders), list(contenders)[::-1])[i % 2]: times[k].append(contenders[k](i+1))
        print(
            f'round {i + 1} of {a.rounds}: '
            + ', '.join(f'{k} {a.round_tokens / t[-1]:,.0f}' for k, t in times.items()),
            flush=True,
        )
    unit = next(iter(times.values()))
    return [
        dict(
            who=k,
            tokens_per_s=a.round_tokens / statistics.median(t),
            slowest=a.round_tokens / max(t),
            fastest=a.round_tokens / min(t),
            share_of_bare=statistics.median(u / v for u, v in zip(unit, t)),
            seconds=t,
        )
        for k, t in times.items()
    ]


def main(a) -> None:
    from jumprelu_sae.core import read_json, run_env, write_json
    torch.set_num_threads(a.threads)
    a.round_tokens = a.round_rows*(a.seq_len-1)//8*8
    lm, tokens, site = load(a)
    with tempfile.TemporaryDirectory(dir=a.tmp) as tmp:
        ours = Ours(a, lm, tokens, site, tmp)
        print(ours.stream.memory.said, flush=True)
        peer = start_peer(a, lm, tokens, site, tmp)
        if peer:
            from jumprelu_sae.sites import capture
            norm = float(capture(lm, tokens.ids[:4], site)[site][:, 1:].float().square().sum(-1).mean())
            assert abs(norm / peer.facts['norm'] - 1) < 0.02, (
                f"not the same activations: mean squared norm {norm} here, {peer.facts['norm']} there"
            )
        contenders = {'bare forward': ours.bare, 'harvest to disk': ours.disk, 'LMStream': ours.deal}
        if peer: contenders['SAELens ActivationsStore'] = lambda i: peer.ask(8)['seconds']
        training = Training(a, ours) if a.d_sae else None
        if training: contenders |= {k: (lambda i, k=k: training.run(k)) for k in training.trainers if k != 'overlapped'}
        rows = race(a, contenders)
        if peer: peer.close()
        if training:  # by itself: its thread works ahead, and would work in the others' turns
            rows += [
                r | dict(share_of_bare=r['tokens_per_s'] / rows[0]['tokens_per_s'])
                for r in race(a, {'overlapped': lambda i: training.run('overlapped')})
            ]
            training.close()
    flops, rate = flops_per_token(lm, site.layer, a.seq_len), matrix_rate(lm.dtype, a.device)
    for r in rows:
        if r['who'] not in ('training alone', 'SAELens ActivationsStore'):
            # a BOS is computed, too
            r['share_of_matrix_rate'] = r['tokens_per_s'] * a.seq_len / (a.seq_len - 1) * flops / rate
        print(
            f"{r['who']:26}{r['tokens_per_s']:12,.0f} tokens/s {r['share_of_bare']:7.3f} of bare "
            f"{r.get('share_of_matrix_rate', float('nan')):7.3f} of the matrix rate",
            flush=True,
        )
    keep = {
        k: getattr(a, k)
        for k in (
            'model',
            'random_weights',
            'site',
            'corpus',
            'seq_len',
            'rows',
            'round_rows',
            'round_tokens',
            'rounds',
            'threads',
            'device',
            'd_sae',
        )
    }
    command = 'python benchmarks/harvest.py ' + ' '.join(
        f'--{k.replace("_", "-")}' + ('' if v is True else f' {v}')
        for k, v in keep.items()
        if v and k != 'round_tokens'
    )
    key = f"{lm.name} {site}" + (' (random weights)' if a.random_weights or a.model.startswith('tiny-') else '')
    out = a.out or here.parent/'results'/'benchmarks'/('harvest.json' if a.device == 'cpu' else 'harvest_gpu.json')
    d = read_json(out) if out.exists() else dict(format=1, runs={})
    d['runs'][key] = dict(
        settings=keep,
        command=command,
        dtype=lm.info['dtype'],
        attention=lm.info['attention'],
        source=lm.info['source'],
        flops_per_token=flops,
        matrix_rate=rate,
        memory=ours.stream.memory.said,
        peer=peer.facts['versions'] if peer else None,
        env=run_env(a.device),
        rows=rows,
    )
    write_json(out, d)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    for name, default in (
        ('model', 'gemma3-270m'),
        ('site', 'resid.9'),
        ('corpus', 'sotu'),
        ('device', 'cpu'),
        ('dtype', 'auto'),
    ):
        p.add_argument(f'--{name}', default=default)
    p.add_argument(
        '--random-weights',
        action='store_true',
        help='the true size without the weights: for throughput and memory only',
    )
    p.add_argument('--seq-len', type=int, default=128)
    p.add_argument('--rows', type=int, default=16, help='rows a forward pass')
    p.add_argument('--round-rows', type=int, default=64, help='rows a contender reads in its turn: also the bucket')
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--d-sae', type=int, default=0, help='train a JumpReLU SAE of this width on the stream, too')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--no-peer', action='store_true')
    p.add_argument('--peer-python', help='the Python of an environment with sae-lens; default: one is made')
    p.add_argument('--pip-args', nargs='*', default=[], help='for that environment')
    p.add_argument('--tmp', type=Path, help='where the harvests to disk go; default: the system\'s folder for such')
    p.add_argument('--out', type=Path)
    args = p.parse_args()
    worker() if args.worker else main(args)
