"""`accumulate`: the same as a plain sum over slices, in every nesting; memory of one slice; refused where a derivative would be lost."""

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, ShapeError
from hypergrad.meter import Meter
from hypergrad.testing import check_gradients
from hypergrad.transforms import dependence

RNG = np.random.default_rng(0)
X, SCALE, W = RNG.standard_normal((7, 3)), RNG.standard_normal((7, 2)), RNG.standard_normal((3, 2))


def term(shared, part, rows):
    scores = hg.tanh(hg.matmul(X[rows], shared["w"])) * part["scale"]
    return hg.sum(scores * scores), scores.value


def tree():
    return {"w": W, "scale": SCALE, "unused": np.ones(2)}


def accumulated(slice_rows):
    def f(t):
        total, aux = hg.accumulate(term, {"w": t["w"], "unused": t["unused"]}, {"scale": t["scale"]}, 7, slice_rows)
        assert [len(a) for a in aux] == [min(slice_rows, 7 - i) for i in range(0, 7, slice_rows)]
        return hg.exp(0.1 * total)

    return f


def plain(t):
    return hg.exp(0.1 * term(t, t, slice(0, 7))[0])


def same(a, b):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-13, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("slice_rows", [1, 2, 3, 6, 7, 100])
def test_value_and_gradient_are_those_of_the_sum(slice_rows):
    value, gradient = hg.value_and_grad(accumulated(slice_rows))(tree())
    wanted, slope = hg.value_and_grad(plain)(tree())
    assert float(value) == pytest.approx(float(wanted), rel=1e-14)
    same(gradient, slope)
    assert accumulated(slice_rows)(tree()).value == value  # the same bits with nothing recorded


@pytest.mark.parametrize("slice_rows", [2, 7])
def test_every_nesting_up_to_order_two(slice_rows):
    check_gradients(accumulated(slice_rows), tree(), order=2)


def test_jvp_and_hvp_and_a_gradient_of_a_gradient_equal_the_sums():
    dots = {name: RNG.standard_normal((2, *x.shape)) for name, x in tree().items()}
    f = accumulated(3)
    same(*({"dot": hg.jvp(g, (tree(),), (dots,))[1]} for g in (f, plain)))
    same(*(hg.hvp(g, (tree(),), (dots,))[2][0] for g in (f, plain)))
    same(*(hg.grad(lambda t, g=g: hg.sum(hg.grad(g)(t)["w"] ** 2))(tree()) for g in (f, plain)))


def test_a_pullback_may_be_called_again():
    out, pullback = hg.vjp(accumulated(2), tree())
    first, again = pullback(np.array(1.0))[0], pullback(np.array(2.0))[0]
    same(first, hg.grad(plain)(tree()))
    same({name: 2.0 * x for name, x in first.items()}, again)
    assert out == accumulated(2)(tree()).value


def test_what_does_not_count_stays_without_influence():
    influence = dict(zip(sorted(tree()), dependence(accumulated(2), {k: hg.Tensor(v) for k, v in sorted(tree().items())}), strict=True))
    assert influence == {"scale": True, "unused": False, "w": True}


def test_parts_that_only_some_slices_read():
    def f(x):
        return hg.accumulate(lambda shared, part, rows: (hg.sum(part**2) if rows.start else hg.sum(shared), None), x[0], x, 4, 2)[0]

    np.testing.assert_array_equal(hg.grad(f)(np.arange(4.0)), [1.0, 0.0, 4.0, 6.0])


def test_inside_the_outer_loss_of_every_pass():
    def outer_loss(w, hparams):
        rows = hg.accumulate(lambda shared, part, rows: (hg.sum(part * shared["w"]) ** 2, None), {"w": w}, X, 7, 2)
        return rows[0] * hparams["scale"]

    p = hg.Bilevel(
        lambda w, h, b: hg.sum((w - h["w"]) ** 2) + hg.sum(w**4), outer_loss, lambda h: h["w"] * 2.0, lambda h: hg.SGD(lr=h["lr"])
    )
    hparams = {"w": W[:, 0], "scale": np.array(0.3), "lr": np.array(0.01)}
    steps = hg.full_batch(None, 4)
    reverse = hg.reverse(p, hparams, steps, checkpoints="all")
    same(reverse.grad, hg.reverse(p, hparams, steps, checkpoints=1).grad)
    same(reverse.grad, hg.forward(p, hparams, steps).grad)


def test_f_runs_once_a_slice_and_the_later_sweep_runs_nothing():
    runs = []

    def counted(shared, part, rows):
        runs.append(rows.start)
        return term(shared, part, rows)

    _, pullback = hg.vjp(lambda t: hg.accumulate(counted, {"w": t["w"]}, {"scale": t["scale"]}, 7, 2)[0], tree())
    assert runs == [0, 2, 4, 6]
    pullback(np.array(1.0))
    assert runs == [0, 2, 4, 6]


def test_memory_is_that_of_one_slice():
    x, w = np.ones((64, 20_000)), np.ones(20_000)

    def peak(slice_rows):
        def f(w):
            total, _ = hg.accumulate(lambda w, _, rows: (hg.sum(hg.tanh(hg.exp(x[rows] * w * 0.1))), None), w, (), 64, slice_rows)
            return total

        gradient = hg.grad(f)
        with Meter(memory=True) as meter:
            gradient(w)
        return meter.peak_bytes

    assert peak(8) < peak(64) / 5


def test_a_tensor_from_outside_is_refused_and_not_lost():
    def f(w):
        return hg.accumulate(lambda shared, _, rows: (hg.sum(shared * w), None), w * 1.0, (), 4, 2)[0]

    with pytest.raises(DifferentiationError, match="shared .accumulate."):
        hg.grad(f)(np.ones(3))
    _, dot = hg.jvp(f, (np.ones(3),), (np.ones(3),))
    assert dot == pytest.approx(12.0)  # where no gradient is taken early, all of it counts


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: hg.accumulate(lambda s, p, r: (s, None), 1.0, (), 0, 1), ArgumentError, "n_rows is 0"),
        (lambda: hg.accumulate(lambda s, p, r: (s, None), 1.0, (), 2, 0), ArgumentError, "slice_rows 0"),
        (
            lambda: hg.accumulate(lambda s, p, r: (s, None), np.ones(2), np.ones((3, 1)), 2, 1),
            ShapeError,
            r"shape \(3, 1\), expected 2 rows",
        ),
        (lambda: hg.accumulate(lambda s, p, r: hg.sum(s), np.ones(2), (), 2, 1), ArgumentError, "pair"),
        (lambda: hg.accumulate(lambda s, p, r: (s, None), np.ones(2), (), 2, 1), ShapeError, r"shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()
