"The estimators of `ste` against a loop over every element, written from equations 4 and 10-12, in float64"
import itertools
import pytest, torch
from jumprelu_sae.jumprelu import jumprelu
from jumprelu_sae.ste import (
    HeavisideSTE,
    JumpReLUSTE,
    jumprelu_and_l0,
    jumprelu_loss,
    jumprelu_ste,
    l0,
    rectangle,
    step_ste,
)

f64 = torch.float64

def rect(u): return 1. if -0.5 < u < 0.5 else 0.
def triangle(u): return max(0., 1 - abs(u))

def oracle(pre, theta, eps, g_f, g_on, K):
    "Eqs. 4 and 10-12 an element at a time, in Python floats: f, on, d/dpre, d/dtheta of sum(g_f f + g_on on)"
    shape, M = pre.shape, len(theta)
    pre, g_f, g_on = (t.reshape(-1, M).tolist() for t in (pre, g_f, g_on))
    theta, eps = theta.tolist(), eps.expand(M).tolist()
    f, on, d_pre, d_theta = ([[0.]*M for _ in pre] for _ in range(4))
    for b, i in itertools.product(range(len(pre)), range(M)):
        z, t, e = pre[b][i], theta[i], eps[i]
        if z > t: f[b][i], on[b][i], d_pre[b][i] = z, 1., g_f[b][i]
        k = K((z - t)/e)
        d_theta[b][i] = -(t/e)*k*g_f[b][i] - (1/e)*k*g_on[b][i]
    t = lambda a: torch.tensor(a, dtype=f64).reshape(shape)
    return t(f), t(on), t(d_pre), t(d_theta).reshape(-1, M).sum(0)

def by_autograd(fn, pre, theta, grads):
    pre, theta = pre.clone().requires_grad_(), theta.clone().requires_grad_()
    outs = fn(pre, theta)
    d = torch.autograd.grad(outs, (pre, theta), grads, allow_unused=True)
    return [o.detach() for o in outs], *d

def close(a, b): torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

def case(shape, seed, ratio, eps, ties=True):
    "Random pre-activations around thresholds of about ratio*eps, with exact ties sprinkled in"
    gen = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=gen, dtype=f64)
    M = shape[-1]
    theta = ratio*eps*(0.5 + torch.rand(M, generator=gen, dtype=f64))
    pre = theta + r(*shape)*eps*torch.rand(M, generator=gen, dtype=f64)*2
    if ties: pre = torch.where(torch.rand(shape, generator=gen) < 0.1, theta.expand(shape), pre)
    return pre, theta, r(*shape), r(*shape)

SHAPES = [(7,), (1, 1), (33, 5), (3, 4, 6), (2, 3, 2, 4)]

@pytest.mark.parametrize(
    'kernel, K', [(rectangle, rect), (lambda u: (1 - u.abs()).clamp(min=0), triangle)], ids=['rectangle', 'triangle']
)
@pytest.mark.parametrize('eps', [0.001, 0.3, 1., 4.])
@pytest.mark.parametrize('ratio', [0.1, 0.5, 1., 20.])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_against_the_loop(shape, ratio, eps, kernel, K):
    pre, theta, g_f, g_on = case(shape, 0, ratio, eps)
    f, on, d_pre, d_theta = oracle(pre, theta, torch.tensor(eps, dtype=f64), g_f, g_on, K)
    outs, got_pre, got_theta = by_autograd(
        lambda z, t: (jumprelu_ste(z, t, eps, kernel), step_ste(z, t, eps, kernel)), pre, theta, (g_f, g_on)
    )
    assert torch.equal(outs[0], f) and torch.equal(outs[1], on) and torch.equal(outs[0], jumprelu(pre, theta))
    assert torch.equal(got_pre, d_pre)
    close(got_theta, d_theta)

@pytest.mark.parametrize('eps', [0.001, 0.3, 4.])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_fused_equals_the_two(shape, eps):
    pre, theta, g_f, _ = case(shape, 1, 0.4, eps)
    g_l0 = torch.randn(shape[:-1], generator=torch.Generator().manual_seed(2), dtype=f64)
    f, on, d_pre, d_theta = oracle(pre, theta, torch.tensor(eps, dtype=f64), g_f, g_l0[..., None].expand(shape), rect)
    two   = by_autograd(lambda z, t: (jumprelu_ste(z, t, eps), l0(z, t, eps)), pre, theta, (g_f, g_l0))
    fused = by_autograd(lambda z, t: jumprelu_and_l0(z, t, eps), pre, theta, (g_f, g_l0))
    for outs, got_pre, got_theta in (two, fused):
        assert torch.equal(outs[0], f) and torch.equal(outs[1], on.sum(-1)) and torch.equal(got_pre, d_pre)
        close(got_theta, d_theta)

