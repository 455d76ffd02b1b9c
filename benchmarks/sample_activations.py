#!/usr/bin/env python3
"""A sample of real activations that is small enough to ship: nbs/data/resid9.safetensors, for the exercises.

    python benchmarks/sample_activations.py

1,000 training and 400 test activations of Gemma 3 270M at `resid.9` on the presidential addresses, evenly spaced over
the documents of their side, massive tokens left out, in bfloat16 and raw units, with the document of each and, for the
test side, the text that the model had read (ten tokens before, in the same row, and the token itself). It needs the
`embedded` extra; the activations are those of the laptop preset and are harvested if they are not in the cache.

Departures: rounded to bfloat16 (13_harvest measures what that costs), and 1,000 activations are far too few to train an
SAE that could be compared with the book's."""

from pathlib import Path

import torch
from jumprelu_sae.activations import activations
from jumprelu_sae.core import save_tensors

FILE = Path(__file__).resolve().parent.parent / 'nbs/data/resid9.safetensors'


def spaced(n, k):
    "k of n numbers, evenly spaced"
    return torch.arange(k) * n // k


def ordinary(acts, part, k):
    "k activations of a side that are not massive: numbers and what is kept of each"
    store = acts.stores[part]
    at = spaced(len(store), 2 * k)
    t = store.take(at)
    at = at[~acts.rule(t['x'].float())]
    at = at[spaced(len(at), k)]
    return at, store.take(at), store


def main():
    acts = activations('gemma3-270m', 'sotu', 'resid.9')
    tensors, meta = {}, dict(model='gemma3-270m', site='resid.9', corpus='sotu')
    for part, k in (('train', 1000), ('test', 400)):
        at, t, store = ordinary(acts, part, k)
        tensors |= {part: t['x'].bfloat16(), f'{part}_doc': t['doc'].short()}
        if part == 'test':
            meta['text'] = [store.text(int(i), acts.lm.tokenizer, before=10) for i in at]
            meta['docs'] = store.doc_ids
    save_tensors(FILE, tensors, meta)
    print(FILE, FILE.stat().st_size, 'bytes')


if __name__ == '__main__':
    main()
