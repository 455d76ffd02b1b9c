"""Pages and widget of `36_dashboard` in a real browser: hostile text shows as text, the page's search is Python's, all
fits a phone, works by keyboard and in the dark, and nothing is fetched."""
import json, re, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jumprelu_sae import dashboard as door_function
from jumprelu_sae.core import UserError
from jumprelu_sae.interpret import Firings

D = sys.modules['jumprelu_sae.dashboard']
SCRIPT = '<script>document.title="owned";alert(1)</script>'
IMG = '<img src="https://example.invalid/x.png" onerror="document.title=\'owned\';alert(2)">'
CLOSE = '</script><script>document.title="owned"</script>'
EVIL = [
    SCRIPT,
    IMG,
    CLOSE,
    '"><svg onload=alert(3)>',
    "' onmouseover='alert(4)",
    '<!--',
    '&lt;b&gt;',
    '\u2028',
    '\u202eover',
    '</mark></li></ol></article>',
    '{{1+1}}',
    '${1}',
    '\n',
    ' ',
]
PLAIN = [
    ' the',
    ' of',
    ' Congress',
    ' war',
    ' peace',
    ' Straße',
    ' İstanbul',
    ' 1862',
    'THE',
    ' union',
    ' money',
    ' bank',
]


class Pieces:
    "A tokenizer whose tokens are whatever strings we like"
    def __init__(self, words): self.words = words
    def decode(self, ids): return ''.join(self.words[i] for i in ids)


def made_up(d_sae=70, n=900, seed=0):
    "A dashboard made by hand: hostile tokens everywhere, documents and rows with edges, silent and dense latents"
    g, words = np.random.default_rng(seed), EVIL + PLAIN
    token = torch.from_numpy(g.integers(0, len(words), n))
    row = torch.arange(n)//31
    doc = torch.arange(n)//50
    F = g.exponential(2., (d_sae, n)).astype('float32')
    F[g.random((d_sae, n)) > .06] = 0
    F[3] = 0                                   # silent
    F[5] = 1 + g.random(n)                     # dense
    latent, at = (torch.from_numpy(o) for o in F.nonzero())
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), latent.bincount(minlength=d_sae).cumsum(0)])
    names = [f'd{i} {IMG}' for i in range(int(doc.max()) + 1)]
    f = Firings(latent.int(), at.int(), torch.from_numpy(F[F > 0]), offsets, token, doc, row,
        torch.arange(n) % 31, torch.zeros(n, dtype=torch.bool), names, Pieces(words))
    z = torch.linspace(5, 2, 10).expand(d_sae, 10)
    up = torch.from_numpy(np.stack([g.permutation(len(words))[:10] for _ in range(d_sae)]))
    near = D.nearest_latents(torch.from_numpy(g.standard_normal((d_sae, 16))), list(range(d_sae)))
    facts = dict(name=f'sae {SCRIPT}', model=IMG, site='resid.1', corpus=f'corpus {CLOSE}', tokens='x')
    return D.Dashboard(f, list(range(d_sae)), D.ReadOut(up, z, up.flip(1), -z), near, np.full(d_sae, .001, np.float32),
        facts, 6, 5, 2)


@pytest.fixture(scope='module')
def d(): return made_up()


