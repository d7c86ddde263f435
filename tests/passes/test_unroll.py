"""`unroll` as an op inside taped code: what it may be mixed with, what it refuses, and what it leaves alone."""

import copy

import hyper_problems
import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.backends.host import HOST
from hypergrad.errors import ArgumentError, DifferentiationError, DTypeError, ShapeError
from hypergrad.testing import check_gradients

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((10, 4)), RNG.standard_normal((10, 3))
XV, YV = RNG.standard_normal((8, 4)), RNG.standard_normal((8, 3))


def net(w, x):
    return hg.tanh(x @ w["body"]["w"] + w["body"]["b"]) @ w["head"]


def inner(w, h, batch):
    return hg.mean((net(w, X) - Y) ** 2) + h["decay"] * hg.sum(w["head"] ** 2)


def outer(w):
    return hg.mean((net(w, XV) - YV) ** 2)


def start():
    rng = np.random.default_rng(1)
    return {"body": {"w": 0.5 * rng.standard_normal((4, 5)), "b": np.zeros(5)}, "head": 0.5 * rng.standard_normal((5, 3))}


def unrolled(h, *, n_steps=4, **more):
    """Loss after unrolling from a start of which the body is meta-learned and the head is not: a mixture in depth."""
    w0 = {"body": h["body"], "head": start()["head"]}
    w = hg.unroll(inner, w0, {"decay": h["decay"]}, hg.full_batch(None, n_steps), optimizer=hg.SGD(lr=h["lr"], momentum=h["mu"]), **more)
    return outer(w) + h["decay"] ** 2


def hparams(**more):
    return {"body": start()["body"], "decay": np.float64(0.1), "lr": np.float64(0.2), "mu": np.float64(0.5), **more}


@pytest.mark.parametrize("checkpoints", ["all", "sqrt", 2])
def test_mixing_in_depth(checkpoints):
    report = check_gradients(lambda h: unrolled(h, checkpoints=checkpoints), hparams(), order=1)
    assert 0 < report.first_order < 1e-6 and report.second_order == {}


def test_mixing_in_width():
    """Some units of a layer start from the hyperparameters, the others from constants; the result is used twice."""

    def f(h):
        w0 = {"body": {"w": hg.concatenate([h["w"], start()["body"]["w"][:, 2:]], axis=1), "b": np.zeros(5)}, "head": start()["head"]}
        w = hg.unroll(inner, w0, {"decay": 0.1}, hg.full_batch(None, 3), optimizer=hg.SGD(lr=0.1))
        return {"loss": outer(w), "norm": hg.sum(w["head"] ** 2) * hg.sum(h["w"])}

    check_gradients(f, {"w": start()["body"]["w"][:, :2]}, order=1)


def test_a_step_size_for_each_leaf_and_for_each_element():
    def f(lr):
        w = hg.unroll(
            inner,
            start(),
            {"decay": 0.1},
            hg.full_batch(None, 3),
            optimizer=hg.SGD(lr=lr, momentum={"body": {"w": 0.5, "b": 0.0}, "head": 0.9}),
        )
        return outer(w)

    lr = {"body": {"w": np.full((4, 5), 0.2), "b": np.float64(0.1)}, "head": np.full(3, 0.3)}
    check_gradients(f, lr, order=1)


def test_one_after_the_other():
    """The result of one unroll is the start of the next."""

    def f(h):
        first = hg.unroll(inner, start(), h, hg.full_batch(None, 2), optimizer=hg.SGD(lr=0.2))
        return outer(hg.unroll(inner, first, h, hg.full_batch(None, 3), optimizer=hg.Adam(lr=0.01), checkpoints=1))

    check_gradients(f, {"decay": np.float64(0.1)}, order=1)


