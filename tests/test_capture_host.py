"""`capture` of NumPy arrays: calls are replayed with the same bits, whatever changes between them, or the function is called."""

import gc
import threading
import warnings
import weakref

import numpy as np
import pytest
import tiny
from cases import CASES
from checks import Weights
from test_capture import STEPS, few_shot, parameters

import hypergrad as hg
from hypergrad.backends import tracing
from hypergrad.fewshot.methods import METHODS
from hypergrad.fewshot.problem import FewShot
from hypergrad.trees import tree_leaves

X = np.arange(1.0, 7.0).reshape(2, 3)


def bits(tree):
    arrays = [np.asarray(x.value if isinstance(x, hg.Tensor) else x) for x in tree_leaves(tree)]
    return [(x.dtype, x.shape, x.tobytes()) for x in arrays]


def check(f, calls, replayed=True, **options):
    """Every call as the function's own, and the captured function; the third call on are replayed where they can be."""
    captured = hg.capture(f, **options)
    for args in calls:
        assert bits(captured(*args)) == bits(f(*args))
    assert captured.replays.program.startswith("function: ") == replayed, captured.replays.program
    return captured


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STEPS)
def test_bits_of_meta_steps(name, dtype):
    p = parameters(np, dtype)
    check(STEPS[name], [(p, few_shot(np, seed, dtype)) for seed in range(5)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_every_case(case):
    """Each call has other numbers, so that what a replay did not compute again would show."""
    args = case.arguments(np.float64)
    weights = Weights.draw(args, case.f(*[hg.stop_gradient(a) for a in args]).shape, np.float64)
    f = hg.value_and_grad(weights.loss(case.f), argnums=tuple(range(len(args))))
    captured = hg.capture(f)
    for k in range(4):
        given = [a * (1.0 - 1e-3 * k) for a in args]
        assert bits(captured(*given)) == bits(f(*given))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_bits_of_functions_of_numpy(dtype):
    """Of arrays with few elements and many, side by side and not: what a stretch does by NumPy's inner loops is what NumPy does."""
    functions = [f for f in vars(np).values() if isinstance(f, np.ufunc) and f.nout == 1 and f.nin < 3 and f.signature is None]
    rng, tried = np.random.default_rng(0), 0
    for shapes in (((3, 5), (5,)), ((4, 1), (4, 7)), ((70, 300), (70, 300)), ((), (2,)), ((0, 3), (3,))):
        for order in (lambda x: x, lambda x: x.T.copy().T, lambda x: x[..., ::-1] if x.ndim else x):
            x, y = ([order((8 * rng.random(s)).astype(dtype)) for s in shapes] for _ in range(2))
            for f in functions:
                try:
                    with np.errstate(all="ignore"):
                        f(*x[: f.nin])
                except (TypeError, ValueError):
                    continue  # it does not take the dtype, or has a signature
                with np.errstate(all="ignore"):
                    captured = hg.capture(lambda *x, f=f: f(*[a + a for a in x[: f.nin]]))
                    for given in (x, y, x, y):
                        assert bits(captured(*given)) == bits(f(*[a + a for a in given[: f.nin]])), (f, shapes)
                tried += 1
    assert tried > 200


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_bits_of_reductions_of_numpy(dtype):
    rng = np.random.default_rng(0)
    for shape in ((1,), (9,), (1000,), (100, 10), (128, 300), (7, 1, 5), (4, 33, 8)):
        for axis in (None, 0, -1, *([(0, 2)] if len(shape) == 3 else [])):
            for f in (np.add, np.multiply, np.maximum, np.minimum, np.logical_and, np.logical_or):
                captured = hg.capture(lambda x, f=f, axis=axis: (f.reduce(x, axis=axis), f.reduce(x.T[::-1], axis=axis, keepdims=True)))
                for _ in range(4):
                    x = (4 * rng.standard_normal(shape)).astype(dtype) * rng.integers(0, 2, shape).astype(dtype)
                    expected = f.reduce(x, axis=axis), f.reduce(x.T[::-1], axis=axis, keepdims=True)
                    assert bits(captured(x)) == bits(expected), (f, shape, axis)


def test_arrays_whose_place_or_shape_depends_on_the_numbers():
    some = lambda x: np.trim_zeros(np.maximum(x, 0.0)) * 2.0  # noqa: E731
    others = lambda x: np.compress(x > 1.0, x + 0.0) * 2.0 + 1.0  # noqa: E731
    calls = [np.array(x, float) for x in ([0, 1, 2, 0], [0, 1, 3, 0], [3, 2, 2, 0], [0, 0, 0, 4], [1, 2, 3, 4], [0, 2, 2, 0])]
    for f in (some, others):
        captured = hg.capture(f)
        for x in calls:
            assert bits(captured(x)) == bits(f(x))


def test_results_with_axes_in_another_order():
    """Of large arrays: a stretch makes only those whose elements lie side by side, and what reads the others may be a view of one."""
    f = lambda x, y: (np.tanh(x.T * 2.0), (x.T + y[::2].T) * 3.0, np.add(x.T[1:], y[::2].T[:-1]))  # noqa: E731
    rng = np.random.default_rng(0)
    check(f, [(rng.standard_normal((60, 40)), rng.standard_normal((120, 40))) for _ in range(5)])


def test_arguments_that_are_not_aligned():
    f = lambda x: np.exp(x * 2.0) + x  # noqa: E731
    captured = hg.capture(f)
    aligned, memory = np.linspace(-1.0, 1.0, 1000), bytearray(8004)
    other = np.frombuffer(memory, np.float64, 1000, 4)
    other[:] = aligned + 1.0
    for x in (aligned, 2.0 * aligned, 3.0 * aligned, other, other, aligned):
        assert bits(captured(x)) == bits(f(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3,), (1, 1), (7, 5), (2, 3, 4), (0, 3)])
def test_elements_of_rows_by_their_numbers(shape, dtype):
    """As `softmax_cross_entropy` reads and writes them; the numbers change from call to call, and may count from the end."""
    rng = np.random.default_rng(0)
    loss = hg.value_and_grad(lambda z, y: hg.sum(hg.softmax_cross_entropy(z, y) ** 2))
    dots = lambda z, y: hg.hvp(lambda z: hg.sum(hg.softmax_cross_entropy(z, y) ** 2), (z,), (z,))  # noqa: E731
    for f in (loss, dots):
        calls = [(rng.standard_normal(shape).astype(dtype), rng.integers(0, shape[-1], shape[:-1])) for _ in range(5)]
        check(f, calls)
    rows = lambda x, y: np.take_along_axis(x * 2.0, y[..., None] + 0, axis=-1)  # noqa: E731
    check(rows, [(x, y - shape[-1] * (i % 2)) for i, (x, y) in enumerate(calls)])
    if 0 not in shape:
        captured = hg.capture(rows)
        for x, y in calls:
            captured(x, y)
        with pytest.raises(IndexError, match="out of bounds"):
            captured(x, y + shape[-1])


def test_arguments_of_the_other_byte_order():
    f = lambda x: np.exp(x * 2.0) + x  # noqa: E731
    captured = hg.capture(f)
    native = np.linspace(-1.0, 1.0, 5)
    for x in (native, 2.0 * native, 3.0 * native, native.astype(">f8"), native.astype(">f8"), native.astype(">f8"), native):
        assert bits(captured(x)) == bits(f(x))


@pytest.mark.parametrize("n", [4, 70_000])
def test_floating_point_errors_are_treated_as_numpy_does(n):
    """In a replay, too: they are ignored, warned of or raised, and the numbers are those of NumPy."""
    f = lambda x: np.sqrt(np.log(x * 1.0) + np.float64(0.0)) / x  # noqa: E731
    captured = hg.capture(f)
    good, bad = np.linspace(1.0, 2.0, n), np.linspace(2.0, 0.0, n)
    for _ in range(4):
        assert bits(captured(good)) == bits(f(good))
    with np.errstate(all="ignore"):
        assert bits(captured(bad)) == bits(f(bad))
    texts = []
    for g in (f, captured):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            g(bad)
        texts.append([str(w.message) for w in found])
    assert texts[0] == texts[1] and "divide by zero encountered in log" in texts[0]
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError, match="divide by zero encountered in log"):
        captured(bad)
    assert bits(captured(good)) == bits(f(good))


