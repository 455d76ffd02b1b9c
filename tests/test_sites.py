"Sites: against the forward by hand, spliced and resumed; padding at both ends; limits of the model"
import pytest, torch
import torch.nn.functional as F
from jumprelu_sae import sites as S
from jumprelu_sae.core import UserError
from jumprelu_sae.lm import FAMILIES as ROWS, load_lm
from jumprelu_sae.sites import (
    BY_HAND,
    KINDS,
    Site,
    attention_mask,
    capture,
    check_ids,
    forward,
    hook_names,
    layer_inputs,
)
from jumprelu_sae.sites import (
    parse_site,
    run_from,
    site_dim,
    site_module,
    site_table,
    sites_by_hand,
    splice,
    token_losses,
)
from jumprelu_sae.text import ByteTokenizer, generated_corpus, pack

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Tiny products are faster on one thread than shared out over several"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

FAMILIES = [f for f in ROWS if f != 'gemma3_text']   # that is gemma3 by another name
lms = {f: load_lm(f'tiny-{f}') for f in FAMILIES}
tokens = pack(generated_corpus(8), ByteTokenizer(), 40, 39*4-15)
ids, real = tokens.ids, attention_mask(lms['llama'], tokens.ids)

@pytest.mark.parametrize('family', BY_HAND)
def test_sites_and_losses_by_hand(family):
    lm = lms[family]
    want, logits = sites_by_hand(lm, ids)
    assert len(want) == 12
    got = capture(lm, ids, list(want))
    for s in want: assert (got[s]-want[s])[real].abs().max() < 2e-5 * want[s].abs().max(), s
    loss = F.cross_entropy(logits[:,:-1].flatten(0, 1), ids[:,1:].flatten(), reduction='none').view(len(ids), -1)
    ours = token_losses(lm, ids, forward(lm, ids), chunk=33, words=50)
    assert (ours-loss)[real[:,1:]].abs().max() < 1e-4 and ours.dtype == torch.float32

@pytest.mark.parametrize('family', FAMILIES)
def test_run_from_any_earlier_layer(family):
    "Started at layer 0 to 2, spliced at layer 2, with a batch whose last row is padded"
    lm = lms[family]
    for kind in KINDS:
        fn = lambda v: v.roll(1, -1)
        slow = splice(lm, ids, f'{kind}.2', fn)
        for start in range(3):
            fast = run_from(lm, ids, layer_inputs(lm, ids, start), start, (f'{kind}.2', fn))
            assert (fast-slow)[real].abs().max() < 1e-5
    assert (run_from(lm, ids, layer_inputs(lm, ids, 4), 4) - forward(lm, ids))[real].abs().max() < 1e-5

@pytest.mark.parametrize('family', FAMILIES)
def test_padding_changes_nothing(family):
    "A row alone, without its padding, gives the same activations"
    lm, n = lms[family], int(real[-1].sum())
    for s in ('resid.3', 'mlp.2', 'attn.3'):
        s = parse_site(s)
        assert (capture(lm, ids, s)[s][-1,:n] - capture(lm, ids[-1:,:n], s)[s][0]).abs().max() < 1e-5

def test_layer_that_returns_a_tuple():
    "transformers 4's habit: the tensor inside is read and replaced, the rest kept"
    lm = load_lm('tiny-llama')
    layer, cls = lm.layers[1], type(lm.layers[1])
    want = splice(lm, ids, 'resid.1', lambda v: 2*v)
    class Old(cls):
        def forward(self, *a, **k): return super().forward(*a, **k), 'cache'
    class Next(cls):
        def forward(self, h, *a, **k): return super().forward(h[0] if isinstance(h, tuple) else h, *a, **k)
    layer.__class__, lm.layers[2].__class__ = Old, Next
    assert torch.equal(splice(lm, ids, 'resid.1', lambda v: 2*v), want)

def test_gradients_flow_through_the_splice():
    lm = lms['gemma2']
    scale = torch.ones(32, requires_grad=True)
    h = run_from(lm, ids, layer_inputs(lm, ids, 2), 2, ('resid.1', lambda v: v*scale))
    token_losses(lm, ids, h)[real[:,1:]].mean().backward()
    assert scale.grad.abs().sum() > 0 and all(p.grad is None for p in lm.model.parameters())

