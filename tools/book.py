#!/usr/bin/env python3
"""What every notebook of the book has in common, written by one tool so that it cannot drift.

`python tools/book.py` brings all notebooks of nbs/ up to date, `python tools/book.py nbs/01_jumprelu.ipynb ...` only
these; `--check` writes nothing, lists what is not as it should be and exits with 1; `--paths` prints the reading paths
as Markdown, for the index. It may be run any number of times; `make export` before it, nothing after it.

- **Navigation.** Below the title and in a last cell of its own, between two comments: the notebook before, the index,
  the notebook after, the reading paths that it is on, and what to play with.
- **Plumbing is collapsed** in JupyterLab (cell metadata `jupyter.source_hidden`): cells with `#| hide`, `#| default_exp`,
`#| echo: false` or `#| code-fold: true`, and cells that only import. The hidden cell below a folded solution hides its
outputs too.
- **An empty cell for the reader's attempt** stands before every folded solution.
- **Metadata.** Exactly the kernel's name: what nbdev-clean leaves, and what JupyterLab saves again under `make lab`,
  which cleans on saving.
- **Reading paths** as tables with times, wherever a notebook has the two comments for them (the glossary has).
- **Links.** A relative link in a markdown cell that leads nowhere is a problem that `--check` reports."""

import argparse, ast, hashlib, json, re, sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPEN, CLOSE = '<!-- nav: written by tools/book.py -->', '<!-- /nav -->'
BLOCK = re.compile(re.escape(OPEN) + r'.*?' + re.escape(CLOSE) + r'\n*', re.S)
PATHS_OPEN, PATHS_CLOSE = '<!-- paths: written by tools/book.py -->', '<!-- /paths -->'
PATHS_BLOCK = re.compile(re.escape(PATHS_OPEN) + r'.*?' + re.escape(PATHS_CLOSE), re.S)
METADATA = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
ATTEMPT = '# Your attempt'
NUMBERED = re.compile(r'\d\d_\w+')
WORDS, LINES, FIGURES = 200, 25, 2  # read in one minute


# -- the reading paths -------------------------------------------------------------------------------------------------
@dataclass
class Stop:
    notebook: str  # its name without the ending
    why: str  # what the reader takes from it
    until: str = ''  # read up to this heading, without it
    only: str = ''  # read the opening cell and the section of this heading
    optional: bool = False  # no problem if the notebook is not there (yet)


PATHS = {
    'beginner': [
        Stop('glossary', 'what you should know, the words and the symbols'),
        Stop('01_jumprelu', 'what a threshold does that a bias cannot'),
        Stop('02_ste', 'how a step is trained at all', until='Who receives what?'),
        Stop('03_expected_loss', 'why that gradient is right', until='What the straight-through estimator sends'),
        Stop('04_sae', 'five architectures behind one interface', until='Do they do what the table says?'),
        Stop('30_evaluate', 'how to tell whether an SAE is faithful', until='Delta LM loss: does the model notice?'),
        Stop('21_recipe', 'what training needs, and what each part is worth', until='Train one, in one line'),
        Stop('31_frontier', 'the verdict', only='What was measured'),
        Stop('32_interpret', 'what latents look like'),
        Stop('36_dashboard', 'look at one yourself'),
        Stop('50_reproduction', 'the page with the answer', only='The answer'),
    ],
    'engineer': [
        Stop('00_core', 'units, streams, files that survive'),
        Stop('10_text', 'text to tokens, train to test'),
        Stop('11_lm', 'loading a model'),
        Stop('12_sites', 'where activations are read and replaced'),
        Stop('13_harvest', 'activations on disk'),
        Stop('14_stream', 'activations without a disk'),
        Stop('15_activations', 'all of that in one object'),
        Stop('04_sae', 'the register of architectures'),
        Stop('05_sparse', 'steps that skip exact zeros'),
        Stop('20_train', 'training, stopping, going on'),
        Stop('22_distributed', 'many processes'),
        Stop('23_trackers', 'watching a run'),
        Stop('42_probe', 'what a run will cost'),
        Stop('43_experiment', 'many runs'),
        Stop('51_cli', 'the same from the command line'),
    ],
    'user': [
        Stop('tutorials/first_sae', 'an SAE on your own model and texts, and whether it is any good'),
        Stop('tutorials/look_inside', 'what its latents are, and what that does not prove'),
        Stop('tutorials/saelens', 'the files, for others and from others'),
        Stop('tutorials/fine_tune', "somebody's SAE, trained further on your texts"),
        Stop('tutorials/own_architecture', 'an architecture of your own beside the five'),
    ],
}
PLAY = {  # notebook -> what goes with it
    '01_jumprelu': ['explore/threshold'],
    '02_ste': ['explore/bandwidth'],
    '03_expected_loss': ['explore/bandwidth'],
    '04_sae': ['tutorials/own_architecture'],
    '21_recipe': ['tutorials/first_sae'],
    '39_formats': ['tutorials/fine_tune'],
}