@pytest.mark.parametrize("checkpoints", ["all", "sqrt", 3])
def test_bits_of_a_run_in_reverse(checkpoints):
    def loss(h, x):
        w = hg.unroll(
            lambda w, h, t: hg.sum((w * t - x) ** 2) + h["decay"] * hg.sum(w**2),
            np.zeros(3),
            h,
            [1.0, 2.0, 3.0, 4.0, 5.0],
            optimizer=hg.SGD(lr=h["lr"], momentum=0.9),
            checkpoints=checkpoints,
        )
        return hg.sum(hg.exp(w))

    h = {"lr": np.array(0.01), "decay": np.array(0.1)}
    check(hg.value_and_grad(loss), [(h, X[0] * k) for k in range(4)])


def test_second_order_and_forward():
    f = lambda x, v: (hg.hvp(lambda a: hg.sum(hg.sin(a) ** 3), (x,), (v,)), hg.jvp(hg.tanh, (x,), (v,)))  # noqa: E731
    check(f, [(X * k, X + k) for k in range(4)])


def test_results_are_new_arrays_and_arguments_are_let_go():
    captured = hg.capture(lambda x, big: (2 * x, big + 1, x))
    big = np.ones(5000)
    for _ in range(4):
        kept = captured(X, big)
        want = [y.copy() for y in kept]
        for y in captured(X + 1, big + 1)[:2]:
            y[...] = -1.0
        assert bits(list(kept)) == bits(want)
    alive = weakref.ref(big)
    del big
    gc.collect()
    assert alive() is None


