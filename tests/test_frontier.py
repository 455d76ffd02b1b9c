"The frontier's reader on frontiers whose answer is known, and against a bootstrap written as loops."
import csv, json, math, subprocess, sys
from dataclasses import asdict, replace
import numpy as np
import pytest
from scipy.special import stdtrit
from jumprelu_sae.core import Result, UserError, write_json
from jumprelu_sae.frontier import (TRUTHS, _effective, _errors, at_l0, common_seeds, confusion, equal_l0_table,
    falsifier, frontier_figure, frontier_table,
    html_table, opponents, paired_test, resampled, sign_flip, synthetic_results, text_table, uniform_distance,
    verdict_table, verdicts, wide_table, write_csv)
from jumprelu_sae.intervals import (METRICS, Metric, bootstrap_ratio, effective_documents, frontier_metrics,
    mean_intervals, metric_interval, register_metric,
    resample, simultaneous_band, widening)
from jumprelu_sae.sae import ARCHITECTURES, TopKSAE, look, register

ARCHS = tuple(ARCHITECTURES)

def two(ratio=1., **kw): return synthetic_results(dict(topk=1., jumprelu=ratio), **kw)
def renamed(results, a, b):
    return [replace(r, config=r.config | dict(arch=b)) for r in results if r.config['arch'] == a]

def t_by_sum(df, p=.975, h=1e-3, top=400.):
    "Student's quantile from its density in t, by a plain sum (a second way)"
    x = np.arange(0, top, h) + h/2
    f = (1 + x*x/df)**(-(df + 1)/2)
    tail = 2*p - 1
    return float(x[np.searchsorted(np.cumsum(f)/f.sum(), tail)])

def slow(results, metric, n_boot, seed, n_grid=25):
    "The falsifier's difference in each draw for one seed, by loops and numpy.interp"
    num, den, docs = dict(fvu=('sse', 'sst', 'docs'), delta_lm_loss=('lm_delta', 'lm_tokens', 'lm_docs'))[metric]
    every = sorted({d for r in results for d in r.arrays['docs'] + r.arrays['lm_docs']})
    def draw(w):
        w = dict(zip(every, w))
        curve = {}
        for r in results:
            s = lambda k, ids: sum(w[d]*v for d, v in zip(r.arrays[ids], r.arrays[k]))
            curve.setdefault(r.config['arch'], []).append(
                (math.log(s('l0', 'docs')/s('tokens', 'docs')), s(num, docs)/s(den, docs)))
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
    ok = np.array([b for b in boot if math.isfinite(b)])
    w = rs[0].arrays['sst' if metric == 'fvu' else 'lm_tokens']
    n = sum(w)**2/sum(x*x for x in w)
    k = math.sqrt(n/(n-1))*t_by_sum(n-1)/1.959964
    assert v.area == pytest.approx(est, rel=1e-9)
    assert v.by_documents == pytest.approx(est + k*(np.quantile(ok, (.025, .975)) - est), abs=1e-4)
    assert v.n_docs == (12 if metric == 'fvu' else 6) and v.both == v.by_documents and v.by_seeds is None
    assert ('with care' in v.sentence) == (metric != 'fvu')

@pytest.mark.parametrize('seeds', [1, 3])
@pytest.mark.parametrize('metric', ['fvu', 'delta_lm_loss'])
def test_wins_loses_and_itself(metric, seeds):
    rs = two(.9, seeds=seeds)
    won, lost = falsifier(rs, metric=metric), falsifier(rs, 'topk', 'jumprelu', metric=metric)
    assert (won.verdict, lost.verdict) == ('held', 'refuted')
    assert [lost.area, *lost.by_documents] == pytest.approx([-won.area, *(-x for x in won.by_documents[::-1])],
        rel=1e-6)
    twin = rs + renamed(rs, 'topk', 'gated')
    itself = falsifier(twin, 'topk', 'gated', metric=metric)
    assert (itself.verdict, itself.area, itself.both) == ('undecided', 0, [0, 0])
    assert paired_test(twin, 'topk', 'gated', metric)['p'] == 1

