"The oracles of `expected_loss` against loops written from equations 13-15 in Python floats, and what `starved` says"
import itertools, math
from dataclasses import replace
import pytest, torch
from jumprelu_sae.expected_loss import (
    expected_kde,
    expected_ste,
    integrate,
    kde_gradient,
    occupancy,
    population_gradient,
    population_loss,
    starved,
    switch_cost,
    toy_worlds,
)
from jumprelu_sae.jumprelu import jumprelu, pre_activations, reconstruct
from jumprelu_sae.ste import KERNELS, jumprelu_loss, jumprelu_ste, l0

f64 = torch.float64
WORLDS = toy_worlds()

# the kernels once more, without torch
def rect(u): return 1. if abs(u) < .5 else 0.
def tri(u): return max(0., 1 - abs(u)*2**.5)*2**.5
def epa(u): w = (5/12)**.5; return max(0., 1 - (u/w)**2)*.75/w
def gau(u): return math.exp(-6*u*u)*(6/math.pi)**.5
LOOP = dict(rectangle=rect, triangle=tri, epanechnikov=epa, gaussian=gau)

def case(B, n, M, ratio, eps, seed=0):
    "A small SAE; about half of the pre-activations are moved near their thresholds, which are about ratio*eps"
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=f64)
    theta = ratio*eps*(.5 + torch.rand(M, generator=g, dtype=f64))
    pre = torch.where(torch.rand(B, M, generator=g) < .5, theta + .5*eps*r(B, M), r(B, M)*(1 + theta))
    return r(B, n), pre, r(M, n), r(n), theta

def loop(x, pre, W_dec, b_dec, theta, lam, eps, K):
    "Eq. 14 for every pair, then eq. 15, one number at a time"
    B, M, n = len(x), len(theta), x.shape[1]
    x, pre, W, b, theta = (t.tolist() for t in (x, pre, W_dec, b_dec, theta))
    I = [[0.]*M for _ in range(B)]
    for a, i in itertools.product(range(B), range(M)):
        dot = 0.
        for k in range(n):
            others = sum(pre[a][j]*W[j][k] for j in range(M) if j != i and pre[a][j] > theta[j])
            dot += W[i][k]*(x[a][k] - b[k] - .5*theta[i]*W[i][k] - others)
        I[a][i] = 2*theta[i]*dot
    kde = [sum((I[a][i] - lam)*K((pre[a][i] - theta[i])/eps[i]) for a in range(B))/(B*eps[i]) for i in range(M)]
    return torch.tensor(I, dtype=f64), torch.tensor(kde, dtype=f64)

def close(a, b): torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('eps', [.01, .3, 4.])
@pytest.mark.parametrize('ratio', [.1, .5, 20.])   # thresholds below, around and above eps/2
def test_against_the_loop(kernel, eps, ratio):
    x, pre, W_dec, b_dec, theta = case(23, 4, 7, ratio, eps)
    I, kde = loop(x, pre, W_dec, b_dec, theta, .3, [eps]*7, LOOP[kernel])
    close(switch_cost(x, jumprelu(pre, theta), W_dec, b_dec, theta), I)
    close(kde_gradient(x, pre, W_dec, b_dec, theta, .3, eps, KERNELS[kernel]), kde)

@pytest.mark.parametrize('kernel', KERNELS)
def test_a_bandwidth_for_each_latent(kernel):
    x, pre, W_dec, b_dec, theta = case(30, 3, 5, .6, .5, seed=1)
    eps = torch.tensor([.1, .3, .7, 2., 5.], dtype=f64)
    _, kde = loop(x, pre, W_dec, b_dec, theta, .2, eps.tolist(), LOOP[kernel])
    close(kde_gradient(x, pre, W_dec, b_dec, theta, .2, eps, KERNELS[kernel]), kde)

def test_switch_cost_is_the_difference_of_two_losses():
    """I_i = error with latent i off - error with it reporting theta_i, from `reconstruct` alone; it does not matter
    what it reports now"""
    x, pre, W_dec, b_dec, theta = case(11, 4, 6, 1., .4, seed=2)
    f = jumprelu(pre, theta)
    I = switch_cost(x, f, W_dec, b_dec, theta)
    for i in range(6):
        off, on = f.clone(), f.clone()
        off[:, i], on[:, i] = 0, theta[i]
        err = lambda f: (x - reconstruct(f, W_dec, b_dec)).square().sum(-1)
        close(I[:, i], err(off) - err(on))
        close(switch_cost(x, off, W_dec, b_dec, theta)[:, i], I[:, i])

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('eps', [.05, .6, 3.])     # theta lies in 0.3..0.8: both sides of eps/2
def test_ste_with_one_term_more_is_the_kde(kernel, eps):
    g = torch.Generator().manual_seed(3)
    r = lambda *s: torch.randn(*s, generator=g, dtype=f64)
    B, x, W_enc, b_enc, W_dec, b_dec, K, lam = (
        64,
        r(64, 6),
        r(6, 10) / 2,
        r(10) / 5,
        r(10, 6) / 2,
        r(6) / 10,
        KERNELS[kernel],
        0.3,
    )
    theta = (.3 + .5*torch.rand(10, generator=g, dtype=f64)).requires_grad_()
    pre = pre_activations(x, W_enc, b_enc)
    f = jumprelu_ste(pre, theta, eps, K)
    ste, df = torch.autograd.grad(
        jumprelu_loss(x, reconstruct(f, W_dec, b_dec), l0(pre, theta, eps, K), lam), (theta, f)
    )
    theta, f = theta.detach(), f.detach()
    more = (theta/eps*K((pre - theta)/eps)*(2/B)*(f - theta/2)*W_dec.square().sum(1)).sum(0)
    close(ste + more, kde_gradient(x, pre, W_dec, b_dec, theta, lam, eps, K))

