"""What a user gets is the user's: results are writable and share memory with no input, no other result and nothing that is read again."""

from itertools import combinations

import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.tape import Tensor

X = np.linspace(0.5, 1.5, 6).reshape(2, 3)
Y = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
CLOSED = np.linspace(1.0, 2.0, 6).reshape(2, 3)
ZERO_D = np.array(3.0)

FUNCTIONS = {  # of one or two arrays; each with a way to hand something on that is not new
    "sum": lambda x, y: hg.sum(x) + hg.sum(y),
    "square of a sum": lambda x, y: hg.sum((x + y) ** 2),
    "same share": lambda x, y: hg.sum(x + y),
    "product": lambda x, y: hg.sum(x * y),
    "product with closed-over data": lambda x, y: hg.sum(x * CLOSED) + hg.sum(y * CLOSED),
    "views": lambda x, y: hg.sum(hg.transpose(hg.reshape(x, (3, 2)))) + hg.sum(y[0]),
    "broadcast": lambda x, y: hg.sum(hg.broadcast_to(x[:, :1], (2, 3)) + y),
    "a constant": lambda x, y: ZERO_D,
    "one element": lambda x, y: x[0, 0],
    "one argument": lambda x, y: hg.sum(y * y),
}
MAPS = {
    "identity": lambda x, y: {"x": x, "y": y},
    "the same twice": lambda x, y: {"a": x, "b": x, "c": [y, y]},
    "views": lambda x, y: {"a": hg.reshape(x, (3, 2)), "b": x[0], "c": hg.transpose(y), "d": hg.broadcast_to(x[0], (2, 3))},
    "closed-over data": lambda x, y: {"a": CLOSED, "b": Tensor(CLOSED), "c": x * y, "d": hg.stop_gradient(CLOSED)},
    "sums": lambda x, y: {"a": x + y, "b": x - y, "c": hg.exp(x), "d": hg.sum(y, axis=0)},
}


