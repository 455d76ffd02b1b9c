"""Importing the package is cheap: no notebook tooling, no plotting, no data sets, and transformers only when a model is
loaded."""
import json, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
lib = 'jumprelu_sae'
number = {p.stem[3:]: p.stem for p in (root/'nbs').glob('[0-9][0-9]_*.ipynb')}
# lower floors first, so that what is too heavy is laid to the module that brings it in
mods = [lib] + [
    f'{lib}.{m}'
    for m in sorted(
        (p.stem for p in (root / lib).glob('*.py') if not p.stem.startswith('__')), key=lambda m: number.get(m, m)
    )
]
heavy = {
    'IPython',
    'ipykernel',
    'ipywidgets',
    'notebook',
    'nbconvert',
    'nbformat',
    'nbclient',
    'nbdev',
    'execnb',
    'traitlets',
    'matplotlib',
    'datasets',
    'pyarrow',
    'pandas',
    'transformers',
    'accelerate',
    'gguf',
    'sentencepiece',
    'pytest',
}

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

# -- the door ----------------------------------------------------------------------------------------------------------
def child(code):
    "The output of some Python in a fresh interpreter"
    r = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    return r.stdout

def test_the_package_is_imported_in_no_time():
    "Nothing but the standard library, and under 20 ms (the best of five)"
    took = 'import sys, time; t = time.perf_counter(); import jumprelu_sae; print(time.perf_counter() - t, "torch" in sys.modules)'
    runs = [child(took).split() for _ in range(5)]
    assert {b for _, b in runs} == {'False'}
    assert min(float(a) for a, _ in runs) < .02

DOOR = {
    'load_lm',
    'activations',
    'train_sae',
    'load_sae',
    'push',
    'evaluate',
    'frontier',
    'SAE',
    'SAEConfig',
    'register',
    'Activations',
    'Preset',
    'Settings',
    'PAPER',
    'SHORT',
    'UserError',
    'ReLUSAE',
    'GatedSAE',
    'TopKSAE',
    'BatchTopKSAE',
    'JumpReLUSAE',
}

def test_every_public_name_is_there():
    import jumprelu_sae as js
    assert DOOR <= set(js.__all__) <= set(dir(js))
    assert sorted(js.__all__) == sorted(js._HOME)
    for name in js.__all__:
        assert getattr(js, name) is getattr(__import__(f'jumprelu_sae.{js._HOME[name]}', fromlist=['x']), name)

def test_editors_see_the_same_names():
    "What type checkers read is what is looked up at run time, and the package says that it is typed"
    import ast
    tree = ast.parse((root/lib/'__init__.py').read_text(encoding='utf-8'))
    block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, 'id', '') == 'TYPE_CHECKING')
    seen = {a.asname: n.module for n in block.body for a in n.names}
    import jumprelu_sae as js
    assert seen == js._HOME and (root/lib/'py.typed').exists()

@pytest.mark.parametrize('name', ['pull', 'no_such_thing'])
def test_a_name_that_is_not_there_says_so(name):
    import jumprelu_sae as js
    with pytest.raises(AttributeError, match=f"no attribute '{name}'.*train_sae"): getattr(js, name)
    with pytest.raises(ImportError): exec(f'from jumprelu_sae import {name}')

ORDERS = '''
import importlib, sys, types
m = sys.argv[1]
ways = ['import jumprelu_sae.{m}', 'from jumprelu_sae.{m} import UserError as u', 'importlib.import_module("jumprelu_sae.{m}")',
        'import jumprelu_sae as js; js.{m}', 'from jumprelu_sae import {m}', 'import jumprelu_sae.cli']
for first in ways:
    for second in ways[:5]:
        for n in [n for n in sys.modules if n.startswith('jumprelu_sae')]: del sys.modules[n]
        exec(first.format(m=m)); exec(second.format(m=m))
        import jumprelu_sae as js
        f = getattr(js, m)
        assert isinstance(f, types.FunctionType), (first, second, f)
        exec(f'from jumprelu_sae import {m} as g; assert f is g')
        exec(f'from jumprelu_sae.{m} import UserError as u; assert u is js.UserError')
        assert isinstance(sys.modules[f'jumprelu_sae.{m}'], types.ModuleType)
print('so')
'''

@pytest.mark.parametrize('m', ['activations', 'evaluate', 'frontier'])
def test_a_function_is_not_hidden_by_its_module(m):
    "Whatever is imported in whatever order, `js.evaluate` is the function, and the module is reached by `from`"
    r = subprocess.run([sys.executable, '-c', ORDERS, m], cwd=root, capture_output=True, text=True)
    assert (r.returncode, r.stdout) == (0, 'so\n'), r.stderr

def test_a_mended_function_stays_mended(monkeypatch):
    "Somebody may put a function of their own in the place (a test, say), and take it away"
    import jumprelu_sae as js
    was = js.evaluate
    monkeypatch.setattr(js, 'evaluate', len)
    assert js.evaluate is len
    monkeypatch.undo()
    assert js.evaluate is was

def test_python_dash_m():
    r = subprocess.run([sys.executable, '-m', lib, '--version'], cwd=root, capture_output=True, text=True)
    import jumprelu_sae as js
    assert (r.returncode, r.stdout) == (0, f'jumprelu_sae {js.__version__}\n')
