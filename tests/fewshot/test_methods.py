"""Every method: its meta-gradient against finite differences, independence of batching, its sweep; then what each promises."""

from types import SimpleNamespace

import numpy as np
import pytest

import hypergrad as hg
from hypergrad.data import Episodes
from hypergrad.errors import ArgumentError, ShapeError
from hypergrad.fewshot.learner import BIAS, HEAD, WEIGHT
from hypergrad.fewshot.method import Method
from hypergrad.fewshot.methods import METHODS
from hypergrad.fewshot.methods.hyper_representation import HyperRepresentation
from hypergrad.fewshot.methods.maml import MAML
from hypergrad.fewshot.methods.protonet import ProtoNet
from hypergrad.fewshot.network import feature_size, features, init_network
from hypergrad.fewshot.problem import Evaluation, evaluate
from hypergrad.testing import check_gradients


def make_episodes(rng, episodes=2, n_way=3, n_query=2, size=9, channels=1, k_shot=1):
    def labels(count):
        return np.tile(np.repeat(np.arange(n_way), count), (episodes, 1))

    def images(count):
        return rng.random((episodes, n_way * count, size, size, channels))

    return Episodes(images(k_shot), labels(k_shot), images(n_query), labels(n_query))


def part(episodes, index):
    return Episodes(*(value[index : index + 1] for value in episodes))


def drawn(method, filters=3, away=0.1):
    """Hyperparameters away from the symmetric start, where many ReLU inputs would sit exactly on the kink."""
    hparams = method.init(1, (9, 9, 1), filters=filters, blocks=2, dtype=np.float64)
    rng = np.random.default_rng(2)
    return {name: value + away * rng.standard_normal(value.shape) for name, value in hparams.items()}


VARIANTS = [
    HyperRepresentation(n_way=3, n_steps=4, step_size=0.3),
    HyperRepresentation(n_way=3, n_steps=4, step_size=0.3, centred=False),
    HyperRepresentation(n_way=3, n_steps=1, log_step_size=True),
    HyperRepresentation(n_way=3, n_steps=4, normalized=True, step_size=5.0),
    HyperRepresentation(n_way=3, n_steps=4, step_size=0.3, statistics="joint", log_step_size=True),
    MAML(n_way=3, n_steps=1),
    MAML(n_way=3, n_steps=3, step_size=0.1),
    MAML(n_way=3, n_steps=3, moves="head"),
    ProtoNet(n_way=3),
    ProtoNet(n_way=3, temperature=4.0),
]


