"The blinded study, its log and its analysis, where a test would interrupt the lesson; and the evidence in results/."

import json, math
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
from jumprelu_sae.core import UserError, read_json
from jumprelu_sae.rate import (
    CSS, ESM, SCORE, SimulatedRater, ToyFirings, agreement, analyse, append_log, difference, expected_score,
    inspect_page, krippendorff_alpha, latent_draws, latent_texts, make_study, mean_of, page_features, page_html,
    rater_order, ratings, read_log, simulated_log, text_window, toy_sources, wilson,
)

EVIDENCE = Path(__file__).parent.parent / 'results' / 'rate' / 'inspector.json'
TOYS = toy_sources()


@pytest.fixture(scope='module')
def study():
    sources = {a: {'16': f, '64': g} for (a, f), g in zip(TOYS.items(), toy_sources(seed=1).values())}
    return make_study(sources, n_per_arm=12, strata=2, per_block=2, shams=2, repeats=9, min_firings=40,
        floor=ToyFirings(clear=0., seed=7), seed=3)


# -- design
def test_every_block_holds_equally_many_of_every_arm(study):
    key, block = study.key['items'], {i['id']: i['block'] for i in study.page['items']}
    n = Counter((block[i], k['group'], k['stratum'], k['arm']) for i, k in key.items() if k['role'] == 'latent')
    assert len(n) == 3*2*2*3 and set(n.values()) == {2}
    assert Counter(block[i] for i, k in key.items() if k['role'] == 'sham') == {0: 2, 1: 2, 2: 2}
    assert Counter(k['arm'] for k in key.values() if k['role'] == 'repeat') == {a: 3 for a in TOYS}


def test_an_item_says_what_the_firings_say(study):
    sources = {a: {'16': f, '64': g} for (a, f), g in zip(TOYS.items(), toy_sources(seed=1).values())}
    for item in study.page['items']:
        k = study.key['items'][item['id']]
        if k['role'] != 'latent': continue
        f = sources[k['arm']][k['group']]
        fires_on = set(f.words[np.asarray(f.of(k['latent'])[0])])
        odd = item['five'][k['right'] - 1]
        assert not fires_on & set(''.join(odd).split())
        others = [t for i, t in enumerate(item['five']) if i != k['right'] - 1]
        assert all(t[1].strip() in fires_on for t in item['top'] + item['low'] + others)


def test_the_odd_one_out_is_anywhere(study):
    right = Counter(k['right'] for k in study.key['items'].values())
    assert set(right) == {1, 2, 3, 4, 5} and max(right.values()) < .45*sum(right.values())


def test_shams_mix_latents(study):
    "Fourteen texts of a sham come from as many latents: hardly one word comes twice more often than in a real latent"
    words = {r: [] for r in ('sham', 'latent')}
    for item in study.page['items']:
        role = study.key['items'][item['id']]['role']
        if role in words:
            words[role].append(len({t[1] for t in item['top'] + item['low']}))
    assert min(words['sham']) > 5 and np.mean(words['latent']) < 4.5 < 6.5 < np.mean(words['sham'])


def test_no_item_says_more_than_another(study):
    shapes = {json.dumps([sorted(i), [len(i[k]) for k in ('top', 'low', 'five')],
        sorted({len(''.join(t).split()) for k in ('top', 'low', 'five') for t in i[k]})]) for i in study.page['items']}
    assert len(shapes) == 1
    ids = [i['id'] for i in study.page['items']]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)


def test_the_page_is_a_function_of_the_page_only(study):
    "What is in the key cannot get out"
    from dataclasses import replace
    assert page_html(study) == page_html(replace(study, key={}))


def test_scale_and_gap_change_no_page():
    "The same firings in another unit, over another threshold, give the same study"

    def page(scale, gap):
        return make_study(
            dict(a=ToyFirings(60, scale=scale, gap=gap, seed=1), b=ToyFirings(60, seed=2)),
            n_per_arm=6,
            min_firings=40,
            seed=4,
        ).page
    assert page(1., 0.) == page(70., .9)


def test_ranks_decide_and_not_places():
    f = ToyFirings(30, seed=5)
    turned = ToyFirings(30, seed=5)
    turned.firing = [(at, -v + 100) for at, v in f.firing]
    rng = lambda: np.random.default_rng(0)
    a, b = latent_texts(f, 2, rng()), latent_texts(turned, 2, rng())
    assert a['top'] != b['top']
    at, value = f.of(2)
    top = {''.join(text_window(f.excerpt(2, int(i), 23, 23))) for i in at[np.argsort(-value)[:5]]}
    assert {''.join(t) for t in a['top']} & top and not {''.join(t) for t in b['top']} & top


