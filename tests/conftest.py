"""JupyterLab and a browser for the tests that look at pages. Both end with the module that asked for them: playwright
keeps an event loop running in this thread for as long as it is open, and a second one would refuse to start."""
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
root = Path(__file__).parent.parent

class Served(str):
    "The address of a server, and in `folder` what it serves"
    folder: Path

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "URL of a JupyterLab that serves a copy of `nbs/` and `results/`, with no settings of the user's"
    d = tmp_path_factory.mktemp('lab')
    for f in ('nbs', 'results'):
        if (root/f).exists(): shutil.copytree(root/f, d/f)
    (d/'tests').mkdir()
    shutil.copy(root/'tests/golden.json', d/'tests')  # 02 reads it
    s = d/'settings/@jupyterlab/apputils-extension'; s.mkdir(parents=True)
    (s/'notification.jupyterlab-settings').write_text(json.dumps({'fetchNews': 'false'}))
    with socket.socket() as sk: sk.bind(('127.0.0.1', 0)); port = sk.getsockname()[1]
    env = dict(
        os.environ,
        JUPYTER_CONFIG_DIR=str(d / 'config'),
        JUPYTER_DATA_DIR=str(d / 'data'),
        JUPYTERLAB_WORKSPACES_DIR=str(d / 'ws'),
        JUPYTERLAB_SETTINGS_DIR=str(d / 'settings'),
        IPYTHONDIR=str(d / 'ipython'),
        PYTHONPATH=str(root),
    )
    env.setdefault('OMP_NUM_THREADS', '1')
    env.pop('MPLBACKEND', None)  # the kernel chooses its own
    url, log = Served(f'http://127.0.0.1:{port}'), d/'server.log'
    url.folder = d
    with open(log, 'w') as out:
        srv = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'jupyter',
                'lab',
                '--no-browser',
                '--ip=127.0.0.1',
                f'--port={port}',
                '--ServerApp.port_retries=0',
                '--IdentityProvider.token=',
                '--allow-root',
                f'--ServerApp.root_dir={d}',
                f'--config={root}/tools/lab_config.py',
                '--LabApp.expose_app_in_browser=True',
            ],
            env=env,
            stdout=out,
            stderr=out,
        )
    try:
        for _ in range(1400):  # minutes, on a machine that is busy
            if srv.poll() is not None: pytest.fail(log.read_text())
            try: urllib.request.urlopen(url+'/api/status', timeout=1); break
            except OSError: time.sleep(0.2)
        else: pytest.fail('JupyterLab does not answer:\n' + log.read_text())
        yield url
    finally:
        srv.terminate()
        try: srv.wait(30)
        except subprocess.TimeoutExpired: srv.kill()

@pytest.fixture(scope='module')
def browser():
    pw = pytest.importorskip('playwright.sync_api')
    if chromium is None: pytest.skip('no chromium: apt-get install chromium')
    with pw.sync_playwright() as p:
        b = p.chromium.launch(
            executable_path=chromium, args=['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu']
        )
        yield b
        b.close()

@pytest.fixture
def page(browser):
    p = browser.new_page(viewport={'width': 1400, 'height': 1000}); yield p; p.close()
