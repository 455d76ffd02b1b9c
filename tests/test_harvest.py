"Harvests: kills, damage and full disks at many places, several sites, random access, batch and shard sizes, bad input"
import errno, fcntl, json, os, random, subprocess, sys
from pathlib import Path
import pytest, torch
from safetensors import SafetensorError
from jumprelu_sae import core, harvest as H
from jumprelu_sae.core import UserError
from jumprelu_sae.harvest import ActivationStore, fit_massive, harvest, prepare, store_bytes, tokenizer_hash
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sites import Site, capture
from jumprelu_sae.text import ByteTokenizer, Document, generated_corpus, pack

# the clock of a file system may stand still for milliseconds
def written(f): return f.stat().st_ino, f.stat().st_mtime_ns

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
def go(path, site='resid.2', t=tokens, **kw):
    return harvest(lm, t, site, path, **dict(batch_rows=2, shard_rows=3, progress=False) | kw)
def shas(s): return [o['sha256'] for o in s.manifest['shards']]

@pytest.mark.parametrize('kind', ['resid', 'mlp', 'attn'])
@pytest.mark.parametrize('batch,shard', [(1, 4), (3, 5), (16, 256)])
def test_any_batch_and_shard(tmp_path, kind, batch, shard):
    s = go(tmp_path, f'{kind}.2', batch_rows=batch, shard_rows=shard)
    a = s.load()
    assert s.n == tokens.n_tokens == len(a['x']) and s.d_in == whole[kind].shape[1]
    assert (a['x']-whole[kind]).abs().max() < 1e-5
    assert torch.equal(a['token'].long(), tokens.ids[tokens.mask])
    assert torch.equal(a['doc'].long(), tokens.doc[tokens.mask])
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
        before = {p.name: written(p) for p in out.glob('shard*')}
        manifest = out/'manifest.json'
        kept = {o['file'] for o in json.loads(manifest.read_text())['shards']} if manifest.exists() else set()
        assert len(before.keys() - kept) <= 1   # at most the shard in flight is unknown to the manifest
        s = go(out)
        assert shas(s) == want and not s.verify() and not list(out.glob('.*'))
        assert all(written(out/f) == before[f] for f in kept)   # finished shards were not touched

def test_one_byte_anywhere(tmp_path, caplog):
    "One bit flipped in 20 random places of the shards: found, named, mended"
    want, r = shas(go(tmp_path)), random.Random(0)
    for _ in range(20):
        f = r.choice(sorted(tmp_path.glob('shard*')))
        b = bytearray(f.read_bytes()); b[r.randrange(len(b))] ^= 1 << r.randrange(8); f.write_bytes(b)
        assert ActivationStore(tmp_path).verify() == [f.name]
        with pytest.raises(UserError, match=f.name): ActivationStore(tmp_path).load()
        assert shas(go(tmp_path)) == want and f.name in caplog.text

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

@pytest.mark.parametrize('change', [dict(site='mlp.2'), dict(t=tokens[:5]), dict(shard_rows=4),
    dict(dtype=torch.bfloat16)])
def test_another_harvest_is_not_overwritten(tmp_path, change):
    want = shas(go(tmp_path))
    with pytest.raises(UserError, match='holds another harvest'): go(tmp_path, **change)
    assert shas(ActivationStore(tmp_path)) == want

def test_rows_without_counted_tokens(tmp_path):
    "A shard of nothing but specials has no file, and nobody minds"
    t = tokens[:6]
    t.mask = t.mask.clone(); t.mask[0:3] = False
    s = go(tmp_path, t=t)
    assert s.n == t.n_tokens and [o['file'] for o in s.manifest['shards']] == ['shard-00001.safetensors']
    assert s.load()['row'].min() == 3

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite(tmp_path, value):
    bad = load_lm('tiny-gemma3')
    bad.layers[1].mlp.down_proj.weight.data[0,0] = value
    with pytest.raises(UserError, match='non-finite activations at resid.2, batch of rows 0 to 1') as e:
        harvest(bad, tokens, 'resid.2', tmp_path, 2, 3, progress=False)
    assert '\n' not in str(e.value) and not list(tmp_path.glob('shard*'))

