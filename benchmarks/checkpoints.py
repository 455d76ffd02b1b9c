"""What does a run cost beside its arithmetic: the time for checkpoints, and the bytes on disk?

    python benchmarks/checkpoints.py                    # every part that is missing; about six minutes of one core
    python benchmarks/checkpoints.py laptop written     # only these
    python benchmarks/checkpoints.py --fresh            # forget what was measured before

`tiny`, `laptop` and `scope` train TopK SAEs side by side on noise of a preset's sizes, with checkpoints at the default
cadence (`Settings(save_every=None)`): at most 2 % of the time, and never within five minutes of the last one. Five
minutes would hide the price in a run this short, so they are lowered to two seconds, which leaves the 2 % alone. What
one costs is a guess until the first was written, so the share is that of the time from then on. The share with the five
minutes in force is computed beside it. `written` runs `reproduce` on the tiny preset and counts
what it and its children hand to the system (`wchar` of /proc/self/io), holds that against `probe.bytes_written`, and
computes the laptop preset by the same function. `probe` measures the rates of scope-270m here. `rehearsal` runs
scope-270m-sotu end to end on two thousand activations.

Everything goes to results/benchmarks/checkpoints.json, part by part: stopped, the same command goes on. Other programs
may share the machine; what they used is not known, so no time here is that of an idle machine."""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jumprelu_sae import train
from jumprelu_sae.core import TensorStream, UserError, read_json, run_env, write_json
from jumprelu_sae.presets import PRESETS, rehearsal
from jumprelu_sae.probe import bytes_written, on_paper

SIZES = dict(tiny=('tiny', 32, None), laptop=('laptop', 640, None), scope=('scope-270m', 640, 1))  # preset, d_in, SAEs
CHECKPOINTS = dict(tiny=5, laptop=2, scope=2)
MOST = 240.  # seconds of a part
AT_RISK = 2.  # seconds in the place of Cadence.AT_RISK


def cadence(part: str) -> dict:
    "TopK SAEs of a preset side by side: how much of the time do checkpoints take?"
    name, d_in, saes = SIZES[part]
    p = PRESETS[name]
    plans = [p.plan('topk', k, d_in=d_in, n_tokens=p.batch*10**6) for k in p.grid['topk'][:saes]]
    x = torch.randn(4*p.batch, d_in, generator=torch.Generator().manual_seed(0))/d_in**.5
    tr = train.Trainer({q.name: q.sae() for q in plans}, TensorStream(x, p.batch), plans[0].train)
    real, risk, costs, steps = train.Cadence(None, tr.checkpoint_bytes()), train.Cadence.AT_RISK, [], []
    save, one_step = tr.save, tr.one_step

    def timed(f, kept): # rows (seconds, when it ended)
        def g(*a):
            began = time.perf_counter()
            out = f(*a)
            kept.append((time.perf_counter() - began, time.perf_counter()))
            return out
        return g

    tr.save, tr.one_step = timed(save, costs), timed(one_step, steps)
    latest = time.perf_counter() + MOST
    def stop(t): t.stop = len(costs) == CHECKPOINTS[part] or time.perf_counter() > latest
    with tempfile.TemporaryDirectory() as folder:
        train.Cadence.AT_RISK = AT_RISK
        began = time.perf_counter()
        try: train.train_saes(tr, folder, None, progress=False, after_step=stop)
        except KeyboardInterrupt: pass
        finally: train.Cadence.AT_RISK = risk
        size = sum(f.stat().st_size for f in Path(folder).glob('step-*.safetensors'))//2
    costs = costs[:CHECKPOINTS[part]]      # the one of the stop is not the cadence's
    (first, since), (_, until), n = costs[0], costs[-1], len(costs) - 1
    cost = statistics.median(c for c, _ in costs)
    real.cost = cost
    return dict(
        preset=name,
        d_in=d_in,
        d_sae=p.d_sae,
        saes=len(plans),
        batch=p.batch,
        checkpoint_bytes=size,
        foretold_bytes=tr.checkpoint_bytes(),
        step_s=statistics.median(t for t, _ in steps),
        seconds=until - since,
        checkpoints=n,
        checkpoint_s=[c for c, _ in costs],
        share=sum(c for c, _ in costs[1:]) / (until - since) if n else None,
        first_after_s=since - first - began,
        interval_s=real.interval,
        share_in_a_long_run=cost / (cost + real.interval),
    )


WRITES = '''
import json, os, subprocess, sys
env = os.environ | dict(JUMPRELU_SAE_CACHE=sys.argv[1] + '/cache')
done = subprocess.run([sys.executable, '-m', 'jumprelu_sae', 'reproduce', '--preset', 'tiny', '--quiet'], cwd=sys.argv[1],
    env=env, capture_output=True, text=True)
io = dict(l.split(': ') for l in open('/proc/self/io').read().splitlines())
print(json.dumps(dict(code=done.returncode, err=done.stderr[-2000:], wchar=int(io['wchar']))))
'''

def size_of(paths) -> int: return sum(f.stat().st_size for f in paths if f.is_file())

