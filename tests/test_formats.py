"""Files of every layout, written here from what is known of it, against the layout's own formula in float64; and files
that were made to hurt: one line, nothing run, memory bounded"""
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jumprelu_sae.core import Scaler, UserError
from jumprelu_sae.formats import (DICT_CLASSES, FILES, OPTIONAL, READERS, SAELENS_GATES, fold, layouts_of, origin, Parts,
    read_sae, recognise, said_by_path, site_of, write_gemma_scope)
from jumprelu_sae.sae import SAEConfig, load_sae, make_sae

D, M, K, N = 12, 40, 5, 200


def weights(seed=0, unit_rows=False):
    "Random tensors of an SAE, by our names, with row norms far from one and a bias far from zero"
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(M, D, generator=g)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    if not unit_rows:
        W_dec = W_dec * (0.5 + 2 * torch.rand(M, 1, generator=g))
    W_enc = W_dec.T.contiguous() + 0.3 * torch.randn(D, M, generator=g)
    rest = {k: torch.randn(n, generator=g) for k, n in dict(b_enc=M, b_dec=D, b_mag=M, b_gate=M).items()}
    return dict(W_enc=W_enc, W_dec=W_dec, **rest, r_mag=0.3 * torch.randn(M, generator=g),
        threshold=2 * torch.rand(M, generator=g) - 0.3)


def activations(scale=2.0, seed=1):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)) * scale + 0.5


def top(pre, k=K):
    v, i = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, i, v.relu())


def jump(pre, theta):
    return pre.relu() * (pre > theta)


def formula(gate, w, x, pre_bias=False, unit=1.0, rows=False, score_rows=False):
    "Latents and reconstruction as a layout's authors compute them, in float64, step by step; nothing is folded"
    w, x = {k: v.double() for k, v in w.items()}, x.double() / unit
    v = x - w['b_dec'] if pre_bias else x
    n = w['W_dec'].norm(dim=1) if rows or score_rows else torch.ones(M, dtype=torch.float64)
    pre = v @ w['W_enc']
    if gate == 'gated':
        f = (pre + w['b_gate'] > 0) * (pre * w['r_mag'].exp() + w['b_mag']).relu()
    else:
        pre = pre + w['b_enc']
        score = pre * n
        f = dict(relu=lambda: score.relu(), topk=lambda: top(score), one=lambda: jump(score, w['threshold'].max()),
            jumprelu=lambda: jump(score, w['threshold']))[gate]()
    latents = f / n if score_rows else f
    x_hat = (f / n) @ w['W_dec'] + w['b_dec']
    return latents, x_hat * unit


def same(sae, want, x, unit=1.0, tolerance=3e-6):
    "The SAE's latents and reconstruction against a formula's, latents in raw units"
    f, x_hat = want
    got = sae.encode(x)
    assert got.dtype == torch.float32 and sae.finished and not sae.training
    assert not any(p.requires_grad for p in sae.parameters())
    assert ((got != 0) == (f != 0)).all(), int(((got != 0) != (f != 0)).sum())
    assert (f != 0).any() and not (f != 0).all()
    assert (got - f * unit).abs().max() <= tolerance * f.abs().max() * unit
    assert (sae(x) - x_hat).abs().max() <= tolerance * x_hat.abs().max()


def write(folder, name, obj):
    "A file of the kind that its name says"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith('.json'):
        path.write_text(obj if isinstance(obj, str) else json.dumps(obj))
    elif name.endswith('.npz'):
        np.savez(path, **{k: v.numpy() for k, v in obj.items()})
    elif name.endswith('.safetensors'):
        save_file({k: v.contiguous() for k, v in obj.items()}, path)
    else:
        torch.save(obj, path)
    return path


def pick(w, *names):
    return {k: w[k] for k in names}


BASE = ('W_enc', 'b_enc', 'W_dec', 'b_dec')
SAELENS = dict(standard=('relu', BASE), topk=('topk', BASE), jumprelu=('jumprelu', (*BASE, 'threshold')),
    gated=('gated', ('W_enc', 'W_dec', 'b_dec', 'b_gate', 'b_mag', 'r_mag')))


def saelens_cfg(architecture, **more):
    cfg = dict(architecture=architecture, d_in=D, d_sae=M, dtype='float32', device='cpu', apply_b_dec_to_input=False,
        normalize_activations='none', reshape_activations='none', metadata=dict(sae_lens_version='6.54.12',
            model_name='gemma-3-270m', hook_name='blocks.9.hook_resid_post', prepend_bos=True, context_size=128))
    return cfg | (dict(k=K, rescale_acts_by_decoder_norm=False) if architecture == 'topk' else {}) | more


@pytest.mark.parametrize('architecture', SAELENS)
@pytest.mark.parametrize('pre_bias', [True, False, None])
def test_saelens_6(tmp_path, architecture, pre_bias):
    "Absent apply_b_dec_to_input means yes"
    (gate, names), w, x = SAELENS[architecture], weights(), activations()
    cfg = saelens_cfg(architecture, apply_b_dec_to_input=pre_bias)
    if pre_bias is None:
        del cfg['apply_b_dec_to_input']
    write(tmp_path, 'cfg.json', cfg)
    write(tmp_path, 'sae_weights.safetensors', pick(w, *names))
    assert recognise(tmp_path) == 'saelens'
    sae = read_sae(tmp_path)
    same(sae, formula(gate, w, x, pre_bias is not False), x)
    said = origin(sae)
    assert (said['layout'], said['site'], said['model']) == ('saelens', 'resid.9', 'gemma-3-270m')
    assert said['config'] == cfg and len(said['sha256']) == 64 and said['weights'] == 'sae_weights.safetensors'
    kept = {k: sae.metadata[k] for k in ('model_name', 'hook_name', 'prepend_bos', 'context_size')}
    assert kept == dict(model_name='gemma-3-270m', hook_name='blocks.9.hook_resid_post', prepend_bos=True, context_size=128)
    assert origin(read_sae(tmp_path / 'sae_weights.safetensors')) == said


