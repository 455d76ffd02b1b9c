"Metrics against oracles written without the library, at every kind of site and family."
import copy, importlib, logging
from types import SimpleNamespace
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jumprelu_sae.activations import activations
from jumprelu_sae.core import Scaler, Settings, UserError, write_json
from jumprelu_sae.evaluate import (ConstantReconstruction, Evaluation, Evaluator, LMEval, attribution, captured,
    effective_l0, evaluate, evaluate_activations,
    evaluate_saved, evaluation_table, kl_divergence, splice_fn, spread_positions, spread_rows, training_mean)
from jumprelu_sae.harvest import MassiveRule
from jumprelu_sae.intervals import METRICS, Metric, bootstrap_ratio, register_metric, resample
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sites import capture, parse_site, site_module, splice, token_losses
from jumprelu_sae.sae import ARCHITECTURES, SAEConfig, TopKSAE, make_sae, register
from jumprelu_sae.text import Tokens, generated_corpus, pack

E = importlib.import_module('jumprelu_sae.evaluate') # the module: the door has a function of that name

def keep(s): return SimpleNamespace(encode=lambda x: s*x, decode=lambda f: f)

def raw(sae, scaler):
    "A toy on scaled activations as one on raw ones; it says its mean as a finished SAE does"
    said = dict(jumprelu_sae=dict(mean=scaler.mean.tolist()))
    return SimpleNamespace(encode=lambda x: sae.encode(scaler(x)), decode=lambda f: scaler.inverse(sae.decode(f)),
        metadata=said)

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
    m, a = evaluate_activations(raw(sae, scaler), x, doc, rule, batch=64)
    X, mu, c = x.float().double().numpy(), scaler.mean.double().numpy(), scaler.scale
    f = sae.encode(torch.tensor((X - mu)/c).float())
    back = sae.decode(f).double().numpy()*c + mu
    sse, sst, l0, ok = ((X - back)**2).sum(1), ((X - mu)**2).sum(1), (f > 0).sum(1).numpy(), ok.numpy()
    assert m['n_massive'] == (~ok).sum() == 8 and m['n_tokens'] == ok.sum()
    assert m['fvu'] == pytest.approx(sse[ok].sum()/sst[ok].sum(), rel=1e-5)
    assert m['fvu_with_massive'] == pytest.approx(sse.sum()/sst.sum(), rel=1e-5)
    hat, dot = ((back - mu)**2).sum(1), ((back - mu)*(X - mu)).sum(1)
    assert m['shrinkage'] == pytest.approx(hat[ok].sum()/dot[ok].sum(), rel=1e-5) == sum(a['hat'])/sum(a['dot'])
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
    m, a = evaluate_activations(raw(same, Scaler(torch.zeros(5), 1.)), x, torch.zeros(1001).long(),
        lambda v: v[:, 4] > 9, mean=torch.ones(5))
    assert [m['dead'], m['dense1'], m['dense10'], m['n_massive']] == [.4, .4, .2, 1] and m['l0'] == .555
    at = lambda q: a['freq_counts'][np.searchsorted(a['freq_edges'], np.log10(q))-1]
    assert [at(.005), at(.05), at(.5), sum(a['freq_counts'])] == [1, 1, 1, 3]

def test_uncentred_scaler_with_a_training_mean(data):
    x, doc = data
    s, mu = Scaler.fit(x, centre=False), x.mean(0)
    m = evaluate_activations(raw(keep(.9), s), x, doc, mean=mu)[0]
    assert m['fvu'] == pytest.approx(float((.1*x).double().square().sum()/(x - mu).double().square().sum()), rel=1e-5)
    hat, dev = (.9*x - mu).double(), (x - mu).double()
    assert m['shrinkage'] == pytest.approx(float(hat.square().sum()/(hat*dev).sum()), rel=1e-4)

def test_batches_do_not_matter(data):
    x, doc = data
    s, sae = Scaler.fit(x), bent(16)
    one, many = evaluate_activations(raw(sae, s), x, doc), evaluate_activations(raw(sae, s), x, doc, batch=37)
    assert many[0] == pytest.approx(one[0], rel=1e-6)
    assert many[1]['l0'] == one[1]['l0']
    assert many[1]['freq_counts'] == one[1]['freq_counts']

