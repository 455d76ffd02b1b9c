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


def step_by_hand(sae, states, x, step, cfg, silent):
    "One training step written out, with torch's plain Adam rule: the oracle of `train_step`"
    from jumprelu_sae.train import lr_factor, sparsity_factor
    dead = torch.tensor([n >= cfg.dead_after for n in silent])
    terms = sae.loss(x, sparsity_factor(step, cfg), dead)
    names, params = zip(*sae.named_parameters())
    grads = dict(zip(names, torch.autograd.grad(terms['loss'], params)))
    along = (grads['W_dec']*sae.W_dec.detach()).sum(1, keepdim=True)
    grads['W_dec'] = grads['W_dec'] - along*sae.W_dec.detach()
    with torch.no_grad():
        for name, p in sae.named_parameters():
            m, v = states.setdefault(name, [torch.zeros_like(p), torch.zeros_like(p)])
            states[name] = m, v = (
                cfg.beta1 * m + (1 - cfg.beta1) * grads[name],
                cfg.beta2 * v + (1 - cfg.beta2) * grads[name] ** 2,
            )
            rate = cfg.threshold_lr if name == 'theta_param' else cfg.lr
            hat_m, hat_v = m/(1 - cfg.beta1**(step + 1)), v/(1 - cfg.beta2**(step + 1))
            p -= rate*lr_factor(step, cfg)*hat_m/(hat_v.sqrt() + cfg.eps)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return [0 if fired else n + len(x) for n, fired in zip(silent, terms['fired'].tolist())]


def test_a_run_is_the_steps_written_out():
    "Rates of their own, projected gradients, warm-up, when a latent counts as dead, and how silence is counted"
    from jumprelu_sae.train import TrainConfig, make_adam, train_step
    cfg = TrainConfig(8*40, 8, lr=.01, threshold_lr=.1, beta1=.5, lr_warmup=.2, sparsity_warmup=.5, dead_after=16)
    own = dict(coef=.05, bandwidth=.5, theta_init=.9, aux_coef=.5, k_aux=4, dead_coef=.3)
    a, b = (make_sae(SAEConfig('jumprelu', 6, 24, **own), 3).double() for _ in range(2))
    data = TensorStream(torch.randn(256, 6, generator=torch.Generator().manual_seed(0)), 8)
    opt, silent, states, by_hand, revived = make_adam(a, cfg), torch.zeros(24, dtype=torch.long), {}, [0]*24, 0
    for step in range(cfg.n_steps):
        x = next(data).double()
        revived += sum(n == cfg.dead_after for n in by_hand)
        train_step(a, opt, x, step, cfg, silent)
        by_hand = step_by_hand(b, states, x, step, cfg, by_hand)
        assert silent.tolist() == by_hand, step
        for (name, p), q in zip(a.named_parameters(), b.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=lambda m: f'step {step}, {name}: {m}')
    assert revived > 0  # some latent stood exactly at the edge of being dead, so the edge was tested


def test_a_batch_of_another_size_is_not_trained_on():
    "A stream that promises one size and deals another would see other tokens than the run says"
    from jumprelu_sae.train import TrainConfig, Trainer

    class Short(TensorStream):
        def __next__(self): return super().__next__()[:3]
    short = Short(torch.randn(64, 6), 8)
    cfg = TrainConfig(80, 8, lr_warmup=0.1, sparsity_warmup=0.1)
    trainer = Trainer({'s': make_sae(SAEConfig('topk', 6, 16, k=2))}, short, cfg)
    before = trainer.saes['s'].W_enc.detach().clone()
    with pytest.raises(UserError, match='3'): trainer.one_step()
    assert torch.equal(before, trainer.saes['s'].W_enc)
