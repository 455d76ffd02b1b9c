"""Does the model use the latents? Five architectures, four sparsities, three seeds, floors, a ceiling; on Gemma 3 270M.

    python benchmarks/causal.py SAES_FOLDER             # goes on where it stopped; the most important arms first
    python benchmarks/causal.py SAES_FOLDER --summary   # only results/causal/summary.json, of the arms there are

SAES_FOLDER holds finished SAEs of the `laptop` runs (resid.9, `sotu`), one folder each, named ARCH-SETTING-seedN. One
thread; float32, since an effect of 0.001 nats is lost in bfloat16. Each arm is a file of results/causal/arms: what
every word pair, document and place gave, so that the summary can be made again without the model. An arm is skipped
when it is there and was made by the same settings, in the same precision, from the same SAE.

Fixed and committed before the evidence was computed: contrasts, pairs, places, ks, margins and rules, below."""
import argparse, math, time
from pathlib import Path
import numpy as np
import torch
from scipy.stats import spearmanr
import jumprelu_sae as js
from jumprelu_sae.activations import activations
from jumprelu_sae.causal import (CONTRASTS, CONTROLS, PatchStudy, Place, Sufficiency, ablate, centre_draws,
    complete_basis, keep_largest_units, kl_of, log_ratios, mean_difference, places, promoted_words, share_draws, steer,
    verdict, word_logits)
from jumprelu_sae.core import Settings, fingerprint, read_json, run_env, sha256, write_json
from jumprelu_sae.evaluate import spread_rows
from jumprelu_sae.intervals import effective_documents, mean_intervals, resample
from jumprelu_sae.recipe import SHORT
from jumprelu_sae.sae import look, read_sae_config

OUT = Path(__file__).parent.parent/'results'/'causal'
SITE, KS, SUFFICIENCY_KS, K = 'resid.9', (1, 2, 4, 8, 16), (1, 4, 16, 32), 4
D_SAE = 2048                    # latents
RIGHT = .9                      # a contrast stays when the model is right on at least this share of its rows
MOST = 24                       # pairs of a contrast: half of them rank, half judge
PLACES, WORDS = 16, 16_384      # places of ordinary text; KL is of the prediction among so many words, the likeliest
# Sufficiency: rows, their tokens, every so many predictions judged. A first pass had 8 rows: intervals of about ±1 nat
ROWS, LENGTH, EVERY = 24, 32, 3
ARCHS = ('jumprelu', 'topk', 'gated', 'batchtopk', 'relu')
# Margins. Share at k = 4: a quarter of the distance of about 0.2 between trained and random dictionaries in a first
# trial with one seed and one contrast. Ablation: a ratio within 1.25 either way; that trial's two architectures were
# 1.06 apart, a latent and its control 1.8. Sufficiency at k = 16: 0.1 nats, a third of the about 0.3 that keeping the
# 16 largest cost there.
MARGINS = dict(share=.05, ablation=math.log(1.25), sufficiency=.1)
NEAR = 1.15                     # an SAE stands for an L0 within this factor of its own; else it is read between two
FACTS = dict(site=SITE, ks=KS, sufficiency_ks=SUFFICIENCY_KS, most=MOST, places=PLACES, words=WORDS,
    rows=[ROWS, LENGTH, EVERY], right=RIGHT)


# -- what is measured on ----------------------------------------------------------------------------------------------

QUIET = Settings(progress=False, threads=1, dtype='float32')
def open_acts(): return activations('gemma3-270m', 'sotu', SITE, settings=QUIET)