def test_every_method_has_a_variant():
    assert {type(method) for method in VARIANTS} == set(METHODS.values())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_meta_gradient_equals_finite_differences(method, fused):
    episodes = make_episodes(np.random.default_rng(0), k_shot=2)
    with hg.fusion(fused):
        check_gradients(lambda hparams: method.meta_loss(hparams, episodes)[0], drawn(method), order=1, rtol=1e-5)


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_episodes_do_not_touch_each_other(method):
    episodes, steps = make_episodes(np.random.default_rng(3), episodes=3), [0, 1, 4][: 3 if method.usual_steps else 1]
    hparams = drawn(method)
    together = method.evaluate(hparams, episodes, steps)
    for e in range(3):
        alone = method.evaluate(hparams, part(episodes, e), steps)
        np.testing.assert_allclose(together[0][e], alone[0][0], rtol=1e-12)
        np.testing.assert_array_equal(together[1][e], alone[1][0])


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_predictions_agree_with_the_losses_and_do_not_read_query_labels(method):
    episodes = make_episodes(np.random.default_rng(4))
    hparams = drawn(method)
    hidden = episodes._replace(query_labels=np.zeros_like(episodes.query_labels))
    logits = method.predict(hparams, method.adapt(hparams, hidden), hidden)
    losses, again = method.judge(hparams, method.adapt(hparams, episodes), episodes)
    np.testing.assert_allclose(logits.value, again, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(losses.value, hg.softmax_cross_entropy(logits, episodes.query_labels).value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", [method for method in VARIANTS if method.usual_steps], ids=repr)
def test_a_sweep_equals_separate_runs(method):
    episodes, hparams = make_episodes(np.random.default_rng(4)), drawn(method)
    losses, _ = method.evaluate(hparams, episodes, [0, 2, method.n_steps + 2])
    for column, n_steps in ((1, 2), (2, method.n_steps + 2)):
        learner = method.adapt(hparams, episodes, n_steps)
        np.testing.assert_allclose(losses[:, column], method.judge(hparams, learner, episodes)[0].value.mean(axis=-1), rtol=1e-12)


def test_a_method_without_its_functions_is_refused_when_it_is_made():
    class Unfinished(Method):
        title = "unfinished"

        def init(self, seed, image_shape, filters, blocks=4, dtype=np.float32):
            return {}

    with pytest.raises(TypeError, match="abstract methods adapt, predict|abstract methods 'adapt', 'predict'"):
        Unfinished()


def test_hyper_representation_starts_at_chance():
    method = HyperRepresentation(n_way=3)
    losses, _ = method.evaluate(drawn(method), make_episodes(np.random.default_rng(4)), [0])
    np.testing.assert_allclose(losses, np.log(3.0), rtol=1e-12)


def test_a_planted_fault_in_the_meta_gradient_is_seen():
    """Cutting the dependence of w_T on the features (the paper's "approx") changes the gradient visibly."""
    method = HyperRepresentation(n_way=3, n_steps=4, step_size=0.5)
    episodes, hparams = make_episodes(np.random.default_rng(0)), drawn(method, away=0.0)

    def approximate(tree):
        learner = method.adapt(hparams, episodes)
        query = method.head(tree, {**method.represent(tree, episodes), "weight": None, "bias": learner["bias"].value}, episodes)[0]
        logits = hg.matmul(query, learner["weight"].value) + learner["bias"].value
        return hg.mean(hg.softmax_cross_entropy(logits, episodes.query_labels))

    exact = hg.grad(lambda tree: method.meta_loss(tree, episodes)[0])(hparams)
    cut = hg.grad(approximate)(hparams)
    assert float(approximate(hparams)) == pytest.approx(float(method.meta_loss(hparams, episodes)[0]), rel=1e-12)
    assert np.abs(exact["block2.filters"] - cut["block2.filters"]).max() > 1e-4
    with pytest.raises(AssertionError, match="finite difference"):
        check_gradients(
            lambda tree: method.meta_loss({**tree, "block2.gamma": tree["block2.gamma"].detach()}, episodes)[0], hparams, order=1
        )


def test_centred_features_have_mean_zero():
    method = HyperRepresentation(n_way=3)
    support = method.represent(drawn(method), make_episodes(np.random.default_rng(5)))["support"]
    np.testing.assert_allclose(support.value.mean(axis=1), 0.0, atol=1e-12)


def test_normalized_features_make_the_method_blind_to_their_scale():
    method = HyperRepresentation(n_way=3, normalized=True)
    episodes, hparams = make_episodes(np.random.default_rng(7)), drawn(method, away=0.0)
    scaled = {**hparams, "block2.gamma": 10.0 * hparams["block2.gamma"]}
    assert float(method.meta_loss(hparams, episodes)[0]) == pytest.approx(float(method.meta_loss(scaled, episodes)[0]), rel=1e-9)


def test_maml_descends_as_a_plain_loop_does():
    method, episodes = MAML(n_way=3, n_steps=3, step_size=0.2), part(make_episodes(np.random.default_rng(8)), 0)
    hparams = drawn(method)

    def loss(w):
        logits = hg.matmul(features(w, episodes.support), w[WEIGHT]) + w[BIAS]
        return hg.mean(hg.softmax_cross_entropy(logits, episodes.support_labels))

    w = hparams
    for _ in range(3):
        w = {name: w[name] - 0.2 * slope for name, slope in hg.grad(loss)(w).items()}
    learner = method.adapt(hparams, episodes)
    for name, value in w.items():
        np.testing.assert_allclose(learner[name].value[0], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_first_order_maml_takes_the_gradient_where_the_run_ends():
    method, episodes = MAML(n_way=3, n_steps=2, step_size=0.2, first_order=True), make_episodes(np.random.default_rng(9))
    hparams = drawn(method)
    learner = {name: value.value for name, value in method.adapt(hparams, episodes).items()}
    at_the_end = hg.grad(lambda w: hg.mean(method.judge(w, w, episodes)[0]))(learner)
    found = hg.grad(lambda tree: method.meta_loss(tree, episodes)[0])(hparams)
    second = hg.grad(lambda tree: MAML(n_way=3, n_steps=2, step_size=0.2).meta_loss(tree, episodes)[0])(hparams)
    for name in hparams:
        np.testing.assert_allclose(found[name], at_the_end[name].sum(axis=0), rtol=1e-9, atol=1e-12, err_msg=name)
    assert np.abs(found["block2.filters"] - second["block2.filters"]).max() > 1e-4


def test_anil_moves_the_head_alone():
    method, episodes = MAML(n_way=3, moves="head"), make_episodes(np.random.default_rng(10))
    assert set(method.adapt(drawn(method), episodes)) == set(HEAD)


def test_prototypes_are_class_means_and_logits_are_squared_distances():
    """In any order of the support images, and for any number of them in a class."""
    method, rng = ProtoNet(n_way=3, temperature=2.0), np.random.default_rng(11)
    labels = np.array([[2, 0, 1, 0, 2, 2]])
    episodes = make_episodes(rng, episodes=1, k_shot=2)._replace(support_labels=labels)
    hparams = drawn(method)
    h, query = features(hparams, episodes.support).value[0], features(hparams, episodes.query).value[0]
    means = np.stack([h[labels[0] == c].mean(axis=0) for c in range(3)])
    prototypes = method.adapt(hparams, episodes)
    np.testing.assert_allclose(prototypes.value[0], means, rtol=1e-12)
    distances = -np.sum((query[:, None] - means) ** 2, axis=-1) / 2.0
    logits = method.predict(hparams, prototypes, episodes).value[0]
    np.testing.assert_allclose(logits - logits[:, :1], distances - distances[:, :1], rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("method", VARIANTS, ids=repr)
def test_the_start_is_a_function_of_the_seed(method):
    first, second, other = (method.init(seed, (9, 9, 1), 4, 2) for seed in (7, 7, 8))
    assert all(np.array_equal(first[name], second[name]) and first[name].dtype == np.float32 for name in first)
    assert not np.array_equal(first["block1.filters"], other["block1.filters"])


def test_evaluate_reads_exactly_the_episodes_asked_for():
    rng = np.random.default_rng(6)
    batches = [make_episodes(rng) for _ in range(3)]
    method = HyperRepresentation(n_way=3)
    ticks: list[int] = []
    sampler = SimpleNamespace(batch=batches.__getitem__)
    result = evaluate(method, drawn(method), sampler, 5, [4, 2, 2], ticks.append)
    assert result.steps == (2, 4) and result.accuracies.shape == (5, 2) and ticks == [2, 2, 1]
    assert result.interval(4) == 1.96 * np.std(result.accuracies[:, 1]) / np.sqrt(5)
    assert result.mean(2) == result.accuracies[:, 0].mean()
    with pytest.raises(ArgumentError, match="n_episodes is 0"):
        evaluate(method, drawn(method), sampler, 0, [1])


def test_interval_is_that_of_the_normal_distribution():
    accuracies = np.array([[0.0], [1.0], [0.0], [1.0]])
    assert Evaluation((1,), accuracies, accuracies).interval(1) == pytest.approx(1.96 * 0.5 / 2.0)
