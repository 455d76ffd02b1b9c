"""JupyterLab's settings for `make lab`: a notebook is cleaned before it is saved (no execution counts, no metadata of the
machine), so that opening one and looking around changes nothing for git."""

import json

from fastcore.nbio import dict2nb, nb2str
from nbdev.clean import clean_nb


def clean(model, **kwargs):
    "What `nbdev-clean` does, on what is about to be saved"
    if model['type'] == 'notebook' and model['content'] and model['content']['nbformat'] == 4:
        content = dict2nb(js=model['content'])
        clean_nb(content, allowed_cell_metadata_keys=['jupyter'])  # as pyproject.toml tells nbdev-clean
        model['content'] = json.loads(nb2str(content))  # without what fastcore adds to cells while it works


if 'get_config' in globals():  # Jupyter reads this file with that name set
    get_config().ContentsManager.pre_save_hook = clean  # noqa: F821
