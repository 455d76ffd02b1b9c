"TopK and BatchTopK choose pairs without a matrix of all pre-activations, and the same ones"

import math
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from jumprelu_sae import sparse
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.sparse import find_topk, run_starts, sparse_loss

def with_the_matrix(x, W_enc, b_enc, k, joint, block):
    "The slow way, until 2026-11 the only one: all pre-activations in one matrix. Decides ties as `find_topk` must"
    W, B, step = W_enc.T, len(x), max(1, block//len(x))
    z = x.new_empty(len(W), B)
    for i in range(0, len(W), step): torch.addmm(b_enc[i:i+step, None], W[i:i+step], x.T, out=z[i:i+step])
    g = max(1, len(W)//(4*k))
    best = z[:len(W)//g*g].view(-1, g, B).amax(1) if g > 1 else z
    bound = best.flatten().topk(min(k*B, best.numel())).values[-1] if joint else best.topk(k, dim=0).values[-1]
    pos = (z >= bound.clamp_min(0)).flatten().nonzero().squeeze(1)
    v = z.flatten()[pos]
    if joint: keep = v.topk(min(k*B, len(v)), sorted=False).indices
    else:
        by_row = (pos % B).argsort(stable=True)
        row = (pos % B)[by_row]
        starts = run_starts(row, B)
        lines = x.new_full((B, max(k, int(starts.diff().max()))), -math.inf)
        lines[row, torch.arange(len(row)) - starts[row]] = v[by_row]
        top = lines.topk(k, dim=1, sorted=False)
        keep = by_row[(top.indices + starts[:-1, None])[top.values > 0]]
    chosen = torch.zeros_like(v, dtype=torch.bool).index_fill_(0, keep, True)
    keep = (chosen & (v > 0)).nonzero().squeeze(1)
    pos, v = pos[keep], v[keep]
    latent = pos.div(B, rounding_mode='floor')
    return pos - latent*B, latent, v

def case(seed, coarse):
    '''Sizes at random; coarse: numbers so round that many pre-activations are equal. A single example is among the
    round ones only: it makes a product of matrix and vector, whose rounding depends on where in memory it is written'''
    g = torch.Generator().manual_seed(seed)
    def pick(*c): return c[int(torch.randint(len(c), (), generator=g))]
    B, n, M, k = pick(1 if coarse else 2, 7, 33), pick(2, 8, 20), pick(40, 97, 256), pick(1, 3, 8, 30)
    x, W, b = (torch.randn(*s, generator=g) for s in ((B, n), (n, M), (M,)))
    if coarse:
        x, W, b = x.round(), W.round(), b.round()
        b += pick(0, -3, 3)
    return x, W, b, k, pick(B, 5*B, 16*B + 3, M*B//2, M*B - 1, M*B)

@pytest.mark.parametrize('joint', [False, True], ids=['topk', 'batchtopk'])
@pytest.mark.parametrize('coarse', [False, True], ids=['distinct', 'ties'])
def test_the_same_bits_as_with_the_matrix(joint, coarse):
    for seed in range(150):
        x, W, b, k, block = case(seed, coarse)
        (s, v), (row, latent, u) = find_topk(x, W, b, k, joint, block), with_the_matrix(x, W, b, k, joint, block)
        assert torch.equal(s.row, row) and torch.equal(s.latent, latent) and torch.equal(v, u), seed

def test_nobody_positive():
    x, W = torch.ones(5, 3), -torch.ones(3, 40)
    for joint in (False, True): assert len(find_topk(x, W, torch.zeros(40), 3, joint, block=5*9)[0]) == 0

def test_only_a_tie_is_looked_through_twice(monkeypatch):
    calls, slow = [], sparse.all_candidates
    monkeypatch.setattr(sparse, 'all_candidates', lambda *a: calls.append(1) or slow(*a))
    for seed, coarse, want in ((1, False, False), (4, True, True)):
        g = torch.Generator().manual_seed(seed)
        x, W = torch.randn(9, 6, generator=g), torch.randn(6, 80, generator=g)
        if coarse: W[:, 1::2] = W[:, ::2]  # each latent twice, an odd number of them wanted
        for joint in (False, True):
            calls.clear()
            find_topk(x, W, torch.zeros(80), 3, joint, block=9*7)
            assert bool(calls) == want, (coarse, joint)

class Largest(TorchDispatchMode):
    "The numbers of the largest tensor that an operation makes"
    most, seen = 0, ''
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.numel() > self.most: self.most, self.seen = t.numel(), str(func)
        return out

@pytest.mark.parametrize('joint', [False, True], ids=['topk', 'batchtopk'])
def test_a_block_and_k_of_each_example(joint):
    "64 blocks: what each leaves behind must get less and less"
    B, d_in, d_sae, k, block = 64, 1, 4096, 4, 64*64  # d_in: the weights shall not be what is large
    g = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(B, d_in, generator=g), torch.randn(d_sae, d_in, generator=g).T, torch.zeros(d_sae)
    with Largest() as held: find_topk(x, W, b, k, joint, block)
    assert held.most <= block + k*B, held.seen

@pytest.mark.parametrize('arch', ['topk', 'batchtopk'])
def test_no_step_holds_a_full_matrix(arch):
    B, d_in, d_sae, k, block = 64, 16, 4096, 4, 2**13
    sae = make_sae(SAEConfig(arch, d_in, d_sae, k=k)).train()
    x = torch.randn(B, d_in, generator=torch.Generator().manual_seed(0))
    with Largest() as held:
        t = sparse_loss(sae, x, block=block)
        t['loss'].backward()
    assert float(t['l0']) <= k and held.most < d_sae*B/3, held.seen
    assert held.most <= max(block + 8*k*B, d_sae*d_in), held.seen
