"""What happens when the selection ends, with the pre-activation loss and without it? 8,192 latents at L0 = 16.

    python benchmarks/switch.py

The SHORT recipe begins JumpReLU as TopK and lets go after half the run; from then on the thresholds decide, and, until
2026-11-29, a loss that lifts dead latents acted. Two runs of `wide.py`'s settings there (seed 1), which differ in that loss alone: L0,
the error and the dead latents every five steps. Writes results/fair-auxk/switch.json."""
from dataclasses import asdict, replace

from auxk_only import AuxKOnly
from fair import MAIN, N, N_TRAIN, as_it_was
from one_run import HOW

from jumprelu_sae.activations import activations
from jumprelu_sae.core import Settings, run_env, write_json
from jumprelu_sae.recipe import plan_sae, train_plans

WIDTH, L0, SEED, EVERY = 8192, 16, 1, 5


def run(acts, dead_coef: float) -> dict:  # settings, and rows of step, error, L0, dead latents
    "One run; its history"
    settings = as_it_was('jumprelu') | dict(dead_coef=dead_coef) | MAIN.winner('jumprelu', L0)['settings']
    plan = plan_sae('jumprelu', 640, N, WIDTH, L0, 'short', SEED, **settings)
    plan = replace(plan, train=replace(plan.train, log_every=EVERY))
    kept = {}
    train_plans([plan], acts, None, Settings(progress=False, threads=1), after_step=lambda tr: kept.update(tr.history))
    [history] = kept.values()
    rows = [dict(step=step, mse=mse, l0=l0, dead=dead) for step, _, mse, l0, dead, *_ in history]
    print(f'dead_coef {dead_coef:g}:', rows[-1], flush=True)
    return dict(dead_coef=dead_coef, sae=asdict(plan.cfg), train=asdict(plan.train), rows=rows)


if __name__ == '__main__':
    acts = activations('gemma3-270m', 'sotu', site='resid.9', n_train=N_TRAIN, settings=HOW)
    runs = [run(acts, c) for c in (.01, 0.)]
    about = dict(format=1, command='python benchmarks/switch.py', latents=WIDTH, l0=L0, seed=SEED, env=run_env())
    write_json(AuxKOnly().study.out/'switch.json', about | dict(runs=runs))
