#!/usr/bin/env python3
"""A sample of real activations that is small enough to ship: nbs/data/resid9.safetensors, for the exercises.

    python benchmarks/sample_activations.py TRAIN_STORE TEST_STORE

The two arguments are the stores that `js.activations('gemma3-270m', 'sotu', 'resid.9')` leaves in the cache folder
under `stores/` (the laptop preset's). It takes 1,000 training and 400 test activations, evenly spaced over their store
and so over the documents of their side, without massive tokens (20 times the median squared norm of the training
sample), in bfloat16 and raw units, with the document of each.

Departures: rounded to bfloat16 (13_harvest measures what that costs), and 1,000 activations are far too few to train
an SAE that could be compared with the book's."""

import sys
from pathlib import Path

import torch
from jumprelu_sae.core import save_tensors
from jumprelu_sae.harvest import ActivationStore

FILE = Path(__file__).resolve().parent.parent / 'nbs/data/resid9.safetensors'


def spaced(n, k):
    "k of n numbers, evenly spaced"
    return torch.arange(k) * n // k


def main(folders):
    tensors, limit = {}, None
    for part, folder, k in zip(('train', 'test'), folders, (1000, 400)):
        store = ActivationStore(folder)
        t = store.take(spaced(len(store), 2 * k))
        squared = t['x'].float().square().sum(1)
        limit = limit or 20 * squared.median()
        at = (squared <= limit).nonzero()[:, 0]
        at = at[spaced(len(at), k)]
        tensors |= {part: t['x'][at].bfloat16(), f'{part}_doc': t['doc'][at].int()}
    FILE.parent.mkdir(exist_ok=True)
    save_tensors(FILE, tensors, dict(model='gemma3-270m', site='resid.9', corpus='sotu'))
    print(FILE.name, FILE.stat().st_size, 'bytes', {k: tuple(v.shape) for k, v in tensors.items()})


if __name__ == '__main__':
    main(sys.argv[1:])
