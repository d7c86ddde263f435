"""Every method: its meta-gradient against finite differences, independence of batching, its sweep; then what each promises."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import hypergrad as hg
from hypergrad.data import Episodes, LabelledBatch
from hypergrad.errors import ArgumentError, ShapeError
from hypergrad.fewshot.learner import BIAS, HEAD, WEIGHT, start, weight_names
from hypergrad.fewshot.method import Method
from hypergrad.fewshot.methods import METHODS
from hypergrad.fewshot.methods.combination import Combination
from hypergrad.fewshot.methods.fine_tuning import FineTuning
from hypergrad.fewshot.methods.hyper_representation import HyperRepresentation
from hypergrad.fewshot.methods.imaml import IMAML
from hypergrad.fewshot.methods.maml import MAML
from hypergrad.fewshot.methods.maml_plus_plus import MAMLPlusPlus
from hypergrad.fewshot.methods.matching_net import MatchingNet
from hypergrad.fewshot.methods.meta_learner_lstm import MetaLearnerLSTM, moved, observed
from hypergrad.fewshot.methods.meta_sgd import MetaSGD
from hypergrad.fewshot.methods.multiclass import Multiclass
from hypergrad.fewshot.methods.multitask import Multitask, Numbered
from hypergrad.fewshot.methods.nearest_neighbour import NearestNeighbour
from hypergrad.fewshot.methods.protonet import ProtoNet
from hypergrad.fewshot.methods.reptile import Reptile
from hypergrad.fewshot.network import feature_size, features, init_network
from hypergrad.fewshot.pretrained import PretrainedMethod
from hypergrad.fewshot.problem import Evaluation, FewShot, evaluate
from hypergrad.testing import check_gradients


def make_episodes(rng, episodes=2, n_way=3, n_query=2, size=9, channels=1, k_shot=1):
    def labels(count):
        return np.tile(np.repeat(np.arange(n_way), count), (episodes, 1))

    def images(count):
        return rng.random((episodes, n_way * count, size, size, channels))

    return Episodes(images(k_shot), labels(k_shot), images(n_query), labels(n_query))


def part(episodes, index):
    return Episodes(*(value[index : index + 1] for value in episodes))


def training_batch(method, episodes):
    """What the method's meta-loss takes, of the images of some episodes."""
    if isinstance(method, PretrainedMethod):
        return LabelledBatch(episodes.query[0], np.arange(episodes.query.shape[1]) % method.train_classes)
    return Numbered(episodes, np.array([2, 0])) if isinstance(method, Multitask) else episodes


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
    HyperRepresentation(n_way=3, n_steps=2, step_size=0.3, outer_images="support"),
    Multitask(n_way=3, n_steps=2, train_episodes=3),
    Multiclass(n_way=3, n_steps=2, train_classes=4, representation="linear"),
    NearestNeighbour(n_way=3, train_classes=4, representation="softmax"),
    NearestNeighbour(n_way=3, train_classes=4, distance="cosine"),
    FineTuning(n_way=3, n_steps=2, train_classes=4),
    MAML(n_way=3, n_steps=1),
    MAML(n_way=3, n_steps=3, step_size=0.1),
    MAML(n_way=3, n_steps=3, moves="head"),
    Combination(n_way=3, n_steps=2),
    Combination(n_way=3, n_steps=2, mixture="width", adapted_share=0.3),
    ProtoNet(n_way=3),
    ProtoNet(n_way=3, temperature=4.0),
    MatchingNet(n_way=3),
    MatchingNet(n_way=3, temperature=1.0, context_steps=2),
    MetaSGD(n_way=3, n_steps=2, step_size=0.1),
    MAMLPlusPlus(n_way=3, n_steps=2),
    MAMLPlusPlus(n_way=3, n_steps=2, step_norms=False, earlier=0.5),
    MetaLearnerLSTM(n_way=3, n_steps=2, hidden=3),
    Reptile(n_way=3, n_steps=2, train_steps=3),
    IMAML(n_way=3, n_steps=3),
]
OF_THEIR_OWN = (MetaLearnerLSTM, Reptile, IMAML)  # methods whose meta-gradient is by definition not that of the run; each has a test below
CHECKED = [(method, True) for method in VARIANTS if not isinstance(method, OF_THEIR_OWN)]
CHECKED += [(method, False) for method in VARIANTS if type(method) in (HyperRepresentation, MAML, ProtoNet)]  # others have their ops