def test_confusion_table():
    "Over 200 draws each: no wrong side for real differences, the nominal 95 % for ties, to three standard errors"
    rows = {r['truth']: r for r in confusion(noises=(.05,), draws=200, n_boot=400)}
    assert set(rows) == set(TRUTHS) and all(r['held'] + r['undecided'] + r['refuted'] == 200 for r in rows.values())
    for r in rows.values(): assert .9 < r['covered']/200 < .995, r
    for t in ('ties', 'itself'):
        assert rows[t]['undecided'] > 181 and rows[t]['p_distance'] < 1.63/200**.5 and rows[t]['p_below_5'] < .1
    for t, right, wrong in (('wins', 'held', 'refuted'), ('loses', 'refuted', 'held')):
        assert rows[t][wrong] == 0 and rows[t][right] > 180 and rows[t]['p_below_5'] > .9

def test_coverage_with_seeds():
    vs = [falsifier(two(1., seeds=3, seed_noise=.05, seed=s), n_boot=200) for s in range(150)]
    share = lambda k: np.mean([getattr(v, k)[0] <= 0 <= getattr(v, k)[1] for v in vs])
    assert share('both') > .9 and share('by_seeds') > .9 and share('by_documents') < .4
    assert {v.covers for v in vs} == {'documents and seeds'}
    assert vs[0].seeds == [0, 1, 2]
    assert '3 seeds' in vs[0].sentence
    assert 'over seeds' in vs[0].sentence
    assert 'says nothing about other seeds' in falsifier(two()).sentence
    assert 'over seeds' not in falsifier(two()).sentence

def test_seeds_enter_by_students_t():
    "No scatter between documents: the intervals over seeds and over both must be Student's own"
    rs = two(1., noise=0., seeds=3, seed_noise=.05, n_docs=10, targets=(16, 32))
    for r in rs: r.arrays['l0'] = [r.config['target']*t for t in r.arrays['tokens']]
    d = [falsifier([r for r in rs if r.config['seed'] == s], n_boot=50).area for s in range(3)]
    v = falsifier(rs, n_boot=10_000)
    half = 4.3027*np.std(d, ddof=1)/3**.5
    student = pytest.approx([np.mean(d) - half, np.mean(d) + half], abs=.01*half)
    assert v.area == pytest.approx(np.mean(d)) and v.by_seeds == student and v.both == student
    assert v.by_documents[0] == pytest.approx(v.by_documents[1])

def test_documents_and_seeds_are_told_apart():
    "Scatter of one kind must not enter the interval of the other"
    width = lambda e: e[1] - e[0]
    calm, moody = (falsifier(two(1., seeds=3, seed_noise=s, noise=.03, seed=1)) for s in (0., .05))
    assert width(moody.by_documents) == pytest.approx(width(calm.by_documents), rel=.01)
    assert width(moody.by_seeds) > 4*width(calm.by_seeds)
    assert width(moody.both) >= width(moody.by_seeds) > width(moody.by_documents)
    assert moody.by_documents[0] > 0 > moody.both[0]
    assert moody.verdict == 'undecided'   # documents alone would have said 'refuted'
    for v in (calm, moody):
        assert v.both[0] <= min(v.by_documents[0], v.by_seeds[0]) and v.both[1] >= max(v.by_documents[1], v.by_seeds[1])
    g = np.random.default_rng(0)
    v = g.normal(size=(4001, 3))*[[1., 1, 1]]
    v[0] = [-1, 0, 1]   # documents' sd of the mean 1/√3, seeds' se 1/√3
    est, docs, seeds, both = mean_intervals(v, 1e9)  # many documents: nothing is widened
    assert est == 0
    assert docs == pytest.approx([-1.96/3**.5, 1.96/3**.5], abs=.05)
    assert seeds == pytest.approx([-4.3027/3**.5, 4.3027/3**.5], rel=1e-3)
    assert both[1] > 1.02*seeds[1] and both[0] < 1.02*seeds[0]   # as variances add: wider than either

