"Faults of tools/mutate.py that no test noticed at first, each with the test that it led to"

import pytest, torch
from safetensors.torch import load_file, save_file
from jumprelu_sae.core import TensorStream, UserError
from jumprelu_sae.sae import SAEConfig, load_sae, make_sae


def test_each_epoch_has_an_order_of_its_own():
    s = TensorStream(torch.arange(64.0)[:, None], 16)
    first, second = (torch.cat([next(s) for _ in range(4)]).flatten() for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_gated_auxiliary_term_does_not_train_the_decoder():
    torch.manual_seed(0)
    sae = make_sae(SAEConfig('gated', 8, 16, coef=0.1))
    aux = sae.loss(torch.randn(32, 8))['aux']
    W_enc, W_dec, b_dec = torch.autograd.grad(aux, [sae.W_enc, sae.W_dec, sae.b_dec], allow_unused=True)
    assert W_enc.abs().sum() > 0 and W_dec is None and b_dec is None


def test_batchtopk_threshold_remembers_ten_batches():
    sae = make_sae(SAEConfig('batchtopk', 8, 16, k=2))
    for low, want in ((1.0, 1.0), (2.0, 1.1), (2.0, 1.19)):
        sae.update_threshold(torch.tensor([0.0, low, 5.0]))
        assert float(sae.threshold) == pytest.approx(want)


@pytest.mark.parametrize('arch', ['batchtopk', 'jumprelu'])
def test_a_pre_activation_at_the_threshold_is_off(arch):
    sae = make_sae(SAEConfig(arch, 8, 4, **(dict(k=2) if arch == 'batchtopk' else dict(log_threshold=False)))).eval()
    if arch == 'batchtopk':
        sae.threshold.fill_(0.5)
    else:
        sae.set_threshold(torch.full((4,), 0.5))
    pre = torch.tensor([[0.5, 0.5 + 1e-6, 0.4, 1.0]])
    assert (sae.activations(pre) > 0).tolist() == [[False, True, False, True]]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    make_sae(SAEConfig('topk', 8, 16, k=2)).finish().save(tmp_path)
    t = load_file(tmp_path / 'sae_weights.safetensors')
    t['b_enc'][3] = value
    save_file(t, tmp_path / 'sae_weights.safetensors')
    cfg = (tmp_path / 'cfg.json').read_text()
    from jumprelu_sae.core import read_json, sha256

    (tmp_path / 'cfg.json').write_text(
        cfg.replace(
            read_json(tmp_path / 'cfg.json')['metadata']['jumprelu_sae']['sha256'],
            sha256(tmp_path / 'sae_weights.safetensors'),
        )
    )
    with pytest.raises(UserError, match='b_enc holds NaN or infinity'):
        load_sae(tmp_path)


def test_the_training_mean_is_kept_also_by_a_scaler_that_does_not_centre(tmp_path):
    from jumprelu_sae.activations import activations

    acts = activations(
        'tiny-gemma2',
        'generated',
        site='resid.2',
        n_train=512,
        n_val=64,
        n_test=64,
        seq_len=32,
        centre=False,
        folder=tmp_path,
    )
    ours = acts.metadata()['jumprelu_sae']
    assert not acts.scaler.mean.any() and acts.mean.norm() > 0
    assert ours['mean'] == acts.mean.tolist() and ours['scaler_mean'] == acts.scaler.mean.tolist()


def test_a_result_on_another_text_is_not_taken(tmp_path, caplog):
    from jumprelu_sae.core import Result
    from jumprelu_sae.experiment import found_result
    judged = dict(test='abc', n_lm=512)
    Result('a', dict(key='k', judged_on=judged), dict(l0=1.0)).save(tmp_path / 'a.json')
    assert found_result(tmp_path / 'a.json', dict(key='k'), judged).metrics == dict(l0=1.0)
    assert found_result(tmp_path / 'a.json', dict(key='k'), judged | dict(test='xyz')) is None
    assert 'judged_on.test' in caplog.text
    assert found_result(tmp_path / 'a.json', dict(key='other'), judged) is None


def test_an_sae_is_evaluated_on_the_device_of_the_run(monkeypatch, tmp_path):
    from types import SimpleNamespace
    from jumprelu_sae import experiment
    from jumprelu_sae.core import Settings
    asked = []

    def load(folder, device='cpu'):
        asked.append(str(device))
        raise RuntimeError('far enough')

    monkeypatch.setattr(experiment, 'load_sae', load)
    with pytest.raises(RuntimeError, match='far enough'):
        job, judge = SimpleNamespace(name='a'), SimpleNamespace(acts=None)
        experiment.evaluate_job(job, judge, tmp_path, None, Settings(device='meta'))
    assert asked == ['meta']