def test_a_bandwidth_for_each_latent():
    pre, theta, g_f, g_on = case((40, 6), 3, 0.5, 1.)
    eps = torch.tensor([0.01, 0.2, 0.5, 1., 2., 5.], dtype=f64)
    want = oracle(pre, theta, eps, g_f, g_on, rect)[-1]
    close(by_autograd(lambda z, t: (jumprelu_ste(z, t, eps), step_ste(z, t, eps)), pre, theta, (g_f, g_on))[-1], want)
    g_l0 = g_on[:, 0].contiguous()
    want = oracle(pre, theta, eps, g_f, g_l0[:, None].expand(40, 6), rect)[-1]
    close(by_autograd(lambda z, t: jumprelu_and_l0(z, t, eps), pre, theta, (g_f, g_l0))[-1], want)

FNS = dict(
    jumprelu=lambda z, t: (jumprelu_ste(z, t, 0.1),),
    step=lambda z, t: (step_ste(z, t, 0.1),),
    both=lambda z, t: jumprelu_and_l0(z, t, 0.1),
)

@pytest.mark.parametrize('fn', FNS.values(), ids=FNS)
@pytest.mark.parametrize('where, value', [('all far below', -5.), ('all far above', 5.)])
def test_outside_the_window_theta_hears_nothing(fn, where, value):
    pre, theta = torch.full((9, 4), value, dtype=f64), torch.full((4,), 0.3, dtype=f64)
    outs, d_pre, d_theta = by_autograd(fn, pre, theta, [torch.ones_like(o) for o in fn(pre, theta)])
    assert not d_theta.any()
    assert all((o != 0).all() == (value > 0) and (o != 0).any() == (value > 0) for o in outs)

@pytest.mark.parametrize('fn', FNS.values(), ids=FNS)
def test_a_tie_is_off_but_in_the_window(fn):
    theta = torch.tensor([0.3], dtype=f64)
    outs, d_pre, d_theta = by_autograd(
        fn, theta[None].clone(), theta, [torch.ones_like(o) for o in fn(theta[None], theta)]
    )
    assert not any(o.any() for o in outs) and d_theta.item() < 0 and (d_pre is None or not d_pre.any())

def test_the_window_is_open_and_half_a_bandwidth_wide_on_each_side():
    pre = torch.tensor([[0.5], [0.5 + 1e-9], [1.], [1.5 - 1e-9], [1.5]], dtype=f64)   # theta 1, eps 1: exact in binary
    for i, inside in enumerate([0, 1, 1, 1, 0]):
        assert (
            by_autograd(
                lambda z, t: (step_ste(z, t, 1.0),),
                pre[i : i + 1],
                torch.ones(1, dtype=f64),
                torch.ones(1, 1, dtype=f64),
            )[-1].item()
            == -inside
        )

def test_the_count_sends_nothing_to_pre():
    pre, theta, *_ = case((20, 5), 4, 0.5, 0.3)
    pre.requires_grad_(), theta.requires_grad_()
    assert torch.autograd.grad(l0(pre, theta, 0.3).sum(), pre, allow_unused=True)[0] is None
    count = jumprelu_and_l0(pre, theta, 0.3)[1]
    assert not torch.autograd.grad(count.sum(), pre)[0].any()                          # through the shared node: zeros

def test_raw_pre_activations_are_needed_only_below_half_a_bandwidth():
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=f64)
    d = lambda z, t: by_autograd(
        lambda z, t: (l0(z, t, 0.1),), z, torch.tensor([t], dtype=f64), torch.ones(len(z), dtype=f64)
    )[-1].item()
    assert d(z.relu(), 0.02) < 8*d(z, 0.02) < 0 and d(z.relu(), 0.06) == d(z, 0.06)