def test_students_quantile_and_effective_documents():
    for df in (2., 3.5, 9, 22.3, 60): assert stdtrit(df, .975) == pytest.approx(t_by_sum(df), rel=4e-3)
    r = two(n_docs=3)[0]
    r.arrays['sst'] = [4., 1., 1.]
    assert _effective([r], 'fvu') == pytest.approx(2) == effective_documents([4., 1., 1.])
    assert widening(2.) == pytest.approx(2**.5*12.7062/1.959964, rel=1e-4) and math.isnan(widening(1.))
    assert mean_intervals(np.array([[1., 2, 3]]*50), 9).seeds == pytest.approx([2 - 4.30265/3**.5, 2 + 4.30265/3**.5],
        rel=1e-5)

# --- the registers

def test_a_metric_is_one_entry(tmp_path):
    "Registered, it is in tables, figure and comparisons; for one where more is better, 'held' means higher"
    rs = two(.9)
    for r in rs: r.arrays |= dict(gain=[s - e for s, e in zip(r.arrays['sst'], r.arrays['sse'])])
    plain = verdicts(dict(x=rs), n_boot=100)
    try:
        register_metric(Metric('explained', 'explained variance', 'gain', 'sst', direction=1, frontier=True,
            question='How much is kept?', unit='of the variance'))
        register_metric(Metric('kept', 'kept', 'sse', 'sst', direction=1, complement=True, frontier=True))
        assert frontier_metrics(rs) == ['fvu', 'delta_lm_loss', 'explained', 'kept']
        v, same = falsifier(rs, metric='explained', n_boot=200), falsifier(rs, metric='kept', n_boot=200)
        assert v.verdict == 'held'
        assert v.area > 0
        assert 'explained variance is higher for JumpReLU than for TopK' in v.sentence
        assert ' of the variance' in v.sentence
        assert (same.verdict, same.area, same.both) == ('held', pytest.approx(v.area), pytest.approx(v.both))
        assert falsifier(rs, 'topk', 'jumprelu', 'explained', n_boot=200).verdict == 'refuted'
        assert paired_test(rs, metric='kept', n=99)['area'] == pytest.approx(v.area)
        rows = verdicts(dict(x=rs), n_boot=100)
        assert [r['metric'] for r in rows] == ['fvu', 'delta_lm_loss', 'explained', 'kept']
        assert rows[:2] == plain    # the others are what they were
        assert 'explained_lo' in frontier_table(rs, 50)[0] and equal_l0_table(rs, (32,), 50)[0]['kept'] > 0
        fig = frontier_figure(rs)
        assert [a.get_title() for a in fig.axes][2] == 'How much is kept?'
        lo, hi = metric_interval(METRICS['kept'], rs[0].arrays)
        assert (lo, hi) == pytest.approx([1 - x for x in bootstrap_ratio(rs[0].arrays['sse'],
            rs[0].arrays['sst'])[::-1]])
    finally:
        for k in ('explained', 'kept'): METRICS.pop(k, None)
    for bad in ('dead', 'l0'):
        with pytest.raises(UserError): falsifier(rs, metric=bad)

def test_an_architecture_is_one_entry():
    rs = synthetic_results(dict(topk=1., jumprelu=.97, mine=.8),
        n_docs=10) + [replace(r, config=r.config | dict(arch='forgotten')) for r in two(n_docs=10)
        if r.config['arch'] == 'topk']
    try:
        register('mine', label='Mine', color='#D55E00', marker='P', setting='k')(type('MineSAE', (TopKSAE,), {}))
        assert [r['arch'] for r in frontier_table(rs, 20)][::4] == ['topk', 'jumprelu', 'mine', 'forgotten']
        assert opponents(rs) == ['topk', 'mine', 'forgotten']
        fig = frontier_figure(rs)
        assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ['TopK', 'JumpReLU', 'Mine', 'forgotten']
        line = next(l for l in fig.axes[0].lines if l.get_marker() == 'P')
        assert line.get_color() == '#D55E00' and len(line.get_xdata()) == 4
        assert {r['against'] for r in verdict_table(verdicts(dict(x=rs), n_boot=100))} == {'TopK', 'Mine', 'forgotten'}
        assert 'than for Mine' in falsifier(rs, b='mine', n_boot=100).sentence
    finally: ARCHITECTURES.pop('mine', None)
    assert look('mine').label == 'mine'

