"""A streamed run whose tokens lie in a file: the bits and keys that it has with tokens in memory, bounded memory while
the file is written, and what happens when it is damaged or half written"""
import os, signal, subprocess, sys, tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from jumprelu_sae import experiment, stream
from jumprelu_sae.core import Settings, UserError, read_json
from jumprelu_sae.experiment import choose_tokens, run_experiment
from jumprelu_sae.presets import PRESETS
from jumprelu_sae.stream import open_tokens, write_tokens
from jumprelu_sae.text import ByteTokenizer, Document, load_corpus, pack, split_documents

TINY = replace(PRESETS['tiny'], n_train=2048, n_val=256, n_test=512, n_lm=128, passes=2,
    grid=dict(topk=(4,), relu=(1.,)))
SPLIT = dict(val=.1, test=.1, salt='')

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)

def run(out): return run_experiment(TINY, Settings(progress=False, out=Path(out), store='stream'))

def files(out): return {str(f.relative_to(out)): f.read_bytes() for f in sorted(Path(out).glob('saes/*/*'))}

def test_a_run_from_the_file_is_the_run_from_memory(monkeypatch):
    in_memory = run('memory')
    assert not Path('cache/tokens').exists()
    monkeypatch.setattr(experiment, 'TOKENS_IN_MEMORY', 2048*experiment.TOKEN_BYTES - 1)
    from_file = run('file')
    store = read_json('file/results.json')['facts']['store']
    assert store['tokens']['kind'] == 'file' and 'more than' in store['tokens']['why']
    assert read_json('memory/results.json')['facts']['store']['tokens']['kind'] == 'memory'
    assert files('memory') == files('file') and len(files('file')) >= 4
    def said(rs): return [(r.name, r.config['key'], r.metrics) for r in rs]
    assert said(from_file) == said(in_memory)
    a, b = (read_json(f'{o}/results.json')['facts'] for o in ('memory', 'file'))
    assert a['parts'] == b['parts'] and a['model'] == b['model']
    assert read_json('memory/scale.json') == read_json('file/scale.json')
    data = [f for f in Path('cache/tokens').glob('*/train.ids')]
    assert len(data) == 1 and data[0].stat().st_size < 4*2048*1.2

    monkeypatch.setattr(stream, 'keep_rows', lambda *a: 1/0)  # a second run writes nothing
    run('again')
    with open(data[0], 'r+b') as f: f.write(b'\xff\xff')
    with pytest.raises(UserError, match='train.ids is damaged.*delete .* written again'): run('third')

def test_where(monkeypatch):
    monkeypatch.setattr(experiment, 'free_memory', lambda: 10**12)
    assert [choose_tokens(n)['kind'] for n in (10**6, 63*10**6, 64*10**6, 8*10**9)] == ['memory']*2 + ['file']*2
    monkeypatch.setattr(experiment, 'free_memory', lambda: 10**8)
    assert choose_tokens(10**6)['kind'] == 'file'

class Largest(TorchDispatchMode):
    "The numbers of the largest tensor that an operation makes"
    most = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out

def test_bounded_memory_while_it_is_written(monkeypatch, tmp_path):
    "One document at a time, some rows at a time: read back in pieces, too"
    monkeypatch.setattr(stream, 'ROWS_AT_ONCE', 16)
    held, rows, now, made = [], [], [], stream.MappedTokens.read
    class Text(str):
        def __init__(self, _): now.append(1)
        def __del__(self): now.pop()
    def docs(n):
        for i in range(n):
            yield Document(f'd{i}', Text(f'document {i} ' + 'la '*(20 + i % 7)))
            held.append(len(now))
    monkeypatch.setattr(stream.MappedTokens, 'read', lambda self, idx: rows.append(len(idx)) or made(self, idx))

    def peak(n): # bytes of Python and NumPy, tokens of the side, rows of it that are kept
        tracemalloc.start()
        with Largest() as large:
            write_tokens(docs(n), ByteTokenizer(), 32, dict(train=30*n, val=n, test=n), SPLIT, tmp_path/str(n))
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        t = open_tokens(tmp_path/str(n))[0]['train']
        assert large.most <= max(t.known['of'], 16*32), large.most  # a number for each row, never a side's tokens
        return bytes_, t.known['total'], len(t)

    peak(200)
    few, many = peak(400), peak(1600)
    assert many[2] > 1500 and max(held) <= 2 and max(rows) == 16
    assert (many[0] - few[0])/(many[1] - few[1]) < 2  # bytes a token; in memory 17, twice, and the text

@pytest.mark.parametrize('seed', range(12))
def test_sides_of_any_size_and_rows_that_end_anywhere(seed, tmp_path):
    g = torch.Generator().manual_seed(seed)
    def some(a, b): return int(torch.randint(a, b, (), generator=g))
    docs = [Document(f'ü{i}', 'x'*some(1, 90)) for i in range(some(30, 90))]
    split = dict(val=.3, test=.2, salt=str(seed))
    seq_len = some(2, 40)
    tk = ByteTokenizer()
    if seed % 2: tk.bos_token_id = None
    if seed % 3 == 0:  # tokens inside the text that do not count
        tk.all_special_ids = [0, 1, 2, ord('y') + 3]
        docs = [Document(d.id, d.text[:-1] + 'y') for d in docs]
    sides = split_documents(docs, **split)
    budget = {k: some(1, pack(v, tk, seq_len).n_tokens + 1) for k, v in sides.items()}
    write_tokens(docs, tk, seq_len, budget, split, tmp_path/'t')
    for k, t in open_tokens(tmp_path/'t')[0].items():
        want = pack(sides[k], tk, seq_len, budget[k])
        assert (t.sha, len(t), t.doc_ids) == (want.sha, len(want), want.doc_ids)
        assert all(torch.equal(getattr(t[:], n), getattr(want, n)) for n in ('ids', 'mask', 'doc'))

def test_disk_is_looked_at_before_anything_is_written(monkeypatch):
    def docs():
        raise AssertionError('the corpus was read')
        yield
    def write(free):
        monkeypatch.setattr('shutil.disk_usage', lambda _: SimpleNamespace(free=free))
        write_tokens(docs(), ByteTokenizer(), 32, dict(train=900, val=50, test=31), SPLIT, Path('t'))
    with pytest.raises(UserError, match='the file of tokens needs 3.76e-06 GB and 3.76e-06 GB are free'): write(3761)
    assert not list(Path().glob('*t.tmp')) and not Path('t').exists()
    with pytest.raises(AssertionError, match='was read'): write(3762)

KILLED = '''
import os, signal, sys
from pathlib import Path
from jumprelu_sae import stream
from jumprelu_sae.text import ByteTokenizer, load_corpus
stream.keep_rows = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
budget, split = dict(train=900, val=50, test=31), dict(val=.1, test=.1, salt='')
stream.write_tokens(load_corpus('generated'), ByteTokenizer(), 32, budget, split, Path('t'))
'''

def test_killed_while_it_writes():
    p = subprocess.run([sys.executable, '-c', KILLED], capture_output=True, text=True)
    assert p.returncode == -signal.SIGKILL, p.stderr
    assert not Path('t').exists() and Path('.t.tmp').is_dir()
    write_tokens(load_corpus('generated'), ByteTokenizer(), 32, dict(train=900, val=50, test=31), SPLIT, Path('t'))
    assert not Path('.t.tmp').exists()
    want = pack(split_documents(load_corpus('generated'), **SPLIT)['train'], ByteTokenizer(), 32, 900)
    assert open_tokens('t')[0]['train'].sha == want.sha
