"""The rating page in Chromium, from a file and in JupyterLab: six latents by keyboard, an undo, a restart, and on. What
the page logs is compared with what was pressed."""

import json
from pathlib import Path
import nbformat, pytest
from test_lab import pw
from jumprelu_sae.rate import ESM, ToyFirings, make_study, rater_order, ratings, read_log, study_page, toy_sources

pytestmark = pytest.mark.browser
MAKE = 'make_study(toy_sources(), n_per_arm=3, strata=1, repeats=1, min_firings=40)'


@pytest.fixture(scope='module')
def study():
    s = make_study(toy_sources(), n_per_arm=3, strata=1, repeats=1, min_firings=40)
    assert len(s.page['items']) == 13
    return s


@pytest.fixture
def context(browser):
    c = browser.new_context(viewport={'width': 1200, 'height': 900}, accept_downloads=True)
    yield c
    c.close()


def listening(page):
    "Errors of the page and whatever it asks the network for"
    page.errors, page.asked = [], []
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and page.errors.append(m.text))
    page.on('request', lambda r: page.asked.append(r.url[:60]))
    return page


def begin(page, name):
    page.get_by_label('Your name').fill(name)
    page.keyboard.press('Enter')
    pw.expect(page.locator('.jsae-rate header')).to_be_visible()


def shown(page): return page.locator('.jsae-rate article').get_attribute('data-item')


def done(page): return page.locator('.jsae-rate .count').inner_text().split(' of ')[0]


def press(page, item, *keys):
    "Press keys while this item is shown"
    pw.expect(page.locator(f'article[data-item="{item}"]')).to_be_visible()
    for k in keys:
        page.keyboard.press(k)


def six(page, order):
    "Five items, an undo, the fifth again, an explanation: what should stand"
    for i, (odd, judge) in zip(order, (('1', 'y'), ('2', 'm'), ('3', 'n'), ('4', 'y'))):
        press(page, i, odd, judge)
    press(page, order[4], '5', 'e')
    page.keyboard.type('ships & </script> y m n 1')
    page.keyboard.press('Control+Enter')
    press(page, order[4], 'n')
    pw.expect(page.locator(f'article[data-item="{order[5]}"]')).to_be_visible()
    page.keyboard.press('u')                                 # the last judgement
    pw.expect(page.get_by_text('Taken back: the judgement.')).to_be_visible()
    press(page, order[4], 'm')
    press(page, order[5], '2')                               # stops in the middle of the sixth
    pw.expect(page.locator('.answers')).to_be_visible()


WANT = [(1, 'yes'), (2, 'maybe'), (3, 'no'), (4, 'yes'), (5, 'maybe'), (2, 'yes')]


def check(study, records, name, order):
    rows = {r.item: r for r in ratings(study.key, records) if r.rater == name}
    right = [study.key['items'][i]['right'] for i in order[:6]]
    assert [(rows[i].judge, rows[i].hit) for i in order[:6]] == [(j, float(o == k)) for (o, j), k in zip(WANT, right)]
    assert rows[order[4]].why == 'ships & </script> y m n 1'
    kinds = [r['kind'] for r in records if r['rater'] == name]
    assert kinds.count('undo') == 1 and kinds.count('judge') == 7, 'nothing is taken out of the log'
    assert [r['n'] for r in records if r['rater'] == name] == list(range(len(kinds)))


def test_from_a_file(context, study, tmp_path):
    file = study_page(study, tmp_path/'study.html')
    page = listening(context.new_page())
    page.goto(file.as_uri())
    order = rater_order(study.page, 'Änna 1')
    begin(page, '  Änna   1 ')
    assert shown(page) == order[0]
    six(page, order)
    page.close()                                             # the browser's window is gone

    page = listening(context.new_page())
    page.goto(file.as_uri())
    assert page.get_by_label('Your name').input_value() == 'Änna 1'
    page.keyboard.press('Enter')
    pw.expect(page.get_by_text('Welcome back: 5 done.')).to_be_visible()
    press(page, order[5], 'y')
    pw.expect(page.locator(f'article[data-item="{order[6]}"]')).to_be_visible()
    assert done(page) == '6'
    page.keyboard.press('ArrowLeft')
    pw.expect(page.locator(f'article[data-item="{order[5]}"]')).to_be_visible()
    assert page.locator('[aria-pressed=true]').inner_text().split() == ['y', 'yes']
    page.keyboard.press('ArrowRight')
    pw.expect(page.locator('.state')).to_have_text('all kept')
    with page.expect_download() as d: page.get_by_role('button', name='Download ratings').click()
    d.value.save_as(tmp_path/'r.json')
    check(study, read_log(tmp_path/'r.json'), 'Änna 1', order)
    assert not page.errors
    assert not [u for u in page.asked if not u.startswith(('file:', 'data:', 'blob:'))]


