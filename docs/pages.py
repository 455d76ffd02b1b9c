"""Make the site: `python docs/pages.py` writes docs/_build/html, which opens from the disk without a server.

It puts the pages together in docs/_build/src, in the layout of the repository so that every link of a notebook stays as
it is, and then calls Sphinx. Nothing is executed and nothing is imported from the library: the outputs on the pages are
those that are committed, and the reference is read from the source text. What it does to a notebook on its way:

- cells with `#| hide` or `#| default_exp` go, and so do the `#|` lines of the others;
- a cell that only imports is folded;
- `#| echo: false` keeps the output only;
- a notebook's name in backticks becomes a link to it;
- a figure gets the question in its heading as its alternative text.
"""

import ast
import io
import json
import re
import shutil
import sys
import tokenize
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / 'docs' / '_build'
LIB = 'jumprelu_sae'

PARTS = {  # first digit of a notebook's number -> heading in the contents
    '0': 'The method',
    '1': 'From a text to activations',
    '2': 'Training',
    '3': 'Judging',
    '4': 'A whole run',
    '5': 'The result',
}
FIRST = 'Before you begin'  # notebooks without a number, such as the glossary
FOLDERS = {'tutorials': 'Tutorials', 'explore': 'Sliders, to play with in JupyterLab'}  # others: their own name

# -- notebooks ---------------------------------------------------------------------------------------------------------
HIDDEN = re.compile(r'^\s*#\s*\|\s*(hide|default_exp)\b', re.M)
ECHO_FALSE = re.compile(r'^\s*#\s*\|\s*echo:\s*false', re.M)
DIRECTIVE = re.compile(r'^\s*#\s*\|.*\n?', re.M)
QUESTION = re.compile(r'''(?:title=|title\(|suptitle\(|heading=)\s*(['"])([^'"{}\n]+\?)\1''')
NOTEBOOK = re.compile(r'(?<![\[\w/`])`(?:nbs/)?(\d\d_\w+|glossary)(?:\.ipynb)?`(?![\]`])')
FENCE = re.compile(r'^(```|~~~).*?^\1[^\n]*$', re.M | re.S)
LINK = re.compile(r'(\]\()([^)\s#]*\.ipynb|(?=#))(#[^)\s]*)?\)')  # to a notebook, or to a heading of this one
PLAIN = {'image/png', 'image/svg+xml', 'text/html', 'text/markdown', 'text/plain', 'text/latex'}


def only_imports(source):
    "Does a cell import, and nothing else?"
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def anchor(text):
    "The name that Sphinx gives to a heading; JupyterLab's keeps capitals and other signs"
    return re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')


def outside_fences(change, text):
    "`change` for the text between fenced blocks"
    out, end = [], 0
    for m in FENCE.finditer(text):
        out += [change(text[end : m.start()]), m[0]]
        end = m.end()
    return ''.join([*out, change(text[end:])])


def with_links(text, names, up=''):
    "Names of notebooks in backticks become links; `names` are the notebooks that there are, `up` leads to their folder"

    def name(m):
        return f'[`{m[1]}`]({up}{m[1]}.ipynb)' if m[1] in names else m[0]

    def link(m):
        where = m[2].removesuffix('index.ipynb') + 'index.md' if m[2].split('/')[-1] == 'index.ipynb' else m[2]
        return f'{m[1]}{where}{"#" + anchor(m[3][1:]) if m[3] else ""})'

    return outside_fences(lambda t: LINK.sub(link, NOTEBOOK.sub(name, t)), text)


def outputs(cell):
    "Outputs without error streams and without widgets, which would ask a server elsewhere for their script"
    kept = []
    for o in cell.get('outputs', []):
        if o.get('name') == 'stderr':
            continue
        if 'data' in o:
            if any('widget' in kind for kind in o['data']):
                continue
            o = {**o, 'data': {k: v for k, v in o['data'].items() if k in PLAIN}}
        kept.append(o)
    return kept


def page(nb, names=(), up=''):
    "The notebook as a page: a new dict; `names` and `up` as in `with_links`"
    cells = []
    for c in nb['cells']:
        source, meta = ''.join(c['source']), {}
        if c['cell_type'] == 'code':
            if HIDDEN.search(source):
                continue
            tags = ['remove-input'] if ECHO_FALSE.search(source) else []
            question = QUESTION.search(source)
            source = DIRECTIVE.sub('', source).strip('\n')
            shown = outputs(c)
            if not source and not shown:
                continue
            if only_imports(source):
                tags.append('hide-input')
                meta['mystnb'] = {'code_prompt_show': 'Imports', 'code_prompt_hide': 'Imports'}
            if tags:
                meta['tags'] = tags
            if question:
                meta['mystnb'] = {'image': {'alt': question[2]}}
            cells.append({**c, 'source': source, 'outputs': shown, 'execution_count': None, 'metadata': meta})
        else:
            if c['cell_type'] == 'markdown':
                source = with_links(source, names, up)
            cells.append({**c, 'source': source, 'metadata': meta})
    metadata = {
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python', 'pygments_lexer': 'python'},
    }
    return {**nb, 'cells': cells, 'metadata': metadata}


