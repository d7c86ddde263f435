"""hypergrad inside torch and torch inside hypergrad, against pure torch, pure hypergrad and torch's own gradcheck."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checks import assert_same

import hypergrad as hg
from hypergrad.errors import ArgumentError, DeviceError, DifferentiationError, DTypeError

torch = pytest.importorskip("torch")
interop = pytest.importorskip("hypergrad.interop.torch")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
X_VAL, Y_VAL = RNG.normal(size=(8, 3)), RNG.normal(size=8)
W_0 = np.zeros(3)
HPARAMS = {"log_l2": np.array([-1.0, 0.5, -0.2]), "log_lr": np.array(-2.0)}
STEPS = 5


def t64(x: Any, grad: bool = True) -> Any:
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def tensors(tree: Any) -> Any:
    return {k: t64(v) for k, v in tree.items()}


def inner_loss(w: Any, h: Any, batch: Any) -> Any:
    return hg.mean((X @ w - Y) ** 2 + hg.log(1.0 + hg.exp(X @ w))) + hg.sum(hg.exp(h["log_l2"]) * w * w)


def inner_torch(w: Any, h: Any, batch: Any = None) -> Any:
    x, y = t64(X, False), t64(Y, False)
    return ((x @ w - y) ** 2 + torch.log(1.0 + torch.exp(x @ w))).mean() + (torch.exp(h["log_l2"]) * w * w).sum()


def outer_loss(w: Any, h: Any) -> Any:
    return hg.mean((X_VAL @ w - Y_VAL) ** 2)


def outer_torch(w: Any) -> Any:
    return ((t64(X_VAL, False) @ w - t64(Y_VAL, False)) ** 2).mean()


PROBLEM = hg.Bilevel(inner_loss, outer_loss, lambda h: W_0, lambda h: hg.SGD(lr=hg.exp(h["log_lr"]), momentum=0.5))
BATCHES = hg.full_batch(None, STEPS)


def solve(h: Any) -> Any:
    return hg.unroll(inner_loss, W_0, h, BATCHES, optimizer=PROBLEM.optimizer(h))


def solve_torch(h: Any, steps: int = STEPS) -> Any:
    """The same run, in a graph of all steps."""
    w, v = t64(W_0), t64(W_0)
    for _ in range(steps):
        (g,) = torch.autograd.grad(inner_torch(w, h), w, create_graph=True)
        v = 0.5 * v + g
        w = w - torch.exp(h["log_lr"]) * v
    return w


# --- hypergrad inside torch -----------------------------------------------------------------------------------


def test_a_torch_network_learns_through_an_inner_problem() -> None:
    """The network makes the strengths; the outer loss is torch's, too. Every gradient equals that of the pure torch graph."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    lr, z = t64(-2.0), t64([0.3, -0.7])
    found = []
    for run in (interop.to_torch(solve), solve_torch):
        loss = outer_torch(run({"log_l2": network(z), "log_lr": lr}))
        found.append([loss, *torch.autograd.grad(loss, [*network.parameters(), lr, z])])
    for a, b in zip(*found, strict=True):
        assert_same(a.detach().numpy(), b.detach().numpy(), "through the inner problem", 1e-10)


@pytest.mark.parametrize(
    "run",
    [
        lambda h: hg.reverse(PROBLEM, h, BATCHES),
        lambda h: hg.reverse(PROBLEM, h, BATCHES, checkpoints="sqrt"),
        lambda h: hg.forward(PROBLEM, h, BATCHES),
    ],
    ids=["reverse", "checkpointed", "forward"],
)
def test_the_hypergradient_is_that_of_pure_torch(run: Any) -> None:
    ours, theirs = tensors(HPARAMS), tensors(HPARAMS)
    value, wanted = 3.0 * interop.hypergradient(run)(ours), 3.0 * outer_torch(solve_torch(theirs))
    value.backward()
    wanted.backward()
    assert_same(value.detach().numpy(), wanted.detach().numpy(), "value", 1e-13)
    for name in HPARAMS:
        assert_same(ours[name].grad.numpy(), theirs[name].grad.numpy(), name, 1e-10)
    assert torch.autograd.gradcheck(lambda a, b: interop.hypergradient(run)({"log_l2": a, "log_lr": b}), tuple(ours.values()))