def test_bands_hold_the_whole_curve():
    g = np.random.default_rng(0)
    v = g.standard_normal((8001, 1, 5))
    v[0] = 0
    band, c = simultaneous_band(v, 1e9)
    assert (np.abs(v[1:, 0]) <= band[1]).all(1).mean() == pytest.approx(.95, abs=.01) and c > 1.2
    one, c1 = simultaneous_band(v[..., :1], 1e9)
    assert c1 == pytest.approx(1, abs=.01) and one == pytest.approx(mean_intervals(v[..., :1], 1e9).both, rel=.02)
    three = g.standard_normal((4001, 3, 5))
    three[0] = [[-1.]*5, [0.]*5, [1.]*5]
    wide, _ = simultaneous_band(three, 1e9)
    assert (wide[1] >= mean_intervals(three, 1e9).both[1]).all()

# --- the paired test

def test_sign_flip_against_every_pattern():
    g = np.random.default_rng(0)
    for log in (True, False):
        ea, eb = g.uniform(1, 2, (2, 3, 6))
        def stat(flip):
            a, b = ([sum((q if f else p)[d] for d, f in enumerate(flip)) for p, q in zip(x, y)] for x,
                y in ((ea, eb), (eb, ea)))
            return np.mean([math.log(i/j) if log else i - j for i, j in zip(a, b)])
        every = [stat([i >> d & 1 for d in range(6)]) for i in range(64)]
        seen, p = sign_flip(ea, eb, log)
        assert seen == pytest.approx(every[0]) and p == pytest.approx(np.mean(np.abs(every) >= abs(every[0]) - 1e-12))
        assert sign_flip(eb, ea, log)[1] == p
        assert sign_flip(ea, eb, log, n=60)[1] == pytest.approx(p, abs=.2)
        assert sign_flip(ea, eb, log, n=60)[1] >= 1/61

@pytest.mark.parametrize('metric', ['fvu', 'delta_lm_loss'])
def test_paired_test_is_about_the_area(metric):
    rs = two(.97, n_docs=12, seeds=2, seed_noise=.01, noise=.1, seed=2)
    t, v = paired_test(rs, metric=metric), falsifier(rs, metric=metric, n_boot=2)
    assert t['area'] == pytest.approx(v.area, rel=1e-9) and t['seeds'] == 2 and t['n_docs'] == 12
    at = paired_test(rs, metric=metric, l0s=[4, 30, 60])
    assert at['area'] == pytest.approx(np.mean([x for x in falsifier(rs, metric=metric, l0s=[4, 30, 60],
        n_boot=2).values if x is not None]), rel=1e-9)
    runs = [r for r in rs if (r.config['arch'], r.config['seed']) == ('jumprelu', 1)]
    e = _errors(rs, 'jumprelu', 1, metric, [20, 50], range(12))
    assert e.sum(1) == pytest.approx(at_l0([r.metrics['l0'] for r in runs], [r.metrics[metric] for r in runs],
        [20, 50], log=metric == 'fvu'), rel=1e-9)
    assert paired_test(rs, 'topk', 'jumprelu', metric)['p'] == t['p']

def test_p_is_uniform_when_nothing_differs_and_small_when_something_does():
    ps = {r: [paired_test(two(r, noise=.05, seed=s), n=199)['p'] for s in range(300)] for r in (1., .98)}
    assert uniform_distance(ps[1.]) < 1.63/300**.5 and np.mean(np.array(ps[.98]) < .05) > .7
    assert uniform_distance(np.arange(1, 101)/100) == pytest.approx(.01) and uniform_distance([0, 0]) == 1

