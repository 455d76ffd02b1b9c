"Streams: any sizes against an oracle, kills at any place, threads, memory, a trainer that cannot tell the difference"
import json, random, threading, time
from collections import Counter
import pytest, torch
from jumprelu_sae import stream as S
from jumprelu_sae.core import ActivationStream, TensorStream, UserError
from jumprelu_sae.harvest import MassiveRule, harvest, prepare
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sites import Site, capture
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.stream import (Ahead, Buckets, LMStream, StoreStream, TableRows, fit_stream, memory, model_lock,
    permutation)
from jumprelu_sae.text import ByteTokenizer, TokenRows, generated_corpus, pack
from jumprelu_sae.train import TrainConfig, Trainer, train_saes

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products are faster on one thread than shared out over several"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

lm, site = load_lm('tiny-gemma3'), Site('resid', 2)
docs = generated_corpus(12)
tokens = pack(docs, ByteTokenizer(), 24, 23*40-9)

@pytest.fixture(scope='module')
def store(tmp_path_factory): return harvest(lm, tokens, site, tmp_path_factory.mktemp('s'), 4, 5, progress=False)

def dealt(x, batch, bucket, seed=0):
    "The oracle: everything in memory"
    out = []
    for k, part in enumerate(x.split(bucket//batch*batch)):
        out += part[permutation(len(part), seed, 'bucket', k)].split(batch)
    return [o for o in out if len(o) == batch]

class Blocks:
    "A source of 0, 1, 2, ... in blocks of seeded random lengths, some of them empty; `seen` counts what was read"
    def __init__(self, n=400, seed=0, fail=None):
        r, self.cuts = random.Random(seed), [0]
        while self.cuts[-1] < n: self.cuts.append(min(n, self.cuts[-1] + r.choice((0, 1, 3, 8, 30))))
        self.i, self.seen, self.fail = 0, 0, fail
    def __next__(self):
        if self.i+1 >= len(self.cuts): raise StopIteration
        if self.fail and self.fail(self.i): raise OSError('lost')
        x = torch.arange(*self.cuts[self.i:self.i+2])
        self.i += 1; self.seen += len(x)
        return dict(x=x), 2
    def state_dict(self): return dict(i=self.i)
    def load_state_dict(self, state): self.i = state['i']

def through_json(d): return json.loads(json.dumps(d))

@pytest.mark.parametrize('prefetch', [False, True])
@pytest.mark.parametrize('batch,bucket,seed', [(1, 1, 0), (7, 7, 1), (4, 50, 2), (10, 64, 3), (5, 1000, 4)])
def test_any_sizes(batch, bucket, seed, prefetch):
    "Nothing lost, nothing twice, in the oracle's order, whatever the blocks"
    got = [o['x'] for o in Buckets(Blocks(seed=seed), batch, bucket, seed, prefetch)]
    want = dealt(torch.arange(400), batch, bucket, seed)
    assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want))