@pytest.mark.parametrize('call,match', [
    (lambda p: go(p, 'resid.7'), 'layers 0 to 3'),
    (lambda p: go(p, ['resid.1', 'resid.7']), 'layers 0 to 3'),
    (lambda p: go(p, 'residual.1'), 'want a kind'),
    (lambda p: go(p, []), 'no site to harvest'),
    (lambda p: go(p, t=tokens[:0]), 'no tokens'),
    (lambda p: ActivationStore(p), 'holds no harvest'),
    (lambda p: go(p, batch_rows=0), 'batch_rows=0: want a whole number'),
    (lambda p: go(p, shard_rows=2.5), 'shard_rows=2.5: want a whole number'),
    (lambda p: go(p, dtype=torch.int32), 'want a floating-point type'),
    (lambda p: ((p/'f').write_text(''), go(p/'f')), 'there is a file of that name'),
    (lambda p: go(p).take([.5]), 'whole ones from 0'),
    (lambda p: go(p).take(['a']), 'whole ones from 0'),
    (lambda p: prepare(torch.ones(0, 3)), 'no training activations'),
    (lambda p: prepare(torch.ones(50, 3), 1.), 'want a number above 1'),
    (lambda p: prepare(torch.cat([torch.zeros(6, 3), torch.eye(3)])), '6 of 9 training activations are exactly zero'),
    (lambda p: prepare(torch.ones(50, 3)), 'constant or not finite'),
    (lambda p: prepare(torch.full((50, 3), float('nan'))), '50 of 50 training activations are not finite'),
    (lambda p: prepare(torch.ones(50, 3).index_fill(0, torch.tensor(3), float('inf'))),
    '1 of 50 training activations are not finite'),
    (lambda p: go(p).take([0, tokens.n_tokens]),
        f'no activation {tokens.n_tokens}: the store holds 0 to {tokens.n_tokens-1}'),
    (lambda p: go(p).take([-1]), 'no activation -1'),
    (lambda p: go(p).text(-1, ByteTokenizer()), 'no activation -1'),
    (lambda p: go(p).text(0, type('More', (ByteTokenizer,), dict(all_special_ids=[0, 1, 2, 3]))()),
    'another tokenizer: give the one of tiny-gemma3'),
])
def test_bad_input_is_one_line(tmp_path, call, match):
    with pytest.raises(UserError, match=match) as e: call(tmp_path)
    assert '\n' not in str(e.value)

def test_the_papers_scalar_leaves_the_mean():
    x = torch.randn(10_000, 64, generator=torch.Generator().manual_seed(0)) + 4.4   # the mean holds 95 % of E|x|^2
    only, rule = prepare(x, centre=False)
    assert only.mean.abs().max() == 0 and not rule(x).any()
    left = only(x) - only(x).mean(0)
    assert abs(left.square().sum(1).mean().item() - 1/(1+4.4**2)) < 5e-3
    assert abs(prepare(x.bfloat16())[0].scale - prepare(x)[0].scale) < .01*prepare(x)[0].scale

def test_tokenizers_are_known_by_what_they_do():
    class Upper(ByteTokenizer):
        def encode(self, text, add_special_tokens=False): return super().encode(text.upper(), add_special_tokens)
    class More(ByteTokenizer): all_special_ids = [0, 1, 2, 3]
    class Larger(ByteTokenizer): vocab_size = 300
    class Moved(ByteTokenizer): name_or_path = 'elsewhere'
    assert len({tokenizer_hash(t()) for t in (ByteTokenizer, Upper, More, Larger)}) == 4
    assert tokenizer_hash(Moved()) == tokenizer_hash(ByteTokenizer())

def test_rule_and_scaler_ignore_massive_tokens():
    x = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0)) + 1
    loud = torch.cat([x, 1e4*torch.ones(3, 16)])
    (s, r), (s0, r0) = prepare(loud), prepare(x)
    assert r(loud).sum() == 3 and torch.allclose(s.mean, s0.mean) and abs(s.scale-s0.scale) < 1e-4*s0.scale
    assert abs(r.median-r0.median) < 1e-2*r0.median and fit_massive(loud).median == r.median

# -- several sites in one pass -----------------------------------------------------------------------------------------
three = ['attn.1', 'resid.2', 'mlp.0']