def test_representation_before_and_loss_behind():
    """loss(unroll(logistic, h(x_train)), h(x_val)): the features go in through the hyperparameters."""
    problem, hparams, batches = hyper_problems.hyper_representation()
    (support, labels), rng = batches[0], np.random.default_rng(4)
    hyper_problems.episode(rng, 4)
    query = hyper_problems.episode(rng, 6)

    def ridge(w, h, batch):
        return hg.mean(hg.softmax_cross_entropy(hg.linear(h, w["w"], w["b"]), labels))

    def f(h):
        w = hg.unroll(
            ridge,
            {"w": np.zeros((8, 2)), "b": np.zeros(2)},
            hyper_problems.features(h["blocks"], support),
            batches,
            optimizer=hg.SGD(lr=hg.exp(h["log_lr"])),
            checkpoints="sqrt",
        )
        z = hyper_problems.features(h["blocks"], query[0])
        return hg.mean(hg.softmax_cross_entropy(hg.linear(z, w["w"], w["b"]), query[1]))

    value, grad = hg.value_and_grad(f)(hparams)
    r = hg.reverse(problem, hparams, batches)
    assert value == pytest.approx(float(r.value), rel=1e-12)
    for x, y in zip(optree.tree_leaves(grad), optree.tree_leaves(r.grad), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def test_pullback_may_be_called_again():
    for checkpoints in ("all", "sqrt", 1):
        _, pullback = hg.vjp(lambda h, checkpoints=checkpoints: unrolled(h, n_steps=7, checkpoints=checkpoints), hparams())
        first, second = pullback(np.float64(1.0)), pullback(np.float64(1.0))
        assert [x.tobytes() for x in optree.tree_leaves(first)] == [x.tobytes() for x in optree.tree_leaves(second)]
        (doubled,) = pullback(np.float64(2.0))
        np.testing.assert_allclose(doubled["lr"], 2 * first[0]["lr"], rtol=1e-13)


def test_the_stats_of_an_unroll_count_a_second_pullback():
    stats = hg.Stats("unroll")

    def f(w):
        return hg.sum(hg.unroll(lambda w, h, b: hg.sum(w * w), w, (), hg.full_batch(None, 9), optimizer=hg.SGD(lr=0.1), stats=stats))

    _, pullback = hg.vjp(f, np.ones(2))
    assert (stats.steps_run, stats.steps_rerun, stats.states_held) == (9, 0, 9)
    pullback(np.float64(1.0))
    assert stats.steps_rerun == 0
    pullback(np.float64(1.0))
    assert (stats.steps_run, stats.steps_rerun, stats.states_held) == (9, 9, 9)


def test_several_directions_at_once():
    dots = optree.tree_map(lambda x: RNG.standard_normal((3, *np.shape(x))), hparams())
    _, together = hg.jvp(unrolled, (hparams(),), (dots,))
    alone = [hg.jvp(unrolled, (hparams(),), (optree.tree_map(lambda d, i=i: d[i], dots),))[1] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_a_result_that_nothing_uses_costs_nothing_and_an_unused_hyperparameter_has_zero_gradient():
    h = hparams(unused=np.ones((2, 2)))
    assert np.array_equal(hg.grad(unrolled)(h)["unused"], np.zeros((2, 2)))
    g = hg.grad(lambda h: (unrolled(h), h["lr"] * 3.0)[1])(h)
    assert g["lr"] == 3.0 and g["mu"] == 0


# --- what it refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second",
    [
        lambda h: hg.grad(lambda x: hg.grad(unrolled)(x)["lr"])(h),
        lambda h: hg.grad(lambda x: hg.jvp(unrolled, (x,), (h,))[1])(h),
        lambda h: hg.jvp(hg.grad(unrolled), (h,), (h,)),
        lambda h: hg.hvp(unrolled, (h,), (h,)),
    ],
    ids=["grad of grad", "grad of jvp", "jvp of grad", "hvp"],
)
def test_a_second_derivative_through_it_is_refused(second):
    with pytest.raises(DifferentiationError, match="unroll.*first order"):
        second(hparams())


def test_steps_written_as_a_loop_have_every_order():
    """What the message recommends instead of a second derivative of unroll."""

    def f(h):
        w = h["w"]
        for _ in range(2):
            g = hg.grad(lambda w: hg.sum(hg.exp(h["a"] * w)))(w)
            w = w - 0.1 * g
        return hg.sum(w * w)

    check_gradients(f, {"w": np.array([0.3, -0.2]), "a": np.float64(0.7)})


def closing_over(x):
    """A loss that reaches for x outside its arguments."""
    return lambda w, h, batch: hg.sum((w - x) ** 2)


def sgd_steps(loss, h, batches):
    return hg.sum(hg.unroll(loss, np.ones(2), h, batches, optimizer=hg.SGD(lr=0.1)))


def test_a_closure_over_a_followed_tensor_is_refused():
    with pytest.raises(DifferentiationError, match="pass the Tensor through hparams"):
        hg.grad(lambda x: sgd_steps(closing_over(x), {}, hg.full_batch(None, 2)))(np.zeros(2))
    with pytest.raises(DifferentiationError, match="pass the Tensor through hparams"):
        hg.grad(lambda x: sgd_steps(closing_over(x), x, hg.full_batch(None, 2)))(np.zeros(2))


def test_a_batch_that_a_gradient_follows_is_refused():
    with pytest.raises(DifferentiationError, match="pass the Tensor through hparams"):
        hg.grad(lambda x: sgd_steps(lambda w, h, batch: hg.sum((w - batch) ** 2), {}, hg.full_batch(2.0 * x, 2)))(np.zeros(2))


def test_a_closure_is_refused_in_reverse_and_right_in_forward():
    """Tangents flow through a closure as well, so that forward mode need not refuse it."""
    seen = {}

    def init(h):
        seen["x"] = h
        return np.ones(2)

    def problem(inner_loss):
        return hg.Bilevel(inner_loss, lambda w, h: hg.sum(w * w), init, lambda h: hg.SGD(lr=0.1))

    closed, passed = problem(lambda w, h, b: hg.sum((w - seen["x"]) ** 2)), problem(lambda w, h, b: hg.sum((w - h) ** 2))
    x, batches = np.array([0.5, -1.0]), hg.full_batch(None, 3)
    with pytest.raises(DifferentiationError, match="pass the Tensor through hparams"):
        hg.reverse(closed, x, batches)
    np.testing.assert_allclose(hg.forward(closed, x, batches).grad, hg.reverse(passed, x, batches).grad, rtol=1e-13)


def test_after_an_error_the_engine_is_as_before():
    good = hg.grad(unrolled)(hparams())["lr"]
    with pytest.raises(DifferentiationError):
        hg.hvp(unrolled, (hparams(),), (hparams(),))
    with pytest.raises(ZeroDivisionError):
        hg.grad(lambda h: hg.sum(hg.unroll(lambda w, h, b: 1 / 0, h, (), hg.full_batch(None, 1), optimizer=hg.SGD(lr=1.0))))(np.ones(1))
    assert hg.grad(unrolled)(hparams())["lr"] == good


def test_bad_arguments():
    problem, h, batches = hyper_problems.mlp(n_steps=2)
    for checkpoints in (0, "half", 1.5):
        with pytest.raises(ArgumentError, match="expected 'all', 'sqrt', 'reversible', 'host', a pathlib.Path or an integer"):
            hg.reverse(problem, h, batches, checkpoints=checkpoints)
    vector = hg.Bilevel(lambda w, h, b: w, lambda w, h: hg.sum(w), lambda h: np.ones(2), lambda h: hg.SGD(lr=0.1))
    for run in (hg.reverse, hg.forward):
        with pytest.raises(ShapeError, match="inner_loss"):
            run(vector, np.ones(1), hg.full_batch(None, 2))
        with pytest.raises(ShapeError, match="outer_loss"):
            run(hg.Bilevel(lambda w, h, b: hg.sum(w), lambda w, h: w, vector.init, vector.optimizer), np.ones(1), hg.full_batch(None, 2))
        with pytest.raises(DTypeError):
            run(problem, {**h, "lr": np.float32(0.1)}, batches)
        with pytest.raises(DTypeError, match="int"):
            run(problem, {**h, "class": np.arange(3)}, batches)
        misfit = hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, lambda h: hg.SGD(lr={"other": 0.1}))
        with pytest.raises(ArgumentError, match="optimizer: a field has the structure"):
            run(misfit, h, batches)
    with pytest.raises(ArgumentError, match="n_steps has -1"):
        hg.full_batch(None, -1)


