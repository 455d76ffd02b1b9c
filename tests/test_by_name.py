"A text of the same name is not shown to be the same text, and an evaluation says itself in a line"
import logging
import math
import pytest
from jumprelu_sae.activations import activations, same_only_by_name, trained_elsewhere
from jumprelu_sae.core import Settings
from jumprelu_sae.evaluate import Evaluation, evaluate
from jumprelu_sae.interop import check
from jumprelu_sae.intervals import METRICS
from jumprelu_sae.lm import load_lm
from jumprelu_sae.sae import SAEConfig, make_sae
from jumprelu_sae.text import load_corpus

SITE = dict(site='resid.2', n_train=512, n_val=64, n_test=512, seq_len=32, settings=Settings(progress=False))


@pytest.fixture(scope='module')
def acts(tmp_path_factory):
    return activations(load_lm('tiny-gemma2'), 'generated', folder=tmp_path_factory.mktemp('stores'), **SITE)


def sae_that_says(acts, **metadata):
    "A finished SAE with metadata as another library writes them: names, and no word of ours"
    meta = dict(model_name=acts.lm.name, hook_name='blocks.2.hook_resid_post', context_size=32, prepend_bos=True)
    return make_sae(SAEConfig('topk', 32, 64, k=4)).finish(acts.scaler, meta | metadata)


@pytest.fixture
def warned(caplog):
    def of(sae, acts, **kw):
        caplog.clear()
        with caplog.at_level(logging.WARNING, 'jumprelu_sae'): r = evaluate(sae, acts, n_lm=0, **kw)
        return r, [m for m in caplog.messages if 'same name' in m]
    return of


def test_the_same_name_and_no_fingerprint_is_said(acts, warned):
    "In the log, in the result and under the table; it is no difference, so it is not refused"
    sae = sae_that_says(acts, dataset_path=acts.corpus['name'])
    assert trained_elsewhere(sae, acts) == []
    r, lines = warned(sae, acts)
    assert len(lines) == 1 and repr(acts.corpus['name']) in lines[0] and 'no fingerprint' in lines[0]
    assert r.config['by_name'] == lines[0] and f'not proved: {lines[0]}' in str(r)
    assert lines[0] in check(sae, acts).notes


def test_a_fingerprint_another_name_and_no_name_say_nothing(acts, warned):
    "What is proved needs no warning; what differs is refused by its name, as before"
    ours = make_sae(SAEConfig('topk', 32, 64, k=4)).finish(acts.scaler, acts.metadata())
    r, lines = warned(ours, acts)
    assert lines == [] and 'by_name' not in r.config and 'not proved' not in str(r)
    for metadata in (dict(dataset_path='somebody/other-texts'), {}):
        sae = sae_that_says(acts, **metadata)
        assert same_only_by_name(sae, acts) == ''
        r, lines = warned(sae, acts, elsewhere=True)
        assert lines == [] and r.config['elsewhere']


def test_a_changed_text_under_the_same_name(acts, tmp_path):
    "The case that the warning is for: the name is kept and a word is not"
    texts = [d.text for d in load_corpus('generated')]
    other = activations(acts.lm, [texts[0] + ' Yes.', *texts[1:]], folder=tmp_path, **SITE)
    other.corpus = other.corpus | dict(name=acts.corpus['name'])
    assert same_only_by_name(sae_that_says(acts, dataset_path=acts.corpus['name']), other)
    ours = make_sae(SAEConfig('topk', 32, 64, k=4)).finish(acts.scaler, acts.metadata())
    assert same_only_by_name(ours, other) == '' and any('corpus' in d for d in trained_elsewhere(ours, other))


NUMBERS = dict(l0=31.84, fvu=.14321, dead=.012, loss_recovered_zero=.9812)


def test_the_line_of_an_evaluation():
    line = repr(Evaluation('jumprelu-32-seed0', {}, NUMBERS))
    assert line == 'Evaluation(jumprelu-32-seed0, L0 31.8, FVU 0.143, dead 1.2%, loss recovered 98.1%)'


@pytest.mark.parametrize('missing', [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', NUMBERS)
def test_what_is_not_known_is_left_out_of_the_line(name, missing):
    whole = repr(Evaluation('a', {}, NUMBERS))
    line = repr(Evaluation('a', {}, NUMBERS | {name: missing}))
    assert line.count(',') == whole.count(',') - 1 and 'nan' not in line and 'inf' not in line
    assert repr(Evaluation('a', {}, {})) == 'Evaluation(a)'


def test_a_metric_of_which_there_are_only_the_sums():
    "As in the table: the share is computed from them, and a sum of zero gives none"
    m = METRICS['loss_recovered_zero']
    arrays = {m.num: [1., 1.], m.den: [10., 10.], m.docs: [0, 1], m.tokens: [5, 5]}
    assert repr(Evaluation('a', {}, {}, arrays)) == 'Evaluation(a, loss recovered 90.0%)'
    assert repr(Evaluation('a', {}, {}, arrays | {m.den: [0., 0.]})) == 'Evaluation(a)'
