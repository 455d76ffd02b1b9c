"""tools/book.py: what it writes, what it refuses to let pass, and that the tree is as it writes it."""

import io, json, re, sys, tokenize
from pathlib import Path
import nbformat, pytest
from fastcore.nbio import nb2str
from nbdev.clean import clean_jupyter, clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'tools'))
import book
from book import Book, Stop

NBS = book.notebooks(ROOT)


# -- the tree ----------------------------------------------------------------------------------------------------------
def test_the_tree_is_as_the_tool_writes_it(capsys):
    assert book.main(['--check']) == 0, capsys.readouterr().err


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
def test_what_a_student_reads_fits_in_120_columns(path):
    long = []
    for c in book.read(path)['cells']:
        if c['cell_type'] == 'code' and not book.is_plumbing(c):
            lines = [l for l in c['source'].splitlines() if not l.startswith('#|')]
            long += [(c['id'], len(l)) for l in lines if len(l) > 120]
    assert not long


FOLDERS = ('tests', 'benchmarks', 'tools', 'docs')
PROGRAMS = [p for f in FOLDERS for p in sorted((ROOT / f).rglob('*.py'))]


@pytest.mark.parametrize('path', PROGRAMS, ids=lambda p: f'{p.parent.name}/{p.name}')
def test_programs_fit_in_120_columns(path):
    "Only a line that holds a long text in quotes, such as a command or a page's script, may be longer"
    source = path.read_text(encoding='utf-8')
    texts = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.STRING]
    pieces = [(t.start[0] + i, line) for t in texts for i, line in enumerate(t.string.splitlines())]
    excused = {n for n, line in pieces if len(line) > 80}
    assert not {n for n, line in enumerate(source.splitlines(), 1) if len(line) > 120} - excused


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
def test_warnings_stand_in_the_lesson(path):
    """In JupyterLab what goes to stderr is a red box: a hidden cell sends the library's warnings to the lesson's own
    text"""
    if path.parent.name == 'explore' or path.stem in ('index', 'glossary'):
        return  # nothing there calls what warns; `make test-lab` would notice
    plumbing = [c['source'] for c in book.read(path)['cells'] if c['cell_type'] == 'code' and book.is_plumbing(c)]
    assert any('logging.basicConfig(stream=sys.stdout' in s for s in plumbing)


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
def test_what_jupyterlab_saves_is_what_is_committed(path):
    "With the hook that `make lab` sets: counts, the kernel's long name, the language's version and `collapsed` go away"
    was = path.read_text(encoding='utf-8')
    nb = nbformat.reads(was, as_version=4)
    nb.metadata.kernelspec.display_name = 'Python 3 (ipykernel)'
    nb.metadata.language_info = dict(name='python', version='3.11.99', file_extension='.py')
    for i, c in enumerate(c for c in nb.cells if c.cell_type == 'code'):
        c.execution_count = i + 1
        if 'outputs_hidden' in c.metadata.get('jupyter', {}):
            c.metadata['collapsed'] = True
    model = dict(type='notebook', content=nb)
    clean_jupyter(path=str(path), model=model)
    assert nbformat.writes(model['content']) == was.rstrip('\n')


def test_every_notebook_is_in_the_index():
    index = ''.join(c['source'] for c in book.read(ROOT / 'nbs/index.ipynb')['cells'])
    linked = set(re.findall(r'\]\(([\w/]+)\.ipynb\)', index))
    assert {book.name(p, ROOT) for p in NBS} - {'index'} <= linked


# -- a book of three pages ---------------------------------------------------------------------------------------------
def code(source, outputs=()):
    return dict(cell_type='code', execution_count=None, metadata={}, outputs=list(outputs), source=source)


def md(source):
    return dict(cell_type='markdown', metadata={}, source=source)


ONE = [
    md('# One\n\n> Why?\n\nSee [two](02_two.ipynb) and $f[1](x)$.'),
    code('#| default_exp one'),
    code('#| export\nimport os\nfrom json import loads'),
    code('#| hide\nimport sys\nsys.path'),
    md('## A part\n\nword word'),
    code('1 + 1'),
    md('## Exercises\n\n**1.** Say it.'),
    code("def check(f):\n    assert f() == 3\n    print('right')"),
    md('<details><summary>Solution</summary>\n\n```python\ndef three(): return 3\n```\n</details>'),
    code("#| hide\ndef three(): return 3\ncheck(three)"),
]
TWO = [md('# Two\n\n> And?'), code('#| echo: false\nprint(1)'), code('#| code-fold: true\nprint(1)'), code('print(1)')]
PATHS = {'beginner': [Stop('01_one', 'why', until='Exercises'), Stop('02_two', 'and'), Stop('09_x', '', optional=True)]}
PLAY = {'01_one': ['explore/three']}


