"""Are the latents of one architecture as readable as those of another? Every SAE of a folder, and dictionaries that
learned nothing, scored by n-gram explanations.

    python benchmarks/interpret.py SAES_FOLDER              # everything; goes on where it stopped
    python benchmarks/interpret.py SAES_FOLDER --n 15       # the first so many arms only, those nearest L0 = 32 first
    python benchmarks/interpret.py SAES_FOLDER --summary    # no scoring: the table of what is there

Arms: every SAE (`SHORT` recipe, Gemma 3 270M, resid.9, State of the Union addresses); floors at L0 = 32: random tied
dictionaries (three seeds; one seed at the other L0), principal components, neurons, random half-directions, soft-frozen
TopK and JumpReLU; an SAE of a re-randomised Gemma, and, since that one is harvested anew and sees fewer tokens, one of
the true Gemma on as many.

Departures: explanations are fitted on every fourth row of the training side (62,464 of 249,856 tokens) and scored on
the whole test side (32,768). One process, one thread. Writes results/interpret/NAME.json for each arm, summary.json and
examples.json. The margin of the verdict is `interpret.MARGIN`, fixed before the first arm was scored."""
import argparse, math, time
from functools import cache
from pathlib import Path
import numpy as np
import torch
from jumprelu_sae.activations import activations
from jumprelu_sae.core import Settings, UserError, fingerprint, read_json, run_env, write_json
from jumprelu_sae.floors import half_directions, random_dictionary, rerandomised, soft_frozen
from jumprelu_sae.interpret import (DENOMINATORS, MARGIN, by_frequency, common_l0, compare, described, explain, firings,
    matched_scores, mean_score, read_scores, saved_saes, score_draws, score_sae, token_share)
from jumprelu_sae.intervals import mean_intervals
from jumprelu_sae.lm import load_lm
from jumprelu_sae.recipe import SHORT, train_sae
from jumprelu_sae.sae import load_sae, read_sae_config

OUT = Path(__file__).parent.parent/'results'/'interpret'
LM, CORPUS, SITE, WIDTH, L0, EVERY, VERSION = 'gemma3-270m', 'sotu', 'resid.9', 2048, 32, 4, 1
FEW = dict(n_train=24_576, n_val=512, n_test=8_192)   # tokens of the re-randomised model, and of its control
PAIRS = (('jumprelu', 'gated'), ('jumprelu', 'topk'), ('jumprelu', 'batchtopk'), ('jumprelu', 'relu'))
AT = (16, 32, 64, 128)
FEW_SEEN = 124_928   # activations that their SAEs see in training: each about five times
quiet = Settings(progress=False, dtype='bfloat16')


@cache
def facts(folder):
    "What the SAEs of a folder say of themselves"
    return {p.name: described(p) for p in saved_saes(folder).values()}


def key_of(place):
    "Of the SAE's run: another recipe gives another"
    return read_sae_config(place)['metadata']['jumprelu_sae']['key']


def recipe_key(arch):
    "Of what a floor is trained by"
    return fingerprint([SHORT[arch], SHORT.schedule])


def rank(place):
    "SAEs near L0 = 32 come first; ReLU's and Gated's settings are coefficients, which fall as L0 grows"
    others, d = facts(place.parent).values(), facts(place.parent)[place.name]
    near = sorted({o['target'] for o in others if o['arch'] == d['arch']}, reverse=d['arch'] in ('relu', 'gated'))
    order = (2, 0, 1, 3)[near.index(d['target'])] if len(near) == 4 else 0
    return order, d['seed'], ('jumprelu', 'topk', 'gated', 'batchtopk', 'relu').index(d['arch'])