def test_one_pass_is_as_three(tmp_path):
    joint = go(tmp_path/'j', three)
    assert [str(s) for s in joint] == three and sorted(o.name for o in (tmp_path/'j').iterdir()) == sorted(three)
    for s, store in joint.items(): assert shas(store) == shas(go(tmp_path/str(s), s)) and store.facts['site'] == str(s)
    assert list(go(tmp_path/'l', ['resid.2', 'resid.2'])) == [Site('resid', 2)]   # a list of one is still a list

@pytest.mark.parametrize('where', ['write', 'rename', 'model'])
def test_several_killed_anywhere(tmp_path, monkeypatch, where):
    "What is finished at one site stays, whichever site the kill hits; no pass is made for a site that lacks nothing"
    want = {s: shas(o) for s, o in go(tmp_path/'ref', three).items()}
    owner, name = dict(write=(core, 'save_file'), rename=(core.os, 'replace'), model=(H, 'capture'))[where]
    for n in (0, 1, 2, 4, 5, 7):
        real, left, out = getattr(owner, name), [n], tmp_path/f'{n}'
        def dying(*a, **k):
            if left[0] == 0: raise Dead
            left[0] -= 1
            return real(*a, **k)
        with monkeypatch.context() as m:
            m.setattr(owner, name, dying)
            try: go(out, three)
            except Dead: pass
        listed = {m.parent/o['file'] for m in out.glob('*/manifest.json') for o in json.loads(m.read_text())['shards']}
        times = {f: written(f) for f in listed}
        assert all(len(set(d.glob('shard*')) - listed) <= 1 for d in out.iterdir())
        lacking = [[s for s in three if out/s/f'shard-{i:05d}.safetensors' not in listed] for i in range(4)]
        asked = []
        with monkeypatch.context() as m:
            real = H.capture
            def noted(lm, ids, sites):
                asked.append([str(s) for s in sites])
                return real(lm, ids, sites)
            m.setattr(H, 'capture', noted)
            again = go(out, three)
        assert {s: shas(o) for s, o in again.items()} == want and times == {f: written(f) for f in listed}
        def once(o): return [v for i, v in enumerate(o) if v and v not in o[:i]]
        assert once(asked) == once(lacking)

# -- the manifest ------------------------------------------------------------------------------------------------------
def as_old(path):
    "The manifest as the first version wrote it: no facts, no seal"
    m = json.loads((path/'manifest.json').read_text())
    core.write_json(path/'manifest.json', {k: v for k, v in m.items() if k not in ('facts', 'sha256')})

def test_old_stores_are_still_stores(tmp_path, monkeypatch):
    want = go(tmp_path)
    as_old(tmp_path)
    was = (tmp_path/'manifest.json').read_bytes()
    with monkeypatch.context() as m:
        m.setattr(H, 'capture', lambda *a: 1/0)
        s = go(tmp_path)
    assert (tmp_path/'manifest.json').read_bytes() == was and shas(s) == shas(want) and s.verify() == []
    assert s.facts['site'] == 'resid.2' and 'tokenizer' not in s.facts and s.scaler is None and s.rule is None
    assert torch.equal(s.take([5, 3])['x'], want.load()['x'][[5, 3]])
    assert s.text(30, ByteTokenizer()) == want.text(30, ByteTokenizer())
    m = json.loads(was)
    # an unfinished one goes on
    core.write_json(tmp_path/'manifest.json', m | dict(complete=False, shards=m['shards'][:2]))
    (tmp_path/'shard-00002.safetensors').unlink()
    assert shas(go(tmp_path)) == shas(want)
    s.refresh()
    s.set_scaler(*prepare(s.load()['x']))
    assert ActivationStore(tmp_path).scaler.scale == s.scaler.scale

