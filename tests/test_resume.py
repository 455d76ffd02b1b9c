"A run that is killed and started again ends in the numbers of a run left alone (`python tools/kill_test.py 10` does it ten times)."
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).parent.parent/'tools'))
from kill_test import kill_test

@pytest.mark.timeout(600)
def test_killed_and_resumed_is_the_same(tmp_path):
    killed, alone = kill_test(tmp_path, times=3, seed=1)
    assert killed == alone