def test_ends_of_the_scale(data):
    x, doc = data
    s = Scaler.fit(x)
    assert evaluate_activations(keep(1.), x, doc, mean=s.mean)[0]['fvu'] == 0
    assert evaluate_activations(raw(keep(0.), s), x, doc)[0]['fvu'] == pytest.approx(1, abs=1e-12)
    # held-out data elsewhere: still about the *training* mean
    m = evaluate_activations(raw(keep(0.), s), x + 1, doc)[0]
    assert m['fvu'] == pytest.approx(1, abs=1e-12) and m['dead'] == 1 and m['l0'] == 0 and m['shrinkage'] == 0

def test_documents_with_massive_tokens_only_are_left_out(data):
    x, doc = data[0].clone(), data[1].clone()
    doc[3], x[3] = 777, 1e4
    m, a = evaluate_activations(raw(keep(.5), Scaler.fit(data[0])), x, doc, lambda v: v[:, 0] > 9e3)
    assert 777 not in a['docs'] and m['n_massive'] == 1 and sum(a['tokens']) == 699

@pytest.mark.parametrize('arch', ['topk', 'jumprelu', 'relu', 'gated', 'batchtopk'])
def test_the_librarys_saes(data, arch):
    x, doc = data
    sae = make_sae(SAEConfig(arch=arch, d_in=16, d_sae=64, **(dict(k=8) if 'topk' in arch else {})), seed=0)
    # a batch in training mode: BatchTopK has a threshold
    sae.loss(torch.randn(64, 16, generator=torch.Generator().manual_seed(2)) / 4)
    sae.eval()
    m, a = evaluate_activations(sae.finish(Scaler.fit(x)), x, doc)
    old, _ = evaluate_activations(raw(sae, Scaler.fit(x)), x, doc)      # as it was before folding, in scaled units
    assert [m['fvu'], m['l0'], m['shrinkage']] == pytest.approx([old['fvu'], old['l0'], old['shrinkage']], rel=1e-6)
    assert 0 <= m['l0'] <= 64 and m['fvu'] >= 0 and sum(a['freq_counts']) + round(m['dead']*64) == 64
    if arch == 'topk': assert m['l0'] <= 8

def test_bad_activations(data):
    x, doc = data
    s = Scaler.fit(x)
    with pytest.raises(UserError, match='give mean='):
        evaluate_activations(raw(keep(1.), Scaler.fit(x, centre=False)), x, doc)
    for bad in (float('nan'), float('inf')):
        y = x.clone()
        y[5, 5] = bad
        with pytest.raises(UserError, match='not finite'): evaluate_activations(raw(keep(.5), s), y, doc)
    with pytest.raises(UserError, match='not finite'): evaluate_activations(raw(keep(float('nan')), s), x, doc)
    with pytest.raises(UserError, match='no held-out'): evaluate_activations(raw(keep(1.), s), x[:0], doc[:0])

# --- language model

@pytest.mark.parametrize('site', ['resid.0', 'resid.3', 'mlp.2', 'attn.1'])
def test_delta_against_full_passes(lm, site):
    t = rows(lm)
    t = Tokens(t.ids, t.mask, torch.randint(0, 4, t.doc.shape, generator=torch.Generator().manual_seed(1)), t.doc_ids)
    ev = LMEval(lm, t, site, n_tokens=200, batch_rows=3)
    x = capture(lm, t.ids, site)[parse_site(site)][t.mask]
    scaler = Scaler.fit(x)
    lim = x.float().square().sum(1).quantile(.9)
    rule = lambda v: v.float().square().sum(-1) > lim
    assert abs(ev.delta(raw(keep(1.), scaler))[0]['delta_lm_loss']) < 1e-6
    sae = bent(x.shape[1])
    def fn(v):
        out = v.clone()
        for r, p in t.mask.nonzero().tolist():
            if v[r, p].square().sum() <= lim:
                out[r, p] = sae.decode(sae.encode((v[r, p] - scaler.mean)/scaler.scale))*scaler.scale + scaler.mean
        return out
    with torch.no_grad():
        after, before = (token_losses(lm, t.ids, h).double() for h in (splice(lm, t.ids, site, fn), splice(lm, t.ids)))
    counted = t.mask[:, :-1] & t.mask[:, 1:]
    m, a = ev.delta(raw(sae, scaler), rule, with_massive=True)
    assert m['delta_lm_loss'] == pytest.approx(float((after - before)[counted].mean()), abs=1e-6)
    assert m['lm_loss_spliced'] - m['lm_loss_clean'] == pytest.approx(m['delta_lm_loss'], abs=1e-9)
    assert m['lm_predictions'] == counted.sum()
    assert m['lm_massive'] == (x.float().square().sum(1) > lim).sum()
    assert m['delta_with_massive'] == pytest.approx(ev.delta(raw(sae, scaler))[0]['delta_lm_loss'],
        abs=1e-7) != m['delta_lm_loss']
    for i, d in enumerate(a['lm_docs']):
        here = counted & (t.doc[:, :-1] == d)
        assert a['lm_tokens'][i] == here.sum()
        assert a['lm_delta'][i] == pytest.approx(float((after - before)[here].sum()), abs=1e-5)

