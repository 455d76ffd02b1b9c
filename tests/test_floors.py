"Floors: cones in many dimensions, every architecture on the leash, stopped and resumed, from disk, never mixed up"
import pytest
import torch
from jumprelu_sae.activations import activations, held_out, store_dir
from jumprelu_sae.core import Settings, UserError
from jumprelu_sae.evaluate import evaluate
from jumprelu_sae.floors import (KINDS, half_directions, into_cone, random_dictionary, rerandomised, shuffled_decoder,
    soft_frozen, soft_frozen_class, training_rows)
from jumprelu_sae.lm import load_lm
from jumprelu_sae.recipe import train_sae
from jumprelu_sae.sae import ARCHITECTURES, init_decoder, load_sae

QUIET = Settings(progress=False)
SIZES = dict(site='resid.1', n_train=4000, n_val=400, n_test=500, seq_len=32, settings=QUIET)


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('stores')


@pytest.fixture(scope='module')
def lm():
    "A tiny model that shouts at every capital T: massive tokens, which floors must not be fitted on"
    m = load_lm('tiny-gemma2')
    m.decoder.embed_tokens.weight.data[m.tokenizer.encode('T')] *= 20
    return m


@pytest.fixture(scope='module')
def acts(folder, lm):
    return activations(lm, 'generated', folder=folder, **SIZES)


