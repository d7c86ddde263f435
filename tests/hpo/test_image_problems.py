"""What single image problems promise: augmentation moves, zooms and blurs; distilled images teach more than real ones; strengths differ."""

import numpy as np
import pytest

from hypergrad.data import open_labelled
from hypergrad.errors import ArgumentError
from hypergrad.hpo.config import make_config
from hypergrad.hpo.problems.augmentation import NAMES, NONE, Augmentation, Draws, augmented, drawn
from hypergrad.hpo.problems.distillation import Distillation
from hypergrad.hpo.problems.hyper_cleaning import HyperCleaning
from hypergrad.hpo.problems.regularisers import Regularisers
from hypergrad.hpo.tuning import Tuning
from hypergrad.runs.directory import RunDirectory
from hypergrad.runs.loop import train

SMALL = {"n_train": 40, "n_validation": 40, "n_test": 40}


def strengths(**chosen):
    return {name: np.asarray(np.log(chosen.get(name, NONE))) for name in NAMES}


def draws(n, size, **chosen):
    usual = {"place": np.zeros((4, n)), "blur": np.zeros(n), "noise": np.zeros((n, size, size)), "contrast": np.zeros(n)}
    return Draws(**{**usual, **chosen})


@pytest.fixture(scope="module")
def square():
    x = np.zeros((1, 11, 11))
    x[0, 4:7, 4:7] = 1.0
    return x


def test_a_shift_by_whole_pixels_and_what_no_strength_does(square):
    place = np.array([[0.0], [1.0], [0.0], [-2.0]])  # rows: zoom 0, shift 1; columns: zoom 0, shift -2
    moved = augmented(strengths(shift=1.0), square, draws(1, 11, place=place)).value
    np.testing.assert_allclose(moved, np.roll(square, (-1, 2), axis=(1, 2)), atol=1e-3)
    still = augmented(strengths(), square, drawn((1, 11, 11), (0,), np.float64)).value
    np.testing.assert_allclose(still, square, atol=2e-3)


def test_zoom_blur_noise_and_contrast(square):
    larger = augmented(strengths(zoom=0.5), square, draws(1, 11, place=np.array([[-1.0], [0.0], [-1.0], [0.0]]))).value
    assert larger.sum() > 3 * square.sum()
    soft = augmented(strengths(blur=1.0), square, draws(1, 11, blur=np.ones(1))).value
    assert soft.max() < 0.9 and soft.sum() == pytest.approx(square.sum(), rel=0.02)
    np.testing.assert_allclose(
        augmented(strengths(noise=0.1), square, draws(1, 11, noise=np.ones((1, 11, 11)))).value - square, 0.1, atol=1e-3
    )
    np.testing.assert_allclose(augmented(strengths(contrast=0.5), square, draws(1, 11, contrast=np.ones(1))).value, 1.5 * square, atol=2e-3)


def test_draws_differ_by_iteration_and_step_and_repeat():
    task = Augmentation(**SMALL, batch=5, n_steps=3).open(0)
    first, other = task.inner(1)[1], task.inner(2)[1]
    assert np.array_equal(first[1].draws.noise, task.inner(1)[1][1].draws.noise)
    assert not np.array_equal(first[1].draws.noise, first[2].draws.noise)
    assert not np.array_equal(first[1].draws.noise, other[1].draws.noise)
    with pytest.raises(IndexError):
        first[3]


def test_an_implicit_hypergradient_of_a_run_without_a_solution_is_refused():
    with pytest.raises(ArgumentError, match="mode is 'implicit', expected reverse or forward because the inner run of augmentation"):
        make_config("augmentation", mode="implicit")


def tuned(tmp_path, name, **changes):
    config = make_config(name, shorten=True, **{**SMALL, **changes})
    task = config.problem.open(config.seed)
    with RunDirectory.create(tmp_path / "run", {}) as run:
        state = train(run, config.training, Tuning(config, task))
    return task, state.best_hparams


def test_distilled_images_teach_more_than_real_ones(tmp_path):
    task, hparams = tuned(tmp_path, "distillation", iterations=60, per_class=1)
    found = task.evaluate(hparams, "a run").numbers
    assert hparams["images"].shape == (10, 784) and found["tuned_accuracy"] > found["real_accuracy"] + 0.1


def test_bounded_images_and_new_starts(tmp_path):
    task, hparams = tuned(tmp_path, "distillation", bounded=True, hidden=4, fixed_start=False, per_class=2, outer_lr=0.5)
    assert hparams["images"].min() == 0 and hparams["images"].max() == 1 and hparams["images"].shape == (20, 784)
    starts = [task.inner(draw)[0].init(hparams)["v"] for draw in (0, 1, 1)]
    assert not np.array_equal(starts[0], starts[1]) and np.array_equal(starts[1], starts[2])
    assert task.evaluate(hparams, "a run").numbers["synthetic_images"] == 20
    fixed = Distillation(**SMALL, hidden=4).open(0)
    assert np.array_equal(fixed.inner(0)[0].init(hparams)["v"], fixed.inner(1)[0].init(hparams)["v"])


@pytest.mark.parametrize(("per", "shape"), [("weight", (784, 10)), ("input", (784, 1)), ("array", ())])
def test_what_has_a_strength(per, shape):
    task = Regularisers(**SMALL, per=per, inner_lr=0.5).open(0)
    assert {name: value.shape for name, value in task.init().items()} == {"w": shape}
    assert float(task.project({"w": np.full(shape, 9.0)})["w"].max()) == pytest.approx(np.log(2.0))


def test_wrong_labels_are_wrong_and_as_many_as_asked():
    task = HyperCleaning(**SMALL, noise=0.3).open(0)
    true = open_labelled(**SMALL).train
    assert task.wrong.sum() == 12 and np.array_equal(task.train.y != true.y, task.wrong)
    everything = task.found({"weights": np.where(task.wrong, 0.0, 1.0)})
    assert everything == {"discarded": 12, "wrong": 12, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    none = task.found({"weights": np.ones(40)})
    assert none["discarded"] == 0 and none["f1"] == 0.0
    assert HyperCleaning(**SMALL, noise=0.0).open(0).found({"weights": np.ones(40)})["f1"] == 1.0
