"""Without a card: tensors that say they live on one, so that what a CUDA device would refuse is refused here.

`Card` is a dispatch mode in which the device `meta` stands for a card. Its tensors have values, so that data-dependent
paths (supports, selections, dead latents) run, backwards too; an operation that mixes them with the CPU's raises, as
CUDA does. (torch's own fake CUDA tensors have no backward pass in a build without CUDA, and no values.)"""
import importlib.util, inspect, json, os, subprocess, sys, types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from jumprelu_sae.core import Scaler, TensorStream
from jumprelu_sae.distributed import DistTrainer, Ranks, SplitStream, train_together
from jumprelu_sae.evaluate import LMEval, ablation, evaluate_activations
from jumprelu_sae.harvest import prepare
from jumprelu_sae.lm import load_lm
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.probe import LiveBytes, step_bytes
from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, load_sae, make_sae, own_settings
from jumprelu_sae.sparse import has_sparse_step, sparse_loss
from jumprelu_sae.stream import Buckets, LMStream, TableRows, fit_stream
from jumprelu_sae.text import load_corpus, pack
from jumprelu_sae.train import TrainConfig, Trainer, adam_state, make_adam, train_saes, train_step

aten, CARD = torch.ops.aten, torch.device('meta')
TRANSFERS = {aten.copy_, aten._to_copy}         # these may see both sides
CPU_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten.index_copy}
NOT_EVEN_SCALARS = {aten._fused_adam_, aten.index_select, aten.embedding_bag, aten._embedding_bag, aten.stack, aten.cat}
REDUCES = {aten.sum, aten.mean, aten.index_add, aten.index_add_, aten.linalg_vector_norm, aten.norm, aten.cumsum}
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal}


class OnCard(torch.Tensor):
    "A tensor that says it is on the card; `held` has its values"
    @staticmethod
    def __new__(cls, values):
        t = torch.Tensor._make_wrapper_subclass(cls, values.size(), strides=values.stride(),
            storage_offset=values.storage_offset(), dtype=values.dtype, device=CARD)
        t.held = values
        return t

    def __repr__(self): return f'OnCard({self.held!r})'
    def tolist(self):
        counts['waits'] += 1
        return self.detach().held.tolist()
    def new_tensor(self, values, dtype=None): return torch.tensor(values, dtype=dtype or self.dtype).to(CARD)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


class Mixed(RuntimeError): "Tensors of two devices, or a half precision where sums must not be one, in an operation"


counts, strict = Counter(), dict(half_sums=False)

def check(func, args, kwargs, on_card):
    "What CUDA would refuse"
    op, flat = func.overloadpacket, [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    g = kwargs.get('generator')
    if g is not None and g.device.type == 'cpu' and on_card: raise Mixed(f'{func}: a generator of the CPU')
    cpu = [t for t in flat if not isinstance(t, OnCard)]
    if not cpu or len(cpu) == len(flat) or op in TRANSFERS: return
    if op in CPU_INDEX and isinstance(args[0], OnCard):
        at = [id(t) for t in args[1] if t is not None]
        cpu = [t for t in cpu if id(t) not in at]
    if any(t.dim() or op in NOT_EVEN_SCALARS for t in cpu):
        raise Mixed(f'{func}: {[(tuple(t.shape), t.dtype) for t in cpu]} on the CPU, the rest on the card')


def run(func, args, kwargs):
    flat = tree_flatten((args, kwargs))[0]
    device = kwargs.get('device')
    on_card = any(isinstance(t, OnCard) for t in flat) if device is None else torch.device(device).type == CARD.type
    check(func, args, kwargs, on_card)
    op = func.overloadpacket
    if any(isinstance(t, OnCard) for t in flat):
        counts[op.__name__] += 1
        if op in WAITS: counts['waits'] += 1
        if op is aten.index and any(t is not None and t.dtype == torch.bool for t in args[1]): counts['waits'] += 1
    known = {id(t.held): t for t in flat if isinstance(t, OnCard)}
    real = tree_map(lambda t: t.held if isinstance(t, OnCard) else t, (args, kwargs))
    if device is not None: real[1]['device'] = torch.device('cpu')
    out = func(*real[0], **real[1])
    if strict['half_sums'] and op in REDUCES and on_card:
        for t in tree_flatten(out)[0]:
            if t.dtype in (torch.bfloat16, torch.float16): raise Mixed(f'{func}: a sum in {t.dtype}')
    def wrap(t):
        if not isinstance(t, torch.Tensor) or not on_card: return t
        return known[id(t)] if id(t) in known else OnCard(t)
    return tree_map(wrap, out)


class Card(TorchDispatchMode):
    "In the block, `meta` is a card; `half_sums=False` also refuses sums in half precision there"
    def __init__(self, half_sums=True):
        super().__init__()
        self.half_sums = half_sums

    def __enter__(self):
        counts.clear()
        strict['half_sums'] = not self.half_sums
        self.tensor = torch.tensor
        torch.tensor = self.made
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self.tensor
        return super().__exit__(*error)

    def made(self, values, *args, device=None, **kwargs):
        "`torch.tensor` makes its tensor where no mode sees it; on `meta` the values would be gone"
        t = self.tensor(values, *args, **kwargs)
        return t if device is None else t.to(device)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


def back(t): return t.detach().held.clone() if isinstance(t, OnCard) else t.detach().clone()

def near(a, b, tol=2e-5):
    a, b = back(a).double(), back(b).double()
    assert a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol), (a - b).abs().max()