# -- notebooks as data -------------------------------------------------------------------------------------------------
def read(path):
    "A notebook with its sources as strings"
    nb = json.loads(Path(path).read_text(encoding='utf-8'))
    for c in nb['cells']:
        c['source'] = ''.join(c['source'])
    return nb


def text(nb):
    "The notebook as it stands in the file, byte for byte as nbformat and nbdev write it"
    cells = [c | {'source': c['source'].splitlines(True)} for c in nb['cells']]
    return json.dumps(nb | {'cells': cells}, sort_keys=True, indent=1, ensure_ascii=False) + '\n'


def notebooks(root):
    "Every notebook of the book: list of paths"
    found = sorted((root / 'nbs').rglob('*.ipynb'))
    return [p for p in found if not any(part.startswith(('.', '_')) for part in p.relative_to(root).parts)]


def name(path, root):
    "Its name below nbs/ without the ending, such as `explore/threshold`"
    return path.relative_to(root / 'nbs').with_suffix('').as_posix()


def prose(source):
    "Markdown without its code blocks"
    return re.sub(r'^(```|~~~).*?^\1', '', source, flags=re.M | re.S)


def title(nb):
    "The first heading"
    found = re.search(r'^# +(.+?)\s*$', prose(nb['cells'][0]['source']), re.M)
    return found[1] if found else ''


def directives(source):
    "The `#|` lines of a code cell: dict of name -> value"
    found = re.findall(r'^\s*#\s*\|\s*([\w-]+):?[ \t]*(.*?)\s*$', source, re.M)
    return dict(found)


