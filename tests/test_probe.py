"Tables that the book prints about cards are those that its code computes now."
import json
from pathlib import Path

from jumprelu_sae.core import Table
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.probe import bytes_written, card_rows, here_rows, on_paper, without_weights

root = Path(__file__).parent.parent
KEPT = json.loads((root/'results'/'benchmarks'/'checkpoints.json').read_text(encoding='utf-8'))['parts']

def shown(cell):
    "The table that a cell of 42_probe has in the book"
    cells = json.loads((root/'nbs'/'42_probe.ipynb').read_text(encoding='utf-8'))['cells']
    outputs = next(c for c in cells if c['id'] == cell)['outputs']
    return ''.join(next(o for o in outputs if 'data' in o)['data']['text/markdown'])

def test_what_breaks_first():
    rows = card_rows([PRESETS[n] for n in ('scope-270m', 'gemma-2-2b', 'gemma-2-9b')])
    assert shown('034236a2') == Table(rows)._repr_markdown_()
    assert rows[4]['nearest to its limit'].startswith('hours') and rows[5]['nearest to its limit'].startswith('disk')

def test_hours_here_and_on_a_card():
    rows = here_rows([PRESETS[n] for n in ('scope-270m-sotu', 'scope-270m')], KEPT['probe'])
    assert shown('41de9b09') == Table(rows)._repr_markdown_()
    assert KEPT['probe']['need']['d_in'] == on_paper(PRESETS['scope-270m'], without_weights('gemma3-270m'))['d_in']

def test_checkpoints_stay_within_their_share():
    for part in ('tiny', 'laptop', 'scope'):
        r = KEPT[part]
        assert r['checkpoints'] >= 1 and r['share'] < .02 and r['share_in_a_long_run'] < .02, part

def test_bytes_of_a_run():
    "What was counted on the tiny preset is what the function says; the laptop's are its own of today"
    t = KEPT['written']['tiny']
    for k in ('activations', 'saes'): assert abs(t['foretold'][k]/t['left'][k] - 1) < .03, k
    assert abs(t['counted']/t['foretold_and_rest'] - 1) < .1
    p = PRESETS['laptop']
    need = on_paper(p, without_weights('gemma3-270m'))
    assert bytes_written(p, need) == KEPT['written']['laptop']['bfloat16, one process']
    assert bytes_written(p, need, together=False) == KEPT['written']['laptop']['bfloat16, a process a core']

def test_the_road_of_scope_270m_ended():
    r = KEPT['rehearsal']
    assert r['preset'] == 'scope-270m-sotu-rehearsal' and r['d_sae'] == 16_384 and r['activations'] <= 4096
    assert {o['name'] for o in r['rows']} == {
        f'{a}-{k}-seed0' for a in ('jumprelu', 'topk', 'batchtopk') for k in (20, 60)
    }
    assert r['report_bytes'] > 100_000
