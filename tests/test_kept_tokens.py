"Tokens of a long corpus in the cache: the same ones, under everything that they depend on; and what is not read twice"
import json
import pytest
import torch
from jumprelu_sae import harvest, text
from jumprelu_sae.text import ByteTokenizer, Document, encoded, pack

DOCS = [Document('a', 'one two three two'), Document('b', 'three one')]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv('JUMPRELU_SAE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(text, 'KEPT_FROM', 1)


def fast(*words):
    "A fast tokenizer of transformers that knows some words"
    tokenizers = pytest.importorskip('tokenizers')
    from transformers import PreTrainedTokenizerFast

    ids = {w: i for i, w in enumerate(['?', *words])}
    known = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='?'))
    known.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=known, unk_token='?', pad_token='?')


def lists(ids):
    return [o.tolist() for o in ids]


def counted(monkeypatch):
    "How often documents are turned into tokens"
    calls, real = [], text._encode
    monkeypatch.setattr(text, '_encode', lambda *a: (calls.append(1), real(*a))[1])
    return calls


def test_kept_tokens_are_the_same_and_are_made_once(monkeypatch):
    calls, tok = counted(monkeypatch), fast('one', 'two', 'three')
    first = encoded(DOCS, tok)
    assert lists(first) == [[1, 2, 3, 2], [3, 1]]
    again = encoded(DOCS, fast('one', 'two', 'three'))
    assert lists(again) == lists(first) and again[0].dtype == first[0].dtype and len(calls) == 1
    rows = pack(DOCS, tok, 3, 4)
    assert len(calls) == 1 and rows.ids.tolist() == pack(DOCS, tok, 3, 4).ids.tolist()


def test_another_text_order_or_word_is_made_anew(monkeypatch):
    calls = counted(monkeypatch)
    encoded(DOCS, fast('one', 'two', 'three'))
    others = [
        (DOCS[::-1], fast('one', 'two', 'three')),
        ([DOCS[0], Document('b', 'three two')], fast('one', 'two', 'three')),
        (DOCS, fast('one', 'three', 'two')),  # the probe does not tell these two apart
    ]
    assert text.tokenizer_identity(others[0][1]) == text.tokenizer_identity(others[2][1])
    for n, (docs, tok) in enumerate(others, 2):
        assert lists(encoded(docs, tok)) == lists(text._encode(docs, tok)) and len(calls) == 2 * n - 1


def test_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    calls, tok = counted(monkeypatch), fast('one', 'two', 'three')
    first = lists(encoded(DOCS, tok))
    (file,) = (tmp_path / 'cache/tokens').glob('*.safetensors')
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert lists(encoded(DOCS, tok)) == first and len(calls) == 2
    file.with_suffix('.json').write_text(json.dumps(dict(key='of another corpus', sha256='0')))
    assert lists(encoded(DOCS, tok)) == first and len(calls) == 3


def test_a_tokenizer_that_cannot_be_written_down_is_asked(tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    for _ in range(2):
        encoded(DOCS, ByteTokenizer())
    assert len(calls) == 2 and not (tmp_path / 'cache').exists()


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / 'cache').write_text('a file')
    assert lists(encoded(DOCS, fast('one', 'two', 'three'))) == [[1, 2, 3, 2], [3, 1]]


def test_a_shard_is_compared_once_by_a_harvest_and_its_store(tmp_path, monkeypatch):
    from jumprelu_sae.lm import load_lm
    from jumprelu_sae.text import generated_corpus

    lm = load_lm('tiny-llama')
    tokens = pack(generated_corpus(8), lm.tokenizer, 32, 200)
    harvest.harvest(lm, tokens, 'resid.1', tmp_path / 's', progress=False)
    read, real = [], harvest.sha256
    for module in (harvest, __import__('jumprelu_sae.core', fromlist=['x'])):
        monkeypatch.setattr(module, 'sha256', lambda p: (read.append(p.name), real(p))[1])
    store = harvest.harvest(lm, tokens, 'resid.1', tmp_path / 's', progress=False)
    x = store.load()['x']
    assert read == ['shard-00000.safetensors']
    file = tmp_path / 's/shard-00000.safetensors'
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(harvest.UserError, match='altered'):
        store.load()
    assert torch.equal(harvest.harvest(lm, tokens, 'resid.1', tmp_path / 's', progress=False).load()['x'], x)