@pytest.mark.parametrize('architecture', SAELENS)
def test_came_in_and_goes_out_again(tmp_path, architecture):
    "What came in is saved as ours, loads by load_sae, and says the same of its origin"
    gate, names = SAELENS[architecture]
    write(tmp_path / 'a', 'cfg.json', saelens_cfg(architecture, apply_b_dec_to_input=True))
    write(tmp_path / 'a', 'sae_weights.safetensors', pick(weights(), *names))
    sae, x = read_sae(tmp_path / 'a'), activations()
    sae.save(tmp_path / 'b')
    for again in (load_sae(tmp_path / 'b'), read_sae(tmp_path / 'b')):
        assert torch.equal(again.encode(x), sae.encode(x)) and torch.equal(again(x), sae(x))
        assert origin(again) == origin(sae)
    assert recognise(tmp_path / 'b') == 'ours'
    assert json.loads((tmp_path / 'b' / 'cfg.json').read_text())['apply_b_dec_to_input'] is False


def test_threshold_stays_itself(tmp_path):
    "log θ is not taken: exp(log θ) differs from θ in the last place for many"
    w = weights()
    write(tmp_path, 'cfg.json', saelens_cfg('jumprelu'))
    write(tmp_path, 'sae_weights.safetensors', pick(w, *SAELENS['jumprelu'][1]))
    sae = read_sae(tmp_path)
    assert torch.equal(sae.threshold, w['threshold'].clamp_min(0)) and not sae.cfg.log_threshold
    assert (w['threshold'] < 0).any()
    assert torch.equal(sae.W_enc, w['W_enc']) and sae.W_enc.T.is_contiguous()


def test_saelens_topk_in_units_of_rows(tmp_path):
    w, x = weights(), activations()
    write(tmp_path, 'cfg.json', saelens_cfg('topk', apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True))
    write(tmp_path, 'sae_weights.safetensors', pick(w, *BASE))
    sae = read_sae(tmp_path)
    same(sae, formula('topk', w, x, True, rows=True), x)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(M))
    plain = formula('topk', w, x, True)
    assert ((sae.encode(x) != 0) != (plain[0] != 0)).any()  # the rule matters here


@pytest.mark.parametrize('name', ['batchtopk', 'matryoshka_batchtopk'])
@pytest.mark.parametrize('rows', [True, False])
def test_saelens_training_folder_of_batchtopk(tmp_path, name, rows):
    w, x = weights(), activations()
    theta = w['threshold'].max()
    write(tmp_path, 'cfg.json', saelens_cfg(name, k=K, rescale_acts_by_decoder_norm=rows))
    write(tmp_path, 'sae_weights.safetensors', pick(w, *BASE) | dict(topk_threshold=theta.double()))
    sae = read_sae(tmp_path)
    same(sae, formula('one', w, x, False, rows=rows), x)
    assert sae.cfg.k == K
    cfg = saelens_cfg(name, k=K)
    write(tmp_path, 'cfg.json', cfg)
    with pytest.raises(UserError, match='give in_rows='):
        read_sae(tmp_path)
    same(read_sae(tmp_path, in_rows=rows), formula('one', w, x, False, rows=rows), x)


@pytest.mark.parametrize('norm', ['expected_average_only_in', 'covariance_whitening', None, 'none'])
def test_saelens_normalisations_that_change_nothing(tmp_path, norm):
    w, x = weights(), activations()
    write(tmp_path, 'cfg.json', saelens_cfg('jumprelu', normalize_activations=norm))
    write(tmp_path, 'sae_weights.safetensors', pick(w, *SAELENS['jumprelu'][1]))
    same(read_sae(tmp_path), formula('jumprelu', w, x), x)


LEGACY = dict(d_in=D, d_sae=M, dtype='torch.float32', hook_point='blocks.8.hook_resid_pre', hook_point_layer=8,
    model_name='gpt2-small', context_size=128, normalize_activations=None)


@pytest.mark.parametrize('more, gate', [(dict(), 'relu'), (dict(architecture='gated'), 'gated'),
    (dict(activation_fn_str='topk', activation_fn_kwargs=dict(k=K)), 'topk'), (dict(architecture='jumprelu'), 'jumprelu'),
    (dict(normalize_activations=True), 'relu')])
def test_saelens_legacy(tmp_path, more, gate):
    "Flat keys, old names, pre-bias by default, TopK hidden behind 'standard'"
    w, x = weights(), activations()
    names = next(n for g, n in SAELENS.values() if g == gate)
    write(tmp_path, 'cfg.json', LEGACY | more)
    write(tmp_path, 'sae_weights.safetensors', pick(w, *names) | dict(scaling_factor=torch.ones(M)))
    sae = read_sae(tmp_path)
    same(sae, formula(gate, w, x, True), x)
    assert origin(sae)['site'] == 'resid.7' and sae.metadata['hook_name'] == 'blocks.7.hook_resid_post'
    assert origin(sae)['hook'] == 'blocks.8.hook_resid_pre'
    write(tmp_path, 'sae_weights.safetensors', pick(w, *names) | dict(scaling_factor=torch.full((M,), 1.5)))
    with pytest.raises(UserError, match='scaling_factor'):
        read_sae(tmp_path)


@pytest.mark.parametrize('change, says', [
    (dict(normalize_activations='layer_norm'), "'layer_norm'"), (dict(normalize_activations='foo'), "'foo'"),
    (dict(normalize_activations='constant_norm_rescale'), "'constant_norm_rescale'"),
    (dict(architecture='transcoder'), "'transcoder'"), (dict(architecture='abstopk'), "'abstopk'"),
    (dict(architecture='jump_relu'), "'jump_relu'"), (dict(architecture=None), 'architecture'),
    (dict(reshape_activations='odd'), "'odd'"), (dict(d_in=D + 1), f'd_in = {D + 1}'), (dict(d_sae=M - 1), 'd_sae = '),
    (dict(d_sae=10**12), 'd_sae'), (dict(d_sae=-1), 'd_sae'), (dict(d_in='x'), 'd_in'), (dict(k=None), 'give k='),
    (dict(k=0), 'k is 0'), (dict(k=M + 1), f'k={M + 1}'), (dict(k=1e30), 'k is 1e'), (dict(k=True), 'k is True'),
    (dict(apply_b_dec_to_input='yes'), "'yes'"), (dict(rescale_acts_by_decoder_norm=[1]), 'rescale|in_rows'),
    (dict(metadata=[1]), 'architecture|topk|d_in|')])
def test_saelens_refused_by_name(tmp_path, change, says):
    write(tmp_path, 'cfg.json', saelens_cfg('topk') | change)
    write(tmp_path, 'sae_weights.safetensors', pick(weights(), *BASE))
    if 'metadata' in change:
        read_sae(tmp_path)  # odd metadata are no reason
        return
    refused(tmp_path, says)