AUX = dict(aux_coef=1/32, k_aux=5)
CASES = dict(relu=dict(), gated=dict(), free=dict(arch='gated', free_rows=True), topk=AUX, batchtopk=AUX,
    jumprelu=AUX | dict(dead_coef=.02), aimed=dict(arch='jumprelu', target_l0=4., pre_bias=True) | AUX,
    started=dict(arch='jumprelu', target_l0=4., start='topk') | AUX, begun=dict(arch='jumprelu', target_l0=4.,
    start='batchtopk') | AUX, kde=dict(arch='jumprelu', target_l0=4., estimator='kde', log_threshold=False),
    smooth=dict(arch='jumprelu', kernel='gaussian'), tanh=dict(arch='jumprelu', penalty='tanh', per_example=True))
CFG = TrainConfig(64*12, batch=64, lr=5e-3, lr_warmup=.1, sparsity_warmup=.2, start=.5, dead_after=128, log_every=3)
D, M = 16, 48

def make(name, dtype=torch.float32):
    own = dict(k=4, coef=.1, bandwidth=.1, theta_init=.1) | CASES[name]
    arch = own.pop('arch', name)
    s = make_sae(SAEConfig(arch, D, M, **own_settings(arch, own)), 1)
    s.b_enc.data[:6] = -3.       # never fire: dead soon
    return s.to(dtype)

def data(n=512, seed=0, dtype=torch.float32):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).div(D**.5).to(dtype)

def use(sae, x): return sae.decode(sae.encode(x)), sae.encode(x[0]), sae(x[:4])

def steps(name, device, path, beta1=.9):
    "A few steps, the last ones with dead latents; the terms and the weights"
    sae, cfg = make(name).to(device).train(), TrainConfig(**(vars(CFG) | dict(beta1=beta1)))
    opt, silent, x = make_adam(sae, cfg), torch.zeros(M, dtype=torch.long, device=device), data()
    for step in range(5):
        t = train_step(sae, opt, x[64*step:64*step+64].to(device), step, cfg, silent, path)
    assert all(v.device == p.device for p, s in opt.state.items() for v in s.values())
    assert all(s['step'].dtype == torch.float32 and ('exp_avg' in s) == bool(beta1) for s in opt.state.values())
    return {k: back(v) for k, v in (t | sae.state_dict()).items() if isinstance(v, torch.Tensor)}, back(silent)

