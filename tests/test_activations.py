"Activations: by hand on both roads, without massive tokens, identities, refusals that change nothing, from an SAE back"
import json, logging, sys
from collections import Counter
import pytest, torch
from jumprelu_sae import harvest as H, stream as S
from jumprelu_sae.activations import activations, held_out, trained_elsewhere
from jumprelu_sae.core import ActivationStream, Settings, TensorStream, UserError, differences
from jumprelu_sae.harvest import harvest, prepare
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sae import SAEConfig, load_sae, make_sae
from jumprelu_sae.sites import Site, capture
from jumprelu_sae.text import Document, generated_corpus, load_corpus, pack, split_documents

A = sys.modules['jumprelu_sae.activations']   # the package's attribute of that name is the function
QUIET = Settings(progress=False)
DISK = Settings(progress=False, in_memory=False)
SIZES = dict(site='resid.1', n_train=3000, n_val=400, n_test=500, seq_len=32)

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products are faster on one thread than shared out over several"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

@pytest.fixture(scope='module')
def lm():
    "A tiny model that shouts at every capital T, as Gemma does at a few tokens"
    m = load_lm('tiny-gemma2')
    m.decoder.embed_tokens.weight.data[m.tokenizer.encode('T')] *= 20
    return m

docs = generated_corpus(30)
mended = [Document(o.id, o.text.replace('lantern', 'Lantern', 1)) for o in docs]

def write(path, documents):
    path.write_text(''.join(json.dumps(dict(id=o.id, text=o.text)) + '\n' for o in documents))
    return path

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('acts')

@pytest.fixture(scope='module')
def text(folder): return write(folder/'text.jsonl', docs)

@pytest.fixture(scope='module')
def make(lm, text, folder):
    def make(model=lm, corpus=text, settings=QUIET, **kw):
        return activations(model, corpus, **SIZES | dict(folder=folder/'stores', settings=settings) | kw)
    return make

@pytest.fixture(scope='module')
def here(make): return make()

@pytest.fixture(scope='module')
def there(make, folder):
    "The same from disk, in several shards"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(A, 'harvest', lambda *a, **k: harvest(*a, shard_rows=16, **k))
        return make(settings=DISK, folder=folder/'shards')

@pytest.fixture(scope='module')
def by_hand(lm):
    "What the training side must be: every token through the model at once, indexed by hand"
    t = pack(split_documents(docs)['train'], lm.tokenizer, 32, 3000)
    x = capture(lm, t.ids, 'resid.1')[Site('resid', 1)][t.mask]
    loud = t.ids[t.mask] == lm.tokenizer.encode('T')[0]
    assert loud.sum() > 20 and (x[loud].square().sum(1).min() > 20*x.square().sum(1).median())
    return dict(x=x, loud=loud)

def counted(x): return Counter(map(tuple, x.tolist()))

# -- massive tokens ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('road', ['here', 'there'])
def test_neither_road_counts_massive_tokens(road, by_hand, request):
    acts, x, loud = request.getfixturevalue(road), by_hand['x'], by_hand['loud']
    assert torch.allclose(acts.mean, x[~loud].mean(0), atol=1e-5)
    assert torch.allclose(acts.scaler.mean, x[~loud].mean(0), atol=1e-5)
    assert (acts.mean - x.mean(0)).abs().max() > .1      # what counting them would give
    assert abs(acts.scaler.scale - (x[~loud] - x[~loud].mean(0)).square().sum(1).mean().sqrt()) < 1e-4
    parts = acts.facts()['parts']
    assert parts['train']['massive'] == int(loud.sum()) and parts['train']['tokens'] == 3000
    for k in ('val', 'test'):
        assert parts[k]['massive'] == int((acts.part(k)['token'] == acts.lm.tokenizer.encode('T')[0]).sum()) > 0