@pytest.mark.parametrize('prefetch', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_killed_again_and_again(prefetch, seed):
    "Stopped after random numbers of batches, over and over: the same batches, and the tally of what was left out"
    r, want = random.Random(seed), [o['x'] for o in Buckets(Blocks(seed=seed), 3, 30)]
    ref = Buckets(Blocks(seed=seed), 3, 30)
    state, i = None, 0
    while i < len(want):
        s = Buckets(Blocks(seed=seed), 3, 30, prefetch=prefetch)
        if state: s.load_state_dict(state)
        for _ in range(min(r.randrange(1, 9), len(want)-i)):
            assert torch.equal(next(s)['x'], want[i]); next(ref); i += 1
        if r.random() < .5: time.sleep(.003)   # let the thread run ahead
        state = through_json(s.state_dict())
        assert state == ref.state_dict()
        s.close()

def test_resume_reads_one_bucket_at_most():
    "In the middle: the bucket and the block it began in; at the edge: nothing"
    for k, most in ((5, 30+30), (10, 0)):
        s = Buckets(Blocks(), 3, 30)
        for _ in range(k): next(s)
        t = Buckets(Blocks(), 3, 30); t.load_state_dict(s.state_dict())
        before = t.source.seen
        if most: next(t)
        assert t.source.seen - before <= most and s.state_dict()['bucket'] == (0 if most else 1)

@pytest.mark.parametrize('prefetch', [False, True])
def test_batches_are_copies(prefetch):
    "A batch stays what it was when its bucket's memory is used again"
    s = Buckets(Blocks(), 3, 30, prefetch=prefetch)
    got = list(s)
    assert all(torch.equal(a['x'], b) for a, b in zip(got, dealt(torch.arange(400), 3, 30)))

def test_two_buckets_of_memory_and_no_more():
    for prefetch, n in ((False, 1), (True, 2)):
        s, seen = Buckets(Blocks(), 3, 30, prefetch=prefetch), set()
        for _ in range(80): next(s); seen.add(s.now.data['x'].data_ptr())
        s.close()
        assert len(seen) <= n

def test_error_in_the_thread_is_raised_and_can_be_mended():
    down = [True]
    s = Buckets(Blocks(fail=lambda i: down[0] and i == 9), 3, 30, prefetch=True)
    got, raised = [], 0
    while True:
        try: got.append(next(s)['x'])
        except StopIteration: break
        except OSError:
            raised += 1
            assert raised == 1 and s.state_dict()['pos'] == 0
            down[0] = False
    assert raised == 1 and all(torch.equal(a, b) for a, b in zip(got, dealt(torch.arange(400), 3, 30), strict=True))

def test_interrupted_while_it_fills():
    "Ctrl-C in the middle of a bucket: the state is sound, and the stream goes on"
    class Stop(BaseException): pass
    s, n = Buckets(Blocks(), 3, 90), [0]
    for _ in range(30): next(s)
    real = s.source.__class__.__next__
    def cut(self):
        n[0] += 1
        if n[0] == 3: raise Stop
        return real(self)
    state = s.state_dict()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Blocks, '__next__', cut)
        with pytest.raises(Stop): next(s)
    assert s.state_dict() == state and torch.equal(next(s)['x'], dealt(torch.arange(400), 3, 90)[30])

def test_close_ends_the_thread():
    n = threading.active_count()
    s = LMStream(lm, TableRows(tokens, 2), site, 8, 64, prefetch=True)
    next(s); s.close()
    assert threading.active_count() == n and s.supply.ahead is None
    with pytest.raises(ZeroDivisionError): Ahead(lambda stop: 1/0).result()

@pytest.mark.parametrize('kind', ['resid', 'mlp', 'attn'])
@pytest.mark.parametrize('rows', [1, 7, 64])
def test_model_against_oracle(kind, rows):
    o = Site(kind, 2)
    x = capture(lm, tokens.ids, o)[o][tokens.mask]
    got = list(LMStream(lm, TableRows(tokens, rows, repeat=False), str(o), 16, 200, seed=5))
    want = dealt(x, 16, 200, 5)
    assert len(got) == len(want) and max((a-b).abs().max() for a, b in zip(got, want)) < 1e-5
    assert got[0].dtype == torch.float32

def test_no_special_token_arrives():
    "The activation of each BOS, padding and `<bos>` in a text is absent; the last row is padded"
    x = capture(lm, tokens.ids, site)[site]
    got = torch.cat(list(LMStream(lm, TableRows(tokens, 40, repeat=False), site, 1, 200)))
    assert len(got) == tokens.n_tokens and (~tokens.mask).sum() > 40
    assert torch.cdist(got, x[~tokens.mask]).min() > 1e-2

def test_streams_share_a_model():
    "Four streams with threads on one model: hooks do not meet"
    make = lambda k, p: LMStream(lm, TableRows(tokens, 3), f'{k}.2', 8, 32, prefetch=p)
    kinds = ('resid', 'mlp', 'attn', 'resid')
    want = {k: [next(s) for s in [make(k, False)] for _ in range(40)] for k in set(kinds)}
    streams = [make(k, True) for k in kinds]
    for i in range(40):
        for k, s in zip(kinds, streams): assert torch.equal(next(s), want[k][i])
    for s in streams: s.close()
    assert model_lock(lm) is model_lock(lm)

def counted(batches): return Counter(map(tuple, torch.cat(batches).tolist()))