# --- what it leaves alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda h: hg.SGD(lr=h["lr"], momentum=h["mu"], weight_decay=0.01),
        lambda h: hg.SGD(lr={"body": {"w": 0.1, "b": 0.2}, "head": h["lr"]}),
        lambda h: hg.Adam(lr=h["lr"], beta1=h["mu"]),
    ],
    ids=["sgd", "numbers in a tree", "adam"],
)
def test_float32_stays_float32(optimizer):
    def single(tree):
        return optree.tree_map(lambda x: np.asarray(x, np.float32), tree)

    x, y = single(X), single(Y)

    def loss(w, h, batch):
        return hg.mean((net(w, x) - y) ** 2) + h["decay"] * hg.sum(w["head"] ** 2)

    problem = hg.Bilevel(loss, lambda w, h: loss(w, h, None), lambda h: {**single(start()), "body": h["body"]}, optimizer)
    h = single(hparams())
    for r in (hg.reverse(problem, h, hg.full_batch(None, 4), checkpoints="sqrt"), hg.forward(problem, h, hg.full_batch(None, 4))):
        assert {leaf.dtype for leaf in optree.tree_leaves((r.value, r.grad, r.params))} == {np.dtype(np.float32)}
        assert all(type(leaf) is np.ndarray for leaf in optree.tree_leaves((r.value, r.grad, r.params)))
        assert optree.tree_structure(r.grad) == optree.tree_structure(h)
        exact = hg.reverse(
            hg.Bilevel(inner, lambda w, h: inner(w, h, None), lambda h: {**start(), "body": h["body"]}, optimizer),
            hparams(),
            hg.full_batch(None, 4),
        )
        for a, b in zip(optree.tree_leaves(r.grad), optree.tree_leaves(exact.grad), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_arguments_are_not_written_to():
    problem, h, batches = hyper_problems.maml()
    before = copy.deepcopy((h, batches[0]))
    for run in (hg.reverse, hg.forward):
        run(problem, h, batches)
    for x, y in zip(optree.tree_leaves(before), optree.tree_leaves((h, batches[0])), strict=True):
        assert np.array_equal(x, y)


def test_without_a_gradient_it_is_the_plain_training_run():
    optimizer = hg.SGD(lr=0.2, momentum=0.5, nesterov=True, weight_decay=0.01)
    got = hg.unroll(inner, start(), {"decay": 0.1}, hg.full_batch(None, 5), optimizer=optimizer)
    w, state = start(), None
    for t in range(5):
        w, state = optimizer.step(w, state, hg.grad(lambda w: inner(w, {"decay": 0.1}, None))(w), t)
    for x, y in zip(optree.tree_leaves(got), optree.tree_leaves(w), strict=True):
        assert x.value.tobytes() == y.tobytes()


def test_no_hyperparameters_at_all():
    problem = hg.Bilevel(lambda w, h, b: hg.sum(w * w), lambda w, h: hg.sum(w), lambda h: np.ones(2), lambda h: hg.SGD(lr=0.25))
    for run in (hg.reverse, hg.forward):
        r = run(problem, (), hg.full_batch(None, 2))
        assert r.grad == () and r.value == pytest.approx(0.5)


def test_an_objective_that_ignores_the_hyperparameters_has_zero_gradient():
    problem = hg.Bilevel(lambda w, h, b: hg.sum(w * w), lambda w, h: hg.sum(w), lambda h: np.ones(2), lambda h: hg.SGD(lr=0.25))
    for run in (hg.reverse, hg.forward):
        r = run(problem, {"x": np.ones(3), "y": np.float64(1)}, hg.full_batch(None, 2))
        assert np.array_equal(r.grad["x"], np.zeros(3)) and r.grad["y"].shape == () and r.grad["y"] == 0


def test_full_batch_is_a_sequence():
    batches = hg.full_batch("data", 3)
    assert len(batches) == 3 and list(batches) == ["data"] * 3
    for t in (3, -1):
        with pytest.raises(IndexError):
            batches[t]


def test_steps_of_the_pullback_keep_the_settings_of_the_first_run(monkeypatch):
    """`precision` and `fusion` are closed again when the pullback runs steps again and transposes them."""
    calls = []

    def run(name, **arguments):
        calls.append((name, arguments.get("precision")))
        return type(HOST).run(HOST, name, **arguments)

    x = np.random.default_rng(2).standard_normal((2, 6, 6, 5))
    ones = np.ones(3)

    def loss(w, h, batch):
        return hg.sum(hg.conv_bn_relu_pool(x, w, ones, ones) ** 2)

    def trained(w):
        return hg.unroll(loss, w, (), hg.full_batch(None, 3), optimizer=hg.SGD(lr=0.01), checkpoints=1)

    w = np.random.default_rng(3).standard_normal((3, 3, 5, 3))
    with hg.precision("3xtf32"), hg.fusion(False):
        out, pullback = hg.vjp(trained, w)
    monkeypatch.setattr(HOST, "run", run, raising=False)
    pullback(out)
    names = {name for name, _ in calls}
    assert "conv2d_fprop" in names and "conv2d_wgrad" in names and not any(name.startswith("conv_bn") for name in names)
    assert {precision for name, precision in calls if name.startswith("conv2d")} == {2}