# --- the verdict

def test_order_does_not_matter():
    rs = two(.97, seeds=2, n_docs=15)
    a, b = falsifier(rs), falsifier(rs[::-1])
    assert [a.area, *a.both] == pytest.approx([b.area, *b.both], rel=1e-12)
    for r in rs[:3]:  # nor the order of documents inside a result
        for k, v in r.arrays.items(): r.arrays[k] = v[::-1]
    assert falsifier(rs).both == pytest.approx(a.both, rel=1e-12)

def test_margin_and_points():
    rs = two(.97)
    assert falsifier(rs, margin=.05).verdict == 'undecided'
    v = falsifier(rs, l0s=[4, 16, 32, 100, 1000])
    assert [x is None for x in v.values] == [True, True, False, False, True] and v.verdict == 'held'
    out = falsifier(rs, l0s=[4, 1000])
    assert out.verdict == 'undecided' and out.area is None and 'no L0 in common' in out.sentence

def test_verdict_is_json(tmp_path):
    apart = [r for r in two() if (r.config['target'] < 40) == (r.config['arch'] == 'topk')]
    for v in (falsifier(two()), falsifier(apart), falsifier(two(n_docs=1)), falsifier(two(), l0s=[1, 40])):
        write_json(tmp_path/'v.json', asdict(v))
        assert json.loads((tmp_path/'v.json').read_text())['verdict'] == v.verdict
        assert v.verdict in v.sentence
    assert falsifier(apart).verdict == 'undecided' and falsifier(two(.5, n_docs=1)).verdict == 'undecided'
    assert falsifier([r for r in two(.5) if r.config['target'] == 32]).verdict == 'undecided'   # a point each: no range

def test_a_collapsed_run_does_not_break_it():
    rs = two(.97)
    low = next(r for r in rs if r.name == 'jumprelu-16-seed0')
    low.arrays['l0'] = [0.]*40
    low.arrays['sse'] = low.arrays['sst']
    v = falsifier(rs)
    assert v.verdict == 'held' and min(l for l, x in zip(v.l0s, v.values) if x is not None) > 30

def test_bad_input():
    rs = two(seeds=2)
    with pytest.raises(UserError, match='no result of gated'): falsifier(rs, 'gated')
    with pytest.raises(UserError, match='one result per setting'): falsifier(rs + rs[:1])
    with pytest.raises(UserError, match='finish the sweep'):
        falsifier([r for r in rs if not (r.config['seed'] == 0 and r.config['target'] == 32
            or r.config['seed'] == 1 and r.config['target'] == 64)])
    assert common_seeds([r for r in rs if r.name != 'topk-64-seed1'], 'topk', 'jumprelu') == [0]
    with pytest.raises(UserError, match='different tokens'): falsifier(two()[:4] + two(seed=9)[4:])
    with pytest.raises(UserError, match='no such metric'): falsifier(rs, metric='mse')
    with pytest.raises(UserError, match='no better side'): falsifier(rs, metric='l0')
    with pytest.raises(UserError, match='no per-document sums'):
        falsifier([replace(r, arrays={k: v for k, v in r.arrays.items() if k != 'sse'}) for r in rs])

# --- curves

def test_interpolation_properties():
    g = np.random.default_rng(0)
    for _ in range(50):
        n = g.integers(2, 7)
        L, Y = g.uniform(4, 300, n), g.uniform(.05, .9, n)
        o = np.argsort(L)
        q = np.exp(g.uniform(np.log(L.min()), np.log(L.max()), 20))
        for log in (True, False):
            got = at_l0(L, Y, q, log)
            f = np.log if log else (lambda v: v)
            assert f(got) == pytest.approx(np.interp(np.log(q), np.log(L[o]), f(Y[o])), rel=1e-9)
            assert at_l0(L, Y, L, log) == pytest.approx(Y)
            assert (got <= Y.max()+1e-12).all()
            assert (got >= Y.min()-1e-12).all()
            assert np.isnan(at_l0(L, Y, [L.min()*.99, L.max()*1.01], log)).all()
    assert at_l0([8, 16, 16, 32], [.4, .3, .3, .2], 16) == pytest.approx(.3)     # two points at one L0
    falling = at_l0([10, 30, 90], [.5, .2, .1], np.linspace(10, 90, 99))
    assert (np.diff(falling) < 0).all()

