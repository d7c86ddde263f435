"""Steps that are recorded and replayed: the same bits as the engine's, whatever the op, and the engine's step wherever that could fail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import CASES
from checks import Weights

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError, ShapeError
from hypergrad.passes import replay, schedule
from hypergrad.trees import tree_leaves

T = 12


@pytest.fixture(autouse=True)
def no_earlier_runs():
    """Each test records anew."""
    hg.release_memory()


def eagerly(patch, run):
    """The result without recordings."""
    with patch.context() as p:
        p.setattr(replay, "LEAST_STEPS", 10**9)
        return run()


def same(a, b):
    """Whether two results of a pass have the same bits everywhere."""
    trees = [(r.value, r.grad, r.params, r.state, r.losses) for r in (a, b)]
    rows = [[x.tobytes() for x in tree_leaves(t)] for t in trees]
    return rows[0] == rows[1]


def check(patch, run, replayed=True):
    """The pass with and without recordings."""
    r = run()
    assert same(r, eagerly(patch, run))
    assert r.stats.program.startswith("none") != replayed, r.stats.program
    assert (" calls, " in r.stats.program) == replayed
    return r


# --- every op ---------------------------------------------------------------------------------------------


def one_case_of_each_op():
    chosen = {}
    for case in CASES:
        size = sum(int(np.prod(s)) for s in case.shapes)
        name = case.name.partition("[")[0]
        if name not in chosen or (chosen[name][0] < size <= 600):
            chosen[name] = size, case
    return [case for _, case in chosen.values()]


READ = ("huber_loss",)  # it reads its slope, a Tensor here, to refuse one that is not positive


@pytest.mark.parametrize("case", one_case_of_each_op(), ids=str)
def test_bits_of_every_op(case, monkeypatch):
    args = case.arguments(np.float64)
    y = case.f(*[hg.stop_gradient(a) for a in args])
    weights = Weights.draw(args, y.shape, np.float64)
    loss = weights.loss(case.f)
    problem = hg.Bilevel(
        lambda w, h, batch: h["scale"] * batch * loss(*w),
        lambda w, h: sum((hg.sum(x * d[0]) for x, d in zip(w, weights.dots, strict=True)), h["scale"] * 0.0),
        lambda h: args,
        lambda h: hg.SGD(lr=h["lr"], momentum=0.5),
    )
    hparams = {"scale": np.float64(1e-3), "lr": np.float64(1e-3)}
    batches = [np.asarray(1.0 + 0.1 * t) for t in range(T)]
    for run in (hg.reverse, hg.forward):
        check(monkeypatch, lambda run=run: run(problem, hparams, batches), replayed=case.name.partition("[")[0] not in READ)


# --- every way to choose elements by what a batch has -------------------------------------------------------


def logits(w, batch):
    return hg.linear(batch["x"], w["w"], w["b"])


CHOOSING = {
    "the mean of a cross-entropy": lambda w, h, b: hg.mean(hg.softmax_cross_entropy(logits(w, b), b["y"])),
    "with a regulariser": lambda w, h, b: hg.mean(hg.softmax_cross_entropy(logits(w, b), b["y"])) + h["r"] * hg.sum(w["w"] ** 2),
    "weighted by rows": lambda w, h, b: hg.mean(hg.take(hg.exp(h["rows"]), b["rows"]) * hg.softmax_cross_entropy(logits(w, b), b["y"])),
    "the head": lambda w, h, b: hg.mean(hg.linear_cross_entropy(b["x"], w["w"], w["b"], b["y"])),
    "an embedding": lambda w, h, b: hg.sum(hg.take(w["e"], b["y"])) + hg.sum(w["e"] ** 2),
    "rows of the data": lambda w, h, b: hg.mean(hg.softmax_cross_entropy(hg.linear(hg.take(X, b["rows"]), w["w"], w["b"]), b["y"])),
    "an element a row": lambda w, h, b: -hg.mean(np.take_along_axis(hg.log_softmax(logits(w, b)), b["y"][:, None], -1)),
    "pairs of indices": lambda w, h, b: -hg.mean(hg.log_softmax(logits(w, b))[np.arange(8), b["y"]]),
    "one-hot labels": lambda w, h, b: -hg.mean(hg.log_softmax(logits(w, b)) * (b["y"][:, None] == np.arange(3))),
    "a mask": lambda w, h, b: hg.mean(hg.where(b["mask"], b["x"], 0.0) @ w["w"]) + hg.sum(w["w"] ** 2),
    "the largest": lambda w, h, b: hg.mean(hg.max(logits(w, b) ** 2, axis=-1)),
    "the three smallest": lambda w, h, b: hg.mean(np.sort(logits(w, b) ** 2, axis=0)[:3]),
}


def choosing(loss):
    """(problem, hparams, batches) of a loss of these batches."""
    start = {"w": 0.3 * np.cos(np.arange(12.0)).reshape(4, 3), "b": np.zeros(3), "e": np.sin(np.arange(15.0)).reshape(3, 5)}
    problem = hg.Bilevel(
        loss,
        lambda w, h: hg.sum(w["w"] ** 2) + hg.sum(w["e"] ** 2) + 0.0 * (h["r"] + hg.sum(h["rows"])),
        lambda h: start,
        lambda h: hg.SGD(lr=h["lr"], momentum=0.9),
    )
    batches = [{"x": X[r], "y": Y[r], "rows": r, "mask": X[r] > 0.3} for r in ROWS]
    return problem, {"lr": np.float64(0.1), "r": np.float64(0.5), "rows": np.zeros(20)}, batches


@pytest.mark.parametrize("name", CHOOSING)
def test_bits_where_elements_are_chosen(name, monkeypatch):
    for run in (hg.reverse, hg.forward):
        check(monkeypatch, lambda run=run: run(*choosing(CHOOSING[name])))


def test_an_array_of_the_host_by_rows_of_a_batch(monkeypatch):
    """NumPy asks the rows for their numbers. What it says names the ways that can be replayed."""

    def loss(w, h, batch):
        return hg.mean(hg.softmax_cross_entropy(hg.linear(X[batch["rows"]], w["w"], w["b"]), batch["y"]))

    r = check(monkeypatch, lambda: hg.reverse(*choosing(loss)), replayed=False)
    assert r.stats.program == (
        "none: an array is indexed with one that each step has anew (__index__) while the step is recorded; draw rows in batches[t], or "
        "write hg.take(array, rows)"
    )


# --- every optimiser, policy and kind of run ---------------------------------------------------------------

RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((20, 4)), RNG.integers(0, 3, 20)
ROWS = RNG.integers(0, 20, (T, 8))
W = {"a": 0.3 * RNG.standard_normal((4, 5)), "b": np.zeros(5), "c": 0.3 * RNG.standard_normal((5, 3)), "d": np.zeros(3)}
H = {"l2": np.full(4, 1e-2), "lr": np.float64(0.1), "other": np.float64(0.9)}


def network_loss(w, h, batch):
    x, y = batch
    z = hg.linear_cross_entropy(hg.tanh(hg.linear(x, w["a"], w["b"])), w["c"], w["d"], y)
    return hg.mean(z) + hg.sum(h["l2"] * hg.sum(w["a"] ** 2, axis=1))


def network(optimizer, loss=network_loss, **more):
    return hg.Bilevel(loss, lambda w, h: hg.mean(hg.softmax_cross_entropy(X @ w["a"] @ w["c"], Y)), lambda h: W, optimizer, **more)


class Minibatches:
    def __len__(self):
        return T

    def __getitem__(self, t):
        return X[ROWS[t]], Y[ROWS[t]]


OPTIMIZERS = {
    "sgd": lambda h: hg.SGD(lr=h["lr"], weight_decay=h["other"]),
    "momentum": lambda h: hg.SGD(lr=h["lr"], momentum=h["other"], weight_decay=h["lr"]),
    "nesterov": lambda h: hg.SGD(lr=h["lr"], momentum=h["other"], nesterov=True),
    "adam": lambda h: hg.Adam(lr=h["lr"], beta1=h["other"]),
    "adamw": lambda h: hg.AdamW(lr=h["lr"], weight_decay=h["other"]),
    "rmsprop": lambda h: hg.RMSprop(lr=h["lr"], decay=h["other"]),
    "adagrad": lambda h: hg.Adagrad(lr=h["lr"], eps=h["other"]),
    "schedule": lambda h: hg.SGD(lr=hg.schedule(h["lr"] * np.linspace(1.0, 0.5, T)), momentum=h["other"]),
    "a rate for each leaf": lambda h: hg.SGD(lr={k: h["lr"] for k in W}, momentum=h["other"]),
    "clipped": lambda h: hg.SGD(lr=h["lr"], momentum=h["other"], clip=hg.clip_by_norm(0.5)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bits_of_every_optimiser(optimizer, monkeypatch):
    problem = network(OPTIMIZERS[optimizer])
    results = [check(monkeypatch, lambda c=c: hg.reverse(problem, H, Minibatches(), checkpoints=c)) for c in ("all", "sqrt", 3)]
    assert all(same(r, results[0]) for r in results)
    check(monkeypatch, lambda: hg.forward(problem, H, Minibatches()))


@pytest.mark.parametrize("more", [{"first_order": True}, {"last": 5}, {"checkpoints": "reversible"}, {"checkpoints": "host"}], ids=str)
def test_bits_of_options(more, monkeypatch):
    check(monkeypatch, lambda: hg.reverse(network(OPTIMIZERS["momentum"]), H, Minibatches(), **more))


def test_bits_of_a_running_loss(monkeypatch):
    """It is a function of the step's number, so its steps are not replayed."""
    problem = network(OPTIMIZERS["sgd"], running_loss=lambda w, h, t: hg.sum(w["b"]) * (0.5 if t < 4 else 0.25))
    check(monkeypatch, lambda: hg.reverse(problem, H, Minibatches()), replayed=False)