def test_clean_loss_is_the_models_own(gemma2):
    t = rows(gemma2)
    ev = LMEval(gemma2, t, 'resid.1', 200)
    with torch.no_grad(): logits = gemma2.model(input_ids=t.ids).logits.float()
    ce = F.cross_entropy(logits[:, :-1].transpose(1, 2), t.ids[:, 1:], reduction='none')
    assert ev.delta(raw(keep(1.), Scaler(torch.zeros(32), 1.)))[0]['lm_loss_clean'] == pytest.approx(
        float(ce[t.mask[:, :-1] & t.mask[:, 1:]].mean()), abs=1e-5)

def test_specials_in_the_middle_are_neither_spliced_nor_averaged(gemma2):
    t = rows(gemma2)
    ids, mask = t.ids.clone(), t.mask.clone()
    ids[:, 9], mask[:, 9] = gemma2.tokenizer.eos_token_id, False
    t = Tokens(ids, mask, t.doc, t.doc_ids)
    ev = LMEval(gemma2, t, 'resid.1', int(mask.sum()))
    assert not ev.counts[:, 8].any() and not ev.counts[:, 9].any() and not ev.counts[:, 0].any()
    v = torch.randn(len(ids), ids.shape[1], 32)
    out = splice_fn(raw(keep(0.), Scaler(torch.zeros(32), 1.)), mask)(v)
    assert (out[mask] == 0).all() and torch.equal(out[~mask], v[~mask])
    m, _ = ev.delta(raw(keep(0.), Scaler(torch.zeros(32), 1.)), lambda v: torch.ones(v.shape[:-1]).bool())
    assert m['lm_massive'] == mask.sum()
    assert m['delta_lm_loss'] == 0    # all massive: nothing spliced, specials not counted