def test_any_byte_of_the_manifest(tmp_path):
    "Also where a blank becomes a line break, and JSON does not mind"
    go(tmp_path, t=tokens[:4])
    s, path, r = ActivationStore(tmp_path), tmp_path/'manifest.json', random.Random(0)
    raw = path.read_bytes()
    places = [(r.randrange(len(raw)), r.randrange(1, 256)) for _ in range(150)]
    places += [(i, raw[i] ^ 10) for i in range(len(raw)) if raw[i] == 32][:5] + [(raw.index(b'\n'), 10 ^ 13)]
    for at, bits in places:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bits]) + raw[at+1:])
        with pytest.raises(UserError, match='manifest.json') as e: ActivationStore(tmp_path)
        assert s.verify() == ['manifest.json'] and '\n' not in str(e.value)
    for text in ('[]', '{}', '7', ''):
        path.write_text(text)
        with pytest.raises(UserError, match='manifest.json'): ActivationStore(tmp_path)

def test_a_growing_store_has_no_scaler_yet(tmp_path, monkeypatch):
    real = H._Writer.record
    monkeypatch.setattr(H._Writer, 'record', lambda self, complete: 1/0 if complete else real(self, complete))
    with pytest.raises(ZeroDivisionError): go(tmp_path)
    s = ActivationStore(tmp_path, growing=True)
    with pytest.raises(UserError, match='still growing'): s.set_scaler(*prepare(s.load()['x']))
    with pytest.raises(UserError, match='not finished'): ActivationStore(tmp_path)

def test_facts_and_scaler_outlive_repairs(tmp_path):
    s = go(tmp_path, corpus='nonsense')
    f = s.facts
    assert (f['corpus'], f['n_rows'], f['n_tokens']) == ('nonsense', len(tokens), tokens.n_tokens)
    assert f['tokens'] == tokens.sha
    assert (f['dtype'], f['mask_rule'], f['model']['name']) == ('float32', 'specials by id', 'tiny-gemma3')
    assert f['tokenizer'] == tokenizer_hash(ByteTokenizer())
    scaler, rule = prepare(s.load()['x'], factor=3.)
    s.set_scaler(scaler, rule)
    (tmp_path/'shard-00001.safetensors').unlink()
    s = go(tmp_path)
    assert s.facts['corpus'] == 'nonsense' and torch.equal(s.scaler.mean, scaler.mean)
    assert (s.scaler.scale, s.rule) == (scaler.scale, rule) and not s.verify()
    (tmp_path/'scaler.safetensors').write_bytes((tmp_path/'scaler.safetensors').read_bytes()[:-1] + b'!')
    with pytest.raises(UserError, match='scaler.safetensors was altered'): s.scaler
    (tmp_path/'scaler.safetensors').unlink()
    assert s.verify() == ['scaler.safetensors']
    with pytest.raises(UserError, match='scaler.safetensors is missing'): s.scaler

# -- reading -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_take_is_load_then_index(tmp_path, dtype):
    s, g = go(tmp_path, dtype=dtype), torch.Generator().manual_seed(0)
    a = s.load()
    for m in (1, 2, 7, 300):
        idx = torch.randint(s.n, (m,), generator=g)
        for t in (s.take(idx), s.take(idx.tolist()), s.take(idx.numpy())):
            assert t.keys() == a.keys() and t['x'].dtype == dtype
            assert all(torch.equal(t[k], a[k][idx]) and t[k].dtype == a[k].dtype for k in a)
    everything = s.take(range(len(s)))
    assert all(torch.equal(everything[k], a[k]) for k in a)
    assert sum(len(s.shard(i)['x']) for i in range(4)) == s.n
    assert torch.equal(s.shard(3)['x'], a['x'][-len(s.shard(3)['x']):])