def floors(acts):
    "name -> (config, how to make it); the untrained ones first"
    def row(kind, seed, make, l0=L0): return dict(arch=kind, floor=kind, target=l0, seed=seed), make
    untrained = {f'random-{L0}-seed{s}': row('random dictionary', s,
        lambda s=s: random_dictionary(acts(), WIDTH, L0, s)) for s in range(3)}
    for kind in ('pca', 'neurons', 'random'):
        name = dict(random='random directions').get(kind, kind)
        untrained[f'{kind}-{L0}'] = row(name, 0, lambda kind=kind: half_directions(kind, acts(), L0/(2*acts().d_in)))
    other = {f'random-{k}-seed0': row('random dictionary', 0, lambda k=k: random_dictionary(acts(), WIDTH, k), k)
        for k in AT if k != L0}
    trained = {f'softfrozen-{arch}-{L0}': row(f'soft-frozen {arch}', 0,
        lambda arch=arch: soft_frozen(arch, acts(), WIDTH, L0, settings=quiet)) for arch in ('topk', 'jumprelu')}
    for (config, _), arch in zip(trained.values(), ('topk', 'jumprelu')): config['key'] = recipe_key(arch)
    return untrained, other, trained


def key_of_acts(acts):
    "What is scored on: a processor without bfloat16 gives other activations from the same model and text"
    m = acts.metadata()['jumprelu_sae']
    return fingerprint([m['data'], m['massive'], m['scale']])


def arm(name, config, make, acts):
    "Score one, unless a file with the same settings is there"
    path, config = OUT/f'{name}.json', config | dict(version=VERSION, acts=key_of_acts(acts()))
    if path.exists() and config.items() <= read_json(path)['config'].items(): return
    r = score_sae(make(), acts(), name, config, EVERY)
    r.save(path)
    print(f"{name}: L0 {r.metrics['l0']:.1f}, r3 {r.metrics['r3.scored']:.3f} / {r.metrics['r3.all']:.3f} / "
          f"{r.metrics['r3.firing']:.3f}, {r.metrics['cpu_seconds']} s", flush=True)


def few_tokens():
    "The SAE of a model that was never trained, and of the true one on as many tokens; each on its own activations"
    for name, lm in ((f'rerandomised-{L0}', rerandomised), (f'fewtokens-{L0}', lambda lm: lm)):
        kind = name.partition('-')[0]
        config = dict(arch=f'{kind} topk', floor=kind, target=L0, seed=0, key=recipe_key('topk'))
        path = OUT/f'{name}.json'
        if path.exists() and config.items() <= read_json(path)['config'].items(): continue
        acts = activations(lm(load_lm(LM, dtype=quiet.dtype)), CORPUS, SITE, **FEW, settings=quiet)
        sae = train_sae('topk', acts, WIDTH, L0, n_tokens=FEW_SEEN, settings=quiet)
        r, t = score_sae(sae, acts, name, config | dict(version=VERSION, **FEW), 1), acts.part('test')
        loud = acts.rule(t['x'])
        r.metrics['token_share'] = round(token_share(t['x'][~loud].float(), t['token'][~loud]), 4)
        r.save(path)
        print(name, flush=True)


def held(results, which, score='r3'):
    "Mean over seeds of one arm, with its 95 % interval (latents and, with several, seeds)"
    draws = [score_draws(r.arrays[score], r.arrays['count'], which, 500, 31*i) for i, r in enumerate(results)]
    i = mean_intervals(np.stack(draws, 1)[..., None], min(len(r.arrays['count']) for r in results))
    return dict(mean=float(i.mean[0]), lo=float(i.both[0, 0]), hi=float(i.both[1, 0]), seeds=len(results))


def numbers(r):
    "Of one SAE: the numbers that the notebook shows"
    keep = {k: round(v, 4) for k, v in r.metrics.items() if k not in ('n_tokens',)}
    return {k: r.config[k] for k in ('arch', 'target', 'seed', 'floor')} | dict(name=r.name) | keep


def pooled_bands(results, score='r3'):
    "Frequency bands over all seeds of one architecture"
    join = lambda k: [v for r in results for v in r.arrays[k]]
    return by_frequency(join(score), join('count'), results[0].metrics['n_tokens'])


