#!/usr/bin/env python3
"Judge every claim from the files in results/ and write results/claims.json (see nbs/45_claims.ipynb)"
from pathlib import Path
from jumprelu_sae.claims import write_claims

if __name__ == '__main__':
    for r in write_claims(Path(__file__).resolve().parent.parent/'results'):
        print(f"{r['id']:4} {r['verdict']:18} {r['wording'][:90]}")