def trained(device, path='auto', folder=None, halt=None, names=('topk', 'batchtopk', 'jumprelu', 'started', 'gated')):
    "A Trainer to its end, or to the checkpoint at step `halt`"
    saes = {n: make(n).to(device) for n in names}
    tr = Trainer(saes, TensorStream(data(), 64, scaler=Scaler.fit(data())), CFG, path=path)
    def after(t): t.stop = t.step == halt
    try: train_saes(tr, folder, 1e9, progress=False, after_step=after)
    except KeyboardInterrupt: assert halt
    return tr

def resumed(device, folder):
    tr = trained(device, folder=folder, halt=5)
    new = trained(device, folder=folder)
    for n, opt in new.opts.items():
        for p, s in opt.state.items():
            assert all(v.device == p.device for v in s.values()) and s['step'].dtype == torch.float32
    return tr, new

def judged(device, dtype=torch.bfloat16, where='cpu'):
    "Scale, rule, the scaled stream and the metrics of raw activations in a half precision, by an SAE in float32"
    x = (data(600, 3)*7 + 2).to(dtype).to(where)
    x[5] *= 40
    scaler, rule = prepare(x, 20.)
    prepare(x, None, centre=False)
    sae = make('jumprelu').to(device)
    near(scaler.inverse(scaler(x)), x.float(), 1e-2)
    here = Scaler(back(scaler.mean), scaler.scale)       # as a harvest kept it; it meets activations on either side
    near(here.inverse(here(x)), x.float(), 1e-2)
    done = sae.finish(scaler)
    doc = torch.arange(len(x))//100
    m, arrays = evaluate_activations(done, x, doc, rule, 256, mean=scaler.mean)
    half = rule(x).float().mean()
    return m, arrays, [scaler.scale, rule.median, float(half), [v.item() for v in back(scaler.mean)]]


def test_the_card_refuses():
    with Card():
        a = torch.zeros(3, 4, device=CARD, requires_grad=True)
        (a @ torch.ones(4, 2).to(CARD)).sum().backward()
        assert isinstance(a.grad, OnCard) and isinstance(a.cpu(), torch.Tensor) and not isinstance(a.cpu(), OnCard)
        for wrong in (lambda: a @ torch.ones(4, 2), lambda: a + torch.ones(4), lambda: torch.cat([a, torch.ones(1, 4)]),
                lambda: a.index_select(0, torch.tensor([0])), lambda: torch.where(torch.ones(3, 4) > 0, a, 0.),
                lambda: torch.randn(3, device=CARD, generator=torch.Generator()),
                lambda: torch.ones(3).index_add_(0, torch.zeros(3, dtype=torch.long, device=CARD), torch.ones(3))):
            with pytest.raises(Mixed): wrong()
        assert float((a.detach() + torch.tensor(1.)).sum()) == 12 and counts['waits'] == 1
        assert a.detach()[torch.tensor([0, 1])].shape == (2, 4)       # an index may be the CPU's
    with Card(half_sums=False), pytest.raises(Mixed): torch.ones(3, dtype=torch.bfloat16, device=CARD).sum()

@pytest.mark.parametrize('name', CASES)
def test_use(name):
    "Encode and decode on the card what comes from the CPU or the card, in any float type"
    with Card():
        there, here = make(name).to(CARD).eval(), make(name).eval()
        assert all(isinstance(t, OnCard) for t in there.state_dict().values())
        for x in (data(8), data(8, dtype=torch.bfloat16).to(CARD)):
            for a, b in zip(use(there, x), use(here, back(x))): near(a, b)

@pytest.mark.parametrize('path', ['dense', 'sparse'])
@pytest.mark.parametrize('name', CASES)
def test_step(name, path):
    "A step on the card is the CPU's, with dead latents, with and without momentum"
    if path == 'sparse' and not has_sparse_step(make(name)): pytest.skip('no sparse step')
    beta1 = 0. if path == 'sparse' else .9
    want, silent = steps(name, 'cpu', path, beta1)
    with Card(): got, s = steps(name, CARD, path, beta1)
    assert want.keys() == got.keys() and torch.equal(s, silent) and int(silent.max()) >= CFG.dead_after
    for k in want: near(got[k], want[k])