def test_what_is_run_again(gemma2, monkeypatch):
    t = rows(gemma2)
    calls, asked = [], []
    hooks = [l.mlp.register_forward_hook(lambda m, i, o, n=n: calls.append(n)) for n, l in enumerate(gemma2.layers)]
    losses = E.token_losses
    monkeypatch.setattr(E, 'token_losses', lambda lm, ids, h,
        **k: asked.append(ids.numel()//2) or losses(lm, ids, h, **k))
    try:
        ev = LMEval(gemma2, t, 'resid.1', 200, batch_rows=100)
        calls.clear()
        asked.clear()
        ev.delta(raw(keep(.5), Scaler(torch.zeros(32), 1.)))
        assert calls == [2, 3] and asked == [int(ev.counts.sum())]
        calls.clear()
        asked.clear()
        big = ev.half.hidden[2, 5]
        rule = lambda v: (v == big).all(-1)      # exactly one massive token, in row 2
        m, _ = ev.delta(raw(keep(.5), Scaler(torch.zeros(32), 1.)), rule, with_massive=True)
        assert m['lm_massive'] == 1 and calls == [2, 3, 2, 3] and asked[1] == int(ev.counts[2].sum())
    finally:
        for h in hooks: h.remove()

# --- KL, loss recovered, effective sparsity

def by_hooks(lm, ids, site, fn=None):
    "Logits of the model's own forward in float64, with `fn` hooked in by hand"
    model = copy.deepcopy(lm.model).double()
    twin = SimpleNamespace(**{k: getattr(lm, k) for k in ('family', 'n_layers', 'build')}, layers=model.model.layers)
    module, end = site_module(twin, site)
    hook = module.register_forward_pre_hook(lambda m, a: (fn(a[0]),
        *a[1:])) if end == 'input' else module.register_forward_hook(lambda m, a, o: fn(o))
    if fn is None: hook.remove()
    try: return model(input_ids=ids).logits
    finally: hook.remove()

def slow_splice(sae, scaler, mask, rule=None):
    def fn(v):
        out = v.clone()
        for r, p in mask.nonzero().tolist():
            if rule is None or not rule(v[r, p]):
                out[r, p] = sae.decode(sae.encode((v[r,
                    p] - scaler.mean.double())/scaler.scale))*scaler.scale + scaler.mean.double()
        return out
    return fn

def random_sae(d, n=40, seed=3):
    W = F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    def encode(x):
        z = x @ W.T.to(x.dtype)
        return z*(z > .1)
    return SimpleNamespace(encode=encode, decode=lambda f: f @ W.to(f.dtype) + .01, W=W)

@pytest.mark.parametrize('site', ['resid.1', 'mlp.3', 'attn.2'])
def test_full_metrics_against_the_models_own_forward(lm, site):
    t = rows(lm, n=150)
    ev = LMEval(lm, t, site, t.n_tokens, batch_rows=3)
    x = capture(lm, t.ids, site)[parse_site(site)][t.mask]
    scaler, sae = Scaler.fit(x), random_sae(x.shape[1])
    lim = x.square().sum(1).quantile(.9)
    rule = lambda v: v.square().sum(-1) > lim
    m, a = ev.delta(raw(sae, scaler), rule, full=True)
    with torch.no_grad():
        clean = by_hooks(lm, t.ids, site).log_softmax(-1)
        q, zero, mean = (by_hooks(lm, t.ids, site, f).log_softmax(-1)
            for f in (slow_splice(sae, scaler, t.mask, rule),
            slow_splice(SimpleNamespace(encode=lambda v: v, decode=lambda f: 0*f - scaler.mean.double()/scaler.scale),
            scaler, t.mask, rule), slow_splice(keep(0.), scaler, t.mask, rule)))
    c = t.mask[:, :-1] & t.mask[:, 1:]
    loss = lambda v: -v[:, :-1].gather(2, t.ids[:, 1:, None])[..., 0][c].mean()
    assert m['kl'] == pytest.approx(float((clean.exp()*(clean - q)).sum(-1)[:, :-1][c].mean()), abs=2e-6)
    assert m['kl'] > 1e-3
    d, z, u = (float(loss(v) - loss(clean)) for v in (q, zero, mean))
    assert [m['delta_lm_loss'], m['delta_zero_ablation'], m['delta_mean_ablation']] == pytest.approx([d, z, u],
        abs=2e-6)
    for k, worst in (('loss_recovered_zero', z), ('loss_recovered_mean', u)):
        assert m[k] == (pytest.approx(1 - d/worst, rel=1e-3) if worst > 0 else None)
    for k, v in (('lm_kl', 'kl'), ('lm_zero', 'delta_zero_ablation'), ('lm_mean', 'delta_mean_ablation')):
        assert sum(a[k])/sum(a['lm_tokens']) == pytest.approx(m[v], abs=1e-12)

@pytest.mark.parametrize('site', ['resid.0', 'resid.3', 'mlp.2', 'attn.1'])
def test_attribution_against_differences_in_float64(lm, site):
    t = rows(lm, n=150)
    ev = LMEval(lm, t, site, t.n_tokens, batch_rows=2)
    x = capture(lm, t.ids, site)[parse_site(site)]
    scaler, sae = Scaler.fit(x[t.mask]), random_sae(x.shape[-1])
    at, pos = torch.tensor([2, 0]), torch.tensor([4, 11])
    y = attribution(ev, raw(sae, scaler), at, pos)
    for i, (r, p) in enumerate(zip(at.tolist(), pos.tolist())):
        f = sae.encode(((x[r, p] - scaler.mean)/scaler.scale).double())
        def L(f):
            def fn(v):
                out = slow_splice(sae, scaler, t.mask[r:r+1])(v)
                out[0, p] = sae.decode(f)*scaler.scale + scaler.mean.double()
                return out
            with torch.no_grad(): z = by_hooks(lm, t.ids[r:r+1], site, fn)[0, p]
            return float(z[t.ids[r, p+1]] - z.mean())
        on = f.nonzero()[:, 0]
        e = 4e-3*torch.eye(40).double()   # the norms compute in float32 whatever the model is
        want = torch.tensor([float(f[j])*(L(f + e[j]) - L(f - e[j]))/8e-3 for j in on.tolist()])
        assert len(on) >= 3
        assert (y[i, on] - want).abs().max() < 1e-3*want.abs().max()
        assert y[i].count_nonzero() <= len(on)

def test_effective_l0_by_hand():
    y = torch.tensor([[1., 1, 1, 1], [-2, 2, 0, 0], [0, 0, 0, 7], [0, 0, 0, 0], [1e-30, 1e-30, 0, 0]])
    assert effective_l0(y).tolist() == pytest.approx([4, 2, 1, 0, 2])
    p = torch.tensor([.7, .2, .1]).double()
    assert effective_l0(p[None]*-3) == pytest.approx(float((p**-p).prod()))      # e^S = Π p^-p

def test_kl_of_a_confident_model():
    "Logits far apart, where exponentials underflow: KL is then the difference of two losses"
    two = SimpleNamespace(model=SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=torch.eye(3))),
        config=None)
    p, q = torch.tensor([[200., 0, 0]]), torch.tensor([[0., 150, 0]])
    for words in (1, 2, 3): assert kl_divergence(two, p, q, words=words).tolist() == pytest.approx([150.])

