"""Figures: the right pairs, the right number of steps, and PNG files that hold something."""

import io

import numpy as np
import pytest
from PIL import Image

from hypergrad.errors import ArgumentError
from hypergrad.fewshot import plots
from hypergrad.fewshot.network import features, init_network
from hypergrad.fewshot.problem import Evaluation
from hypergrad.runs.curves import Reference, curve


def size(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_the_nearest_and_the_farthest(channels):
    rng = np.random.default_rng(0)
    params = init_network(0, channels, 4, 2)
    images = rng.random((9, 8, 8, channels)).astype(np.float32)
    images[7] = images[2]  # a duplicate is at distance zero
    names = [f"class {i}" for i in range(9)]
    pairs = plots.find_pairs(params, images, names, "meta-train")
    assert np.array_equal(pairs.nearest.images, images[[2, 7]]) and pairs.nearest.distance == 0.0
    assert pairs.nearest.classes == ("class 2", "class 7")
    h = features(params, images[None]).value[0]
    distances = [(float(np.linalg.norm(h[i] - h[j])), i, j) for i in range(9) for j in range(i)]
    farthest, i, j = max(distances)
    assert pairs.farthest.distance == pytest.approx(farthest, rel=1e-5)
    assert np.array_equal(pairs.farthest.images, images[[j, i]])
    assert size(plots.pairs([pairs, pairs], seed=0, title="a run"))[0] > 1000


def test_one_image_makes_no_pair():
    with pytest.raises(ArgumentError, match="expected at least 2"):
        plots.find_pairs(init_network(0, 1, 4, 2), np.zeros((1, 8, 8, 1), np.float32), ["a"], "meta-test")


def test_best_steps_is_the_smallest_of_equals():
    accuracies = np.array([[0.5, 0.9, 0.9], [0.5, 0.7, 0.7]])
    evaluation = Evaluation((1, 4, 9), np.zeros_like(accuracies), accuracies)
    assert evaluation.best_steps() == 4 and evaluation.accuracy(4).mean == pytest.approx(0.8)
    assert size(plots.steps(evaluation, evaluation, 4, "a run", 0.2))[0] > 500


@pytest.mark.parametrize("iterations", [1, 100])
def test_curve_needs_no_validation_and_no_test_result(iterations):
    records = [{"iteration": i + 1, "loss": 1.0 / (i + 1), "accuracy": 0.5} for i in range(iterations)]
    bare = curve(records, "a run")
    validation = {"iteration": 1, "validation_loss": 1.0, "validation_accuracy": 0.6, "validation_interval": 0.1, "best": True}
    full = curve([*records, validation], "a run", [Reference("chance", 0.2)], (0.7, 0.01))
    assert size(bare) == size(full) and bare != full


def test_class_names_that_the_font_lacks_give_no_warning():
    rng = np.random.default_rng(0)
    pairs = plots.find_pairs(init_network(0, 1, 4, 2), rng.random((3, 8, 8, 1), np.float32), ["\u732b", "\u72ac", "\u9ce5"], "meta-test")
    assert size(plots.pairs([pairs], seed=0, title="\u732b"))[0] > 1000