def refused(where, says, **said):
    "One line that says what is meant"
    with pytest.raises(UserError, match=says) as e:
        read_sae(where, **said)
    assert '\n' not in str(e.value) and len(str(e.value)) < 700
    return str(e.value)


GEMMA_1 = 'gemma-scope-2b-pt-res/layer_9/width_16k/average_l0_73'
GEMMA_2 = 'gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_medium'
GEMMA_CFG = dict(hf_hook_point_in='model.layers.9.output', hf_hook_point_out='model.layers.9.output', width=M,
    model_name='gemma-v3-270m', architecture='jump_relu', l0=60, affine_connection=False, type='sae')


def gemma(w):
    return pick(w, *BASE, 'threshold')


def lower(w):
    return {k.lower(): v for k, v in w.items()}


def test_gemma_scope_1(tmp_path):
    w, x = weights(), activations()
    path = write(tmp_path / GEMMA_1, 'params.npz', gemma(w))
    for where in (path, path.parent):
        sae = read_sae(where)
        same(sae, formula('jumprelu', w, x), x)
        said = origin(sae)
        assert (said['layout'], said['model'], said['site'], said['l0']) == (
            'gemma_scope_1', 'google/gemma-2-2b', 'resid.9', 73)
    path = write(tmp_path / 'bare', 'params.npz', gemma(w))
    refused(path, 'give site=')
    assert origin(read_sae(path, site='mlp.3'))['site'] == 'mlp.3'
    write(tmp_path / 'gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_50', 'params.npz', gemma(w))
    refused(tmp_path / 'gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_50', 'transcoder')
    refused(write(tmp_path / GEMMA_1, 'params.npz', gemma(w)), "says site = 'resid.9'", site='resid.8')


def test_gemma_scope_2(tmp_path):
    w, x = weights(), activations()
    folder = tmp_path / GEMMA_2
    write(folder, 'params.safetensors', lower(gemma(w)))
    write(folder, 'examples.safetensors', dict(a=torch.zeros(3)))
    sae = read_sae(folder)
    same(sae, formula('jumprelu', w, x), x)
    said = origin(sae)
    assert (said['model'], said['site'], said.get('l0')) == ('google/gemma-3-270m', 'resid.9', None)
    write(folder, 'config.json', GEMMA_CFG)
    sae = read_sae(folder)
    assert origin(sae)['l0'] == 60 and origin(sae)['config'] == GEMMA_CFG
    assert sae.metadata['hook_name'] == 'blocks.9.hook_resid_post'
    assert sae.metadata['hf_hook_name'] == 'model.layers.9.output'
    bare = write(tmp_path / 'bare', 'params.safetensors', lower(gemma(w)))
    refused(bare, 'give site=')
    write(tmp_path / 'bare', 'config.json', GEMMA_CFG)
    assert origin(read_sae(bare))['model'] == 'google/gemma-3-270m'


@pytest.mark.parametrize('cfg, tensors, says', [
    (dict(type='transcoder'), {}, 'transcoder'), (dict(type='crosscoder'), {}, 'crosscoder'),
    (dict(hf_hook_point_out='model.layers.9.post_feedforward_layernorm.output'), {}, 'transcoder'),
    (dict(affine_connection=True), {}, 'affine'), (dict(), dict(affine_skip_connection=torch.zeros(D, D)), 'affine'),
    (dict(width=M + 1), {}, f'width = {M + 1}'), (dict(width='wide'), {}, 'width'), (dict(architecture='relu'), {}, 'relu')])
def test_gemma_scope_2_refused(tmp_path, cfg, tensors, says):
    write(tmp_path / GEMMA_2, 'params.safetensors', lower(gemma(weights())) | tensors)
    write(tmp_path / GEMMA_2, 'config.json', GEMMA_CFG | cfg)
    refused(tmp_path / GEMMA_2, says)


@pytest.mark.parametrize('path, want', [
    ('google/gemma-scope-2-270m-pt/attn_out_all/layer_0_width_262k_l0_big', ('google/gemma-3-270m', 'attn.0', None, None)),
    ('models--google--gemma-scope-2-1b-it/snapshots/ab12/mlp_out/layer_17_width_1m_l0_small_seed_1',
        ('google/gemma-3-1b-it', 'mlp.17', None, None)),
    ('gemma-scope-2-4b-pt/transcoder_all/layer_3_width_16k_l0_small_affine', ('google/gemma-3-4b-pt', None, None,
        'transcoder')),
    ('gemma-scope-9b-it-att/layer_20/width_131k/average_l0_9', ('google/gemma-2-9b-it', 'attn.20', 9, None)),
    ('gemma-scope-27b-pt-mlp/layer_2/width_16k/average_l0_9', ('google/gemma-2-27b', 'mlp.2', 9, None)),
    ('gemma-scope-2b-pt-res/embedding/width_4k/average_l0_11', ('google/gemma-2-2b', None, 11, None)),
    ('my/folder', (None, None, None, None))])
def test_paths_say(path, want):
    says = said_by_path(f'/cache/{path}/params.npz')
    assert tuple(says.get(k) for k in ('model', 'site', 'l0', 'other')) == want


def dict_tensors(name, w):
    "A state dict of one of dictionary_learning's classes"
    linear = {'encoder.weight': w['W_enc'].T.contiguous(), 'encoder.bias': w['b_enc'],
        'decoder.weight': w['W_dec'].T.contiguous()}
    k = torch.tensor(K, dtype=torch.int32)
    one = dict(k=k, threshold=w['threshold'].max())
    return dict(AutoEncoder=linear | dict(bias=w['b_dec']), AutoEncoderNew=linear | {'decoder.bias': w['b_dec']},
        GatedAutoEncoder={'encoder.weight': linear['encoder.weight'], 'decoder.weight': linear['decoder.weight'],
            'decoder_bias': w['b_dec'], 'r_mag': w['r_mag'], 'gate_bias': w['b_gate'], 'mag_bias': w['b_mag']},
        JumpReluAutoEncoder=gemma(w), AutoEncoderTopK=linear | dict(b_dec=w['b_dec'], k=k, threshold=torch.tensor(-1.)),
        BatchTopKSAE=linear | dict(b_dec=w['b_dec'], **one),
        MatryoshkaBatchTopKSAE=pick(w, *BASE) | one | dict(group_sizes=torch.tensor([10, 30])))[name]