def test_every_method_has_a_variant():
    assert {type(method) for method in VARIANTS} == set(METHODS.values())


@pytest.mark.parametrize("method, fused", CHECKED, ids=repr)
def test_meta_gradient_equals_finite_differences(method, fused):
    batch = training_batch(method, make_episodes(np.random.default_rng(0), k_shot=2))
    with hg.fusion(fused):
        check_gradients(lambda hparams: method.meta_loss(hparams, batch)[0], drawn(method), order=1, rtol=1e-5)


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
    method = HyperRepresentation(n_way=3, n_steps=4, step_size=0.5)
    episodes, hparams = make_episodes(np.random.default_rng(0)), drawn(method, away=0.0)
    with pytest.raises(AssertionError, match="finite difference"):
        check_gradients(
            lambda tree: method.meta_loss({**tree, "block2.gamma": tree["block2.gamma"].detach()}, episodes)[0], hparams, order=1
        )


@pytest.mark.parametrize("outer_images", ["query", "support"])
def test_the_approximate_gradient_takes_the_weights_for_constants(outer_images):
    """It is the derivative of the outer loss in the representation, at the weights that it was trained to."""
    method = HyperRepresentation(n_way=3, n_steps=4, step_size=0.5, outer_images=outer_images)
    approximate = dataclasses.replace(method, gradient="approximate")
    episodes = make_episodes(np.random.default_rng(0), k_shot=2)
    hparams = drawn(method)
    w = {name: method.adapt(hparams, episodes)[name].value for name in ("weight", "bias")}

    def at_these_weights(tree):
        judged = episodes if outer_images == "query" else episodes._replace(query=episodes.support, query_labels=episodes.support_labels)
        x = method.head(tree, {**method.represent(tree, episodes), **w}, judged)[0]
        return hg.mean(hg.softmax_cross_entropy(hg.matmul(x, w["weight"]) + w["bias"][:, None], judged.query_labels))

    (value, _), found = hg.value_and_grad(approximate.meta_loss, has_aux=True)(hparams, episodes)
    (same, _), exact = hg.value_and_grad(method.meta_loss, has_aux=True)(hparams, episodes)
    assert value == same and found["inner.step_size"] == 0.0
    assert np.abs(exact["block2.filters"] - found["block2.filters"]).max() > 1e-4
    check_gradients(at_these_weights, hparams, order=1, rtol=1e-5)
    for name, slope in hg.grad(at_these_weights)(hparams).items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-9, atol=1e-12, err_msg=name)


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


def test_meta_sgd_with_equal_step_sizes_is_maml():
    method, episodes = MetaSGD(n_way=3, n_steps=2, step_size=0.2), make_episodes(np.random.default_rng(12))
    hparams = method.init(1, (9, 9, 1), 3, 2, np.float64)
    plain = MAML(n_way=3, n_steps=2, step_size=0.2).adapt(hparams, episodes)
    for name, value in method.adapt(hparams, episodes).items():
        np.testing.assert_allclose(value.value, plain[name].value, rtol=1e-12, atol=1e-15, err_msg=name)


def test_maml_plus_plus_takes_each_steps_own_numbers():
    """The step sizes of a step move the weights in this step alone, its normalizations act on its images; later steps are as the last."""
    method, episodes = MAMLPlusPlus(n_way=3, n_steps=2), make_episodes(np.random.default_rng(13))
    hparams = drawn(method)

    def losses(n_steps, **changes):
        changed = {**hparams, **{name: hparams[name] + value for name, value in changes.items()}}
        return method.evaluate(changed, episodes, [n_steps])[0]

    second = {"step_sizes.block1.filters": np.array([0.0, 0.1])}, {"step2.block1.gamma": np.array(0.1)}
    for change in second:
        assert np.array_equal(losses(1), losses(1, **change)) and not np.array_equal(losses(2), losses(2, **change))
        assert not np.array_equal(losses(3), losses(3, **change))
    assert not np.array_equal(losses(1), losses(1, **{"block1.gamma": np.array(0.1)}))
    assert "block1.gamma" not in method.moving(hparams) and "block1.gamma" in MAMLPlusPlus(step_norms=False).moving(hparams)


