"Harvests: kills and damage at many places, batch and shard sizes, bad input"
import json, random
import pytest, torch
from jumprelu_sae import core, harvest as H
from jumprelu_sae.core import UserError
from jumprelu_sae.harvest import ActivationStore, fit_massive, harvest, prepare
from jumprelu_sae.lm import Site, capture, load_lm
from jumprelu_sae.text import ByteTokenizer, Document, generated_corpus, pack

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products are faster on one thread than shared out over several"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

lm = load_lm('tiny-gemma3')
tokens = pack(generated_corpus(10), ByteTokenizer(), 24, 23*11-9)
whole = {k: capture(lm, tokens.ids, f'{k}.2')[Site(k, 2)][tokens.mask] for k in ('resid', 'mlp', 'attn')}
def go(path, site='resid.2', t=tokens, **kw): return harvest(lm, t, site, path, **dict(batch_rows=2, shard_rows=3, progress=False) | kw)
def shas(s): return [o['sha256'] for o in s.manifest['shards']]

@pytest.mark.parametrize('kind', ['resid', 'mlp', 'attn'])
@pytest.mark.parametrize('batch,shard', [(1, 4), (3, 5), (16, 256)])
def test_any_batch_and_shard(tmp_path, kind, batch, shard):
    s = go(tmp_path, f'{kind}.2', batch_rows=batch, shard_rows=shard)
    a = s.load()
    assert s.n == tokens.n_tokens == len(a['x']) and s.d_in == whole[kind].shape[1]
    assert (a['x']-whole[kind]).abs().max() < 1e-5
    assert torch.equal(a['token'].long(), tokens.ids[tokens.mask]) and torch.equal(a['doc'].long(), tokens.doc[tokens.mask])
    assert torch.equal(tokens.ids[a['row'], a['pos']], a['token'].long()) and not (a['pos'] == 0).any()

class Dead(BaseException): pass

@pytest.mark.parametrize('site', ['write', 'rename', 'model'])
def test_killed_anywhere(tmp_path, monkeypatch, site):
    "Dies at the n-th model pass, write or rename; the rerun keeps what was finished and ends identical"
    want = shas(go(tmp_path/'ref'))
    owner, name = dict(write=(core, 'save_file'), rename=(core.os, 'replace'), model=(H, 'capture'))[site]
    for n in range(8):
        real, left = getattr(owner, name), [n]
        def dying(*a, **k):
            if left[0] == 0: raise Dead
            left[0] -= 1
            return real(*a, **k)
        out = tmp_path/f'{site}{n}'
        with monkeypatch.context() as m:
            m.setattr(owner, name, dying)
            try: go(out)
            except Dead: pass
        before = {p.name: p.stat().st_mtime_ns for p in out.glob('shard*')}
        kept = {o['file'] for o in json.loads((out/'manifest.json').read_text())['shards']} if (out/'manifest.json').exists() else set()
        assert len(before.keys() - kept) <= 1   # at most the shard in flight is unknown to the manifest
        s = go(out)
        assert shas(s) == want and not s.verify() and not list(out.glob('.*'))
        assert all((out/f).stat().st_mtime_ns == before[f] for f in kept)   # finished shards were not touched

def test_one_byte_anywhere(tmp_path, capsys):
    "One bit flipped in 20 random places of the shards: found, named, mended"
    want, r = shas(go(tmp_path)), random.Random(0)
    for _ in range(20):
        f = r.choice(sorted(tmp_path.glob('shard*')))
        b = bytearray(f.read_bytes()); b[r.randrange(len(b))] ^= 1 << r.randrange(8); f.write_bytes(b)
        assert ActivationStore(tmp_path).verify() == [f.name]
        with pytest.raises(UserError, match=f.name): ActivationStore(tmp_path).load()
        assert shas(go(tmp_path)) == want and f.name in capsys.readouterr().out

def test_a_damaged_shard_does_not_cost_the_others(tmp_path, monkeypatch):
    "Killed while it mends the first of four shards: the manifest still knows the other three"
    go(tmp_path)
    (tmp_path/'shard-00000.safetensors').unlink()
    calls, real = [], H.capture
    with monkeypatch.context() as m:
        m.setattr(H, 'capture', lambda *a: 1/0)
        with pytest.raises(ZeroDivisionError): go(tmp_path)
    monkeypatch.setattr(H, 'capture', lambda *a: (calls.append(1), real(*a))[1])
    go(tmp_path)
    assert len(calls) == 2   # one shard of 3 rows in batches of 2

@pytest.mark.parametrize('change', [dict(site='mlp.2'), dict(t=tokens[:5]), dict(shard_rows=4), dict(dtype=torch.bfloat16)])
def test_another_harvest_is_not_overwritten(tmp_path, change):
    want = shas(go(tmp_path))
    with pytest.raises(UserError, match='holds another harvest'): go(tmp_path, **change)
    assert shas(ActivationStore(tmp_path)) == want

def test_rows_without_counted_tokens(tmp_path):
    "A shard of nothing but specials has no file, and nobody minds"
    t = tokens[:6]
    t.mask = t.mask.clone(); t.mask[0:3] = False
    s = go(tmp_path, t=t)
    assert s.n == t.n_tokens and [o['file'] for o in s.manifest['shards']] == ['shard-00001.safetensors'] and s.load()['row'].min() == 3

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite(tmp_path, value):
    bad = load_lm('tiny-gemma3')
    bad.layers[1].mlp.down_proj.weight.data[0,0] = value
    with pytest.raises(UserError, match='non-finite activations at resid.2, batch of rows 0 to 1') as e: harvest(bad, tokens, 'resid.2', tmp_path, 2, 3, progress=False)
    assert '\n' not in str(e.value) and not list(tmp_path.glob('shard*'))

@pytest.mark.parametrize('call,match', [
    (lambda p: go(p, 'resid.7'), 'layers 0 to 3'),
    (lambda p: go(p, 'residual.1'), 'want a kind'),
    (lambda p: go(p, t=tokens[:0]), 'no tokens'),
    (lambda p: ActivationStore(p), 'holds no harvest'),
    (lambda p: prepare(torch.ones(50, 3)), 'constant or not finite'),
    (lambda p: prepare(torch.full((50, 3), float('nan'))), 'not finite'),
])
def test_bad_input_is_one_line(tmp_path, call, match):
    with pytest.raises(UserError, match=match) as e: call(tmp_path)
    assert '\n' not in str(e.value)

def test_rule_and_scaler_ignore_massive_tokens():
    x = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0)) + 1
    loud = torch.cat([x, 1e4*torch.ones(3, 16)])
    (s, r), (s0, r0) = prepare(loud), prepare(x)
    assert r(loud).sum() == 3 and torch.allclose(s.mean, s0.mean) and abs(s.scale-s0.scale) < 1e-4*s0.scale
    assert abs(r.median-r0.median) < 1e-2*r0.median and fit_massive(loud).median == r.median
