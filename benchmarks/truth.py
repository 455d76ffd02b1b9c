"""Which architecture finds the truth? Five architectures, five sparsities, three seeds, two widths, on activations
whose dictionary is known.

    python benchmarks/truth.py                # tuning of the learning rates, then all runs; goes on where it stopped
    python benchmarks/truth.py --width 256    # the runs of one width only

Settings are those of the short recipe (`recipe.SHORT`), but for the learning rate: three for each architecture, judged
by its own objective on held-out examples of another truth (seed 100), never by the truth found. A seed draws
everything: dictionary, order of examples and initial weights. SAEs of one architecture, width and seed are trained side
by side on the same examples. One thread; about 25 CPU-minutes. Writes results/evaluate/truth.json."""
import argparse, time, warnings
from pathlib import Path
import torch
from jumprelu_sae.core import fingerprint, read_json, run_env, write_json
from jumprelu_sae.recipe import SHORT
from jumprelu_sae.sae import make_sae
from jumprelu_sae.train import Trainer, train_saes
from jumprelu_sae.truth import TrueStream, truth_scores

OUT = Path(__file__).parent.parent/'results'/'evaluate'/'truth.json'
STREAM = dict(d_in=64, n_true=256, l0=8., batch=512, offset=5., n_groups=32, corr=.5, n_pairs=32, spread=.4, noise=.05)
STEPS, N_TEST, SEEDS, WIDTHS, TUNE_SEED = 1500, 20_480, (0, 1, 2), (256, 512), 100
LRS, TUNE_AT = (4e-3, 1e-2, 2.5e-2), dict(relu=.3, gated=.3, topk=8, batchtopk=8, jumprelu=8.)
GRID = dict( # what is compared, and each one's sparsities
    relu=(.05, .1, .2, .32, .5), gated=(.05, .1, .2, .32, .5), topk=(2, 4, 8, 16, 32), batchtopk=(2, 4, 8, 16, 32),
    jumprelu=(2., 4., 8., 16., 32.))


def recipe_of(arch: str) -> tuple[dict, dict]:  # its part, and the schedule of all
    return SHORT[arch], SHORT.schedule


def train(arch, width, settings, seed, lr):
    "SAEs of one architecture that differ in sparsity only; them, their stream, the settings, and seconds for each"
    r, schedule, t = *recipe_of(arch), time.process_time()
    stream = TrueStream(**STREAM, seed=seed)
    saes = {str(v): make_sae(SHORT.sae(arch, STREAM['d_in'], width, **{r['setting']: v}), seed) for v in settings}
    cfg = SHORT.train(arch, STEPS*STREAM['batch'], STREAM['batch'], lr=lr)
    train_saes(Trainer(saes, stream, cfg, path='dense'), progress=False)
    how = dict(sae=r['sae'], train=schedule | r['train'] | dict(lr=lr))
    return {v: saes[str(v)].eval() for v in settings}, stream, how, (time.process_time() - t)/len(settings)


def tune(arch, lr):
    "One run: its objective on held-out examples of a truth that no reported run meets"
    v = TUNE_AT[arch]
    saes, stream, how, s = train(arch, WIDTHS[0], (v,), TUNE_SEED, lr)
    with torch.no_grad(): t = saes[v].loss(stream.draw(N_TEST)[0])
    m = truth_scores(saes[v], stream, N_TEST)
    row = dict(arch=arch, lr=lr, setting=v, width=WIDTHS[0], seed=TUNE_SEED, objective=float(t['mse'] + t['sparsity']))
    return [row | how | dict(metrics=m, cpu_seconds=s)]


def sweep(arch, width, seed, lr):
    "One architecture at all its sparsities"
    saes, stream, how, s = train(arch, width, GRID[arch], seed, lr)
    def row(v, sae):
        return dict(arch=arch, width=width, setting=v, seed=seed, **how, metrics=truth_scores(sae, stream, N_TEST),
            cpu_seconds=s)
    return [row(v, sae) for v, sae in saes.items()]


def add(d, part, key, name, make):
    "Make rows unless they are there already, and save"
    if d[part].get(name, {}).get('key') == key: return d[part][name]['rows']
    rows = make()
    d[part][name] = dict(key=key, rows=rows)
    write_json(OUT, d | dict(env=run_env()))
    for r in rows:
        m = r['metrics']
        scores = f"L0 {m['l0']:6.2f}  FVU {m['fvu']:.4f}  mmc {m['mmc_true']:.3f}  F1 {m['f1']:.3f}"
        print(f"{name:28} {r['setting']:6g}  {scores}  {r['cpu_seconds']:.0f} s", flush=True)
    return rows


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--width', type=int, choices=WIDTHS, nargs='+', default=WIDTHS)
    p.add_argument('--tune-only', action='store_true', help='stop after the learning rates')
    a = p.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings('once', category=UserWarning)
    what = dict(stream=STREAM, steps=STEPS, n_test=N_TEST)
    d = read_json(OUT) if OUT.exists() else dict(format=1, command='python benchmarks/truth.py', tune={}, rows={})
    d |= what | dict(seeds=SEEDS,
        tuned_by="the architecture's own objective on held-out examples, least of three learning rates")
    best = {}
    for arch in GRID:
        rows = []
        for lr in LRS:
            key = fingerprint([what, *recipe_of(arch), TUNE_AT[arch], lr])
            rows += add(d, 'tune', key, f'{arch}, lr {lr:g}', lambda: tune(arch, lr))
        best[arch] = min(rows, key=lambda r: r['objective'])['lr']
    for width, seed in ((w, s) for w in a.width*(not a.tune_only) for s in SEEDS):
        for arch in GRID:
            key = fingerprint([what, *recipe_of(arch), GRID[arch], best[arch]])
            add(d, 'rows', key, f'{arch}, width {width}, seed {seed}', lambda: sweep(arch, width, seed, best[arch]))