DICT = dict(AutoEncoder=('relu', True, True), AutoEncoderNew=('relu', False, False), GatedAutoEncoder=('gated', True, False),
    JumpReluAutoEncoder=('jumprelu', False, False), AutoEncoderTopK=('topk', True, False), BatchTopKSAE=('one', True, False),
    MatryoshkaBatchTopKSAE=('one', True, False))  # class -> formula, pre-bias, units of rows


def dict_cfg(name, **more):
    return dict(trainer=dict(dict_class=name, activation_dim=D, dict_size=M, layer=8, lm_name='EleutherAI/pythia-70m',
        submodule_name='resid_post_layer_8') | (dict(k=K) if 'TopK' in name else {}) | more, buffer=dict(ctx_len=128))


@pytest.mark.parametrize('name', DICT)
def test_dictionary_learning(tmp_path, name):
    w, x = weights(), activations()
    gate, pre_bias, rows = DICT[name]
    path = write(tmp_path, 'ae.pt', dict_tensors(name, w))
    want = formula(gate, w, x, pre_bias, rows=rows)
    if name in ('AutoEncoderTopK', 'BatchTopKSAE'):
        refused(tmp_path, 'give dict_class=')
        same(read_sae(tmp_path, dict_class=name), want, x)
    else:
        same(read_sae(path), want, x)
    write(tmp_path, 'config.json', dict_cfg(name))
    sae = read_sae(tmp_path)
    same(sae, want, x)
    said = origin(sae)
    assert (said['layout'], said['site'], said['model']) == ('dictionary_learning', 'resid.8', 'EleutherAI/pythia-70m')
    assert sae.metadata['context_size'] == 128
    checkpoint = write(tmp_path / 'checkpoints', 'ae_100.pt', dict_tensors(name, w))
    assert torch.equal(read_sae(checkpoint).encode(x), sae.encode(x))


@pytest.mark.parametrize('name', DICT)
def test_dictionary_learning_within_a_run(tmp_path, name):
    "Another thing under the name ae.pt: biases of scaled activations, the factor beside them"
    w, x = weights(), activations(8.)
    gate, pre_bias, rows = DICT[name]
    state = dict(step=100, ae=dict_tensors(name, w), optimizer=dict(state={}, param_groups=[dict(lr=1e-3)]),
        config=dict_cfg(name)['trainer'], norm_factor=4.0)
    write(tmp_path, 'ae.pt', state)
    sae = read_sae(tmp_path)
    same(sae, formula(gate, w, x, pre_bias, unit=4., rows=rows), x, unit=4.)
    assert origin(sae)['norm_factor'] == 4.0
    write(tmp_path, 'ae.pt', state | dict(norm_factor=None))
    refused(tmp_path, 'give norm_factor=')
    assert torch.equal(read_sae(tmp_path, norm_factor=4.0).encode(x), sae.encode(x))
    for bad in (0., -1., float('nan'), 'x'):
        write(tmp_path, 'ae.pt', state | dict(norm_factor=bad))
        refused(tmp_path, 'norm_factor')


def test_dictionary_learning_refused(tmp_path):
    w = weights()
    never = dict_tensors('BatchTopKSAE', w) | dict(threshold=torch.tensor(-1.))
    write(tmp_path / 'a', 'ae.pt', never)
    write(tmp_path / 'a', 'config.json', dict_cfg('BatchTopKSAE'))
    refused(tmp_path / 'a', 'never set')
    for i, (cfg, says) in enumerate(((dict_cfg('Foo'), "'Foo'"), (dict_cfg('AutoEncoder', activation_dim=7), 'activation_dim'),
            (dict_cfg('AutoEncoder', dict_size=7), 'dict_size = 7'), (dict_cfg('GatedAutoEncoder'), 'lacks decoder_bias'))):
        write(tmp_path / str(i), 'ae.pt', dict_tensors('AutoEncoder', w))
        write(tmp_path / str(i), 'config.json', cfg)
        refused(tmp_path / str(i), says)
    write(tmp_path / 'k', 'ae.pt', dict_tensors('AutoEncoderTopK', w))
    write(tmp_path / 'k', 'config.json', dict_cfg('AutoEncoderTopK', k=K + 1))
    refused(tmp_path / 'k', f'k = {K + 1}')


def sparsify_tensors(w):
    return {'encoder.weight': w['W_enc'].T, 'encoder.bias': w['b_enc'], 'W_dec': w['W_dec'], 'b_dec': w['b_dec']}


SPARSIFY = dict(activation='topk', expansion_factor=32, normalize_decoder=True, num_latents=M, k=K, multi_topk=False,
    skip_connection=False, transcode=False, d_in=D)


def test_sparsify(tmp_path):
    w, x = weights(), activations()
    folder = tmp_path / 'layers.10'
    write(folder, 'sae.safetensors', sparsify_tensors(w))
    write(folder, 'cfg.json', SPARSIFY)
    sae = read_sae(folder)
    same(sae, formula('topk', w, x, True), x)
    assert origin(sae)['site'] == 'resid.10' and origin(sae)['hook'] == 'layers.10' and sae.cfg.k == K
    for change, says in ((dict(transcode=True), 'transcoder'), (dict(skip_connection=True), 'skip'),
            (dict(activation='groupmax'), 'groupmax'), (dict(num_latents=0), 'expansion_factor'), (dict(d_in=9), 'd_in'),
            (dict(num_latents=M + 1), 'num_latents'), (dict(k=None), 'give k=')):
        write(folder, 'cfg.json', SPARSIFY | change)
        refused(folder, says)
    assert read_sae(folder, k=K).cfg.k == K
    write(folder, 'cfg.json', SPARSIFY)
    write(folder, 'sae.safetensors', sparsify_tensors(w) | dict(W_skip=torch.zeros(D, D)))
    refused(folder, 'skip')


def test_openai(tmp_path):
    w, x = weights(), activations()
    t = {'pre_bias': w['b_dec'], 'encoder.weight': w['W_enc'].T, 'latent_bias': w['b_enc'], 'decoder.weight': w['W_dec'].T,
        'stats_last_nonzero': torch.zeros(M, dtype=torch.long), 'latents_activation_frequency': torch.ones(M),
        'latents_mean_square': torch.zeros(M), 'activation': 'ReLU', 'activation_state_dict': {}}
    write(tmp_path, 'v5_32k.pt', t)
    assert recognise(tmp_path) == 'openai'
    same(read_sae(tmp_path), formula('relu', w, x, True), x)
    write(tmp_path, 'v5_32k.pt', t | dict(activation='TopK', activation_state_dict=dict(k=K, postact_fn='ReLU')))
    refused(tmp_path, 'mean 0 and deviation 1')
    write(tmp_path, 'v5_32k.pt', t | dict(activation='Identity'))
    refused(tmp_path, "'Identity'")
    write(tmp_path, 'another.pt', t)
    refused(tmp_path, '2 files .pt')
    same(read_sae(tmp_path / 'another.pt'), formula('relu', w, x, True), x)


