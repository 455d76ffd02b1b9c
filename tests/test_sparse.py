"""The sparse step against the dense one: values and gradients, on random shapes and settings, at the corners, and on
DeepMind's regression values"""
import json, math, subprocess, sys
from pathlib import Path
import pytest, torch
from test_golden import GOLDEN, B, D, M, T
import numpy as np
from jumprelu_sae.core import SyntheticStream, UserError
from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, make_sae, own_settings
from jumprelu_sae.sparse import Screen, choose_path, find_support, find_topk, sparse_loss, support_share
from jumprelu_sae.train import TrainConfig, Trainer, make_adam, train_saes

root = Path(__file__).parent.parent
KERNELS = ('rectangle', 'triangle', 'epanechnikov')

def case(arch, seed, dtype, **settings):
    "An SAE of random shape and weights, a batch, dead latents (or none)"
    r = torch.Generator().manual_seed(seed)
    def pick(*c): return c[int(torch.randint(len(c), (), generator=r))]
    n, d_sae, batch = pick(1, 3, 16, 40), pick(5, 24, 130), pick(1, 6, 65)
    cfg = dict(
        k=pick(1, 3, 5),
        coef=pick(0.05, 1.0),
        bandwidth=pick(0.01, 0.1, 1.0),
        theta_init=pick(0.01, 0.2, 1.0),
        kernel=pick(*KERNELS),
        target_l0=pick(None, 3.0),
        start=pick(None, 'topk', 'batchtopk'),
        per_example=pick(True, False),
        estimator=pick('ste', 'kde', 'input'),
        penalty=pick('l0', 'l1', 'tanh'),
        log_threshold=pick(True, False),
        pre_bias=pick(True, False),
        aux_coef=pick(0.0, 0.2),
        k_aux=pick(1, 4, 512),
        dead_coef=pick(0.0, 0.2),
    )
    if dtype == torch.float32 and cfg['kernel'] != 'rectangle':
        cfg['bandwidth'] = 1.0  # see test_float32_of_a_sloped_kernel
    cfg |= settings
    if cfg['start']: cfg['target_l0'] = 3.
    sae = make_sae(SAEConfig(arch, n, d_sae, **own_settings(arch, cfg)), seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name not in ('W_dec', 'theta_param'): p += .3*torch.randn(p.shape, generator=r)
            if name == 'theta_param' and cfg['log_threshold']: p += torch.randn(p.shape, generator=r)
    dead = torch.rand(d_sae, generator=r) < pick(.1, .5)
    return (
        sae.to(dtype).train(),
        torch.randn(batch, n, generator=r).to(dtype),
        dead if pick(True, True, False) else None,
    )

def both(sae, x, dead, warm=.7):
    out = []
    for loss in (sae.loss, lambda *a: sparse_loss(sae, *a)):
        sae.zero_grad()
        t = loss(x, warm, dead)
        t['loss'].backward()
        out.append(
            (
                {k: v.detach() for k, v in t.items()},
                {n: None if p.grad is None else p.grad.clone() for n, p in sae.named_parameters()},
            )
        )
    return out

def same(sae, x, dead, tol):
    (a, ga), (b, gb) = both(sae, x, dead)
    assert torch.equal(a['fired'], b['fired'])
    for k in ('loss', 'mse', 'sparsity', 'aux', 'l0'):
        torch.testing.assert_close(b[k], a[k], rtol=tol, atol=tol * 1e-3, msg=lambda m: f'{k}: {m}')
    for k in ga:
        assert (ga[k] is None) == (gb[k] is None), k
        if ga[k] is None: continue
        assert ga[k].stride() == gb[k].stride(), k          # the fused optimiser depends on it
        far = (ga[k] - gb[k]).abs().max()/ga[k].abs().max().clamp_min(1e-12)
        assert far <= tol, f'gradient of {k}: {far:.1e}'

@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=['float64', 'float32'])
@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_same_as_dense(arch, dtype, tol):
    for seed in range(40): same(*case(arch, seed, dtype), tol)

