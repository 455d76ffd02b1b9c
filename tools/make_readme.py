"Write README.md from nbs/index.ipynb (what nbdev_readme does, without Quarto)."
import re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

MARK = '<!-- Generated from nbs/index.ipynb by tools/make_readme.py: edit that notebook -->'
LINK = re.compile(r'''(\]\(|\b(?:src|href)=")(?![a-z]+:|[#/])([^)"\s]+)''')

def from_root(md):
    "Links of a notebook in nbs/, as seen from the project's root: `x` is `nbs/x`, `../x` is `x`"
    return LINK.sub(lambda m: m[1] + (m[2][3:] if m[2].startswith('../') else 'nbs/' + m[2]), md)

class Nbdev(Preprocessor):
    "Drop `#| hide` cells, the source of `#| echo: false` ones and the `#|` lines of the others; links go from the root"
    def preprocess(self, nb, resources):
        nb.cells = [c for c in nb.cells if not re.search(r'^\s*#\s*\|\s*(hide|default_exp)\b', c.source, flags=re.M)]
        for c in nb.cells:
            if re.search(r'^\s*#\s*\|\s*echo:\s*false', c.source, flags=re.M):
                c.metadata['transient'] = {'remove_source': True}
            if c.cell_type == 'code': c.source = re.sub(r'^\s*#\s*\|.*\n?', '', c.source, flags=re.M)
            if c.cell_type == 'markdown': c.source = from_root(c.source)
        nb.metadata['language_info'] = {'name': 'python'}
        return nb, resources

def readme(root):
    "The text of README.md"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    body, res = MarkdownExporter(preprocessors=[Nbdev]).from_notebook_node(nb)
    assert not res['outputs'], 'README images: save them under nbs/images and link them'
    body = re.sub(r'[ \t]+$', '', body, flags=re.M)
    return f'{MARK}\n\n' + re.sub(r'\n{3,}', '\n\n', body).strip() + '\n'

if __name__ == '__main__':
    root = Path(__file__).resolve().parent.parent
    (root/'README.md').write_text(readme(root), encoding='utf-8')