def test_qwen_scope(tmp_path):
    w, x = weights(), activations()
    t = dict(W_enc=w['W_enc'].T.contiguous(), W_dec=w['W_dec'].T.contiguous(), b_enc=w['b_enc'], b_dec=w['b_dec'])
    path = write(tmp_path, 'layer7.sae.pt', t)
    refused(path, 'give k=')
    sae = read_sae(path, k=K)
    same(sae, formula('topk', w, x), x)
    assert origin(sae)['site'] == 'resid.7' and recognise(tmp_path) == 'qwen_scope'
    path = write(tmp_path / 'SAE-Res-Qwen3-1.7B-Base-W32K-L0_50', 'layer7.sae.pt', t)
    refused(path, 'width = 32768')
    wide = dict(W_enc=torch.randn(1024, D), W_dec=torch.randn(D, 1024), b_enc=torch.zeros(1024), b_dec=torch.zeros(D))
    sae = read_sae(write(tmp_path / 'SAE-Res-Qwen3-1.7B-Base-W1K-L0_50', 'layer7.sae.pt', wide))
    assert sae.cfg.k == 50 and origin(sae)['model'] == 'Qwen/Qwen3-1.7B-Base' and origin(sae)['l0'] == 50


LM_SAES = dict(sae_type='sae', d_model=D, expansion_factor=1, act_fn='jumprelu', top_k=K, norm_activation='dataset-wise',
    sparsity_include_decoder_norm=True, hook_point_in='blocks.9.hook_resid_post', hook_point_out='blocks.9.hook_resid_post')
AVERAGE = 'dataset_average_activation_norm.blocks.9.hook_resid_post'


@pytest.mark.parametrize('act', ['jumprelu', 'topk', 'relu'])
@pytest.mark.parametrize('rows', [True, False])
@pytest.mark.parametrize('norm', ['dataset-wise', 'inference'])
def test_llamascopium(tmp_path, act, rows, norm):
    w, x = weights(), activations(6.)
    w['threshold'] = w['threshold'].abs() + 0.05
    unit = 30. / D**0.5 if norm == 'dataset-wise' else 1.0
    t = dict(W_E=w['W_enc'], b_E=w['b_enc'], W_D=w['W_dec'], b_D=w['b_dec']) | {
        AVERAGE: torch.tensor(30. if unit != 1 else float('nan'))}
    if act == 'jumprelu':
        t['activation_function.log_jumprelu_threshold'] = w['threshold'].log()
    cfg = LM_SAES | dict(act_fn=act, sparsity_include_decoder_norm=rows, norm_activation=norm)
    del cfg['expansion_factor']
    write(tmp_path, 'config.json', cfg)
    write(tmp_path, 'sae_weights.safetensors', t)
    sae = read_sae(tmp_path)
    want = formula(act, w, x, unit=unit, score_rows=rows)
    if act == 'topk' and rows:  # latents in the unit in which they are compared
        want = want[0] * w['W_dec'].double().norm(dim=1), want[1]
    same(sae, want, x, unit=unit)
    assert origin(sae)['site'] == 'resid.9'
    del cfg['sparsity_include_decoder_norm']
    write(tmp_path, 'config.json', cfg)
    refused(tmp_path, 'give in_rows=')
    assert torch.equal(read_sae(tmp_path, in_rows=rows).encode(x), sae.encode(x))


@pytest.mark.parametrize('change, says', [(dict(sae_type='crosscoder'), 'crosscoder'), (dict(act_fn='batchtopk'), 'batchtopk'),
    (dict(norm_activation='token-wise'), 'token-wise'), (dict(norm_activation=None), 'norm_activation'),
    (dict(hook_point_out='blocks.9.hook_mlp_out'), 'transcoder'), (dict(use_glu_encoder=True), 'gated linear'),
    (dict(d_model=D + 1), 'd_model'), (dict(expansion_factor=3), 'expansion_factor'), (dict(hook_point_in='a',
        hook_point_out='a'), 'give norm_factor=')])
def test_llamascopium_refused(tmp_path, change, says):
    w = weights()
    write(tmp_path, 'config.json', {k: v for k, v in LM_SAES.items() if k != 'expansion_factor'} | change)
    write(tmp_path, 'sae_weights.safetensors', dict(W_E=w['W_enc'], b_E=w['b_enc'], W_D=w['W_dec'], b_D=w['b_dec']) | {
        AVERAGE: torch.tensor(30.), 'activation_function.log_jumprelu_threshold': torch.zeros(M)})
    refused(tmp_path, says)


def test_llama_scope(tmp_path):
    "One threshold, which belongs to raw activations"
    w, x, unit = weights(unit_rows=True), activations(6.), 30. / D**0.5
    cfg = dict(d_model=D, d_sae=M, act_fn='jumprelu', jump_relu_threshold=2.5, hook_point_in='blocks.15.hook_resid_post',
        hook_point_out='blocks.15.hook_resid_post', apply_decoder_bias_to_pre_encoder=False,
        dataset_average_activation_norm={'in': 30., 'out': 30.})
    write(tmp_path, 'hyperparams.json', cfg)
    write(tmp_path, 'checkpoints/final.safetensors', {'encoder.weight': w['W_enc'].T, 'encoder.bias': w['b_enc'],
        'decoder.weight': w['W_dec'].T, 'decoder.bias': w['b_dec']})
    w['threshold'] = torch.full((M,), 2.5, dtype=torch.float64) / unit
    sae = read_sae(tmp_path)
    same(sae, formula('jumprelu', w, x, unit=unit), x, unit=unit)
    assert torch.equal(sae.threshold, torch.full((M,), 2.5))
    assert origin(sae)['site'] == 'resid.15' and recognise(tmp_path / 'checkpoints' / 'final.safetensors') == 'llama_scope'
    del cfg['apply_decoder_bias_to_pre_encoder']
    write(tmp_path, 'hyperparams.json', cfg)
    refused(tmp_path, 'give pre_bias=')
    same(read_sae(tmp_path, pre_bias=True), formula('jumprelu', w, x, True, unit=unit), x, unit=unit)
    for change, says in ((dict(jump_relu_threshold=None), 'jump_relu_threshold'), (dict(act_fn='topk'), 'activation'),
            (dict(dataset_average_activation_norm={}), 'give norm_factor='), (dict(d_sae=3), 'd_sae = 3')):
        write(tmp_path, 'hyperparams.json', cfg | change)
        refused(tmp_path, says, pre_bias=False)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(tmp_path, dtype):
    w, x = {k: v.to(dtype) for k, v in weights().items()}, activations()
    write(tmp_path / GEMMA_2, 'params.safetensors', lower(gemma(w)))
    same(read_sae(tmp_path / GEMMA_2), formula('jumprelu', {k: v.float() for k, v in w.items()}, x), x)