@pytest.mark.parametrize('road', ['here', 'there'])
def test_no_massive_token_is_dealt_and_all_others_are(road, by_hand, request):
    acts, n = request.getfixturevalue(road), int((~by_hand['loud']).sum())
    s = acts.stream(50)
    assert isinstance(s, ActivationStream) and s.d_in == 32
    got = torch.cat([next(s) for _ in range(n//50)])
    raw = acts.scaler.inverse(got)
    assert raw.square().sum(1).max() <= acts.rule.limit
    want = acts.scaler(acts.part('train')['x'][~by_hand['loud']])
    assert not counted(got) - counted(want) and len(got) == n//50*50

def test_the_roads_agree_and_say_which_they_are(here, there):
    assert there.stores['train'].manifest['shards'][5]['n'] > 0
    assert here.in_memory and not there.in_memory
    assert here.identity() == there.identity() and here.rule == there.rule
    assert torch.allclose(here.mean, there.mean, atol=1e-6) and here.facts()['parts'] == there.facts()['parts']
    a, b = here.stream(50).identity(), there.stream(50).identity()
    assert b['data'] == here.identity() | dict(order='buckets (in_memory=False)') and a['data'] == here.identity()

def test_without_a_rule_everything_is_dealt(make, by_hand):
    for settings in (QUIET, DISK):
        acts = make(massive=None, settings=settings)
        assert acts.facts()['parts']['train']['massive'] == 0 and acts.identity()['massive'] is None
        assert torch.allclose(acts.mean, by_hand['x'].mean(0), atol=1e-5)
        s = acts.stream(50)
        got = torch.cat([next(s) for _ in range(60)])
        assert counted(got) == counted(acts.scaler(acts.part('train')['x']))

def test_a_sample_is_enough_for_the_rule(there, by_hand, monkeypatch):
    "What does not fit is fitted on a sample; the mean is of everything"
    monkeypatch.setattr(A, 'SAMPLE', 500)
    side, x = A.fit_from_disk(there.stores['train']), there.part('train')['x']
    # spread over all of the text
    assert side.rule == prepare(x[::6])[1] and side.scaler.scale == prepare(x[::6])[0].scale
    assert torch.allclose(side.mean, by_hand['x'][~by_hand['loud']].mean(0), atol=1e-5)
    assert side.scaler.scale != there.scaler.scale and abs(side.scaler.scale/there.scaler.scale - 1) < .2

# -- the same numbers as the parts by hand -----------------------------------------------------------------------------
@pytest.mark.parametrize('centre,massive', [(True, 20.), (False, 20.), (True, None), (True, 1.4)])
def test_in_memory_road_to_the_last_bit(make, centre, massive):
    acts = make(centre=centre, massive=massive)
    x = acts.stores['train'].load()['x']
    scaler, rule = prepare(x, massive, centre)
    kept = x[~rule(x)]
    want, s = TensorStream(kept, 64, 7, scaler), acts.stream(64, 7)
    for _ in range(120): assert torch.equal(next(s), next(want))
    assert torch.equal(acts.mean, kept.mean(0, dtype=torch.float64).float()) and acts.scaler.scale == scaler.scale
    assert acts.rule == rule

# by the code before there was this notebook
GOLDEN = dict(train='07d8f2e112a82ac5', test='a0046f912fdb944e', scale=11.111915633008383,
    batch=[-0.08541633933782578, -0.08103448897600174, 0.1343821883201599, -0.07727611809968948])

def test_golden(here):
    "Recorded once: changes of order, split, packing, rule or scale show here"
    assert here.tokens['train'].sha[:16] == GOLDEN['train'] and here.tokens['test'].sha[:16] == GOLDEN['test']
    b = next(here.stream(64, 3))
    assert abs(here.scaler.scale - GOLDEN['scale']) < 1e-4
    assert torch.allclose(b[0, :4], torch.tensor(GOLDEN['batch']), atol=1e-4)

# -- identity ----------------------------------------------------------------------------------------------------------
CHANGES = dict(edited=('corpus', dict(corpus='EDITED')), text=('corpus', dict(corpus='generated')),
    site=('site', dict(site='mlp.1')),
    rows=('seq_len', dict(seq_len=40)), budget=('n_train', dict(n_train=2500)), rule=('massive', dict(massive=10.)),
    no_rule=('massive', dict(massive=None)), paper=('centre', dict(centre=False)), seed=('model', dict(model=1)),
    dtype=('model', dict(model='bfloat16')))

@pytest.fixture(scope='module')
def changed(make, folder):
    "Activations that differ in one thing"
    def get(name):
        kw = dict(CHANGES[name][1])
        if kw.get('corpus') == 'EDITED': kw['corpus'] = write(folder/'edited'/'text.jsonl', mended)
        if kw.get('model') == 1: kw['model'] = load_lm('tiny-gemma2', seed=1)
        if kw.get('model') == 'bfloat16': kw['model'] = load_lm('tiny-gemma2', dtype='bfloat16')
        return make(**kw)
    (folder/'edited').mkdir()
    return get

@pytest.mark.parametrize('name', CHANGES)
def test_a_state_of_other_data_is_refused_before_anything_moves(name, here, changed):
    mine, other = here.stream(50), changed(name).stream(50)
    for _ in range(3): next(mine)
    state = json.loads(json.dumps(mine.state_dict()))
    next(other)
    before, want = other.state_dict(), next(_copy(other))
    with pytest.raises(UserError, match=f'data.{CHANGES[name][0]}') as e: other.load_state_dict(state)
    assert '\n' not in str(e.value) and other.state_dict() == before and torch.equal(next(other), want)
    assert differences(here.identity(), changed(name).identity())

def _copy(stream):
    "Another stream at the same place"
    new = TensorStream(stream.x, stream.batch, stream.seed, stream.scaler, stream._facts)
    new.load_state_dict(stream.state_dict())
    return new

def test_memory_and_disk_refuse_each_other_and_name_the_setting(here, there):
    for a, b in ((here, there), (there, here)):
        s, t = a.stream(50), b.stream(50)
        next(s), next(t)
        before = t.state_dict()
        with pytest.raises(UserError, match='in_memory=False'): t.load_state_dict(s.state_dict())
        assert t.state_dict() == before

@pytest.mark.parametrize('road', ['here', 'there'])
def test_resumed_streams_go_on(road, request):
    acts = request.getfixturevalue(road)
    want = [next(s) for s in [acts.stream(50, 1)] for _ in range(130)]   # more than two epochs
    for k in (0, 1, 57, 58, 59, 60, 119):
        s = acts.stream(50, 1)
        for _ in range(k): next(s)
        again = acts.stream(50, 1)
        again.load_state_dict(json.loads(json.dumps(s.state_dict())))
        for i in range(k, min(k+3, 130)): assert torch.equal(next(again), want[i])

def test_what_does_not_matter_is_not_in_the_identity(make, here, tmp_path):
    other = make(n_test=300, n_val=300, folder=tmp_path/'x', settings=Settings(progress=False, threads=1),
        corpus=write(tmp_path/'text.jsonl', docs))
    assert other.identity() == here.identity()

def test_identity_is_json_and_names_its_parts(here):
    i = here.identity()
    assert json.loads(json.dumps(i)) == i
    assert set(i) == {'model', 'site', 'corpus', 'split', 'seq_len', 'bos', 'n_train', 'tokens', 'massive', 'centre',
        'dtype'}
    assert i['corpus']['name'] == 'text.jsonl' and len(i['corpus']['sha256']) == 64
    assert i['tokens'] == here.tokens['train'].sha

def test_facts_say_what_there_is(make):
    acts = make(site='mlp.2', n_val=350)
    f = acts.facts()
    assert (f['site'], f['d_in'], f['centred'], f['massive_factor']) == ('mlp.2', 32, True, 20.)
    assert f['model'] == acts.lm.identity() and f['scale'] == acts.scaler.scale
    assert {k: v['tokens'] for k, v in f['parts'].items()} == dict(train=3000, val=350, test=500)
    sides = split_documents(docs)
    for k, v in f['parts'].items():
        assert v['documents_in_split'] == len(sides[k]) and v['documents'] == len(acts.part(k)['doc'].unique())
        assert v['sha256'] == acts.tokens[k].sha == acts.stores[k].facts['tokens']
        assert v['massive'] == int(acts.rule(acts.part(k)['x']).sum())
    assert acts.stores['train'].facts['site'] == 'mlp.2' and acts.metadata()['hook_name'] == 'blocks.2.hook_mlp_out'

# -- nothing is computed twice, nothing before it is known to work -----------------------------------------------------
def test_finished_and_half_finished_harvests_are_used_again(make, here, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(H, 'capture', lambda *a: 1/0)
        make(), make(massive=None), make(centre=False), make(settings=DISK)
    calls, real = [], H.capture
    monkeypatch.setattr(H, 'capture', lambda *a: (calls.append(1), real(*a))[1])
    make(folder=tmp_path/'n')
    n = len(calls)
    def dies(*a):
        if len(calls) >= n//2: raise KeyboardInterrupt
        calls.append(1)
        return real(*a)
    monkeypatch.setattr(A, 'harvest', lambda *a, **k: harvest(*a, shard_rows=16, **k))
    calls.clear()
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(H, 'capture', dies)
        make(folder=tmp_path/'k')
    half = len(calls)
    monkeypatch.setattr(H, 'capture', lambda *a: (calls.append(1), real(*a))[1])
    acts = make(folder=tmp_path/'k')
    assert 0 < half < len(calls) <= n + 1 and torch.equal(acts.part('train')['x'], here.part('train')['x'])

BAD = [
    (dict(n_train=0), 'n_train=0'),
    (dict(n_train=-5), 'n_train=-5'),
    (dict(n_train=2.5), 'n_train=2.5'),
    (dict(n_val=0), 'n_val=0'),
    (dict(n_test='many'), "n_test='many'"),
    (dict(n_test=True), 'n_test=True'),
    (dict(seq_len=1), 'at least 2'),
    (dict(seq_len=513), 'reads at most 512'),
    (dict(seq_len=32.), 'seq_len=32.0'),
    (dict(massive=1.), 'above 1'),
    (dict(massive=-20), 'above 1'),
    (dict(massive=float('nan')), 'above 1'),
    (dict(massive='20'), 'above 1'),
    (dict(centre='yes'), 'want True or False'),
    (dict(batch_rows=0), 'batch_rows=0'),
    (dict(site='resid.9'), 'layers 0 to 3'),
    (dict(site='resid'), 'unknown site'),
    (dict(site=''), 'unknown site'),
    (dict(n_train=10**7), 'lower n_train='),
    (dict(n_val=10**7), 'lower n_val='),
    (dict(n_test=10**7), 'lower n_test='),
    (dict(corpus='nowhere'), 'no such corpus'),
    (dict(settings='cpu'), 'want a Settings'),
    (dict(folder='FILE'), 'there is a file'),
]

@pytest.mark.parametrize('change,says', BAD, ids=[s for _, s in BAD])
def test_bad_settings_are_one_line_before_the_model_runs(make, text, monkeypatch, change, says):
    monkeypatch.setattr(H, 'capture', lambda *a: 1/0)
    if change.get('folder') == 'FILE': change = dict(folder=text)
    with pytest.raises(UserError, match=says) as e: make(**change)
    assert '\n' not in str(e.value)

def test_no_memory_and_no_disk(make, tmp_path, monkeypatch):
    monkeypatch.setattr(H, 'capture', lambda *a: 1/0)
    with monkeypatch.context() as m:
        m.setattr(A, 'free_memory', lambda: 3000*32*4 - 1)
        with pytest.raises(UserError, match='in_memory=False'): make(settings=Settings(progress=False, in_memory=True))
    with monkeypatch.context() as m:
        m.setattr(H.shutil, 'disk_usage', lambda p: type('Usage', (), dict(free=3900*(32*4+16) - 1)))
        with pytest.raises(UserError, match='are free in'): make(folder=tmp_path/'small')
    with monkeypatch.context() as m:   # the memory decides only when nobody else does
        for free, want in ((4*3000*32*4, True), (4*3000*32*4 - 1, False)):
            m.setattr(A, 'free_memory', lambda free=free: free)
            m.setattr(S, 'free_memory', lambda d='cpu': 10**9)
            assert make().in_memory == want

def test_threads_are_put_back(make):
    torch.set_num_threads(2)
    try:
        make(settings=Settings(progress=False, threads=1))
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(1)

# -- from an SAE back to its text --------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def plain(make): return make('tiny-gemma2')   # can be loaded again by its name

@pytest.fixture(scope='module')
def sae(plain, folder):
    make_sae(SAEConfig('topk', 32, 64, k=4)).finish(plain.scaler, plain.metadata()).save(folder/'sae')
    return load_sae(folder/'sae')

@pytest.fixture(scope='module')
def judge(folder):
    return lambda sae, **kw: held_out(sae, **dict(n_test=500, folder=folder/'stores', settings=QUIET) | kw)

def test_an_sae_finds_its_own_held_out_text(sae, plain, judge, folder):
    for o in (sae, folder/'sae', str(folder/'sae')):
        back = judge(o)
        assert torch.equal(back.part()['x'], plain.part()['x']) and torch.equal(back.part()['doc'], plain.part()['doc'])
        assert back.rule == plain.rule and torch.equal(back.mean, plain.mean)
        assert torch.equal(back.scaler.mean, plain.scaler.mean)
        assert back.scaler.scale == plain.scaler.scale and not back.elsewhere and back.identity() == plain.identity()
        assert list(back.stores) == ['test'] and back.facts()['parts'] == {'test': plain.facts()['parts']['test']}

def test_the_file_says_everything(sae, plain):
    m = sae.metadata
    assert m['jumprelu_sae']['data'] == plain.identity()
    assert m['jumprelu_sae']['massive'] == dict(factor=20., median=plain.rule.median)
    assert m['jumprelu_sae']['mean'] == plain.mean.tolist() and m['jumprelu_sae']['scale'] == plain.scaler.scale
    assert (m['context_size'], m['prepend_bos'], m['hook_name'], m['hf_hook_name'], m['model_name']) == (
        32, True, 'blocks.1.hook_resid_post', 'model.layers.1.output', 'tiny-gemma2')

@pytest.mark.parametrize('what,kw', [('corpus', dict(corpus='generated')), ('site', dict(site='mlp.2')),
    ('seq_len', dict(seq_len=40)), ('model', dict(lm='tiny-llama'))])
def test_elsewhere_is_said(sae, plain, judge, caplog, what, kw):
    with caplog.at_level(logging.WARNING): acts = judge(sae, **kw)
    assert {o.partition(':')[0].partition('.')[0] for o in acts.elsewhere} == {what}
    assert 'judged elsewhere' in caplog.text
    assert acts.rule == plain.rule and torch.equal(acts.mean, plain.mean)
    assert not torch.equal(acts.part()['x'], plain.part()['x'])
    assert trained_elsewhere(sae, acts) == acts.elsewhere and not trained_elsewhere(sae, plain)

def test_a_text_that_has_changed_is_not_taken_for_the_old_one(make, judge, tmp_path):
    p = write(tmp_path/'t.jsonl', docs)
    acts = make('tiny-gemma2', p)
    sae = make_sae(SAEConfig('relu', 32, 64)).finish(acts.scaler, acts.metadata())
    assert not judge(sae).elsewhere
    write(p, mended)
    with pytest.raises(UserError, match='has changed since'): judge(sae)
    assert 'corpus' in judge(sae, corpus=p).elsewhere[0]
    p.unlink()
    with pytest.raises(UserError, match='give corpus='): judge(sae)

def test_a_model_that_has_changed_is_not_taken_for_the_old_one(plain, judge):
    m = plain.metadata()
    m['jumprelu_sae']['data']['model']['family'] = 'gemma3'
    with pytest.raises(UserError, match='not the model that the SAE was trained on'):
        judge(make_sae(SAEConfig('relu', 32, 64)).finish(plain.scaler, m))

@pytest.mark.parametrize('kw,says', [(dict(site='attn.1'), 'takes activations of width 32'),
    (dict(site='resid.9'), 'layers 0 to 3'),
    (dict(n_test=10**7), 'lower n_test='), (dict(n_test=0), 'n_test=0'), (dict(seq_len=1), 'seq_len=1'),
    (dict(seq_len=1000), 'reads at most'),
    (dict(corpus='nowhere'), 'no such corpus')])
def test_bad_questions_are_one_line(sae, judge, kw, says):
    with pytest.raises(UserError, match=says) as e: judge(sae, **kw)
    assert '\n' not in str(e.value)

def test_an_unfinished_sae_is_refused(judge):
    with pytest.raises(UserError, match='still in training'): judge(make_sae(SAEConfig('relu', 32, 64)))