@pytest.mark.parametrize('path', ['auto', 'dense', 'sparse'])
def test_trainer(path):
    want = trained('cpu', path)
    with Card(): got = trained(CARD, path)
    for k, v in want.tensors().items(): near(got.tensors()[k], v)
    assert {n: [r[4] for r in h] for n, h in want.history.items()} == {
        n: [r[4] for r in h] for n, h in got.history.items()
    }

def test_resume_places_the_optimiser(tmp_path):
    "A checkpoint of the card goes back onto it, step counters in float32; and one of the card goes on on the CPU"
    with Card():
        _, new = resumed(CARD, tmp_path/'a')
        alone = trained(CARD)
        for k, v in alone.tensors().items(): assert torch.equal(back(new.tensors()[k]), back(v)), k
        trained(CARD, folder=tmp_path/'b', halt=5)
    here = trained('cpu', folder=tmp_path/'b')
    for k, v in alone.tensors().items(): near(here.tensors()[k], v)
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with Card():
        s = adam_state(dict(step=torch.tensor(3.), exp_avg_sq=torch.ones(3)), p.to(CARD))
        assert all(isinstance(v, OnCard) for v in s.values()) and [v.dtype for v in s.values()] == [
            torch.float32,
            p.dtype,
        ]

@pytest.mark.parametrize('where', ['cpu', 'card'])
def test_judged(where):
    "No sum of half-precision activations is made in half precision, and the numbers are the CPU's"
    want = judged('cpu')
    with Card(half_sums=False): got = judged(CARD, where=CARD if where == 'card' else 'cpu')
    for a, b in zip(want[:2], got[:2]):
        assert a.keys() == b.keys()
        for k in a: near(torch.tensor(a[k]), torch.tensor(b[k]), 1e-4)
    near(torch.tensor(want[2][:3]), torch.tensor(got[2][:3]))
    near(torch.tensor(want[2][3]), torch.tensor(got[2][3]))

def test_half_precision_sae():
    "An SAE in bfloat16: thresholds, L0 and what the sparse step counts stay in float32"
    for name in ('jumprelu', 'aimed', 'batchtopk', 'topk', 'relu'):
        with Card():
            s = make(name, torch.bfloat16).to(CARD).train()
            x = data(512).to(CARD).bfloat16()
            for loss in (s.loss, lambda x: sparse_loss(s, x)):
                t = loss(x)
                t['loss'].backward()
                assert t['l0'].dtype == torch.float32 and t['fired'].dtype == torch.bool
            for p in s.float32_always: assert getattr(s, p).dtype == torch.float32
            assert all(isinstance(p.grad, OnCard) for p in s.parameters() if p.grad is not None)

@pytest.mark.parametrize('name', ['relu', 'free', 'topk', 'batchtopk', 'jumprelu', 'started'])
def test_finish_save_load_go_on(name, tmp_path):
    with Card():
        tr = trained(CARD, names=[name])
        done = tr.saes[name].finish(Scaler.fit(data()), dict(model_name='x'))
        done.save(tmp_path)
        again = load_sae(tmp_path, str(CARD))
        for a, b, c in zip(use(done, data(8)), use(again, data(8).to(CARD)), use(load_sae(tmp_path), data(8))):
            near(a, b), near(a, c)
        if done.unit_norm or not hasattr(done, 'b_mag'): assert again.scaled(Scaler.fit(data())).training

class Source:
    "Blocks of activations, as they leave a model on the card or a file"
    def __init__(self, device): self.device, self.rules, self.i = device, {}, 0
    def __next__(self):
        self.i += 1
        return dict(x=data(100, self.i, torch.bfloat16).to(self.device)), 0
    def state_dict(self): return dict(i=self.i)
    def load_state_dict(self, s): self.i = s['i']