def first_lines(nb):
    "Title and question of a notebook, from its first cell"
    text = ''.join(nb['cells'][0]['source'])
    title = re.search(r'^# (.+)$', text, re.M)
    question = re.search(r'^> (.+)$', text, re.M)
    return (title[1] if title else 'Untitled'), (question[1] if question else '')


# -- reference ---------------------------------------------------------------------------------------------------------
def comments(source):
    "dict of line number -> the comment on it, and the set of the lines that hold nothing else"
    found, alone = {}, set()
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.COMMENT:
            found[t.start[0]] = t.string.lstrip('# ').strip()
            if not t.line[: t.start[1]].strip():
                alone.add(t.start[0])
    return found, alone


def described(node, found, alone):
    "What stands in the comment behind each parameter, or on the lines above it, and behind the return type"
    a, said = node.args, {}
    maybe = [[v] if v else [] for v in (a.vararg, a.kwarg)]
    for arg in [*a.posonlyargs, *a.args, *maybe[0], *a.kwonlyargs, *maybe[1]]:
        last = (arg.annotation or arg).end_lineno
        words, line = [], arg.lineno - 1
        while line in alone and line > node.lineno:
            words.insert(0, found[line])
            line -= 1
        behind = found.get(last)
        if behind is None:  # the default may go on over more lines
            later = next((n for n in range(last, last + 4) if n in found and n not in alone), None)
            others = [o.lineno for o in ast.walk(a) if isinstance(o, ast.arg) and o.lineno > arg.lineno]
            behind = (
                found[later] if later and (not others or later < min(others)) and later < node.body[0].lineno else ''
            )
        if node.lineno != arg.lineno or node.body[0].lineno != arg.lineno:
            said[arg.arg] = ' '.join(filter(None, [*words, behind]))
    start = max([node.lineno, *(o.end_lineno for o in ast.walk(a) if isinstance(o, ast.arg))])
    after = [found[n] for n in range(start, node.body[0].lineno) if n in found and n not in alone]
    returns = ''
    if node.returns:
        returns = found.get(node.returns.end_lineno, '')
    elif after and start not in found:
        returns = after[-1]
    if returns and returns in said.values():
        returns = ''
    return {k: v for k, v in said.items() if v}, returns


def dashed(text):
    "Text for a page: signs that would begin markup are kept as they are"
    return re.sub(r'([*_<>\[\]$|\\])', r'\\\1', text)


def plain(text):
    "A docstring for a page: what is not in backticks is taken literally"
    return ''.join(part if part.startswith('`') else dashed(part) for part in re.split(r'(`[^`]*`)', text))


def one_by_one(tree):
    "`A, B = 1, 2` as two assignments, which autodoc2 sees"
    body = []
    for n in tree.body:
        target = n.targets[0] if isinstance(n, ast.Assign) else None
        if isinstance(target, ast.Tuple) and isinstance(n.value, ast.Tuple):
            body += [ast.Assign([t], v) for t, v in zip(target.elts, n.value.elts)]
        else:
            body.append(n)
    tree.body = body
    return tree


def documented(source):
    """Source of a module in which the comments behind parameters and fields stand in the docstrings, where autodoc2
    looks"""
    found, alone = comments(source)
    tree = one_by_one(ast.parse(source))
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        text = plain(ast.get_docstring(node) or '')
        if isinstance(node, ast.ClassDef):
            fields = {
                n.target.id: found.get(n.end_lineno, '')
                for n in node.body
                if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            }
            lines = [f'- `{k}`: {plain(v)}' for k, v in fields.items() if v]
        else:
            said, returns = described(node, found, alone)
            lines = [f':param {k}: {plain(v)}' for k, v in said.items()]
            lines += [f':returns: {plain(returns)}'] if returns else []
            text = text or (lines and plain((returns or node.name.replace('_', ' ').strip()).capitalize())) or ''
        text = '\n\n'.join(filter(None, [text, '\n'.join(lines)]))
        if not text:
            continue
        new = ast.Expr(ast.Constant(text))
        if ast.get_docstring(node) is not None:
            node.body[0] = new
        else:
            node.body.insert(0, new)
    return ast.unparse(ast.fix_missing_locations(tree)) + '\n'