def test_the_rest_of_a_damaged_store(tmp_path, caplog):
    "One shard gone, one hurt: both named, all of the others there, in order"
    s = go(tmp_path)
    a, f = s.load(), sorted(tmp_path.glob('shard*'))
    f[0].unlink(); f[2].write_bytes(f[2].read_bytes()[:-9])
    with pytest.raises(UserError, match=f[0].name): s.load()
    caplog.clear()
    t = s.load(skip_damaged=True)
    keep = torch.isin(a['row'] // 3, torch.tensor([1, 3]))
    assert t.keys() == a.keys() and all(torch.equal(t[k], a[k][keep]) for k in a) and len(caplog.messages) == 2
    assert all(f[i].name in caplog.text for i in (0, 2))
    i = keep.nonzero()[[-1, 0], 0]
    assert torch.equal(s.take(i)['x'], a['x'][i])
    with pytest.raises(UserError, match=f[2].name): s.take([int(i[0]), int((a['row'] == 7).nonzero()[0])])
    for o in (f[1], f[3]): o.unlink()
    with pytest.raises(UserError, match='holds no intact shard'): s.load(skip_damaged=True)

def test_a_shard_is_hashed_when_first_touched_and_when_it_changed(tmp_path, monkeypatch):
    s, n, real = go(tmp_path), [], core.sha256
    monkeypatch.setattr(core, 'sha256', lambda p: (n.append(Path(p).name), real(p))[1])
    s.take([0, 1]); s.take([2]); s.shard(0)
    assert n == ['shard-00000.safetensors']
    f = tmp_path/n[0]
    b = bytearray(f.read_bytes()); b[-1] ^= 4; f.write_bytes(b); os.utime(f, ns=(1, 1))
    with pytest.raises(UserError, match='shard-00000.safetensors was altered'): s.take([2])
    # and is not trusted the second time
    with pytest.raises(UserError, match='shard-00000.safetensors was altered'): s.take([2])
    s.take([s.n-1])

def test_shards_are_mapped_and_not_read(tmp_path):
    "20 MB of activations, and not one of memory of our own"
    if not Path('/proc/self/status').exists(): pytest.skip('asks Linux for the memory of this process')
    def own(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))
    t = dict(x=torch.zeros(50_000, 100), row=torch.zeros(50_000, dtype=torch.int32))
    sha = core.save_tensors(tmp_path/'shard-00000.safetensors', t)
    core.write_json(tmp_path/'manifest.json', dict(plan={}, d_in=100, complete=True,
        shards=[dict(file='shard-00000.safetensors', n=50_000, sha256=sha)]))
    s = ActivationStore(tmp_path)
    s.take([0])
    before = own()
    assert len(s.take([3, 49_999])['x']) == 2 and own() - before < 2_000

def test_read_while_it_grows(tmp_path, monkeypatch):
    "After every shard a reader sees it; an index keeps its meaning"
    a, seen, real = go(tmp_path/'ref').load(), [], H._Writer.add
    def add(self, i, t):
        real(self, i, t)
        if not seen: seen.append(ActivationStore(self.out, growing=True))
        n = seen[0].refresh()
        seen.append(n)
        assert not seen[0].complete and len(seen[0].load()['x']) == n
        assert torch.equal(seen[0].take([n-1, 0])['x'], a['x'][[n-1, 0]])
    monkeypatch.setattr(H._Writer, 'add', add)
    go(tmp_path/'g')
    assert len(seen) == 5 and seen[1:] == sorted(set(seen[1:])) and seen[0].refresh() == len(a['x'])
    assert seen[0].complete

def test_text_stays_in_its_row(tmp_path):
    s = go(tmp_path)
    a, tok = s.load(), ByteTokenizer()
    for i in (0, 5, 22, 23, 100, s.n-1):
        r, p = int(a['row'][i]), int(a['pos'][i])
        for before in (0, 3, 500): assert s.text(i, tok, before) == tok.decode(tokens.ids[r, max(1, p-before):p+1])

# -- a disk that is full, a folder that is taken -----------------------------------------------------------------------
@pytest.mark.parametrize('sites', ['resid.2', three])
@pytest.mark.parametrize('error', [SafetensorError('Error while serializing: I/O error: No space left on device (os '
    'error 28)'), OSError(errno.EDQUOT, 'quota')])
@pytest.mark.parametrize('name', ['save_file', 'os.fsync'])
def test_full_disk_anywhere(tmp_path, monkeypatch, name, error, sites):
    want = go(tmp_path/'ref', sites)
    want = [shas(o) for o in (want.values() if isinstance(want, dict) else [want])]
    owner, name = (core, name) if name == 'save_file' else (core.os, 'fsync')
    for n in range(6):
        real, calls, told = getattr(owner, name), [], False
        def full(*a, **k):
            calls.append(1)
            if len(calls) > n: raise error
            return real(*a, **k)
        with monkeypatch.context() as m:
            m.setattr(owner, name, full)
            try: go(tmp_path/f'{n}', sites)
            except UserError as e:
                told = 'disk full' in str(e) and 'goes on where it stopped' in str(e) and '\n' not in str(e)
        assert told == (len(calls) > n)
        assert not list((tmp_path/f'{n}').rglob('*.tmp'))
        got = go(tmp_path/f'{n}', sites)
        assert [shas(o) for o in (got.values() if isinstance(got, dict) else [got])] == want

