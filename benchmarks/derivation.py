"""Do the estimators estimate what they should? The numbers behind claim C2, as JSON; the lesson is 03_expected_loss.

    python benchmarks/derivation.py

Three worlds whose population gradient is known by quadrature, five bandwidths: STE and KDE through the library's own
autograd functions, each against its own expectation, in standard errors; and the order in which the biases of the
expectations grow with the bandwidth."""
import math, time
from pathlib import Path
import torch
from jumprelu_sae.core import run_env, write_json
from jumprelu_sae.expected_loss import expected_kde, expected_ste, population_gradient, toy_worlds
from jumprelu_sae.sae import jumprelu_kde
from jumprelu_sae.ste import jumprelu_ste, rectangle, step_ste

OUT = Path(__file__).parent.parent/'results'/'derivation.json'
EPS, ROWS, BATCHES = (.05, .1, .2, .4, .8), 4000, 100
SMALL = torch.logspace(-2.5, -1, 13, dtype=torch.float64).tolist()


def estimates(w, pi, s, eps, kde) -> torch.Tensor:
    "The gradient to θ of (s − f)² + λ·step, one estimate a batch (a column)"
    theta = torch.full((pi.shape[1],), w.theta, dtype=torch.float64, requires_grad=True)
    each = theta.expand_as(pi)
    f = jumprelu_kde(pi, each, eps, rectangle, curvature=2/len(pi)) if kde else jumprelu_ste(pi, theta, eps)
    loss = ((s - f)**2 + w.lam*step_ste(pi, theta, eps)).mean(0).sum()
    return torch.autograd.grad(loss, theta)[0]


def order(w, expected) -> float:
    "Slope of log |bias| over log ε, by least squares, for ε from 0.003 to 0.1"
    x = torch.tensor([math.log(e) for e in SMALL])
    y = torch.tensor([math.log(abs(expected(w, e)[0] - population_gradient(w))) for e in SMALL])
    x = x - x.mean()
    return float((x*y).sum()/(x*x).sum())


def main() -> dict:
    t, rows, orders = time.monotonic(), [], []
    for name, w in toy_worlds().items():
        pi, s = (v.view(ROWS, BATCHES) for v in w.sample(ROWS*BATCHES, seed=0))
        for est, kde, expected in (('STE', False, expected_ste), ('KDE', True, expected_kde)):
            orders.append(dict(world=name, estimator=est, order=order(w, expected)))
            for eps in EPS:
                got, mean = estimates(w, pi, s, eps, kde), expected(w, eps)[0]
                se = float(got.std())/BATCHES**.5
                rows.append(
                    dict(
                        world=name,
                        estimator=est,
                        eps=eps,
                        estimate=float(got.mean()),
                        standard_error=se,
                        expectation=mean,
                        truth=population_gradient(w),
                        off=(float(got.mean()) - mean) / se,
                    )
                )
    return dict(
        format=1,
        command='python benchmarks/derivation.py',
        examples=ROWS * BATCHES,
        rows=rows,
        orders=orders,
        seconds=round(time.monotonic() - t, 1),
        env=run_env(),
    )


if __name__ == '__main__':
    d = main()
    write_json(OUT, d)
    print(
        f"largest deviation {max(abs(r['off']) for r in d['rows']):.2f} standard errors in {len(d['rows'])} comparisons; orders "
        + ', '.join(f"{o['estimator']} {o['order']:.3f}" for o in d['orders'])
    )