def test_which_layout(tmp_path):
    assert layouts_of(['params.safetensors', 'examples.safetensors']) == ['gemma_scope_2']
    assert layouts_of(['cfg.json', 'sae_weights.safetensors', 'README.md']) == ['saelens']
    assert layouts_of(['hyperparams.json', 'checkpoints/final.safetensors']) == ['llama_scope']
    assert layouts_of(['ae.pt', 'config.json']) == ['dictionary_learning'] and layouts_of(['x.pt']) == ['openai']
    assert layouts_of(['model.safetensors', 'config.json']) == []
    assert set(READERS) == set(FILES) and set(OPTIONAL) <= set(FILES)
    (tmp_path / 'empty').mkdir()
    assert 'found nothing' in refused(tmp_path / 'empty', 'give the folder')
    write(tmp_path / 'two', 'params.safetensors', lower(gemma(weights())))
    write(tmp_path / 'two', 'params.npz', gemma(weights()))
    assert 'gemma_scope_1 and gemma_scope_2' in refused(tmp_path / 'two', 'layout=')
    assert origin(read_sae(tmp_path / 'two', 'gemma_scope_1', site='resid.1'))['layout'] == 'gemma_scope_1'
    for where, says in (('', 'no folder'), (None, 'no folder'), (7, 'no folder'), ('no/such', 'no such'),
            ('x\0y', 'no such'), ('x' * 5000, 'no such')):
        refused(where, says)
    refused(tmp_path / 'two', 'no such layout', layout='foo')
    refused(tmp_path / 'two', 'no such answer', layout='gemma_scope_1', foo=1)
    refused(tmp_path / 'two', 'unknown site', layout='gemma_scope_1', site='foo.1')
    refused(tmp_path / 'two', 'leaves no such question', layout='gemma_scope_1', site='resid.1', k=5)


def finished(gate, **settings):
    made = make_sae(SAEConfig(gate, D, M, **settings))
    made.load_state_dict({k: v + 0.1 * torch.randn(v.shape, generator=torch.Generator().manual_seed(len(k))) if
        v.is_floating_point() and v.dim() else v for k, v in made.state_dict().items()})
    meta = dict(hook_name='blocks.9.hook_resid_post', hf_hook_name='model.layers.9.output', model_name='google/gemma-3-270m')
    return made.eval().finish(Scaler(torch.ones(D), 3.), meta)


@pytest.mark.parametrize('gate, settings', [('jumprelu', dict(theta_init=.2)), ('relu', {})])
@pytest.mark.parametrize('version', [1, 2])
def test_out_and_in_again(tmp_path, gate, settings, version):
    sae, x = finished(gate, **settings), activations()
    write_gemma_scope(tmp_path, sae, version)
    assert sorted(o.name for o in tmp_path.iterdir()) == (['params.npz'] if version == 1 else ['config.json',
        'params.safetensors'])
    back = read_sae(tmp_path, **(dict(site='resid.9') if version == 1 else {}))
    assert torch.equal(back.encode(x), sae.encode(x)) and torch.equal(back(x), sae(x))
    if version == 2:
        assert set(load_file(tmp_path / 'params.safetensors')) == {'w_enc', 'w_dec', 'b_enc', 'b_dec', 'threshold'}
        assert origin(back)['model'] == 'google/gemma-3-270m'
    write_gemma_scope(tmp_path / 'again', back, 2)
    assert torch.equal(read_sae(tmp_path / 'again').encode(x), sae.encode(x))


def test_not_everything_goes_out(tmp_path):
    for gate in ('gated', 'topk'):
        with pytest.raises(UserError, match='JumpReLU only'):
            write_gemma_scope(tmp_path, finished(gate))
    with pytest.raises(UserError, match='finished'):
        write_gemma_scope(tmp_path, make_sae(SAEConfig('jumprelu', D, M)))
    for version in (0, 3, '2', None):
        with pytest.raises(UserError, match='version'):
            write_gemma_scope(tmp_path, finished('jumprelu'), version)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('earlier', [False, True])
def test_our_own_folder(tmp_path, earlier):
    sae, x = finished('jumprelu', theta_init=.2), activations()
    sae.save(tmp_path)
    assert recognise(tmp_path) == 'ours' and torch.equal(read_sae(tmp_path).encode(x), sae.encode(x))
    assert torch.equal(read_sae(tmp_path / 'sae_weights.safetensors').encode(x), sae.encode(x))
    assert origin(read_sae(tmp_path)) == {}
    cfg = json.loads((tmp_path / 'cfg.json').read_text())
    cfg['d_sae'] = cfg['metadata']['jumprelu_sae']['config']['d_sae'] = 2**30  # 128 GB, if it were believed
    write(tmp_path, 'cfg.json', cfg)
    refused(tmp_path, 'the tensors have')


def test_fold_is_exact():
    "Every flag at once, in float64 beside the formula"
    w, x = weights(), activations(5.)
    p = Parts('topk', w['W_enc'].clone(), w['b_enc'], w['W_dec'].clone(), w['b_dec'], True, dict(k=K), 3., True)
    q = fold(p)
    f = top(x.double() @ q.W_enc.double() + q.b_enc.double())
    want, x_hat = formula('topk', w, x, True, 3., rows=True)
    assert (f - 3 * want).abs().max() < 1e-5 and not q.pre_bias and q.unit == 1
    assert ((f @ q.W_dec.double() + q.b_dec.double()) - x_hat).abs().max() < 1e-5
    w['W_dec'][3] = 0
    q = fold(Parts('topk', w['W_enc'].clone(), w['b_enc'], w['W_dec'].clone(), w['b_dec'], False, dict(k=K), in_rows=True))
    assert torch.isfinite(q.W_dec).all() and not q.W_enc[:, 3].any()


