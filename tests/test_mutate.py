"tools/mutate.py: its substitutions fit the source, a fault that it brings in is noticed, and what is no fault is not"

import dataclasses, json, sys
from collections import Counter
from pathlib import Path
import pytest
# imported here, so that mutants get interpreters of their own: a fork of this pytest would share its output
import jumprelu_sae.core

sys.path.insert(0, str(Path(__file__).parent.parent / 'tools'))
import mutate


@pytest.mark.parametrize('m', mutate.MUTANTS, ids=lambda m: f'{m.fault} in {m.where}')
def test_substitution_fits_once(m):
    assert set(mutate.matches(m)) == {
        1
    }, f'{m.old!r} is in {mutate.files(m)} {mutate.matches(m)} times: bring tools/mutate.py up to date'
    src = mutate.replaced(mutate.ROOT / mutate.LIB / m.file, m.old, m.new)
    compile(src, m.file, 'exec')


def test_all_seven_faults_are_there():
    assert {m.fault[0] for m in mutate.MUTANTS if m.fault[0].isdigit()} == set('1234567')


def test_the_whole_road_is_covered():
    per = Counter(m.module for m in mutate.MUTANTS)
    assert (
        sum(per.values()) >= 60
        and {'ste', 'sae', 'train', 'stream', 'evaluate'} <= per.keys()
        and min(per.values()) >= 2
    )
    assert len({(m.file, m.old, m.new) for m in mutate.MUTANTS}) == len(mutate.MUTANTS)


def test_a_fault_goes_into_the_notebook_too(tmp_path):
    m = next(m for m in mutate.MUTANTS if '"' in m.old and m.module == 'core')
    nb = mutate.notebook(m)
    after = json.loads(mutate.replaced(nb, m.old, m.new))
    before = json.loads(nb.read_text(encoding='utf-8'))
    changed = [
        i
        for i, (a, b) in enumerate(zip(before['cells'], after['cells']))
        if ''.join(a['source']) != ''.join(b['source'])
    ]
    assert len(changed) == 1 and m.new in ''.join(after['cells'][changed[0]]['source'])


def test_a_mutant_goes_red(tmp_path):
    m = next(m for m in mutate.MUTANTS if m.fault == '1 step on f' and m.where == 'l0')
    m = dataclasses.replace(m, tests=['tests/test_ste.py::test_fused_equals_the_two'])
    mutate.copy(tmp_path)
    before = (tmp_path / mutate.LIB / m.file).read_bytes()
    red = mutate.run_mutant(m, tmp_path)
    assert len(red) > 5 and all(r.startswith(m.tests[0]) for r in red)
    assert (tmp_path / mutate.LIB / m.file).read_bytes() == before
    same = dataclasses.replace(m, new=m.old + ' ')  # a space more: nothing to notice
    assert mutate.run_mutant(same, tmp_path) == []


def test_what_is_not_the_copy_is_refused(tmp_path, monkeypatch):
    mutate.copy(tmp_path / 'copy')
    elsewhere = tmp_path / 'copy' / 'moved'
    (tmp_path / 'copy' / mutate.LIB).rename(elsewhere)  # now only the installed package can be found
    with pytest.raises(RuntimeError):
        mutate.run_tests(tmp_path / 'copy', ['tests/test_ste.py::test_the_loss'])