# --- tables and figures

def test_tables(tmp_path):
    rs = synthetic_results({a: 1. + i/10 for i, a in enumerate(ARCHS)}, n_docs=10)
    rows = frontier_table(rs[::-1])
    assert [r['arch'] for r in rows] == [a for a in ARCHS for _ in range(4)]
    assert all(a['l0'] < b['l0'] for a, b in zip(rows, rows[1:]) if a['arch'] == b['arch'])
    assert all(r['fvu_lo'] < r['fvu'] < r['fvu_hi'] for r in rows)
    write_csv(rows, tmp_path/'f.csv')
    with open(tmp_path/'f.csv', newline='') as f: back = list(csv.DictReader(f))
    assert [float(r['delta_lm_loss_hi']) for r in back] == [r['delta_lm_loss_hi'] for r in rows]
    bare = frontier_table([Result('x', dict(arch='relu'), dict(l0=1., fvu=.5), env={})])
    assert bare == [dict(name='x', arch='relu', target=None, seed=None, l0=1., fvu=.5)] and '–' in text_table(bare)
    assert '>a&amp;&lt;script&gt;</td>' in html_table([dict(n='a&<script>')])
    assert '<th style="text-align:right">n</th>' in html_table([dict(n=1)])
    assert len({len(l) for l in text_table([dict(a=1, b=2.5), dict(a=100, b=None)]).splitlines()}) == 1

def test_equal_l0_table():
    rs = synthetic_results(dict(topk=1., jumprelu=.9), seeds=2, seed_noise=.01, n_docs=20)
    rows = equal_l0_table(rs, (16, 50, 500))
    j = next(r for r in rows if (r['arch'], r['l0']) == ('jumprelu', 50))
    per = [at_l0(*np.array([(r.metrics['l0'], r.metrics['fvu']) for r in rs
        if r.config == dict(arch='jumprelu', seed=s, target=r.config['target'])]).T, 50) for s in (0, 1)]
    assert j['fvu'] == pytest.approx(np.exp(np.mean(np.log(per))))
    assert j['fvu_lo'] < j['fvu'] < j['fvu_hi']
    assert j['seeds'] == 2
    assert j['fvu_sd'] == pytest.approx(abs(per[0] - per[1])/2**.5) and j['delta_lm_loss_sd'] > 0
    assert [r['fvu'] is None for r in rows] == [False, False, True, True, False, True]   # JumpReLU's lowest L0 is 17.6
    w = wide_table(rows)
    assert w[1]['L0 = 500'] == '–' and w[0]['L0 = 50'].startswith('0.') and ' ± ' in w[0]['L0 = 50']
    calm, moody = (equal_l0_table(synthetic_results(dict(topk=1.), seeds=3, seed_noise=s, n_docs=20), (32,))[0]
        for s in (0., .1))
    rel = lambda r: (r['fvu_hi'] - r['fvu_lo'])/r['fvu']
    assert rel(moody) == pytest.approx(rel(calm), rel=.05)
    assert moody['fvu_sd'] > 5*calm['fvu_sd']   # the bracket is over documents alone
    one = equal_l0_table(two(), (32,))[0]
    assert one['fvu_sd'] is None and '±' not in wide_table([one])[0]['L0 = 32']

def test_a_crossing_is_said():
    rs = two(.9)
    for r in rs:
        if r.name == 'jumprelu-16-seed0': r.arrays['sse'] = [1.25*x for x in r.arrays['sse']]
    assert falsifier(rs).verdict == 'held'
    assert 'though not at every L0' in falsifier(rs).sentence
    assert 'though not at every L0' in falsifier(rs, 'topk', 'jumprelu').sentence
    assert 'every L0' not in falsifier(two(.9)).sentence