def test_float32_of_a_sloped_kernel():
    """A kernel with a slope turns a rounding of the pre-activation into an error of rounding/bandwidth: in a narrow
    window float32 is that far from float64, the sparse step no farther than the dense one"""
    far = {'dense': [], 'sparse': []}
    for seed in range(90):
        sae, x, dead = case('jumprelu', seed, torch.float32, kernel=KERNELS[1 + seed % 2], bandwidth=.01, start=None)
        (_, a), (_, b) = both(sae, x, dead)
        true = both(sae.double(), x.double(), dead)[0][1]['theta_param']
        if true is None or not true.any(): continue
        for k, g in (('dense', a), ('sparse', b)):
            far[k].append(float((g['theta_param'] - true).abs().max() / true.abs().max()))
    dense, sparse = (torch.tensor(far[k]).clamp_min(1e-9).log() for k in ('dense', 'sparse'))
    assert len(dense) > 30 and sparse.mean() - dense.mean() < math.log(2) and sparse.max() < math.log(1e-2)

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('eps', [.01, .3, 5.])
def test_every_kernel_that_ends(kernel, eps):
    for seed in range(8): same(*case('jumprelu', seed, torch.float64, kernel=kernel, bandwidth=eps, start=None), 1e-12)

@pytest.mark.parametrize('block', [1, 37, 1000])
def test_blocks_do_not_matter(block):
    r = torch.Generator().manual_seed(0)
    x, W, b = torch.randn(19, 7, generator=r), torch.randn(7, 53, generator=r), torch.randn(53, generator=r)
    for find, args in ((find_support, (torch.full((53,), .5),)), (find_topk, (4,)), (find_topk, (4, True))):
        (s, v), (t, w) = find(x, W, b, *args), find(x, W, b, *args, block=block)
        assert torch.equal(s.row, t.row) and torch.equal(s.latent, t.latent)
        torch.testing.assert_close(v, w)

def test_nothing_is_missed_at_the_line():
    "Pre-activations within a rounding of the line: the support must hold every pair that the dense formula counts"
    r = torch.Generator().manual_seed(1)
    for dtype in (torch.float32, torch.float64):
        x, W, b = (torch.randn(*s, generator=r, dtype=dtype) for s in ((50, 6), (6, 40), (40,)))
        pre = torch.addmm(b, x, W)
        # each latent meets its threshold exactly, as the dense step computes it
        theta = pre[torch.arange(40) % 50, torch.arange(40)].clone()
        for low in (theta, torch.nextafter(theta, theta.new_tensor(-math.inf))):
            s, _ = find_support(x, W, b, low)
            on = torch.zeros_like(pre, dtype=torch.bool).index_put((s.row, s.latent), torch.tensor(True))
            assert not ((pre > low) & ~on).any()

def test_golden_values_by_the_sparse_step():
    rng = np.random.default_rng(24396)
    W_dec = rng.uniform(size=(M, D)) - .5
    W_dec /= np.linalg.norm(W_dec, axis=-1, keepdims=True)
    W_enc, b_enc, b_dec, theta = (
        rng.uniform(size=(D, M)) - 0.5,
        (rng.uniform(size=M) - 0.5) * 0.1,
        (rng.uniform(size=D) - 0.5) * 0.1,
        0.15 * rng.uniform(size=M) * 0.1,
    )
    x = torch.tensor(np.random.default_rng(9328302).normal(size=(T, B, D))/4)[0]
    sae = make_sae(
        SAEConfig('jumprelu', D, M, coef=GOLDEN['lam'], bandwidth=GOLDEN['bandwidth'], pre_bias=True)
    ).double()
    with torch.no_grad():
        for p, v in (
            (sae.W_dec, W_dec),
            (sae.W_enc, W_enc),
            (sae.b_enc, b_enc),
            (sae.b_dec, b_dec),
            (sae.theta_param, np.log(theta)),
        ):
            p.copy_(torch.tensor(v))
    t = sparse_loss(sae, x)
    t['loss'].backward()
    got = dict(loss=t['loss']) | {
        f'grad {k}': p.grad
        for k, p in (
            ('W_dec', sae.W_dec),
            ('W_enc', sae.W_enc),
            ('b_enc', sae.b_enc),
            ('b_dec', sae.b_dec),
            ('log_threshold', sae.theta_param),
        )
    }
    for k, v in got.items():
        row = GOLDEN['values'][k]
        torch.testing.assert_close(
            v.detach().contiguous().ravel()[:: row['every']],
            torch.tensor(row['value'], dtype=torch.float64),
            atol=GOLDEN['tolerance'],
            rtol=0,
        )

