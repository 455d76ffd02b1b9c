"The library is exactly what the notebooks export, and the notebooks are clean and valid."
import shutil, subprocess, sys
from pathlib import Path
import nbformat, pytest
from fastcore.nbio import nb2str
from fastcore.xtras import loads
from nbdev.clean import clean_nb
from nbdev.config import get_config

root = Path(__file__).parent.parent
cfg = get_config(root)
lib = Path(cfg.lib_path).name
nbs = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def _py(d): return {p.relative_to(d).as_posix(): p.read_text(encoding='utf-8') for p in sorted(d.rglob('*.py'))}

@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    d = tmp_path_factory.mktemp('export')/root.name
    d.mkdir()
    for f in ('settings.ini', 'pyproject.toml', 'README.md'):
        if (root/f).exists(): shutil.copy(root/f, d)
    shutil.copytree(root/'nbs', d/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (d/lib).mkdir()
    for f in ('__init__.py', '__main__.py'):
        shutil.copy(root / lib / f, d / lib)  # written by hand; nbdev only keeps a version in the first
    subprocess.run([Path(sys.executable).parent/'nbdev-export'], cwd=d, check=True)
    return _py(d/lib)

def test_same_modules(exported): assert sorted(_py(root/lib)) == sorted(exported), 'run make export'

@pytest.mark.parametrize('mod', sorted(_py(root/lib)))
def test_library_is_what_notebooks_export(exported, mod):
    assert _py(root/lib)[mod] == exported.get(mod), 'run make export'

@pytest.mark.parametrize('nb', nbs, ids=lambda p: p.stem)
def test_notebook_is_clean(nb):
    txt = nb.read_text(encoding='utf-8')
    d = loads(txt)
    clean_nb(
        d, cfg.clear_all, allowed_cell_metadata_keys=cfg.get('allowed_cell_metadata_keys'), clean_ids=cfg.clean_ids
    )
    assert nb2str(d) == txt, f'run nbdev-clean --fname {nb}'

@pytest.mark.parametrize('nb', nbs, ids=lambda p: p.stem)
def test_notebook_is_valid(nb):
    nbformat.validate(nbformat.read(nb, as_version=4))
