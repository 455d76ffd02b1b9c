"""Where the time of `make reproduce` goes, stage by stage, on idle cores and beside other programs.

    make reproduce                                                    # from an empty cache: $JUMPRELU_SAE_CACHE
    python benchmarks/reproduce.py reports/laptop idle                # writes down what the run says of itself
    python benchmarks/reproduce.py reports/laptop beside_2_busy       # the same, after a run beside two programs

Adds one row, or replaces the row of that load, in results/benchmarks/reproduce.json."""
import argparse
from pathlib import Path

from jumprelu_sae.core import read_json, write_json

OUT = Path(__file__).parent.parent/'results'/'benchmarks'/'reproduce.json'
ABOUT = ('From nothing but the installed packages: the model converted, 299,008 activations harvested, 20 SAEs trained '
    'in two worker processes, judged and explained')
LOADS = dict(idle='two idle cores, otherwise nothing running',
    beside_2_busy='two other programs of one thread each, training SAEs at the same priority')


def row(folder: Path, load: str) -> dict:
    "What the run says of itself"
    d = read_json(folder/'results.json')
    stages = {k: round(v, 1) for k, v in d['stages'].items()}
    if missing := {'model', 'activations', 'train', 'evaluate', 'interpret'} - stages.keys():
        raise SystemExit(f'{folder} found {", ".join(sorted(missing))} in the cache: run from an empty one')
    return dict(load=load, means=LOADS[load], preset=d['preset']['name'], stages=stages,
        seconds=round(sum(stages.values()), 1),
        peak_memory_gib=round(d['peak_memory_gib'], 2), env=d['env'])


def main():
    a = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    a.add_argument('folder', type=Path)
    a.add_argument('load', choices=LOADS)
    a = a.parse_args()
    rows = read_json(OUT).get('rows', []) if OUT.exists() else []
    by_load = {r['load']: r for r in (*rows, row(a.folder, a.load))}
    rows = [by_load[load] for load in LOADS if load in by_load]
    write_json(OUT, dict(format=1, command='make reproduce', about=ABOUT, rows=rows,
        seconds=round(sum(r['seconds'] for r in rows), 1), env=rows[0]['env']))
    for r in rows: print(r['load'], r['stages'], r['seconds'])


if __name__ == '__main__': main()
