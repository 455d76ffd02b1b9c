"Metrics against oracles written without the library, at every kind of site and family."
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jumprelu_sae import evaluate as E
from jumprelu_sae.core import Scaler, UserError
from jumprelu_sae.evaluate import LMEval, bootstrap_ratio, evaluate_activations, resample, splice_fn, spread_rows
from jumprelu_sae.lm import capture, load_lm, parse_site, splice, token_losses
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.text import Tokens, generated_corpus, pack

def keep(s): return SimpleNamespace(encode=lambda x: s*x, decode=lambda f: f)

def bent(d, seed=0):
    w = torch.randn(d, d, generator=torch.Generator().manual_seed(seed))/d**.5
    return SimpleNamespace(encode=lambda x: (x @ w).relu(), decode=lambda f: f @ w.T)

@pytest.fixture(scope='module')
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=g)*torch.linspace(.1, 3, 16) + 5
    x[::97] *= 40
    return x, torch.randint(0, 9, (700,), generator=g)*10

@pytest.fixture(scope='module', params=['tiny-gemma2', 'tiny-gemma3', 'tiny-llama'])
def lm(request): return load_lm(request.param)

@pytest.fixture(scope='module')
def gemma2(): return load_lm('tiny-gemma2')

def rows(lm, seq=24, n=200): return pack(generated_corpus(5, 6), lm.tokenizer, seq, n)

# --- activations

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_activations_against_numpy(data, dtype):
    x, doc = data[0].to(dtype), data[1]
    rule = lambda v: v.float().square().sum(-1) > 20*x.float().square().sum(-1).median()
    ok = ~rule(x)
    scaler, sae = Scaler.fit(x[ok]), bent(16)
    m, a = evaluate_activations(sae, scaler, x, doc, rule, batch=64)
    X, mu, c = x.float().double().numpy(), scaler.mean.double().numpy(), scaler.scale
    f = sae.encode(torch.tensor((X - mu)/c).float()); back = sae.decode(f).double().numpy()*c + mu
    sse, sst, l0, ok = ((X - back)**2).sum(1), ((X - mu)**2).sum(1), (f > 0).sum(1).numpy(), ok.numpy()
    assert m['n_massive'] == (~ok).sum() == 8 and m['n_tokens'] == ok.sum()
    assert m['fvu'] == pytest.approx(sse[ok].sum()/sst[ok].sum(), rel=1e-5)
    assert m['fvu_with_massive'] == pytest.approx(sse.sum()/sst.sum(), rel=1e-5)
    assert m['l0'] == pytest.approx(l0[ok].mean(), rel=1e-12)
    q = (f > 0).numpy()[ok].mean(0)
    assert [m['dead'], m['dense10'], m['dense1']] == pytest.approx([(q == 0).mean(), (q > .1).mean(), (q > .01).mean()])
    for i, d in enumerate(a['docs']):
        s = ok & (doc.numpy() == d)
        assert [a['tokens'][i], a['l0'][i]] == [s.sum(), l0[s].sum()]
        assert a['sse'][i]/a['sst'][i] == pytest.approx(sse[s].sum()/sst[s].sum(), rel=1e-5)

def test_frequencies_by_hand():
    "1,000 tokens; latents that fire on 0, 5, 50, 500 of them, and one on the massive token only"
    x = torch.zeros(1001, 5)
    for j, n in enumerate((0, 5, 50, 500)): x[:n, j] = 1
    x[1000, 4] = 99
    same = SimpleNamespace(encode=lambda v: v, decode=lambda f: f)
    m, a = evaluate_activations(same, Scaler(torch.zeros(5), 1.), x, torch.zeros(1001).long(), lambda v: v[:, 4] > 9, mean=torch.ones(5))
    assert [m['dead'], m['dense1'], m['dense10'], m['n_massive']] == [.4, .4, .2, 1] and m['l0'] == .555
    at = lambda q: a['freq_counts'][np.searchsorted(a['freq_edges'], np.log10(q))-1]
    assert [at(.005), at(.05), at(.5), sum(a['freq_counts'])] == [1, 1, 1, 3]

def test_uncentred_scaler_with_a_training_mean(data):
    x, doc = data; s, mu = Scaler.fit(x, centre=False), x.mean(0)
    m = evaluate_activations(keep(.9), s, x, doc, mean=mu)[0]
    assert m['fvu'] == pytest.approx(float((.1*x).double().square().sum()/(x - mu).double().square().sum()), rel=1e-5)

def test_batches_do_not_matter(data):
    x, doc = data; s, sae = Scaler.fit(x), bent(16)
    one, many = evaluate_activations(sae, s, x, doc), evaluate_activations(sae, s, x, doc, batch=37)
    assert many[0] == pytest.approx(one[0], rel=1e-6) and many[1]['l0'] == one[1]['l0'] and many[1]['freq_counts'] == one[1]['freq_counts']

