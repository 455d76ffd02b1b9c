"The frontier's reader on frontiers whose answer is known, and against a bootstrap written as loops."
import csv, json, math, subprocess, sys
from dataclasses import asdict, replace
import numpy as np
import pytest
from jumprelu_sae.core import ARCHS, Result, UserError, write_json
from jumprelu_sae.frontier import (at_l0, common_seeds, equal_l0_table, falsifier, frontier_figure, frontier_table, html_table,
    resampled, synthetic_results, text_table, wide_table, write_csv)
from jumprelu_sae.evaluate import resample

def two(ratio=1., **kw): return synthetic_results(dict(topk=1., jumprelu=ratio), **kw)
def renamed(results, a, b): return [replace(r, config=r.config | dict(arch=b)) for r in results if r.config['arch'] == a]

def slow(results, metric, n_boot, seed, n_grid=25):
    "The falsifier's difference in each draw for one seed, by loops and numpy.interp"
    num, den, docs = dict(fvu=('sse', 'sst', 'docs'), delta_lm_loss=('lm_delta', 'lm_tokens', 'lm_docs'))[metric]
    every = sorted({d for r in results for d in r.arrays['docs'] + r.arrays['lm_docs']})
    def draw(w):
        w = dict(zip(every, w))
        curve = {}
        for r in results:
            s = lambda k, ids: sum(w[d]*v for d, v in zip(r.arrays[ids], r.arrays[k]))
            curve.setdefault(r.config['arch'], []).append((math.log(s('l0', 'docs')/s('tokens', 'docs')), s(num, docs)/s(den, docs)))
        (xa, ya), (xb, yb) = (np.array(sorted(curve[a])).T for a in ('jumprelu', 'topk'))
        if metric == 'fvu': ya, yb = np.log(ya), np.log(yb)
        g = np.linspace(max(xa[0], xb[0]), min(xa[-1], xb[-1]), n_grid)
        return (np.interp(g, xa, ya) - np.interp(g, xb, yb)).mean()
    return draw(np.ones(len(every))), [draw(w) for w in resample(len(every), n_boot, seed)]

@pytest.mark.parametrize('metric', ['fvu', 'delta_lm_loss'])
def test_against_loops(metric):
    rs = two(.97, n_docs=12, noise=.1, seed=2)
    for r in rs:  # the LM loss is measured on fewer documents, and other tokens of them
        r.arrays['lm_docs'] = r.arrays['lm_docs'][3:9]
        for k in ('lm_tokens', 'lm_delta'): r.arrays[k] = r.arrays[k][3:9]
    est, boot = slow(rs, metric, 60, 3)
    v = falsifier(rs, metric=metric, n_boot=60, seed=3)
    ok = [b for b in boot if math.isfinite(b)]
    assert v.difference == pytest.approx(est, rel=1e-9) and [v.lo, v.hi] == pytest.approx(np.quantile(ok, (.025, .975)), rel=1e-9)
    assert v.n_docs == (12 if metric == 'fvu' else 6)
    assert ('too narrow' in v.sentence) == (metric != 'fvu')

@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('metric', ['fvu', 'delta_lm_loss'])
def test_wins_loses_and_itself(metric, seeds):
    rs = two(.9, seeds=seeds)
    won, lost = falsifier(rs, metric=metric), falsifier(rs, 'topk', 'jumprelu', metric=metric)
    assert (won.verdict, lost.verdict) == ('held', 'refuted')
    assert [lost.difference, lost.docs_lo, lost.docs_hi] == pytest.approx([-won.difference, -won.docs_hi, -won.docs_lo], rel=1e-6)
    itself = falsifier(rs + renamed(rs, 'topk', 'gated'), 'topk', 'gated', metric=metric)
    assert (itself.verdict, itself.difference, itself.lo, itself.hi) == ('undecided', 0, 0, 0)

def test_confusion_table():
    "Over 200 draws each: no wrong side for real differences, 'undecided' near its nominal 95 % for ties"
    tie = [falsifier(two(1., noise=.05, seed=s), n_boot=200, seed=s) for s in range(200)]
    assert np.mean([v.verdict == 'undecided' for v in tie]) > .88
    for ratio, right, wrong in ((.97, 'held', 'refuted'), (1.03, 'refuted', 'held')):
        vs = [falsifier(two(ratio, noise=.05, seed=s), n_boot=200, seed=s) for s in range(200)]
        said = [v.verdict for v in vs]
        assert said.count(wrong) == 0 and said.count(right) > 180
        assert .88 < np.mean([v.lo <= math.log(ratio) <= v.hi for v in vs]) < .99

