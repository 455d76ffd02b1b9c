"Folders of SAELens' layout that others wrote: pre-bias, gates, thresholds below zero, sizes that are not there"
import json

import pytest
import torch
from safetensors.torch import save_file

from jumprelu_sae.core import Scaler, UserError
from jumprelu_sae.sae import SAEConfig, load_sae, make_sae

N, M = 6, 24


def folder(path, arch, cfg=(), **tensors):
    "A folder with random weights"
    g = torch.Generator().manual_seed(0)
    t = dict(
        W_enc=torch.randn(N, M, generator=g), W_dec=torch.randn(M, N, generator=g), b_dec=torch.randn(N, generator=g)
    )
    t = {k: v.contiguous() for k, v in (t | tensors).items()}
    path.mkdir()
    save_file(t, path/'sae_weights.safetensors')
    conf = dict(architecture=arch, d_in=N, d_sae=M, dtype='float32', device='cpu', normalize_activations='none',
        reshape_activations='none', metadata=dict(sae_lens_version='6.0.0'))
    (path/'cfg.json').write_text(json.dumps(conf | dict(cfg)))
    return path, t


def test_gated_with_pre_bias(tmp_path):
    "b_dec is subtracted before both of the gate's biases"
    g = torch.Generator().manual_seed(1)
    b = {k: torch.randn(M, generator=g) for k in ('b_gate', 'b_mag', 'r_mag')}
    path, t = folder(tmp_path/'a', 'gated', dict(apply_b_dec_to_input=True), **b)
    x = torch.randn(200, N, generator=g)
    pre = (x - t['b_dec']) @ t['W_enc']
    want = (pre + t['b_gate'] > 0)*(pre*t['r_mag'].exp() + t['b_mag']).relu()
    torch.testing.assert_close(load_sae(path).encode(x), want, rtol=1e-4, atol=1e-4)


def test_thresholds_below_zero_are_a_relu(tmp_path):
    g = torch.Generator().manual_seed(2)
    path, t = folder(tmp_path/'a', 'jumprelu', dict(apply_b_dec_to_input=False), b_enc=torch.randn(M, generator=g),
        threshold=torch.linspace(-1, 1, M))
    x = torch.randn(200, N, generator=g)
    pre = x @ t['W_enc'] + t['b_enc']
    want = pre.relu()*(pre > t['threshold'])
    torch.testing.assert_close(load_sae(path).encode(x), want, rtol=1e-4, atol=1e-5)


def test_a_size_that_the_file_cannot_hold(tmp_path):
    path, _ = folder(tmp_path/'a', 'standard', dict(apply_b_dec_to_input=False, d_sae=2**30), b_enc=torch.zeros(M))
    with pytest.raises(UserError, match='too small for d_in=6, d_sae=1073741824'): load_sae(path)


@pytest.mark.parametrize('arch', ['relu', 'jumprelu'])
def test_rows_of_any_norm_survive_the_first_step(arch):
    "Brought into training, an SAE with long rows gives the same after its rows are made unit"
    s = make_sae(SAEConfig(arch, N, M, **(dict(log_threshold=False) if arch == 'jumprelu' else {})))
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        s.W_dec *= torch.rand(M, 1, generator=g)*3 + .3
        s.b_enc.normal_(generator=g)
        if arch == 'jumprelu': s.set_threshold(torch.rand(M, generator=g))
    done = s.finish(Scaler(torch.ones(N), 2.))
    done.W_dec.data *= torch.rand(M, 1, generator=g)*3 + .3
    x = torch.randn(100, N, generator=g)*3
    scaler = Scaler(torch.ones(N), 2.)
    t = done.scaled(scaler)
    torch.testing.assert_close(t.W_dec.norm(dim=1), torch.ones(M))
    t.after_step()
    back = t.eval().finish(scaler)
    torch.testing.assert_close(back(x), done(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(back.encode(x) > 0, done.encode(x) > 0)


def test_rows_of_any_norm_are_refused_where_they_rank():
    s = make_sae(SAEConfig('topk', N, M, k=3))
    done = s.finish(Scaler(torch.zeros(N), 1.))
    done.W_dec.data *= 2
    with pytest.raises(UserError, match='without changing which latents fire'): done.scaled(Scaler(torch.zeros(N), 1.))