def test_capture_leaves_no_hooks_even_when_it_fails():
    lm = load_lm('tiny-llama')
    with pytest.raises(ZeroDivisionError): splice(lm, ids, 'resid.1', lambda v: 1/0)
    with pytest.raises(ZeroDivisionError): run_from(lm, ids, layer_inputs(lm, ids, 1), 1, ('mlp.2', lambda v: 1/0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(forward(lm, ids), forward(lms['llama'], ids))

def test_bfloat16_model():
    "Activations keep the model's format, losses are float32"
    lm = load_lm('tiny-gemma3', dtype='bfloat16')
    x = capture(lm, ids, 'attn.1')[Site('attn', 1)]
    l = token_losses(lm, ids, forward(lm, ids))
    assert x.dtype == torch.bfloat16 and l.dtype == torch.float32
    assert (l - token_losses(lms['gemma3'], ids, forward(lms['gemma3'], ids)))[real[:,1:]].mean().abs() < .05

def test_window_of_the_oracle():
    "Each family's oracle masks what its model masks: a model with windows a token longer is another one"
    for family in ('gemma2', 'gemma3', 'mistral'):
        lm = load_lm(f'tiny-{family}')
        want = sites_by_hand(lm, ids)[0][Site('attn', 0)]
        lm.config.sliding_window += 1
        other = sites_by_hand(lm, ids)[0][Site('attn', 0)]
        assert torch.equal(want[:,:16], other[:,:16]) and (want[:,16:]-other[:,16:]).abs().max() > .01

@pytest.mark.parametrize('family', BY_HAND)
def test_site_table_sees_a_wrong_site(family, monkeypatch):
    "A site in a place nearby, of the same width: each kind is found out, in its own row"
    lm = lms[family]
    assert max(r['relative'] for r in site_table(lm, ids[:4])) < 2e-5  # and without padding
    wrong = dict(
        resid=lambda l: (l, 'input'),
        attn=lambda l: (l.self_attn.q_proj, 'output'),
        mlp=lambda l: (l.mlp, 'output' if lm.build.mlp != 'mlp' else 'input'),
    )
    right = site_module
    for kind in KINDS:
        monkeypatch.setattr(
            S, 'site_module', lambda lm, s: wrong[kind](lm.layers[s.layer]) if s.kind == kind else right(lm, s)
        )
        assert {r['site'] for r in site_table(lm, ids) if r['relative'] > .01} == {kind}


def padded(ids, front, back, pad=0): return F.pad(ids, (front, back), value=pad)

@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('front,back', [(6, 0), (0, 6), (3, 5), (41, 0), (1, 1)])
def test_padding_at_either_end(family, front, back):
    "Every site, the final states, the losses and a run from any layer are those of the row alone"
    lm, row = lms[family], ids[:2]
    wide = padded(row, front, back)
    at = slice(front, front+row.shape[1])
    sites = [Site(k, l) for k in KINDS for l in range(4)]
    alone, other = capture(lm, row, sites), capture(lm, wide, sites)
    for s in sites:
        assert other[s].isfinite().all() and (other[s][:,at] - alone[s]).abs().max() < 1e-5 * alone[s].abs().max(), s
    h, g = forward(lm, row), forward(lm, wide)
    assert (g[:,at] - h).abs().max() < 1e-4
    assert (token_losses(lm, wide, g)[:,front:front+39] - token_losses(lm, row, h)).abs().max() < 1e-3
    for start in range(5):
        assert (run_from(lm, wide, layer_inputs(lm, wide, start), start)[:,at] - h).abs().max() < 1e-4

@pytest.mark.parametrize('family', FAMILIES)
def test_rows_padded_differently_share_a_batch(family):
    lm, row = lms[family], ids[:1, :20]
    batch = torch.cat([padded(row, a, 9-a) for a in range(10)])
    x = capture(lm, batch, 'resid.3')[Site('resid', 3)]
    for a in range(10): assert (x[a, a:a+20] - x[0, :20]).abs().max() < 1e-4

def test_a_pad_id_in_the_middle_is_a_token():
    lm, row = lms['llama'], ids[:1].clone()
    row[0, 7] = 0
    assert (
        attention_mask(lm, row) is None
        and attention_mask(lm, padded(row, 2, 3))[0].int().tolist() == [0] * 2 + [1] * 40 + [0] * 3
    )
    a, b = (capture(lm, o, 'resid.3')[Site('resid', 3)] for o in (row, ids[:1]))
    assert (a-b)[0, 7:].abs().max() > .01

def test_bos_that_is_the_pad_token_is_read(monkeypatch):
    "GPT-2's habit: one token for begin, end and padding"
    lm = load_lm('tiny-gpt2')
    monkeypatch.setattr(lm.tokenizer, 'pad_token_id', lm.tokenizer.bos_token_id)
    row = ids[:1]
    assert attention_mask(lm, row) is None
    wide = padded(row, 4, 0, pad=1)
    assert attention_mask(lm, wide).int().tolist() == [[0]*4 + [1]*40]
    x, y = (capture(lm, o, 'resid.3')[Site('resid', 3)] for o in (row, wide))
    assert (x - y[:, 4:]).abs().max() < 1e-5

def test_a_row_of_padding_alone_is_no_nan():
    for lm in lms.values():
        rows = torch.cat([ids[:1], torch.zeros_like(ids[:1])])
        x = capture(lm, rows, 'resid.3')[Site('resid', 3)]
        assert x.isfinite().all() and (x[:1] - capture(lm, ids[:1], 'resid.3')[Site('resid', 3)]).abs().max() < 1e-5

@pytest.mark.parametrize('family', FAMILIES)
def test_names_of_others(family):
    "The transformers scheme leads to the module that is hooked; the TransformerLens scheme has three names"
    lm = lms[family]
    for kind, lens in (('resid', 'hook_resid_post'), ('mlp', 'hook_mlp_out'), ('attn', 'attn.hook_z')):
        names = hook_names(lm, f'{kind}.3')
        path, _, end = names['hf_hook_name'].rpartition('.')
        assert names['hook_name'] == f'blocks.3.{lens}' and (lm.model.get_submodule(path), end) == site_module(
            lm, f'{kind}.3'
        )

def test_names_of_gemma_scope_2():
    "As that suite publishes them, for the model that this book uses"
    got = {k: hook_names(lms['gemma3'], f'{k}.2')['hf_hook_name'] for k in KINDS}
    assert got == dict(
        resid='model.layers.2.output',
        attn='model.layers.2.self_attn.o_proj.input',
        mlp='model.layers.2.post_feedforward_layernorm.output',
    )

@pytest.mark.parametrize(
    'run',
    [
        lambda lm, i: capture(lm, i, 'resid.1'),
        lambda lm, i: forward(lm, i),
        lambda lm, i: splice(lm, i, 'mlp.1', lambda v: v),
        lambda lm, i: layer_inputs(lm, i, 2),
        lambda lm, i: run_from(lm, i, torch.zeros(*i.shape, 32), 2),
    ],
)
def test_what_a_model_cannot_read_is_refused_before_it_runs(run, monkeypatch):
    lm = load_lm('tiny-llama')
    monkeypatch.setattr(type(lm.decoder), 'forward', lambda *a, **k: pytest.fail('the model ran'))
    pad_added_to_the_tokenizer_only = padded(ids, 3, 0, pad=lm.vocabulary)
    for bad, why in (
        (pad_added_to_the_tokenizer_only, 'token id 259: tiny-llama has embeddings for 0 to 258'),
        (ids - 5, 'token id -'),
        (ids.repeat(1, 13), 'rows of 520 tokens: tiny-llama reads at most 512'),
        (ids.float(), 'whole numbers'),
    ):
        with pytest.raises(UserError, match=why) as e: run(lm, bad)
        assert '\n' not in str(e.value)

def test_the_last_id_and_the_longest_row_are_read():
    lm = lms['gemma3']
    long = ids[:1].repeat(1, 13)[:, :512].clone()
    long[0, 5] = 258
    assert forward(lm, long).isfinite().all()
    assert torch.equal(forward(lm, ids[:1].int()), forward(lm, ids[:1]))

@pytest.mark.parametrize('call,match', [
    (lambda: parse_site('foo.1'), 'want a kind of resid, mlp, attn'),
    (lambda: parse_site(3), 'want a kind of resid'),
    (lambda: capture(lms['llama'], ids, 'resid.4'), 'layers 0 to 3'),
    (lambda: layer_inputs(lms['llama'], ids, 5), 'layers 0 to 3'),
    (lambda: run_from(lms['llama'], ids, torch.zeros(*ids.shape, 32), 2, ('mlp.1', lambda v: v)), 'before layer 2'),
    (lambda: sites_by_hand(lms['gpt2'], ids), 'no forward by hand for gpt2'),
    (lambda: run_from(lms['llama'], ids, torch.zeros(1, 40, 32), 2), 'hidden states of shape'),
    (lambda: run_from(lms['llama'], ids, torch.zeros(*ids.shape, 32), 5), 'layers 0 to 3'),
    (lambda: check_ids(lms['llama'], None, 600), 'take seq_len=512 or less'),
])
def test_bad_input_is_one_line(call, match):
    with pytest.raises(UserError, match=match) as e: call()
    assert '\n' not in str(e.value)

def test_layers_before_the_start_are_not_run():
    lm, ran = load_lm('tiny-gemma3'), []
    hidden = layer_inputs(lm, ids, 2)
    for n, layer in enumerate(lm.layers): layer.register_forward_hook(lambda *a, n=n: ran.append(n))
    run_from(lm, ids, hidden, 2)
    assert ran == [2, 3]
