"""The regression values of DeepMind's notebook, quantity by quantity, in float64 (1e-5) and float32 (golden.json says
how close)"""
import json
from functools import cache
from pathlib import Path
import numpy as np, pytest, torch
from jumprelu_sae.jumprelu import pre_activations, reconstruct
from jumprelu_sae.ste import jumprelu_and_l0, jumprelu_loss, jumprelu_ste, l0

GOLDEN = json.loads((Path(__file__).parent/'golden.json').read_text())
T, B, D, M = 3, 1024, 16, 128

def two_functions(pre, theta, eps): return jumprelu_ste(pre, theta, eps), l0(pre, theta, eps)

@cache
def run(dtype, both):
    data = np.random.default_rng(9328302).normal(size=(T, B, D))/4
    rng = np.random.default_rng(24396)
    W_dec = rng.uniform(size=(M, D)) - .5                      # the order of the draws is part of the table
    W_dec /= np.linalg.norm(W_dec, axis=-1, keepdims=True)
    W_enc = rng.uniform(size=(D, M)) - .5
    b_enc = (rng.uniform(size=M) - .5)*.1
    b_dec = (rng.uniform(size=D) - .5)*.1
    threshold = .15*rng.uniform(size=M)*.1
    assert (threshold < GOLDEN['bandwidth']/2).all()           # the regime in which a ReLU before the gate shows
    p = dict(W_dec=W_dec, W_enc=W_enc, b_enc=b_enc, b_dec=b_dec, log_threshold=np.log(threshold))
    p = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in p.items()}
    x = torch.tensor(data[0], dtype=dtype)
    pre = pre_activations(x, p['W_enc'], p['b_enc'], p['b_dec'])
    f, count = both(pre, p['log_threshold'].exp(), GOLDEN['bandwidth'])
    x_hat = reconstruct(f, p['W_dec'], p['b_dec'])
    loss = jumprelu_loss(x, x_hat, count, GOLDEN['lam'])
    loss.backward()
    out = dict(data=torch.tensor(data), reconstruction=x_hat, pre_activations=pre, loss=loss) | {
        f'grad {k}': v.grad for k, v in p.items()
    }
    return {k: v.detach().double().ravel() for k, v in out.items()}

def test_every_quantity_is_in_the_table():
    assert set(run(torch.float64, two_functions)) == set(GOLDEN['values']) and len(GOLDEN['values']) == 9

@pytest.mark.parametrize('both', [two_functions, jumprelu_and_l0], ids=['two functions', 'fused'])
@pytest.mark.parametrize(
    'dtype, tol',
    [(torch.float64, GOLDEN['tolerance']), (torch.float32, GOLDEN['tolerance_float32'])],
    ids=['float64', 'float32'],
)
@pytest.mark.parametrize('name', GOLDEN['values'])
def test_golden(name, dtype, tol, both):
    row = GOLDEN['values'][name]
    got, want = run(dtype, both)[name][::row['every']], torch.tensor(row['value'], dtype=torch.float64)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=tol, rtol=0)