@pytest.mark.parametrize('seed', range(3))
def test_a_bucket_as_large_as_the_store_is_a_full_shuffle(store, seed):
    "Each epoch deals each activation once, but for what makes no batch, in an order of its own"
    s, have = StoreStream(store, 16, 10**6, seed), counted([store.load()['x']])
    epochs = [[next(s) for _ in range(store.n//16)] for _ in range(3)]
    for e in epochs: assert not counted(e) - have and sum((have - counted(e)).values()) == store.n % 16
    assert len({tuple(torch.cat(e)[:, 0].tolist()) for e in epochs}) == 3

@pytest.mark.parametrize('batch,bucket', [(1, 7), (1, 10**6), (16, 64), (5, 50)])
def test_small_buckets_lose_nothing_but_the_last_batch(store, batch, bucket):
    s, have = StoreStream(store, batch, bucket), counted([store.load()['x']])
    got = [next(s) for _ in range(store.n//batch)]
    assert not counted(got) - have and sum((have - counted(got)).values()) == store.n % batch

def test_store_seeds_and_order(store):
    a, b, c = (next(StoreStream(store, 64, 64, seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert {StoreStream(store, 16, 64, s).source.store.n for s in range(2)} == {tokens.n_tokens}

def test_store_is_read_shard_by_shard(store, monkeypatch):
    "One shard at a time, checked against its SHA-256 the first time only"
    calls, real = [], S.load_tensors
    monkeypatch.setattr(S, 'load_tensors', lambda p, sha=None: (calls.append((p.name, sha)), real(p, sha))[1])
    s = StoreStream(store, 16, 32)
    next(s)
    assert len(calls) == 1   # a bucket of 32 needs one shard of 115
    for _ in range(200): next(s)
    names = [n for n, _ in calls]
    k = len(store.manifest['shards'])
    orders = [tuple(names[i*k:i*k+k]) for i in range(3)]
    # each shard once an epoch, in an order of its own
    assert all(len(set(o)) == k for o in orders) and len(set(orders)) == 3
    assert len(set(names)) == len(store.manifest['shards'])
    assert all((sha is None) == (n in names[:i]) for i, (n, sha) in enumerate(calls))

def test_another_store_is_refused(store, tmp_path):
    other = harvest(lm, tokens[:20], site, tmp_path, 4, 5, progress=False)
    with pytest.raises(UserError, match='store: '):
        StoreStream(other, 16, 64).load_state_dict(StoreStream(store, 16, 64).state_dict())

def trained(stream, folder=None, stop_at=None, n=40):
    sae = make_sae(SAEConfig('jumprelu', 32, 64, coef=1e-3, bandwidth=.05, theta_init=.05), 0)
    tr = Trainer({'s': sae}, stream, TrainConfig(n*16, 16, lr=1e-3, lr_warmup=.1, sparsity_warmup=.1))
    def after(t):
        if t.step == stop_at: t.stop = True
    try: train_saes(tr, folder, progress=False, after_step=after)
    except KeyboardInterrupt: pass
    return tr

@pytest.mark.parametrize('kind', ['model', 'prefetch', 'documents', 'store'])
def test_trainer_is_killed_and_resumed(kind, store, tmp_path):
    "Training from a stream, killed twice, ends in the same weights to the last bit"
    scaler, rule = prepare(store.load()['x'])
    def make():
        kw = dict(batch=16, bucket=64, scaler=scaler, rule=rule)
        if kind == 'store': return StoreStream(store, prefetch=True, **kw)
        rows = TokenRows(docs, ByteTokenizer(), 24, rows=4) if kind == 'documents' else TableRows(tokens, 3)
        return LMStream(lm, rows, site, prefetch=kind == 'prefetch', **kw)
    assert isinstance(make(), ActivationStream)
    want = trained(make())
    for stop in (7, 24, None): last = trained(make(), tmp_path, stop)
    assert last.step == want.step == 40
    for k, v in want.saes['s'].state_dict().items(): assert torch.equal(v, last.saes['s'].state_dict()[k])
    for t in (want, last): t.stream.close()

def test_training_cannot_tell(store):
    "A full shuffle from the store and activations in memory train SAEs of about the same loss"
    x = store.load()['x']; scaler, _ = prepare(x)
    a, b = trained(StoreStream(store, 16, 10**6, scaler=scaler), n=300), trained(TensorStream(x, 16, 0, scaler), n=300)
    a, b = (sum(r[1] for r in t.history['s'][-10:])/10 for t in (a, b))
    assert abs(a-b) < .1*b

def test_fit_leaves_the_stream_alone(store):
    for make in (lambda: LMStream(lm, TableRows(tokens, 3), site, 16, 64, prefetch=True),
            lambda: StoreStream(store, 16, 64, prefetch=True)):
        want = [next(s) for s in [make()] for _ in range(12)]
        s = make()
        for k in range(12):
            scaler, rule = fit_stream(s, 90)
            assert torch.equal(next(s), want[k]) and rule.median > 0
        s.close()

def test_rule_comes_off_for_the_fit_and_on_again():
    rule = MassiveRule(1.05, prepare(capture(lm, tokens.ids, site)[site][tokens.mask])[1].median)
    s = LMStream(lm, TableRows(tokens, 40), site, 16, 64, rule=rule)
    fitted = fit_stream(s, 500)[1].median
    assert fitted == fit_stream(LMStream(lm, TableRows(tokens, 40), site, 16, 64), 500)[1].median
    for _ in range(20): assert not rule(next(s)).any()
    assert s.left_out > 0

def test_memory_is_what_is_held():
    for prefetch in (False, True):
        s = LMStream(lm, TableRows(tokens, 3), [site, 'attn.1'], 16, 64, prefetch=prefetch)
        for _ in range(9): next(s)
        if s.supply.ahead: s.supply.ahead.thread.join()
        held = [s.now.data] + ([s.supply.ahead.value.data] if s.supply.ahead else []) + s.supply.free
        assert sum(v.numel()*v.element_size() for d in held for v in d.values()) + (1+prefetch)*64*8 == s.memory.bucket
        s.close()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    "With a CUDA stream of its own and buckets on either side: the batches of no prefetch, and a resume"
    m = load_lm('tiny-gemma3', device='cuda', dtype='bfloat16')
    make = lambda prefetch, where: LMStream(m, TableRows(tokens, 3), [site, 'attn.1'], 16, 64, prefetch=prefetch,
        store_device=where)
    want = [next(s) for s in [make(False, 'cuda')] for _ in range(40)]
    for where in ('cuda', None):
        s = make(True, where)
        for i in range(40):
            b = next(s)
            assert all(torch.equal(b[k].cpu(), want[i][k].cpu())
                and b[k].device.type == (where or 'cpu') for k in want[i])
            if i == 17: s.load_state_dict(through_json(s.state_dict()))
        s.close()

def test_forward_pass_is_not_underestimated():
    "What a pass allocates at its peak, against the estimate, for long rows and for many"
    from torch.utils._python_dispatch import TorchDispatchMode
    import weakref
    class Peak(TorchDispatchMode):
        live, peak, known = 0, 0, None
        def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
            out = fn(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.known: self.add(t)
            return out
        def add(self, t):
            s = t.untyped_storage(); key, n = s._cdata, s.nbytes()
            self.known.add(key); self.live += n; self.peak = max(self.peak, self.live)
            def gone(): self.known.discard(key); self.live -= n
            weakref.finalize(s, gone)
    for name in ('tiny-gemma2', 'tiny-gemma3', 'tiny-llama'):
        m = load_lm(name)
        for rows, seq in ((64, 8), (2, 256)):
            ids = torch.randint(3, 200, (rows, seq))
            with Peak() as p:
                p.known = set()
                capture(m, ids, 'resid.3')
            assert .3 < p.peak/memory(m, 'resid.3', 64, rows, seq).block <= 1, (name, rows, seq)

@pytest.mark.parametrize('call,match', [
    (lambda: LMStream(lm, TableRows(tokens), 'resid.9', 8, 64), 'layers 0 to 3'),
    (lambda: LMStream(lm, TableRows(tokens), site, 65, 64), 'does not fit a bucket of 64'),
    (lambda: LMStream(lm, TableRows(tokens), site, 0, 64), 'does not fit'),
    (lambda: LMStream(lm, TableRows(tokens), site, 8, 10**12), 'lower bucket='),
    (lambda: TableRows(tokens, 0), 'at least 1 row'),
    (lambda: TableRows(tokens[:0]), 'no token'),
    (lambda: fit_stream(LMStream(lm, TableRows(tokens, repeat=False), site, 8, 64), 10**6), 'lower n='),
])
def test_bad_input_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as e: call()
    assert '\n' not in str(e.value)