def door(source):
    "dict of public name -> module, from the package's `__init__.py`"
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_MODULES':
            homes = {k.arg: ast.literal_eval(k.value) for k in node.value.keywords}
            return {name: module for module, names in homes.items() for name in names}
    return {}


# -- pages that are written here ---------------------------------------------------------------------------------------
def toctree(entries, caption='', hidden=True, depth=1):
    "A table of contents for Sphinx"
    options = [f':maxdepth: {depth}', *([':hidden:'] if hidden else []), *([f':caption: {caption}'] if caption else [])]
    return '\n'.join(['```{toctree}', *options, '', *entries, '```', ''])


def contents(books):
    "The page nbs/index: the book by its parts; `books` is dict of path under nbs/ -> (title, question)"
    out = ['# The book', '']
    out += ['Each notebook answers one question and rests only on those before it. The pages show the outputs that are']
    out += ['committed; to run them, `make lab` opens the same notebooks in JupyterLab.', '']
    groups = {}
    for path, said in books.items():
        folder = path.split('/')[0]
        head = FOLDERS.get(folder, folder.capitalize()) if '/' in path else PARTS.get(path[0], FIRST)
        groups.setdefault(head, []).append((path, *said))
    for head, rows in groups.items():
        out += [f'## {head}', '', '| notebook | its question |', '| --- | --- |']
        out += [f'| [{t}]({p}) | {q} |' for p, t, q in rows]
        out += ['', toctree([p.removesuffix('.ipynb') for p, *_ in rows], caption=head)]
    return '\n'.join(out)


def first_line(source, name):
    "Of the docstring of a function or class"
    for node in ast.parse(source).body:
        if getattr(node, 'name', None) == name:
            return plain((ast.get_docstring(node) or '').split('\n')[0])
    return ''


def reference(names, said, modules):
    "The page api: the names of the door with what `said` has of them, and every module with its notebook's question"
    out = ['# Reference', '', '## The door', '']
    out += ['What `import jumprelu_sae as js` offers. Everything else is reached by its module.', '']
    out += ['| name | what it is |', '| --- | --- |']
    out += [f'| {{py:obj}}`js.{n} <{LIB}.{m}.{n}>` | {said.get(n, "")} |' for n, m in sorted(names.items())]
    out += ['', '## Modules', '', '| module | its question | notebook |', '| --- | --- | --- |']
    out += [f'| [{m}](apidocs/{LIB}/{LIB}.{m}.md) | {q} | {nb} |' for m, q, nb in modules]
    return '\n'.join([*out, '', toctree([f'{m} <apidocs/{LIB}/{LIB}.{m}>' for m, *_ in modules])])


def write(path, text):
    "Only when it changes, so that Sphinx reads again only what changed"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        path.write_text(text, encoding='utf-8')


def linked_files(text, here, root):
    "Files of the repository `root` that a page links to or shows"
    for target in re.findall(r'\]\((?![a-z]+:|#)([^)\s#]+)', text) + re.findall(r'\bsrc="(?![a-z]+:)([^"]+)"', text):
        path = (here / target).resolve()
        if path.is_file() and path.is_relative_to(root) and path.suffix not in ('.ipynb', '.md'):
            yield path


def notebooks(folder):
    "Every notebook that becomes a page, in the book's order; the index is the site's own contents"
    left_out = folder / 'index.ipynb'
    there = [p for p in folder.rglob('[!_.]*.ipynb') if '.ipynb_checkpoints' not in p.parts and p != left_out]
    last = [*FOLDERS, *sorted({p.parent.name for p in there} - {folder.name, *FOLDERS})]

    def place(p):
        inside = p.parent != folder
        return inside, last.index(p.parent.name) if inside else p.stem[:2].isdigit(), p.name

    return sorted(there, key=place)