@pytest.mark.parametrize('error,says', [
    (PermissionError(errno.EACCES, 'not yours'), 'make it writable'),
    (SafetensorError('header too large'), 'header too large')])
def test_other_errors_are_not_called_a_full_disk(tmp_path, monkeypatch, error, says):
    def broken(*a, **k): raise error
    monkeypatch.setattr(core, 'save_file', broken)
    with pytest.raises((UserError, SafetensorError), match=says) as e: go(tmp_path)
    assert 'disk full' not in str(e.value) and '\n' not in str(e.value)

def test_space_is_checked_before_the_model_runs(tmp_path, monkeypatch):
    go(tmp_path)
    for i in (1, 3): (tmp_path/f'shard-{i:05d}.safetensors').unlink()
    lack = store_bytes(sum(int(tokens.mask[3*i:3*i+3].sum()) for i in (1, 3)), 32, torch.float32)
    usage = type('Usage', (), {})()
    monkeypatch.setattr(H.shutil, 'disk_usage', lambda p: usage)
    usage.free = lack - 1
    with monkeypatch.context() as m:
        m.setattr(H, 'capture', lambda *a: 1/0)
        with pytest.raises(UserError, match='are free in'): go(tmp_path)
    usage.free = lack
    assert not go(tmp_path).verify()

def test_one_harvest_at_a_time(tmp_path, monkeypatch):
    "The second is told to wait, the first is not disturbed; what a killed one left is removed"
    want, real, said = shas(go(tmp_path/'ref')), H.capture, []
    def capture(*a):
        if not said:
            with pytest.raises(UserError, match='another harvest is writing') as e: go(tmp_path/'a')
            said.append(e)
        return real(*a)
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'.shard-00000.safetensors.99.tmp').write_bytes(b'half')
    monkeypatch.setattr(H, 'capture', capture)
    assert shas(go(tmp_path/'a')) == want and said and not list((tmp_path/'a').glob('.*'))

def test_a_finished_harvest_is_opened_by_many(tmp_path, monkeypatch):
    "Two processes that open one finished harvest at once: the second waits for the first's look and goes on"
    want, waited = shas(go(tmp_path)), []
    def sleep(seconds):
        waited.append(seconds)
        os.close(held)  # the other one has seen enough
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(H.time, 'sleep', sleep)
    assert shas(go(tmp_path)) == want and len(waited) == 1

def test_stored_format_overflows(tmp_path, monkeypatch):
    "A model in float32 may say what float16 cannot hold"
    monkeypatch.setattr(H, 'capture', lambda *a, real=H.capture: {k: 1e6*v for k, v in real(*a).items()})
    with pytest.raises(UserError, match='the stored format overflows'): go(tmp_path/'h', dtype=torch.float16)
    assert go(tmp_path/'f').n == tokens.n_tokens

@pytest.mark.timeout(600)
def test_sigkill_and_flips():
    "`python tools/kill_harvest.py 20` does it twenty times"
    tool = Path(__file__).parent.parent/'tools'/'kill_harvest.py'
    r = subprocess.run([sys.executable, tool, '3', '5', '1'], capture_output=True, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert r.returncode == 0, r.stdout + r.stderr
    assert '3 kills, 0 wrong' in r.stdout and '5 flips, 0 missed' in r.stdout and 'identical' in r.stdout

@pytest.mark.parametrize('name', ['.shard-00000.safetensors.77.tmp', '.tmpEJLQ6z'])
def test_half_written_files_are_cleared_away(tmp_path, name):
    "What a killed harvest left aside, under our name or that of safetensors, goes with the next one"
    (tmp_path/'store').mkdir(); (tmp_path/'store'/name).write_bytes(b'half')
    harvest(load_lm('tiny-gemma2'), pack(generated_corpus(4), ByteTokenizer(), 64, 63*8), 'resid.1', tmp_path/'store',
        progress=False)
    assert not (tmp_path/'store'/name).exists() and (tmp_path/'store'/'manifest.json').exists()