@pytest.mark.parametrize('estimator', ['ste', 'kde', 'input'])
def test_a_screened_step_is_the_dense_one(estimator, monkeypatch):
    "The pairs are looked for in bfloat16: values, gradients and who fired stay as they are in float32"
    monkeypatch.setattr(Screen, 'pays', lambda x, n: .06)
    for seed in range(6):
        sae = make_sae(
            SAEConfig('jumprelu', 48, 700, theta_init=0.55, bandwidth=0.01, coef=0.05, estimator=estimator), seed
        )
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            sae.b_enc += .02*torch.randn(700, generator=g)
            sae.W_enc *= 1 + torch.rand(700, generator=g)
        x = torch.randn(90, 48, generator=g)/48**.5*(1 + torch.rand(90, 1, generator=g))
        s, v = find_support(x, sae.W_enc, sae.b_enc, sae.support_threshold())
        pre = torch.addmm(sae.b_enc, x, sae.W_enc)
        assert 0 < len(s) < .06*pre.numel() and len(s) == int((pre > sae.support_threshold()).sum())
        same(sae, x, None, 1e-5)


def test_second_derivatives_are_refused():
    sae, x, _ = case('jumprelu', 3, torch.float64)
    g = torch.autograd.grad(sparse_loss(sae, x)['loss'], sae.W_dec, create_graph=True)[0]
    with pytest.raises(RuntimeError): g.sum().backward()

def trained(path, steps=60, dtype=torch.float64, **kw):
    "A run that begins with everything active and ends with a few"
    sae = make_sae(SAEConfig('jumprelu', 32, 256, **(dict(coef=.05, bandwidth=.05, theta_init=.02) | kw)), 1).to(dtype)
    tr = Trainer(
        {'s': sae},
        SyntheticStream(n_true=128, seed=3),
        TrainConfig(
            256 * steps,
            256,
            lr=3e-3,
            threshold_lr=3e-2,
            lr_warmup=0.05,
            sparsity_warmup=0.1,
            dead_after=3000,
            log_every=1,
        ),
        path=path,
    )
    return train_saes(tr, progress=False)

def test_a_run_that_switches_changes_nothing():
    dense, auto = trained('dense'), trained('auto')
    # it did switch, on the way
    assert [r[1] for r in auto.paths.log['s']] == ['dense', 'sparse'] and 0 < auto.paths.log['s'][1][0] < 60
    for r, q in zip(dense.history['s'], auto.history['s']): assert r[1] == pytest.approx(q[1], rel=1e-9)
    for (n, p), q in zip(dense.saes['s'].named_parameters(), auto.saes['s'].parameters()):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=n)

@pytest.mark.parametrize('stop', [7, 33, 50])
def test_a_run_that_switches_resumes_bit_for_bit(stop, tmp_path):
    whole = trained('auto', dtype=torch.float32)
    def halt(tr): tr.stop = tr.step == stop
    sae = make_sae(SAEConfig('jumprelu', 32, 256, coef=.05, bandwidth=.05, theta_init=.02), 1)
    fresh = lambda: Trainer({'s': make_sae(sae.cfg, 1)}, SyntheticStream(n_true=128, seed=3), whole.cfg)
    with pytest.raises(KeyboardInterrupt): train_saes(fresh(), tmp_path, progress=False, after_step=halt)
    tr = train_saes(fresh(), tmp_path, progress=False)
    assert tr.paths.log == whole.paths.log and tr.history == whole.history
    for k, v in whole.tensors().items(): assert torch.equal(v, tr.tensors()[k]), k

def test_moments_lie_as_the_optimiser_sees_their_weights(tmp_path):
    """The fused optimiser walks weights, gradients and moments in memory order: all must have one layout, also after
    loading"""
    tr = trained('sparse', 5)
    tr.save(tmp_path)
    again = Trainer(
        {'s': make_sae(tr.saes['s'].cfg, 1).double()}, SyntheticStream(n_true=128, seed=3), tr.cfg, path='sparse'
    )
    again.load(tmp_path)
    for t in (tr, again):
        (seen, p), = t.opts['s'].columns
        assert p is t.saes['s'].W_enc and seen.data_ptr() == p.data_ptr() and seen.is_contiguous()
        for q, state in t.opts['s'].state.items():
            assert all(v.is_contiguous() and v.shape == q.shape for v in state.values() if v.dim())

def test_sae_of_another_layout_trains_the_same():
    "Somebody else's W_enc, contiguous in its own shape"
    a, x, _ = case('jumprelu', 4, torch.float64)
    b = make_sae(a.cfg).double()
    b.load_state_dict(a.state_dict())
    b.W_enc.data = b.W_enc.data.contiguous()
    for s in (a, b):
        opt = make_adam(s, TrainConfig(10, 10, lr=1e-2, lr_warmup=.1, sparsity_warmup=.1))
        for _ in range(3): opt.zero_grad(); sparse_loss(s, x)['loss'].backward(); opt.step()
    torch.testing.assert_close(a.W_enc, b.W_enc, rtol=1e-10, atol=1e-12)