@pytest.mark.parametrize('name', WORLDS)
@pytest.mark.parametrize('theta', [.15, .4, .7, 1.3])
def test_eq_13_is_the_slope_of_the_population_loss(name, theta):
    w, h = replace(WORLDS[name], theta=theta), 1e-4
    slope = (population_loss(w, theta + h) - population_loss(w, theta - h))/(2*h)
    assert abs(population_gradient(w) - slope) < 1e-6
    assert population_loss(w) == population_loss(w, theta)

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('name', WORLDS)
def test_both_expectations_tend_to_eq_13(name, kernel):
    w, K = WORLDS[name], KERNELS[kernel]
    kde, ste = (
        [abs(fn(w, e, K)[0] - population_gradient(w)) for e in (0.04, 0.02, 0.01)]
        for fn in (expected_kde, expected_ste)
    )
    for a, b in zip(kde, kde[1:]): assert abs(a/b - 4) < .1      # eps^2
    for a, b in zip(ste, ste[1:]): assert abs(a/b - 2) < .3      # eps
    assert all(b < a for a, b in zip(ste, kde))

@pytest.mark.parametrize('name', WORLDS)
def test_expectations_against_a_riemann_sum(name):
    "Mean and variance at a wide rectangle, by brute force"
    w, eps = WORLDS[name], .5
    # midpoints; none on theta
    z = torch.linspace(w.theta - eps / 2, w.theta + eps / 2, 400_001, dtype=f64)[:-1] + eps / 800_000
    for fn, report in ((expected_ste, z*(z > w.theta)), (expected_kde, w.theta/2)):
        c, p = 2*w.theta*(w.mean(z) - report) - w.lam, w.density(z)
        mean = (p*c).mean().item()
        var = (p*(c**2 + 4*w.theta**2*w.var(z))).mean().item()/eps - mean**2
        got = fn(w, eps)
        assert abs(got[0] - mean) < 1e-6 and abs(got[1] - var) < 1e-5

def test_worlds_are_populations():
    for w in WORLDS.values():
        assert abs(integrate(w.density, -9., w.hi, 512) - 1) < 1e-6
        pi, s = w.sample(50_000, seed=1)
        for v, fn in ((pi, lambda z: z), (s, w.mean)):
            want = integrate(lambda z: w.density(z)*fn(z), -9., w.hi, 512)
            assert abs(v.mean().item() - want) < 4*v.std().item()/len(v)**.5
        assert torch.equal(w.sample(5, seed=3)[0], w.sample(5, seed=3)[0])

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('eps', [.01, .3, 4.])
def test_occupancy_against_the_loop(kernel, eps):
    _, pre, _, _, theta = case(40, 2, 6, .6, eps, seed=4)
    half = min(KERNELS[kernel].half_width, 1.)
    want = [sum(abs(z - t)/eps < half for z in col) for col, t in zip(pre.T.tolist(), theta.tolist())]
    got = occupancy(pre, theta, eps, KERNELS[kernel])
    assert got.tolist() == want and not got.is_floating_point()
    assert torch.equal(occupancy(pre.view(4, 10, 6), theta, torch.full((6,), eps, dtype=f64), KERNELS[kernel]), got)
    if math.isfinite(KERNELS[kernel].half_width):
        assert torch.equal(got, (KERNELS[kernel]((pre - theta) / eps) > 0).sum(0))

def test_occupancy_compares_in_the_wider_dtype():
    theta = torch.tensor([1.001])                                # bf16 cannot tell it from 1
    assert occupancy(torch.ones(3, 1, dtype=torch.bfloat16), theta, .001).item() == 0
    assert occupancy(torch.ones(3, 1, dtype=torch.bfloat16), theta, .01).item() == 3

def test_starved_is_silent_when_most_thresholds_hear():
    assert starved(torch.tensor([10, 11, 500, 0, 0]), 5000, .1, share=.5) is None
    assert starved(torch.tensor([10, 10]), 5000, .1) is None      # `least` is enough
    assert starved(torch.zeros(4), 0, .1) is None                 # nothing went by yet

def test_what_starved_says():
    said = starved(torch.tensor([4, 4, 0, 4, 90]), 51_200, .001, least=8)
    for part in (
        '4 of 5 thresholds',
        'fewer than 8 of the last 51,200 examples',
        '1 of them none',
        'from 0.001 to about 0.002',
        'E‖x‖² = 1',
    ):
        assert part in said, part
    assert '\n' not in said
    said = starved(torch.zeros(2048, dtype=torch.long), 100, torch.full((2048,), .05))
    assert '2,048 of 2,048' in said and 'from 0.05 to 0.5 or more' in said

def test_following_the_advice_feeds_the_median_threshold():
    pre = torch.randn(4096, 64, generator=torch.Generator().manual_seed(5))
    theta = torch.full((64,), .5)
    seen = occupancy(pre, theta, .002)
    said = starved(seen, 4096, .002)
    eps = float(said.split('about ')[1].split(',')[0])
    assert seen.median() < 5 and occupancy(pre, theta, eps).median() >= 7  # ten wanted, up to the noise of the count
