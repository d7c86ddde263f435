"""The method: its meta-gradient against finite differences, its independence of batching, its sweep."""

from types import SimpleNamespace

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.errors import ArgumentError, ShapeError
from hypergrad.fewshot.hyper_representation import HyperRepresentation, evaluate, interval
from hypergrad.fewshot.network import feature_size, features, init_network


def make_episodes(rng, episodes=2, n_way=3, n_query=2, size=9, channels=1, dtype=np.float64):
    def labels(count):
        return np.tile(np.repeat(np.arange(n_way), count), (episodes, 1))

    def images(count):
        return rng.random((episodes, n_way * count, size, size, channels)).astype(dtype)

    return SimpleNamespace(support=images(1), support_labels=labels(1), query=images(n_query), query_labels=labels(n_query))


def part(episodes, index):
    return SimpleNamespace(**{name: value[index : index + 1] for name, value in vars(episodes).items()})


VARIANTS = [
    {},
    {"centred": False},
    {"log_step_size": True, "n_steps": 1},
    {"normalized": True, "step_size": 5.0},
    {"statistics": "joint", "log_step_size": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_meta_gradient_equals_finite_differences(options):
    rng = np.random.default_rng(0)
    method = HyperRepresentation(**{"n_way": 3, "n_steps": 4, "step_size": 0.3, **options})
    episodes = make_episodes(rng)
    hparams = method.init(1, (9, 9, 1), filters=3, blocks=2, dtype=np.float64)
    # away from the symmetric start, where many ReLU inputs would sit exactly on the kink
    hparams = {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in hparams.items()}

    def loss(tree):
        return method.meta_loss(tree, episodes)[0]

    gradient = hg.grad(loss)(hparams)
    for name, value in hparams.items():
        direction = rng.standard_normal(value.shape)
        eps = 1e-6
        high = float(loss({**hparams, name: value + eps * direction}))
        low = float(loss({**hparams, name: value - eps * direction}))
        exact = float(np.sum(gradient[name] * direction))
        assert exact == pytest.approx((high - low) / (2 * eps), rel=1e-5, abs=1e-8), name


def test_a_planted_fault_in_the_meta_gradient_is_seen():
    """Cutting the dependence of w_T on the features (the paper's "approx") changes the gradient visibly."""
    rng = np.random.default_rng(0)
    method = HyperRepresentation(n_way=3, n_steps=4, step_size=0.5)
    episodes = make_episodes(rng)
    hparams = method.init(1, (9, 9, 1), filters=3, blocks=2, dtype=np.float64)

    def approximate(tree):
        support, query = method.represent(tree, episodes)
        w = method.adapt(hparams, method.zero_model(support), support.value, episodes.support_labels, 4)
        logits = hg.matmul(query, w["weight"].value) + w["bias"].value
        return hg.mean(hg.softmax_cross_entropy(logits, episodes.query_labels))

    exact = hg.grad(lambda tree: method.meta_loss(tree, episodes)[0])(hparams)
    cut = hg.grad(approximate)(hparams)
    assert float(approximate(hparams)) == pytest.approx(float(method.meta_loss(hparams, episodes)[0]), rel=1e-12)
    assert np.abs(exact["block2.filters"] - cut["block2.filters"]).max() > 1e-4


@pytest.mark.parametrize("statistics", ["separate", "joint"])
def test_episodes_do_not_touch_each_other(statistics):
    rng = np.random.default_rng(3)
    method = HyperRepresentation(n_way=3, statistics=statistics)
    episodes = make_episodes(rng, episodes=3)
    hparams = method.init(0, (9, 9, 1), filters=4, blocks=2, dtype=np.float64)
    together = method.sweep(hparams, episodes, [0, 1, 5])
    for e in range(3):
        alone = method.sweep(hparams, part(episodes, e), [0, 1, 5])
        np.testing.assert_allclose(together[0][e], alone[0][0], rtol=1e-12)
        np.testing.assert_array_equal(together[1][e], alone[1][0])


def test_sweep_equals_separate_runs_and_starts_at_chance():
    rng = np.random.default_rng(4)
    episodes = make_episodes(rng)
    steps = [0, 2, 5]
    method = HyperRepresentation(n_way=3)
    hparams = method.init(0, (9, 9, 1), filters=4, blocks=2, dtype=np.float64)
    losses, _ = method.sweep(hparams, episodes, steps)
    np.testing.assert_allclose(losses[:, 0], np.log(3.0), rtol=1e-12)
    for column, n_steps in enumerate(steps[1:], start=1):
        single = HyperRepresentation(n_way=3, n_steps=n_steps)
        assert losses[:, column].mean() == pytest.approx(float(single.meta_loss(hparams, episodes)[0]), rel=1e-12)


def test_support_order_does_not_matter_to_centred_features():
    rng = np.random.default_rng(5)
    episodes = make_episodes(rng)
    method = HyperRepresentation(n_way=3)
    hparams = method.init(0, (9, 9, 1), filters=4, blocks=2, dtype=np.float64)
    support, _ = method.represent(hparams, episodes)
    np.testing.assert_allclose(support.value.mean(axis=1), 0.0, atol=1e-12)


def test_normalized_features_make_the_method_blind_to_their_scale():
    rng = np.random.default_rng(7)
    episodes = make_episodes(rng)
    method = HyperRepresentation(n_way=3, normalized=True)
    hparams = method.init(0, (9, 9, 1), filters=4, blocks=2, dtype=np.float64)
    scaled = {**hparams, "block2.gamma": 10.0 * hparams["block2.gamma"]}
    assert float(method.meta_loss(hparams, episodes)[0]) == pytest.approx(float(method.meta_loss(scaled, episodes)[0]), rel=1e-9)


def test_features_have_the_promised_size_and_bad_images_are_refused():
    params = init_network(0, in_channels=3, filters=5, blocks=3)
    assert features(params, np.zeros((2, 4, 17, 9, 3), np.float32)).shape == (2, 4, 2 * 1 * 5)
    assert feature_size(17, 9, 5, 3) == 10
    with pytest.raises(ShapeError, match="expected at least 8 a side"):
        features(params, np.zeros((2, 4, 7, 9, 3), np.float32))
    with pytest.raises(ShapeError, match="add a leading episode axis"):
        features(params, np.zeros((4, 9, 9, 3), np.float32))
    with pytest.raises(ArgumentError, match="filters is 0"):
        init_network(0, 1, 0)


def test_network_is_a_function_of_the_seed():
    first, second, other = (init_network(seed, 1, 4) for seed in (7, 7, 8))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["block1.filters"], other["block1.filters"])
    assert first["block1.filters"].dtype == np.float32


def test_evaluate_reads_exactly_the_episodes_asked_for():
    rng = np.random.default_rng(6)
    batches = [make_episodes(rng) for _ in range(3)]
    method = HyperRepresentation(n_way=3)
    hparams = method.init(0, (9, 9, 1), filters=4, blocks=2, dtype=np.float64)
    ticks: list[int] = []
    sampler = SimpleNamespace(batch=batches.__getitem__)
    result = evaluate(method, hparams, sampler, 5, [4, 2, 2], ticks.append)
    assert result.steps == (2, 4) and result.accuracies.shape == (5, 2) and ticks == [2, 2, 1]
    assert result.interval(4) == interval(result.accuracies[:, 1])
    assert result.mean(2) == result.accuracies[:, 0].mean()
    with pytest.raises(ArgumentError, match="n_episodes is 0"):
        evaluate(method, hparams, sampler, 0, [1])


def test_interval_is_that_of_the_normal_distribution():
    assert interval(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(1.96 * 0.5 / 2.0)