def test_batchtopk_follows_its_threshold():
    "The threshold for use is learnt in the forward pass: by the sparse step as by the dense one"
    (a, x, _), (b, _, _) = (case('batchtopk', 6, torch.float64, k=3) for _ in range(2))
    for i in range(3): a.loss(x*(1 + i)); sparse_loss(b, x*(1 + i))
    assert float(a.threshold) > 0 and torch.allclose(a.threshold, b.threshold, rtol=1e-6) and a.n_seen == b.n_seen == 3
    b.eval()
    was = b.threshold.clone()
    sparse_loss(b, x*9)
    assert b.threshold == was

def test_choice_has_two_thresholds():
    assert [
        choose_path(s, now) for s, now in ((0.17, 'dense'), (0.17, 'sparse'), (0.2, 'sparse'), (0.15, 'dense'))
    ] == ['dense', 'sparse', 'dense', 'sparse']

def test_kde_is_equation_15():
    "The gradient to θ of estimator='kde' against `expected_loss.kde_gradient`, on both sides of θ = ε/2"
    from jumprelu_sae.expected_loss import kde_gradient
    r = torch.Generator().manual_seed(2)
    for theta, eps in ((.3, .2), (.05, .4)):
        sae = make_sae(
            SAEConfig(
                'jumprelu', 6, 20, estimator='kde', bandwidth=eps, theta_init=theta, coef=0.07, log_threshold=False
            ),
            3,
        ).double()
        sae.after_step()  # rows of norm 1 in float64, too: the estimator counts on it
        x = torch.randn(80, 6, generator=r, dtype=torch.float64)
        pre = sae.pre(x)
        for loss in (sae.loss, lambda x: sparse_loss(sae, x)):
            sae.zero_grad()
            loss(x)['loss'].backward()
            torch.testing.assert_close(
                sae.theta_param.grad,
                kde_gradient(
                    x, pre.detach(), sae.W_dec.detach(), sae.b_dec.detach(), sae.threshold.detach(), 0.07, eps
                ),
                rtol=1e-9,
                atol=1e-12,
            )

def test_gaussian_stays_dense():
    sae, x, _ = case('jumprelu', 0, torch.float64, kernel='gaussian', start=None)
    with pytest.raises(UserError, match='never ends'): sparse_loss(sae, x)
    assert support_share(sae, x) == 1 and choose_path(1.) == 'dense'

def test_the_matrix_of_pre_activations_never_exists():
    "With a block of a tenth, no tensor of the step is as large as batch x d_sae"
    sae, x = (
        make_sae(SAEConfig('jumprelu', 16, 4096, theta_init=3.0, bandwidth=0.01)),
        torch.randn(256, 16, generator=torch.Generator().manual_seed(0)),
    )
    from torch.utils._python_dispatch import TorchDispatchMode
    largest = 0
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, torch.Tensor) and t.layout == torch.strided: largest = max(largest, t.numel())
            return out
    with Watch(): sparse_loss(sae, x, block=256*400)['loss'].backward()
    assert largest < 256*4096/4

@pytest.mark.parametrize('who', ['encoder product', 'ours, sparse', 'ours, dense, short recipe'])
def test_benchmark_worker_takes_steps(who):
    "The worker of benchmarks/train_step.py at a toy size: it answers, and the occupancy is what was asked for"
    cmd = [
        sys.executable,
        str(root / 'benchmarks' / 'worker.py'),
        '--who',
        who,
        '--d-in',
        '16',
        '--d-sae',
        '512',
        '--batch',
        '128',
        '--l0',
        '10',
        '--threads',
        '1',
    ]
    out = subprocess.run(
        cmd, input='go\ngo\n', capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    first, *steps = map(json.loads, out)
    assert abs(first['l0'] - 10) < .5 and abs(first['window'] - 10) < .5
    assert len(steps) == 2 and all(s['seconds'] > 0 and s['peak'] > 0 for s in steps)


def test_batchtopk_with_nobody_positive():
    """A batch in which no pre-activation is positive gives the sparse step an empty support: the threshold stays,
    nothing breaks"""
    sae = make_sae(SAEConfig('batchtopk', 8, 16, k=2), 0).train()
    with torch.no_grad(): sae.b_enc.fill_(-100.)
    before = sae.threshold.clone()
    t = sparse_loss(sae, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert float(t['l0']) == 0 and torch.equal(sae.threshold, before) and sae.n_seen == 0
