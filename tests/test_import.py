"Importing the package is cheap: no notebook tooling, no plotting, no data sets, and transformers only when a model is loaded."
import json, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
lib = 'jumprelu_sae'
number = {p.stem[3:]: p.stem for p in (root/'nbs').glob('[0-9][0-9]_*.ipynb')}
# lower floors first, so that what is too heavy is laid to the module that brings it in
mods = [lib] + [f'{lib}.{m}' for m in sorted((p.stem for p in (root/lib).glob('*.py') if not p.stem.startswith('__')), key=lambda m: number.get(m, m))]
heavy = {'IPython', 'ipykernel', 'ipywidgets', 'notebook', 'nbconvert', 'nbformat', 'nbclient', 'nbdev', 'execnb', 'traitlets',
         'matplotlib', 'datasets', 'pyarrow', 'pandas', 'transformers', 'accelerate', 'gguf', 'sentencepiece', 'pytest'}

def too_heavy(name):
    top = name.partition('.')[0]
    return top in heavy or top.startswith('jupyter')

CHILD = '''
import importlib, json, sys
out = {}
for m in sys.argv[1:]:
    before = set(sys.modules); importlib.import_module(m); out[m] = sorted(set(sys.modules) - before)
print(json.dumps(out))
'''

@pytest.fixture(scope='module')
def pulled_in():
    "What each module is the first to import, in a fresh interpreter: dict of module -> names"
    r = subprocess.run([sys.executable, '-c', CHILD, *mods], cwd=root, capture_output=True, text=True, check=False)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.parametrize('mod', mods)
def test_import_is_light(pulled_in, mod):
    assert not sorted({n.partition('.')[0] for n in pulled_in[mod] if too_heavy(n)})

def test_import_prints_nothing():
    r = subprocess.run([sys.executable, '-c', 'import ' + ', '.join(mods)], cwd=root, capture_output=True, text=True)
    assert (r.returncode, r.stdout, r.stderr) == (0, '', '')
