"Firings, excerpts, n-gram explanations, their scores, the verdict, and the evidence in results/interpret."
import math
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from jumprelu_sae.activations import activations
from jumprelu_sae.core import Result, Settings, UserError, read_json
from jumprelu_sae.harvest import MassiveRule
from jumprelu_sae.interpret import (DENOMINATORS, LEAST, MARGIN, Excerpt, by_frequency, collisions, common_l0, compare,
    context_keys, excerpt_html, explain, firings, interpret_run, key_tokens, matched_scores, mean_score, ngram_html,
    ngram_scores, ranking_scores, read_scores, saved_saes, score_draws, similar, weighed)
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.text import ByteTokenizer, generated_corpus

EVIDENCE = Path(__file__).parent.parent/'results'/'interpret'
identity = SimpleNamespace(encode=lambda x: x.clone())


def side(token, row, x, doc=None, limit=None):
    "Activations that were made up; the 'SAE' returns them as its latents"
    t = dict(token=token, row=row, doc=doc if doc is not None else row, pos=range(1, len(token) + 1), x=x)
    t = {k: torch.tensor(np.asarray(v)) for k, v in t.items()}
    names = SimpleNamespace(doc_ids=[f'd{i}' for i in range(int(t['doc'].max()) + 1)])
    return SimpleNamespace(part=lambda name: t, rule=MassiveRule(limit, 1.), tokens=dict(train=names, test=names),
        lm=SimpleNamespace(tokenizer=ByteTokenizer()))


def noisy(n, seed, words=5, latents=9, limit=None):
    "Random letters; latents fire on letters of their own"
    g = np.random.default_rng(seed)
    token, row = g.integers(97, 97 + words, n), np.arange(n)//23
    x = g.random((n, latents))*(g.random((n, latents)) < .05 + .6*((token[:, None] + np.arange(latents)) % words == 0))
    return side(token, row, x.astype(np.float32), limit=limit)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return activations('tiny-gemma2', generated_corpus(n_docs=40), 'resid.1', 3000, 200, 1500, 32,
        folder=tmp_path_factory.mktemp('stores'), settings=Settings(progress=False))


@pytest.fixture(scope='module')
def sae(tiny): return make_sae(SAEConfig('topk', tiny.d_in, 48, k=4), 0).finish(tiny.scaler, tiny.metadata())


def dense(f):
    out = torch.zeros(f.n_tokens, f.d_sae)
    out[f.at.long(), f.latent.long()] = f.value
    return out

# --- firings


@pytest.mark.parametrize('batch', [64, 2048])
def test_firings_are_what_the_sae_says(tiny, sae, batch):
    f, t = firings(sae, tiny, 'test', batch=batch), tiny.part('test')
    want = sae.encode(t['x'].float())*~tiny.rule(t['x'])[:, None]
    assert torch.allclose(dense(f), want, atol=1e-6)
    assert f.at.dtype == f.latent.dtype == torch.int32 and f.value.dtype == torch.float32
    assert torch.equal(f.count, (want != 0).sum(0))
    assert (f.latent.diff() >= 0).all()
    assert all((f.of(i)[0].diff() > 0).all() for i in range(48))


def test_only_some_latents_or_rows(tiny, sae):
    every, some = firings(sae, tiny), firings(sae, tiny, latents=[3, 7])
    assert some.count.nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(some.of(7)[1], every.of(7)[1])
    half = firings(sae, tiny, every=2)
    rows = tiny.part('test')['row']
    assert half.n_tokens == int((rows % 2 == 0).sum())
    assert torch.allclose(dense(half), dense(every)[rows % 2 == 0], atol=1e-6)


def test_massive_tokens_are_silent_but_shown():
    a = side([97, 98, 97], [0, 0, 0], [[1., 0], [50., 1], [2, 0]], limit=100.)
    f = firings(identity, a)
    assert f.of(0)[0].tolist() == [0, 2] and f.of(1)[0].tolist() == []
    assert f.excerpt(0, 2).text == f.tokenizer.decode([97, 98, 97])
    assert f.n_counted == 2 and float(f.frequency[0]) == 1