def test_positions_are_spread_and_wanted():
    ok = torch.rand(30, 50, generator=torch.Generator().manual_seed(0)) < .3
    ok[3] = False
    got = spread_positions(ok, 5)
    assert len(got) == 5 and all(ok[r, p].all() and len(r.unique()) == len(r) for r, p in got)
    flat = torch.stack([torch.cat([r for r, _ in got]), torch.cat([p for _, p in got])], 1)
    assert len(flat.unique(dim=0)) == len(flat) == 5*29
    assert [float(p.float().mean()) for _, p in got] == pytest.approx([5, 15, 25, 34, 44], abs=3)

# --- half precision

@pytest.mark.parametrize('arch', ['topk', 'jumprelu', 'relu', 'gated', 'batchtopk'])
def test_half_precision_judges_and_splices(gemma2, arch):
    "An SAE in any float type is judged, spliced and attributed, with float32's numbers but for rounding"
    t = rows(gemma2)
    ev = LMEval(gemma2, t, 'resid.1', 200)
    x, doc = captured(gemma2, t, parse_site('resid.1'))
    young = make_sae(SAEConfig(arch, 32, 64, **(dict(k=8) if 'topk' in arch else {})), seed=1)
    young.loss(Scaler.fit(x)(x)) # a batch in training mode: BatchTopK has a threshold
    sae = young.finish(Scaler.fit(x))
    if arch == 'batchtopk': sae.threshold *= .9999  # is a pre-activation of this batch: rounding may close that one
    m0, d0 = evaluate_activations(sae, x, doc)[0], ev.delta(sae, full=True)[0]
    for dtype, near in ((torch.float64, 1e-4), (torch.float16, .02), (torch.bfloat16, .15)):
        half = copy.deepcopy(sae).to(dtype)
        m, a = evaluate_activations(half, x, doc)
        d = ev.delta(half, full=True)[0]
        assert half.W_enc.dtype == dtype
        assert [m[k] for k in ('fvu', 'l0')] == pytest.approx([m0[k] for k in ('fvu', 'l0')], rel=near)
        assert d['delta_lm_loss'] == pytest.approx(d0['delta_lm_loss'], abs=near)
        assert d['effective_l0'] == pytest.approx(d0['effective_l0'], rel=2*near)
        # counted, never rounded
        assert sum(a['l0'])/sum(a['tokens']) == m['l0'] == float((half.encode(x) != 0).sum())/len(x)
        out = splice_fn(half, t.mask)(torch.zeros(*t.mask.shape, 32))
        assert out.dtype == torch.float32

def test_half_precision_has_no_number_for_a_massive_token():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=g)
    x[7] = 6e4
    rule = lambda v: v.float().square().sum(-1) > 1e6
    sae = make_sae(SAEConfig('topk', 16, 32, k=4)).finish(Scaler.fit(x[:7])).to(torch.float16)
    m, _ = evaluate_activations(sae, x, torch.zeros(200).long(), rule)
    assert m['fvu_with_massive'] is None and m['fvu'] < 2 and m['n_massive'] == 1
    with pytest.raises(UserError, match='sae.float()'): evaluate_activations(sae, x, torch.zeros(200).long())

# --- an SAE and its activations

QUIET = Settings(progress=False)

