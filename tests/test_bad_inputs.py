"tools/bad_inputs.py: a quick share of its inputs is refused in one line, and the tool itself sees what it should"

import os, sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / 'tools'))
import bad_inputs as b

SLOW = (
    'reproduce --preset tiny',
    'evaluate(',
    'evaluate sae',
    "cli('evaluate",
    'cli(\'harvest',
    'cli(\'train',
    'cli(\'probe',
    'tune',
    'hf:',
    'train_sae(',
)
SHARE = 4  # of the generated ones, every fourth


def quick():
    "What the suite runs: the cases by hand that neither harvest nor train, and a share of the generated ones"
    hand = [c for c in b.cases() if c.made == 'by hand' and not any(s in c.line for s in SLOW)]
    made = [c for c in b.cases() if c.made == 'generated']
    return hand + made[::SHARE]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', os.devnull)


@pytest.mark.parametrize('kind', b.KINDS)
def test_refused_in_one_line(kind):
    rows = b.run([c for c in quick() if c.kind == kind])
    assert rows
    bad = [f"{r['verdict']}: {r['line']}: {r['said']}" for r in rows if r['verdict'] != 'ok']
    assert not bad, '\n'.join(bad)


def test_there_are_enough():
    cases = b.cases()
    assert len(cases) == len({c.line for c in cases}) >= 150
    assert all(sum(c.kind == k for c in cases) >= 10 for k in b.KINDS)


@pytest.mark.parametrize(
    'line,verdict',
    [
        ('1 + 1', 'silent'),
        ('1/0', 'traceback'),
        ("raise UserError('short')", 'lines'),
        ("raise UserError('long enough to be read by someone')", 'ok'),
        ('assert 1 == 2', 'silent'),
        ('no_such_name_anywhere', 'broken'),
        ("cli('presets')", 'silent'),
        ('raise SystemExit(2)', 'traceback'),
    ],
)
def test_each_answer_is_told_apart(line, verdict):
    assert [r['verdict'] for r in b.run([b.Case('settings', line)])] == [verdict]


def test_a_right_answer_may_be_given():
    assert b.run([b.Case('settings', 'assert 1 + 1 == 2', True)])[0]['verdict'] == 'ok'
    assert b.run([b.Case('settings', 'assert 1 + 1 == 3', True)])[0]['verdict'] == 'silent'


def test_a_refusal_for_another_reason_is_told():
    assert b.run([b.Case('settings', "raise UserError('the width is wrong')", says='seed')])[0]['verdict'] == 'masked'
    late = (
        "write(os.environ['JUMPRELU_SAE_CACHE'] + '/stores/a/shard-00000.safetensors'); raise UserError('n_lm is too"
        " large here')"
    )
    assert b.run([b.Case('settings', late)])[0]['verdict'] == 'late'


def test_what_does_not_come_back_is_told(monkeypatch):
    monkeypatch.setattr(b, 'SECONDS', 0.2)
    assert b.run([b.Case('settings', 'import time; time.sleep(9)')])[0]['verdict'] == 'hung'


def test_everything_is_put_back(monkeypatch):
    before = os.getcwd(), dict(os.environ), sys.modules.get('json')
    b.run([b.Case('settings', "os.environ['X_Y'] = '1'; os.chdir('/'); hide('json'); 1")])
    assert before == (os.getcwd(), dict(os.environ), sys.modules.get('json'))