def assemble(src, root=ROOT):
    "Write the pages of the site into the folder `src`, and the modules for the reference beside it"
    root = Path(root).resolve()
    paths = notebooks(root / 'nbs')
    names, books, by_module, made = {p.stem for p in paths}, {}, {}, set()
    for p in paths:
        nb, where = json.loads(p.read_text(encoding='utf-8')), p.relative_to(root / 'nbs')
        books[where.as_posix()] = first_lines(nb)
        if p.stem[:2].isdigit():
            by_module[p.stem[3:]] = p.stem
        out = page(nb, names, '' if p.parent.name == 'nbs' else '../')
        write(src / 'nbs' / where, json.dumps(out, ensure_ascii=False, indent=1))
        made.add(src / 'nbs' / where)
        for c in out['cells']:
            if c['cell_type'] == 'markdown':
                made |= {(src / f.relative_to(root), f) for f in linked_files(c['source'], p.parent, root)}
    write(src / 'nbs' / 'index.md', contents(books))
    readme = (root / 'README.md').read_text(encoding='utf-8')
    made |= {(src / f.relative_to(root), f) for f in linked_files(readme, root, root)}
    extra = ['CHANGELOG', 'CONTRIBUTING']
    for name in extra:
        if (root / f'{name}.md').exists():
            write(src / f'{name}.md', with_links((root / f'{name}.md').read_text(encoding='utf-8'), names, 'nbs/'))
    there = [n for n in extra if (src / f'{n}.md').exists()]
    tree = toctree(['Book <nbs/index>', 'Reference <api>', *there])
    write(src / 'index.md', with_links(readme, names, 'nbs/') + '\n' + tree)
    modules, lib = [], src.parent / 'lib' / LIB
    for p in sorted((root / LIB).glob('*.py')):
        source = p.read_text(encoding='utf-8')
        if p.stem not in ('__main__', '_modidx'):
            write(lib / p.name, documented(source))
        if not p.stem.startswith('_'):
            question = (ast.get_docstring(ast.parse(source)) or '').split('\n')[0]
            nb = by_module.get(p.stem)
            modules.append((p.stem, question, f'[`{nb}`](nbs/{nb}.ipynb)' if nb else ''))
    modules.sort(key=lambda m: m[2])
    names = door((root / LIB / '__init__.py').read_text(encoding='utf-8'))
    said = {n: first_line((root / LIB / f'{m}.py').read_text(encoding='utf-8'), n) for n, m in names.items()}
    write(src / 'api.md', reference(names, said, modules))
    for pair in made:
        if isinstance(pair, tuple):
            to, file = pair
            to.parent.mkdir(parents=True, exist_ok=True)
            if not to.exists() or to.read_bytes() != file.read_bytes():
                shutil.copyfile(file, to)
    keep = {p for p in made if isinstance(p, Path)}
    for old in set((src / 'nbs').rglob('*.ipynb')) - keep:
        old.unlink()
    for old in {p.name for p in lib.glob('*.py')} - {p.name for p in (root / LIB).glob('*.py')}:
        (lib / old).unlink()
    return dict(pages=sorted(books.items()), modules=modules, names=sorted(names.items()), extra=there)


# -- the build ---------------------------------------------------------------------------------------------------------
def follow(shape, folder):
    """Every page shows the contents, and Sphinx writes again only pages that changed themselves: where pages, titles or
    modules came, went or changed, all pages are written again. Returns whether they are"""
    text, file = json.dumps(shape, indent=1), folder / 'shape.json'
    if file.exists() and file.read_text(encoding='utf-8') == text:
        return False
    file.unlink(missing_ok=True)  # until the pages are there: a build that is stopped begins again
    shutil.rmtree(folder / 'html', ignore_errors=True)
    return True


class Page(HTMLParser):
    "What a page refers to, and the places in it that can be referred to"

    def __init__(self, text):
        super().__init__()
        self.targets, self.places = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ('id', 'name'):
                self.places.add(value)
            elif key in ('href', 'src') and value and not re.match('[a-z]+:', value):
                self.targets.append(value)


def dead_links(html):
    "(number of references inside the site, list of 'page: reference' for those that lead nowhere)"
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in html.rglob('*.html') if '_static' not in p.parts}
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            file, _, place = target.partition('#')
            there = (path.parent / unquote(file.partition('?')[0])).resolve() if file else path
            lost = place and there in pages and unquote(place) not in pages[there].places
            if not there.exists() or lost:
                dead.append(f'{path.relative_to(html)}: {target}')
    return sum(len(p.targets) for p in pages.values()), dead


def build(root=ROOT, folder=BUILD):
    "Put the pages together and call Sphinx, for which a warning is an error, then follow every link: exit status"
    from sphinx.cmd.build import build_main

    shape, html = assemble(folder / 'src', root), folder.resolve() / 'html'
    again = follow(shape, folder)
    places = ['-c', str(ROOT / 'docs'), '-d', str(folder / 'doctrees'), str(folder / 'src'), str(html)]
    code = build_main(['-b', 'html', '-W', '--keep-going', '-q', *places])
    if code:
        return code
    links, dead = dead_links(html)
    for line in dead:
        print(f'dead link: {line}', file=sys.stderr)
    if again and not dead:
        write(folder / 'shape.json', json.dumps(shape, indent=1))
    print(f'{len(list(html.rglob("*.html")))} files, {links:,} links, {len(dead)} of them dead')
    return 1 if dead else 0


def main(args):
    if '--fresh' in args:
        shutil.rmtree(BUILD, ignore_errors=True)
    code = build()
    if code == 0:
        print(f'site: {(BUILD / "html" / "index.html").relative_to(ROOT)}')
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