@pytest.fixture(scope='module')
def make(tmp_path_factory):
    "Activations at a site of a tiny model; stores are shared"
    stores = tmp_path_factory.mktemp('stores')
    def made(model='tiny-llama', corpus='generated', site='resid.1', seq_len=32, massive=20., dtype='float32'):
        lm = load_lm(model, dtype=dtype)
        return activations(lm, corpus, site, 900, 100, 600, seq_len, massive, folder=stores, settings=QUIET)
    return made

@pytest.fixture(scope='module')
def acts(make): return make()

def trained(acts, arch='topk', **ours):
    meta = acts.metadata()
    meta['jumprelu_sae'] |= ours
    return make_sae(SAEConfig(arch, acts.d_in, 48, **(dict(k=4) if 'topk' in arch else {}))).finish(acts.scaler, meta)

@pytest.mark.parametrize('arch', ['topk', 'jumprelu', 'gated'])
def test_evaluate(acts, arch, tmp_path):
    r = evaluate(trained(acts, arch), acts, n_lm=150)
    assert isinstance(r, Evaluation) and str(r) == evaluation_table(r) and f"{r.metrics['kl']:.4g}" in str(r)
    assert r.metrics['n_tokens'] + r.metrics['n_massive'] == 600 == r.config['n_test']
    assert r.config['elsewhere'] == [] == r.config['run_otherwise']
    assert (r.config['arch'], r.config['seed'], r.config['site']) == (arch, 0, 'resid.1')
    assert r.name.startswith(f'{arch}-')
    r.save(tmp_path/'e.json')
    again = Evaluation.load(tmp_path/'e.json')
    assert again == r and str(again) == str(r)
    alone = evaluate(trained(acts, arch), acts, n_lm=0)
    assert 'kl' not in alone.metrics and alone.metrics['fvu'] == r.metrics['fvu'] and 'predictions' not in str(alone)

def test_the_saes_own_rule_and_mean_are_used(acts):
    "Not those of the activations: a rule ignored was once a mistake that no test saw"
    sae = trained(acts)
    r = evaluate(sae, acts, n_lm=0)
    strict = trained(acts, massive=dict(factor=1., median=acts.rule.median))
    assert evaluate(strict, acts, n_lm=0).metrics['n_massive'] > 200 > r.metrics['n_massive']
    mu = torch.full((acts.d_in,), 2.)
    moved = trained(acts, mean=mu.tolist())
    got = evaluate(moved, acts, n_lm=150)
    x = acts.part('test')['x'].float()
    x = x[~acts.rule(x)]
    with torch.no_grad(): left = float((x - sae.decode(sae.encode(x))).double().square().sum())
    assert r.metrics['fvu'] == pytest.approx(left/float((x - acts.mean).double().square().sum()), rel=1e-6)
    assert got.metrics['fvu'] == pytest.approx(left/float((x - mu).double().square().sum()),
        rel=1e-6) != r.metrics['fvu']
    ablated = LMEval(acts.lm, acts.tokens['test'], acts.site, 150).delta(ConstantReconstruction(mu),
        MassiveRule(20., acts.rule.median))[0]
    assert got.metrics['delta_mean_ablation'] == pytest.approx(ablated['delta_lm_loss'], abs=1e-9)
    mute = trained(acts, mean=[0.]*acts.d_in, massive=None)             # says neither: the activations are asked
    asked = evaluate(mute, acts, n_lm=0).metrics
    assert (asked['n_massive'], asked['fvu']) == (r.metrics['n_massive'], r.metrics['fvu'])

TEXTS = [o.text for o in generated_corpus()]
OTHERS = [(dict(site='resid.2'), 'site: "resid.2" here, "resid.1" in the SAE'),
    (dict(seq_len=16), 'seq_len: 16 here, 32 in the SAE'),
    (dict(corpus=[TEXTS[0] + ' Yes.'] + TEXTS[1:]), 'corpus.sha256'),
    (dict(model='tiny-gemma2'), 'model.name: "tiny-gemma2" here'), (dict(massive=5.), 'massive: 5.0 here')]

@pytest.mark.parametrize('kw, says', OTHERS)
def test_elsewhere_is_refused_or_said(make, acts, kw, says, caplog):
    "The situation of faults/evaluate_elsewhere: another model, site, text or row length of the same width"
    sae, other = trained(acts), make(**kw)
    # reading activations before refusing would fail
    other.part = None
    with pytest.raises(UserError, match='elsewhere=True') as e: evaluate(sae, other, n_lm=100)
    assert says in str(e.value) and '\n' not in str(e.value)
    del other.part
    with caplog.at_level(logging.WARNING, 'jumprelu_sae'):
        r = evaluate(sae, other, n_lm=100, full=False, elsewhere=True)
    assert says in ' '.join(r.config['elsewhere']) and says in caplog.text and says in str(r)
    assert evaluate(sae, acts, n_lm=100, full=False).config['elsewhere'] == []

