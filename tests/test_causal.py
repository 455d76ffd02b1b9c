"The causal study end to end on a tiny model, its committed evidence, and what would interrupt the lesson"

import importlib.util, json, math, shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from jumprelu_sae.activations import activations
from jumprelu_sae.causal import CONTRASTS, Contrast, PatchStudy, Place, ablate, places, share_draws, verdict
from jumprelu_sae.core import Settings, UserError, read_json
from jumprelu_sae.intervals import mean_intervals
from jumprelu_sae.sae import SAEConfig, make_sae

root = Path(__file__).parent.parent
EVIDENCE = root/'results'/'causal'
LETTERS = tuple((a, b) for a, b in zip('acegikmoqs', 'bdfhjlnprt'))


def script():
    spec = importlib.util.spec_from_file_location('causal_script', root/'benchmarks'/'causal.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


@pytest.fixture(scope='module')
def acts(tmp_path_factory):
    return activations('tiny-gemma3', 'generated', site='resid.1', n_train=2048, n_val=256, n_test=2048, seq_len=64,
        folder=tmp_path_factory.mktemp('stores'), settings=Settings(progress=False, threads=1))


# -- the script on a tiny model ----------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def done(acts, tmp_path_factory):
    "The script, run on five architectures at two sparsities and two seeds"
    m, out, saes = script(), tmp_path_factory.mktemp('out'), tmp_path_factory.mktemp('saes')
    settings = dict(jumprelu=(4., 32.), topk=(4, 32), gated=(.1, .2), batchtopk=(32,), relu=(.1,))
    for arch, values in settings.items():
        for v in values:
            for seed in (0, 1):
                setting = dict(jumprelu='target_l0', topk='k', batchtopk='k').get(arch, 'coef')
                sae = make_sae(SAEConfig(arch, acts.d_in, 64, **{setting: v}), seed)
                sae.train().loss(acts.scaler(acts.side.x[:256]))       # BatchTopK takes its threshold from a batch
                sae.eval().finish(acts.scaler, acts.metadata()).save(saes/f'{arch}-{v:g}-seed{seed}')
    contrasts = {n: Contrast(n, '?', tuple(a), tuple(b), ('x{}y', 'say {} or '), LETTERS)
        for n, a, b in (('one', 'no', 'm'), ('two', 'e', 'ai'))}
    m.OUT, m.SITE, m.MOST, m.PLACES, m.WORDS, m.RIGHT, m.D_SAE = out, 'resid.1', 8, 4, 200, 0., 64
    m.ROWS, m.LENGTH, m.CONTRASTS, m.open_acts = 4, 24, contrasts, lambda: acts
    frozen = m.load_arm
    def load(arm, *more): # training is tested in 28_floors
        return frozen(('random', None, 1), *more) if arm[0] == 'softfrozen' else frozen(arm, *more)
    m.load_arm = load
    m.run(saes)
    m.summarise()
    return m, out, saes


def test_every_arm_has_its_parts(done):
    m, out, saes = done
    arms = m.read_arms()
    assert len(arms) == 16 + len(m.FLOORS)
    assert all('patch' in a for a in arms.values())
    s = read_json(out/'summary.json')
    groups = [r['group'] for r in s['arms']]
    assert groups.count('sae32') == 5 and groups.count('ceiling') == 1 and groups.count('floor') == len(m.FLOORS) - 1
    main = [r for r in s['arms'] if r['group'] == 'sae32']
    assert all(r['seeds'] == 2 and 'ablation' in r and 'sufficiency' in r for r in main)
    assert {c['what'].split()[0] for c in s['comparisons']} == {'share', 'log', 'delta'}
    assert all(c['seeds'] == 2 for c in s['comparisons'])
    assert s['steering']['curve'] and s['short_over_full'] > 0
    json.dumps(s, allow_nan=False)


def test_what_is_there_is_not_computed_again(done, monkeypatch):
    m, out, saes = done
    before = {p.name: p.stat().st_mtime_ns for p in (out/'arms').iterdir()}
    def refuse(*a): raise AssertionError('computed again')
    monkeypatch.setattr(m, 'PARTS', dict.fromkeys(m.PARTS, refuse))
    m.run(saes)
    assert before == {p.name: p.stat().st_mtime_ns for p in (out/'arms').iterdir()}


def test_what_was_computed_of_another_sae_is_not_used(done, acts, tmp_path, monkeypatch):
    "Another SAE of the same name, as after a change of recipe: its arm is made again, and no other one"
    m, out, saes = done
    shutil.copytree(out, tmp_path/'out')
    shutil.copytree(saes, tmp_path/'saes')
    sae = make_sae(SAEConfig('topk', acts.d_in, 64, k=32), 7)
    sae.eval().finish(acts.scaler, acts.metadata()).save(tmp_path/'saes'/'topk-32-seed1')
    monkeypatch.setattr(m, 'OUT', tmp_path/'out')
    m.run(tmp_path/'saes')
    old, new = ({p.name: p.read_bytes() for p in (o/'arms').iterdir()} for o in (out, tmp_path/'out'))
    assert [n for n in old if new[n] != old[n]] == ['topk-32-seed1.json'] and new.keys() == old.keys()
    a, b = (json.loads(o['topk-32-seed1.json']) for o in (old, new))
    assert a['of'] != b['of'] and a['keys'] == b['keys']
    assert a['patch']['contrasts'] != b['patch']['contrasts']


def test_summary_is_by_hand(done):
    "Shares and differences, again from the arms' own numbers"
    m, out, saes = done
    s, shared, arms = read_json(out/'summary.json'), read_json(out/'shared.json'), m.read_arms()
    row = next(r for r in s['arms'] if r['arm'] == 'topk-32')
    want = np.mean([np.mean([np.array(arms[f'topk-32-seed{seed}']['patch']['contrasts'][c]['effect'])[:, 2].sum()/sum(f)
        for c, f in zip(shared['kept'], shared['full'])]) for seed in (0, 1)])
    assert row['share']['4'][0] == pytest.approx(want)
    assert row['share']['4'][1] <= want <= row['share']['4'][2]
    kl = [[np.median(np.log([k[0]/k[2] for k in p['kl']])) for p in arms[f'topk-32-seed{seed}']['ablate']['places']]
          for seed in (0, 1)]
    pairs = [[(a + b)/2 for i, a in enumerate(o) for b in o[i:]] for o in kl]
    assert row['ablation']['covariance'][0] == pytest.approx(math.exp(np.mean([np.median(o) for o in pairs])), rel=1e-3)


def test_sparsity_is_read_between_two_settings(done):
    m, out, saes = done
    shared, arms = read_json(out/'shared.json'), m.read_arms()
    l0 = {v: np.mean([a['l0'] for a in m.seeds_of(arms, 'topk', v, 'patch')]) for v in (4, 32)}
    ends = [m.shares(shared, m.seeds_of(arms, 'topk', v, 'patch')) for v in (4, 32)]
    middle = m.read_at(shared, arms, 'topk', math.sqrt(l0[4]*l0[32]))
    assert np.allclose(middle, (ends[0] + ends[1])/2)
    assert np.allclose(m.read_at(shared, arms, 'topk', l0[32]*1.1), ends[1])
    assert m.read_at(shared, arms, 'topk', l0[32]*2) is None


# -- functions ---------------------------------------------------------------------------------------------------------

def test_places_are_ordinary_text(acts):
    chosen = places(acts, 6, first=4, last=20)
    t = acts.tokens['test']
    assert len({tuple(r[0].tolist()) for r, _ in chosen}) == 6
    for row, pos in chosen:
        assert 4 <= pos < 20 and row.shape == (1, pos + 2) and int(row[0, 0]) == acts.lm.tokenizer.bos_token_id
        same = (t.ids[:, :pos + 2] == row[0]).all(1)
        assert (same & t.mask[:, pos] & t.mask[:, pos + 1]).any()
    with pytest.raises(UserError, match='lower n'): places(acts, 10**6)


def test_gradient_of_a_contrast_is_right(acts):
    "Against a finite difference, row by row"
    c = Contrast('one', '?', ('n',), ('m',), ('say {} or ',), LETTERS)
    st = PatchStudy(acts.lm, [c], 'resid.1')
    sc, d = st.scenes[0][0], torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    up, down = (st.read(sc.suffix.final(torch.arange(20), sc.suffix.x + e*d)[:, -1])[:, 0] for e in (.01, -.01))
    want = ((sc.g.flatten(0, 1)*d).sum(1)).view(-1)
    assert torch.allclose((up - down)/.02, want, atol=2e-3*float(want.abs().max()) + 1e-4)


def test_patching_moves_towards_the_other_word(acts):
    "The full patch behind the last layer, where the word comes last, is the other word's own answer"
    c = Contrast('one', '?', ('n',), ('m',), ('say {}',), LETTERS)
    st = PatchStudy(acts.lm, [c], 'resid.3')
    sc = st.scenes[0][0]
    assert torch.allclose(sc.full, sc.clean.flip(1), atol=1e-5)
    gap = (sc.clean[:, 0] - sc.clean[:, 1])[:, 0]
    assert torch.allclose(st.full(0), gap[st.halves[0][1]], atol=1e-5)


def test_ablation_of_nothing(acts):
    row, pos = places(acts, 1)[0]
    class Silent:
        W_dec = torch.eye(32)
        def encode(self, x): return torch.zeros(len(x), 32)
    out = ablate(Place(acts.lm, row, pos, 'resid.1'), Silent(), acts.side.x, acts.mean)
    assert out['kl'] == [] and out['unit'] == []


def test_seeds_and_words_both_widen():
    g = np.random.default_rng(0)
    full = [np.ones(40)]
    words = g.normal(.4, .1, (1, 40, 1)).repeat(3, 0)
    seeds = words + np.array([-.05, 0, .05])[:, None, None]
    a, b = (mean_intervals(share_draws([e], full), 40) for e in (words, seeds))
    assert np.isclose(a.mean, b.mean).all()
    assert (b.both[1] - b.both[0])[0] > 2*(a.both[1] - a.both[0])[0]


def test_english_contrasts_are_well_formed():
    for c in CONTRASTS.values():
        assert len(c.pairs) >= 16 and {len(p) for p in c.pairs} == {2}
        assert all(w.startswith(' ') and w.count(' ') == 1 for p in c.pairs for w in p)
        assert all(t.count('{}') == 1 for t in c.templates) and not set(c.first) & set(c.second)
        assert len(set(c.pairs)) == len(c.pairs)


# -- the evidence ------------------------------------------------------------------------------------------------------

def test_evidence_is_of_one_run_in_float32():
    m = script()
    arms = [read_json(p) for p in sorted((EVIDENCE/'arms').glob('*.json'))]
    saes = [a for a in arms if a['arch'] in m.ARCHS]
    assert len(saes) == 60 == len({a['of'] for a in saes})
    assert len({str(a['keys']['patch']) for a in arms}) == 1   # the same questions, in the same precision
    assert read_json(EVIDENCE/'summary.json')['precision'] == m.QUIET.dtype == 'float32'
    frozen = next(a['of'] for a in arms if a['arch'] == 'softfrozen')
    assert frozen == m.known_as(('softfrozen', None, 0), {}, {})   # trained by the recipe as it is


def test_evidence_is_what_the_arms_say(monkeypatch, tmp_path):
    "The summary, made again from the committed arms"
    m, want = script(), read_json(EVIDENCE/'summary.json')
    real = m.write_json
    monkeypatch.setattr(m, 'write_json', lambda path, obj: real(tmp_path/'summary.json', obj))
    m.summarise()
    got = read_json(tmp_path/'summary.json')
    def alike(a, b, where=''):
        assert type(a) is type(b) or {type(a), type(b)} <= {int, float}, where
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for k in a: alike(a[k], b[k], f'{where}/{k}')
        elif isinstance(a, list):
            assert len(a) == len(b), where
            for i, (u, v) in enumerate(zip(a, b)): alike(u, v, f'{where}/{i}')
        elif isinstance(a, (int, float)): assert a == pytest.approx(b, rel=1e-6, abs=1e-9), where
        else: assert a == b, where
    alike(want, got)
    for c in want['comparisons']: assert c['verdict'] == verdict(c['lo'], c['hi'], c['margin'])
    assert want['margins'] == m.MARGINS and want['kept']
