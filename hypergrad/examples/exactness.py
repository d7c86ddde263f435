"""How exactness is tested: closed forms, finite differences of every order, both nestings, and a checker that can fail.

Every derivative of the package is right or refused. The same checkers test your functions and problems.
"""

import numpy as np

import hypergrad as hg
from hypergrad.testing import check_gradients, check_hypergrad


def wrong_square(x):
    """x^2 with half of its derivative: the check below must find it."""
    return x * hg.stop_gradient(x)


def main():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))

    # A closed form: T steps of gradient descent on a w^2 / 2 end at w_0 (1 - lr a)^T.
    problem = hg.Bilevel(lambda w, h, batch: 0.5 * h["a"] * w * w, lambda w, h: w, lambda h: np.array(1.0), lambda h: hg.SGD(lr=h["lr"]))
    a, lr, n = 2.0, 0.1, 7
    r = hg.reverse(problem, {"a": np.array(a), "lr": np.array(lr)}, hg.full_batch(None, n))
    wanted = -n * a * (1 - lr * a) ** (n - 1)
    print(f"closed form: d w_T / d lr is {wanted:.15f}, reverse mode gives {r.grad['lr']:.15f}")
    assert np.isclose(r.grad["lr"], wanted, rtol=1e-14)

    # A function: first order in both modes, and Hessian products in both nestings, against finite differences.
    print(check_gradients(lambda x: hg.sum(hg.tanh(x) * hg.logsumexp(x, axis=0)), x))

    # A whole problem: every pass and policy against each other, and against finite differences of whole runs.
    print(check_hypergrad(problem, {"a": np.array(a), "lr": np.array(lr)}, hg.full_batch(None, n)))

    # A checker that cannot fail proves nothing.
    try:
        check_gradients(lambda x: hg.sum(wrong_square(x)), x)
    except AssertionError as error:
        print("a wrong derivative is found:", str(error).splitlines()[0])
    else:
        raise RuntimeError("the wrong derivative was not found")

    # What would lose a derivative raises.
    for name, lost in (
        ("float(t)", lambda t: float(hg.sum(t))),
        ("np.array(t)", lambda t: np.array(t)),
        ("if t:", lambda t: 1.0 if t[0, 0] else 2.0),
    ):
        try:
            hg.grad(lost)(x)
        except hg.HypergradError as error:
            print(f"{name} is refused: {str(error)[:70]}...")
        else:
            raise RuntimeError(f"{name} was not refused")