def test_how_the_model_runs_is_recorded_not_refused(make, acts):
    near = make(dtype='bfloat16', corpus=TEXTS)                          # the same text, given as strings
    r = evaluate(trained(acts), near, n_lm=0)
    assert r.config['elsewhere'] == []
    assert r.config['run_otherwise'] == ['model.dtype: "bfloat16" here, "float32" in the SAE']

def test_a_saved_sae_is_judged_on_its_own(make, acts, tmp_path, monkeypatch, caplog):
    "evaluate_saved and evaluate(sae): where it was trained, by default; else said and written down"
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    sae = trained(acts)
    sae.save(tmp_path/'s')
    want = evaluate(sae, acts, n_lm=150, full=False)
    r = evaluate_saved(tmp_path/'s', n_test=600, n_lm=150, full=False)
    assert r.metrics == pytest.approx(want.metrics, rel=1e-6)
    assert r.config['elsewhere'] == []
    assert r.config['seq_len'] == 32
    assert r.config['site'] == 'resid.1'
    assert r.config['tokens_sha256'] == acts.tokens['test'].sha == want.config['tokens_sha256']
    assert (tmp_path/'s'/'evaluation.png').read_bytes()[:4] == b'\x89PNG'
    assert Evaluation.load(tmp_path/'s'/'evaluation.json').metrics == r.metrics
    assert evaluate(sae, n_test=600, n_lm=150, full=False).metrics == r.metrics
    with caplog.at_level(logging.WARNING, 'jumprelu_sae'):
        away = evaluate_saved(tmp_path/'s', site='mlp.2', seq_len=16, corpus=TEXTS[:-1], model='tiny-gemma2',
            n_test=300, n_lm=100, full=False, out=tmp_path/'away')
    for k in ('model.name', 'site', 'corpus', 'seq_len'):
        assert k in caplog.text and any(l.startswith(k) for l in away.config['elsewhere'])
    assert caplog.text.count('seq_len: 16') == 1
    assert away.config['seq_len'] == 16
    assert not (tmp_path/'away'/'cfg.json').exists()
    for kw, says in ((dict(n_test=10**6), 'n_test='), (dict(n_test=2.5), 'whole number'),
        (dict(n_test=100, n_lm=200), 'lower n_lm'), (dict(device='gpu'), 'no such device'),
            (dict(site='attn.2'), 'width'), (dict(out=tmp_path/'s'/'cfg.json'), 'cannot write')):
        with pytest.raises(UserError, match=says) as e: evaluate_saved(tmp_path/'s', **dict(n_test=300, n_lm=100) | kw)
        assert '\n' not in str(e.value)
    with pytest.raises(UserError, match='holds no SAE'): evaluate_saved(tmp_path/'none', n_test=300, n_lm=100)

def test_an_sae_of_the_earlier_format(acts, tmp_path, monkeypatch):
    "sae.json and sae.safetensors in scaled units: judged as the same SAE is, once corpus and rows are named"
    from jumprelu_sae.core import save_tensors
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    cfg = SAEConfig('topk', acts.d_in, 48, k=4)
    sae = make_sae(cfg)
    sha = save_tensors(tmp_path/'sae.safetensors', dict(sae.state_dict())
        | {f'scaler.{k}': v for k, v in acts.scaler.state().items()})
    meta = dict(name='old', site='resid.1', model='tiny-llama')
    write_json(tmp_path/'sae.json', dict(format=1, config=dict(arch='topk', d_in=acts.d_in, d_sae=48, k=4), sha256=sha,
        meta=meta))
    with pytest.raises(UserError, match='corpus=|seq_len='): evaluate_saved(tmp_path, n_test=300, n_lm=100)
    r = evaluate_saved(tmp_path, corpus='generated', seq_len=32, n_test=600, n_lm=100, full=False)
    assert r.name == 'old'
    assert r.metrics['fvu'] == pytest.approx(evaluate(sae.finish(acts.scaler, acts.metadata()), acts,
        n_lm=0).metrics['fvu'], rel=1e-3)
    assert 'corpus, seq_len' in r.config['elsewhere'][-1]