def test_arguments_of_a_replay_that_fails_are_let_go():
    def f(x):
        with np.errstate(divide="raise"):
            return hg.sum(hg.log(x))

    captured = check(f, [(np.ones(10_000),)] * 3)
    big = np.zeros(10_000)
    alive = weakref.ref(big)
    with pytest.raises(FloatingPointError):
        captured(big)
    del big
    gc.collect()
    assert alive() is None


def test_arrays_that_it_closes_over_may_be_overwritten():
    """Those that only meet other constants, too: of one axis and of none, of a run, and images whose statistics a run keeps."""
    c, rate, images = np.ones(3), np.array(0.2), np.random.default_rng(0).standard_normal((1, 2, 4, 4, 1))
    w = np.random.default_rng(1).standard_normal((3, 3, 1, 2))

    def f(x):
        y = hg.sum(hg.exp(c) * rate) + hg.sum(x * c) + hg.sum(hg.exp(rate))
        v = hg.unroll(lambda v, h, t: hg.sum((v - h) ** 2), c, rate, [0, 1, 2], optimizer=hg.SGD(lr=0.1))
        y = y + hg.sum(v) + hg.sum(hg.value_and_grad(lambda a: hg.sum(a**3))(c)[1])
        return y + hg.sum(hg.conv_bn_relu_pool(images, w, np.ones(2), np.zeros(2)))

    captured = hg.capture(hg.value_and_grad(f))
    for k in range(6):
        assert bits(captured(X)) == bits(hg.value_and_grad(f)(X))
        c[k % 3] += 1.0
        rate[...] += 0.1
        images[...] *= 1.0 + images
    assert captured.replays.program.startswith("function: ")


LABELS, ROWS, COLUMNS = np.array([0, 1, 2, 1]), np.array([3, 1, 0, 2]), np.array([[0], [2], [1], [0]])
MASK, SOFT, HEAD = np.arange(12).reshape(4, 3) % 5 < 2, np.linspace(0.1, 0.9, 12).reshape(4, 3), np.linspace(-1.0, 1.0, 9).reshape(3, 3)
CLOSED_OVER = {
    "cross_entropy": lambda x: hg.cross_entropy(x, LABELS),
    "cross_entropy of weights": lambda x: hg.cross_entropy(x, SOFT),
    "linear_cross_entropy": lambda x: hg.linear_cross_entropy(x, HEAD, np.zeros(3), LABELS),
    "linear_head_descent": lambda x: hg.linear_head_descent(x, HEAD, np.zeros(3), LABELS, 0.1, 3)[0],
    "take_along_axis": lambda x: hg.take_along_axis(x, COLUMNS, 1),
    "index": lambda x: x[ROWS, LABELS],
    "index by a mask": lambda x: x[MASK],
    "where": lambda x: hg.where(MASK, x, 2 * x),
    "numpy.where": lambda x: np.where(MASK, x, 0.0),
    "one_hot": lambda x: x * hg.one_hot(LABELS, 3),
    "add_at": lambda x: hg.add_at(x, ROWS, SOFT),
    "set_at": lambda x: hg.set_at(x, ROWS, SOFT * x),
    "binary_cross_entropy_with_logits": lambda x: hg.binary_cross_entropy_with_logits(x, SOFT),
    "clip": lambda x: hg.clip(x, -1.0, SOFT),
    "power": lambda x: hg.abs(x) ** SOFT,
    "product": lambda x: x * MASK * COLUMNS,
}