def write(path, cells):
    cells = [dict(c, id=f'{path.stem[-3:]}{i:05d}') for i, c in enumerate(cells)]
    nb = dict(cells=cells, metadata=dict(kernelspec=dict(name='other'), x=1), nbformat=4, nbformat_minor=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(book.text(nb), encoding='utf-8')


@pytest.fixture
def root(tmp_path, monkeypatch):
    write(tmp_path / 'nbs/index.ipynb', [md('# Book\n\n[one](01_one.ipynb)')])
    write(tmp_path / 'nbs/01_one.ipynb', ONE)
    write(tmp_path / 'nbs/02_two.ipynb', TWO)
    write(tmp_path / 'nbs/explore/three.ipynb', [md('# Three\n\nSliders.')])
    monkeypatch.setattr(Book.__init__, '__defaults__', (PATHS, PLAY))
    return tmp_path


def cells(root, n):
    return book.read(root / f'nbs/{n}.ipynb')['cells']


def test_writes_once(root, capsys):
    assert book.main(['--check'], root) == 1
    assert book.main([], root) == 0
    assert book.main(['--check'], root) == 0
    before = {p: p.read_text() for p in book.notebooks(root)}
    capsys.readouterr()
    assert book.main([], root) == 0
    assert capsys.readouterr().out == ''
    assert before == {p: p.read_text() for p in book.notebooks(root)}


def test_only_the_files_named(root):
    two = (root / 'nbs/02_two.ipynb').read_text()
    assert book.main([str(root / 'nbs/01_one.ipynb')], root) == 0
    assert (root / 'nbs/02_two.ipynb').read_text() == two
    assert book.OPEN in cells(root, '01_one')[0]['source']


def test_navigation(root):
    book.main([], root)
    first, *_, last = cells(root, '01_one')
    assert first['source'].startswith(f'# One\n\n{book.OPEN}\n\n[index](index.ipynb) · [02 Two →](02_two.ipynb)')
    assert "Beginner's path, stop 1 of 2, read up to “Exercises”; then [02 Two](02_two.ipynb)" in first['source']
    assert 'To play with: [Three](explore/three.ipynb)' in first['source']
    assert first['source'].endswith('> Why?\n\nSee [two](02_two.ipynb) and $f[1](x)$.')
    assert last['cell_type'] == 'markdown' and last['source'] == book.BLOCK.search(first['source'])[0].rstrip()
    assert '[← 01 One](01_one.ipynb)' in cells(root, '02_two')[0]['source']
    assert 'Goes with: [01 One](../01_one.ipynb)' in cells(root, 'explore/three')[0]['source']
    assert book.OPEN not in cells(root, 'index')[0]['source']


def test_off_the_path(root):
    write(root / 'nbs/03_off.ipynb', [md('# Off')])
    book.main([], root)
    assert 'skip it on a first reading' in cells(root, '03_off')[0]['source']


def test_navigation_follows(root):
    book.main([], root)
    write(root / 'nbs/015_no.ipynb', [md('# Not numbered as a notebook of the road')])
    write(root / 'nbs/03_new.ipynb', [md('# New')])
    assert book.main(['--check'], root) == 1
    book.main([], root)
    assert '[03 New →](03_new.ipynb)' in cells(root, '02_two')[-1]['source']
    assert sum(book.OPEN in c['source'] for c in cells(root, '02_two')) == 2


def test_collapsed(root):
    book.main([], root)
    hidden = {c['source'].splitlines()[-1]: c['metadata'] for c in cells(root, '01_one') if c['cell_type'] == 'code'}
    only = dict(jupyter=dict(source_hidden=True))
    both = dict(jupyter=dict(outputs_hidden=True, source_hidden=True))
    assert hidden['#| default_exp one'] == hidden['from json import loads'] == hidden['sys.path'] == only
    assert hidden['check(three)'] == both
    assert hidden['1 + 1'] == hidden["    print('right')"] == {}
    assert [c['metadata'] for c in cells(root, '02_two') if c['cell_type'] == 'code'] == [only, only, {}]


def test_no_longer_plumbing(root):
    book.main([], root)
    p = root / 'nbs/01_one.ipynb'
    p.write_text(p.read_text().replace('#| hide\\n', ''), encoding='utf-8')
    book.main([], root)
    assert [c['metadata'] for c in cells(root, '01_one') if c['source'].startswith('import sys')] == [{}]


def test_attempt(root):
    book.main([], root)
    sources = [c['source'] for c in cells(root, '01_one')]
    i = next(i for i, s in enumerate(sources) if s.startswith('<details>'))
    assert sources[i - 1] == '# Your attempt; then run check(three)'
    assert sum(s.startswith(book.ATTEMPT) for s in sources) == 1


@pytest.mark.parametrize(
    'solution, call',
    [
        ('#| hide\ncheck(3)', 'check(...)'),
        ('#| hide\ncheck(lambda x: x)', 'check(...)'),
        ('#| hide\ncheck(f, x=1)', 'check(...)'),
        ('#| hide\ncheck(f)', 'check(f)'),
        ('', 'check(...)'),
    ],
)
def test_the_attempt_does_not_give_the_answer_away(solution, call):
    assert book.attempt('def check(f): pass', solution) == f'# Your attempt; then run {call}'


def test_an_attempt_without_a_check():
    assert book.attempt('x = 1', '') == '# Your attempt'


def test_metadata_and_ids(root):
    book.main([], root)
    for p in book.notebooks(root):
        nb = book.read(p)
        assert nb['metadata'] == book.METADATA
        assert len({c['id'] for c in nb['cells']}) == len(nb['cells'])
        nbformat.validate(nbformat.reads(p.read_text(), as_version=4))


def test_nbdev_keeps_it(root):
    "nbdev-clean, with this project's settings, changes nothing of what the tool wrote"
    book.main([], root)
    allowed = get_config(ROOT).get('allowed_cell_metadata_keys')
    for p in book.notebooks(root):
        nb = json.loads(p.read_text())
        clean_nb(nb, allowed_cell_metadata_keys=allowed)
        assert nb2str(nb) == p.read_text()


# -- what must not pass ------------------------------------------------------------------------------------------------
def errors(root, capsys):
    book.main([], root)
    capsys.readouterr()
    assert book.main(['--check'], root) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize('link', ['[x](99_none.ipynb)', '<img src="images/no.png">', '![x](no.png)', '[`a`](no.md#h)',
    '[x](#no-heading)', '[x](01_one.ipynb#no-heading)'])
def test_a_dead_link(root, capsys, link):
    write(root / 'nbs/02_two.ipynb', [*TWO, md(f'See {link}.')])
    err = errors(root, capsys)
    assert 'leads nowhere' in err and '02_two.ipynb, cell two00004' in err


@pytest.mark.parametrize(
    'fine',
    [
        '`[x](no.ipynb)`',
        '```\n[x](no.ipynb)\n```',
        '$a[i](x)$',
        '[x](https://a.org/b)',
        '[x](#Two)',
        '[x](01_one.ipynb#A-part)',
    ],
)
def test_no_link(root, capsys, fine):
    write(root / 'nbs/02_two.ipynb', [*TWO, md(f'See:\n\n{fine}')])
    book.main([], root)
    assert book.main(['--check'], root) == 0, capsys.readouterr().err


def test_a_path_through_a_missing_notebook(root, capsys, monkeypatch):
    monkeypatch.setattr(Book.__init__, '__defaults__', ({'beginner': [Stop('05_none', '')]}, PLAY))
    assert 'stops at 05_none' in errors(root, capsys)


@pytest.mark.parametrize('stop', [Stop('01_one', '', until='Gone'), Stop('01_one', '', only='Gone')])
def test_a_path_to_a_missing_heading(root, capsys, monkeypatch, stop):
    monkeypatch.setattr(Book.__init__, '__defaults__', ({'beginner': [stop]}, PLAY))
    assert '“Gone”, no heading of 01_one' in errors(root, capsys)


def test_nothing_to_play_with(root, capsys, monkeypatch):
    monkeypatch.setattr(Book.__init__, '__defaults__', (PATHS, {'01_one': ['explore/none']}))
    assert 'explore/none' in errors(root, capsys)


def test_a_notebook_without_a_title(root, capsys):
    write(root / 'nbs/02_two.ipynb', [md('no title')])
    assert 'no title' in errors(root, capsys)


# -- reading time ------------------------------------------------------------------------------------------------------
def test_minutes(root):
    long = [
        md('# One\n' + 'word ' * 198),
        code('\n'.join(['a = 1'] * 50), [dict(output_type='display_data', data={'image/png': ''}, metadata={})]),
        md('## Part\n' + 'word ' * 398 + '\n### Sub\n' + 'word ' * 198),
        code('#| hide\n' + 'a = 1\n' * 500),
        md('## End\n' + 'word ' * 998),
    ]
    write(root / 'nbs/01_one.ipynb', long)
    b = Book(root)
    assert b.minutes(Stop('01_one', '')) == pytest.approx(1 + 2 + 0.5 + 2 + 1 + 5)
    assert b.minutes(Stop('01_one', '', until='Part')) == pytest.approx(3.5)
    assert b.minutes(Stop('01_one', '', only='Part')) == pytest.approx(3.5 + 3)


def test_paths_in_a_page(root, capsys):
    "Written between the two comments, and followed when a notebook is renamed"
    write(root / 'nbs/glossary.ipynb', [md(f'# Words\n\n{book.PATHS_OPEN}\nold\n{book.PATHS_CLOSE}\n\nafter')])
    book.main([], root)
    source = cells(root, 'glossary')[0]['source']
    assert '| 2 | [02_two](02_two.ipynb) | and | 5 |' in source and 'old' not in source and source.endswith('after')
    assert '[← Words](glossary.ipynb)' in cells(root, '01_one')[0]['source']
    (root / 'nbs/02_two.ipynb').unlink()
    assert book.main(['--check'], root) == 1
    assert 'stops at 02_two' in capsys.readouterr().err


def test_paths_are_printed(root, capsys):
    assert book.main(['--paths'], root) == 0
    out = capsys.readouterr().out
    assert '| 1 | [01_one](01_one.ipynb), up to “Exercises” | why | 5 |' in out
    assert '| | | together | 10 |' in out and '09_x' not in out
