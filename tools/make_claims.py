#!/usr/bin/env python3
"Judge every claim from results/: writes results/claims.json (see nbs/45_claims.ipynb) and the front page's figures"
from pathlib import Path
from types import SimpleNamespace
import matplotlib
matplotlib.use('agg')
from jumprelu_sae.claims import Evidence, write_claims
from jumprelu_sae.core import writing
from jumprelu_sae.dashboard import book, latents_figure
from jumprelu_sae.frontier import SUBJECT
from jumprelu_sae.reproduction import first_figure

if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    for r in write_claims(root/'results'):
        print(f"{r['id']:4} {r['verdict']:18} {r['wording'][:90]}")
    evidence = Evidence(root / 'results')
    rivals = [r for r in evidence.results('fair') if r.config['arch'] != SUBJECT]
    now = SimpleNamespace(results=rivals + evidence.results('fair-auxk'))  # rows T3a, T4a, TB1a
    figures = dict(
        findings=first_figure(now),
        latents=latents_figure(book(root / 'results' / 'latents' / 'book.json')),
    )
    for name, figure in figures.items():
        with writing(root/'nbs'/'images'/f'{name}.png') as p: figure.savefig(p, dpi=110, format='png')
