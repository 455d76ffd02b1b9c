"""JupyterLab's settings for `make lab`: a notebook is cleaned before it is saved (no execution counts, no metadata of
the machine), so that opening one and looking around changes nothing for git."""

import json
import sys
from pathlib import Path

from fastcore.nbio import dict2nb, nb2str
from nbdev.clean import clean_nb

sys.path.insert(0, str(Path(__file__).parent))
from book import is_solution  # noqa: E402


def hide_solutions_again(cells):
    "Running a cell shows its outputs; those below a folded solution are hidden when the notebook is opened again"
    for before, c in zip(cells, cells[1:]):
        folded = c['metadata'].get('jupyter', {})
        if folded.get('source_hidden') and is_solution(before | dict(source=''.join(before['source']))):
            folded['outputs_hidden'] = True


def clean(model, **kwargs):
    "What `nbdev-clean` does, on what is about to be saved"
    if model['type'] == 'notebook' and model['content'] and model['content']['nbformat'] == 4:
        content = dict2nb(js=model['content'])
        clean_nb(content, allowed_cell_metadata_keys=['jupyter'])  # as pyproject.toml tells nbdev-clean
        model['content'] = json.loads(nb2str(content))  # without what fastcore adds to cells while it works
        hide_solutions_again(model['content']['cells'])


if 'get_config' in globals():  # Jupyter reads this file with that name set
    get_config().ContentsManager.pre_save_hook = clean  # noqa: F821
