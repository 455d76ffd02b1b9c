"The package that others install: what is in the wheel, and that it works away from this folder."

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
lib = 'jumprelu_sae'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel of what is committed or would be: built in a copy, from no network"
    pytest.importorskip('setuptools')
    folder = tmp_path_factory.mktemp('wheel')
    try:
        listed = subprocess.run(
            ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('no git here: cannot tell which files belong to the tree')
    for name in filter(None, listed.split('\0')):
        if name.startswith((f'{lib}/', 'nbs/50_', 'results/')) or '/' not in name:
            if (root / name).is_file():
                (folder / 'src' / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / 'src' / name).write_bytes((root / name).read_bytes())
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    r = subprocess.run(
        [sys.executable, '-c', build, folder], cwd=folder / 'src', env=env, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr[-3000:]
    return next(folder.glob('*.whl'))


def test_wheel_carries_report_evidence_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    committed = {f'{lib}/{p.relative_to(root).as_posix()}' for p in (root / 'results').rglob('*.json')}
    assert {f'{lib}/py.typed', f'{lib}/report.ipynb', f'{lib}/results/claims.json'} <= names
    assert committed <= names
    modules = {f'{lib}/{p.name}' for p in (root / lib).glob('*.py')}
    assert modules <= names
    strangers = [n for n in names if not n.startswith((f'{lib}/', f'{lib}-'))]
    assert not strangers, 'a wheel must not put anything beside the package'
    assert wheel.stat().st_size < 5_000_000


def test_installed_package_works_elsewhere(wheel, tmp_path):
    "Unpacked as an installer would, imported from another folder: the door, the command, the report's notebook"
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    code = (
        'import jumprelu_sae as js, jumprelu_sae.cli as cli, jumprelu_sae.reproduction as r, pathlib, sys\n'
        'assert pathlib.Path(js.__file__).is_relative_to(sys.argv[1]), js.__file__\n'
        'assert js.train_sae and js.SAE and js.load_sae\n'
        'assert r.report_source().is_relative_to(sys.argv[1]), r.report_source()\n'
        "sys.exit(cli.main(['presets']))\n"
    )
    env = dict(os.environ, PYTHONPATH=str(tmp_path / 'site'))
    r = subprocess.run(
        [sys.executable, '-c', code, tmp_path], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr
    assert 'laptop' in r.stdout