def test_the_losses_of_maml_plus_plus_are_annealed():
    method, episodes = MAMLPlusPlus(n_way=3, n_steps=2, all_losses=0.5, first_order_share=0.2), make_episodes(np.random.default_rng(14))
    hparams = drawn(method)
    phases = [method.during(progress) for progress in (0.0, 0.1, 0.24, 0.25, 0.5, 1.0)]
    assert [phase.earlier for phase in phases] == [1.0, 0.8, 0.6, 0.5, 0.0, 0.0] and phases[-1] == method
    assert [phase.first_order for phase in phases] == [True, True, False, False, False, False]
    first, last = method.evaluate(hparams, episodes, [1, 2])[0].mean(axis=0)
    for phase in phases:
        share = phase.earlier / 2
        assert float(phase.meta_loss(hparams, episodes)[0]) == pytest.approx(share * first + (1.0 - share) * last, rel=1e-12)


def test_a_method_that_changes_with_progress_changes_the_gradient_of_the_problem():
    config = tiny.tiny_config("maml-plus-plus", iterations=10, all_losses=0.5)
    problem = FewShot(config, tiny.tiny_data())
    hparams = problem.init()
    for iteration in (0, 9, 0):
        phase = problem.method.during(iteration / 10)
        (loss, _), _ = hg.value_and_grad(phase.meta_loss, has_aux=True)(hparams, problem.train.batch(iteration))
        assert problem.gradient(hparams, iteration)[0] == loss


def test_reptile_moves_towards_where_training_leads():
    """Its direction is w_0 - mean w_T, bit for bit; w_T is where a plain loop leads over minibatches of all images of the episode."""
    method, episodes = Reptile(n_way=3, n_steps=2, train_steps=3, minibatches=2), make_episodes(np.random.default_rng(15))
    hparams = drawn(method)
    (loss, _), found = hg.value_and_grad(method.meta_loss, has_aux=True)(hparams, episodes)
    assert float(loss) == pytest.approx(method.evaluate(hparams, episodes, [2])[0].mean(), rel=1e-12)
    moved_to = {name: np.zeros_like(value) for name, value in hparams.items()}
    for e in range(2):
        one = part(episodes, e)
        images, labels = np.concatenate([one.support, one.query], 1), np.concatenate([one.support_labels, one.query_labels], 1)
        w = hparams
        for t in (0, 1, 0):
            x, y = images[:, t::2], labels[:, t::2]
            slopes = hg.grad(lambda w, x=x, y=y: hg.mean(hg.softmax_cross_entropy(features(w, x) @ w[WEIGHT] + w[BIAS], y)))(w)
            w = {name: w[name] - method.step_size * slope for name, slope in slopes.items()}
        moved_to = {name: moved_to[name] + w[name] / 2 for name in w}
    direction = method.direction(hparams, episodes)
    for name in hparams:
        np.testing.assert_array_equal(found[name], direction[name])
        np.testing.assert_allclose(found[name], hparams[name] - moved_to[name], rtol=1e-8, atol=1e-13, err_msg=name)