def summary():
    "Everything the notebook reads, from the files that are there"
    files = sorted(p for p in OUT.glob('*.json') if p.name not in ('summary.json', 'examples.json'))
    results = [read_scores(p) for p in files]
    if len({r.config['acts'] for r in results if 'acts' in r.config}) > 1:
        raise UserError(f'{OUT} holds scores on different activations: run again with the folder of the SAEs')
    saes, floor = [r for r in results if not r.config['floor']], [r for r in results if r.config['floor']]
    archs = [a for a in ('topk', 'batchtopk', 'jumprelu', 'gated', 'relu') if any(r.config['arch'] == a for r in saes)]
    at32 = {a: [r for r in saes if r.config['arch'] == a and .7 < r.metrics['l0']/L0 < 1.4] for a in archs}
    kinds = list(dict.fromkeys(r.config['floor'] for r in floor))
    floor32 = {k: [r for r in floor if r.config['floor'] == k and r.config['target'] == L0] for k in kinds}
    d = dict(margin=MARGIN, l0=L0, n_saes=len(saes), n_floors=len(floor), n_tokens=results[0].metrics['n_tokens'],
        every=EVERY, saes=[numbers(r) for r in saes], floors=[numbers(r) for r in floor])
    d['floor_table'] = [dict(floor=k, l0=float(np.mean([r.metrics['l0'] for r in rs]))) | {f'{s}.{w}': held(rs, w, s)
        for s in ('r3', 'auprc', 'r1', 'r_other') for w in DENOMINATORS} for k, rs in floor32.items() if rs]
    d['at32'] = [dict(arch=a, l0=float(np.mean([r.metrics['l0'] for r in rs]))) | {f'{s}.{w}': held(rs, w, s)
        for s in ('r3', 'auprc', 'r1', 'r_other') for w in DENOMINATORS} for a, rs in at32.items() if rs]
    every = {**{a: rs for a, rs in at32.items()}, **floor32}
    d['auroc'] = {k: [float(np.mean([r.metrics[f'{m}.scored'] for r in rs])) for m in ('auroc', 'auprc', 'r3')]
        for k, rs in every.items() if rs}
    d['bands'] = {k: pooled_bands(rs) for k, rs in every.items() if rs}
    d['deciles'] = {k: np.mean([r.arrays['found'] for r in rs], 0).round(4).tolist() for k, rs in every.items() if rs}
    d['curves'] = {a: [dict(l0=x) | {w: held_at(saes, a, x, w) for w in DENOMINATORS} for x in AT
        if covered(saes, a, x)] for a in archs}
    d['verdicts'] = verdicts(saes, archs)
    d['cpu_seconds'] = round(sum(r.metrics['cpu_seconds'] for r in results), 1)
    write_json(OUT/'summary.json', d | dict(env=run_env()))
    print(f"{len(saes)} SAEs, {len(floor)} floors, {d['cpu_seconds']/60:.1f} CPU-minutes of scoring")
    for v in (v for v in d['verdicts'] if v['score'] == 'r3'):
        print(f"{v['a']} - {v['b']}, {v['denominator']}, {v['where']}: {v['difference']:+.3f} "
              f"[{v['interval'][0]:+.3f}, {v['interval'][1]:+.3f}], {v['seeds']} seeds: {v['verdict']}")


def covered(saes, arch, l0):
    "Can the score of every seed be read off at this L0?"
    v = matched_scores(saes, arch, [l0], 'all', n_boot=1)
    return bool(np.isfinite(v[0]).all())


def held_at(saes, arch, l0, which):
    "Score at an L0, mean over seeds and interval"
    v = matched_scores(saes, arch, [l0], which)
    i = mean_intervals(v, WIDTH)
    return dict(mean=float(i.mean[0]), lo=float(i.both[0, 0]), hi=float(i.both[1, 0]), seeds=v.shape[1])