def test_coverage_with_seeds():
    vs = [falsifier(two(1., seeds=3, seed_noise=.05, seed=s), n_boot=200, seed=s) for s in range(200)]
    assert np.mean([v.lo <= 0 <= v.hi for v in vs]) > .9 and np.mean([v.docs_lo <= 0 <= v.docs_hi for v in vs]) < .4
    assert {v.covers for v in vs} == {'documents and seeds'} and vs[0].seeds == [0, 1, 2] and '3 seeds' in vs[0].sentence
    assert 'says nothing about other seeds' in falsifier(two()).sentence

def test_seeds_enter_by_students_t():
    "No scatter between documents: the interval must be Student's own"
    rs = two(1., noise=0., seeds=3, seed_noise=.05, n_docs=10, targets=(16, 32))
    for r in rs: r.arrays['l0'] = [r.config['target']*t for t in r.arrays['tokens']]
    d = [falsifier([r for r in rs if r.config['seed'] == s], n_boot=50).difference for s in range(3)]
    v = falsifier(rs, n_boot=40_000)
    half = 4.3027*np.std(d, ddof=1)/3**.5
    assert v.difference == pytest.approx(np.mean(d)) and [v.lo, v.hi] == pytest.approx([np.mean(d) - half, np.mean(d) + half], abs=.1*half)
    assert v.docs_lo == pytest.approx(v.docs_hi)

def test_order_does_not_matter():
    rs = two(.97, seeds=2, n_docs=15)
    a, b = falsifier(rs), falsifier(rs[::-1])
    assert (a.difference, a.lo, a.hi) == pytest.approx((b.difference, b.lo, b.hi), rel=1e-12)
    for r in rs[:3]:  # nor the order of documents inside a result
        for k, v in r.arrays.items(): r.arrays[k] = v[::-1]
    assert falsifier(rs).lo == pytest.approx(a.lo, rel=1e-12)

def test_margin_and_points():
    rs = two(.97)
    assert falsifier(rs, margin=.05).verdict == 'undecided'
    v = falsifier(rs, l0s=[4, 16, 32, 100, 1000])
    assert [x is None for x in v.values] == [True, True, False, False, True] and v.verdict == 'held'
    out = falsifier(rs, l0s=[4, 1000])
    assert out.verdict == 'undecided' and out.difference is None and 'no L0 in common' in out.sentence

def test_verdict_is_json(tmp_path):
    apart = [r for r in two() if (r.config['target'] < 40) == (r.config['arch'] == 'topk')]
    for v in (falsifier(two()), falsifier(apart), falsifier(two(n_docs=1)), falsifier(two(), l0s=[1, 40])):
        write_json(tmp_path/'v.json', asdict(v)); assert json.loads((tmp_path/'v.json').read_text())['verdict'] == v.verdict
        assert v.verdict in v.sentence
    assert falsifier(apart).verdict == 'undecided' and falsifier(two(.5, n_docs=1)).verdict == 'undecided'
    assert falsifier([r for r in two(.5) if r.config['target'] == 32]).verdict == 'undecided'   # a point each: no range

def test_a_collapsed_run_does_not_break_it():
    rs = two(.97)
    low = next(r for r in rs if r.name == 'jumprelu-16-seed0')
    low.arrays['l0'] = [0.]*40; low.arrays['sse'] = low.arrays['sst']
    v = falsifier(rs); assert v.verdict == 'held' and min(l for l, x in zip(v.l0s, v.values) if x is not None) > 30

def test_bad_input():
    rs = two(seeds=2)
    with pytest.raises(UserError, match='no result of gated'): falsifier(rs, 'gated')
    with pytest.raises(UserError, match='one result per setting'): falsifier(rs + rs[:1])
    with pytest.raises(UserError, match='finish the sweep'): falsifier([r for r in rs if not (r.config['seed'] == 0 and r.config['target'] == 32 or r.config['seed'] == 1 and r.config['target'] == 64)])
    assert common_seeds([r for r in rs if r.name != 'topk-64-seed1'], 'topk', 'jumprelu') == [0]
    with pytest.raises(UserError, match='different tokens'): falsifier(two()[:4] + two(seed=9)[4:])
    with pytest.raises(UserError, match='no such metric'): falsifier(rs, metric='mse')
    with pytest.raises(UserError, match='no per-document sums'): falsifier([replace(r, arrays={k: v for k, v in r.arrays.items() if k != 'sse'}) for r in rs])

# --- curves

