"The world with a known truth: its statistics, the pairing, the scores, the verdict, and the evidence in results/."
import itertools, json, math
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from jumprelu_sae.core import ActivationStream, SyntheticStream, UserError
from jumprelu_sae.sae import SAEConfig, make_sae, register, ARCHITECTURES, TopKSAE
from jumprelu_sae.train import TrainConfig, Trainer, train_saes
from jumprelu_sae.truth import (SCORES, TrueStream, activity, at_sparsity, cosines, curves, matching, mean_max_cosine,
    student_interval, truth_figure, truth_scores,
    truth_table, truth_verdict)

ARCHS = ('relu', 'gated', 'topk', 'batchtopk', 'jumprelu')
EVIDENCE = Path(__file__).parent.parent/'results'/'evaluate'/'truth.json'
small = lambda **kw: TrueStream(**dict(d_in=16, n_true=24, l0=3., n_groups=4, n_pairs=5, batch=64) | kw)

# --- the stream

@pytest.mark.parametrize('kw', [{}, dict(corr=0.), dict(n_pairs=0),
    dict(corr=.8, spread=.7, noise=.2, offset=2., l0=2.)])
def test_moments_are_those_of_samples(kw):
    s = small(**kw)
    x, a = s.draw(60_000)
    on = (a > 0).double()
    J, got = s.pair_chances(), on.T @ on/len(on)
    assert torch.allclose(J, J.T)
    assert float(s.p.sum()) == pytest.approx(kw.get('l0', 3.))
    assert torch.allclose(J.diagonal(), s.p)
    assert ((got - J).abs()/(J*(1 - J)/len(on)).clamp_min(1e-12)**.5).max() < 5.5
    assert float(x.square().sum(1).mean()) == pytest.approx(1, abs=.03) and (x.mean(0) - s.mean).abs().max() < .02
    noise = (x - a @ s.dictionary).double().square().sum()/(x - s.mean).double().square().sum()
    assert float(noise) == pytest.approx(s.floor, rel=.03)
    m = (a[a > 0]*s.scale).double()
    assert float(m.mean()) == pytest.approx(1, abs=.02)
    assert float(m.log().std()) == pytest.approx(kw.get('spread', .4), rel=.03)

def test_chances_fall_as_the_power_law():
    p = small(offset=5.).p
    assert torch.allclose(p[:-1]/p[1:], (torch.arange(23) + 6.)/(torch.arange(23) + 5.).double())

def test_children_imply_parents_and_groups_do_not_mix():
    s = small(corr=.7)
    _, a = s.draw(30_000)
    on = a > 0
    assert not (on[:, s.child] & ~on[:, s.parent]).any() and on[:, s.child].any(0).all()
    J, p = s.pair_chances(), s.p
    ratio = J/torch.outer(p, p)
    i, j = 0, 4      # dealt out by rank: 0 and 4 share a group, 0 and 1 do not
    assert s.group[i] == s.group[j] and ratio[i, j] > 1.2 and ratio[0, 1] == pytest.approx(1)

def test_orthant_probability():
    for rho in (0., .3, .6, .95):
        J = TrueStream(d_in=2, n_true=2, l0=1., offset=1e9, n_groups=1, n_pairs=0, corr=rho).pair_chances()
        assert float(J[0, 1]) == pytest.approx(1/4 + math.asin(rho)/(2*math.pi), abs=1e-6)

def test_it_is_a_stream():
    s = small(seed=7)
    assert isinstance(s, ActivationStream) and isinstance(s, SyntheticStream)
    a = [next(s) for _ in range(3)]
    state = json.loads(json.dumps(s.state_dict()))
    b = next(s)
    t = small(seed=7)
    t.load_state_dict(state)
    assert torch.equal(next(t), b) and b.shape == (64, 16) and b.dtype == torch.float32 and not torch.equal(a[0], a[1])
    assert torch.equal(small(seed=7).draw(64, 0)[0], a[0]) and not torch.equal(small(seed=8).draw(64, 0)[0], a[0])
    for other, word in ((small(seed=8), 'seed: 8 here, 7'), (small(seed=7, corr=.1), 'data.corr'),
        (small(seed=7, batch=32), 'batch'), (SyntheticStream(16, 24, 3., 64, seed=7), 'stream')):
        with pytest.raises(UserError, match=word): other.load_state_dict(state)
        assert other.step == 0

