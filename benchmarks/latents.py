"""What do the latents of an SAE look like, and where does the look deceive? The data of `36_dashboard`.

    python benchmarks/latents.py SAE …    # folders of saved SAEs; the first gives the book's six latents

Writes results/latents/book.json (six latents by the rule of `spread_latents`), results/latents/<name>.json for each SAE
(by fifths of a latent's firings, on which tokens; sizes of activations; dense latents; how far promoted tokens stand
out) and results/latents/lens.json (from which layer on does the unembedding read what the model will say). What is
there with the same key is kept. One thread; a minute or two an SAE. No timing, no departures."""
import sys
from pathlib import Path

import numpy as np
import torch

from jumprelu_sae.activations import held_out
from jumprelu_sae.core import fingerprint, read_json, run_env, sha256, write_json
from jumprelu_sae.dashboard import dashboard, listed_ids, read_out, towards_output, write_book
from jumprelu_sae.interop import load_sae
from jumprelu_sae.sites import capture

OUT = Path(__file__).parent.parent/'results'/'latents'
N_TEST, AT_LEAST, FIFTHS, N_RANDOM, N_LENS, STEP = 32_768, 100, 5, 512, 128, 2
QUANTILES = (.05, .25, .5, .75, .95)
RULE = ('All latents that fired at least 50 times on the held-out text, sorted by how often; those at the quantiles 0, '
    '0.2, 0.4, 0.6, 0.8 and 1.')


def quantiles(v):
    "Of a list of numbers, by name"
    return {f'{q:g}': float(np.quantile(v, q)) for q in QUANTILES}


def same_tokens(f):
    "For each fifth of a latent's firings, strongest first: share on tokens that its 20 strongest firings hold too"
    out = []
    for l in np.flatnonzero(np.asarray(f.count) >= AT_LEAST):
        at, value = (np.asarray(o) for o in f.of(int(l)))
        token = np.asarray(f.token)[at[np.argsort(-value, kind='stable')]]
        familiar = np.isin(token, token[:20])
        out.append([float(p.mean()) for p in np.array_split(familiar[20:], FIFTHS)])
    return np.array(out)


def looks(sae, acts, d):
    "Numbers of one SAE"
    f, big = d.firings, np.flatnonzero(d.count >= AT_LEAST)
    familiar = same_tokens(f)
    half = [float((f.of(int(l))[1] < d.largest[l]/2).mean()) for l in big]
    dense = np.asarray(f.frequency) > .1
    sums = np.bincount(np.asarray(f.latent), weights=np.asarray(f.value), minlength=f.d_sae)
    g = torch.Generator().manual_seed(0)
    alive = torch.from_numpy(np.flatnonzero(d.count > 0))
    x = acts.part('test')['x'].float()
    x = x[~acts.rule(x)]
    i, j = torch.randint(len(x), (2, N_RANDOM), generator=g)
    arms = dict(isotropic=torch.randn(N_RANDOM, x.shape[1], generator=g),
        differences=x[i] - x[j])
    W_U, ids = acts.lm.model.get_output_embeddings().weight, listed_ids(acts.lm)
    z = {k: read_out(towards_output(acts.lm, acts.site, v), W_U, 1, ids).up_z[:, 0].numpy() for k, v in arms.items()}
    z = dict(latents=d.promoted_z()[d.count > 0]) | z
    return dict(n_tokens=f.n_counted, latents=f.d_sae, scored=len(big), alive=len(alive),
        l0=float(d.count.sum()/f.n_counted),
        familiar_by_fifth=[quantiles(v) for v in familiar.T], below_half=quantiles(half),
        dense=dict(latents=int(dense.sum()), firings=float(d.count[dense].sum()/d.count.sum()),
            activation=float(sums[dense].sum()/sums.sum())),
        promoted_z={k: quantiles(v) | dict(n=len(v)) for k, v in z.items()})


@torch.no_grad()
def lens(acts):
    "Share of tokens where the unembedding, put behind each layer, names the token that the model names in the end"
    lm, tokens = acts.lm, acts.tokens['test']
    rows = torch.arange(0, len(tokens), max(1, len(tokens)//8))[:8]
    layers = sorted({*range(0, lm.n_layers, STEP), lm.n_layers - 1})
    sites = [f'resid.{i}' for i in layers]
    got, mask = capture(lm, tokens.ids[rows], sites), tokens.mask[rows]
    pick = torch.randperm(int(mask.sum()), generator=torch.Generator().manual_seed(0))[:N_LENS]
    W_U = lm.model.get_output_embeddings().weight.float()
    hidden = [lm.final_norm(h[mask][pick]).float() for h in got.values()]
    says = []
    for h in hidden:
        best = torch.full((len(h),), -torch.inf)
        word = torch.zeros(len(h), dtype=torch.long)
        for k in range(0, len(W_U), 16_384):
            v, i = (h @ W_U[k:k+16_384].T).max(1)
            word = torch.where(v > best, i + k, word)
            best = torch.maximum(v, best)
        says.append(word)
    here = tokens.ids[rows][mask][pick]
    return dict(n=len(pick), layers=[dict(layer=i, says_the_end=float((w == says[-1]).float().mean()),
        repeats=float((w == here).float().mean())) for i, w in zip(layers, says)])


def made(path, key, make):
    "What `make` gives, kept under its key"
    if path.exists() and read_json(path).get('key') == key: return
    write_json(path, dict(key=key) | make() | dict(env=run_env('cpu')))
    print('written:', path.name, flush=True)


def main(folders):
    torch.set_num_threads(1)
    for k, folder in enumerate(folders):
        sae, name = load_sae(folder), Path(folder).name
        acts = held_out(sae, n_test=N_TEST)
        data = dict(weights=sha256(Path(folder)/'sae_weights.safetensors'), text=acts.tokens['test'].sha)
        key = fingerprint(data | dict(at_least=AT_LEAST, random=N_RANDOM))
        made(OUT/f'{name}.json', key, lambda: dict(name=name) | looks(sae, acts, dashboard(sae, acts)))
        if k: continue
        made(OUT/'lens.json', fingerprint([acts.lm.identity(), acts.tokens['test'].sha, N_LENS, STEP]),
            lambda: lens(acts))
        if not (OUT/'book.json').exists() or read_json(OUT/'book.json').get('key') != key:
            six = dashboard(sae, acts, 'spread', n_top=10, each=3)
            write_book(six, OUT/'book.json', RULE, f'python benchmarks/latents.py {name}', key)
            print('written: book.json', flush=True)


if __name__ == '__main__': main(sys.argv[1:])
