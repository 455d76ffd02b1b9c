"""A sweep in one process or in several, on an idle machine and beside busy programs.

    python benchmarks/workers.py [--out results/benchmarks/workers.json] [--rounds 2] [--busy 2] [--fresh]

Trains four of the laptop's SAEs (two JumpReLU, two TopK; 640 → 2,048, batch 512) on a quarter of its tokens: in one
process with a thread a core, in one process with one thread, and in a worker process of one thread a core, the start of
the processes included; each as the machine is, and beside busy processes. Modes are interleaved, and what other
programs used meanwhile is measured and written down. Each measurement is kept when it is made: stopped, the same
command goes on.
The activations come from the cache ($JUMPRELU_SAE_CACHE); where they are missing, they are harvested first."""
import argparse, contextlib, json, os, resource, statistics, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

TOKENS = 122*512  # a step has 512
LIMIT = 30.  # seconds after which a sweep in one process is cut, and its time is scaled by the steps it got
SPIN = '''import os, torch
torch.set_num_threads(1)
x, parent = torch.randn(512, 512), os.getppid()
while os.getppid() == parent: x @ x
'''


def modes(cores):
    "Name -> settings"
    return dict(process_all_threads=dict(workers=1, threads=cores), process_one_thread=dict(workers=1, threads=1),
        workers_of_one_thread=dict(workers=cores, threads=1))


@contextlib.contextmanager
def busy(n):
    "Beside `n` processes that multiply matrices, one thread each"
    # a session of their own, as other programs have: Linux may share a machine out by session
    spins = [subprocess.Popen([sys.executable, '-c', SPIN], start_new_session=True) for _ in range(n)]
    if n: time.sleep(5)  # until all of them have imported torch
    try: yield spins
    finally:
        for p in spins: p.kill()
        for p in spins: p.wait()


def used(spins=()):
    "CPU seconds of the whole machine, and of this process, its ended children and the busy ones"
    tick = os.sysconf('SC_CLK_TCK')
    stat = [int(v) for v in Path('/proc/stat').read_text().split('\n')[0].split()[1:9]]
    everybody = (sum(stat) - stat[3] - stat[4])/tick
    mine = sum(sum(resource.getrusage(w)[:2]) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for p in spins:
        times = Path(f'/proc/{p.pid}/stat').read_text().rpartition(')')[2].split()[11:13]
        mine += sum(map(int, times))/tick
    return everybody, mine


def in_one_process(preset, acts, out, settings):
    "Train, until the time is up; steps of all SAEs that were done, and that there are"
    from jumprelu_sae.experiment import jobs, parts_of, train_part
    done, began = [0], time.perf_counter()

    def after_step(trainer):
        done[0] += len(trainer.saes)
        trainer.stop = time.perf_counter() - began > LIMIT

    parts = parts_of(jobs(preset, acts.d_in), out, together=True)
    try:
        for part in parts: train_part(part, acts, out, settings, after_step)
    except KeyboardInterrupt:
        if time.perf_counter() - began <= LIMIT: raise  # somebody stopped the benchmark
    return done[0], sum(len(js) for _, js in parts)*TOKENS//preset.batch


def measure(preset, acts, settings, n_busy):
    "Seconds of one sweep in a new folder; what others used meanwhile, in cores"
    from jumprelu_sae.core import Settings
    from jumprelu_sae.experiment import jobs, train_all
    from jumprelu_sae.recipe import threads
    with tempfile.TemporaryDirectory() as d, busy(n_busy) as spins, threads(settings['threads']):
        (e0, m0), t = used(spins), time.perf_counter()
        settings, done, of = Settings(progress=False, **settings), 1, 1
        if settings.workers == 1: done, of = in_one_process(preset, acts, Path(d), settings)
        else: train_all(jobs(preset, acts.d_in), acts, Path(d), settings)
        seconds, (e1, m1) = time.perf_counter() - t, used(spins)
    return dict(seconds=round(seconds*of/done, 2), done=round(done/of, 3), others=round((e1 - e0 - m1 + m0)/seconds, 2))


def summary(rows, cores):
    "Per load and mode the median, and its ratio to one process with all threads in the same round"
    out = {}
    for load in dict.fromkeys(r['load'] for r in rows):
        by = {}
        for r in rows:
            if r['load'] == load: by.setdefault(r['mode'], {})[r['round']] = r['seconds']
        base = by.get('process_all_threads', {})
        out[load] = {m: dict(median_s=statistics.median(v.values()), n=len(v),
            times_faster=[round(base[k]/v[k], 2) for k in sorted(v.keys() & base.keys())]) for m, v in by.items()}
    return out


def main():
    a = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    a.add_argument('--out', type=Path, default=Path('results/benchmarks/workers.json'))
    a.add_argument('--rounds', type=int, default=2)
    a.add_argument('--busy', type=int, default=2)
    a.add_argument('--fresh', action='store_true', help='forget what was measured before')
    a = a.parse_args()
    from jumprelu_sae.activations import activations
    from jumprelu_sae.core import Settings, run_env, write_json
    from jumprelu_sae.experiment import cores
    from jumprelu_sae.presets import PRESETS
    p = replace(PRESETS['laptop'], grid=dict(jumprelu=(16, 64), topk=(16, 64)), schedule=dict(n_tokens=TOKENS))
    acts = activations(p.model, p.corpus, site=p.site, n_train=p.n_train, n_val=p.n_val, n_test=p.n_test,
        settings=Settings(in_memory=True, dtype='bfloat16'))
    old = {} if a.fresh or not a.out.exists() else json.loads(a.out.read_text())
    rows, n = old.get('rows', []), cores()
    known = {(r['round'], r['load'], r['mode']) for r in rows}
    for i in range(a.rounds):
        for load, n_busy in (('as_it_is', 0), (f'beside_{a.busy}_busy', a.busy)):
            for mode, settings in modes(n).items():
                if (i, load, mode) in known: continue
                rows.append(dict(round=i, load=load, mode=mode) | measure(p, acts, settings, n_busy))
                print(rows[-1], flush=True)
                write_json(a.out, dict(format=1, cores=n, tokens=TOKENS, saes=4, d_in=acts.d_in, d_sae=p.d_sae,
                    batch=p.batch, rows=rows, summary=summary(rows, n), env=run_env()))
    print(json.dumps(summary(rows, n), indent=1))


if __name__ == '__main__': main()