def test_verdicts(tmp_path):
    groups = {'main': synthetic_results(dict(gated=1.2, topk=1., jumprelu=.9), seeds=2), 'other': two(1.1),
        'no loss': [replace(r, arrays={k: v for k, v in r.arrays.items() if not k.startswith('lm_')})
        for r in two(seed=3)]}
    rows = verdicts(groups, n_boot=400)
    assert [(r['group'], r['baseline'], r['metric']) for r in rows] == [('main', b, m) for b in ('topk', 'gated')
        for m in ('fvu', 'delta_lm_loss')] + [('other', 'topk', 'fvu'), ('other', 'topk', 'delta_lm_loss'),
        ('no loss', 'topk', 'fvu')]
    assert [r['verdict'] for r in rows] == ['held']*4 + ['refuted']*2 + ['undecided']
    assert [r['by_seeds'] == 'one seed' for r in rows] == [False]*4 + [True]*3
    v = falsifier(groups['main'], b='gated', n_boot=400)
    assert [rows[2][k] for k in ('area', 'by_documents', 'by_seeds', 'both')] == [v.area, v.by_documents, v.by_seeds,
        v.both]
    assert rows[2]['sentence'] == f'main: {v.sentence}'
    assert rows[4]['p'] == pytest.approx(1/400) and rows[-1]['p'] > .05
    write_json(tmp_path/'v.json', rows)
    text = text_table(verdict_table(rows))
    assert 'one seed' in text and ' nats' in text and text.count('held') == 4
    with pytest.raises(UserError, match='leave the group out'): verdicts(dict(x=[]))
    apart = [r for r in two() if (r.config['target'] < 40) == (r.config['arch'] == 'topk')]
    assert verdict_table(verdicts(dict(apart=apart)))[0] | dict(group='') == dict(group='', against='TopK',
        metric='FVU', area='–', p='–', verdict='undecided') | {'over documents': '–', 'over seeds': 'one seed'}

def test_figure(tmp_path):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    rs = synthetic_results(dict(topk=1., jumprelu=.9), seeds=2, n_docs=10)
    for name, head in (('f.png', b'\x89PNG'), ('f.svg', b'<?xml'), ('f.pdf', b'%PDF')):
        fig = frontier_figure(rs, tmp_path/name)
        assert (tmp_path/name).read_bytes().startswith(head)
        assert '10 documents' in fig._supxlabel.get_text()
        assert 'Thin bars: 95 % interval over documents' in fig._supxlabel.get_text()
        assert 'interval over 2 seeds' in fig._supxlabel.get_text()
        thick = [c for c in fig.axes[0].collections if c.get_linewidth()[0] == 6]
        assert len(thick) == 2
        plt.close(fig)   # one set of seeds' bars an architecture
    one = frontier_figure(two(n_docs=10))
    assert 'the bars say nothing' in one._supxlabel.get_text()
    plt.close(one)
    no_lm = [replace(r, arrays={k: v for k, v in r.arrays.items() if not k.startswith('lm_')}) for r in rs]
    fig = frontier_figure(no_lm)
    assert len(fig.axes) == 1
    plt.close(fig)
    with pytest.raises(UserError, match='no per-document sums'): frontier_figure([replace(r, arrays={}) for r in rs])

def test_row_zero_is_the_sample():
    rs = two(n_docs=7)
    for m in ('l0', 'fvu', 'delta_lm_loss'): assert resampled(rs, m, 5)[0] == pytest.approx([r.metrics[m] for r in rs])

def test_import_is_light():
    heavy = subprocess.run(
        [sys.executable, '-c',
        "import sys, jumprelu_sae.frontier; print([m for m in ('matplotlib', 'IPython', 'datasets', 'transformers', "
        "'jupyter_core') if m in sys.modules])"], capture_output=True, text=True)
    assert heavy.stdout.strip() == '[]', heavy.stdout + heavy.stderr