def test_excerpts_stay_in_document_and_row(tiny, sae):
    f = firings(sae, tiny)
    for i in range(48):
        for e in f.top(i, 5, before=50, after=50):
            span = f.window(e.at, 50, 50)
            assert f.row[list(span)].unique().numel() == f.doc[list(span)].unique().numel() == 1
            assert span.start == 0 or f.row[span.start - 1] != f.row[e.at] or f.doc[span.start - 1] != f.doc[e.at] \
                or e.at - span.start == 50
            assert e.value == pytest.approx(float(dense(f)[e.at, i]))
            assert e.doc == f.doc_ids[int(f.doc[e.at])] and len(e.tokens) == len(e.values) == len(span)


def test_two_documents_in_one_row():
    f = firings(identity, side([97, 98, 99, 100], [0, 0, 0, 1], [[1.], [1], [1], [1]], doc=[0, 0, 1, 1]))
    assert [list(f.window(i, 9, 9)) for i in range(4)] == [[0, 1], [0, 1], [2], [3]]
    assert [list(f.window(0, 9, n)) for n in (0, 1)] == [[0], [0, 1]]


def test_quantiles_are_ordered_and_drawn_anew_by_seed(tiny, sae):
    f = firings(sae, tiny)
    i = int(f.count.argmax())
    groups = f.by_quantile(i, 4, 3)
    lowest = [min(e.value for e in g) for g in groups]
    highest = [max(e.value for e in g) for g in groups]
    assert all(a >= b for a, b in zip(lowest, highest[1:]))
    assert groups == f.by_quantile(i, 4, 3) != f.by_quantile(i, 4, 3, seed=1)
    assert all([e.value for e in g] == sorted((e.value for e in g), reverse=True) for g in groups)
    dead = firings(identity, side([97], [0], [[0., 1]]))
    assert dead.by_quantile(0) == [[], [], [], [], []] and dead.top(0) == []


@pytest.mark.parametrize('bad', ['<script>alert(1)</script>', '<img onerror=x src=y>', '"><b>', "' onmouseover='x"])
def test_nothing_of_the_corpus_is_markup(bad):
    pages = excerpt_html(Excerpt([bad, 'a'], [1., 0.], 0, 'd', 0)), ngram_html([((bad, 'a'), 1., 2)])
    for page in pages:
        assert '<script' not in page and '<img' not in page and '<b>' not in page and "' onmouseover" not in page

# --- explanations


def test_keys_know_rows_and_order():
    f = firings(identity, side([97, 98, 99], [0, 0, 1], [[1.], [1], [1]]))
    assert [[key_tokens(k, n + 1) for k in keys] for n, keys in enumerate(context_keys(f))] == [
        [[97], [98], [99]], [[-1, 97], [97, 98], [-1, 99]], [[-1, -1, 97], [-1, 97, 98], [-1, -1, 99]]]
    big = SimpleNamespace(token=torch.tensor([2**21 - 2]*3), row=torch.tensor([0, 0, 0]))
    assert key_tokens(context_keys(big)[2][2], 3) == [2**21 - 2]*3
    with pytest.raises(UserError, match='2 million'):
        context_keys(SimpleNamespace(token=torch.tensor([2**21]), row=torch.tensor([0])))


