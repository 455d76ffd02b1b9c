"""The notebooks with sliders: they run in JupyterLab, a move of a slider changes the line to the right numbers, and
their saved outputs need no widget."""
import base64, json
from pathlib import Path
import numpy as np, pytest, torch
from test_lab import open_and_run, pw

root = Path(__file__).parent.parent
EXPLORE = sorted((root/'nbs/explore').glob('*.ipynb'))

# -- the lines, computed here by other means ---------------------------------------------------------------------------
def toy():
    "The draws of 01_jumprelu's toy"
    g = torch.Generator().manual_seed(0)
    active = torch.rand(40_000, generator=g) < 0.1
    a = 0.5*torch.empty(40_000, 4).exponential_(generator=g).sum(-1) * active
    return a.double().numpy(), (a + 0.3*torch.randn(40_000, generator=g)).double().numpy()

def threshold_line(t):
    a, z = toy()
    both = (a > 0) & (z > t)
    fp, missed = np.mean(z[a == 0] > t), np.mean(z[a > 0] <= t)
    return (
        f'threshold {t:.2f}: false positives {100 * fp:.1f} %, missed {100 * missed:.1f} %, magnitude kept {z[both].mean() / a[both].mean():.2f} '
        f'(as a bias: {(z[both] - t).mean() / a[both].mean():.2f})'
    )

def bandwidth_line(eps, kernel):
    x = torch.randn(1024, 200, generator=torch.Generator().manual_seed(0)).double().numpy()
    u, theta, lam = (x - 0.8)/eps, 0.8, 0.3
    K = dict(rectangle=np.abs(u) < 0.5, gaussian=np.exp(-6*u*u)*np.sqrt(6/np.pi))[kernel]
    e = (K/eps*(2*theta*x*(x <= theta) - lam)).mean(0)                         # eqs. 11 and 12 on x^2 below, lam above
    exact = (theta**2 - lam)*np.exp(-theta**2/2)/np.sqrt(2*np.pi)
    return f'{kernel}, bandwidth {eps:g}: gradient {e.mean():.4f} on average, spread over batches {e.std(ddof=1):.4f}, exact {exact:.4f}'

# -- without a widget --------------------------------------------------------------------------------------------------
FIRST = dict(threshold=threshold_line(0.6), bandwidth=bandwidth_line(0.2, 'rectangle'))

def test_every_one_is_tested(): assert {p.stem for p in EXPLORE} == set(FIRST)

@pytest.mark.parametrize('nb', EXPLORE, ids=lambda p: p.stem)
def test_saved_outputs_need_no_widget(nb):
    d = json.loads(nb.read_text(encoding='utf-8'))
    outs = [o['data'] for c in d['cells'] for o in c.get('outputs', []) if 'data' in o]
    assert 'widget' not in json.dumps([c.get('outputs') for c in d['cells']]) and 'widgets' not in d['metadata']
    assert [''.join(o['text/plain']) for o in outs if set(o) == {'text/plain'}] == [FIRST[nb.stem]]
    pngs = [o['image/png'] for o in outs if 'image/png' in o]
    assert len(pngs) == 1 and base64.b64decode(pngs[0]).startswith(b'\x89PNG')

# -- in JupyterLab -----------------------------------------------------------------------------------------------------
def shown(page, line):
    "Wait until `line` is the state named; the picture that is shown with it"
    pw.expect(page.get_by_text(line, exact=True)).to_be_visible(timeout=30_000)
    return page.locator('.jp-RenderedImage img').first.get_attribute('src')

def press(page, key, times):
    page.locator('.widget-slider .noUi-handle').first.focus()
    for _ in range(times): page.keyboard.press(key)

def look(page, path):
    page.locator('.widget-slider').first.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    page.screenshot(path=str(path))

@pytest.mark.browser
def test_threshold_slider(page, lab, tmp_path):
    open_and_run(page, lab, 'nbs/explore/threshold.ipynb')
    before = shown(page, FIRST['threshold'])
    look(page, tmp_path/'threshold_0.60.png')
    press(page, 'ArrowRight', 8)
    pw.expect(page.locator('.widget-readout').first).to_have_text('1.00')
    after = shown(page, threshold_line(1.))
    assert after != before and page.get_by_text('threshold 0.60:').count() == 0
    look(page, tmp_path/'threshold_1.00.png')
    press(page, 'ArrowLeft', 8)
    assert shown(page, FIRST['threshold']) == before

@pytest.mark.browser
def test_bandwidth_slider_and_kernel(page, lab, tmp_path):
    open_and_run(page, lab, 'nbs/explore/bandwidth.ipynb')
    before = shown(page, FIRST['bandwidth'])
    look(page, tmp_path/'bandwidth_0.2.png')
    press(page, 'ArrowLeft', 3)
    pictures = {before, shown(page, bandwidth_line(0.05, 'rectangle'))}
    look(page, tmp_path/'bandwidth_0.05.png')
    page.locator('.widget-dropdown select').first.select_option('gaussian')
    pictures.add(shown(page, bandwidth_line(0.05, 'gaussian')))
    assert len(pictures) == 3
    look(page, tmp_path/'bandwidth_0.05_gaussian.png')