def passes():
    """Every public function that hands out arrays, as (name, () -> (results, what the caller holds))."""
    for name, f in FUNCTIONS.items():
        yield f"grad of {name}", lambda x, y, f=f: hg.grad(f, argnums=(0, 1))(x, y)
        yield f"grad of {name}, one argument twice", lambda x, y, f=f: hg.grad(lambda z: f(z, z))(x)
        yield f"value_and_grad of {name}", lambda x, y, f=f: hg.value_and_grad(f, argnums=(0, 1))(x, y)
        yield (
            f"value_and_grad of {name}, has_aux",
            lambda x, y, f=f: hg.value_and_grad(
                lambda x, y: (f(x, y), {"x": x, "y": hg.reshape(y, -1), "c": hg.stop_gradient(CLOSED)}), argnums=(0, 1), has_aux=True
            )(x, y),
        )
        yield f"hessian of {name}", lambda x, y, f=f: hg.hessian(f, argnums=(0, 1))(x, y)
        yield f"hvp of {name}", lambda x, y, f=f: hg.hvp(f, (x, y), (y, x))
        yield f"hvp of {name}, one direction", lambda x, y, f=f: hg.hvp(f, (x, y), (y, None))
    for name, f in MAPS.items():
        yield f"jvp of {name}", lambda x, y, f=f: hg.jvp(f, (x, y), (y, x))
        yield f"jvp of {name}, directions", lambda x, y, f=f: hg.jvp(f, (x, y), (np.stack([y, x]), None))
        for mode in ("forward", "reverse"):
            yield f"jacobian of {name}, {mode}", lambda x, y, f=f, mode=mode: hg.jacobian(f, argnums=(0, 1), mode=mode)(x, y)
        yield f"vmap of {name}", lambda x, y, f=f: hg.vmap(f)(np.stack([x, y]), np.stack([y, x]))
        yield f"vmap of {name}, one slice", lambda x, y, f=f: hg.vmap(f, (0, None))(x[None], y)
        yield f"vjp of {name}", lambda x, y, f=f: pulled(f, x, y)
    for name, optimizer in OPTIMIZERS.items():
        for n_steps in (0, 1, 3):
            p = hg.Bilevel(
                lambda w, h, b: hg.sum((w["a"] - h["c"]) ** 2),
                lambda w, h: hg.sum(w["a"] * h["c"]) + h["lr"],
                lambda h: {"a": h["w"], "fixed": CLOSED},
                optimizer,
            )
            for run in (hg.reverse, hg.forward):
                yield (
                    f"{run.__name__}, {name}, {n_steps} steps",
                    lambda x, y, p=p, n=n_steps, run=run: record(run(p, hyper(x, y), hg.full_batch(None, n))),
                )
        for mode in ("forward", "reverse"):
            for n_steps in (0, 3):
                yield (
                    f"online, {mode}, {name}, {n_steps} steps",
                    lambda x, y, p=p, n=n_steps, mode=mode: tuple(
                        hg.online(p, hyper(x, y), hg.full_batch(None, n), hg.SGD(lr=0.0), 2, mode=mode)
                    )[:-1],
                )
        yield f"step of {name}", lambda x, y, o=optimizer: o({"lr": 0.1}).step({"a": x, "b": x}, None, {"a": y, "b": y}, 0)
    for n_steps in (0, 1, 3):
        yield (
            f"unroll, {n_steps} steps",
            lambda x, y, n=n_steps: values(
                hg.unroll(
                    lambda w, h, b: hg.sum((w["a"] - h) ** 2),
                    {"a": x, "b": x},
                    y,
                    hg.full_batch(None, n),
                    optimizer=hg.SGD(lr=0.1, momentum=0.5),
                    return_state=True,
                )
            ),
        )
        yield (
            f"scan, {n_steps} steps",
            lambda x, y, n=n_steps: values(hg.scan(lambda s, h, b: ((s[0], s[0] + h), s[0]), (x, x), y, hg.full_batch(None, n))),
        )
    for n_rows in (1, 2):
        yield (
            f"accumulate, {n_rows} rows",
            lambda x, y, n=n_rows: values(hg.accumulate(lambda s, p, r: (s, None), ZERO_D, x[:n], n, 1)[0]),
        )
    solved = hg.Bilevel(lambda w, h, b: hg.sum((w["a"] - h["c"]) ** 2), lambda w, h: hg.sum(w["a"]), lambda h: None, lambda h: None)
    for name, start in (("", False), (", warm start", True)):
        yield (
            f"implicit{name}",
            lambda x, y, start=start: solution(hg.implicit(solved, {"c": y}, {"a": y}, None, start={"a": 0.5 * x} if start else None)),
        )
    moving = hg.Bilevel(solved.inner_loss, lambda w, h: hg.sum(w["a"] * h["c"]), lambda h: {"a": CLOSED}, lambda h: hg.SGD(lr=0.5))
    one = hg.full_batch(None, 1)
    for n in (0, 3):
        yield f"drmad, {n} steps", lambda x, y, n=n: record(hg.drmad(moving, {"c": y}, hg.full_batch(None, n)))
        yield f"finite_differences, {n} steps", lambda x, y, n=n: record(hg.finite_differences(moving, {"c": y}, hg.full_batch(None, n)))
        yield f"hoag, {n} updates", lambda x, y, n=n: loop(hg.hoag(moving, {"c": y}, None, hg.SGD(lr=0.1, momentum=0.5), n))
        for run in (hg.soba, hg.saba):
            yield f"{run.__name__}, {n} steps", lambda x, y, n=n, run=run: loop(run(moving, {"c": y}, one, one, 0.1, 0.1, n))
            yield f"{run.__name__}, a state, {n} steps", lambda x, y, n=n, run=run: loop(again(run, moving, {"c": y}, one, n))
    yield "t1t2", lambda x, y: solution(hg.t1t2(solved, {"c": y}, {"a": y}, None, lr=0.1))
    for n in (1, 2):
        yield f"parallel, {n} tasks", lambda x, y, n=n: hg.parallel.sum_tasks(lambda i: {"a": x, "b": y}, n, hg.parallel.ALONE)
    one_process = hg.parallel.ALONE
    yield "parallel, forward", lambda x, y: record(hg.parallel.forward(moving, {"c": y}, hg.full_batch(None, 3), one_process, directions=2))
    yield "lstm_params", lambda x, y: hg.lstm_params(0)
    yield "capture", lambda x, y: hg.capture(hg.value_and_grad(FUNCTIONS["square of a sum"], argnums=(0, 1)))(x, y)


