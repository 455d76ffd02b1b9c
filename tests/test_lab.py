"""The book works in JupyterLab in a real browser: its index opens, and its cells run.

`make test-lab` runs every notebook from top to bottom, on one thread; cells flagged slow or gpu are left out.
JUMPRELU_SAE_LAB_SECONDS is what a notebook may take (60); LAB_SLOW=1 runs the slow cells too."""
import json, os, re, sys, time
from pathlib import Path
import pytest
pw = pytest.importorskip('playwright.sync_api')
pytestmark = pytest.mark.browser
root = Path(__file__).parent.parent

ERRORS = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]'
# what the notebook's model holds: cells scrolled out of sight are not in the page
CELLS = '''() => window.jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code' && c.model.sharedModel.getSource().trim())
    .map(c => ({count: c.model.executionCount, busy: c.model.executionState === 'running', outputs: c.model.outputs.toJSON()}))'''

def opened(page, lab, nb, timeout=240_000):
    "Open notebook `nb` and wait for its kernel"
    page.goto(f'{lab}/lab/tree/{nb}?reset', timeout=timeout)
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=timeout,
    )

def run_all(page, timeout=120_000):
    "Forget the saved outputs and run all cells: list of their counts and outputs; no error and nothing on stderr"
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert not any(c['outputs'] for c in page.evaluate(CELLS))
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    # twice a second: asked at every frame, as is the default, this question alone keeps the page busy
    # after an error the cells that wait are not run: then no cell is busy, and some have no count
    over = "c.every(c => c.count && !c.busy) || !c.some(c => c.busy) && c.some(c => c.outputs.some(o => o.ename))"
    page.wait_for_function(f"() => {{ const c = ({CELLS})(); return {over} }}", timeout=timeout, polling=500)
    cells = page.evaluate(CELLS)
    errors = [o for c in cells for o in c['outputs'] if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert not errors, errors
    errs = page.locator(ERRORS).all_inner_texts()
    assert not errs, errs
    return cells

def open_and_run(page, lab, nb, timeout=240_000):
    "Open notebook `nb`, forget its saved outputs, run all its cells: list of their counts and outputs"
    opened(page, lab, nb, timeout)
    return run_all(page, timeout)

def test_index_runs(page, lab, tmp_path):
    cells = open_and_run(page, lab, 'nbs/index.ipynb')
    pw.expect(page.get_by_role('heading', name='jumprelu_sae').first).to_be_visible()
    saved = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))
    code = [c for c in saved['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
    assert [bool(c['outputs']) for c in cells] == [bool(c['outputs']) for c in code], (
        'a cell shows nothing here but does in the saved notebook, or the reverse'
    )
    page.screenshot(path=str(tmp_path/'index.png'))

def save(page, timeout=60_000):
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty", timeout=timeout)

@pytest.mark.parametrize('nb', sorted((root/'nbs').rglob('[!_.]*.ipynb')), ids=lambda nb: nb.stem)
def test_what_is_saved_is_what_is_committed(nb):
    "The hook of `make lab`, without a browser: what a kernel and a screen add is taken away again, to the byte"
    import nbformat
    sys.path.insert(0, str(root/'tools'))
    from lab_config import clean
    seen = nbformat.read(nb, as_version=4)
    seen.metadata['language_info'] = dict(name='python', version='3.11.0')
    seen.metadata['kernelspec'] = dict(display_name='Python 3 (ipykernel)', language='python', name='python3')
    for c in seen.cells:
        c.metadata['editable'] = True
        if c.cell_type == 'code': c.execution_count = 3
        c.metadata.get('jupyter', {}).pop('outputs_hidden', None)  # JupyterLab does so when it runs a cell
    model = dict(type='notebook', content=json.loads(json.dumps(seen)))
    clean(model)
    assert nbformat.writes(nbformat.from_dict(model['content'])) + '\n' == nb.read_text(encoding='utf-8')

def test_opening_and_saving_changes_no_byte(page, lab):
    nb = 'nbs/06_intervals.ipynb'
    before = (lab.folder/nb).read_bytes()
    (lab.folder/nb).touch()
    was = (lab.folder/nb).stat().st_mtime_ns
    opened(page, lab, nb)
    page.evaluate("() => { window.jupyterapp.shell.currentWidget.context.model.dirty = true; }")
    save(page)
    assert (lab.folder/nb).stat().st_mtime_ns > was, 'nothing was saved'
    assert (lab.folder/nb).read_bytes() == before

# -- every notebook: make test-lab -------------------------------------------------------------------------------------
NOTEBOOKS = sorted(
    p.relative_to(root).as_posix() for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)
SLOW = re.compile(r'^\s*#\s*\|\s*(slow|gpu)\b', re.M)

def leave_out_slow(file):
    "Cells that pytest leaves out are left out here"
    nb = json.loads(file.read_text(encoding='utf-8'))
    for c in nb['cells']:
        if c['cell_type'] == 'code' and SLOW.search(''.join(c['source'])): c['source'] = ['# a slow cell, left out']
    file.write_text(json.dumps(nb, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')

def without_outputs(file):
    "What git would show as changed, apart from outputs"
    nb = json.loads(file.read_text(encoding='utf-8'))
    for c in nb['cells']: c.pop('outputs', None)
    return nb

@pytest.mark.lab_all
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda nb: Path(nb).stem)
def test_runs_from_top_to_bottom(request, page, lab, nb):
    if 'lab_all' not in request.config.option.markexpr: pytest.skip('asked for by `make test-lab`')
    file, limit = lab.folder/nb, float(os.environ.get('JUMPRELU_SAE_LAB_SECONDS', 60))
    if not os.environ.get('LAB_SLOW'): leave_out_slow(file)
    before = without_outputs(file)
    opened(page, lab, nb)
    start = time.monotonic()
    run_all(page, 1_000_000)
    seconds = time.monotonic() - start
    print(f'\n{nb}: {seconds:.1f} s', flush=True)
    save(page)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert without_outputs(file) == before, 'running it changes more than outputs'
    others = [p for d in ('nbs', 'results') for p in (lab.folder/d).rglob('*')
        if p.is_file() and '.ipynb_checkpoints' not in p.parts and not (root/p.relative_to(lab.folder)).exists()]
    assert not others, 'running it leaves files'
    assert seconds <= limit
