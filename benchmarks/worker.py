"""One contender of train_step.py in a process of its own: makes its SAE on the shared data, then does a step for each
line it reads.

Runs with the contender's own Python, so it may import nothing of ours but for our own contenders."""
import argparse, json, math, sys, time
import torch


def memory(key: str) -> float:  # GiB; VmHWM is the peak of this process alone
    for line in open('/proc/self/status'):
        if line.startswith(key): return int(line.split()[1])/2**20
    return float('nan')


def common(a):
    """What all contenders share: activations with E‖x‖² = 1, unit decoder rows, one threshold that gives the L0, one
    bandwidth that gives the occupancy"""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(a.d_sae, a.d_in, generator=g)
    W /= W.norm(dim=1, keepdim=True)
    x = torch.randn(a.batch, a.d_in, generator=g)/math.sqrt(a.d_in)
    pre = (x[:64] @ W.T).flatten()
    theta = float(pre.topk(round(64*a.l0)).values[-1])
    off, want, lo, hi = (pre - theta).abs(), 64*a.l0*a.occupancy, 0., 1.
    for _ in range(40):
        mid = (lo + hi)/2
        if (off < mid/2).sum() < want: lo = mid
        else: hi = mid
    return W, x, theta, hi


def gemm(a, W, x, theta, eps):
    out = torch.empty(a.batch, a.d_sae, device=x.device, dtype=x.dtype)
    return lambda: torch.mm(x, W.T, out=out)


def ours(path, short=False):
    def make(a, W, x, theta, eps):
        from jumprelu_sae.sae import SAEConfig, make_sae
        from jumprelu_sae.train import TrainConfig, Trainer
        extra = dict(target_l0=a.l0, coef=10., aux_coef=1/32, dead_coef=.01) if short else dict(coef=6e-4)
        sae = make_sae(SAEConfig('jumprelu', a.d_in, a.d_sae, bandwidth=eps*(a.wide if short else 1), **extra))
        with torch.no_grad():
            sae.W_dec.copy_(W)
            sae.W_enc.copy_(W.T)
            sae.theta_param.fill_(math.log(theta))
        sae = sae.to(x.device)

        class Same:  # the same batch again and again
            d_in = a.d_in
            def __next__(self): return x
        cfg = TrainConfig(10**6*a.batch, a.batch, lr=1e-12, sparsity_warmup=1, dead_after=10**12, log_every=10**9)
        tr = Trainer({'sae': sae}, Same(), cfg, path=path)
        if short:  # some latents are dead, and stay so
            n = round(a.dead*a.d_sae)
            with torch.no_grad(): sae.theta_param[:n] = math.log(1e3)
            tr.silent['sae'][:n] = 10**13
        return tr.one_step
    return make


def saelens(a, W, x, theta, eps):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer
    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=a.d_in, d_sae=a.d_sae, dtype='float32', device=a.device,
        apply_b_dec_to_input=False, normalize_activations='none', jumprelu_init_threshold=theta, jumprelu_bandwidth=eps,
        l0_coefficient=6e-4))
    with torch.no_grad():
        sae.W_dec.copy_(W)
        sae.W_enc.copy_(W.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    cfg = SAETrainerConfig(
        total_training_samples=10**6 * a.batch,
        train_batch_size_samples=a.batch,
        lr=1e-12,
        lr_end=1e-12,
        adam_beta1=0.0,
        device=a.device,
    )
    tr = SAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))

    def step():
        tr.step(x)
        tr.n_training_steps += 1
    return step


def dictionary_learning(a, W, x, theta, eps):
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    tr = JumpReluTrainer(steps=10**6, activation_dim=a.d_in, dict_size=a.d_sae, layer=0, lm_name='none', lr=1e-12,
        bandwidth=eps, sparsity_penalty=1e-3, sparsity_warmup_steps=None, target_l0=a.l0, device=a.device)
    with torch.no_grad():
        tr.ae.W_dec.copy_(W)
        tr.ae.W_enc.copy_(W.T)
        tr.ae.threshold.fill_(theta)
    n = iter(range(5000, 10**9))
    return lambda: tr.update(next(n), x)


CONTENDERS = {
    'encoder product': gemm, 'ours, sparse': ours('sparse'), 'ours, dense': ours('dense'),
    'ours, sparse, short recipe': ours('sparse', True), 'ours, dense, short recipe': ours('dense', True),
    'SAELens': saelens, 'dictionary_learning': dictionary_learning}

if __name__ == '__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--who', choices=CONTENDERS)
    p.add_argument('--device', default='cpu')
    p.add_argument('--precision', choices=('highest', 'high'), default='highest',
        help='torch.set_float32_matmul_precision, the same for all')
    for name, default in {'d-in': 640, 'd-sae': 16384, 'batch': 2048, 'threads': 2}.items():
        p.add_argument(f'--{name}', type=int, default=default)
    for name, default in dict(l0=50., occupancy=1., wide=8., dead=.05).items():
        p.add_argument(f'--{name}', type=float, default=default)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_float32_matmul_precision(a.precision)
    say, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints stays out of the protocol
    def answer(d): print(json.dumps(d), file=say, flush=True)
    W, x, theta, eps = common(a)
    pre = x[:64] @ W.T
    window = float(((pre - theta).abs() < eps/2).sum()/64)
    facts = dict(theta=theta, bandwidth=eps, l0=float((pre > theta).sum()/64), window=window)
    del pre
    W, x = W.to(a.device), x.to(a.device)
    step = CONTENDERS[a.who](a, W, x, theta, eps)
    del W
    cuda = a.device.startswith('cuda')
    answer(facts | dict(ready=memory('VmRSS:')))
    for line in sys.stdin:
        if cuda: torch.cuda.synchronize()
        t, c = time.perf_counter(), time.process_time()
        step()
        if cuda: torch.cuda.synchronize()
        took, used = time.perf_counter() - t, time.process_time() - c
        answer(
            dict(
                seconds=took,
                cpu_seconds=used,
                peak=torch.cuda.max_memory_allocated() / 2**30 if cuda else memory('VmHWM:'),
            )
        )
