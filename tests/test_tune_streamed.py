"Tuning on activations that are streamed: the rows, judged as from disk; a typing error costs nothing"
from dataclasses import replace
from pathlib import Path
import pytest, torch
from jumprelu_sae import experiment, tuning
from jumprelu_sae.core import Settings, UserError, read_json
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.tuning import tune, tune_jobs

P = replace(PRESETS['tiny'], n_train=1024, n_val=256, n_test=256, n_lm=64, grid=dict(topk=(4,), relu=(1.,)))

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)

def test_as_many_rows_as_from_disk(monkeypatch):
    said = []
    streamed = tune(P, Settings(progress=False, out=Path('streamed'), store='stream'), only='topk', say=said.append)
    jobs = tune_jobs(P, 'topk')
    assert len(streamed['rows']) == len(jobs) and any('; stream: as asked' in l for l in said)
    assert read_json('streamed/decisions.json')['store']['kind'] == 'stream'
    assert not [f for f in Path('cache/stores').glob('*/manifest.json')
        if read_json(f)['facts']['n_tokens'] == P.n_train]  # nothing of the training side is written
    monkeypatch.setattr(tuning, 'train_saes', lambda *a, **kw: 1/0)  # all of it is there: nothing is trained again
    again = tune(P, Settings(progress=False, out=Path('streamed'), store='stream'), only='topk', say=said.append)
    assert again['rows'] == streamed['rows']

def test_refused_before_the_model_is_there(monkeypatch):
    monkeypatch.setattr(experiment, 'load_lm', lambda *a, **kw: 1/0)
    with pytest.raises(UserError, match='has no gated'):
        tune(P, Settings(progress=False, out=Path('out'), store='stream'), only='gated')
