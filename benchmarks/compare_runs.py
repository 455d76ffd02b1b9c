"""How far apart are two runs, SAE by SAE?

`python benchmarks/compare_runs.py reports/laptop results/laptop` reads the `results.json` of two run folders (or the
files themselves) and prints, for every metric, the largest relative difference over the SAEs whose names both have,
and at which SAE it is met; then the wall time of the stages side by side. `--out FILE` writes the same as JSON. Exit
code 1 when a run lacks an SAE of the other's."""

import argparse
import json
import math
import sys
from pathlib import Path


def read_run(path):
    "A run's results.json, from its folder or the file itself"
    path = Path(path)
    file = path / 'results.json' if path.is_dir() else path
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as e:
        sys.exit(f'error: {file} is no results.json ({e}): give the folder of a finished run')


def is_number(v):
    return isinstance(v, (int, float)) and not isinstance(v, bool)


def apart(a, b):
    "|a - b| relative to the larger of the two; NaN beside NaN is no difference"
    if a == b or math.isnan(a) and math.isnan(b):
        return 0.0
    if math.isnan(a) or math.isnan(b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def compare(a, b):
    "Two runs: dict(rows by metric, names of the SAEs that only one has, and how many both have)"
    mine, theirs = ({r['name']: r['metrics'] for r in run['results']} for run in (a, b))
    both = [n for n in mine if n in theirs]
    worst, missing = {}, set()
    for name in both:
        for k in {**mine[name], **theirs[name]}:
            x, y = mine[name].get(k), theirs[name].get(k)
            if not (is_number(x) and is_number(y)):
                missing |= {k} if is_number(x) or is_number(y) else set()
                continue
            d = apart(x, y)
            if k not in worst or d > worst[k]['largest']:
                worst[k] = dict(metric=k, largest=d, sae=name, here=x, there=y)
    differ = {k: sum(mine[n].get(k) != theirs[n].get(k) for n in both) for k in worst}
    rows = [worst[k] | dict(differ=differ[k]) for k in worst]
    return dict(
        rows=rows,
        saes=len(both),
        only_here=sorted(mine.keys() - theirs.keys()),
        only_there=sorted(theirs.keys() - mine.keys()),
        in_one_only=sorted(missing),
    )


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('here', help='folder of a run, such as reports/laptop')
    p.add_argument('there', help='folder of another, such as results/laptop')
    p.add_argument('--out', type=Path, help='also write it to this JSON file')
    args = p.parse_args(argv)
    a, b = read_run(args.here), read_run(args.there)
    c = compare(a, b)
    print(f"{'metric':24s} {'largest rel. difference':>24s} {'SAEs that differ':>17s}  at")
    for r in c['rows']:
        print(
            f"{r['metric']:24s} {r['largest']:24.2e} {r['differ']:17d}  {r['sae']} ({r['here']:.8g}, {r['there']:.8g})"
        )
    print(
        f"{c['saes']} SAEs in both; only here: {', '.join(c['only_here']) or 'none'}; only there:"
        f" {', '.join(c['only_there']) or 'none'}"
    )
    if c['in_one_only']:
        print('metrics of one run only: ' + ', '.join(c['in_one_only']))
    stages = {
        k: (a.get('stages', {}).get(k), b.get('stages', {}).get(k))
        for k in {**a.get('stages', {}), **b.get('stages', {})}
    }
    if stages:
        print(f"{'stage':24s} {'here, s':>10s} {'there, s':>10s}")
        for k, pair in stages.items():
            print(f'{k:24s} ' + ' '.join(f'{v:10.1f}' if is_number(v) else f"{'–':>10s}" for v in pair))
    if args.out:
        args.out.write_text(
            json.dumps(dict(format=1, here=str(args.here), there=str(args.there), stages=stages, **c), indent=1) + '\n',
            encoding='utf-8',
        )
    return int(bool(c['only_here'] or c['only_there'] or not c['saes']))


if __name__ == '__main__':
    sys.exit(main())