def test_impossible_streams():
    for kw, word in ((dict(l0=30.), 'lower l0'), (dict(corr=1.), 'corr'), (dict(corr=-.1), 'corr'),
        (dict(n_pairs=7), 'n_pairs')):
        with pytest.raises(UserError, match=word): small(**kw)

# --- the pairing

def test_assignment_against_all_permutations():
    g = np.random.default_rng(1)
    for trial in range(300):
        n, m = sorted(g.integers(1, 7, 2))
        gain = g.integers(-4, 5, (n, m)).astype(float) if trial % 2 else g.standard_normal((n, m))
        p = matching(torch.tensor(gain).T).numpy()
        assert len(set(p.tolist())) == n and p.min() >= 0
        assert gain[np.arange(n), p].sum() == pytest.approx(
            max(sum(gain[i, j] for i, j in enumerate(q)) for q in itertools.permutations(range(m), int(n))))

def test_assignment_finds_a_hidden_permutation():
    g = np.random.default_rng(2)
    hidden = g.permutation(300)[:200]
    gain = .5*g.random((200, 300))
    gain[np.arange(200), hidden] += .5
    assert (matching(torch.tensor(gain).T).numpy() == hidden).all()

def test_no_exchange_gains():
    "Necessary for an optimum of any size: two rows that swap partners, or one that takes a free column, gain nothing"
    g = np.random.default_rng(4)
    for _ in range(10):
        gain = g.standard_normal((40, 60))
        p = matching(torch.tensor(gain).T).numpy()
        own = gain[np.arange(40), p]
        swap = gain[:, p]
        assert (swap + swap.T <= own[:, None] + own + 1e-9).all()
        assert (np.delete(gain, p, 1) <= own[:, None] + 1e-9).all()

def test_matching_both_ways():
    D = small().dictionary
    perm = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matching(cosines(3*D[perm], D)), perm.argsort())
    rough = matching(cosines(torch.randn(30, 16, generator=torch.Generator().manual_seed(1)), D))
    assert len(set(rough.tolist())) == 24 and rough.min() >= 0
    few = matching(cosines(D[perm[:10]], D))
    assert few[perm[:10]].tolist() == list(range(10)) and (few[perm[10:]] == -1).all()

def test_mean_max_cosine():
    C = torch.tensor([[1., 0], [.8, .6], [-1, 0]], dtype=torch.float64)
    assert mean_max_cosine(C, torch.tensor([1., 0, 0])) == pytest.approx((.8, 1.))
    assert mean_max_cosine(C, torch.tensor([1., 3, 0])) == pytest.approx((.8, (1 + 2.4)/4))
    assert mean_max_cosine(C, torch.zeros(3))[1] == 0

# --- scores

def test_scores_against_loops():
    "One pass of matrix products against loops over examples and features"
    s = small()
    sae = make_sae(SAEConfig('topk', 16, 40, k=3), 1).eval()
    x, a = s.draw(300, 5)
    f = sae.encode(x).detach()
    got = truth_scores(sae, s, 300, 5, batch=300)
    partner = matching(cosines(sae.W_dec.detach(), s.dictionary)).tolist()
    P, R, F = [], [], []
    for i, j in enumerate(partner):
        tp = sum(bool(a[e, i] > 0 and f[e, j] > 0) for e in range(300))
        fires = sum(bool(v > 0) for v in f[:, j])
        on = sum(bool(v > 0) for v in a[:, i])
        P.append(tp/fires if fires else 0.)
        R.append(tp/on if on else 0.)
        F.append(2*tp/(fires + on) if tp else 0.)
    assert (got['precision'], got['recall'], got['f1']) == pytest.approx((np.mean(P), np.mean(R), np.mean(F)), rel=1e-5)
    with_child = [(bool(f[e, partner[p]] > 0)) for p, c in zip(s.parent.tolist(), s.child.tolist())
        for e in range(300) if a[e, c] > 0]
    alone = [(bool(f[e, partner[p]] > 0)) for p, c in zip(s.parent.tolist(), s.child.tolist()) for e in range(300)
        if a[e, p] > 0 and not a[e, c] > 0]
    assert (got['parent_with_child'], got['parent_alone']) == pytest.approx((np.mean(with_child), np.mean(alone)),
        rel=1e-5)
    err = (x - sae.decode(f)).detach().double().square().sum()/(x - s.mean).double().square().sum()
    assert got['fvu'] == pytest.approx(float(err), rel=1e-6)
    assert got['l0'] == pytest.approx(float((f > 0).sum())/300)
    assert got['l0_true'] == pytest.approx(float((a > 0).sum())/300)

