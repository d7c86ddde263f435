"""Coming from higher, hypertorch or JAX: their idioms beside those of this package.

=============================================================  ===========================================================
higher (PyTorch)                                               hypergrad
=============================================================  ===========================================================
with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):    w_T = hg.unroll(inner_loss, w_0, hparams, batches,
    for batch in loader: diffopt.step(inner_loss(fmodel))                      optimizer=hg.SGD(lr=0.1))
    outer_loss(fmodel).backward()                              hg.grad(lambda h: outer_loss(unrolled(h)))(hparams)
override={"lr": lr}                                            optimizer=hg.SGD(lr=h["lr"]): any field may be a Tensor
track_higher_grads=False                                       first_order=True, or no transform around it
a graph of all T steps                                         checkpoints="sqrt": 2 sqrt(T) states, one step's graph
=============================================================  ===========================================================

=============================================================  ===========================================================
hypertorch                                                     hypergrad
=============================================================  ===========================================================
reverse_unroll(params, hparams, outer_loss)                    hg.reverse(problem, hparams, batches)
CG(params, hparams, K, fp_map, outer_loss)                     hg.implicit(problem, hparams, w_star, batch, solver=hg.CG())
fixed_point(params, hparams, K, fp_map, outer_loss)            hg.implicit(..., solver=hg.FixedPoint(lr=0.1))
GradientDescent(loss_f, step_size), HeavyBall                  hg.SGD(lr=..., momentum=...)
=============================================================  ===========================================================

=============================================================  ===========================================================
JAX                                                            hypergrad
=============================================================  ===========================================================
jax.grad, jax.value_and_grad, jax.vjp, jax.jvp                 hg.grad, hg.value_and_grad, hg.vjp, hg.jvp: the same calls
jax.jacfwd(f), jax.jacrev(f), jax.hessian(f)                   hg.jacobian(f, mode="forward" or "reverse"), hg.hessian(f)
jax.jvp(jax.grad(f), (x,), (v,))[1]                            hg.hvp(f, (x,), (v,))[2][0], with value and gradient
jax.lax.scan(step, state, xs)                                  hg.scan(lambda s, h, x: step(s, x), state, hparams, xs)
jax.checkpoint(f), jax.vmap(f), jax.lax.stop_gradient          hg.checkpoint(f), hg.vmap(f), hg.stop_gradient
x.at[i].set(y), x.at[i].add(y)                                 hg.set_at(x, i, y), hg.add_at(x, i, y)
jax.tree.map                                                   optree.tree_map
=============================================================  ===========================================================

A torch or JAX function may also stay as it is: hypergrad.interop.torch and hypergrad.interop.jax.
"""

import numpy as np

import hypergrad as hg


def main():
    print(__doc__.split("\n", 2)[2])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=20)

    def inner_loss(w, h, batch):
        return hg.mean((x @ w - y) ** 2) + hg.exp(h["log_l2"]) * hg.sum(w * w)

    def outer_loss(w, h=None):
        return hg.mean((x[:5] @ w - y[:5]) ** 2)

    h, batches = {"log_l2": np.array(-1.0), "lr": np.array(0.1)}, hg.full_batch(None, 100)
    # higher
    unrolled = lambda h: hg.unroll(inner_loss, np.zeros(4), h, batches, optimizer=hg.SGD(lr=h["lr"]), checkpoints="sqrt")  # noqa: E731
    as_higher = hg.grad(lambda h: outer_loss(unrolled(h)))(h)
    # hypertorch
    problem = hg.Bilevel(inner_loss, outer_loss, lambda h: np.zeros(4), lambda h: hg.SGD(lr=0.1))
    l2 = {"log_l2": h["log_l2"]}
    r = hg.reverse(problem, l2, batches)
    solved = hg.implicit(problem, l2, r.params, None, solver=hg.CG())
    # JAX
    step = lambda w, h, batch: (w - h["lr"] * hg.grad(inner_loss)(w, h, batch), None)  # noqa: E731
    as_jax = hg.grad(lambda h: outer_loss(hg.scan(step, np.zeros(4), h, batches)[0]))(h)

    found = [as_higher["log_l2"], r.grad["log_l2"], solved.grad["log_l2"], as_jax["log_l2"]]
    print("d loss / d log_l2: as with higher, hypertorch's unrolling, its CG, and JAX:", *(f"{g:.10f}" for g in found))
    assert np.allclose([r.grad["log_l2"], as_jax["log_l2"]], as_higher["log_l2"], rtol=1e-12)
    assert np.isclose(solved.grad["log_l2"], as_higher["log_l2"], rtol=1e-4)  # that of the solution, which 100 steps come close to
