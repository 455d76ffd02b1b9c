"""Does what is found last? The two best and the two worst architectures of `fair.py`, elsewhere.

    python benchmarks/lasts.py code layer    # both places; needs the tuning of `fair.py`
    python benchmarks/lasts.py code layer --auxk    # JumpReLU without the loss on dead latents
    python benchmarks/lasts.py --report      # the verdicts, from what is there

The places: `code`, the same layer reading another corpus (Python's own standard library, one document a file), and
`layer`, the same corpus after layer 14 of 18. Settings are those that `fair.py` chose at L0 = 16 and 64 with a million
tokens at the main place; nothing is tuned again. 499,712 tokens, three seeds, documents held out as everywhere.

Rule, written before any run: architectures are ranked by the geometric mean of the FVU that their tuned settings had on
validation documents at L0 = 16 and 64. At a place the order lasts if each of the two best has certainly lower FVU than
each of the two worst at equal L0 (the falsifier of `31_frontier`, over documents and seeds); it does not if one of them
has certainly higher FVU; otherwise it lasts partly.

JumpReLU had in all of these runs the loss on the pre-activations of dead latents that turned out to hold it back
(`auxk_only.py`). With --auxk it is trained once more at both places with what `auxk_only.py` chose at L0 = 16 and 64,
and compared with the two best at equal L0. Rule, written on 2026-11-29 before any of these runs: "without the loss
JumpReLU is ahead of (behind) a rival at a place" is said if its FVU is certainly lower (higher), over documents and
seeds; otherwise nobody is ahead.

Every run is written to results/lasts when it ends, and is not repeated; a stopped one goes on where it stopped. One
thread each: OMP_NUM_THREADS=1."""
import argparse
import logging
import math
import sysconfig
from itertools import product
from pathlib import Path

import fair
from auxk_only import AuxKOnly
from one_run import HOW, Study

from jumprelu_sae.activations import activations
from jumprelu_sae.core import run_env, write_json
from jumprelu_sae.frontier import falsifier
from jumprelu_sae.recipe import Plan, plan_sae

OUT = Path(__file__).parent.parent/'results'/'lasts'
N, SEEDS, AT = 499_712, (0, 1, 2), (16, 64)
PLACES = ('code', 'layer')


def python_code() -> list[str]:
    "The files of Python's standard library, but for its tests and for what was installed beside it"
    root = Path(sysconfig.get_paths()['stdlib'])
    left_out = {'site-packages', 'dist-packages', 'test', 'tests', 'idle_test', '__pycache__'}
    files = [p for p in sorted(root.rglob('*.py')) if not left_out & set(p.relative_to(root).parts)]
    return [p.read_text(encoding='utf-8', errors='replace') for p in files]


def ranking() -> list[str]:
    "Best first"
    def level(arch): return math.fsum(math.log(fair.MAIN.winner(arch, l0)['fvu']) for l0 in AT)
    return sorted(fair.ARCHS, key=level)


def job(arch: str, l0: int, seed: int) -> Plan:
    told = None if arch in fair.BY_COEF else l0
    settings = fair.as_it_was(arch) | fair.MAIN.settings_at(arch, l0)
    return plan_sae(arch, 640, N, 2048, told, 'short', seed, name=f'{arch}-{l0}-seed{seed}', **settings)


def auxk_job(l0: int, seed: int) -> Plan:
    settings = fair.as_it_was('jumprelu') | AuxKOnly.fixed | AuxKOnly().settings_at('jumprelu', l0)
    return plan_sae('jumprelu', 640, N, 2048, l0, 'short', seed, name=f'jumprelu-auxk-{l0}-seed{seed}', **settings)


def auxk_jobs() -> list[tuple[Plan, int]]: return [(auxk_job(l0, s), l0) for s, l0 in product(SEEDS, AT)]


def some() -> tuple[list, list]:  # the two best, the two worst
    order = ranking()
    return order[:2], order[-2:]


def jobs() -> list[tuple[Plan, int]]:
    best, worst = some()
    return [(job(a, l0, s), l0) for s, l0, a in product(SEEDS, AT, best + worst)]


def train(place: str, auxk: bool) -> None:
    corpus, site = (python_code(), 'resid.9') if place == 'code' else ('sotu', 'resid.14')
    study = Study(OUT/place)
    study.acts = activations('gemma3-270m', corpus, site=site, n_train=N, settings=HOW)
    for plan, l0 in auxk_jobs() if auxk else jobs(): study.train('run', plan, l0)


def without_the_loss(study: Study, rivals: list[str]) -> list[dict]:  # rival, area, both, verdict, fvu by L0
    "JumpReLU whose dead latents are AuxK's alone, against each rival; [] while runs are missing"
    if not all(study.has('run', p) for p, _ in auxk_jobs()): return []
    ours = [study.result('run', p) for p, _ in auxk_jobs()]
    out = []
    for rival in rivals:
        theirs = [study.result('run', job(rival, l0, s)) for l0, s in product(AT, SEEDS)]
        v = falsifier(ours + theirs, 'jumprelu', rival)
        print(f'{study.out.name}, without the loss: {v.sentence}')
        fvus = {l0: [fair.mean([r.metrics for r in rs if r.config['target'] == l0], 'fvu') for rs in (ours, theirs)]
            for l0 in AT}
        out.append(dict(rival=rival, area=v.area, both=v.both, verdict=v.verdict, fvu=fvus))
    return out


def report() -> None:
    "Each of the best against each of the worst at each place"
    best, worst = some()
    rows, spent = [], 0.
    for place in PLACES:
        study = Study(OUT/place)
        rs = [study.result('run', p) for p, _ in jobs() if study.has('run', p)]
        if len(rs) < len(jobs()): continue
        found = [falsifier(rs, a, b) for a, b in product(best, worst)]
        for v in found: print(f'{place}: {v.sentence}')
        words = {v.verdict for v in found}
        lasts = 'no' if 'refuted' in words else 'yes' if words == {'held'} else 'partly'
        print(f'{place}: does the order last? {lasts}')
        pairs = [dict(best=v.a, worst=v.b, area=v.area, both=v.both, verdict=v.verdict) for v in found]
        rows.append(dict(place=place, lasts=lasts, pairs=pairs, without_the_loss=without_the_loss(study, best)))
        spent += math.fsum(r.config['seconds'] for r in rs)
    command = 'python benchmarks/lasts.py code layer --report'
    d = dict(format=1, command=command, best=best, worst=worst, rows=rows, seconds=spent, env=run_env())
    write_json(OUT/'lasts.json', d)


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('place', nargs='*', help=f"any of {', '.join(PLACES)}")
    a.add_argument('--auxk', action='store_true', help='train JumpReLU without the loss on dead latents')
    a.add_argument('--report', action='store_true', help='say what there is')
    said, a = a, a.parse_args()
    wrong = [p for p in a.place if p not in PLACES]
    if wrong: said.error(f"no such place: {', '.join(wrong)}; want {' or '.join(PLACES)}")
    for place in a.place: train(place, a.auxk)
    if a.report: report()