def known(s, change, W, n=2000): 
    seen = (s.draw(500, 10**9 + i)[1] for i in range(0, n, 500))
    return truth_scores(SimpleNamespace(encode=lambda x: change(next(seen)), decode=lambda f: f @ W, W_dec=W), s, n,
        batch=500)

def test_scores_of_known_saes():
    s = small()
    D = s.dictionary
    t = known(s, lambda a: a, D)
    assert all(t[k] == pytest.approx(1) for k in ('mmc_true', 'mmc_latents', 'found', 'precision', 'recall', 'f1',
        'parent_alone', 'parent_with_child'))
    assert t['l0'] == t['l0_true']
    twice = known(s, lambda a: torch.cat([a, a, a], 1)/3, torch.cat([D]*3))
    assert twice['duplicates'] == 48 and twice['f1'] == pytest.approx(1) and twice['l0'] == pytest.approx(3*t['l0'])
    assert known(s, lambda a: a[:, :6], D[:6])['recall'] == pytest.approx(6/24)
    silent = known(s, lambda a: 0*a, D)
    assert (silent['dead'], silent['f1'], silent['mmc_latents'], silent['duplicates']) == (1, 0, 0, 0)
    assert silent['mmc_true'] == pytest.approx(1)
    assert known(s, lambda a: torch.ones_like(a), D)['precision'] == pytest.approx(float(s.p.mean()), rel=.1)
    half_dead = known(s, lambda a: torch.cat([a, 0*a], 1), torch.cat([D, D]))
    assert half_dead['duplicates'] == 0 and half_dead['dead'] == pytest.approx(.5)
    away = known(s, lambda a: a, -D)
    assert away['found'] == 0 and away['fvu'] > 1

def test_training_moves_towards_the_truth():
    s = small(n_true=16, l0=2., n_pairs=0, corr=0.)
    sae = make_sae(SAEConfig('topk', 16, 32, k=2))
    before = truth_scores(sae, s, 2000)
    train_saes(Trainer({'s': sae}, s, TrainConfig(300*64, 64, lr=1e-2, beta1=.9, lr_warmup=.05, sparsity_warmup=.1),
        path='dense'), progress=False)
    after = truth_scores(sae.eval(), s, 2000)
    assert after['mmc_true'] > before['mmc_true'] + .1
    assert after['f1'] > before['f1'] + .1
    assert after['fvu'] < .5*before['fvu']

# --- reading runs

def invented(fvu, f1, seeds=3, jitter=0.):
    g = np.random.default_rng(3)
    return [dict(arch=a, seed=s, metrics=dict(l0=float(l), fvu=fvu[a]*(l/8)**-.5,
        f1=f1[a] + .1*math.log(l/8) + jitter*g.standard_normal())) for a in fvu for s in range(seeds)
        for l in (2, 4, 16, 32)]