def test_frequencies_are_matched_one_by_one():
    "An arm with ten times the firings of another still gives matched sets where both have latents"
    many = ToyFirings(200, seed=8)
    s = make_study(dict(a=many, b=ToyFirings(60, seed=9)), n_per_arm=9, seed=1, min_firings=40)
    sets = {}
    for k in s.key['items'].values():
        if k['role'] == 'latent': sets.setdefault((k['stratum'], k['set']), {})[k['arm']] = k['latent']
    count = dict(a=many.count, b=ToyFirings(60, seed=9).count)
    ratio = [abs(math.log(count['a'][v['a']]/count['b'][v['b']])) for v in sets.values()]
    assert np.median(ratio) < .05


def test_what_cannot_be_filled_is_refused():
    for kw, words in ((dict(shams=-1), 'shams'), (dict(n_per_arm=0), 'n_per_arm'), (dict(strata=0), 'strata'),
        (dict(min_firings=3), 'min_firings'), (dict(n_per_arm=9, repeats=500), 'too few for repeats'),
        (dict(n_per_arm=9, floor=ToyFirings(2)), 'floor: too few'), (dict(n_per_arm=3.), 'whole number')):
        with pytest.raises(UserError, match=words): make_study(TOYS, **dict(min_firings=40) | kw)
    with pytest.raises(UserError, match='floor has no L0 group'):
        make_study({a: {'16': f} for a, f in TOYS.items()}, n_per_arm=3, min_firings=40, floor={'64': ToyFirings()})