def test_imaml_takes_the_gradient_of_the_inner_solution():
    """Where the inner problem and the linear system are solved, it is that of the query loss at the solution, by finite differences."""
    method, episodes = (
        IMAML(n_way=3, n_steps=60, step_size=0.03, proximal=20.0, cg_steps=30),
        make_episodes(np.random.default_rng(0), k_shot=2),
    )
    hparams, rng = drawn(method), np.random.default_rng(5)
    (loss, _), found = hg.value_and_grad(method.meta_loss, has_aux=True)(hparams, episodes)
    w = {name: value.value for name, value in method.adapt(hparams, episodes).items()}
    w_0, batch = start(hparams, episodes, weight_names(hparams)), (episodes.support, episodes.support_labels)
    slopes = hg.grad(lambda w: method.inner_loss(w, {"start": w_0}, batch))(w)
    assert max(np.abs(x).max() for x in slopes.values()) < 1e-12 and set(found) == set(w)
    for _ in range(2):
        v = {name: rng.standard_normal(value.shape) for name, value in hparams.items()}

        def value(step, v=v):
            return method.evaluate({name: hparams[name] + step * v[name] for name in v}, episodes, [45])[0].mean()

        assert float(loss) == pytest.approx(value(0.0), rel=1e-12)
        slope = sum(np.sum(found[name] * v[name]) for name in v)
        assert (value(1e-6) - value(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_the_lstm_learns_from_gradients_that_count_as_constants():
    """Its meta-gradient is that of the same steps with the gradients and losses of the inner steps held fixed."""
    method, episodes = MetaLearnerLSTM(n_way=3, n_steps=3, hidden=3), make_episodes(np.random.default_rng(16))
    hparams = drawn(method)
    shapes = {name: hparams[name].shape for name in weight_names(hparams)}
    batch = (episodes.support, episodes.support_labels)
    fixed = [observed(hg.stop_gradient(method.adapt(hparams, episodes, t)["w"]), shapes, batch) for t in range(3)]

    def replayed(hparams):
        state = method.adapt(hparams, episodes, 0)
        for losses, slope in fixed:
            state = moved(state, hparams, losses, slope)
        return hg.mean(method.judge(hparams, state, episodes)[0])

    check_gradients(replayed, hparams, order=1, rtol=1e-5)
    found, expected = (hg.grad(f)(hparams) for f in (lambda hparams: method.meta_loss(hparams, episodes)[0], replayed))
    for name in hparams:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-16, err_msg=name)
        assert np.abs(found[name]).max() > 0.0


def test_the_lstm_begins_nearly_as_gradient_descent():
    method, episodes = MetaLearnerLSTM(n_way=3, n_steps=2, step_size=0.2, forget=1e-9), make_episodes(np.random.default_rng(17))
    hparams = method.init(1, (9, 9, 1), 3, 2, np.float64)
    maml = MAML(n_way=3, n_steps=2, step_size=0.2)
    np.testing.assert_allclose(method.evaluate(hparams, episodes, [2])[0], maml.evaluate(hparams, episodes, [2])[0], rtol=1e-3)


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


def test_attention_gives_the_labels_of_the_support_images():
    """In any order of the support images, and for any number of them in a class."""
    method, labels = MatchingNet(n_way=3, temperature=0.5), np.array([[2, 0, 1, 0, 2, 2]])
    episodes = make_episodes(np.random.default_rng(12), episodes=1, k_shot=2)._replace(support_labels=labels)
    hparams = drawn(method)
    g, f = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features(hparams, x).value[0] for x in (episodes.support, episodes.query))
    )
    attention = np.exp(f @ g.T / 0.5)
    attention /= attention.sum(axis=1, keepdims=True)
    found = hg.softmax(method.predict(hparams, method.adapt(hparams, episodes), episodes)).value[0]
    np.testing.assert_allclose(found, attention @ np.eye(3)[labels[0]], rtol=1e-7)  # a norm has 1e-12 added to its square


def test_full_context_embeddings_of_silent_lstms_change_nothing():
    method, episodes = MatchingNet(n_way=3, context_steps=2), make_episodes(np.random.default_rng(13))
    hparams = drawn(method)
    silent = {name: np.zeros_like(value) if name.startswith("context") else value for name, value in hparams.items()}
    plain = MatchingNet(n_way=3).meta_loss(hparams, episodes)[0]
    assert float(method.meta_loss(silent, episodes)[0]) == pytest.approx(float(plain), rel=1e-12)
    assert float(method.meta_loss(hparams, episodes)[0]) != pytest.approx(float(plain), rel=1e-3)


def test_joint_training_reads_the_classifier_of_each_episode():
    method, episodes = Multitask(n_way=3, train_episodes=3), make_episodes(np.random.default_rng(14))
    hparams = drawn(method)
    slopes = hg.grad(lambda tree: method.meta_loss(tree, Numbered(episodes, np.array([2, 0])))[0])(hparams)
    assert [bool(np.any(slope)) for slope in slopes["heads.weight"]] == [True, False, True]
    alone = [float(method.meta_loss(hparams, Numbered(part(episodes, e), np.array([n])))[0]) for e, n in ((0, 2), (1, 0))]
    assert float(method.meta_loss(hparams, Numbered(episodes, np.array([2, 0])))[0]) == pytest.approx(np.mean(alone), rel=1e-12)


