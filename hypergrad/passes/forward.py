"""The forward pass: every hyperparameter's tangent is carried along with the inner run."""

from __future__ import annotations

from ..backends import backend_of
from ..bilevel import Batches, Bilevel, HyperGradient, Stats
from ..meter import Meter
from ..tape import Tensor, paused, tangents
from ..transforms import dots_of, scalar, tree_tensors, tree_values
from ..trees import PyTree, tree_flatten, tree_unflatten
from .reverse import objective


def forward(problem: Bilevel, hparams: PyTree, batches: Batches) -> HyperGradient:
    """Hypergradient by forward mode: memory does not grow with T, time grows with the number N of hyperparameters.

    All N directions go through the run at once, on a leading axis.

    Args:
        problem: the bilevel problem.
        hparams: pytree of float32 or float64 arrays, N elements in all.
        batches: indexable and pure; T = len(batches).
    Returns: HyperGradient(value, grad, params, stats), grad like hparams.
    Raises: as `reverse`; DifferentiationError inside another jvp.
    Equation: Franceschi et al. 2017, Algorithm 2 (Forward-HG): Z_t = A_t Z_{t-1} + B_t.
    Memory: 1 + N states, whatever T, beside what one step with N tangents needs, and N*N elements of the identity.
    Time: T steps, each with N Hessian products.
    """
    stats = Stats("forward")
    with Meter() as meter:
        leaves, spec = tree_flatten(tree_tensors(hparams, "forward"))
        total, start, seeds = sum(x.size for x in leaves), 0, []
        for x in leaves:
            rows = backend_of(x.value).xp.eye(total, x.size, -start, x.dtype)
            seeds.append(Tensor(rows.reshape(total, *x.shape)))
            start += x.size
        with paused(), tangents():
            seeded = [Tensor(x.value, d) for x, d in zip(leaves, seeds, strict=True)]
            out, params = objective(problem, tree_unflatten(spec, seeded), batches, "all", stats)
            value = scalar("forward", out)
            flat = dots_of(value, total).value
        grads, start = [], 0
        for x in leaves:
            grads.append(flat[start:start + x.size].reshape(x.shape).copy())
            start += x.size
    stats.measured(meter)
    return HyperGradient(value.value, tree_unflatten(spec, grads), tree_values(params), stats)