def verdicts(saes, archs):
    "Each pair, each denominator: over the L0 in common, and at L0 = 32 and 64 where both are there"
    out = []
    for a, b in PAIRS:
        if not {a, b} <= set(archs): continue
        for which in DENOMINATORS:
            for score in ('r3', 'auprc'):
                for where, l0s in (('common', None), ('32', [32.]), ('64', [64.])):
                    if l0s and not (covered(saes, a, l0s[0]) and covered(saes, b, l0s[0])): continue
                    try: v = compare(saes, a, b, which, l0s, score=score)
                    except UserError: continue   # nothing in common yet
                    if not math.isfinite(v['difference']): continue
                    out.append(dict(where=where, score=score) | clean(v))
    return out


def clean(v):
    "NaN has no place in JSON"
    ok = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    return {k: [ok(i) for i in x] if isinstance(x, list) else ok(x) for k, x in v.items()}


def examples(saes, acts):
    "Six latents of the JumpReLU SAE of seed 0 near L0 = 32, chosen by rule: at these quantiles of r3 among the scored"
    path = OUT/'examples.json'
    def ours(p): return facts(p.parent)[p.name]['arch'] == 'jumprelu'
    name = min((n for n, p in saes.items() if ours(p)), key=lambda n: rank(saes[n]))
    if path.exists() and read_json(path).get('key') == key_of(saes[name]): return
    r = read_scores(OUT/f'{name}.json')
    r3 = np.array(r.arrays['r3'])
    order = np.flatnonzero(np.isfinite(r3))[np.argsort(-r3[np.isfinite(r3)], kind='stable')]
    chosen = {q: int(order[round((1 - q)*(len(order) - 1))]) for q in (1., .9, .7, .5, .3, .1)}
    sae, rows = load_sae(saes[name]), []
    train = firings(sae, acts(), 'train', chosen.values(), every=EVERY)
    test = firings(sae, acts(), 'test', chosen.values())
    for q, i in chosen.items():
        groups = test.by_quantile(i, 3, 2)
        rows.append(dict(latent=i, quantile=q, r1=r.arrays['r1'][i], r3=r.arrays['r3'][i], count=r.arrays['count'][i],
            rows=explain(train, i).rows(6), excerpts=[[vars(e) for e in g] for g in groups]))
    write_json(path, dict(sae=name, key=key_of(saes[name]), latents=rows))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('saes', help='folder of SAEs, or of a run')
    p.add_argument('--n', type=int, default=None, help='score only so many arms, then stop')
    p.add_argument('--summary', action='store_true', help='score nothing')
    a = p.parse_args()
    torch.set_num_threads(1)
    began, cache = time.time(), {}
    if not a.summary:
        saes = saved_saes(a.saes)
        def acts():
            if not cache:
                cache['acts'] = A = activations(LM, CORPUS, SITE, settings=quiet)
                train, part = A.part('train'), A.part
                A.part = lambda name='test': train if name == 'train' else part(name)   # keep it in memory
            return cache['acts']
        def of(name):
            place = saes[name]
            return name, described(place) | dict(floor=None, key=key_of(place)), lambda: load_sae(place)
        order = sorted(saes, key=lambda n: rank(saes[n]))
        untrained, other, trained = floors(acts)
        first, then = ([of(n) for n in order if (rank(saes[n])[0] <= 1) == early] for early in (True, False))
        plan = first[:5] + [(n, *v) for n, v in untrained.items()] + first[5:] + [(n, *v) for n, v in trained.items()]
        if a.n is None: few_tokens()
        plan += then[:len(then)//2] + [(n, *v) for n, v in other.items()] + then[len(then)//2:]
        for name, config, make in plan[:a.n]: arm(name, config, make, acts)
        examples(saes, acts)
    summary()
    print(f'{(time.time() - began)/60:.1f} minutes')


if __name__ == '__main__': main()