# -- module and log
def test_the_module_makes_no_html_and_calls_nobody():
    for word in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval(', 'fetch(', 'XMLHttpRequest',
        'http:', 'https:'):
        assert word not in ESM and word not in CSS


def test_orders_of_raters(study):
    block = {i['id']: i['block'] for i in study.page['items']}
    for n in range(20):
        order = rater_order(study.page, f'r{n}')
        assert sorted(order) == sorted(block)
        assert list(dict.fromkeys(block[i] for i in order)) == [0, 2, 1]
        place = {i: k for k, i in enumerate(order)}
        for i, k in study.key['items'].items():
            if k['role'] == 'repeat': assert place[i] - place[k['of']] > list(block.values()).count(2)


def test_a_torn_log_goes_on(tmp_path, study):
    log, p = simulated_log(study, SimulatedRater('A'), dict.fromkeys(TOYS, 0.)), tmp_path/'l.jsonl'
    append_log(p, log[:5])
    whole = p.read_bytes()
    p.write_bytes(whole[:-20])
    append_log(p, log[4:])
    assert p.read_bytes().startswith(whole[:-20])
    with pytest.warns(UserWarning, match='half-written'): assert read_log(p) == log


def test_raters_of_one_name_in_two_places_are_one(study):
    a = simulated_log(study, SimulatedRater('A', slips=0), dict.fromkeys(TOYS, 0.))
    later = [r | dict(rid=r['rid'] + 'x', t=r['t'].replace('2026', '2027')) for r in a if r['kind'] == 'judge'][:3]
    later = [r | dict(value='no') for r in later]
    rows = {r.item: r for r in ratings(study.key, [later, a])}
    assert all(rows[r['item']].judge == 'no' for r in later) and len(rows) == len(study.page['items'])


def test_undo_is_the_raters_own(study):
    i = study.page['items'][0]['id']
    r = dict(study=study.page['id'], rater='A', item=i, t='2026', n=0)
    a, b = (
        r | dict(rid='1', kind='judge', value='yes'),
        r | dict(rater='B', rid='2', kind='undo', value=None, of='1', n=1),
    )
    assert ratings(study.key, [a, b])[0].judge == 'yes'


# -- analysis
def test_arms_named_elsewhere_change_nothing(study):
    "Exchanging two arms in the key changes the sign"
    log = [
        simulated_log(study, SimulatedRater(n, noise=0.8), dict(jumprelu=0.5, gated=-0.5, topk=0.0), seed=1)
        for n in 'AB'
    ]
    swap = dict(jumprelu='gated', gated='jumprelu')
    key = study.key | dict(items={i: k | dict(arm=swap.get(k['arm'], k['arm'])) for i, k in study.key['items'].items()})
    a, b = (difference(ratings(k, log), 'jumprelu', 'gated', draws=50).value for k in (study.key, key))
    assert a == pytest.approx(-b) and a > .1


def test_incomplete_ratings_stay_fair(study):
    "Raters of very different strictness who stop at different places: the plain means would mislead, the pairs do not"
    team = [SimulatedRater('A', bias=2., share=1., noise=.3), SimulatedRater('B', bias=-2., share=.37, noise=.3)]
    got = []
    for seed in range(25):
        log = [simulated_log(study, r, dict.fromkeys(TOYS, 0.), shift=.5, seed=seed) for r in team]
        got.append(difference(ratings(study.key, log), 'jumprelu', 'topk', draws=2).value)
    assert abs(np.mean(got)) < 3.5*np.std(got)/5


def test_bootstrap_counts_latents_and_not_ratings(study):
    "Ten raters who always agree know no more than one"
    means, widths = dict.fromkeys(TOYS, 0.), []
    for n in (1, 10):
        logs = [simulated_log(study, SimulatedRater(f'r{i}', noise=0., slips=0.), means, seed=2) for i in range(n)]
        e = difference(ratings(study.key, logs), 'jumprelu', 'topk', draws=800)
        widths.append(e.high - e.low)
    assert widths[1] == pytest.approx(widths[0], rel=.02) and widths[0] > .1


def test_alone_in_a_cell_says_so():
    assert np.isnan(latent_draws([0, 1, 1], 5)[:, 0]).all() and not np.isnan(latent_draws([0, 1, 1], 5)[:, 1:]).any()


@pytest.mark.parametrize('level', ['nominal', 'ordinal'])
def test_alpha_equals_the_package(level):
    krippendorff = pytest.importorskip('krippendorff')
    g = np.random.default_rng(1)
    for n in range(60):
        x = g.integers(0, g.integers(2, 6), (int(g.integers(2, 6)), 25)).astype(float)
        x[g.random(x.shape) < g.uniform(0, .6)] = np.nan
        if np.unique(x[~np.isnan(x)]).size < 2: continue
        want = krippendorff.alpha(x, level_of_measurement=level)
        assert krippendorff_alpha(x, level) == pytest.approx(want, abs=1e-10)


def test_simulated_raters_do_as_they_say(study):
    r = SimulatedRater('A', bias=.4, noise=1.2)
    means = dict(jumprelu=-.5, gated=0., topk=1.)
    rows = [
        v for s in range(60) for v in ratings(study.key, simulated_log(study, r, means, seed=s)) if v.role == 'latent'
    ]
    for a, m in means.items():
        x = np.array([v.score for v in rows if v.arm == a])
        assert x.mean() == pytest.approx(expected_score(m, r), abs=4*x.std()/len(x)**.5)
    shams = [
        v for s in range(60) for v in ratings(study.key, simulated_log(study, r, means, seed=s)) if v.role == 'sham'
    ]
    assert np.mean([v.hit for v in shams]) == pytest.approx(.2, abs=4*.4/len(shams)**.5)


def test_analysis_of_files(tmp_path, study):
    paths = []
    for n in 'AB':
        paths.append(tmp_path/f'{n}.jsonl')
        append_log(paths[-1], simulated_log(study, SimulatedRater(n), dict.fromkeys(TOYS, 0.)))
    study.write_key(tmp_path/'key.json')
    a = analyse(tmp_path/'key.json', paths, draws=50)
    assert a.simulated and set(a.score) == {*TOYS, 'sham', 'floor'} and len(a.differences) == 3
    assert 'Simulated raters: no person has rated this' in a.table()
    assert analyse(read_json(tmp_path/'key.json'), paths[0], draws=20).alpha.latents == 0
    real = [r | dict(simulated=False) for r in read_log(paths[0])]
    assert 'imulated raters' not in analyse(study.key, real, draws=20).table()


# -- inspector
def test_the_inspector_sees_every_field(study):
    items = study.page['items']
    base = page_features(study.page)['numbers'].shape[1]
    for extra in (dict(n=1), dict(deep=dict(er=[0, dict(x=2.)]))):
        page = study.page | dict(items=[i | (extra if k % 2 else {}) for k, i in enumerate(items)])
        assert page_features(page)['numbers'].shape[1] > base


@pytest.mark.parametrize('leak', ['text length', 'id', 'order', 'block'])
def test_the_inspector_finds_what_is_planted(study, leak):
    arm = lambda i: (
        sorted(TOYS).index(study.key['items'][i['id']]['arm']) if study.key['items'][i['id']]['arm'] in TOYS else 0
    )
    items, key = study.page['items'], study.key
    if leak == 'text length': items = [i | dict(top=[[t[0][25*arm(i):], *t[1:]] for t in i['top']]) for i in items]
    if leak == 'order': items = sorted(items, key=arm)
    if leak == 'block': items = [i | dict(block=arm(i)) for i in items]
    if leak == 'id':
        new = {i['id']: f'{"3ae"[arm(i)]}{i["id"][1:]}' for i in items}
        items = [i | dict(id=new[i['id']]) for i in items]
        key = key | dict(items={new[i]: k for i, k in key['items'].items()})
    best = max(inspect_page(study.page | dict(items=items), key), key=lambda g: g.low)
    assert best.low > .4, best


def test_wilson():
    lo, hi = wilson(0, 20)
    assert lo == pytest.approx(0, abs=1e-12) and hi == pytest.approx(.1611, abs=1e-4)


# -- evidence
@pytest.mark.skipif(not EVIDENCE.exists(), reason='made by benchmarks/rate_study.py')
def test_evidence_is_what_the_notebook_says():
    d = read_json(EVIDENCE)
    assert {g['n'] for g in d['blinded']} == {d['items']['latent']}
    for g in (*d['blinded'], *(g for v in d['leaks'].values() for g in v)):
        assert (g['low'], g['high']) == pytest.approx(wilson(round(g['right']*g['n']), g['n']))
    assert max(g['low'] for g in d['leaks']['active latents']) > max(g['high'] for g in d['blinded'])