def test_log_threshold_gets_the_chain_factor():
    pre, theta, g_f, g_on = case((50, 6), 5, 0.3, 0.2)
    want = oracle(pre, theta, torch.tensor(0.2, dtype=f64), g_f, g_on, rect)[-1]*theta
    log = theta.log().requires_grad_()
    got, = torch.autograd.grad((jumprelu_ste(pre, log.exp(), 0.2), step_ste(pre, log.exp(), 0.2)), log, (g_f, g_on))
    # exp(log(theta)) rounds, ties may move: none here weigh on it
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_pre_activations_with_float32_thresholds(dtype):
    "The gate is compared in float32, f comes back in the dtype of `pre`, gradients in the dtype of what they belong to"
    gen = torch.Generator().manual_seed(0)
    pre, theta = torch.randn(64, 300, generator=gen).to(dtype), torch.rand(300, generator=gen)
    g = torch.randn(64, 300, generator=gen).to(dtype)
    g_l0 = torch.randn(64, generator=gen)
    wide = by_autograd(
        lambda z, t: jumprelu_and_l0(z, t, 0.5), pre.double(), theta.double(), (g.double(), g_l0.double())
    )
    for fn in (jumprelu_and_l0, lambda z, t, e: (jumprelu_ste(z, t, e), l0(z, t, e))):
        (f, count), d_pre, d_theta = by_autograd(lambda z, t: fn(z, t, 0.5), pre, theta, (g, g_l0))
        assert (f.dtype, count.dtype, d_pre.dtype, d_theta.dtype) == (dtype, torch.float32, dtype, torch.float32)
        assert (
            torch.equal(f.double(), wide[0][0])
            and torch.equal(count.double(), wide[0][1])
            and torch.equal(d_pre.double(), wide[1])
        )
        # by itself, the count's gradient reaches the step in the dtype of `pre`: a rounding that the fused pass spares
        torch.testing.assert_close(
            d_theta.double(), wide[2], rtol=1e-4, atol=1e-3 if fn is jumprelu_and_l0 or dtype == torch.float32 else 0.5
        )

def test_bf16_would_hide_the_gate():
    "One float32 step below 1 is on, although bf16 rounds the threshold to a tie"
    theta = torch.nextafter(torch.ones(1), torch.zeros(1))
    assert step_ste(torch.ones(1, dtype=torch.bfloat16), theta, 0.1).item() == 1 and theta.bfloat16().item() == 1

@pytest.mark.parametrize('fn', [jumprelu_ste, step_ste, l0, jumprelu_and_l0])
def test_bad_arguments_are_refused(fn):
    pre = torch.zeros(3, 4)
    for theta in (torch.ones(3), torch.ones(1), torch.tensor(1.), torch.ones(3, 4)):
        with pytest.raises(ValueError, match='each of the 4 latents'): fn(pre, theta, 0.1)
    for eps in (0., -1., float('nan')):
        with pytest.raises(ValueError, match='above 0'): fn(pre, torch.ones(4), eps)

def test_nothing_is_changed_in_place():
    pre, theta, g_f, g_on = case((20, 5), 6, 0.5, 0.3)
    keep = [t.clone() for t in (pre, theta, g_f, g_on)]
    by_autograd(lambda z, t: (jumprelu_ste(z, t, 0.3), step_ste(z, t, 0.3)), pre, theta, (g_f, g_on))
    by_autograd(lambda z, t: jumprelu_and_l0(z, t, 0.3), pre, theta, (g_f, g_on[:, 0].contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(keep, (pre, theta, g_f, g_on)))

def test_only_what_is_wanted_is_computed():
    pre, theta, *_ = case((20, 5), 7, 0.5, 0.3)
    f, count = jumprelu_and_l0(
        pre.requires_grad_(), theta, 0.3, kernel=lambda u: pytest.fail('no window is needed for a fixed threshold')
    )
    (f.sum() + count.sum()).backward()
    assert pre.grad is not None and theta.grad is None
    theta.requires_grad_()
    jumprelu_ste(pre.detach(), theta, 0.3).sum().backward()
    assert theta.grad.any()

def test_a_second_derivative_is_refused_and_not_zero():
    pre, theta, *_ = case((20, 5), 8, 0.5, 0.3)
    (d,) = torch.autograd.grad(
        jumprelu_ste(pre.requires_grad_(), theta.requires_grad_(), 0.3).square().sum(), theta, create_graph=True
    )
    with pytest.raises(RuntimeError): d.sum().backward()

def test_the_loss():
    gen = torch.Generator().manual_seed(0)
    x, x_hat, count = (
        torch.randn(6, 3, generator=gen, dtype=f64),
        torch.randn(6, 3, generator=gen, dtype=f64),
        torch.arange(6, dtype=f64),
    )
    want = sum(sum((x[b, i] - x_hat[b, i])**2 for i in range(3)) + 0.7*count[b] for b in range(6))/6
    close(jumprelu_loss(x, x_hat, count, 0.7), want)