@pytest.mark.parametrize('made, kept', [('cpu', CARD), (CARD, CARD), (CARD, 'cpu')])
def test_stream(made, kept):
    "Buckets on the card or beside it, filled from either side"
    want = Buckets(Source('cpu'), 64, 256)
    with Card():
        got = Buckets(Source(made), 64, 256, device=kept)
        for i in range(9):
            if i == 5:
                state = got.state_dict()
                got = Buckets(Source(made), 64, 256, device=kept)
                got.load_state_dict(state)
            a, b = next(want)['x'], next(got)['x']
            assert isinstance(b, OnCard) == (kept == CARD) and torch.equal(back(b), a)


def text(lm, n=600): return pack(load_corpus('generated', n_docs=60), lm.tokenizer, 32, n)

def lm_on(device, dtype='float32'):
    "A tiny Gemma 2, soft-caps and windows included"
    lm = load_lm('tiny-gemma2', dtype=dtype)
    lm.model.to(device)
    return lm

def spliced(device, where, dtype='float32'):
    "The model's loss with an SAE in it, each on its own device, massive tokens left alone"
    lm = lm_on(device, dtype)
    s = make_sae(SAEConfig('jumprelu', 32, 64, theta_init=.02, bandwidth=.1), 1)
    s = s.to(where).finish(Scaler(torch.linspace(-.1, .1, 32), 3.))
    tokens = text(lm)
    here = LMEval(lm, tokens, 'resid.2', 400)
    rule = prepare(here.half.hidden[here.tokens.mask], 1.3)[1]
    m, arrays = here.delta(s, rule, with_massive=True, full=True, mean=torch.full((32,), .1))
    return m | dict(ablated=here.mean_of(ablation(here, torch.zeros(32)))), arrays

def dealt(device, kept, dtype='float32', sites=('resid.1', 'mlp.2')):
    "Batches of several sites straight from a model, stopped and gone on with; scales fitted where the model is"
    lm = lm_on(device, dtype)
    tokens = text(lm)
    def stream(**kw): return LMStream(lm, TableRows(tokens, 4), list(sites), 64, 256, 0, store_device=kept, **kw)
    scalers, rules = fit_stream(stream(), 400, 1.5)
    s, out = stream(scaler=scalers, rule=rules), []
    for i in range(9):
        if i == 5:
            state = s.state_dict()
            s = stream(scaler=scalers, rule=rules)
            s.load_state_dict(state)
        out += list(next(s).values())
    return out, s.left_out

class Twins(Ranks):
    "The first of two processes, of which the other has the very same examples; a card's messages are a card's tensors"
    def __init__(self, device): self.rank, self.world, self.device, self.bytes = 0, 2, torch.device(device), Counter()
    def sent(self, t):
        if isinstance(t, OnCard) != (self.device == CARD):
            raise Mixed(f'a message of {tuple(t.shape)} not on {self.device}')
        return t
    def all_reduce(self, t, op): self.sent(t).mul_(2) if op == 'sum' else self.sent(t)
    def broadcast(self, t): self.sent(t)
    def gather(self, obj): return [obj, obj]
    def close(self): pass

TOGETHER = ('topk', 'batchtopk', 'jumprelu', 'started', 'begun', 'gated')

def together(device, path, folder=None, halt=None):
    "A DistTrainer to its end, or to the checkpoint at step `halt`"
    ranks = Twins(device)
    saes = {n: make(n) for n in TOGETHER}
    if path == 'sparse': saes = {n: s for n, s in saes.items() if has_sparse_step(s)}
    stream = SplitStream(TensorStream(data(), 64, scaler=Scaler.fit(data())), ranks)
    tr = DistTrainer(saes, stream, CFG, ranks, path=path)
    def after(t): t.stop = t.step == halt
    try: train_together(tr, folder, 1e9, progress=False, after_step=after)
    except KeyboardInterrupt: assert halt
    assert {'gradients', 'terms', 'flags', 'start'} < set(ranks.bytes)
    return tr

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('where', [CARD, 'cpu'])
def test_language_model_loss_with_the_sae_in_place(where, dtype):
    "Model on the card, SAE there or beside it"
    want = spliced('cpu', 'cpu', dtype)
    assert want[0]['lm_massive'] > 0 and want[0]['delta_lm_loss'] != 0 and want[0]['lm_predictions'] >= 400
    with Card(): got = spliced(CARD, where, dtype)
    for a, b in zip(want, got):
        assert a.keys() == b.keys()
        for k in a:
            assert (a[k] is None) == (b[k] is None), k
            if a[k] is not None: near(torch.as_tensor(a[k]), torch.as_tensor(b[k]), 1e-4)

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kept', ['cpu', CARD])
def test_batches_from_a_model(kept, dtype):
    want, left = dealt('cpu', 'cpu', dtype)
    assert left > 0
    with Card(): got, n = dealt(CARD, str(kept), dtype)
    assert n == left and all(isinstance(b, OnCard) == (kept == CARD) for b in got)
    for a, b in zip(want, got): near(a, b, 1e-4)