@pytest.mark.parametrize("name", CLOSED_OVER)
def test_labels_and_masks_that_an_op_takes_may_be_overwritten_after_the_recording(name):
    step = hg.value_and_grad(lambda x: hg.sum(CLOSED_OVER[name](x)))
    captured, x = hg.capture(step), np.random.default_rng(0).standard_normal((4, 3))
    for k in range(5):
        assert bits(captured(x)) == bits(step(x)), captured.replays.program
        for y in (LABELS, ROWS, COLUMNS, MASK, SOFT, HEAD) if k else ():
            y[...] = np.roll(y, 1, axis=0)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "f, why",
    [
        (lambda x: hg.sum(x * RNG.standard_normal(3)), "recordings of the function differ"),
        (lambda x: x * float(x[0, 0]), "a number is taken out of an array"),
        (lambda x: np.add(x, 1.0, out=x.copy()), "writes into an array"),
        (lambda x: [x := x + 1.0 for _ in range(60)][-1], "more than 50 instructions"),
    ],
    ids=["random", "float", "out", "long"],
)
def test_what_cannot_be_replayed_is_called(f, why, monkeypatch):
    monkeypatch.setattr(tracing, "MOST_INSTRUCTIONS", 50)
    captured = hg.capture(f)
    for k in range(5):
        found = captured(X + k)
        assert why == "recordings of the function differ" or bits(found) == bits(f(X + k))
    assert captured.replays.program.startswith("none: ") and why in captured.replays.program


def test_another_answer_of_a_truth_value_calls_the_function():
    f = lambda x: x * 2 if x[0, 0] > 0 else x - 1  # noqa: E731
    check(f, [(X,), (X,), (X,), (-X,), (X,), (-X,)])


def test_a_profile_stops_where_a_truth_value_is_another():
    """As labels out of range, which the kernel after that value would read with."""
    x, w, b = np.ones((4, 3)), np.ones((3, 2)), np.zeros(2)
    captured = hg.capture(lambda y: hg.sum(hg.linear_cross_entropy(x, w, b, y)))
    for k in range(4):
        captured(np.arange(4) % (1 + k % 2))
    assert captured.replays.program.startswith("function: ")
    with hg.profile() as found, pytest.raises(hg.errors.ArgumentError):
        captured(np.full(4, 2))
    assert found.rows and not any(row.name.startswith("linear_cross_entropy") for row in found.rows)


def test_kinds_of_calls_have_programs_of_their_own():
    f = lambda x, n, y=None: hg.grad(lambda a: hg.sum(a**n))(x)  # noqa: E731
    calls = [(X, 2), (X, 3), (X.T, 2), (X.astype("float32"), 2), (X[:, :1], 2), (X, 2.0)]
    check(f, calls * 4)
    captured = hg.capture(f)
    for fused in (True, False) * 3:
        with hg.fusion(fused):
            assert bits(captured(X, 2)) == bits(f(X, 2))


def test_an_error_is_the_functions_own_and_leaves_it_usable():
    def f(x, labels):
        return hg.sum(hg.cross_entropy(x, labels))

    captured = hg.capture(f)
    right, wrong = np.array([0, 1]), np.array([0, 7])
    for _ in range(3):
        captured(X, right)
    for _ in range(4):
        with pytest.raises(hg.errors.HypergradError, match="labels"):
            captured(X, wrong)
        assert bits(captured(X, right)) == bits(f(X, right))


def test_threads_do_not_share_an_arena():
    captured = hg.capture(hg.value_and_grad(lambda x: hg.sum(hg.tanh(hg.matmul(x, x)))))
    inputs = [np.random.default_rng(i).standard_normal((40, 40)) for i in range(4)]
    want = [bits(captured.fn(x)) for x in inputs]
    captured(inputs[0]), captured(inputs[0])
    wrong = []

    def work(i):
        wrong.extend([i for _ in range(50) if bits(captured(inputs[i])) != want[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_without_kept_activations_the_bits_are_the_same_and_the_arena_is_smaller():
    def loss(w, x):
        def inner(v, h, b):
            return hg.sum(hg.tanh(hg.matmul(x, v)) ** 2)

        return hg.sum(hg.unroll(inner, w, {}, hg.full_batch(None, 6), optimizer=hg.SGD(lr=0.1)))

    rng = np.random.default_rng(0)
    calls = [(rng.standard_normal((20, 3)), rng.standard_normal((400, 20))) for _ in range(4)]
    arenas = [
        int(check(hg.value_and_grad(loss), calls, keep_activations=keep).replays.program.split(", ")[1].split()[0])
        for keep in (True, False)
    ]
    assert arenas[1] < 0.7 * arenas[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_the_same_bits(method):
    """Four meta-steps: the last two are replayed where the method can be."""
    found = []
    for graphs in (True, False):
        config = tiny.tiny_config(method, iterations=4, graphs=graphs)
        problem = FewShot(config, tiny.tiny_data())
        hparams = problem.init()
        found.append([bits(list(problem.gradient(hparams, i)[:2])) for i in range(4)])
    assert found[0] == found[1]