# Files that were made to hurt

class Touch:
    "A pickle that makes a file, if it is run"

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_pickles_are_not_run(tmp_path):
    mark, w = tmp_path / 'mark', weights()
    bad = dict(dict_tensors('AutoEncoder', w), evil=Touch(mark))
    for name, folder in (('ae.pt', 'a'), ('layer7.sae.pt', 'b'), ('any.pt', 'c')):
        path = write(tmp_path / folder, name, bad)
        assert 'nothing was run' in refused(path, 'io open|builtins open|_io open')
        refused(path.parent, 'nothing was run')
    folder = tmp_path / GEMMA_1
    write(folder, 'params.npz', gemma(w))
    evil = np.empty(1, dtype=object)
    evil[0] = Touch(mark)
    np.savez(folder / 'params.npz', **{k: v.numpy() for k, v in gemma(w).items() if k != 'b_enc'}, b_enc=evil)
    refused(folder, 'pickle')
    with open(tmp_path / 'c' / 'any.pt', 'wb') as f:  # a plain pickle, as torch wrote them long ago
        pickle.dump(Touch(mark), f)
    refused(tmp_path / 'c' / 'any.pt', 'no zip file')
    for name in ('params.npz', 'params.safetensors'):
        (tmp_path / 'd').mkdir(exist_ok=True)
        (tmp_path / 'd' / name).write_bytes(pickle.dumps(Touch(mark)))
    refused(tmp_path / 'd' / 'params.npz', 'no npz file')
    refused(tmp_path / 'd' / 'params.safetensors', 'no safetensors file')
    assert not mark.exists()
    torch.load(tmp_path / 'a' / 'ae.pt', weights_only=False)  # and so it would have been
    assert mark.exists()


def raw_safetensors(path, head, data=b''):
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack('<Q', len(head)) + head + data)
    return path


def entry(shape=(2,), dtype='F32', at=(0, 8)):
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(at))


@pytest.mark.parametrize('head, data, says', [
    (dict(w_enc=entry((640, 2**30), at=(0, 8))), 8, 'claims shape'), (dict(w_enc=entry((2**62, 2**62))), 8, 'shape'),
    (dict(w_enc=entry(at=(0, 2**40))), 8, 'outside'), (dict(w_enc=entry(at=(8, 0))), 8, 'outside'),
    (dict(w_enc=entry(at=(-8, 0))), 8, 'outside'), (dict(w_enc=entry(dtype='F99')), 8, 'F99'),
    (dict(w_enc=entry((-1, -2))), 8, 'shape'), (dict(w_enc=entry((2.0,))), 8, 'shape'), (dict(w_enc=7), 8, 'outside'),
    (dict(w_enc=entry((1,) * 9 + (2,))), 8, 'shape'), (b'[1]', 8, 'no object'), (b'{"a', 8, 'not JSON'),
    (b'[' * 100_000, 8, 'not JSON'), (b'\xff\xfe', 8, 'not JSON'), (dict(w_enc=dict(entry(), dtype=['F32'])), 8, 'type')])
def test_headers_that_lie(tmp_path, head, data, says):
    refused(raw_safetensors(tmp_path / GEMMA_2 / 'params.safetensors', head, b'\0' * data), says)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / GEMMA_2 / 'params.safetensors'
    path.parent.mkdir(parents=True)
    for content in (b'', b'123', struct.pack('<Q', 2**60) + b'{}', struct.pack('<Q', 0) + b'{}'):
        path.write_bytes(content)
        refused(path, 'no safetensors file')
    path.write_bytes(struct.pack('<Q', 2**25) + b' ' * 2**25)
    refused(path, 'no safetensors file')


def npy(shape, data=b'', dtype='<f4', descr=None):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr=descr or dtype, fortran_order=False, shape=shape))
    return out.getvalue() + data