@pytest.mark.parametrize('path', ['auto', 'sparse'])
def test_joint_steps(path, tmp_path):
    "Steps of several processes on cards: every message is on the card, and the numbers are the CPU's, resumed too"
    want = together('cpu', path)
    with Card():
        got = together(CARD, path)
        if path == 'auto':
            together(CARD, path, tmp_path, 5)
            again = together(CARD, path, tmp_path)
            for k, v in got.tensors().items(): assert torch.equal(back(v), back(again.tensors()[k])), k
    for k, v in want.tensors().items(): near(got.tensors()[k], v)
    assert want.paths.log == got.paths.log or path == 'auto'


def test_waits_do_not_grow_with_the_width():
    "The card is waited for a few times a step, and not once a block of latents"
    waits = {}
    for m in (64, 640):
        for arch in ('topk', 'jumprelu'):
            with Card():
                s = make_sae(SAEConfig(arch, D, m, **own_settings(arch, dict(k=4, bandwidth=0.1, theta_init=0.3)))).to(
                    CARD
                )
                opt, x = make_adam(s.train(), CFG), data(64).to(CARD)
                counts.clear()
                train_step(s, opt, x, 0, CFG, torch.zeros(m, dtype=torch.long, device=CARD), 'sparse')
                waits[arch, m] = counts['waits']
    assert waits['topk', 64] == waits['topk', 640] <= 12 and waits['jumprelu', 64] == waits['jumprelu', 640] <= 12, (
        waits
    )

def measured_peak(name, d_in, d_sae, batch, beta1, path='dense', block=None):
    "Bytes of a real step at its peak, everything that an SAE keeps included"
    cfg = TrainConfig(batch*100, batch=batch, beta1=beta1, lr_warmup=.1, sparsity_warmup=.1)
    with LiveBytes() as live:
        s = make_sae(
            SAEConfig(name, d_in, d_sae, **own_settings(name, dict(k=8, theta_init=0.35, bandwidth=0.01)))
        ).train()
        opt, silent, x = make_adam(s, cfg), torch.zeros(d_sae, dtype=torch.long), torch.randn(batch, d_in)/d_in**.5
        for i in range(2):
            live.peak = live.now
            train_step(s, opt, x, i, cfg, silent, path)
    return live.peak

@pytest.mark.parametrize('name', ['relu', 'gated', 'topk', 'jumprelu'])
def test_memory_foretold(name):
    "What `step_bytes` finds on tensors without memory is what a real step holds; the sparse one holds less"
    own = dict(jumprelu=dict(coef=6e-4), topk=dict(k=8)).get(name, dict(coef=6e-4))
    setting = next(iter(own))
    for beta1 in (0., .9):
        p = replace(
            PRESETS['tiny'],
            d_sae=1024,
            batch=256,
            n_train=25_600,
            grid={name: (own[setting],)},
            recipe='paper',
            schedule=dict(beta1=beta1, lr_warmup=0.1, sparsity_warmup=0.1),
        )
        kept, peak = step_bytes(p, name, 64)
        real = measured_peak(name, 64, 1024, 256, beta1)
        assert abs(real - peak) < .1*peak, (real/peak, name)
        s = make_sae(SAEConfig(name, 64, 1024, **own_settings(name, own)))
        n = 4*sum(q.numel() for q in s.parameters())
        assert kept == (3 + bool(beta1))*n      # weights, gradients, mean squares; a mean only where there is momentum
    if name in ('topk', 'jumprelu'): assert measured_peak(name, 64, 1024, 256, 0., 'sparse') < peak

