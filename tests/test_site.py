"""The site: what docs/pages.py does to a notebook and to a module, and, where Sphinx is installed, a small site in a
browser."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
docs = root / 'docs'
sys.path.insert(0, str(docs))
import pages  # noqa: E402


def cell(source, kind='code', outputs=()):
    c = dict(cell_type=kind, id=f'{abs(hash(source)) % 16**8:08x}', metadata={}, source=source)
    if kind == 'code':
        c |= dict(outputs=list(outputs), execution_count=3)
    return c


def notebook(*cells):
    return dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)


def stream(name, text):
    return dict(output_type='stream', name=name, text=text)


def display(**data):
    return dict(output_type='display_data', metadata={}, data={k.replace('_', '/', 1): v for k, v in data.items()})


WIDGET = dict(output_type='display_data', metadata={}, data={'application/vnd.jupyter.widget-view+json': {}})
LONG = '$$' + ' + '.join('abcdefghijklmnopqrstuvwxyz') + r' \tag{8}$$'
TINY = notebook(
    cell(
        '# A title\n\n> Which question?\n\n'
        'See `02_two` and `99_none`, and [the list](index.ipynb#The-method), [above](#A-title).',
        'markdown',
    ),
    cell('#| default_exp one'),
    cell('#| export\nimport math\nfrom pathlib import Path'),
    cell('#| hide\nassert secret'),
    cell('#| export\ndef f(x):\n    return math.sqrt(x)'),
    cell("#| echo: false\nprint('shown')", outputs=[stream('stdout', 'shown\n'), stream('stderr', 'careful\n')]),
    cell("ax.set(title='How fast does it grow?')", outputs=[display(image_png='QUJD', text_plain='<Figure>')]),
    cell('slider()', outputs=[WIDGET]),
    cell(LONG, 'markdown'),
    cell('The rule is\n\n$$a < b \\tag{7}$$\n\n```python\n# `02_two` stays as it is in code\n```', 'markdown'),
)


# -- the transform -----------------------------------------------------------------------------------------------------
def test_page_drops_what_a_reader_skips():
    out = pages.page(TINY, {'02_two'})['cells']
    code = [c for c in out if c['cell_type'] == 'code']
    text = '\n'.join(c['source'] for c in out)
    assert '#|' not in text and 'secret' not in text and 'default_exp' not in text
    assert [c['metadata'].get('tags') for c in code] == [['hide-input'], None, ['remove-input'], None, None]
    assert [o.get('name') for o in code[2]['outputs']] == ['stdout'], 'error streams are not shown'
    assert code[3]['metadata']['mystnb']['image']['alt'] == 'How fast does it grow?'
    assert code[4]['outputs'] == [], 'a widget would fetch its script'


def test_page_leaves_the_notebook_as_it_is():
    before = json.dumps(TINY)
    pages.page(TINY, {'02_two'})
    assert json.dumps(TINY) == before


def test_names_in_backticks_become_links():
    first, *_, last = (c['source'] for c in pages.page(TINY, {'02_two'}, '../')['cells'])
    assert '[`02_two`](../02_two.ipynb)' in first
    assert '`99_none`' in first and '99_none.ipynb' not in first
    assert '(index.md#the-method)' in first and '[above](#a-title)' in first
    assert '# `02_two` stays' in last
    linked = '[`02_two`](02_two.ipynb) and [`x`](y) `02_two`'
    assert pages.with_links(linked, {'02_two'}).count('](02_two.ipynb)') == 2, 'a link is not linked again'


@pytest.mark.parametrize('nb', sorted((root / 'nbs').rglob('[!_.]*.ipynb')), ids=lambda p: p.stem)
def test_every_notebook_becomes_a_page(nb):
    if '.ipynb_checkpoints' in nb.parts:
        pytest.skip('a copy that JupyterLab made')
    out = pages.page(json.loads(nb.read_text(encoding='utf-8')), {p.stem for p in (root / 'nbs').glob('*.ipynb')})
    assert out['cells'] and not [
        c for c in out['cells'] if re.search(r'^\s*#\s*\|', c['source'], re.M) and c['cell_type'] == 'code'
    ]
    for c in out['cells']:
        if c['cell_type'] == 'markdown':
            prose = pages.FENCE.sub('', c['source'])
            targets = re.findall(r'(?<!`)\]\((?![a-z]+:|#)([^)\s#]+\.\w+)[)#]', prose)
            lost = [
                t
                for t in targets
                if not (nb.parent / t).exists() and not (nb.parent / t).with_suffix('.ipynb').exists()
            ]
            assert not lost, f'{nb.name} links to what is not there'


MODULE = '''
"What is it?"
import math
LOW, HIGH = 1, 2

def f(
    x: int, # how many
    # a comment of its own line
    y: float=2., # in nats, *not* bits
    *rest: str, # the others
) -> float: # the sum
    "Adds $x$ to `y_1`"
    return x + y

def g(x): return x

class C:
    "A record"
    size: int = 3 # of it
'''


def test_comments_behind_parameters_reach_the_reference():
    out = pages.documented(MODULE)
    space = {}
    exec(out, space)
    assert space['f'].__doc__.split('\n') == [
        r'Adds \$x\$ to `y_1`',
        '',
        ':param x: how many',
        r':param y: a comment of its own line in nats, \*not\* bits',
        ':param rest: the others',
        ':returns: the sum',
    ]
    assert space['g'].__doc__ is None
    assert '- `size`: of it' in space['C'].__doc__
    assert 'LOW = 1\nHIGH = 2' in out, 'autodoc2 sees no names in a tuple'


@pytest.mark.parametrize('module', sorted(root.glob('jumprelu_sae/[!_]*.py')), ids=lambda p: p.stem)
def test_every_module_can_be_documented(module):
    source = module.read_text(encoding='utf-8')
    compile(pages.documented(source), module.name, 'exec')


def test_door_is_found():
    names = pages.door((root / 'jumprelu_sae/__init__.py').read_text(encoding='utf-8'))
    assert names['train_sae'] == 'recipe' and names['SAE'] == 'sae'


def test_equations_are_drawn_by_files_that_are_here():
    conf = (docs / 'conf.py').read_text(encoding='utf-8')
    assert 'http' not in conf
    for name in re.findall(r"'([\w./]+\.(?:css|js))'", conf):
        assert (docs / '_static' / name).is_file(), name
    css = docs / '_static/katex/katex.min.css'
    fonts = re.findall(r'url\(([^)]+)\)', css.read_text(encoding='utf-8'))
    assert fonts and not [f for f in fonts if not (css.parent / f).is_file()]
    assert (css.parent / 'LICENSE').read_text(encoding='utf-8').startswith('The MIT License')


def test_nothing_on_the_site_leads_nowhere(tmp_path):
    "All notebooks are pages, and what a page links to is a page or a file beside it: found without Sphinx"
    src = tmp_path / 'src'
    pages.assemble(src)
    wanted = {p.relative_to(root) for p in (root / 'nbs').rglob('[!_.]*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert wanted - {p.relative_to(src) for p in src.rglob('*.ipynb')} == {Path('nbs/index.ipynb')}
    contents = (src / 'nbs/index.md').read_text(encoding='utf-8')
    lost = []
    for file in [*src.rglob('*.md'), *src.rglob('*.ipynb')]:
        text = file.read_text(encoding='utf-8')
        if file.suffix == '.ipynb':
            assert f'({file.relative_to(src / "nbs").as_posix()})' in contents, 'not in the contents'
            text = '\n'.join(c['source'] for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
        prose = pages.outside_fences(
            lambda t: re.sub(r'`[^`]*`|\$\$.*?\$\$', '', t, flags=re.S), pages.FENCE.sub('', text)
        )
        for target in re.findall(r'\]\((?![a-z]+:|#)([^)\s#]+)', prose):
            if not (file.parent / target).exists() and 'apidocs/' not in target:
                lost.append(f'{file.relative_to(src)} links to {target}')
    assert not lost


# -- a small site, where there is Sphinx -------------------------------------------------------------------------------
def sphinx_python():
    "An interpreter that has what `make docs` installs: this one, or that of .venv-docs"
    for python in (sys.executable, root / '.venv-docs/bin/python'):
        try:
            found = subprocess.run(
                [python, '-c', 'import sphinx, myst_nb, autodoc2, pydata_sphinx_theme, sphinx_copybutton']
            )
        except OSError:
            continue
        if found.returncode == 0:
            return python


PYTHON = sphinx_python() if shutil.which('git') else None
BUILD = 'import sys, pathlib; sys.path.insert(0, sys.argv[1]); import pages; p = pathlib.Path(sys.argv[2]);'
BUILD += "sys.exit(pages.build(p, p/'out'))"


def project(folder, text=''):
    "A project of two notebooks and one module"
    for name in ('nbs', 'jumprelu_sae'):
        (folder / name).mkdir(parents=True)
    (folder / 'README.md').write_text('# Home\n\nThe book begins with `01_one`.\n', encoding='utf-8')
    (folder / 'jumprelu_sae/one.py').write_text('"What?"\n__all__ = ["f"]\n' + MODULE, encoding='utf-8')
    (folder / 'jumprelu_sae/__init__.py').write_text('"All"\n_MODULES = dict(one=("f",))\n', encoding='utf-8')
    two = notebook(cell(f'# Two\n\n> Why not?\n\nAn equation $x_1$. {text}', 'markdown'))
    for name, nb in (('01_one', TINY), ('02_two', two)):
        (folder / f'nbs/{name}.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    return folder


@pytest.mark.skipif(PYTHON is None, reason='no Sphinx: it comes with `make docs`')
def test_dead_link_is_an_error(tmp_path):
    folder = project(tmp_path, 'See [nothing](03_three.ipynb).')
    r = subprocess.run([PYTHON, '-c', BUILD, docs, folder], capture_output=True, text=True)
    assert r.returncode and '03_three' in r.stderr


@pytest.mark.skipif(PYTHON is None, reason='no Sphinx: it comes with `make docs`')
def test_a_new_page_reaches_the_contents_of_every_other(tmp_path):
    "Sphinx alone writes again only what changed; a page that goes takes its place in the contents with it"
    folder = project(tmp_path)

    def built():
        r = subprocess.run([PYTHON, '-c', BUILD, docs, folder], capture_output=True, text=True)
        assert r.returncode == 0 and 'links, 0 of them dead' in r.stdout, r.stderr
        pages_now = sorted((folder / 'out/html/nbs').glob('0*.html'))
        return {p.stem: ('Three' in p.read_text(encoding='utf-8'), p.stat().st_mtime_ns) for p in pages_now}

    three, first = folder / 'nbs/03_three.ipynb', built()
    assert built() == first, 'where nothing changed, nothing is written'
    three.write_text(json.dumps(notebook(cell('# Three\n\n> What else?', 'markdown'))), encoding='utf-8')
    assert [has for has, _ in built().values()] == [True, True, True]
    three.unlink()
    assert {k: has for k, (has, _) in built().items()} == {'01_one': False, '02_two': False}


def test_dead_links_are_found_in_the_finished_pages(tmp_path):
    (tmp_path / 'a b.html').write_text(
        '<h1 id="top">A</h1><pre>href="x.html"</pre><a href="b.html#there">', encoding='utf-8'
    )
    good = '<a name="there"></a><a href="a%20b.html?q=1#top"><a href="#there"><a href="https://x.org/y"><img src="gone.png">'
    (tmp_path / 'b.html').write_text(good + '<a href="a%20b.html#bottom">', encoding='utf-8')
    links, dead = pages.dead_links(tmp_path)
    assert links == 5 and sorted(dead) == ['b.html: a%20b.html#bottom', 'b.html: gone.png']


@pytest.mark.browser
@pytest.mark.skipif(PYTHON is None, reason='no Sphinx: it comes with `make docs`')
def test_site_works_from_the_disk(tmp_path, browser):
    folder = project(tmp_path)
    r = subprocess.run([PYTHON, '-c', BUILD, docs, folder], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    html, asked, said = folder / 'out/html', [], []
    page = browser.new_page(viewport={'width': 390, 'height': 844})
    page.on('request', lambda q: None if q.url.startswith(('file:', 'data:')) else asked.append(q.url))
    theme = 'Got invalid theme mode'  # what the theme says at a first visit, before it has chosen light or dark
    page.on('console', lambda m: said.append(m.text) if m.type == 'error' and theme not in m.text else None)
    for name in ('index', 'nbs/01_one', 'nbs/index', 'api', 'apidocs/jumprelu_sae/jumprelu_sae.one'):
        page.goto(f'file://{html}/{name}.html', timeout=120_000)
        wide = page.evaluate('document.documentElement.scrollWidth - window.innerWidth')
        assert wide <= 0, f'{name} is wider than a phone'
    assert 'how many' in page.inner_text('article')
    page.goto(f'file://{html}/nbs/01_one.html')
    assert page.locator('.katex').count() and not page.locator('.katex-error').count()
    long = page.locator('div.math.tight .katex-tag')
    assert long.count() == 1, 'the number of a long equation stands behind it'
    assert long.evaluate('tag => getComputedStyle(tag).position') == 'static'
    assert page.locator('div.math:not(.tight) .katex-tag').count() == 1
    assert page.locator('img[alt="How fast does it grow?"]').count() == 1
    page.goto(f'file://{html}/search.html?q=equation')
    page.wait_for_selector('#search-results li a', timeout=60_000)
    assert 'Two' in page.inner_text('#search-results')
    page.close()
    assert not asked and not said