def test_refused_before_any_work(acts):
    sae, none = trained(acts), copy.copy(acts)
    none.part = None
    for n, says in ((601, 'n_lm=601, and 600 tokens are held out'), (2.5, 'whole number'), (-1, 'whole number'),
        (True, 'whole number')):
        with pytest.raises(UserError, match=says): evaluate(sae, none, n_lm=n)
    with pytest.raises(UserError, match='call finish'):
        evaluate(make_sae(SAEConfig('topk', 32, 48, k=4)), none, n_lm=10)
    with pytest.raises(UserError, match='width 16, and resid.1 has 32'):
        evaluate(make_sae(SAEConfig('topk', 16, 48, k=4)).finish(), none, n_lm=10, elsewhere=True)
    stranger = make_sae(SAEConfig('topk', 32, 48, k=4)).finish()
    with pytest.raises(UserError, match='does not say on which model, site, corpus, seq_len'):
        evaluate(stranger, none, n_lm=10)
    assert evaluate(stranger, acts, n_lm=0, elsewhere=True).config['elsewhere'] == [
        'the SAE does not say on which model, site, corpus, seq_len it was trained']

def test_many_saes_share_what_they_have_in_common(acts):
    judge, calls = Evaluator(acts, 150), []
    one, two = trained(acts), trained(acts, 'jumprelu')
    evaluate(one, judge)
    hooks = [l.mlp.register_forward_hook(lambda m, i, o, n=n: calls.append(n)) for n, l in enumerate(acts.lm.layers)]
    try: r = evaluate(two, judge)
    finally:
        for h in hooks: h.remove()
    assert 0 not in calls and 1 not in calls and len(judge.lm_eval.ablated) == 2      # equal rules are one rule
    assert r.metrics == evaluate(two, acts, n_lm=150).metrics

def test_it_says_what_it_computes(acts, caplog):
    "Minutes on a big vocabulary: each stage is named before it begins, and what is there already is not"
    caplog.set_level('INFO', 'jumprelu_sae')
    judge, sae = Evaluator(acts, 150), trained(acts)
    evaluate(sae, judge)
    said = [r.getMessage().removeprefix('evaluating: ') for r in caplog.records]
    assert said == ['held-out activations', 'the language model as it is', 'the language model with the SAE in place',
        'KL divergence', 'the language model with zeros, then with the mean in place', 'effective sparsity']
    caplog.clear()
    evaluate(sae, judge, full=False)
    assert [r.getMessage().removeprefix('evaluating: ') for r in caplog.records] == [said[0], said[2]]
    caplog.clear()
    evaluate(sae, judge, progress=False)
    assert not caplog.records

def test_a_registered_metric_and_architecture_are_in_the_table(acts):
    try:
        register('mine', label='Mine', color='#D55E00', marker='P', setting='k')(type('MineSAE', (TopKSAE,), {}))
        register_metric(Metric('mse', 'squared error (per token)', 'sse', 'tokens', log=True, direction=-1))
        sae = make_sae(SAEConfig('mine', 32, 48, k=4)).finish(acts.scaler, acts.metadata())
        r = evaluate(sae, acts, n_lm=0)
        assert (r.config['arch'], r.config['target']) == ('mine', 4)
        line = next(l for l in str(r).splitlines() if l.startswith('squared error'))
        assert f"{sum(r.arrays['sse'])/sum(r.arrays['tokens']):.4g}" in line and ' to ' in line
        from jumprelu_sae.frontier import frontier_table
        assert frontier_table([r])[0]['name'] == r.name
        fig = E.evaluation_figure(r)
        assert fig.axes[1].lines[0].get_color() == '#D55E00'
    finally:
        ARCHITECTURES.pop('mine', None)
        METRICS.pop('mse', None)

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
    with pytest.raises(UserError, match='no finite loss'):
        LMEval(gemma2, t, 'resid.1', 50).delta(raw(keep(float('inf')), Scaler(torch.ones(32), 1.)))

def test_rows_are_spread_and_few():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(57, 20, generator=g) < .7
    total = int(mask.sum())
    for n in (1, 5, 100, 400, total-1, total):
        r = spread_rows(mask, n)
        assert int(mask[r].sum()) >= n and len(r.unique()) == len(r)
        assert len(r) <= -(-n//int(mask.sum(1).min()))
    assert spread_rows(mask, 100).float().mean().sub(28).abs() < 6