def written(part: str) -> dict:
    "Bytes of `reproduce`: the tiny preset's counted and foretold, the laptop's foretold"
    from jumprelu_sae.lm import load_lm
    with tempfile.TemporaryDirectory() as d:
        env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]))
        r = subprocess.run([sys.executable, '-c', WRITES, d], capture_output=True, text=True, env=env, check=True)
        said = json.loads(r.stdout)
        if said['code']: raise SystemExit(said['err'])
        out = Path(d)/'reports'/'tiny'
        tensors = dict(activations=size_of(Path(d).rglob('shard-*.safetensors')),
            saes=size_of(out.glob('saes/*/*.safetensors')))
        rest = size_of(Path(d).rglob('*')) - sum(tensors.values())
    p = PRESETS['tiny']
    foretold = bytes_written(p, on_paper(p, load_lm(p.model)))
    tiny = dict(counted=said['wchar'], left=tensors | dict(rest=rest), foretold=foretold,
        foretold_and_rest=sum(foretold.values()) + rest)
    laptop, runs = PRESETS['laptop'], read_json(HERE.parent/'results'/'laptop'/'results.json')
    each = dict.fromkeys(laptop.grid, runs['stages']['train']/len(laptop.grid))
    found, lm = {}, load_lm(laptop.model)
    need, n = on_paper(laptop, lm), laptop.n_train + laptop.n_val + laptop.n_test
    for dtype, size in (('bfloat16', 2), ('float32', 4)):
        need['store_bytes'] = n*(size*need['d_in'] + 16)
        for kind, together in (('one process', True), ('a process a core', False)):
            found[f'{dtype}, {kind}'] = bytes_written(laptop, need, each, together)
    model = sum(q.numel() for q in lm.model.parameters())*4
    return dict(tiny=tiny, laptop=found, laptop_total={k: sum(v.values()) for k, v in found.items()},
        laptop_rest_about=rest, model_once=model)


def rates(part: str) -> dict:
    "What `42_probe` measures here, on one row of text a pass"
    from jumprelu_sae.probe import probe
    return probe(PRESETS['scope-270m'], seconds=15., rows=1)


def road(part: str) -> dict:
    "scope-270m-sotu end to end on two thousand activations, report included"
    from jumprelu_sae.reproduction import reproduce
    p = rehearsal(PRESETS['scope-270m-sotu'])
    with tempfile.TemporaryDirectory() as d:
        began, said = time.perf_counter(), []
        results = reproduce(p, Path(d)/'out', say=said.append, progress=False)
        seconds = time.perf_counter() - began
        run, page = read_json(Path(d)/'out'/'results.json'), (Path(d)/'out'/'report.html').read_text(encoding='utf-8')
    assert 'A rehearsal on 2,048 activations' in page
    return dict(preset=p.name, activations=p.n_train + p.n_val + p.n_test, d_sae=p.d_sae, steps=p.n_train//p.batch,
        seconds=seconds, stages=run['stages'], report_bytes=len(page),
        rows=[dict(name=r.name) | {k: r.metrics[k] for k in ('l0', 'fvu', 'delta_lm_loss')} for r in results])


PARTS = dict(tiny=cadence, laptop=cadence, scope=cadence, written=written, probe=rates, rehearsal=road)

def words(part: str, d: dict) -> str:
    "A part in a line"
    if part in SIZES:
        cost = statistics.median(d['checkpoint_s'])
        share = 'not seen' if d['share'] is None else f"{d['share']:.2%} of the time"
        return (f"{d['preset']}: {d['saes']} SAEs of {d['d_in']} × {d['d_sae']:,}, a checkpoint of "
            f"{d['checkpoint_bytes']/1e6:,.1f} MB takes {cost:.3f} s; {d['checkpoints']} in the {d['seconds']:.0f} s "
            f"after the first: {share}; in a long run one in {d['interval_s']:.0f} s: {d['share_in_a_long_run']:.2%}")
    if part == 'written':
        t = d['tiny']
        each = '; '.join(f'{k}: {v/1e9:.2f} GB' for k, v in d['laptop_total'].items())
        return (
            f"tiny: {t['counted'] / 1e6:.2f} MB counted, {t['foretold_and_rest'] / 1e6:.2f} MB foretold; laptop: {each}; "
            f"and once the converted model, {d['model_once'] / 1e9:.2f} GB"
        )
    if part == 'probe': return ', '.join(f'{k} {v:,.0f} tokens/s' for k, v in d['rates'].items())
    return f"{d['preset']}: {d['seconds']:.0f} s, {len(d['rows'])} SAEs, a report of {d['report_bytes']/1e6:.1f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument('--out', type=Path, default=HERE.parent/'results'/'benchmarks'/'checkpoints.json')
    parser.add_argument('--fresh', action='store_true', help='measure again what is there')
    a = parser.parse_args()
    unknown = [p for p in a.parts if p not in PARTS]
    if unknown: parser.error(f"no such part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    try: kept = read_json(a.out)['parts'] if a.out.exists() else {}
    except (UserError, KeyError): kept = {}
    for part in a.parts or PARTS:
        if a.fresh or part not in kept:
            began, cpu = time.perf_counter(), time.process_time()
            found = PARTS[part](part)
            spent = dict(wall_s=round(time.perf_counter() - began, 1), cpu_s=round(time.process_time() - cpu, 1))
            kept[part] = found | dict(spent=spent, cores=os.cpu_count(), env=run_env())
            write_json(a.out, dict(format=1, parts={k: kept[k] for k in PARTS if k in kept}))
        print(f'{part}: {words(part, kept[part])}', flush=True)
    return 0

if __name__ == '__main__': sys.exit(main())