def test_memory_of_the_largest():
    """At (3,584, 131,072), batch 4,096: three numbers a weight are kept without momentum, and a step fits beside Gemma
    2 9B"""
    kept, peak = step_bytes(PRESETS['gemma-2-9b'], 'jumprelu', 3584)
    assert kept == 12*(2*3584*131_072 + 3584 + 2*131_072)
    matrices = (peak - kept)/(4*4096*131_072)
    assert 2 < matrices < 4, matrices               # (batch, d_sae) in float32, beyond what is kept
    topk = step_bytes(PRESETS['gemma-2-9b'], 'topk', 3584)[1]
    assert topk < peak and 2*kept + peak + 18.5e9 < 80e9    # three side by side and the model, on one card

def judged_there(tmp): return judged(CARD, where=CARD)
def judged_here(tmp): return judged(CARD)
def sparse_steps(tmp): return steps('topk', CARD, 'sparse')
def lm_loss(tmp): return spliced(CARD, CARD)
def from_a_model(tmp): return dealt(CARD, str(CARD))
def joint_sparse(tmp): return together(CARD, 'sparse')

MUTANTS = dict(  # name -> module, what is replaced, old text, new text, and what must go red
    step_counter_left_behind=('train', 'adam_state', 'device=p.device, ', '', lambda tmp: resumed(CARD, tmp)),
    a_list_left_behind=('sparse', 'run_starts', ', device=ids.device', '', sparse_steps),
    silent_left_behind=('sparse', 'sparse_loss', 'dtype=torch.bool, device=x.device', 'dtype=torch.bool', sparse_steps),
    mean_in_bf16=('core', 'Scaler.fit', 'x.mean(0, dtype=torch.float64)', 'x.mean(0)', judged_there),
    norms_in_bf16=('harvest', 'MassiveRule.__call__', 'x.float().square()', 'x.square()', judged_there),
    missing_to=('evaluate', 'token_sums', 'x.to(_device(sae)).float()', 'x.float()', judged_here),
    spliced_mask_left_behind=('evaluate', 'splice_fn', 'mask.to(v.device)', 'mask', lm_loss),
    bucket_left_behind=('stream', 'Filler.room', ', device=self.device', '', from_a_model),
    terms_left_behind=('distributed', 'joint_terms', '.to(fired.device)', '', joint_sparse),
    flags_left_behind=('distributed', 'DistTrainer.batch', 'torch.tensor(mine, device=r.device)', 'torch.tensor(mine)',
        joint_sparse),
    mean_not_moved=('core', 'Scaler.__call__', 'self.mean.to(x.device)', 'self.mean', judged_there))

@pytest.mark.parametrize('mutant', [None, *MUTANTS])
def test_mutants_go_red(mutant, tmp_path, monkeypatch):
    "The checks above do see what they are for"
    if mutant is None:
        with Card(half_sums=False): judged_here(tmp_path), judged_there(tmp_path)
        return
    name, where, old, new, red = MUTANTS[mutant]
    real = importlib.import_module(f'jumprelu_sae.{name}')
    text, changed = inspect.getsource(real), types.ModuleType(f'jumprelu_sae.{name}')
    assert old in text
    changed.__package__ = 'jumprelu_sae'
    exec(compile(text.replace(old, new), real.__file__, 'exec'), changed.__dict__)
    *outer, last = where.split('.')
    holder, other = (getattr(m, outer[0]) if outer else m for m in (real, changed))
    was = vars(holder)[last]
    monkeypatch.setattr(holder, last, vars(other)[last])
    for m in [m for k, m in sys.modules.items() if k.startswith('jumprelu_sae.') and vars(m).get(last) is was]:
        monkeypatch.setattr(m, last, vars(other)[last])
    with Card(half_sums='bf16' not in mutant), pytest.raises((Mixed, AssertionError)): red(tmp_path)


