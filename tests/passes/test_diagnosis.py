"""Wrong use is named: states that are not finite, hyperparameters that nothing reads, batches that are not there."""

import warnings

import numpy as np
import pytest
from hyper_problems import hyper_cleaning, hyper_representation, maml, mlp

import hypergrad as hg
from hypergrad.errors import ArgumentError, DifferentiationError

START = {"a": np.ones(3), "b": np.ones(2)}


def problem(inner=lambda w, h, b: hg.sum(w["a"] ** 2) * h["x"] + hg.sum(w["b"] ** 2), optimizer=lambda h: hg.SGD(lr=0.1)):
    return hg.Bilevel(inner, lambda w, h: hg.sum(w["a"]) + hg.sum(w["b"]), lambda h: START, optimizer)


@pytest.mark.parametrize("run", [hg.reverse, hg.forward])
def test_the_first_step_and_leaf_that_are_not_finite(run):
    def inner(w, h, t):
        return hg.sum(w["a"] ** 2) * h + hg.sum(w["b"] * (np.inf if t == 4 else 1.0))

    with np.errstate(all="ignore"), pytest.raises(DifferentiationError, match=rf"{run.__name__}: w\['b'\] is not finite after step 4"):
        run(problem(inner), np.array(0.5), list(range(9)))
    with np.errstate(all="ignore"), pytest.raises(DifferentiationError, match=r"w\['b'\] is not finite after the last step"):
        run(problem(inner), np.array(0.5), list(range(5)))
    with np.errstate(all="ignore"), pytest.raises(DifferentiationError, match=r"w\['a'\] is not finite before the first step, from init"):
        p = problem(lambda w, h, t: hg.sum(w["a"] ** 2) * h + hg.sum(w["b"]))
        start = {**START, "a": np.array([1.0, np.nan, 1.0])}
        run(hg.Bilevel(p.inner_loss, p.outer_loss, lambda h: start, p.optimizer), np.array(0.5), list(range(5)))


@pytest.mark.parametrize("run", [hg.reverse, hg.forward])
def test_hyperparameters_without_influence_are_named(run):
    h = {"x": np.array(0.5), "y": np.array(0.5), "z": np.zeros(2)}
    with pytest.warns(UserWarning, match=rf"{run.__name__}: hparams\['y'\], hparams\['z'\] have no influence") as caught:
        r = run(problem(), h, hg.full_batch(None, 3))
    assert len(caught) == 1 and r.grad["x"] != 0 and r.grad["y"] == 0
    cut = problem(lambda w, h, b: hg.sum(w["a"] ** 2) * hg.stop_gradient(h) + hg.sum(w["b"] ** 2))
    with pytest.warns(UserWarning, match=rf"{run.__name__}: hparams has no influence"):
        run(cut, np.array(0.5), hg.full_batch(None, 3))


@pytest.mark.parametrize("run", [hg.reverse, hg.forward])
def test_no_warning_where_there_is_influence(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (hyper_cleaning, mlp, maml, hyper_representation):
            run(*make())
        run(problem(), {"x": np.array(0.5), "y": np.array(0.5)}, [])  # without a step no inner hyperparameter has influence
        late = problem(lambda w, h, t: hg.sum(w["a"] ** 2) * (h["x"] if t < 5 else h["y"]) + hg.sum(w["b"] ** 2))
        run(late, {"x": np.array(0.5), "y": np.array(0.5)}, list(range(7)))  # read in the last steps alone
        hg.reverse(problem(), {"x": np.array(0.5), "y": np.array(0.5)}, [0, 1], last=1)


def test_batches_shorter_than_they_say():
    class Short(list):
        def __len__(self):
            return 6

    text = r"batches has no batch 4 \(IndexError: list index out of range\), expected one for each of its 6 steps; make len\(batches\)"
    for run in (hg.reverse, hg.forward):
        with pytest.raises(ArgumentError, match=f"unroll: {text}"):
            run(problem(), {"x": np.array(0.5)}, Short([None] * 4))
    with pytest.raises(ArgumentError, match=f"scan: {text}"):
        hg.scan(lambda s, h, b: (s * h, None), np.ones(2), np.array(0.5), Short([None] * 4))