class Book:
    "All notebooks in reading order, and what each has to link to"

    def __init__(self, root, paths=PATHS, play=PLAY):
        self.root, self.paths, self.play = root, paths, play
        self.files = {name(p, root): p for p in notebooks(root)}
        self.nbs = {n: read(p) for n, p in self.files.items()}
        self.titles = {n: title(nb) for n, nb in self.nbs.items()}
        first = [n for n in ('glossary',) if n in self.files]
        self.order = first + [n for n in self.files if NUMBERED.fullmatch(n)]

    def link(self, to, at, before='', after=''):
        "A Markdown link from notebook `at` to notebook `to`, with its number and title"
        number = to[:2] + ' ' if NUMBERED.fullmatch(to) else ''
        words = to if to == 'index' else number + self.titles[to]
        return f'[{before}{words}{after}]({"../" * at.count("/")}{to}.ipynb)'

    def stops(self, path):
        return [s for s in self.paths[path] if s.notebook in self.files]

    def beside(self, n):
        "The notebooks to play with that belong to `n`; for one of those, the notebooks that it belongs to"
        mine = [m for m in self.play.get(n, []) if m in self.files]
        return mine + [m for m, plays in self.play.items() if n in plays and m in self.files]

    def nav(self, n):
        "The navigation of notebook `n`, Markdown between its two comments"
        line = []
        if n in self.order:
            i = self.order.index(n)
            if i > 0:
                line.append(self.link(self.order[i - 1], n, before='← '))
            line.append(self.link('index', n))
            if i + 1 < len(self.order):
                line.append(self.link(self.order[i + 1], n, after=' →'))
        else:
            line.append(self.link('index', n))
        said = [' · '.join(line)]
        for path in self.paths:
            stops = self.stops(path)
            here = [i for i, s in enumerate(stops) if s.notebook == n]
            said += [self.on_path(path, stops, i, n) for i in here]
        if NUMBERED.fullmatch(n) and not any(s.notebook == n for s in self.stops('beginner')):
            said.append("Not on the beginner's path: skip it on a first reading.")
        beside = self.beside(n)
        if beside:
            said.append(('Goes with: ' if '/' in n else 'To play with: ') + ' · '.join(self.link(m, n) for m in beside))
        return f'{OPEN}\n\n' + '  \n'.join(said) + f'\n\n{CLOSE}'

    def on_path(self, path, stops, i, n):
        "One sentence: which stop of `path` this is, what to read of it, and the next"
        part = ''
        if stops[i].until:
            part = f', read up to “{stops[i].until}”'
        if stops[i].only:
            part = f', read “{stops[i].only}”'
        then = f'; then {self.link(stops[i + 1].notebook, n)}' if i + 1 < len(stops) else '; the end'
        return f"{path.capitalize()}'s path, stop {i + 1} of {len(stops)}{part}{then}"

    # -- time ----------------------------------------------------------------------------------------------------------
    def sections(self, n):
        "What there is to read, by section: list of (level, heading, minutes); what stands before a heading is ('', 0)"
        out = [[0, '', 0.0]]
        for c in self.nbs[n]['cells']:
            if c['cell_type'] == 'markdown':
                source = BLOCK.sub('', c['source'])
                source = re.sub(r'<details>.*?</details>', '', source, flags=re.S)
                for line in prose(source).splitlines():
                    heading = re.match(r'(#+) +(.+?)\s*$', line)
                    if heading:
                        out.append([len(heading[1]), heading[2], 0.0])
                    out[-1][2] += len(line.split()) / WORDS
            elif c['cell_type'] == 'code' and not is_plumbing(c):
                lines = [l for l in c['source'].splitlines() if l.strip() and not l.startswith('#|')]
                out[-1][2] += len(lines) / LINES
                figures = sum('image/png' in o.get('data', {}) for o in c['outputs'])
                out[-1][2] += figures / FIGURES
        return out

    def minutes(self, stop):
        "Reading time of a stop"
        parts = self.sections(stop.notebook)
        names = [h for _, h, _ in parts]  # a heading that is missing is named by the check of the paths
        if stop.until and stop.until in names: parts = parts[:names.index(stop.until)]
        if stop.only and stop.only in names:
            k = names.index(stop.only)
            end = next((j for j in range(k + 1, len(parts)) if parts[j][0] <= parts[k][0]), len(parts))
            parts = parts[:2] + parts[k:end]
        return sum(m for _, _, m in parts)

    def tables(self):
        return '\n\n'.join(self.table(path) for path in self.paths)

    def table(self, path):
        "One reading path as a Markdown table, in steps of five minutes so that a changed sentence changes nothing here"
        rows = [f'| stop | {path} | to learn | minutes |', '|--:|:--|:--|--:|']
        total = 0
        for i, s in enumerate(self.stops(path), 1):
            minutes = 5 * max(1, round(self.minutes(s) / 5))
            total += minutes
            part = f', up to “{s.until}”' if s.until else f', “{s.only}”' if s.only else ''
            rows.append(f'| {i} | [{s.notebook}]({s.notebook}.ipynb){part} | {s.why} | {minutes} |')
        rows.append(f'| | | together | {total} |')
        return '\n'.join(rows)

    # -- what is wrong -------------------------------------------------------------------------------------------------
    def problems(self):
        "What cannot be written but must be mended by hand: list of lines"
        out = []
        for path, stops in self.paths.items():
            for s in stops:
                if s.notebook not in self.files:
                    if not s.optional:
                        out.append(f'tools/book.py: the {path} path stops at {s.notebook}, which is not there')
                    continue
                headings = [h for _, h, _ in self.sections(s.notebook)]
                for h in filter(None, (s.until, s.only)):
                    if h not in headings:
                        out.append(f'tools/book.py: the {path} path names “{h}”, no heading of {s.notebook}')
        for n, plays in self.play.items():
            for m in (n, *plays):
                if m not in self.files:
                    out.append(f'tools/book.py: PLAY names {m}, which is not there')
        for n, path in self.files.items():
            if not self.titles[n]:
                out.append(f'nbs/{n}.ipynb: its first cell has no title')
            out += dead_links(self.nbs[n], path)
        return out


LINK = re.compile(r'(?:\]\(|\b(?:src|href)=["\'])([^)"\'\s]+)')