def test_verdict_on_known_curves():
    fvu = dict(topk=.2, gated=.3, jumprelu=.1)
    say = lambda f1, **kw: truth_verdict(invented(fvu, f1, **kw), 8)
    assert say(dict(topk=.5, gated=.4, jumprelu=.6))['verdict'] == 'yes'
    no = say(dict(topk=.5, gated=.7, jumprelu=.6))
    assert (no['verdict'], no['reconstructs'], no['rival'], no['finds']) == ('no', 'jumprelu', 'gated', 'gated')
    assert no['difference'] == pytest.approx(-.1)
    assert say(dict(topk=.5, gated=.4, jumprelu=.51), jitter=.1)['verdict'] == 'undecided'
    assert say(dict(topk=.5, gated=.4, jumprelu=.9), seeds=1)['verdict'] == 'undecided'
    with pytest.raises(UserError, match='widen'): truth_verdict(invented(fvu, fvu), 40)
    with pytest.raises(UserError, match='recall'): curves(invented(fvu, fvu), 'recall')

def test_interval_is_students():
    rows = invented(dict(topk=.2, jumprelu=.1), dict(topk=.5, jumprelu=.55), jitter=.05)
    v, f = truth_verdict(rows, 8), at_sparsity(rows, 'f1', 8)
    d = f['jumprelu'] - f['topk']
    assert v['hi'] - v['difference'] == pytest.approx(4.3027*d.std(ddof=1)/3**.5, rel=1e-3)
    assert v['difference'] == pytest.approx(d.mean())

def test_table_and_figure():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    rows = invented(dict(jumprelu=.1, topk=.2), dict(topk=.5, jumprelu=.6))
    t = truth_table(rows, 8, ('fvu', 'f1'))
    assert [r['architecture'] for r in t] == ['TopK', 'JumpReLU'] and t[0]['fvu'] == '0.200 ± 0.000' and t[1]['n'] == 3
    assert truth_table(rows, 64, ('fvu',))[0]['fvu'] == '–'
    fig = truth_figure(rows, 8., .02, ('fvu', 'f1'))
    assert len(fig.axes) == 2 and '3 seeds' in fig._supxlabel.get_text()
    plt.close(fig)

def test_an_architecture_of_ones_own_has_a_curve():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    try:
        register('mine', label='Mine', color='#D55E00', marker='P', setting='k')(type('MineSAE', (TopKSAE,), {}))
        rows = invented(dict(mine=.1, topk=.2, old=.3), dict(mine=.7, topk=.6, old=.5))
        assert [r['architecture'] for r in truth_table(rows, 8, ('fvu', 'f1'))] == ['TopK', 'Mine', 'old']
        assert 'Mine reconstructs best' in truth_verdict(rows, 8)['sentence']
        fig = truth_figure(rows, 8., .02, ('fvu', 'f1'))
        assert '#D55E00' in [l.get_color() for l in fig.axes[0].lines]
        plt.close(fig)
    finally: ARCHITECTURES.pop('mine', None)
    assert student_interval(np.array([1.])) == (-math.inf, math.inf)

# --- the evidence

def test_evidence_is_complete():
    d = json.loads(EVIDENCE.read_text(encoding='utf-8'))
    runs = [r for t in d['rows'].values() for r in t['rows']]
    per = {}
    for r in runs: per.setdefault((r['width'], r['arch'], r['seed']), []).append(r['setting'])
    widths = {w for w, *_ in per}
    assert widths
    assert set(per) >= set(itertools.product([min(widths)], ARCHS, d['seeds']))
    assert {len(set(v)) for v in per.values()} == {5}
    assert len(d['seeds']) >= 3
    tune = {}
    for t in d['tune'].values():
        for r in t['rows']: tune.setdefault(r['arch'], {})[r['lr']] = r['objective']
    assert set(tune) == set(ARCHS)
    assert len({tuple(sorted(v)) for v in tune.values()}) == 1     # the same learning rates for all
    for r in runs:
        assert r['train']['lr'] == min(tune[r['arch']], key=tune[r['arch']].get)
        assert all(math.isfinite(v) for v in r['metrics'].values())
        assert set(SCORES) <= set(r['metrics'])
        assert abs(r['metrics']['l0_true'] - d['stream']['l0']) < .1
        assert r['metrics']['floor'] == pytest.approx(TrueStream(**d['stream'], seed=r['seed']).floor, rel=1e-6)