def several(a: Any, b: Any, n: Any, scale: float = 1.0) -> Any:
    return {"y": hg.tanh(a) @ b * scale, "z": [hg.sum(a * a)], "picked": b[n]}


def test_gradcheck_and_gradgradcheck() -> None:
    f = interop.to_torch(several)
    a, b, n = t64(RNG.normal(size=(4, 3))), t64(RNG.normal(size=3)), torch.tensor([0, 2, 2])

    def flat(a: Any, b: Any) -> Any:
        r = f(a, b, n, scale=2.0)
        return r["y"], r["z"][0], r["picked"]

    assert torch.autograd.gradcheck(flat, (a, b))
    assert torch.autograd.gradgradcheck(flat, (a, b))
    assert torch.autograd.gradcheck(lambda b: flat(a.detach(), b), (b,))
    assert torch.autograd.gradcheck(lambda a: flat(a.T.contiguous().T, b.expand(3)), (a,))


def test_third_order() -> None:
    x = t64([0.3, -0.4])
    f = interop.to_torch(lambda x: hg.sum(hg.exp(x) * x))
    y = f(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert_same(y.detach().numpy(), (np.exp(x.detach().numpy()) * (x.detach().numpy() + 3)), "third order", 1e-14)


def test_without_gradients_nothing_is_recorded() -> None:
    recorded = []

    def f(x: Any) -> Any:
        y = x * 2.0
        recorded.append(y.node is not None)
        return y

    x = t64([1.0, 2.0])
    with torch.no_grad():
        assert not interop.to_torch(f)(x).requires_grad
    assert not interop.to_torch(f)(x.detach()).requires_grad
    assert interop.to_torch(f)(x).requires_grad
    assert recorded == [False, False, True]


def test_float32_stays_float32() -> None:
    x = torch.tensor([0.5, -1.0], requires_grad=True)
    y = interop.to_torch(hg.tanh)(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32
    assert_same(x.grad.numpy(), 1 - np.tanh(x.detach().numpy()) ** 2, "float32", 1e-6)


def test_second_derivatives_of_runs_are_refused_and_first_ones_with_a_graph_are_not() -> None:
    h = tensors(HPARAMS)
    loss = outer_torch(interop.to_torch(solve)(h))
    (g,) = torch.autograd.grad(loss, h["log_l2"], create_graph=True)
    assert_same(g.detach().numpy(), torch.autograd.grad(outer_torch(solve_torch(h)), h["log_l2"])[0].numpy(), "first order", 1e-10)
    with pytest.raises(DifferentiationError, match="being differentiated again"):
        g.sum().backward()
    value = interop.hypergradient(lambda h: hg.reverse(PROBLEM, h, BATCHES))(h)
    (g,) = torch.autograd.grad(value, h["log_l2"], create_graph=True)
    for inputs in (None, [h["log_l2"]], [h["log_lr"]]):
        with pytest.raises(DifferentiationError, match="being differentiated again"):
            (g.sum() + h["log_l2"].sum() + h["log_lr"]).backward(retain_graph=True, inputs=inputs)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, dtype=torch.float16), DTypeError, "float16, expected float32 or float64"),
        (torch.ones(2, dtype=torch.bfloat16), DTypeError, "bfloat16"),
        (torch.ones(2, dtype=torch.complex128), DTypeError, "complex128"),
        (torch.ones(2, device="meta"), DeviceError, "is on meta, expected the CPU"),
        ((torch.ones(2), torch.ones(2, dtype=torch.float64)), DTypeError, "float32 and float64"),
    ],
)
def test_tensors_that_cannot_be_handed_over(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        interop.to_torch(lambda x: x[0] * x[1])(x)
    if isinstance(x, torch.Tensor):
        with pytest.raises(error, match=message):
            interop.hypergradient(lambda h: hg.reverse(PROBLEM, h, BATCHES))(x)
    with pytest.raises(ArgumentError, match="expected torch tensors"):
        interop.hypergradient(lambda h: hg.reverse(PROBLEM, h, BATCHES))({"log_l2": 1.0})


def test_tensors_that_are_changed_before_the_backward_pass() -> None:
    x = t64([1.0, 2.0])
    y = interop.to_torch(lambda x: x * x)(x)
    with torch.no_grad():
        x.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = interop.to_torch(lambda x: x * x)(x)
    x.data *= 2.0  # behind torch's back
    with pytest.raises(DifferentiationError, match="was written to since"):
        y.sum().backward()


def test_a_gradient_unlike_the_hyperparameters_is_refused() -> None:
    with pytest.raises(ArgumentError, match="r.grad has structure"):
        interop.hypergradient(lambda h: replace(hg.reverse(PROBLEM, h, BATCHES), grad=list(h.values())))(tensors(HPARAMS))


# --- torch inside hypergrad -----------------------------------------------------------------------------------


def torch_function(a: Any, b: Any) -> Any:
    return {"o": torch.tanh(a) * b.sum(), "z": (a * a * a).sum()}


def our_function(a: Any, b: Any) -> Any:
    return {"o": hg.tanh(a) * hg.sum(b), "z": hg.sum(a * a * a)}


TRANSFORMS = {
    "grad": hg.grad,
    "forward over reverse": hg.hessian,
    "reverse over reverse": lambda f: hg.jacobian(hg.grad(f), mode="reverse"),
    "reverse over forward": lambda f: hg.grad(lambda x: hg.jvp(f, (x,), (x,))[1]),
    "directions": lambda f: lambda x: hg.hvp(f, (x,), (np.stack([x, x * x]),))[2][0],
    "third order": lambda f: hg.grad(lambda x: hg.sum(hg.hessian(f)(x) * x[0, 0])),
    "vjp twice": lambda f: lambda x: (lambda pull: pull(1.0)[0] + pull(2.0)[0])(hg.vjp(f, x)[1]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_derivative_of_a_torch_function(name: str) -> None:
    def loss(f: Any) -> Any:
        def of(x: Any) -> Any:
            r = f(x, x * 2.0)
            return hg.sum(r["o"] ** 2) * r["z"]

        return of

    x = np.linspace(0.5, 1.5, 6).reshape(2, 3)
    transform = TRANSFORMS[name]
    assert_same(transform(loss(interop.from_torch(torch_function)))(x), transform(loss(our_function))(x), name, 1e-14)


@pytest.mark.parametrize("proven", [False, True])
def test_a_torch_inner_loss_in_every_pass(proven: bool) -> None:
    theirs = hg.Bilevel(interop.from_torch(inner_torch, proven=proven), outer_loss, PROBLEM.init, PROBLEM.optimizer)
    for run in (hg.reverse, hg.forward, lambda *a: hg.reverse(*a, checkpoints="sqrt")):
        ours, got = run(PROBLEM, HPARAMS, BATCHES), run(theirs, HPARAMS, BATCHES)
        for name in HPARAMS:
            assert_same(got.grad[name], ours.grad[name], f"{name}", 1e-12)
    h = {"log_l2": HPARAMS["log_l2"]}
    w = hg.reverse(PROBLEM, HPARAMS, BATCHES).params
    if proven:
        both = [hg.implicit(p, h, w, None, gradient_tolerance=10.0).grad["log_l2"] for p in (theirs, PROBLEM)]
        assert_same(*both, "implicit", 1e-8)
    else:
        with pytest.raises(DifferentiationError, match="rules are declared outside this package"):
            hg.implicit(theirs, h, w, None)


def test_a_torch_step_of_scan() -> None:
    cell = interop.from_torch(lambda s, u, x: torch.tanh(u @ s + x))
    step = lambda f: lambda s, h, x: (lambda new: (new, hg.sum(new * new)))(f(s, h["u"], x))  # noqa: E731
    inputs, u = RNG.normal(size=(4, 3)), {"u": RNG.normal(size=(3, 3))}

    def loss(f: Any) -> Any:
        return lambda h: hg.sum(hg.scan(step(f), np.ones(3), h, inputs, checkpoints="sqrt")[1])

    plain = lambda s, u, x: hg.tanh(u @ s + x)  # noqa: E731
    assert_same(hg.grad(loss(cell))(u)["u"], hg.grad(loss(plain))(u)["u"], "reverse", 1e-13)
    assert_same(hg.jvp(loss(cell), (u,), (u,))[1], hg.jvp(loss(plain), (u,), (u,))[1], "forward", 1e-13)


def test_a_module_and_its_parameters() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1).double()
    w = {k: p.detach().numpy().copy() for k, p in module.named_parameters()}
    functional = interop.from_torch(lambda w, x: torch.func.functional_call(module, w, (x,)).square().sum())
    module(t64(X, False)).square().sum().backward()
    got = hg.grad(functional)(w, X)
    assert_same(got["weight"], module.weight.grad.numpy(), "weight", 1e-14)
    with pytest.raises(DifferentiationError, match="a tensor of shape .* from outside that requires a gradient"):
        hg.grad(interop.from_torch(lambda x: module(x).sum()))(X)
    with pytest.raises(DifferentiationError, match="from outside that requires a gradient"):
        hg.grad(interop.from_torch(lambda x: [x.sum() * 2, module.bias][1]))(X)
    module.requires_grad_(False)
    assert hg.grad(lambda x: hg.sum(interop.from_torch(module)(x)))(X).shape == X.shape


def test_what_is_random_is_noticed() -> None:
    dropped = interop.from_torch(lambda x: torch.nn.functional.dropout(x).sum())
    assert np.isin(hg.grad(dropped)(X), (0.0, 2.0)).all()  # the first gradient is that of the one evaluation
    with pytest.raises(DifferentiationError, match="gave other bits when it was evaluated again"):
        hg.hessian(dropped)(X)


def test_arrays_are_not_shared() -> None:
    kept = torch.zeros(3, dtype=torch.float64)
    got = hg.jvp(interop.from_torch(lambda x: kept), (X,), (X,))[0]
    got[...] = 1.0
    assert not kept.any()
    x = X.copy()
    with pytest.raises(RuntimeError, match="in-place operation"):
        hg.grad(interop.from_torch(lambda x: x.mul_(2.0).sum()))(x)
    assert np.array_equal(x, X)


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x.sum().item(), ArgumentError, "from_torch.*result has a leaf of <class 'float'>"),
        (lambda x: x.argmax(), ArgumentError, "expected torch arrays of floating numbers"),
        (lambda x: None, ArgumentError, "result has a leaf of None"),
        (lambda x: x.half().sum(), DTypeError, "float16"),
        (lambda x: torch.ones(2, device="meta"), DeviceError, "is on meta"),
    ],
)
def test_results_that_are_refused(f: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hg.grad(interop.from_torch(f))(X)
    with pytest.raises(ArgumentError, match="no argument is a Tensor"):
        interop.from_torch(f)(X)


def test_one_inside_the_other_inside_the_first() -> None:
    """torch -> hypergrad -> torch, and hypergrad -> torch -> hypergrad."""
    there = interop.to_torch(lambda x: hg.sum(interop.from_torch(torch.sin)(x) * x))
    x = t64([0.3, -0.8])
    assert torch.autograd.gradcheck(there, (x,)) and torch.autograd.gradgradcheck(there, (x,))
    back = interop.from_torch(lambda x: interop.to_torch(lambda x: hg.sum(hg.tanh(x) * x))(x) ** 2)
    plain = lambda x: hg.sum(hg.tanh(x) * x) ** 2  # noqa: E731
    for transform in (hg.grad, hg.hessian):
        assert_same(transform(back)(X[0]), transform(plain)(X[0]), "nested", 1e-14)