def test_ends_of_the_scale(data):
    x, doc = data; s = Scaler.fit(x)
    assert evaluate_activations(keep(1.), s, x, doc)[0]['fvu'] == 0
    assert evaluate_activations(keep(0.), s, x, doc)[0]['fvu'] == pytest.approx(1, abs=1e-12)
    m = evaluate_activations(keep(0.), s, x + 1, doc)[0]      # held-out data elsewhere: still about the *training* mean
    assert m['fvu'] == pytest.approx(1, abs=1e-12) and m['dead'] == 1 and m['l0'] == 0

def test_documents_with_massive_tokens_only_are_left_out(data):
    x, doc = data[0].clone(), data[1].clone(); doc[3], x[3] = 777, 1e4
    m, a = evaluate_activations(keep(.5), Scaler.fit(data[0]), x, doc, lambda v: v[:, 0] > 9e3)
    assert 777 not in a['docs'] and m['n_massive'] == 1 and sum(a['tokens']) == 699

@pytest.mark.parametrize('arch', ['topk', 'jumprelu', 'relu', 'gated', 'batchtopk'])
def test_the_librarys_saes(data, arch):
    x, doc = data; sae = make_sae(SAEConfig(arch=arch, d_in=16, d_sae=64, **(dict(k=8) if 'topk' in arch else {})), seed=0)
    m, a = evaluate_activations(sae, Scaler.fit(x), x, doc)
    assert 0 <= m['l0'] <= 64 and m['fvu'] >= 0 and sum(a['freq_counts']) + round(m['dead']*64) == 64
    if arch == 'topk': assert m['l0'] <= 8

def test_bad_activations(data):
    x, doc = data; s = Scaler.fit(x)
    with pytest.raises(UserError, match='give mean='): evaluate_activations(keep(1.), Scaler.fit(x, centre=False), x, doc)
    for bad in (float('nan'), float('inf')):
        y = x.clone(); y[5, 5] = bad
        with pytest.raises(UserError, match='not finite'): evaluate_activations(keep(.5), s, y, doc)
    with pytest.raises(UserError, match='not finite'): evaluate_activations(keep(float('nan')), s, x, doc)
    with pytest.raises(UserError, match='no held-out'): evaluate_activations(keep(1.), s, x[:0], doc[:0])

# --- intervals

def test_bootstrap_against_a_loop():
    g = np.random.default_rng(1); num, den = g.uniform(1, 2, 12), g.uniform(5, 9, 12)
    W = resample(12, 300, 4)
    slow = [sum(w*a for w, a in zip(row, num))/sum(w*b for w, b in zip(row, den)) for row in W]
    assert bootstrap_ratio(num, den, 300, 4) == pytest.approx(np.quantile(slow, (.025, .975)))
    assert bootstrap_ratio(num, den, 300, 4) == bootstrap_ratio(num, den, 300, 4)
    assert (W.sum(1) == 12).all() and abs(W.mean() - 1) < .02

# --- language model

@pytest.mark.parametrize('site', ['resid.0', 'resid.3', 'mlp.2', 'attn.1'])
def test_delta_against_full_passes(lm, site):
    t = rows(lm)
    t = Tokens(t.ids, t.mask, torch.randint(0, 4, t.doc.shape, generator=torch.Generator().manual_seed(1)), t.doc_ids)
    ev = LMEval(lm, t, site, n_tokens=200, batch_rows=3)
    x = capture(lm, t.ids, site)[parse_site(site)][t.mask]
    scaler = Scaler.fit(x); lim = x.float().square().sum(1).quantile(.9); rule = lambda v: v.float().square().sum(-1) > lim
    assert abs(ev.delta(keep(1.), scaler)[0]['delta_lm_loss']) < 1e-6
    sae = bent(x.shape[1])
    def fn(v):
        out = v.clone()
        for r, p in t.mask.nonzero().tolist():
            if v[r, p].square().sum() <= lim: out[r, p] = sae.decode(sae.encode((v[r, p] - scaler.mean)/scaler.scale))*scaler.scale + scaler.mean
        return out
    with torch.no_grad(): after, before = (token_losses(lm, t.ids, h).double() for h in (splice(lm, t.ids, site, fn), splice(lm, t.ids)))
    counted = t.mask[:, :-1] & t.mask[:, 1:]
    m, a = ev.delta(sae, scaler, rule, with_massive=True)
    assert m['delta_lm_loss'] == pytest.approx(float((after - before)[counted].mean()), abs=1e-6)
    assert m['lm_loss_spliced'] - m['lm_loss_clean'] == pytest.approx(m['delta_lm_loss'], abs=1e-9) and m['lm_predictions'] == counted.sum()
    assert m['lm_massive'] == (x.float().square().sum(1) > lim).sum()
    assert m['delta_with_massive'] == pytest.approx(ev.delta(sae, scaler)[0]['delta_lm_loss'], abs=1e-7) != m['delta_lm_loss']
    for i, d in enumerate(a['lm_docs']):
        here = counted & (t.doc[:, :-1] == d)
        assert a['lm_tokens'][i] == here.sum() and a['lm_delta'][i] == pytest.approx(float((after - before)[here].sum()), abs=1e-5)