def test_bits_of_a_scan(monkeypatch):
    def outcome(mode):
        def run(h):
            step = lambda s, h, b: ((hg.tanh(s[0] @ h + b), s[1] + hg.sum(s[0])), hg.sum(s[0] ** 2))  # noqa: E731
            (s, total), outs = hg.scan(step, (np.ones(4), np.float64(0.0)), h, list(X[:T]), stats=stats)
            return hg.sum(s) + total + hg.sum(outs)

        stats = hg.Stats("scan")
        got = hg.grad(run)(0.3 * X[:4]) if mode == "reverse" else hg.jvp(run, (0.3 * X[:4],), (X[4:8],))
        return [x.tobytes() for x in tree_leaves(got)], stats

    for mode in ("reverse", "forward"):
        got, stats = outcome(mode)
        assert got == eagerly(monkeypatch, lambda mode=mode: outcome(mode))[0]
        assert not stats.program.startswith("none"), stats.program


# --- what steps keep for their transposition ---------------------------------------------------------------

WIDE = RNG.standard_normal((30, 600)) / 8
WIDE_W = {"a": RNG.standard_normal((600, 20)) / 20, "b": np.zeros(20), "c": RNG.standard_normal((600, 3)) / 20, "d": np.zeros(3)}


def wide_loss(w, h, batch):
    """A product and a head over many features: their results are worth keeping."""
    x, y = batch
    hidden = hg.tanh(hg.linear(x, w["a"], w["b"]))
    return hg.mean(hidden**2) + h["l2"] * hg.mean(hg.linear_cross_entropy(x, w["c"], w["d"], y))