def test_interpolation_properties():
    g = np.random.default_rng(0)
    for _ in range(50):
        n = g.integers(2, 7); L, Y = g.uniform(4, 300, n), g.uniform(.05, .9, n)
        o = np.argsort(L); q = np.exp(g.uniform(np.log(L.min()), np.log(L.max()), 20))
        for log in (True, False):
            got = at_l0(L, Y, q, log); f = np.log if log else (lambda v: v)
            assert f(got) == pytest.approx(np.interp(np.log(q), np.log(L[o]), f(Y[o])), rel=1e-9)
            assert at_l0(L, Y, L, log) == pytest.approx(Y) and (got <= Y.max()+1e-12).all() and (got >= Y.min()-1e-12).all()
            assert np.isnan(at_l0(L, Y, [L.min()*.99, L.max()*1.01], log)).all()
    assert at_l0([8, 16, 16, 32], [.4, .3, .3, .2], 16) == pytest.approx(.3)     # two points at one L0
    falling = at_l0([10, 30, 90], [.5, .2, .1], np.linspace(10, 90, 99)); assert (np.diff(falling) < 0).all()

# --- tables and figures

def test_tables(tmp_path):
    rs = synthetic_results({a: 1. + i/10 for i, a in enumerate(ARCHS)}, n_docs=10)
    rows = frontier_table(rs[::-1])
    assert [r['arch'] for r in rows] == [a for a in ARCHS for _ in range(4)] and all(a['l0'] < b['l0'] for a, b in zip(rows, rows[1:]) if a['arch'] == b['arch'])
    assert all(r['fvu_lo'] < r['fvu'] < r['fvu_hi'] for r in rows)
    write_csv(rows, tmp_path/'f.csv')
    with open(tmp_path/'f.csv', newline='') as f: back = list(csv.DictReader(f))
    assert [float(r['delta_lm_loss_hi']) for r in back] == [r['delta_lm_loss_hi'] for r in rows]
    bare = frontier_table([Result('x', dict(arch='relu'), dict(l0=1., fvu=.5), env={})])
    assert bare == [dict(name='x', arch='relu', target=None, seed=None, l0=1., fvu=.5)] and '–' in text_table(bare)
    assert '<td>a&amp;&lt;script&gt;</td>' in html_table([dict(n='a&<script>')]) and '<th>n</th>' in html_table([dict(n=1)])
    assert len({len(l) for l in text_table([dict(a=1, b=2.5), dict(a=100, b=None)]).splitlines()}) == 1

def test_equal_l0_table():
    rs = synthetic_results(dict(topk=1., jumprelu=.9), seeds=2, seed_noise=.01, n_docs=20)
    rows = equal_l0_table(rs, (16, 50, 500))
    j = next(r for r in rows if (r['arch'], r['l0']) == ('jumprelu', 50))
    per = [np.log(at_l0(*np.array([(r.metrics['l0'], r.metrics['fvu']) for r in rs if r.config == dict(arch='jumprelu', seed=s, target=r.config['target'])]).T, 50)) for s in (0, 1)]
    assert j['fvu'] == pytest.approx(np.exp(np.mean(per))) and j['fvu_lo'] < j['fvu'] < j['fvu_hi'] and j['seeds'] == 2
    assert [r['fvu'] is None for r in rows] == [False, False, True, True, False, True]   # JumpReLU's lowest L0 is 17.6
    w = wide_table(rows); assert w[1]['L0 = 500'] == '–' and w[0]['L0 = 50'].startswith('0.')

def test_figure(tmp_path):
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    rs = synthetic_results(dict(topk=1., jumprelu=.9), seeds=2, n_docs=10)
    for name, head in (('f.png', b'\x89PNG'), ('f.svg', b'<?xml'), ('f.pdf', b'%PDF')):
        fig = frontier_figure(rs, tmp_path/name); assert (tmp_path/name).read_bytes().startswith(head)
        assert '10 documents' in fig._supxlabel.get_text() and '2 seeds' in fig._supxlabel.get_text(); plt.close(fig)
    no_lm = [replace(r, arrays={k: v for k, v in r.arrays.items() if not k.startswith('lm_')}) for r in rs]
    fig = frontier_figure(no_lm); assert len(fig.axes) == 1; plt.close(fig)
    with pytest.raises(UserError, match='no per-document sums'): frontier_figure([replace(r, arrays={}) for r in rs])

def test_row_zero_is_the_sample():
    rs = two(n_docs=7)
    for m in ('l0', 'fvu', 'delta_lm_loss'): assert resampled(rs, m, 5)[0] == pytest.approx([r.metrics[m] for r in rs])

def test_import_is_light():
    heavy = subprocess.run([sys.executable, '-c', "import sys, jumprelu_sae.frontier; print([m for m in ('matplotlib', 'IPython', 'datasets', 'transformers', 'jupyter_core') if m in sys.modules])"], capture_output=True, text=True)
    assert heavy.stdout.strip() == '[]', heavy.stdout + heavy.stderr