@pytest.mark.parametrize("representation", ["conv", "linear", "softmax"])
def test_the_nearest_support_image_decides(representation):
    """In any order of the support images, and for any number of them in a class."""
    method, labels = NearestNeighbour(n_way=3, train_classes=4, representation=representation), np.array([[2, 0, 1, 0, 2, 2]])
    episodes = make_episodes(np.random.default_rng(15), episodes=1, k_shot=2)._replace(support_labels=labels)
    hparams = drawn(method)
    g, f = (features(hparams, x).value[0] for x in (episodes.support, episodes.query))
    if representation != "conv":
        g, f = (x @ hparams["output.weight"] + hparams["output.bias"] for x in (g, f))
    if representation == "softmax":
        g, f = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (g, f))
    distances = np.sum((f[:, None] - g) ** 2, axis=-1)
    logits = method.predict(hparams, method.adapt(hparams, episodes), episodes).value[0]
    assert np.array_equal(logits.argmax(axis=1), labels[0][distances.argmin(axis=1)])
    nearest = np.stack([-distances[:, labels[0] == c].min(axis=1) for c in range(3)], axis=1)
    np.testing.assert_allclose(logits - logits[:, :1], nearest - nearest[:, :1], rtol=1e-7, atol=1e-9)


def test_held_out_images_are_judged_by_the_classifier():
    method, episodes = Multiclass(n_way=3, train_classes=4), make_episodes(np.random.default_rng(16))
    hparams, batch = drawn(method), training_batch(method, episodes)
    loss, accuracy = method.meta_loss(hparams, batch)
    losses, accuracies = method.evaluate(hparams, batch, [1, 5])
    assert losses.tolist() == [[float(loss)] * 2] and accuracies.tolist() == [[accuracy[0]] * 2]
    assert method.evaluate(hparams, episodes, [1, 5])[0].shape == (2, 2)


@pytest.mark.parametrize(
    "combined, plain",
    [
        ({"adapted_blocks": 2}, {}),
        ({"mixture": "width", "adapted_share": 1.0}, {}),
        ({"adapted_blocks": 0}, {"moves": "head"}),
        ({"mixture": "width", "adapted_share": 0.0}, {"moves": "head"}),
    ],
)
def test_a_combination_has_maml_at_its_ends(combined, plain):
    episodes = make_episodes(np.random.default_rng(17))
    both = Combination(n_way=3, n_steps=2, step_size=0.2, **combined), MAML(n_way=3, n_steps=2, step_size=0.2, **plain)
    hparams = drawn(both[1])
    (a, _), found = hg.value_and_grad(both[0].meta_loss, has_aux=True)({**hparams, "inner.step_size": np.array(0.2)}, episodes)
    (b, _), expected = hg.value_and_grad(both[1].meta_loss, has_aux=True)(hparams, episodes)
    assert a == pytest.approx(b, rel=1e-12)
    for name, slope in expected.items():
        np.testing.assert_allclose(found[name], slope, rtol=1e-8, atol=1e-12, err_msg=name)


def test_shared_filters_stay_and_the_others_move():
    method, episodes = Combination(n_way=3, mixture="width", adapted_share=0.4), make_episodes(np.random.default_rng(18))
    hparams = drawn(method, filters=5)
    learner = method.adapt(hparams, episodes)
    assert learner["block1.filters"].shape == (2, 3, 3, 1, 2) and learner["block2.gamma"].shape == (2, 2)
    moved = np.abs(learner["block2.filters"].value - hparams["block2.filters"][..., 3:])
    assert moved.max() > 1e-6 and set(method.shared(hparams)) == {f"block{i}.{p}" for i in (1, 2) for p in ("filters", "gamma", "beta")}
    deep = Combination(n_way=3)
    assert set(deep.adapt(hparams, episodes)) == {"block2.filters", "block2.gamma", "block2.beta", *HEAD} and not deep.shared(hparams)


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
    assert result.accuracy(4).interval == 1.96 * np.std(result.accuracies[:, 1]) / np.sqrt(5)
    assert result.accuracy(2).mean == result.accuracies[:, 0].mean()
    with pytest.raises(ArgumentError, match="n_episodes is 0"):
        evaluate(method, drawn(method), sampler, 0, [1])


def test_interval_is_that_of_the_normal_distribution():
    accuracies = np.array([[0.0], [1.0], [0.0], [1.0]])
    assert Evaluation((1,), accuracies, accuracies).accuracy(1).interval == pytest.approx(1.96 * 0.5 / 2.0)