OPTIMIZERS = {
    "SGD": lambda h: hg.SGD(lr=h["lr"]),
    "momentum": lambda h: hg.SGD(lr=h["lr"], momentum=0.9),
    "Adam": lambda h: hg.Adam(lr=h["lr"]),
    "AdamW": lambda h: hg.AdamW(lr=h["lr"]),
    "RMSprop": lambda h: hg.RMSprop(lr=h["lr"], momentum=0.9),
    "Adagrad": lambda h: hg.Adagrad(lr=h["lr"]),
    "LSTM": lambda h: hg.LSTMOptimizer(hg.lstm_params(0, 2, np.float64), scale=h["lr"]),
    "clipped": lambda h: hg.SGD(lr=h["lr"], clip=hg.clip_by_norm(100.0)),
}


def hyper(x, y):
    HELD.extend([lr := np.array(0.1)])
    return {"c": y, "lr": lr, "w": x}


HELD: list = []


def record(r):
    return r.value, r.grad, r.params, r.state, r.losses


def solution(r):
    return r.value, r.grad, r.params, r.losses, r.report.solution


def loop(r):
    return r.hparams, r.params, r.values, r.state


def again(run, problem, h, one, n):
    first = run(problem, h, one, one, 0.1, 0.1, 1)
    HELD.extend(a for a in optree.tree_leaves((first.hparams, first.state)) if isinstance(a, np.ndarray))
    return run(problem, first.hparams, one, one, 0.1, 0.1, n, state=first.state)


def values(tree):
    return optree.tree_map(lambda t: t.value, tree)


def pulled(f, x, y):
    out, pullback = hg.vjp(f, x, y)
    bar = optree.tree_map(np.ones_like, out)
    HELD.extend(optree.tree_leaves(bar))
    one = optree.tree_leaves(bar)[0]
    shared = optree.tree_map(lambda o: one if o.shape == one.shape else np.ones_like(o), out)  # one array for several cotangents
    HELD.append(one)
    return out, pullback(bar), pullback(bar), pullback(shared)


ALL = dict(passes())


@pytest.mark.parametrize("name", ALL)
def test_results_are_writable_and_share_memory_with_nothing(name):
    x, y = X.copy(), Y.copy()
    HELD[:] = [x, y, CLOSED, ZERO_D]
    before = [h.copy() for h in HELD]
    arrays = [a for a in optree.tree_leaves(ALL[name](x, y)) if isinstance(a, np.ndarray)]
    assert arrays
    for a in arrays:
        assert type(a) is np.ndarray and a.flags.writeable, a
        assert not any(np.shares_memory(a, h) for h in HELD)
    assert not any(np.shares_memory(a, b) for a, b in combinations(arrays, 2))
    for i, a in enumerate(arrays):  # and written to, they change nothing else
        a[...] = -7.0 - i
    assert all(np.array_equal(a, b) for a, b in zip(HELD, before, strict=False))


def test_every_public_function_that_hands_out_arrays_is_tried():
    """A new one must be added above: ops hand out Tensors, and the rest hand out no arrays."""
    other = """Bilevel HyperGradient HypergradError Optimizer Stats Tensor clip_by_norm clip_by_value errors full_batch fusion
    precision schedule stop_gradient SGD Adagrad Adam AdamW RMSprop CG NormalCG FixedPoint Neumann Nystrom Online
    Hoag SingleLoop Plan plan Profile profile constraints LSTMOptimizer release_memory checkpoint""".split()
    named = {n.split()[0].rstrip(",") for n in ALL}
    public = set(hg.__all__) - set(hg.ops.__all__) - set(other)
    assert public == named - {"step"}, public ^ named


def test_a_callback_sees_arrays_that_it_cannot_write_to():
    def spoil(t, w, loss):
        for a in (w, loss):
            with pytest.raises(ValueError, match="read-only"):
                a[...] = 0.0

    p = hg.Bilevel(lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w), lambda h: X, lambda h: hg.SGD(lr=0.1))
    hg.reverse(p, Y, hg.full_batch(None, 3), callback=spoil)
    hg.online(p, Y, hg.full_batch(None, 3), hg.SGD(lr=0.1), callback=lambda k, h, w, value: (spoil(k, h, value), spoil(k, w, value)))
    assert X.flags.writeable