def test_another_rater_and_another_browser(context, browser, study, tmp_path):
    "Raters have orders of their own; a downloaded log can be loaded elsewhere, twice, and nothing is doubled"
    file = study_page(study, tmp_path/'study.html')
    page = listening(context.new_page())
    page.goto(file.as_uri())
    seen = {}
    for name in ('Ada', 'Bo'):
        begin(page, name)
        seen[name] = order = rater_order(study.page, name)
        for i in order: press(page, i, '3', 'y')
        pw.expect(page.get_by_text('All done.')).to_be_visible()
        page.get_by_role('button', name='Another rater').click()
    assert seen['Ada'] != seen['Bo']
    with page.expect_download() as d: page.get_by_role('button', name='Download ratings').click()
    d.value.save_as(tmp_path/'r.json')
    other = browser.new_context()
    try:
        page = listening(other.new_page())
        page.goto(file.as_uri())
        for n in (52, 0):
            page.locator('input[type=file]').set_input_files(tmp_path/'r.json')
            pw.expect(page.get_by_text(f'{n} new records of 52 in r.json.')).to_be_visible()
        begin(page, 'Bo')
        pw.expect(page.get_by_text('All done.')).to_be_visible()
        (tmp_path/'x.json').write_text('not json')
        page.locator('input[type=file]').set_input_files(tmp_path/'x.json')
        pw.expect(page.get_by_text('Not read: x.json')).to_be_visible()
        assert not page.errors
    finally: other.close()
    rows = ratings(study.key, read_log(tmp_path/'r.json'))
    assert len(rows) == 26 and all(r.judge == 'yes' for r in rows)


def test_a_browser_that_keeps_nothing(context, study, tmp_path):
    "The page says so, works, and offers the file"
    page = listening(context.new_page())
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused') }})")
    page.goto(study_page(study, tmp_path/'study.html').as_uri())
    order = rater_order(study.page, 'Cy')
    begin(page, 'Cy')
    press(page, order[0], '1', 'n')
    pw.expect(page.locator('.state.bad')).to_contain_text('2 not kept')
    with page.expect_download() as d: page.get_by_role('button', name='Download ratings').click()
    d.value.save_as(tmp_path/'r.json')
    assert [r['value'] for r in read_log(tmp_path/'r.json')] == [1, 'no']
    assert not page.errors


def test_text_stays_text(context, tmp_path):
    evil, mark = ToyFirings(latents=20, seed=3), '</script><img src=x onerror=document.title=1>'
    evil.words = ['\u2028"\\' + mark if w == 'the' else w for w in evil.words]
    s = make_study(dict(a=evil, b=evil), n_per_arm=3, strata=1, shams=0, min_firings=40, title='<i>&"title')
    page = listening(context.new_page())
    page.goto(study_page(s, tmp_path/'study.html').as_uri())
    begin(page, '<b>')
    assert mark in page.locator('.five').inner_text()
    press(page, rater_order(s.page, '<b>')[0], '1')
    assert mark in page.locator('article').inner_text()
    assert page.title() == '<i>&"title' and page.locator('img, .jsae-rate b, .jsae-rate i').count() == 0
    assert not page.errors