def raw_npz(path, entries, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w', compression) as z:
        for name, content in entries.items():
            z.writestr(name, content)
    return path


@pytest.mark.parametrize('entries, says', [
    ({'W_enc.npy': npy((640, 2**30), b'\0' * 8)}, 'claims shape'), ({'W_enc.npy': npy((2**62, 4), b'\0' * 8)}, 'shape'),
    ({'../../W_enc.npy': npy((2,), b'\0' * 8)}, 'odd name'), ({'/etc/W_enc.npy': npy((2,), b'\0' * 8)}, 'odd name'),
    ({'a\\b.npy': npy((2,), b'\0' * 8)}, 'odd name'), ({'W_enc.pkl': b'abc'}, 'odd name'), ({'W_enc.npy': b'abc'}, 'header'),
    ({'W_enc.npy': npy((2,), b'\0' * 4)}, 'claims shape'), ({f'a{i}.npy': b'' for i in range(100)}, 'far more'),
    ({'W_enc.npy': npy((2,), b'\0' * 16, descr='|O')}, 'pickle'), ({'W_enc.npy': b'\x93NUMPY\x09\x00abc'}, 'header'),
    ({'W_enc.npy': b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')"}, 'header')])
def test_arrays_that_lie(tmp_path, entries, says):
    refused(raw_npz(tmp_path / GEMMA_1 / 'params.npz', entries), says)
    assert not (tmp_path.parent / 'W_enc.npy').exists()


def test_a_zip_that_unpacks_to_far_more(tmp_path):
    bomb = {'W_enc.npy': npy((2**24,), b'\0' * 2**26)}
    path = raw_npz(tmp_path / GEMMA_1 / 'params.npz', bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    refused(path, 'far more than it weighs')


def change_pickle(path, old, new):
    "Another program in a `.pt`, of the same tensors"
    with zipfile.ZipFile(path) as z:
        entries = {o: z.read(o) for o in z.namelist()}
    name = next(o for o in entries if o.endswith('data.pkl'))
    assert old in entries[name]
    entries[name] = entries[name].replace(old, new)
    return raw_npz(path, entries)


def test_a_pickle_that_claims_a_billion_numbers(tmp_path):
    t = dict(W_enc=torch.zeros(4, 3), b_enc=torch.zeros(4), W_dec=torch.zeros(3, 4), b_dec=torch.zeros(3))
    for old, new in ((b'K\x04\x85', b'J\x00\x00\x00\x40\x85'), (b'K\x04K\x03\x86', b'J\x00\x00\x00\x40K\x03\x86')):
        path = write(tmp_path, 'layer1.sae.pt', t)
        read_sae(path, k=1)
        refused(change_pickle(path, old, new), 'layer1.sae.pt', k=1)
    huge = dict(t, W_enc=torch.zeros(1).expand(2**20, 2**20))  # a view of one number
    refused(write(tmp_path, 'layer1.sae.pt', huge), 'more than the file has', k=1)
    path = write(tmp_path, 'layer1.sae.pt', t)
    with zipfile.ZipFile(path) as z:
        entries = {o: z.read(o) for o in z.namelist()}
    refused(raw_npz(path, entries, zipfile.ZIP_DEFLATED), 'no file of torch.save', k=1)


@pytest.mark.parametrize('obj, says', [([1], 'holds a list'), (torch.zeros(3), 'holds a Tensor'), ({1: torch.zeros(3)}, 'holds a'),
    (dict(ae=3), 'no dict'), (dict(ae={}, norm_factor=1.), 'give dict_class='), (dict(), 'give dict_class='),
    (dict(a=torch.zeros(2).to_sparse()), 'nothing was run|layout|claims')])
def test_odd_contents_of_a_pt(tmp_path, obj, says):
    refused(write(tmp_path, 'ae.pt', obj), says, **(dict(norm_factor=1.) if obj == dict(ae=3) else {}))


@pytest.mark.parametrize('layout', ['npz', 'safetensors', 'pt'])
@pytest.mark.parametrize('change, says', [
    (dict(b_enc=None), 'lacks b_enc'), (dict(foo=torch.zeros(3)), 'has foo besides'),
    (dict(b_enc=torch.zeros(M, dtype=torch.int32)), 'b_enc is no floating-point'), (dict(b_enc=torch.zeros(M + 1)), 'b_enc'),
    (dict(b_enc=torch.zeros(M, 1)), 'b_enc'), (dict(W_dec=torch.zeros(D, M)), 'W_dec'), (dict(W_enc=torch.zeros(D)), 'W_enc'),
    (dict(threshold=torch.tensor(1.)), 'threshold'), (dict(b_dec=torch.full((D,), float('nan'))), 'b_dec holds NaN'),
    (dict(W_enc=torch.full((D, M), float('inf'))), 'W_enc holds NaN or inf'), (dict(W_enc=torch.zeros(0, M)), 'W_enc')])
def test_tensors_that_do_not_fit(tmp_path, layout, change, says):
    t = {k: v for k, v in (gemma(weights()) | change).items() if v is not None}
    if layout == 'npz':
        where = write(tmp_path / GEMMA_1, 'params.npz', t)
    elif layout == 'safetensors':
        where, says = write(tmp_path / GEMMA_2, 'params.safetensors', lower(t)), f'(?i){says}'
    else:
        where = write(tmp_path, 'ae.pt', t)
        write(tmp_path, 'config.json', dict_cfg('JumpReluAutoEncoder'))
    refused(where, says)


@pytest.mark.parametrize('text, says', [('', 'no JSON'), ('{', 'no JSON'), ('[1]', 'holds a list'), ('3', 'holds a int'),
    ('{"d_in": ' + '9' * 5000 + '}', 'no JSON'), ('[' * 200_000, 'no JSON'), ('null', 'NoneType'), (None, 'bytes, far more')])
@pytest.mark.parametrize('ours', [True, False])
def test_settings_that_are_none(tmp_path, text, says, ours):
    "cfg.json beside good weights"
    if ours:
        finished('jumprelu').save(tmp_path)
    else:
        write(tmp_path, 'sae_weights.safetensors', gemma(weights()))
    (tmp_path / 'cfg.json').write_text('{"a": "' + 'x' * 2**24 + '"}' if text is None else text)
    refused(tmp_path, says)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / 'params.safetensors').mkdir()
    refused(tmp_path, 'is not there', site='resid.1')
    (tmp_path / 'b' / 'cfg.json').mkdir(parents=True)
    write(tmp_path / 'b', 'sae_weights.safetensors', gemma(weights()))
    refused(tmp_path / 'b', 'is not there')


HOG = '''
import re, resource, sys
from pathlib import Path
from jumprelu_sae.core import UserError
from jumprelu_sae.formats import read_sae
status = Path('/proc/self/status')
def peak(): # MB; on Linux getrusage's peak begins with that of the process that started this one
    if status.exists(): return int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for where in sys.argv[1:]:
    try: read_sae(where, site='resid.1') if 'layer' not in where else read_sae(where, k=1)
    except UserError as e: print('refused', str(e)[:90])
print(peak() - before)
'''


def test_memory_stays_bounded(tmp_path):
    "Files of kilobytes that claim terabytes, in a process of their own: its peak grows by some megabytes"
    t = dict(W_enc=torch.zeros(4, 3), b_enc=torch.zeros(4), W_dec=torch.zeros(3, 4), b_dec=torch.zeros(3))
    bomb = {'W_enc.npy': npy((2**28,), b'\0' * 2**26)}
    finished('jumprelu').save(tmp_path / 'ours')
    cfg = json.loads((tmp_path / 'ours' / 'cfg.json').read_text())
    cfg['d_sae'] = cfg['metadata']['jumprelu_sae']['config']['d_sae'] = 2**30
    write(tmp_path / 'ours', 'cfg.json', cfg)
    where = [raw_safetensors(tmp_path / 'a' / 'params.safetensors', dict(w_enc=entry((640, 2**30))), b'\0' * 8),
        raw_npz(tmp_path / 'b' / 'params.npz', {'W_enc.npy': npy((640, 2**30), b'\0' * 8)}),
        raw_npz(tmp_path / 'c' / 'params.npz', bomb, zipfile.ZIP_DEFLATED), tmp_path / 'ours',
        write(tmp_path / 'd', 'layer1.sae.pt', dict(t, W_enc=torch.zeros(1).expand(2**20, 2**20))),
        change_pickle(write(tmp_path / 'e', 'layer1.sae.pt', t), b'K\x04K\x03\x86', b'J\x00\x00\x00\x40K\x03\x86')]
    r = subprocess.run([sys.executable, '-c', HOG, *map(str, where)], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    *said, grown = r.stdout.splitlines()
    assert len(said) == len(where), r.stdout
    assert int(grown) < 64, r.stdout