def wide_problem(optimizer):
    return hg.Bilevel(wide_loss, lambda w, h: hg.sum(w["a"] ** 2) + hg.sum(w["c"] ** 2), lambda h: WIDE_W, OPTIMIZERS[optimizer])


class WideMinibatches(Minibatches):
    def __getitem__(self, t):
        rows = np.arange(8 + t % 2) + ROWS[t][0]
        return WIDE[rows], Y[rows % 20]


WIDE_H = {"l2": np.float64(0.5), "lr": np.float64(0.1), "other": np.float64(0.9)}
KEPT = 8 * 8.5 * (20 + 3 + 1)  # bytes a step, of batches of 8 and 9: the product, the head's residual and its losses


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam"])
@pytest.mark.parametrize("more", [{}, {"last": 20}, {"checkpoints": 40}], ids=str)
def test_bits_where_steps_keep_results(optimizer, more, monkeypatch):
    problem = wide_problem(optimizer)
    batches = [WideMinibatches()[t % T] for t in range(30)]
    r = check(monkeypatch, lambda: hg.reverse(problem, WIDE_H, batches, **more))
    assert r.stats.kept_bytes == (20 if "last" in more else 26) * KEPT  # the first two batches of each shape are recorded


def products(run):
    hg.release_memory()
    with hg.profile() as found:
        r = run()
    return r, sum(row.calls for row in found.rows if row.name == "matmul")


