"The package that others install: what is in the wheel, and that it works away from this folder."

import importlib.util
import json
import os
import shutil
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
    read = (p for p in (root / 'results').rglob('*.json') if p.parent.name not in ('runs', 'arms'))
    committed = {f'{lib}/{p.relative_to(root).as_posix()}' for p in read}
    assert {f'{lib}/py.typed', f'{lib}/report.ipynb', f'{lib}/results/claims.json'} <= names
    assert committed <= names
    modules = {f'{lib}/{p.name}' for p in (root / lib).glob('*.py')}
    assert modules <= names
    strangers = [n for n in names if not n.startswith((f'{lib}/', f'{lib}-'))]
    assert not strangers, 'a wheel must not put anything beside the package'
    single = [n for n in names if '/runs/' in n or '/arms/' in n]
    assert not single, 'single runs of a study: its results.json or summary.json holds what is read'
    assert f'{lib}/results/causal/summary.json' in names
    assert wheel.stat().st_size < 5_000_000


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A folder of its own with the wheel unpacked, as an installer would"
    folder = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed, code, *args):
    "What `code` prints, run away from the checkout; sys.argv[1] is the folder of the installation"
    env = dict(os.environ, PYTHONPATH=str(installed))
    r = subprocess.run(
        [sys.executable, '-c', code, installed, *args], cwd=installed, env=env, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stderr
    return r.stdout


def test_installed_package_works_elsewhere(installed):
    "Imported from another folder: the door, the command, the report's notebook"
    code = (
        'import jumprelu_sae as js, jumprelu_sae.cli as cli, jumprelu_sae.reproduction as r, pathlib, sys\n'
        'assert pathlib.Path(js.__file__).is_relative_to(sys.argv[1]), js.__file__\n'
        'assert js.train_sae and js.SAE and js.load_sae\n'
        'assert r.report_source().is_relative_to(sys.argv[1]), r.report_source()\n'
        "sys.exit(cli.main(['presets']))\n"
    )
    assert 'laptop' in run(installed, code)


def test_installed_package_finds_its_evidence(installed):
    "The committed claims, runs and tuning are those in the package, and say what the checkout's say"
    code = (
        'import json, sys\n'
        'from jumprelu_sae import claims, reproduction, tuning\n'
        'e = reproduction.evidence()\n'
        'assert e is not None, tuning.repo_root()\n'
        'assert e.root.is_relative_to(sys.argv[1]) and tuning.tuning_file("laptop").is_relative_to(sys.argv[1])\n'
        'main = reproduction.committed(reproduction.Run(e.root / "laptop-main"), e)\n'
        'print(json.dumps([[r["id"], r["verdict"]] for r in claims.judged(e)]), len(main.results))\n'
    )
    committed = json.loads((root / 'results/claims.json').read_text(encoding='utf-8'))
    rows, n = run(installed, code).rsplit(' ', 1)
    assert json.loads(rows) == [[r['id'], r['verdict']] for r in committed['rows']]
    assert int(n) == len(json.loads((root / 'results/laptop-main/results.json').read_text(encoding='utf-8'))['results'])


USER = """
from pathlib import Path
import torch
import jumprelu_sae as js

lm = js.load_lm('gemma3-270m')
acts = js.activations(lm, 'sotu', site='resid.9', n_train=250_000)
sae = js.train_sae('jumprelu', acts, d_sae=2048, l0=32)
print(js.evaluate(sae, acts))
js.dashboard(sae, acts).save('latents')
sae.save('my-sae')
sae = js.load_sae(Path('my-sae'))
f = sae.encode(acts.part('test')['x'])
density: torch.Tensor = (f > 0).float().mean(0)
x_hat: torch.Tensor = sae.decode(f)
whole: torch.Tensor = sae(acts.part('test')['x'])
result = js.evaluate(sae, acts)
loss: float = result.metrics['delta_lm_loss']
shown = js.frontier([result], 'frontier.png')
print(shown.rows, sae.cfg.d_sae, sae.meta)
quick = js.Settings(device='cpu', progress=False)
other = js.train_sae('topk', acts, d_sae=2048, l0=32, recipe='paper', seed=1, settings=quick, track=lambda step, d: None)
try:
    js.load_sae('nothing')
except js.UserError as e:
    print(e)

@js.register('mine', label='Mine', color='#000000', marker='o', config=js.TopKConfig)
class Mine(js.TopKSAE):
    pass
"""


def pyright():
    "How to call it: as a module of this environment, else by its name; None: it is not here"
    if importlib.util.find_spec('pyright'):
        return [sys.executable, '-m', 'pyright']
    return ['pyright'] if shutil.which('pyright') else None


PYRIGHT = pyright()


def complaints(folder, script):
    "What pyright says of a script that uses the package"
    (folder / 'user.py').write_text(script, encoding='utf-8')
    settings = dict(include=['user.py'], extraPaths=[str(root)])
    (folder / 'pyrightconfig.json').write_text(json.dumps(settings), encoding='utf-8')
    ask = [*PYRIGHT, '--outputjson', '--pythonpath', sys.executable]
    r = subprocess.run(ask, cwd=folder, capture_output=True, text=True)
    return [d['message'] for d in json.loads(r.stdout)['generalDiagnostics']]


@pytest.mark.skipif(PYRIGHT is None, reason="no pyright: pip install 'pyright[nodejs]'")
def test_a_users_script_is_clean_for_pyright(tmp_path):
    "The snippet of the README and what comes after it; a wrong argument is seen"
    assert complaints(tmp_path, USER) == []
    wrong = complaints(tmp_path, USER.replace('d_sae=2048, l0=32)', "d_sae='many', l0=32)"))
    assert len(wrong) == 1 and 'd_sae' in wrong[0]