def test_order_is_that_of_the_oracle(context, study, tmp_path):
    page = context.new_page()
    page.goto('about:blank')
    names = ['A', 'b c', 'Zoë', '李', '🦜', 'x'*60]
    page.evaluate(
        '''async t => { window.m = await import(URL.createObjectURL(new Blob([t], {type: 'text/javascript'}))) }''', ESM
    )
    for n in names: assert page.evaluate('([s, n]) => m.order(s, n)', [study.page, n]) == rater_order(study.page, n)
    blocks = dict(id='x', items=[dict(id=f'{i:02}', block=i//4) for i in range(24)])
    for n in names: assert page.evaluate('([s, n]) => m.order(s, n)', [blocks, n]) == rater_order(blocks, n)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1200])
def test_it_fits_and_can_be_read(browser, study, tmp_path, width, scheme):
    "No sideways scrolling; text against its background at least 4.5 to 1"
    c = browser.new_context(viewport={'width': width, 'height': 844}, color_scheme=scheme)
    try:
        page = c.new_page()
        page.goto(study_page(study, tmp_path/'study.html').as_uri())
        screens = {}
        def look(name):
            page.screenshot(path=tmp_path/f'{name}-{width}-{scheme}.png', full_page=True)
            assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), name
            screens[name] = page.evaluate(CONTRAST)
        look('name')
        begin(page, 'Ada')
        page.keyboard.press('?')
        look('odd')
        page.keyboard.press('?')
        page.keyboard.press('2')
        look('judge')
        assert all(v >= 4.5 for found in screens.values() for v in found.values()), screens
    finally: c.close()


CONTRAST = '''() => {
  const rgb = s => s.match(/[\\d.]+/g).map(Number)
  const lum = c => rgb(c).slice(0, 3).map(v => v/255).map(v => v <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4)
    .reduce((s, v, i) => s + v*[.2126, .7152, .0722][i], 0)
  const behind = e => { for (; e; e = e.parentElement) { const b = getComputedStyle(e).backgroundColor, p = rgb(b)
    if (p.length < 4 || p[3] > 0) return b } return 'rgb(255,255,255)' }
  const out = {}
  for (const e of document.querySelectorAll('.jsae-rate :is(h2,h3,p,label,button,mark,.text,.count,.state,dt,dd)')) {
    if (!e.innerText.trim()) continue
    const [a, b] = [lum(getComputedStyle(e).color), lum(behind(e))].sort((x, y) => y - x)
    const name = e.tagName + '.' + e.className
    out[name] = Math.min(out[name] ?? 99, (a + .05)/(b + .05))
  }
  return out }'''


def cell(source):
    return nbformat.v4.new_code_cell(source)


RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
READY = "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


@pytest.mark.timeout(900)
def test_in_jupyterlab(lab, context, study):
    """Six latents, an undo, a restart of the kernel and a reload of the page: the log is complete and the notebook
    intact"""
    root = lab.folder
    log = root/'log'/'ratings.jsonl'
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=kernel), cells=[
        cell('from jumprelu_sae.rate import *'),
        cell(f"rating_widget({MAKE}, '../log/ratings.jsonl')")])
    nbformat.write(nb, root/'nbs'/'rating.ipynb')
    page = listening(context.new_page())
    slow = 240_000

    def run():
        page.wait_for_function(READY, timeout=slow)
        page.evaluate(RUN_ALL)
        pw.expect(page.get_by_label('Your name')).to_be_visible(timeout=slow)

    page.goto(f'{lab}/lab/tree/nbs/rating.ipynb?reset')
    run()
    order = rater_order(study.page, 'Änna 1')
    begin(page, 'Änna 1')
    six(page, order)
    pw.expect(page.locator('.state')).to_have_text('all kept', timeout=30_000)
    before = log.read_bytes()
    assert len(read_log(log)) == 14

    page.evaluate('() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()')
    run()                                                    # a new kernel: the cell is run again
    begin(page, 'Änna 1')
    pw.expect(page.get_by_text('Welcome back: 5 done.')).to_be_visible()
    press(page, order[5], 'y')
    pw.expect(page.locator('.state')).to_have_text('all kept', timeout=30_000)
    assert log.read_bytes().startswith(before), 'the log was rewritten'
    check(study, read_log(log), 'Änna 1', order)

    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.goto(f'{lab}/lab/tree/nbs/rating.ipynb?reset')      # the page is loaded anew
    run()
    begin(page, 'Änna 1')
    pw.expect(page.get_by_text('Welcome back: 6 done.')).to_be_visible()
    for i in order[6:]: press(page, i, '3', 'm')
    pw.expect(page.get_by_text('All done.')).to_be_visible()
    pw.expect(page.locator('.state')).to_have_text('all kept', timeout=30_000)
    rows = ratings(study.key, read_log(log))
    assert len(rows) == len(study.page['items']) and all(r.judge for r in rows)
    kinds = page.evaluate(
        '() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type)')
    assert kinds == ['code', 'code'], 'y, m and the digits are for the page, not for the notebook'