class Bench:
    "Model, text, word pairs and places: the same for every arm, computed once"
    def __init__(self):
        self.acts = open_acts()
        self.lm, self.rule, self.mean = self.acts.lm, self.acts.rule, self.acts.mean
        self.precision = str(self.lm.dtype).removeprefix('torch.')
        x = self.acts.side.x
        self.sample = x[::max(1, len(x)//4096)][:4096].clone()   # for covariances, PCA and units' means
        every = PatchStudy(self.lm, list(CONTRASTS.values()), SITE, MOST)
        self.accuracy, self.study = every.accuracy(), every.known(RIGHT)
        self.names = self.study.names
        self.full = [self.study.full(j).tolist() for j in range(len(self.names))]
        ids = places(self.acts, PLACES)
        self.whole = [Place(self.lm, r, p, SITE) for r, p in ids]   # with every word; below with the likeliest
        likely = torch.stack([p.clean.softmax(-1) for p in self.whole]).mean(0)
        likely = likely.topk(min(WORDS, self.lm.vocabulary)).indices
        self.words = torch.cat([likely, torch.tensor([p.target for p in self.whole])]).unique()
        self.covered = float(np.mean([float(p.clean.softmax(-1)[self.words].sum()) for p in self.whole]))
        self.places = [p.among(self.words) for p in self.whole]

    def judge(self):
        "Short rows from all over the held-out text"
        if not hasattr(self, '_judge'):
            t = self.acts.tokens['test']
            t = t[spread_rows(t.mask, ROWS*int(t.mask.sum(1).float().mean()))[:ROWS]]
            short = type(t)(t.ids[:, :LENGTH], t.mask[:, :LENGTH], t.doc[:, :LENGTH], t.doc_ids)
            self._judge = Sufficiency(self.lm, short, SITE, self.rule, EVERY)
        return self._judge


# -- arms -------------------------------------------------------------------------------------------------------------

def saes_in(folder):
    "(arch, setting, seed) -> path"
    out = {}
    for p in sorted(Path(folder).iterdir()):
        parts = p.name.rsplit('-', 2)
        if len(parts) == 3 and parts[0] in ARCHS and parts[2].startswith('seed') and (p/'cfg.json').exists():
            out[parts[0], float(parts[1]), int(parts[2].removeprefix('seed'))] = p
    return out

def mean_l0(units, x): return float((units.encode(x) != 0).sum(1).double().mean())

def near(l0s, want): return min(l0s, key=lambda s: abs(math.log(l0s[s]/want)))

FLOORS = ('random', 'softfrozen', 'shuffled', 'neurons', 'rotation', 'PCA', 'line')
LABELS = dict(random='random dictionary', softfrozen='soft-frozen JumpReLU', shuffled='shuffled decoder',
    neurons='neurons', rotation='rotation', PCA='PCA', line='line of means (supervised)')

def job_list(saes, l0s):
    "(part, arm) in order of importance; an arm is (arch, setting, seed) or (floor, None, seed)"
    seeds = sorted({s for *_, s in saes})
    settings = {a: {v: l0s[a, v] for b, v in l0s if b == a} for a in ARCHS}
    at = lambda a, want: near(settings[a], want)
    main, rest = ARCHS[:3], ARCHS[3:]
    line = [(f, None, 0) for f in ('line', 'random', 'PCA', 'neurons', 'rotation', 'shuffled')]
    first = lambda archs, want, seeds: [(a, at(a, want), s) for s in seeds for a in archs if settings[a]]
    one, more, frozen = seeds[:1], seeds[1:], [('softfrozen', None, 0)]
    order = [('patch', first(main, 32, one) + line[:2] + first(main, 32, more) + first(rest, 32, one) + line[2:]),
        ('ablate', first(main, 32, one) + line[1:2]), ('patch', first(rest, 32, more) + frozen),
        ('ablate', first(main, 32, more) + first(rest, 32, one)),
        ('keep', first(main, 32, one) + line[1:4]), ('steer', [('jumprelu', at('jumprelu', 32), seeds[0])]),
        *[('patch', first(main, want, seeds)) for want in (64, 16, 128)],
        ('keep', first(main, 32, more) + first(rest, 32, one)), ('ablate', frozen), ('keep', frozen),
        ('ablate', first(rest, 32, more)), ('keep', line[4:5] + first(rest, 32, more)),
        *[('patch', first(rest, want, seeds)) for want in (64, 16, 128)]]
    jobs = dict.fromkeys((part, arm) for part, arms in order for arm in arms if arm in saes or arm[0] in FLOORS)
    jobs |= dict.fromkeys(('patch', k) for k in saes)
    return list(jobs)

def arm_name(arm):
    arch, setting, seed = arm
    return f'{arch}-{setting:g}-seed{seed}' if setting is not None else f'{arch}-seed{seed}'

def key_of(place):
    "Of the SAE's run (another recipe gives another); of one that names none, of its weights"
    ours = read_sae_config(place)['metadata'].get('jumprelu_sae') or {}
    return ours.get('key') or sha256(place/'sae_weights.safetensors')

def shuffled_from(saes, l0s):
    "Folder of the SAE whose decoder is shuffled"
    return saes['jumprelu', near({v: l for (a, v), l in l0s.items() if a == 'jumprelu'}, 32), 0]

def known_as(arm, saes, l0s):
    "What a dictionary is known by: what was computed of another is not used"
    arch = arm[0]
    if arch in ARCHS: return key_of(saes[arm])
    if arch == 'shuffled': return f'shuffled {key_of(shuffled_from(saes, l0s))}'
    if arch == 'softfrozen': return f"softfrozen jumprelu {fingerprint([SHORT['jumprelu'], SHORT.schedule])}"
    return arch

def load_arm(arm, bench, saes, l0s):
    "The dictionary"
    arch, _, seed = arm
    if arch in ARCHS: return js.load_sae(saes[arm])
    from jumprelu_sae.floors import random_dictionary, shuffled_decoder, soft_frozen
    if arch in ('neurons', 'rotation', 'PCA'): return complete_basis(arch, bench.sample, seed)
    if arch == 'random': return random_dictionary(bench.acts, D_SAE, 32, seed)
    if arch == 'line': return None
    if arch == 'shuffled': return shuffled_decoder(js.load_sae(shuffled_from(saes, l0s)), seed)
    return soft_frozen('jumprelu', bench.acts, D_SAE, 32, seed=seed, settings=QUIET)


# -- the parts of an arm ----------------------------------------------------------------------------------------------

@torch.no_grad()
def patch(units, bench, arm):
    "Exchange the top k within each pair; take the same units away at places of ordinary text"
    st, rows, tops = bench.study, {}, []
    for j, name in enumerate(bench.names):
        d = mean_difference(st, j) if units is None else units
        r = st.patch(d, j, (1,) if units is None else KS)
        tops.append((d, r['units'][:K]))
        rows[name] = dict(effect=r['effect'].tolist(), elsewhere=r['elsewhere'].tolist(), units=r['units'].tolist())
    kl = []
    for p in bench.places:
        f = [d.encode(p.x[None])[0, top].float() for d, top in tops]
        delta = torch.stack([-v @ d.W_dec[top] for v, (d, top) in zip(f, tops)])
        if units is None: delta = torch.zeros_like(delta)
        z = word_logits(bench.lm, p.hidden(delta), bench.words)
        kl.append(kl_of(p.clean, z).tolist())
    return dict(contrasts=rows, kl_elsewhere=None if units is None else kl)

def ablations(units, bench, arm):
    "Every active unit at every place, with its controls"
    out = [ablate(p, units, bench.sample, bench.mean, seed=i) for i, p in enumerate(bench.places)]
    if arm[0] == 'jumprelu' and arm[2] == 0: # what does the shorter list of words leave out?
        full = [ablate(p, units, bench.sample, bench.mean, seed=i)['kl'] for i, p in enumerate(bench.whole[:2])]
        full = [np.array(kl)[:, 0] for kl in full]
        some = [np.array(o['kl'])[:, 0] for o in out[:2]]
        return dict(places=out, short_over_full=float(np.median(np.concatenate(some)/np.concatenate(full))))
    return dict(places=out)

@torch.no_grad()
def sufficiency(units, bench, arm):
    "Delta LM loss by k, summed by document"
    judge, mean = bench.judge(), units.encode(bench.sample).float().mean(0)
    def by_document(d):
        ids, place = judge.doc.unique(return_inverse=True)
        return torch.zeros(len(ids), dtype=torch.float64).index_add_(0, place, d).tolist()
    out = dict(n=by_document(torch.ones(len(judge.clean), dtype=torch.float64)),
        size={k: by_document(judge.delta(keep_largest_units(units, mean, k))) for k in SUFFICIENCY_KS})
    if arm[0] in ('jumprelu', 'random') and arm[2] == 0:
        out['answer'] = {k: by_document(judge.delta(keep_largest_units(units, mean, k, True))) for k in SUFFICIENCY_KS}
    return out

@torch.no_grad()
def steering(units, bench, arm):
    "One latent, by rule: the first by attribution on number"
    judge, u = bench.judge(), int(bench.study.ranking(units, 0)[0])
    f = units.encode(bench.sample)[:, u]
    words = promoted_words(bench.lm, units.W_dec[[u]])[0]
    unit = units.W_dec[u]*f[f > 0].mean()
    curve = steer(judge, unit, (-4, -2, -1, 0, 1, 2, 4, 8), words)
    return dict(latent=u, frequency=float((f > 0).float().mean()), rule=f'the first by attribution on {bench.names[0]}',
        words=[bench.lm.tokenizer.decode([int(w)]) for w in words], curve=curve, predictions=len(judge.clean))

PARTS = dict(patch=patch, ablate=ablations, keep=sufficiency, steer=steering)


# -- summary ----------------------------------------------------------------------------------------------------------

def read_arms():
    return {p.stem: read_json(p) for p in sorted((OUT/'arms').glob('*.json'))}

def seeds_of(arms, arch, setting, part):
    "Arms of one dictionary that have this part, by seed"
    return [a for a in arms.values() if a['arch'] == arch and a['setting'] == setting and part in a]

def band(v, n, i=None):
    "mean, lo, hi of draws (1 + n, seeds) by items and seeds"
    r = mean_intervals(v, n)
    return [float(r.mean), float(r.both[0]), float(r.both[1])]

def shares(shared, same):
    "(1 + n, seeds, K) of one dictionary"
    effects = [[a['patch']['contrasts'][n]['effect'] for a in same] for n in shared['kept']]
    return share_draws(effects, shared['full'])

def log_kl(same, c): return np.array([log_ratios([p['kl'] for p in a['ablate']['places']], c) for a in same])

def kept(same, k, how='size'):
    "Draws (1 + n, seeds) of the delta LM loss over documents"
    n = np.array(same[0]['keep']['n'])
    W = np.concatenate([np.ones((1, len(n))), resample(len(n), 2000, 0)])
    return np.stack([W @ np.array(a['keep'][how][str(k)]) for a in same], 1)/(W @ n)[:, None], effective_documents(n)

def ablation_row(same):
    every_place, n = [p for a in same for p in a['ablate']['places']], len(same[0]['ablate']['places'])
    out = dict(seeds=len(same), n=sum(len(p['kl']) for p in every_place))
    for c, kind in enumerate(CONTROLS, 1): out[kind] = [math.exp(v) for v in band(centre_draws(log_kl(same, c)), n)]
    def every(a, key): return np.concatenate([p[key] for p in a['ablate']['places'] if p['kl']])
    pairs = [(every(a, 'dce'), every(a, 'predicted')) for a in same]
    out['pearson'] = float(np.mean([np.corrcoef(d, p)[0, 1] for d, p in pairs]))
    out['spearman'] = float(np.mean([spearmanr(d, p)[0] for d, p in pairs]))
    out['slope'] = float(np.mean([np.polyfit(p, d, 1)[0] for d, p in pairs]))
    for key in ('hurt', 'spared'):
        middle = [[np.median(p[key]) if p[key] else np.nan for p in a['ablate']['places']] for a in same]
        out[key] = band(centre_draws(middle), n)
    out['specific'] = float(np.mean([np.mean(every(a, 'hurt') > every(a, 'spared')) for a in same]))
    out['top_percent'] = float(np.mean([np.sort(k)[-max(1, len(k)//100):].sum()/k.sum() for k in
        (np.concatenate([np.array(p['kl'])[:, 0] for p in a['ablate']['places'] if p['kl']]) for a in same)]))
    return out

def arm_row(shared, arms, arch, setting, group):
    "One dictionary over its seeds"
    same = seeds_of(arms, arch, setting, 'patch')
    v, n = shares(shared, same), sum(map(len, shared['full']))
    ks = KS if arch != 'line' else (1,)
    r = mean_intervals(v, n)
    label = LABELS.get(arch) or look(arch).label
    out = dict(arm=arch if setting is None else f'{arch}-{setting:g}', arch=arch, setting=setting, group=group)
    out |= dict(label=label, seeds=len(same),
        l0=None if arch in ('neurons', 'rotation', 'PCA', 'line') else float(np.mean([a['l0'] for a in same])),
        share={str(k): [float(r.mean[i]), float(r.both[0][i]), float(r.both[1][i])] for i, k in enumerate(ks)})
    at = ks.index(K) if K in ks else 0
    def measured(c, what): # (seeds, n_items)
        return np.array([[row[at] for row in a['patch']['contrasts'][c][what]] for a in same])
    out['by_contrast'] = {c: float(measured(c, 'effect').sum(1).mean()/np.sum(f))
        for c, f in zip(shared['kept'], shared['full'])}
    leak = np.concatenate([measured(c, 'elsewhere') for c in shared['kept']], 1)
    W = np.concatenate([np.ones((1, leak.shape[1])), resample(leak.shape[1], 2000, 0)])/leak.shape[1]
    out['elsewhere'] = band(W @ leak.T, n)
    kl = [a['patch']['kl_elsewhere'] for a in same]
    out['kl_elsewhere'] = None if kl[0] is None else float(np.mean(kl))
    if same := seeds_of(arms, arch, setting, 'ablate'): out['ablation'] = ablation_row(same)
    if same := seeds_of(arms, arch, setting, 'keep'):
        out['sufficiency'] = {str(k): band(*kept(same, k)) for k in SUFFICIENCY_KS}
        some = [a for a in same if 'answer' in a['keep']]
        if some: out['by_answer'] = {str(k): band(*kept(some, k, 'answer')) for k in SUFFICIENCY_KS}
    return out

def read_at(shared, arms, arch, want):
    """Draws (1 + n, seeds, K) of the share at L0 `want`, at a setting nearby, or straight in log L0 between two; None:
    not measured there"""
    points = {}
    for v in sorted({a['setting'] for a in arms.values() if a['arch'] == arch}):
        same = seeds_of(arms, arch, v, 'patch')
        if same: points[v] = (math.log(np.mean([a['l0'] for a in same])/want), {a['seed'] for a in same})
    close = [v for v, (d, _) in points.items() if abs(d) <= math.log(NEAR)]
    if close:
        v = min(close, key=lambda v: abs(points[v][0]))
        return shares(shared, seeds_of(arms, arch, v, 'patch'))
    low, high = ([v for v, (d, _) in points.items() if (d > 0) == up] for up in (False, True))
    if not low or not high: return None
    lo, hi = max(low, key=lambda v: points[v][0]), min(high, key=lambda v: points[v][0])
    both = points[lo][1] & points[hi][1]
    a, b = (shares(shared, [o for o in seeds_of(arms, arch, v, 'patch') if o['seed'] in both]) for v in (lo, hi))
    t = -points[lo][0]/(points[hi][0] - points[lo][0])
    return (1 - t)*a + t*b

def compare(what, d, n, margin, l0, a, b):
    r = mean_intervals(d, n)
    m, lo, hi = float(r.mean), float(r.both[0]), float(r.both[1])
    out = dict(question=f'{what}: {look(a).label} − {look(b).label}', what=what, a=a, b=b, l0=l0, seeds=d.shape[1])
    return out | dict(difference=m, lo=lo, hi=hi, margin=margin, verdict=verdict(lo, hi, margin))

def paired(a, b):
    "Differences of two arms seed by seed: as many seeds as both have"
    n = min(a.shape[1], b.shape[1])
    return a[:, :n] - b[:, :n]

def summarise():
    shared, arms = read_json(OUT/'shared.json'), read_arms()
    n = sum(map(len, shared['full']))
    l0 = {}
    for a in arms.values():
        if a['arch'] not in ARCHS or 'patch' not in a: continue
        l0.setdefault(a['arch'], {}).setdefault(a['setting'], []).append(a['l0'])
    l0 = {a: {v: float(np.mean(o)) for v, o in s.items()} for a, s in l0.items()}
    rows, comparisons, everywhere = [], [], {}
    for a in (a for a in ARCHS if a in l0):
        main = near(l0[a], 32)
        rows += [arm_row(shared, arms, a, v, 'sae32' if v == main else 'sae') for v in sorted(l0[a], key=l0[a].get)]
    for f in FLOORS:
        group = 'ceiling' if f == 'line' else 'floor'
        if seeds_of(arms, f, None, 'patch'): rows.append(arm_row(shared, arms, f, None, group))
    for want in (32, 16, 64, 128):
        at = {a: read_at(shared, arms, a, want) for a in l0}
        for b in ('topk', 'gated', 'batchtopk', 'relu'):
            if at.get('jumprelu') is not None and at.get(b) is not None:
                d = paired(at['jumprelu'], at[b])[:, :, KS.index(K)]
                comparisons.append(compare(f'share at k = {K}', d, n, MARGINS['share'], want, 'jumprelu', b))
                everywhere.setdefault(b, []).append(d)
    for b, d in everywhere.items(): # not asked for beforehand: added when one sparsity alone proved too noisy
        if len(d) == 4 and len({o.shape for o in d}) == 1:
            what = f'share at k = {K}, mean of four L0s (added later)'
            comparisons.append(compare(what, sum(d)/4, n, MARGINS['share'], None, 'jumprelu', b))
    main = {a: near(v, 32) for a, v in l0.items()}
    for b in ('topk', 'gated', 'batchtopk', 'relu'):
        for what, part, margin in (('log KL ratio to the covariance control', 'ablate', MARGINS['ablation']),
                                   ('delta LM loss of the 16 largest (nats)', 'keep', MARGINS['sufficiency'])):
            same = [seeds_of(arms, o, main.get(o), part) for o in ('jumprelu', b)]
            if not all(same): continue
            m = min(map(len, same))
            if part == 'ablate':
                c = CONTROLS.index('covariance') + 1
                d, size = paired(*(centre_draws(log_kl(s[:m], c)) for s in same)), PLACES
            else:
                (u, size), (w, _) = (kept(s[:m], 16) for s in same)
                d = u - w
            comparisons.append(compare(what, d, size, margin, 32, 'jumprelu', b))
    primary = f'share at k = {K}'
    first = [c for c in comparisons if c['what'] == primary and c['l0'] == 32 and c['b'] in ('topk', 'gated')]
    words = '; '.join(f"{c['verdict']} than {look(c['b']).label}'s" if c['verdict'] in ('higher', 'lower') else
        f"{c['verdict']}{' to' if c['verdict'] == 'similar' else ' against'} {look(c['b']).label}'s" for c in first)
    steering = next((a['steer'] | dict(sae=k) for k, a in arms.items() if 'steer' in a), None)
    short = [a['ablate']['short_over_full'] for a in arms.values() if 'short_over_full' in a.get('ablate', {})]
    keep = next((a['keep']['n'] for a in arms.values() if 'keep' in a), [])
    items = {c: len(f) for c, f in zip(shared['kept'], shared['full'])}
    out = dict(format=1, command='python benchmarks/causal.py SAES_FOLDER', **FACTS, margins=MARGINS, k=K,
        precision=shared['precision'], accuracy=shared['accuracy'], kept=shared['kept'], items=items,
        covered=shared['covered'],
        short_over_full=short[0] if short else None, predictions=int(sum(keep)), documents=len(keep), arms=rows,
        comparisons=comparisons, steering=steering,
        verdict=f"JumpReLU's share of a concept at k = {K} and L0 32 is {words}.",
        seconds=sum(sum(a['seconds'].values()) for a in arms.values()), env=shared['env'])
    write_json(OUT/'summary.json', out)


def run(folder):
    saes, bench = saes_in(folder), Bench()
    l0s = {}
    for a, v, s in saes:
        if s == min(o[2] for o in saes): l0s[a, v] = mean_l0(js.load_sae(saes[a, v, s]), bench.sample[:1024])
    print({f'{a}-{v:g}': round(l, 1) for (a, v), l in l0s.items()}, flush=True)
    shared = dict(facts=FACTS, accuracy=bench.accuracy, kept=bench.names, full=bench.full, covered=bench.covered,
        env=run_env(), words=bench.study.words, precision=bench.precision)
    write_json(OUT/'shared.json', shared)
    loaded = None, None
    own = dict(patch=[KS, bench.full], ablate=[PLACES, WORDS], keep=[SUFFICIENCY_KS, ROWS, LENGTH, EVERY])
    own['steer'] = own['keep']
    keys = {part: fingerprint([SITE, MOST, RIGHT, PLACES, bench.names, bench.precision, own[part]]) for part in PARTS}
    for part, arm in job_list(saes, l0s):
        path = OUT/'arms'/f'{arm_name(arm)}.json'
        known, d = known_as(arm, saes, l0s), read_json(path) if path.exists() else {}
        if d.get('of') != known: d = {}
        if d.get('keys', {}).get(part) == keys[part]: continue
        t = time.process_time(), time.time()
        if loaded[0] != arm: loaded = arm, load_arm(arm, bench, saes, l0s)
        units = loaded[1]
        got = PARTS[part](units, bench, arm)
        cpu, wall = time.process_time() - t[0], time.time() - t[1]
        l0 = None if units is None else mean_l0(units, bench.sample[:1024])
        d |= dict(arch=arm[0], setting=arm[1], seed=arm[2], of=known, l0=l0)
        d['keys'] = d.get('keys', {}) | {part: keys[part]}
        d |= dict(seconds=d.get('seconds', {}) | {part: cpu}) | {part: got}
        write_json(path, d)
        print(f'{part:7} {arm_name(arm):24} {cpu:6.1f} s cpu {wall:6.1f} s', flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', help='of finished SAEs')
    p.add_argument('--summary', action='store_true', help='only the summary of what is there')
    a = p.parse_args()
    torch.set_num_threads(1)
    if not a.summary and a.folder is None: p.error('give the folder of the SAEs')
    if not a.summary: run(a.folder)
    summarise()