@pytest.mark.parametrize('seed', range(3))
def test_fast_scores_are_the_readable_ones(seed):
    train, test = firings(identity, noisy(900, seed, limit=2.4)), firings(identity, noisy(500, seed + 50, 6, limit=2.4))
    s, ok = ngram_scores(train, test), ~test.massive.numpy()
    for i in range(9):
        table, y = explain(train, i), dense(test)[:, i].numpy()[ok]
        for order in (1, 2, 3):
            p = table.predict(test, order)[ok]
            assert s.r[order - 1, i] == pytest.approx(np.corrcoef(p, y)[0, 1], abs=1e-6)
        assert s.auprc[i] == pytest.approx(ranking_scores(np.sort(p), p[y > 0])[0])
        assert s.label[i] == table.label
        tokens = train.token[train.of(i)[0].long()].numpy()
        q = np.unique(tokens, return_counts=True)[1]/len(tokens)
        assert s.entropy[i] == pytest.approx(-(q*np.log(q)).sum())
    some = ngram_scores(train, test, latents=[2, 5])
    assert some.r[2].tolist() == s.r[2][[2, 5]].tolist()


def test_latents_that_cannot_be_scored():
    train, test = firings(identity, noisy(300, 0)), firings(identity, noisy(300, 1))
    least = int(test.count.median()) + 1
    s = ngram_scores(train, test, least=least)
    few = test.count.numpy() < least
    assert few.any() and not few.all() and (np.isnan(s.r[2]) == few).all() and (np.isnan(s.found[0]) == few).all()
    with pytest.raises(UserError, match='two sides of one SAE'):
        ngram_scores(train, firings(identity, noisy(300, 1, latents=8)))