SCRIPT = Path(__file__).parent.parent/'benchmarks'/'gpu.py'

def script(*args, **env):
    env = os.environ | dict(OMP_NUM_THREADS='1') | {k: str(v) for k, v in env.items()}
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, env=env)

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a card')
def test_script_without_a_card(tmp_path):
    "It ends at once, with one line that says what to do, and writes nothing"
    r = script('--out', tmp_path/'out')
    assert r.returncode == 1 and not r.stdout and not (tmp_path/'out').exists()
    assert r.stderr.count('\n') == 1 and 'no CUDA GPU here' in r.stderr and '--cpu-tiny' in r.stderr
    r = script('nonsense')
    assert r.returncode == 2 and 'no such piece nonsense' in r.stderr
    assert 'wants --out' in script('--cpu-tiny').stderr

def test_script_without_saelens(tmp_path):
    "A line that says what to do, and no file; one that cannot run, and one that dies, is a line too"
    args = ('--cpu-tiny', '--out', tmp_path/'out', 'peers-9b', '--saelens')
    for python, says in ((sys.executable, 'with sae-lens==6.54.12'), (tmp_path/'none', 'does not run')):
        if python == sys.executable and importlib.util.find_spec('sae_lens'): continue
        r = script(*args, python)
        assert r.returncode == 0 and says in r.stdout and 'peers-9b: skipped: ' in r.stdout, r.stderr
    assert not list((tmp_path/'out').glob('*.json'))

def test_script_beside_saelens(tmp_path):
    "Contenders of its own processes, here with an interpreter whose SAELens has a version and nothing else"
    (tmp_path/'sae_lens.py').write_text("__version__ = '0'")
    r = script('--cpu-tiny', '--out', tmp_path/'out', 'peers-9b', PYTHONPATH=f'{tmp_path}:{SCRIPT.parent.parent}')
    assert r.returncode == 0, r.stderr
    *ours, theirs = json.loads((tmp_path/'out'/'peers-9b.json').read_text())['rows']
    assert [o['who'] for o in ours] == ['encoder product', 'ours, sparse', 'ours, dense']
    assert all(o['ms'] > 0 and o['steps'] and abs(o['l0'] - 12) < 1 for o in ours)
    assert theirs['who'] == 'SAELens' and 'sae_lens' in theirs['failed'] and 'ms' not in theirs

@pytest.mark.timeout(1200)
def test_script_rehearsal(tmp_path):
    "Every piece at toy size; what is done is not done again; a damaged piece is"
    args = ('--cpu-tiny', '--out', tmp_path/'out')
    r = script(*args, JUMPRELU_SAE_CACHE=tmp_path/'cache')
    assert r.returncode == 0, r.stderr
    pieces = ('check', 'step-2b', 'step-9b', 'harvest-2b', 'harvest-9b', 'preset')
    found = {p: json.loads((tmp_path/'out'/f'{p}.json').read_text()) for p in pieces}
    assert all(d['env']['versions']['torch'] and d['env']['device'] and d['key'] for d in found.values())
    assert found['check']['good'] and {r['path'] for r in found['check']['rows']} == {'dense', 'sparse'}
    assert len(found['step-9b']['rows']) == 8 and all(r['ms'] > 0 for r in found['step-9b']['rows'])
    assert 'random weights' in found['harvest-2b']['label'] and found['preset']['done'] and found['preset']['rows']
    (tmp_path/'out'/'check.json').write_text('{')
    said = script(*args, '--list').stdout.splitlines()
    assert [l for l in said if not l.startswith('peers')] == ['check: missing', *(f'{p}: done' for p in pieces[1:])]
    said = [said[0], *(f'{p}: done' for p in pieces[1:])]
    assert script(*args, *pieces[1:]).stdout.splitlines() == said[1:]