def test_what_is_kept_is_not_computed_again_and_takes_no_room_that_was_counted():
    problem = wide_problem("momentum")
    batches = [WideMinibatches()[0]] * 30
    r, fewer = products(lambda: hg.reverse(problem, WIDE_H, batches))
    for more in ({"memory_bytes": 2**30}, {"checkpoints": 5}, {"checkpoints": "host"}):
        other, _ = products(lambda more=more: hg.reverse(problem, WIDE_H, batches, **more))
        assert same(r, other) and other.stats.kept_bytes == 0
    other, more = products(lambda: hg.reverse(problem, WIDE_H, batches, memory_bytes=2**30))
    # One product a step, but for the four transposed ones that are not replayed: the last two have fewer cotangents than the others. The
    # first two steps are replayed once more, with two products each, as they kept nothing when they were recorded.
    assert more - fewer == 30 - 4 - 2 * 2


def test_what_is_kept_where_steps_are_run_again(monkeypatch):
    """A step that is run twice keeps results the second time, beside the state that is stored then."""
    problem = wide_problem("momentum")
    batches = [WideMinibatches()[0]] * 30
    r = hg.reverse(problem, WIDE_H, batches)
    other, fewer = products(lambda: hg.reverse(problem, WIDE_H, batches, checkpoints="sqrt"))
    assert same(r, other) and other.stats.kept_bytes == other.stats.states_held * 8 * 8 * 24 <= other.stats.state_bytes // 8
    monkeypatch.setattr(schedule.Sqrt, "stores_reruns", False)
    none, more = products(lambda: hg.reverse(problem, WIDE_H, batches, checkpoints="sqrt"))
    assert same(r, none) and none.stats.kept_bytes == 0
    assert more - fewer == 30 - 4  # one product a step, but for the four transposed ones that are not replayed