def test_a_perfect_latent_scores_one_and_the_neighbour_nothing():
    token = np.random.default_rng(0).integers(97, 105, 2000)
    x = np.stack([(token == 97)*1., (token == 98)*1.], 1).astype(np.float32)
    f = firings(identity, side(token, np.arange(2000)//50, x))
    s = ngram_scores(f, f)
    assert s.r[2] == pytest.approx([1, 1], abs=1e-3) and s.auprc == pytest.approx([1, 1])
    assert (s.r_other < 0).all() and (s.auprc_other < .3).all()
    assert [key_tokens(k, o) for o, k in s.label] == [[97], [98]] and collisions(s.label) == 0
    assert collisions(ngram_scores(*[firings(identity, side(token, np.arange(2000)//50, x[:, [0, 0]]))]*2).label) == 1

# --- denominators and the verdict


def invented(means, latents=300, seeds=3, noise=0., seed=0):
    g, out = np.random.default_rng(seed), []
    for arch, m in means.items():
        for s in range(seeds):
            for l0 in (16, 32, 64):
                r3 = m + .2*g.standard_normal(latents) + noise*g.standard_normal()
                out.append(Result(f'{arch}{s}{l0}', dict(arch=arch, seed=s), dict(l0=float(l0)),
                    dict(r3=r3.tolist(), count=[20]*latents), env={}))
    return out


def test_unknown_denominator():
    with pytest.raises(UserError, match='scored, all, firing'): weighed([1.], [1], 'mean')
    assert mean_score([math.nan], [0], 'scored') == mean_score([math.nan], [0], 'firing') == 0


def test_three_means():
    score, count = [.8, .2, math.nan, math.nan], [30, 90, 5, 0]
    assert mean_score(score, count, 'scored') == pytest.approx(.5)
    assert mean_score(score, count, 'all') == pytest.approx(.25)
    assert mean_score(score, count, 'firing') == pytest.approx((24 + 18)/125)


def test_bands_and_firings():
    rows = by_frequency([1., 0, math.nan], [1, 99, 0], 1000)
    assert sum(r['firings'] for r in rows) == 1 and [r['latents'] for r in rows] == [1, 0, 0, 1, 0]


def test_draws_spread_as_they_should():
    g = np.random.default_rng(0)
    v = score_draws(g.standard_normal(400), [20]*400, 'scored', 800)
    assert v[1:].std() == pytest.approx(1/20, rel=.15) and abs(v[1:].mean() - v[0]) < .01


@pytest.mark.parametrize('gap, want', [(0, 'similar'), (.12, 'higher'), (-.12, 'lower')])
@pytest.mark.parametrize('which', DENOMINATORS)
def test_planted_difference(gap, want, which):
    v = compare(invented(dict(a=.6 + gap, b=.6)), 'a', 'b', which)
    assert v['verdict'] == want and v['seeds'] == 3
    assert v['interval'][0] <= min(v['latents'][0], v['by_seed'][0]) + 1e-9
    back = compare(invented(dict(a=.6 + gap, b=.6)), 'b', 'a', which)
    assert back['difference'] == pytest.approx(-v['difference'], abs=1e-9)


def test_seeds_that_differ_leave_it_open():
    assert compare(invented(dict(a=.6, b=.6), noise=.08), 'a', 'b', 'all')['verdict'] == 'undecided'


def test_read_between_points_and_never_outside():
    r = invented(dict(a=.6), latents=2000)
    v = matched_scores(r, 'a', [16, math.sqrt(16*32), 32, 300], 'scored', n_boot=20)
    assert v[0, :, 1] == pytest.approx(v[0, :, [0, 2]].mean(0)) and np.isnan(v[0, :, 3]).all()
    with pytest.raises(UserError, match="architecture 'c'"): matched_scores(r, 'c', [32], 'scored')
    with pytest.raises(UserError, match='no seed in common'): compare(r, 'a', 'c', 'scored')
    assert common_l0(r, ('a',))[[0, -1]] == pytest.approx([16, 64])


def test_rule():
    assert similar(-.01, .01) == 'similar' and similar(.049, .051) == 'higher' and similar(-1, 1) == 'undecided'
    with pytest.raises(UserError, match='margin'): similar(0, 1, math.nan)

# --- files, and the short version for a run


def test_short_version_goes_on(tiny, sae, tmp_path):
    sae.save(tmp_path/'run'/'saes'/'topk-4-seed0')
    with pytest.raises(UserError, match='no SAE in'): saved_saes(tmp_path)
    first = interpret_run(tmp_path/'run', tiny, latents=24, every=2, out=tmp_path/'out')
    assert [r.config['floor'] for r in first] == [None, 'random dictionary']
    assert first[0].metrics['l0'] == pytest.approx(4, rel=.5) and len(first[0].arrays['r3']) == 24
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path/'out').iterdir()}
    again = interpret_run(tmp_path/'run', tiny, latents=24, every=2, out=tmp_path/'out')
    assert stamp == {p: p.stat().st_mtime_ns for p in (tmp_path/'out').iterdir()}
    assert again[0].metrics == first[0].metrics
    kept = interpret_run(tmp_path/'run', tiny, latents=24, every=2)
    assert str(kept[0].arrays) == str(first[0].arrays)


def evidence():
    files = [p for p in EVIDENCE.glob('*.json') if p.name not in ('summary.json', 'examples.json')]
    if not files: pytest.skip('no evidence here')
    return [read_scores(p) for p in files], read_json(EVIDENCE/'summary.json')


def test_evidence_gives_its_verdicts_again():
    results, d = evidence()
    saes = [r for r in results if not r.config['floor']]
    assert d['n_saes'] == len(saes) and d['n_floors'] == len(results) - len(saes) and d['margin'] == MARGIN
    for v in (v for v in d['verdicts'] if v['where'] == 'common' and v['score'] == 'r3'):
        again = compare(saes, v['a'], v['b'], v['denominator'])
        assert again['verdict'] == v['verdict'] and again['difference'] == pytest.approx(v['difference'], abs=1e-6)
        assert again['interval'] == pytest.approx(v['interval'], abs=1e-6)


def test_evidence_agrees_with_its_own_latents():
    results, _ = evidence()
    for r in results:
        assert r.config['least'] == LEAST and (EVIDENCE/f'{r.name}.json').stat().st_size < 60_000
        for w in DENOMINATORS:
            for k in ('r1', 'r3', 'auprc'):
                assert mean_score(r.arrays[k], r.arrays['count'], w) == pytest.approx(r.metrics[f'{k}.{w}'], abs=1e-3)
        assert sum(r.arrays['count'])/r.metrics['n_tokens'] == pytest.approx(r.metrics['l0'])