@pytest.fixture(scope='module')
def site(d, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pages')
    d.save(folder)
    return folder


# -- without a browser -------------------------------------------------------------------------------------------------
def test_the_door_holds_the_function():
    import jumprelu_sae as js
    import jumprelu_sae.dashboard  # must not put the module in the function's place
    assert js.dashboard is door_function is D.dashboard and callable(js.dashboard)
    assert 'dashboard' in js.__all__


def tags(text):
    "The names of all tags in a page"
    from html.parser import HTMLParser
    out = []
    class P(HTMLParser):
        def handle_starttag(self, tag, attrs): out.append((tag, dict(attrs)))
    P().feed(text)
    return out


def test_no_tag_or_attribute_comes_from_the_text(site):
    for p in sorted(site.iterdir()):
        found = tags(p.read_text(encoding='utf-8'))
        assert not {t for t, _ in found} & {'img', 'iframe', 'object', 'embed', 'link', 'base'}, p.name
        for t, a in found:
            assert not [k for k in a if k.startswith('on')], (p.name, t, a)
            assert not re.match(r'(https?:)?//|javascript:|data:', a.get('href') or a.get('src') or ''), (p.name, a)
        assert sum(t == 'script' for t, _ in found) == (2 if p.name == 'index.html' else 0), p.name


def test_every_text_is_escaped_in_the_card_and_in_the_widget(d):
    box = d.widget()
    *_, found, card = box.children
    for l in (0, 5, 40):
        found.value = l
        for text in (D.latent_html(d[l]), d[l]._repr_html_(), card.value, d._repr_html_()):
            assert not {t for t, _ in tags(text)} & {'script', 'img'}, l
            assert not [a for _, at in tags(text) for a in at if a.startswith('on')], l


def test_histograms_are_numpys(d):
    for l in (0, 5, 21):
        v = np.asarray(d.firings.of(l)[1])
        assert d[l].counts == np.histogram(v/v.max(), D.BINS, (0, 1))[0].tolist()
        assert d[l].largest == v.max()


def test_a_text_is_found_where_an_excerpt_holds_all_of_it():
    rows = [dict(l=l, n=1, on=[], up=[], at=[at], best=at) for l, at in ((0, [0, 2, 0]), (1, [1, 3, 1]))]
    data = dict(kinds=['a', 'b', 'c', 'd'], text=[0, 1, 2, 3], latents=rows)
    found = {q: D.search(data, q, 'text') for q in ('a', 'ab', 'b', 'bc', 'abc', 'bcd', 'D', 'e')}
    assert found == dict(a=[0], ab=[0], b=[0, 1], bc=[1], abc=[], bcd=[1], D=[1], e=[])


def test_a_silent_and_a_dense_latent(d):
    silent, dense = d[3], d[5]
    assert (silent.count, silent.top, silent.ngrams) == (0, [], []) and 'silent on this text' in D.latent_html(silent)
    assert dense.frequency == 1 and 'dense: above 10 %' in D.latent_html(dense)
    assert 'dense' not in D.latent_html(d[0])


def test_excerpts_stay_in_their_document_and_row(d):
    f = d.firings
    for l in range(0, 70, 7):
        c = d[l]
        for e in (*c.top, *(e for g in c.groups for e in g)):
            span = slice(e.at - e.hit, e.at - e.hit + len(e.tokens))
            assert len(set(f.doc[span].tolist())) == len(set(f.row[span].tolist())) == 1
            assert e.tokens == [f.tokenizer.decode([i]) for i in f.token[span].tolist()]
            assert e.doc == f.doc_ids[int(f.doc[e.at])]


def test_order_strongest_first_and_groups_by_strength(d):
    for l in (0, 5, 21):
        c, values = d[l], np.sort(np.asarray(d.firings.of(l)[1]))[::-1]
        assert [e.values[e.hit] for e in c.top] == pytest.approx(values[:6].tolist())
        parts = np.array_split(values, 5)
        for g, part in zip(c.groups, parts):
            assert all(part[-1] <= e.values[e.hit] <= part[0] for e in g)
        assert [w.score for w in c.fires_on] == sorted((w.score for w in c.fires_on), reverse=True)
        assert [n.cosine for n in c.nearest] == sorted((n.cosine for n in c.nearest), reverse=True)
        assert l not in [n.latent for n in c.nearest]


def test_pages_are_resumed_and_the_index_comes_last(d, tmp_path, monkeypatch):
    calls = []
    page = D.latent_page
    def stop_at_five(c, *a):
        calls.append(c.latent)
        if len(calls) == 6: raise KeyboardInterrupt
        return page(c, *a)
    monkeypatch.setattr(D, 'latent_page', stop_at_five)
    with pytest.raises(KeyboardInterrupt): d.save(tmp_path/'p')
    assert sorted(p.name for p in (tmp_path/'p').iterdir()) == [f'latent-{i}.html' for i in range(5)]
    calls.clear()
    monkeypatch.setattr(D, 'latent_page', lambda c, *a: calls.append(c.latent) or page(c, *a))
    d.save(tmp_path/'p')
    assert calls == list(range(5, 70)) and (tmp_path/'p'/'index.html').exists()


def test_another_sae_in_the_same_folder_is_written_anew(d, tmp_path):
    d.save(tmp_path)
    other = made_up(seed=1)
    other.facts = other.facts | dict(name='other')
    before = (tmp_path/'latent-0.html').read_bytes()
    other.save(tmp_path)
    assert (tmp_path/'latent-0.html').read_bytes() != before


def test_a_folder_that_is_a_file(d, tmp_path):
    (tmp_path/'f').write_text('x')
    with pytest.raises(UserError, match='give another folder'): d.save(tmp_path/'f')


def test_the_book_comes_back(d, tmp_path):
    D.write_book(d, tmp_path/'b.json', 'all', 'none')
    b = D.book(tmp_path/'b.json')
    assert len(b.latents) == 70 and b.latents[0].top[0].tokens == d[0].top[0].tokens
    (tmp_path/'b.json').write_text('{"rule": 1}')
    with pytest.raises(UserError, match='holds no latents'): D.book(tmp_path/'b.json')


# -- in Chromium -------------------------------------------------------------------------------------------------------
pw = pytest.importorskip('playwright.sync_api')
from test_lab import open_and_run  # noqa: E402


@pytest.fixture
def watched(browser, site):
    "A page that remembers what went wrong: dialogs, errors, requests"
    p = browser.new_page(viewport=dict(width=1400, height=1000))
    p.bad = []
    p.on('dialog', lambda o: (p.bad.append(('dialog', o.message)), o.dismiss()))
    p.on('pageerror', lambda e: p.bad.append(('error', str(e))))
    p.on('console', lambda m: p.bad.append(('console', m.text)) if m.type == 'error' else None)
    p.on('request', lambda q: p.bad.append(('request', q.url)) if not q.url.startswith(('file:', 'data:')) else None)
    p.at = lambda name: p.goto((site/name).as_uri())
    yield p
    assert p.bad == []
    p.close()


@pytest.mark.browser
def test_hostile_text_shows_as_text(watched, d):
    watched.at('latent-5.html')
    text = watched.inner_text('main')
    for evil in (SCRIPT, IMG, CLOSE, '&lt;b&gt;', '{{1+1}}'): assert evil in text, evil
    assert watched.locator('main img, main script').count() == 0
    watched.at('index.html')
    watched.wait_for_selector('#rows tr')
    watched.fill('#q', 'onerror')
    pw.expect(watched.locator('#said')).not_to_have_text('70 of 70 latents')
    assert IMG in watched.inner_text('#rows') and watched.locator('img').count() == 0
    assert 'owned' not in watched.title().replace(SCRIPT, '').replace(CLOSE, '')


QUERIES = (
    'the',
    'THE',
    ' the ',
    '<script>',
    'onerror="',
    'congress war',
    'straße',
    'İ',
    'i̇stanbul',
    'İstanbul',
    '1862',
    '</mark>',
    '#17',
    ' #5 ',
    '#999',
    '',
    '   ',
    'no such thing',
    '\u2028',
    '${1}',
    'union money',
    '.*',
    '(',
    'of',
)


@pytest.mark.browser
def test_the_page_searches_as_python_does(watched, d):
    watched.at('index.html')
    data = D.index_data(d)
    some = 0
    for q in QUERIES:
        for where in D.WHERE:
            ours = D.search(data, q, where)
            theirs = watched.evaluate('([q, w]) => search(q, w).map(r => r.l)', [q, where])
            assert theirs == ours, (q, where)
            some += 0 < len(ours) < len(d)
    assert some > 20


@pytest.mark.browser
def test_all_by_keyboard(watched):
    watched.at('index.html')
    watched.wait_for_selector('#rows tr')
    watched.keyboard.press('Tab')
    assert watched.evaluate('document.activeElement.id') == 'q'
    watched.keyboard.type('#42')
    pw.expect(watched.locator('#said')).to_have_text('1 of 70 latents')  # a function to wait for is against the policy
    for want in ('where', 'order'):
        watched.keyboard.press('Tab')
        assert watched.evaluate('document.activeElement.id') == want
    watched.keyboard.press('Tab')
    watched.keyboard.press('Enter')
    watched.wait_for_url('**/latent-42.html')
    watched.keyboard.press('Tab')
    watched.keyboard.press('Tab')
    watched.keyboard.press('Enter')
    watched.wait_for_url('**/latent-41.html')
    watched.at('index.html')
    assert watched.locator('#rows tr').count() == 50
    watched.focus('#more')
    watched.keyboard.press('Enter')
    assert watched.locator('#rows tr').count() == 70
    assert watched.evaluate("document.activeElement.textContent") == '50'   # the first of the new rows
    watched.select_option('#order', 'frequent')
    assert watched.inner_text('#rows tr:first-child a') == '5'
    watched.select_option('#order', 'rare')
    assert watched.inner_text('#rows tr:first-child a') == '3'


@pytest.mark.browser
@pytest.mark.parametrize('name', ('index.html', 'latent-5.html', 'latent-3.html', 'latent-0.html'))
def test_fits_a_phone(watched, name):
    watched.set_viewport_size(dict(width=390, height=800))
    watched.at(name)
    assert watched.evaluate('document.documentElement.scrollWidth') <= 390


CONTRAST = '''() => {
  const parse = s => { const m = s.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const lum = c => { const f = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4; return .2126*f(c[0]) + .7152*f(c[1]) + .0722*f(c[2]); };
  const canvas = parse(getComputedStyle(document.documentElement).backgroundColor);
  return [...document.querySelectorAll('mark')].map(m => {
    const s = getComputedStyle(m), b = parse(s.backgroundColor), t = parse(s.color);
    const bg = [0, 1, 2].map(i => b[i]*b[3] + canvas[i]*(1 - b[3])), [x, y] = [lum(bg), lum(t)].sort((p, q) => p - q);
    return (y + .05)/(x + .05); }); }'''


@pytest.mark.browser
@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_light_and_dark_can_be_read(watched, scheme):
    watched.emulate_media(color_scheme=scheme)
    watched.at('latent-5.html')
    background = watched.evaluate('getComputedStyle(document.documentElement).backgroundColor')
    dark = max(map(int, re.findall(r'\d+', background)[:3])) < 60
    assert dark == (scheme == 'dark')
    ratios = watched.evaluate(CONTRAST)
    assert len(ratios) > 20 and min(ratios) >= 4.5


@pytest.mark.browser
def test_values_on_hover_and_words_for_the_histogram(watched, d):
    watched.at('latent-0.html')
    e = d[0].top[0]
    hit = watched.locator('.texts li').first.locator('mark.hit')
    assert hit.get_attribute('title') == f'{e.values[e.hit]:.3g}'
    assert (
        watched.locator('svg.hist').get_attribute('aria-label').startswith(f'Histogram of {d[0].count:,} activations')
    )


CELL = '''import sys
sys.path.insert(0, TESTS)
from test_dashboard import made_up
d = made_up()
box = d.widget()
'''


@pytest.mark.browser
def test_the_widget_in_jupyterlab(page, lab):
    dialogs = []
    page.on('dialog', lambda o: (dialogs.append(o.message), o.dismiss()))
    page.goto(f'{lab}/lab?reset')
    page.wait_for_function('() => window.jupyterapp?.serviceManager?.contents')
    cells = [CELL.replace('TESTS', repr(str(Path(__file__).parent))), 'box', 'd[40]']
    spec = dict(name='python3', display_name='python3', language='python')
    nb = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=spec), cells=[dict(cell_type='code', source=c,
        metadata={}, outputs=[], execution_count=None, id=f'c{i}') for i, c in enumerate(cells)])
    page.evaluate(
        "nb => window.jupyterapp.serviceManager.contents.save("
        "'w.ipynb', {type: 'notebook', format: 'json', content: nb})",
        nb,
    )
    open_and_run(page, lab, 'w.ipynb')
    page.wait_for_selector('.widget-select select')
    heading = page.locator('.widget-html h2').first
    pw.expect(heading).to_have_text('Latent 0')
    page.locator('.widget-text input[type=number]').focus()
    page.keyboard.press('ArrowUp')
    pw.expect(heading).to_have_text('Latent 1')
    page.locator('.widget-text input[type=text]').fill('#5')
    page.keyboard.press('Enter')
    pw.expect(heading).to_have_text('Latent 5')
    text = page.locator('.widget-html').first.inner_text()
    for evil in (SCRIPT, IMG, CLOSE): assert evil in text, evil
    assert page.locator('article.latent').count() == 2                     # the widget's and the card
    assert page.locator('.jp-OutputArea img').count() == 0
    assert dialogs == [] and 'owned' not in page.title()