def rows_and_axes(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    W, A = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    return W, A/A.norm(dim=1, keepdim=True)


# --- the cone

@pytest.mark.parametrize('d', [2, 5, 64])
@pytest.mark.parametrize('c', [0., .3, .8, 1.])
def test_into_cone(d, c):
    W, A = rows_and_axes(200, d, d)
    P, norm = into_cone(W, A, c), W.norm(dim=1)
    cos = (P*A).sum(1)/norm
    assert torch.allclose(P.norm(dim=1), norm) and (cos >= c - 1e-9).all()
    assert torch.allclose(into_cone(P, A, c), P)                       # inside it stays
    out = (W*A).sum(1) < c*norm
    assert torch.equal(P[~out], W[~out]) and torch.allclose(cos[out], torch.full_like(cos[out], c))
    side = P - (P*A).sum(1, keepdim=True)*A                            # moved in the plane of w and its axis only
    was = W - (W*A).sum(1, keepdim=True)*A
    if c < 1: assert torch.allclose(torch.cosine_similarity(side, was)[out], torch.ones(int(out.sum())).double())


def test_a_small_turn_never_brings_it_nearer():
    W, A = rows_and_axes(500, 6, 0)
    W = W/W.norm(dim=1, keepdim=True)
    P, g = into_cone(W, A, .8), torch.Generator().manual_seed(1)
    for size in (.3, .03, .003):
        Q = P + size*torch.randn(P.shape, generator=g, dtype=torch.float64)
        Q = Q/Q.norm(dim=1, keepdim=True)
        inside = (Q*A).sum(1) >= .8
        assert inside.any()
        assert ((Q - W).norm(dim=1) >= (P - W).norm(dim=1) - 1e-12)[inside].all()


# --- the leash

SPARSITY = dict(relu=dict(coef=.05), gated=dict(coef=.05))

@pytest.mark.parametrize('arch', list(ARCHITECTURES))
def test_every_architecture_on_the_leash(acts, arch, tmp_path):
    sparse, l0 = SPARSITY.get(arch, {}), None if arch in SPARSITY else 4
    soft = soft_frozen(arch, acts, 48, l0, seed=3, cosine=.95, settings=QUIET, batch=100, **sparse)
    cos = (soft.W_dec*init_decoder(48, 32, 3)).sum(1)
    assert cos.min() > .95 - 1e-5 and (cos < .9501).any()         # and it is felt
    assert type(soft) is ARCHITECTURES[arch].sae and soft.finished and soft.metadata['jumprelu_sae']['floor']
    assert evaluate(soft, acts, n_lm=0).metrics['fvu'] < 1
    soft.save(tmp_path)
    x = acts.part('test')['x']
    assert torch.allclose(load_sae(tmp_path)(x), soft(x), atol=1e-3)


def test_free_rows_of_a_gated_sae(acts):
    soft = soft_frozen('gated', acts, 48, None, cosine=.95, settings=QUIET, batch=100, coef=.05, free_rows=True)
    cos = (soft.W_dec*init_decoder(48, 32, 0)).sum(1)
    assert cos.min() > .95 - 1e-5 and (cos < .9501).any()
    assert torch.allclose(soft.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)   # folded when it is finished


def test_a_leash_of_no_length(acts):
    frozen = soft_frozen('topk', acts, 48, 4, cosine=1., settings=QUIET, batch=100)
    assert torch.allclose(frozen.W_dec, init_decoder(48, 32, 0), atol=1e-5)
    assert not torch.allclose(frozen.W_enc.T, frozen.W_dec, atol=1e-2)          # the encoder is free
    with pytest.raises(UserError, match='cosine=1.2'): soft_frozen('topk', acts, 48, 4, cosine=1.2)
    with pytest.raises(UserError, match='no such architecture'): soft_frozen('nothing', acts, 48, 4)
    with pytest.raises(UserError, match='cannot be told an L0'): soft_frozen('relu', acts, 48, 4)


def test_the_class_is_made_once():
    assert soft_frozen_class('topk', .8) is soft_frozen_class('topk', .8)
    assert soft_frozen_class('topk', .8).__qualname__ != soft_frozen_class('topk', .7).__qualname__


class Stop:
    "A tracker that stands for a killed process"
    def __init__(self, at): self.at, self.n = at, 0
    def __call__(self, step, values):
        self.n += 1
        if self.n == self.at: raise KeyboardInterrupt


def test_stopped_and_resumed(acts, tmp_path):
    kw = dict(batch=100, log_every=1)
    whole = soft_frozen('jumprelu', acts, 48, 4, settings=QUIET, **kw)
    often = Settings(progress=False, save_every=1e-9)
    for at in (9, 20):
        with pytest.raises(KeyboardInterrupt):
            soft_frozen('jumprelu', acts, 48, 4, settings=often, folder=tmp_path, track=Stop(at), **kw)
    with pytest.raises(UserError, match='another run'):
        soft_frozen('jumprelu', acts, 48, 4, cosine=.7, settings=often, folder=tmp_path, **kw)
    again = soft_frozen('jumprelu', acts, 48, 4, settings=often, folder=tmp_path, **kw)
    assert len(again.metadata['jumprelu_sae']['history']) == 40
    for k, v in whole.state_dict().items(): assert torch.equal(again.state_dict()[k], v), k
    assert again.metadata['jumprelu_sae']['key'] == whole.metadata['jumprelu_sae']['key']


# --- the others

def test_shuffled_of_a_shuffled_is_itself_a_floor(acts):
    sae = random_dictionary(acts, 40, 4)
    once = shuffled_decoder(sae)
    twice = shuffled_decoder(once, 1)
    keys = [s.metadata['jumprelu_sae']['key'] for s in (sae, once, twice, shuffled_decoder(sae, 1))]
    assert len(set(keys)) == 4
    for n in (2, 3, 40):
        small = random_dictionary(acts, n, 1)
        for seed in range(5): assert not (shuffled_decoder(small, seed).W_dec == small.W_dec).all(1).any()
    with pytest.raises(UserError, match='one latent'): shuffled_decoder(random_dictionary(acts, 1, 1))


def test_from_disk_as_from_memory(acts, lm, folder):
    disk = activations(lm, 'generated', folder=folder, **SIZES | dict(
        settings=Settings(progress=False, in_memory=False)))
    assert disk.side.x is None
    x, y = training_rows(acts), training_rows(disk)
    n_massive = int(acts.rule(acts.part('train')['x']).sum())
    assert torch.equal(x, y) and n_massive > 20 and len(x) == 4000 - n_massive
    assert len(training_rows(acts, 1000)) == len(x[::4])
    for kind in KINDS:
        a, b = half_directions(kind, acts, .05), half_directions(kind, disk, .05)
        assert torch.allclose(a.threshold, b.threshold, atol=1e-4)
        fired = (a.encode(x) > 0).float().mean(0)
        assert (fired <= .051).all() and (fired > .045).float().mean() > .6    # the rest stops at 0
    assert torch.equal(random_dictionary(disk, 40, 4).W_dec, random_dictionary(acts, 40, 4).W_dec)


def test_thresholds_stop_at_zero(acts):
    for q in (.5, .9):
        sae = half_directions('neurons', acts, q)
        assert (sae.threshold >= 0).all()
        on = sae.encode(training_rows(acts)) > 0
        assert not (on[:, :32] & on[:, 32:]).any()
    few = half_directions('neurons', acts, 1e-6)         # one token at least, but where two are equal
    assert ((few.encode(training_rows(acts)) > 0).sum(0) >= 1).float().mean() > .8


def test_no_training_side(acts, folder):
    sae = train_sae('topk', acts, 40, 4, settings=QUIET, batch=100)
    held = held_out(sae, lm=acts.lm, n_test=300, folder=folder, settings=QUIET)
    with pytest.raises(UserError, match='no training side'): half_directions('pca', held, .05)


@pytest.mark.parametrize('family', ['gemma3', 'llama', 'gpt2', 'gpt_neox'])
def test_drawn_again(family):
    lm = load_lm(f'tiny-{family}')
    was = {n: p.clone() for n, p in lm.model.named_parameters()}
    again = rerandomised(lm, 5)
    for n, p in again.model.named_parameters():
        assert torch.equal(dict(lm.model.named_parameters())[n], was[n])           # the given one is as it was
        assert torch.equal(p, was[n]) == (p.ndim < 2), n
        assert not p.requires_grad
    assert not again.model.training
    tied = lambda m: m.model.get_output_embeddings().weight is m.model.get_input_embeddings().weight
    assert tied(again) == tied(lm)


def test_drawn_from_two_models_of_one_name():
    one, two = (load_lm('tiny-llama', seed=s) for s in (0, 1))
    a, b = (rerandomised(load_lm(m.model, m.tokenizer)) for m in (one, two))
    assert a.name == b.name and a.identity() != b.identity()


def test_stores_of_a_drawn_model_are_its_own(acts, folder):
    noise = activations(rerandomised(acts.lm), 'generated', folder=folder, **SIZES)
    dirs = {str(store_dir(a.lm, a.tokens['test'], a.site, folder)) for a in (acts, noise)}
    assert len(dirs) == 2 and not torch.allclose(acts.part('test')['x'], noise.part('test')['x'])
    assert noise.lm.name in repr(noise) and 'drawn again' in noise.metadata()['model_name']
    with pytest.raises(UserError, match='not what this SAE was trained on'):
        evaluate(random_dictionary(noise, 40, 4), acts, n_lm=0)