def test_what_is_kept_has_a_limit(monkeypatch):
    """Some bytes in all, or an eighth of the states."""
    problem = wide_problem("momentum")
    state = 2 * sum(x.nbytes for x in WIDE_W.values())

    def kept(rows):
        x, y = np.tile(WIDE, (5, 1))[:rows], np.tile(Y, 8)[:rows]
        return hg.reverse(problem, WIDE_H, [(x, y)] * 30).stats.kept_bytes

    assert kept(140) == 28 * 140 * 8 * 24 and kept(144) == 28 * 144 * 8 * 24
    monkeypatch.setattr(replay, "MOST_KEPT_BYTES", 30 * (state // 8 - 1))
    assert 143 * 8 * 24 < state // 8 < 144 * 8 * 24
    assert kept(143) == 28 * 143 * 8 * 24 and kept(144) == 0


@pytest.mark.parametrize(("what", "step"), [("the batch", 9), ("an array that the loss closes over", 15), ("a hyperparameter", 15)])
def test_what_is_kept_of_other_numbers_is_not_used(what, step):
    """The step then has another loss when it is run again, and the run says so at the first one that the backward run meets."""
    x, h = WIDE[:8].copy(), {**WIDE_H, "scale": np.ones((8, 600))}
    problem = wide_problem("momentum")
    closing = hg.Bilevel(lambda w, h, batch: wide_loss(w, h, (h["scale"] * x, Y[:8])), problem.outer_loss, problem.init, problem.optimizer)

    class Once(WideMinibatches):
        read = 0

        def __len__(self):
            return 30

        def __getitem__(self, t):
            self.read += 1
            return WIDE[:8] + (1e-3 if self.read > 50 else 0.0), Y[:8]

    def change(t, w, loss):
        if t == 15:
            (x if what.startswith("an array") else h["scale"])[3, 5] += 1.0

    kept = hg.reverse(closing, h, hg.full_batch(None, 30)).stats.kept_bytes
    assert kept > 28 * 8 * 8 * 20
    with pytest.raises(DifferentiationError, match=f"the inner loss of step {step} was .* when the step is run again"):
        if what == "the batch":
            hg.reverse(problem, WIDE_H, Once())
        else:
            hg.reverse(closing, h, hg.full_batch(None, 30), callback=change)


# --- what a recording cannot know -------------------------------------------------------------------------


def test_a_branch_on_a_truth_value_is_taken_anew(monkeypatch):
    """The recorded branch holds until the numbers change; then the engine computes the steps."""

    def loss(w, h, batch):
        return hg.sum(w * w) if (w.value > 0.5).all() else 3.0 * hg.sum(w * w * w * w)

    problem = hg.Bilevel(loss, lambda w, h: hg.sum(w), lambda h: np.array([1.0, 2.0]), lambda h: hg.SGD(lr=h))
    for run in (hg.reverse, hg.forward):
        r = eagerly(monkeypatch, lambda run=run: run(problem, np.float64(0.05), hg.full_batch(None, 40)))
        assert min(r.params) < 0.5 < min(run(problem, np.float64(0.05), hg.full_batch(None, 5)).params)  # it crosses on the way
        assert same(r, run(problem, np.float64(0.05), hg.full_batch(None, 40)))


@pytest.mark.parametrize(
    "read", [lambda w: float(w.value.sum()), lambda w: w.value.sum().item(), lambda w: np.asarray(w.value).max(), lambda w: int(w.value[0])]
)
def test_numbers_that_are_read_are_never_frozen(read, monkeypatch):
    problem = hg.Bilevel(
        lambda w, h, b: h * hg.sum(w * w) * read(w), lambda w, h: hg.sum(w), lambda h: np.ones(3), lambda h: hg.SGD(lr=0.1)
    )
    r = check(monkeypatch, lambda: hg.reverse(problem, np.float64(0.1), hg.full_batch(None, T)), replayed=False)
    assert "a number is taken out of an array" in r.stats.program


def test_equal_numbers_that_are_not_the_same_are_told_apart(monkeypatch):
    def loss(w, h, batch):
        return h * hg.sum(w * w) * (2.0 + math.copysign(1.0, batch))

    problem = hg.Bilevel(loss, lambda w, h: hg.sum(w), lambda h: X[0], lambda h: hg.SGD(lr=0.01))
    for zeros in ([0.0] * 6 + [-0.0] * 6, [np.float64(0.0)] * 6 + [np.float64(-0.0)] * 6):
        check(monkeypatch, lambda zeros=zeros: hg.reverse(problem, np.float64(0.3), zeros))


def test_an_object_in_a_batch_is_not_replayed(monkeypatch):
    """The same object may hold other arrays in each step."""

    class Loader:
        def __len__(self):
            return T

        def __getitem__(self, t):
            self.x = X[t]
            return self

    problem = hg.Bilevel(lambda w, h, b: h * hg.sum(w * b.x), lambda w, h: hg.sum(w * w), lambda h: X[0], lambda h: hg.SGD(lr=0.1))
    r = check(monkeypatch, lambda: hg.reverse(problem, np.float64(0.3), Loader()), replayed=False)
    assert "an argument is a Loader, neither array nor number" in r.stats.program


def test_code_that_asks_for_the_class_of_an_array_goes_the_same_way(monkeypatch):
    def loss(w, h, batch):
        return hg.sum(w * w) * h * (1.0 if isinstance(w.value, np.ndarray) and isinstance(batch, np.ndarray) else 3.0)

    problem = hg.Bilevel(loss, lambda w, h: hg.sum(w), lambda h: X[0], lambda h: hg.SGD(lr=0.1))
    check(monkeypatch, lambda: hg.reverse(problem, np.float64(0.3), list(X[:T])))


def test_a_refusal_that_the_loss_swallows_counts(monkeypatch):
    """Also where an op that is recorded as one instruction comes after it."""

    def loss(w, h, batch):
        try:
            scale = float(w.value.sum())
        except Exception:
            scale = 7.0
        return hg.sum(hg.sort(w * h)) * scale

    problem = hg.Bilevel(loss, lambda w, h: hg.sum(w), lambda h: X[0], lambda h: hg.SGD(lr=0.01))
    check(monkeypatch, lambda: hg.reverse(problem, np.float64(0.3), hg.full_batch(None, T)), replayed=False)


def test_what_numpy_computes_of_a_value_is_replayed(monkeypatch):
    def loss(w, h, batch):
        return hg.sum(w * w * (1.0 + np.abs(np.sort(w.value))) * np.where(batch > 0, h.value, 2.0))

    problem = hg.Bilevel(loss, lambda w, h: hg.sum(w * h), lambda h: X[0], lambda h: hg.SGD(lr=0.01))
    check(monkeypatch, lambda: hg.reverse(problem, X[1], list(X[:T])))


def test_labels_out_of_range_are_found_in_a_replay():
    class Wrong(Minibatches):
        def __getitem__(self, t):
            x, y = super().__getitem__(t)
            return x, np.where(t == 9, 3, y)

    for loss in (network_loss, lambda w, h, b: hg.mean(hg.softmax_cross_entropy(b[0] @ w["a"] @ w["c"], b[1])) + hg.sum(h["l2"])):
        with pytest.raises(ArgumentError, match="labels has values 0 to 3, expected 0 to 2|labels has values 3 to 3"):
            hg.reverse(network(OPTIMIZERS["sgd"], loss), H, Wrong())


def test_a_step_that_is_not_pure_is_not_replayed(monkeypatch):
    rng = np.random.default_rng(0)
    problem = network(OPTIMIZERS["momentum"], lambda w, h, b: network_loss(w, h, b) + hg.sum(w["b"] * rng.standard_normal(5)))
    r = hg.forward(problem, H, Minibatches())
    assert "two recordings of the step differ" in r.stats.program
    with pytest.raises(DifferentiationError, match="is run again, expected the same bits"):
        hg.reverse(problem, H, Minibatches())


def test_batches_of_changing_shapes(monkeypatch):
    sizes = [8, 8, 8, 5, 8, 8, 3, 8, 5, 8, 8, 5]
    check(monkeypatch, lambda: hg.reverse(network(OPTIMIZERS["adam"]), H, [(X[:n], Y[:n]) for n in sizes]))


def test_arrays_that_do_not_lie_in_order(monkeypatch):
    wide = np.asfortranarray(X)
    batches = [(wide[::-1][:8], Y[:8]), (X.T.copy().T[:8], Y[:8])] * (T // 2)
    check(monkeypatch, lambda: hg.reverse(network(OPTIMIZERS["momentum"]), H, batches))


def test_results_belong_to_the_caller():
    """A result that is a constant of the program is given away as a copy."""
    start = {"x": X[0], "y": X[1]}
    problem = hg.Bilevel(lambda w, h, b: hg.sum(h * w["x"]), lambda w, h: hg.sum(w["x"]), lambda h: start, lambda h: hg.Adam(lr=0.1))
    hparams = np.ones(4)
    first = hg.reverse(problem, hparams, hg.full_batch(None, T))
    kept = [x.copy() for x in tree_leaves(first.params)]
    for x in tree_leaves((first.params, first.state, first.grad)):
        x[...] = np.nan
    again = hg.reverse(problem, hparams, hg.full_batch(None, T))
    assert all(np.array_equal(a, b) for a, b in zip(kept, tree_leaves(again.params), strict=True))


def test_an_error_in_a_later_step_is_the_engines_own(monkeypatch):
    def batches(t):
        return X[0] if t < 9 else X[0, :3]

    problem = hg.Bilevel(lambda w, h, b: hg.sum(h * w * b), lambda w, h: hg.sum(w), lambda h: X[1], lambda h: hg.SGD(lr=0.1))
    texts = []
    for run in (lambda f: f(), lambda f: eagerly(monkeypatch, f)):
        with pytest.raises(ShapeError) as caught:
            run(lambda: hg.reverse(problem, np.float64(1.0), [batches(t) for t in range(T)]))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_no_recording_where_fusion_is_off_or_the_run_is_short():
    problem = network(OPTIMIZERS["momentum"])
    with hg.fusion(False):
        assert hg.reverse(problem, H, Minibatches()).stats.program == "none: fusion is switched off"
    assert hg.reverse(problem, H, [(X, Y)] * 3).stats.program.startswith("none: the run has 3 steps")


def test_a_profile_counts_every_instruction_of_the_replays():
    problem = network(OPTIMIZERS["momentum"])
    with hg.profile() as found:
        hg.forward(problem, H, Minibatches())
    rows = {row.name: row for row in found.rows}
    assert rows["sgd_step_value"].calls < T  # the first steps are the engine's
    product = next(row for row in found.rows if row.name == "matmul" and row.shape == "(8, 5)")
    assert product.flop == product.calls * 2 * 8 * 5 * 4 and product.bytes == product.calls * 8 * (8 * 4 + 4 * 5 + 8 * 5)
    assert "matmul" in str(found) and len(str(found).splitlines()) == len(found.rows) + 2
    with hg.profile() as nothing:
        hg.forward(problem, H, [(X, Y)] * 3)
    assert not nothing.rows and "no step was replayed" in str(nothing)
