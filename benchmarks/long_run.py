"""The paper's own recipe, run to its end: 100,000 steps and more on every training token of the embedded corpus.

    python benchmarks/long_run.py jumprelu-0.001 topk-32     # rows by name; without names: all, one after the other
    python benchmarks/long_run.py --list
    python benchmarks/long_run.py --report                   # who leads when: results/recipe/who_leads.json

To the letter but for scale: learning rate 7e-5, beta1 = 0, warm-ups of 1,000 and 10,000 steps, ε and θ_init 0.001, log
θ, λ‖f‖₀, no AuxK for JumpReLU, no selection, no target. Departures: 2,048 latents, batch 128, 1,839,104 tokens read
several times (so every row gives training beside held-out error), inputs centred, and a latent counts as dead (AuxK of
TopK) after 100,000 tokens, where others with billions of tokens take 10 million. The model runs in float32 on every
machine, so that a row begun elsewhere can be compared with the others.

λ = 1e-3 was the first to be tried. After 50,000 steps its L0, until then falling, rose again and stayed near 480 while
a third of its latents died, so the other rows have a larger λ, up to 20 times; that row is kept for what it shows.
Likewise Gated with free rows, whose λ = 0.06 stood at L0 368 after 60,000 steps: λ = 0.12 and 0.3 took its place, from
L0 ~ λ^-1.7 in the short runs (`results/laptop/results.json`, development).

A row ends at the first multiple of 10,000 steps, at least 100,000, at which L0 moved by less than 3 % over the last
fifth; at 160,000 it ends whatever L0 does. Rows are written to results/long/<name>.json; a stopped row goes on where it
stopped. Several processes may work on different rows. One thread each: OMP_NUM_THREADS=1."""
import argparse
import logging
import math
import re
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from jumprelu_sae.activations import activations
from jumprelu_sae.core import Result, Settings, UserError, cache_dir, read_json, run_env, write_json
from jumprelu_sae.evaluate import LMEval, evaluate_activations
from jumprelu_sae.frontier import falsifier, resampled
from jumprelu_sae.intervals import effective_documents, mean_intervals
from jumprelu_sae.recipe import PAPER, plan_sae
from jumprelu_sae.train import Trainer, train_saes

OUT = Path(__file__).parent.parent/'results'/'long'
N_TRAIN, BATCH, D_SAE = 1_839_104, 128, 2048
LEAST, MOST, LOOK = 100_000, 160_000, 10_000  # steps
SETTLED = .03  # largest change of L0 over the last fifth, as a share
LOOKS = (1000, 3000, 10_000, 30_000)  # and every 10,000 steps after these
DEAD_AFTER = 100_000  # tokens
N_LM = 4096  # held-out predictions of the language-model loss
INGREDIENTS = {'bandwidth-0.01': dict(bandwidth=.01), 'auxk': dict(aux_coef=1/32)}  # one at a time


def rows() -> dict:
    "Name -> architecture and its settings; three seeds at one sparsity, one elsewhere"
    out = {}
    for coef, seeds in ((1e-3, (0,)), (3e-3, (0, 1, 2)), (1e-2, (0,)), (2e-3, (0,)), (2e-2, (0,))):
        for seed in seeds: out[f'jumprelu-{coef:g}-seed{seed}'] = dict(what='jumprelu', seed=seed, coef=coef)
    for k, seeds in ((32, (0, 1, 2)), (64, (0,)), (16, (0,))):
        for seed in seeds: out[f'topk-{k}-seed{seed}'] = dict(what='topk', seed=seed, k=k)
    for coef, seeds in ((.06, (0,)), (.1, (0, 1, 2)), (.12, (0, 1, 2)), (.3, (0,))):
        for seed in seeds:
            for name, free in (('gated-free', True), ('gated-unit', False)):
                out[f'{name}-{coef:g}-seed{seed}'] = dict(what='gated', seed=seed, coef=coef, free_rows=free)
    J = dict(what='jumprelu', seed=0, coef=1e-3)
    for rate in (7e-4, 7e-3): out[f'jumprelu-0.001-threshold-lr-{rate:g}-seed0'] = J | dict(threshold_lr=rate)
    for coef in (4e-4, 6e-4, 2e-3):
        out[f'jumprelu-{coef:g}-threshold-lr-0.007-seed0'] = J | dict(coef=coef, threshold_lr=7e-3)
    for seed in (1, 2): out[f'jumprelu-0.001-threshold-lr-0.007-seed{seed}'] = J | dict(threshold_lr=7e-3, seed=seed)
    for name, more in INGREDIENTS.items():
        out[f'jumprelu-0.001-{name}-seed0'] = J | more
        out[f'jumprelu-0.001-threshold-lr-0.007-{name}-seed0'] = J | dict(threshold_lr=7e-3) | more
    return out