def anchors(nb):
    "What a link to a heading of `nb` says after #, as JupyterLab names it"
    cells = [prose(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown']
    return {h.replace(' ', '-') for s in cells for h in re.findall(r'^#+ +(.+?)\s*$', s, re.M)}


def dead_links(nb, path):
    "Relative links in the markdown cells of `nb`, a notebook at `path`, that lead nowhere: list of lines"
    out = []
    for c in nb['cells']:
        if c['cell_type'] != 'markdown':
            continue
        source = re.sub(r'\$\$.*?\$\$|`[^`\n]*`(?!\])|\$[^$\n]*\$', '', prose(c['source']), flags=re.S)
        for to in LINK.findall(source):
            if re.match(r'[a-z]+:', to):
                continue
            file, _, heading = to.partition('#')
            there = not file or (path.parent / file).exists()
            if there and heading and (not file or file.endswith('.ipynb')):
                there = heading in anchors(read(path.parent / file) if file else nb)
            if not there:
                out.append(f'{path.name}, cell {c["id"]}: the link to {to} leads nowhere')
    return out


# -- what is written ---------------------------------------------------------------------------------------------------
def is_solution(cell):
    "A folded solution of an exercise?"
    return cell['cell_type'] == 'markdown' and bool(re.search(r'<summary>\s*Solution', cell['source']))


def is_plumbing(cell):
    "A code cell that a reader of the lesson need not see?"
    d = directives(cell['source'])
    if 'hide' in d or 'default_exp' in d or d.get('echo') == 'false' or d.get('code-fold') == 'true':
        return True
    try:
        nodes = ast.parse(cell['source']).body
    except SyntaxError:
        return False
    return bool(nodes) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes)


def new_id(*parts):
    "A cell id that is the same on every run"
    return hashlib.sha256('/'.join(parts).encode()).hexdigest()[:8]


def attempt(check, solution):
    """The source of the cell for the reader's attempt: how to check it, from the cell `check` that defines the check
    and the hidden cell `solution` that calls it; values that would give the answer away are left out"""
    made = re.findall(r'^def (check\w*)\(', check, re.M)
    if not made:
        return ATTEMPT
    call = f'{made[-1]}(...)'
    for node in ast.parse(solution).body if solution else []:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == made[-1]:
            if all(isinstance(a, ast.Name) for a in node.value.args) and not node.value.keywords:
                call = ast.unparse(node.value)
            break
    return f'{ATTEMPT}; then run {call}'


def with_attempts(cells, n):
    "The cells, with one for the reader's attempt before every folded solution"
    out = []
    for i, c in enumerate(cells):
        if is_solution(c):
            last = out[-1] if out else None
            there = last is not None and last['cell_type'] == 'code' and not directives(last['source'])
            there = there and (not last['source'].strip() or last['source'].startswith(ATTEMPT))
            if there:
                out.pop()
            kept = last if there else dict(cell_type='code', execution_count=None, metadata={}, outputs=[])
            check = out[-1]['source'] if out and out[-1]['cell_type'] == 'code' else ''
            after = cells[i + 1] if i + 1 < len(cells) else None
            solution = after['source'] if after and 'hide' in directives(after['source']) else ''
            kept = kept | dict(id=kept.get('id') or new_id(n, 'attempt', c['id']), source=attempt(check, solution))
            out.append(kept)
        out.append(c)
    return out


def collapsed(cells):
    "The cells, with the plumbing collapsed and nothing else"
    out = []
    for i, c in enumerate(cells):
        meta = {k: v for k, v in c['metadata'].items() if k != 'jupyter'}
        if c['cell_type'] == 'code' and is_plumbing(c):
            meta['jupyter'] = dict(source_hidden=True)
            if i and is_solution(cells[i - 1]):
                meta['jupyter'] = dict(outputs_hidden=True, source_hidden=True)
        out.append(c | dict(metadata=meta))
    return out


def with_nav(cells, n, nav):
    "The cells, with `nav` below the title and in a last cell of its own"
    out = []
    last_id = new_id(n, 'nav')
    for c in cells:
        if c['cell_type'] == 'markdown' and OPEN in c['source']:
            rest = BLOCK.sub('', c['source'])
            if not rest.strip():
                last_id = c['id']
                continue
            c = c | dict(source=rest.rstrip('\n'))
        out.append(c)
    head, _, body = out[0]['source'].partition('\n')
    out[0] = out[0] | dict(source=f'{head}\n\n{nav}\n\n{body.lstrip()}'.rstrip('\n'))
    out.append(dict(cell_type='markdown', id=last_id, metadata={}, source=nav))
    return out


def applied(nb, n, book):
    "The notebook `nb` of name `n` as it should be"
    cells = with_attempts(nb['cells'], n)
    tables = f'{PATHS_OPEN}\n\n{book.tables()}\n\n{PATHS_CLOSE}'
    cells = [c | dict(source=PATHS_BLOCK.sub(lambda m: tables, c['source'])) for c in cells]
    if n != 'index':  # it becomes the README
        cells = with_nav(cells, n, book.nav(n))
    return nb | dict(cells=collapsed(cells), metadata=METADATA)


def stale(book, names=None):
    "The notebooks that are not as they should be: dict of name -> text to write"
    out = {}
    for n in names or book.files:
        new = text(applied(book.nbs[n], n, book))
        if new != book.files[n].read_text(encoding='utf-8'):
            out[n] = new
    return out


def main(argv=None, root=ROOT):
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('notebook', nargs='*', type=Path, help='only these files (default: all of nbs/)')
    p.add_argument('--check', action='store_true', help='write nothing; say what is not as it should be')
    p.add_argument('--paths', action='store_true', help='print the reading paths as Markdown')
    a = p.parse_args(argv)
    book = Book(root)
    if a.paths:
        print(book.tables())
        return 0
    names = [name(f.resolve(), root) for f in a.notebook]
    todo = stale(book, names)
    problems = [] if names else book.problems()
    for n, new in todo.items():
        if a.check:
            problems.append(f'nbs/{n}.ipynb is not what tools/book.py writes: run python tools/book.py')
        else:
            book.files[n].write_text(new, encoding='utf-8')
            print(f'nbs/{n}.ipynb')
    for line in problems:
        print(line, file=sys.stderr)
    return int(bool(problems))


if __name__ == '__main__':
    sys.exit(main())
