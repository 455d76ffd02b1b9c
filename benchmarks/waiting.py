"""What threads that wait for each other cost beside busy programs, and what helps: threads that sleep, or a single one.

    python benchmarks/waiting.py [--out results/benchmarks/waiting.json] [--rounds 2] [--busy 2]

Harvesting, training and judging in one process with a thread a core; as the machine is, and beside busy processes; with
threads that spin while they wait (OpenMP's habit, which we leave as it is), with threads that sleep (the environment
variable OMP_WAIT_POLICY=PASSIVE), and with one thread, which waits for nobody (as `--threads 1` has it). A cell, one
load and one way of waiting, is a process of its own; cells are interleaved. The activations come from the cache
($JUMPRELU_SAE_CACHE); where they are missing, they are harvested first."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from workers import busy

POLICIES = dict(spin={}, sleep={'OMP_WAIT_POLICY': 'PASSIVE'}, one_thread={'OMP_NUM_THREADS': '1'})  # environment
ROWS, STEPS, PREDICTIONS = 16, 60, 256  # harvested rows of 128 tokens; steps of a TopK SAE; of the language model


def stages() -> dict:  # seconds of each
    "In a process of its own"
    import torch

    from jumprelu_sae.activations import activations
    from jumprelu_sae.core import Settings
    from jumprelu_sae.evaluate import LMEval, captured
    from jumprelu_sae.presets import PRESETS
    from jumprelu_sae.recipe import plan_sae
    from jumprelu_sae.sites import parse_site
    from jumprelu_sae.train import Trainer
    p = PRESETS['laptop']
    acts = activations(p.model, p.corpus, site=p.site, n_train=p.n_train, n_val=p.n_val, n_test=p.n_test,
        settings=Settings(in_memory=True, progress=False, dtype='bfloat16'))
    plan = plan_sae('topk', acts.d_in, 100_000, 2048, 32)
    trainer = Trainer({plan.name: plan.sae()}, acts.stream(plan.train.batch, 0), plan.train)
    sae = plan.sae().eval().finish(acts.scaler)
    rows = torch.arange(ROWS)

    def train():
        for _ in range(STEPS): trainer.one_step()

    work = dict(
        harvest=lambda: captured(acts.lm, acts.tokens['test'][rows], parse_site(p.site, acts.lm.n_layers)),
        train=train,
        evaluate=lambda: LMEval(acts.lm, acts.tokens['test'], acts.site, PREDICTIONS).delta(sae, acts.rule),
    )
    captured(acts.lm, acts.tokens['test'][rows[:1]], parse_site(p.site, acts.lm.n_layers))  # pages read, threads made
    out = {}
    for name, fn in work.items():
        began = time.perf_counter()
        fn()
        out[name] = round(time.perf_counter() - began, 2)
    return out


def measure(policy: str, n_busy: int) -> dict:
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY')}
    env |= POLICIES[policy]
    with busy(n_busy):
        command = [sys.executable, __file__, '--stages']
        said = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def summary(rows: list) -> dict:
    "Per load, policy and stage the median"
    out = {}
    for r in rows:
        for stage, s in r['seconds'].items():
            out.setdefault(r['load'], {}).setdefault(r['policy'], {}).setdefault(stage, []).append(s)
    return {l: {p: {k: statistics.median(v) for k, v in d.items()} for p, d in ps.items()} for l, ps in out.items()}


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    a.add_argument('--out', type=Path, default=Path('results/benchmarks/waiting.json'))
    a.add_argument('--rounds', type=int, default=2)
    a.add_argument('--busy', type=int, default=2)
    a.add_argument('--stages', action='store_true', help='one cell, in this process')
    a = a.parse_args()
    if a.stages:
        print(json.dumps(stages()))
        return
    from jumprelu_sae.core import run_env, write_json
    rows = []
    for i in range(a.rounds):
        for load, n in (('as_it_is', 0), (f'beside_{a.busy}_busy', a.busy)):
            for policy in POLICIES:
                rows.append(dict(round=i, load=load, policy=policy, seconds=measure(policy, n)))
                print(rows[-1], flush=True)
                command = 'python benchmarks/waiting.py'
                write_json(a.out, dict(format=1, command=command, rows=rows, summary=summary(rows), env=run_env()))


if __name__ == '__main__': main()