def settled(history: list) -> bool: # rows (step, loss, mse, l0, ...)
    "Did L0 move by less than 3 % over the last fifth? Means over a twentieth at both ends, since a batch is noisy"
    last = history[-1][0]
    def mean(a, b):
        some = [r[3] for r in history if a*last < r[0] <= b*last]
        return sum(some)/len(some)
    early, late = mean(.8, .85), mean(.95, 1.)
    return abs(late - early) < SETTLED*late


class Row:
    "One SAE, judged at its milestones"
    def __init__(self, name: str, acts, lm_eval, **settings):
        self.name, self.acts, self.lm_eval = name, acts, lm_eval
        n = MOST*BATCH
        self.plan = plan_sae(settings.pop('what'), acts.d_in, n, D_SAE, None, PAPER, settings.pop('seed'), BATCH, name,
            log_every=500, dead_after=DEAD_AFTER, **settings)
        self.path, self.looks, self.began = OUT/f'{name}.json', {}, time.process_time()
        self.spent = 0.
        if self.path.exists():
            d = read_json(self.path)
            if self.plan.key(acts.stream(BATCH, self.plan.seed).identity()) != d['key']:
                raise UserError(f'{self.path} is of other data or settings: move it away')
            self.looks, self.spent = {int(k): v for k, v in d['looks'].items()}, d['seconds']
        test = acts.part('test')
        self.parts = dict(train=self.some_train(), test=(test['x'], test['doc']))

    def some_train(self) -> tuple: # raw activations, their documents
        "Every 56th training activation: 32,841 of them"
        part = self.acts.part('train')
        return part['x'][::56].clone(), part['doc'][::56].clone()

    def look(self, tr: Trainer, last: bool) -> dict:
        sae = tr.saes[self.name]
        done = sae.eval().finish(self.acts.scaler)
        out = {}
        for part, (x, doc) in self.parts.items():
            m, arrays = evaluate_activations(done, x, doc, self.acts.rule, mean=self.acts.mean)
            out[part] = {k: m[k] for k in ('l0', 'fvu', 'dead', 'shrinkage', 'dense10', 'n_tokens')}
            if part == 'test':
                out['sums'] = {k: v for k, v in arrays.items() if k in ('docs', 'tokens', 'sse', 'sst', 'l0')}
        if hasattr(sae, 'theta_param'): out['threshold_median'] = float(sae.threshold.detach().median())
        if last or tr.step in (10_000, 30_000, 100_000):
            out['delta'], out['delta_sums'] = self.lm_eval.delta(done, self.acts.rule)
        sae.train()
        return out

    def after(self, tr: Trainer) -> None:
        step = tr.step
        if step not in LOOKS and (step < 30_000 or step % LOOK): return
        calm = step >= LEAST and settled(tr.history[self.name])
        last = calm or step >= MOST
        if step not in self.looks: self.looks[step] = self.look(tr, last)
        self.write(tr, last, calm)
        if last: tr.stop = True

    def write(self, tr: Trainer, last: bool, calm: bool) -> None:
        p = self.plan
        seconds = self.spent + time.process_time() - self.began
        d = dict(format=1, name=self.name, arch=p.cfg.arch, seed=p.seed, key=p.key(tr.data()), steps=tr.step, done=last)
        d |= dict(
            sae=asdict(p.cfg),
            train=asdict(p.train),
            settled=calm,
            seconds=seconds,
            sparse_steps=tr.paths.sparse_steps(self.name, tr.step),
        )
        d |= dict(command=f'python benchmarks/long_run.py {self.name}', env=run_env(), looks=self.looks)
        write_json(self.path, d | dict(history=tr.history[self.name]))
        test = self.looks[tr.step]['test'] if tr.step in self.looks else {}
        logging.info('%s step %d: L0 %.1f FVU %.4f dead %.3f, %.0f s', self.name, tr.step, test.get('l0', 0),
            test.get('fvu', 0), test.get('dead', 0), seconds)

    def run(self) -> None:
        p, folder = self.plan, cache_dir()/'long'/self.name
        tr = Trainer({p.name: p.sae()}, self.acts.stream(BATCH, p.seed), p.train)
        try: train_saes(tr, folder, 60., False, p.name, self.after)
        except KeyboardInterrupt:
            if not (self.path.exists() and read_json(self.path)['done']): raise
        tr.saes[p.name].eval().finish(self.acts.scaler, self.acts.metadata()).save(cache_dir()/'long'/f'{p.name}-sae')


OURS = {'to the letter': 'jumprelu-[0-9.]+', 'fast thresholds': 'jumprelu-[0-9.]+-threshold-lr-0.007'}
RIVALS = {'TopK': 'topk-[0-9]+', 'Gated, unit rows': 'gated-unit-[0-9.]+', 'Gated, free rows': 'gated-free-[0-9.]+'}


def at_look(d: dict, step: str) -> Result:  # of a row, held out
    look = d['looks'][step]
    target = d['sae']['k' if d['arch'] == 'topk' else 'coef']
    return Result(d['name'], dict(arch=d['arch'], seed=d['seed'], target=target), look['test'], look['sums'], {})


