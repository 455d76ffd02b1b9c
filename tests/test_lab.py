"The book works in JupyterLab in a real browser: its index opens, and its cells run."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
pw = pytest.importorskip('playwright.sync_api')
chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(chromium is None, reason='no chromium: apt-get install chromium')]
root = Path(__file__).parent.parent

@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    "URL of a JupyterLab that serves a copy of `nbs/` and `results/`, with no settings of the user's"
    d = tmp_path_factory.mktemp('lab')
    for f in ('nbs', 'results'):
        if (root/f).exists(): shutil.copytree(root/f, d/f)
    s = d/'settings/@jupyterlab/apputils-extension'; s.mkdir(parents=True)
    (s/'notification.jupyterlab-settings').write_text(json.dumps({'fetchNews': 'false'}))
    with socket.socket() as sk: sk.bind(('127.0.0.1', 0)); port = sk.getsockname()[1]
    env = dict(os.environ, JUPYTER_CONFIG_DIR=str(d/'config'), JUPYTER_DATA_DIR=str(d/'data'), JUPYTERLAB_WORKSPACES_DIR=str(d/'ws'),
               JUPYTERLAB_SETTINGS_DIR=str(d/'settings'), IPYTHONDIR=str(d/'ipython'), PYTHONPATH=str(root))
    env.pop('MPLBACKEND', None)  # the kernel chooses its own
    url, log = f'http://127.0.0.1:{port}', d/'server.log'
    with open(log, 'w') as out:
        srv = subprocess.Popen([sys.executable, '-m', 'jupyter', 'lab', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
            '--IdentityProvider.token=', '--allow-root', f'--ServerApp.root_dir={d}', '--LabApp.expose_app_in_browser=True'], env=env, stdout=out, stderr=out)
    try:
        for _ in range(450):
            if srv.poll() is not None: pytest.fail(log.read_text())
            try: urllib.request.urlopen(url+'/api/status', timeout=1); break
            except OSError: time.sleep(0.2)
        else: pytest.fail('JupyterLab does not answer:\n' + log.read_text())
        yield url
    finally:
        srv.terminate()
        try: srv.wait(30)
        except subprocess.TimeoutExpired: srv.kill()

@pytest.fixture(scope='session')
def browser():
    with pw.sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'])
        yield b
        b.close()

@pytest.fixture
def page(browser):
    p = browser.new_page(viewport={'width': 1400, 'height': 1000}); yield p; p.close()

ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]'
# what the notebook's model holds: cells scrolled out of sight are not in the page
CELLS = '''() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code' && c.model.sharedModel.getSource().trim())
    .map(c => ({count: c.model.executionCount, busy: c.model.executionState === 'running', outputs: c.model.outputs.toJSON()}))'''

def open_and_run(page, lab, nb, timeout=120_000):
    "Open notebook `nb`, forget its saved outputs, run all its cells: list of their counts and outputs"
    page.goto(f'{lab}/lab/tree/{nb}?reset')
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=timeout)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert not any(c['outputs'] for c in page.evaluate(CELLS))
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(f"() => ({CELLS})().every(c => c.count && !c.busy)", timeout=timeout)
    cells = page.evaluate(CELLS)
    errors = [o for c in cells for o in c['outputs'] if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert not errors, errors
    errs = page.locator(ERRORS).all_inner_texts()
    assert not errs, errs
    return cells

def test_index_runs(page, lab, tmp_path):
    cells = open_and_run(page, lab, 'nbs/index.ipynb')
    pw.expect(page.get_by_role('heading', name='jumprelu_sae').first).to_be_visible()
    saved = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))
    code = [c for c in saved['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
    assert [bool(c['outputs']) for c in cells] == [bool(c['outputs']) for c in code], 'a cell shows nothing here but does in the saved notebook, or the reverse'
    page.screenshot(path=str(tmp_path/'index.png'))