def test_clean_loss_is_the_models_own(gemma2):
    t = rows(gemma2); ev = LMEval(gemma2, t, 'resid.1', 200)
    with torch.no_grad(): logits = gemma2.model(input_ids=t.ids).logits.float()
    ce = F.cross_entropy(logits[:, :-1].transpose(1, 2), t.ids[:, 1:], reduction='none')
    assert ev.delta(keep(1.), Scaler(torch.zeros(32), 1.))[0]['lm_loss_clean'] == pytest.approx(float(ce[t.mask[:, :-1] & t.mask[:, 1:]].mean()), abs=1e-5)

def test_specials_in_the_middle_are_neither_spliced_nor_averaged(gemma2):
    t = rows(gemma2); ids, mask = t.ids.clone(), t.mask.clone()
    ids[:, 9], mask[:, 9] = gemma2.tokenizer.eos_token_id, False
    t = Tokens(ids, mask, t.doc, t.doc_ids)
    ev = LMEval(gemma2, t, 'resid.1', int(mask.sum()))
    assert not ev.counts[:, 8].any() and not ev.counts[:, 9].any() and not ev.counts[:, 0].any()
    v = torch.randn(len(ids), ids.shape[1], 32)
    out = splice_fn(keep(0.), Scaler(torch.zeros(32), 1.), mask)(v)
    assert (out[mask] == 0).all() and torch.equal(out[~mask], v[~mask])
    m, _ = ev.delta(keep(0.), Scaler(torch.zeros(32), 1.), lambda v: torch.ones(v.shape[:-1]).bool())
    assert m['lm_massive'] == mask.sum() and m['delta_lm_loss'] == 0    # all massive: nothing spliced, specials not counted

def test_what_is_run_again(gemma2, monkeypatch):
    t = rows(gemma2); calls, asked = [], []
    hooks = [l.register_forward_hook(lambda m, i, o, n=n: calls.append(n)) for n, l in enumerate(gemma2.layers)]
    losses = E.token_losses
    monkeypatch.setattr(E, 'token_losses', lambda lm, ids, h, **k: asked.append(ids.numel()//2) or losses(lm, ids, h, **k))
    try:
        ev = LMEval(gemma2, t, 'resid.1', 200, batch_rows=100); calls.clear(); asked.clear()
        ev.delta(keep(.5), Scaler(torch.zeros(32), 1.))
        assert calls == [2, 3] and asked == [int(ev.counts.sum())]
        calls.clear(); asked.clear()
        big = ev.half.hidden[2, 5]; rule = lambda v: (v == big).all(-1)      # exactly one massive token, in row 2
        m, _ = ev.delta(keep(.5), Scaler(torch.zeros(32), 1.), rule, with_massive=True)
        assert m['lm_massive'] == 1 and calls == [2, 3, 2, 3] and asked[1] == int(ev.counts[2].sum())
    finally:
        for h in hooks: h.remove()

def test_memory_is_known_beforehand(gemma2):
    t = rows(gemma2)
    ev = LMEval(gemma2, t, 'resid.1', 200)
    assert ev.nbytes == len(ev.tokens.ids)*24*32*4
    LMEval(gemma2, t, 'resid.1', 200, max_bytes=ev.nbytes)
    with pytest.raises(UserError, match='max_bytes'): LMEval(gemma2, t, 'resid.1', 200, max_bytes=ev.nbytes-1)

def test_bad_lm_input(gemma2):
    t = rows(gemma2)
    for n in (0, -1, t.n_tokens+1):
        with pytest.raises(UserError, match='held out'): LMEval(gemma2, t, 'resid.1', n)
    with pytest.raises(UserError, match='layers 0 to 3'): LMEval(gemma2, t, 'resid.4', 50)
    lone = Tokens(t.ids[:, :2], t.mask[:, :2], t.doc[:, :2], t.doc_ids)
    with pytest.raises(UserError, match='rows longer'): LMEval(gemma2, lone, 'resid.1', 2)
    with pytest.raises(UserError, match='no finite loss'): LMEval(gemma2, t, 'resid.1', 50).delta(keep(float('inf')), Scaler(torch.ones(32), 1.))

def test_rows_are_spread_and_few():
    g = torch.Generator().manual_seed(0); mask = torch.rand(57, 20, generator=g) < .7; total = int(mask.sum())
    for n in (1, 5, 100, 400, total-1, total):
        r = spread_rows(mask, n)
        assert int(mask[r].sum()) >= n and len(r.unique()) == len(r)
        assert len(r) <= -(-n//int(mask.sum(1).min()))
    assert spread_rows(mask, 100).float().mean().sub(28).abs() < 6