def report() -> None:
    "Who leads when, and what an ingredient changes"
    files = [read_json(p) for p in sorted(OUT.glob('*-seed0.json'))]
    def of(like): return [d for d in files if re.fullmatch(f'{like}-seed0', d['name'])]
    rows = [r for mine, a in OURS.items() for rival, b in RIVALS.items() for r in leads(mine, rival, of(a), of(b))]
    with_one = [d for d in files if ingredient(d['name'])]
    ingredients = [r for d in with_one for r in against_without(d, of(OURS[kind_of(d)]))]
    command = 'python benchmarks/long_run.py --report'
    write_json(OUT.parent/'recipe'/'who_leads.json',
        dict(format=2, command=command, rows=rows, ingredients=ingredients, env=run_env()))


def leads(mine: str, rival: str, ours: list[dict], theirs: list[dict]) -> list[dict]:  # rows of the report
    """At each look, the FVU ratio over all L0s that both have rows around; 95 % interval over documents. None at looks
    where there are no such L0s"""
    out = []
    for step in sorted({s for d in ours for s in d['looks']}, key=int):
        there, rest = ([at_look(d, step) for d in some if step in d['looks']] for some in (ours, theirs))
        if not there or not rest: continue
        v = falsifier(there + rest, 'jumprelu', rest[0].config['arch'], 'fvu')
        if v.area is None: continue
        ratio, lo, hi = (math.exp(x) for x in (v.area, *v.both))
        out.append(dict(jumprelu=mine, against=rival, step=int(step), ratio=ratio, lo=lo, hi=hi, l0_from=v.l0s[0],
            l0_to=v.l0s[-1]))
        print('JumpReLU {jumprelu} against {against}, step {step}: {ratio:.4f} [{lo:.4f}, {hi:.4f}], L0 {l0_from:.0f} '
            'to {l0_to:.0f}'.format(**out[-1]))
    return out


def ingredient(name: str) -> str|None:  # that a row has beside those of its kind
    return next((k for k in INGREDIENTS if f'-{k}-' in name), None)


def kind_of(d: dict) -> str: return 'fast thresholds' if d['train']['threshold_lr'] else 'to the letter'  # key of OURS


def against_without(d: dict, rest: list[dict]) -> list[dict]:  # rows of the report
    "A row with an ingredient at its own L0, against rows that have all else as it has, read between the nearest two"
    out = []
    for step in sorted(d['looks'], key=int):
        l0 = d['looks'][step]['test']['l0']
        two = around(rest, step, l0)
        if not two: continue
        found = gap([at_look(r, step) for r in (d, *two)])
        out.append(dict(row=d['name'], ingredient=ingredient(d['name']), step=int(step), l0=l0,
            between=[r['name'] for r in two]) | found)
        print('{row}, step {step}, L0 {l0:.1f}: {ratio:.4f} [{lo:.4f}, {hi:.4f}]'.format(**out[-1]))
    return out


def around(rows: list[dict], step: str, l0: float) -> list[dict]:  # the nearest below and above; [] if a side is empty
    def l0_of(d): return d['looks'][step]['test']['l0']
    there = [d for d in rows if step in d['looks']]
    below, above = [d for d in there if l0_of(d) <= l0], [d for d in there if l0_of(d) > l0]
    return [max(below, key=l0_of), min(above, key=l0_of)] if below and above else []


def gap(three: list[Result], draws: int = 2000) -> dict:  # a row and the two around it
    "Ratio of FVU at the row's own L0, the others read between them in logs; 95 % interval over documents"
    (y, p, q), (x, l, m) = (np.log(resampled(three, k, draws)).T for k in ('fvu', 'l0'))
    v = y - p - (q - p)*(x - l)/(m - l)
    iv = mean_intervals(v[:, None], effective_documents(three[0].arrays['sst']))
    lo, hi = np.exp(iv.both)
    return dict(ratio=float(np.exp(iv.mean)), lo=float(lo), hi=float(hi))


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s')
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('name', nargs='*', help='rows whose name begins so; none: all')
    a.add_argument('--list', action='store_true')
    a.add_argument('--report', action='store_true')
    a = a.parse_args()
    todo = {n: r for n, r in rows().items() if not a.name or any(n.startswith(b) for b in a.name)}
    if a.list:
        print('\n'.join(todo))
        raise SystemExit
    if a.report: raise SystemExit(report())
    acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=N_TRAIN, 
        settings=Settings(in_memory=False, progress=False, dtype='float32'))
    lm_eval = LMEval(acts.lm, acts.tokens['test'], acts.site, N_LM)
    for name, r in todo.items():
        path = OUT/f'{name}.json'
        if path.exists() and read_json(path)['done']: continue
        Row(name, acts, lm_eval, **r).run()
