"""The four promised problems: every checkpoint policy the same bits, forward the same, finite differences the same."""

import hyper_problems
import numpy as np
import optree
import pytest

import hypergrad as hg
from hypergrad.testing import check_hypergrad

pytestmark = pytest.mark.filterwarnings("ignore:.*no influence")  # fixtures with more hyperparameters than a test reads

PROBLEMS = {
    "hyper-cleaning": hyper_problems.hyper_cleaning,
    "hyper-cleaning, clipped weights": lambda: hyper_problems.hyper_cleaning(clip=True),
    "MLP, minibatches, momentum": hyper_problems.mlp,
    "MAML through two blocks": hyper_problems.maml,
    "hyper-representation": hyper_problems.hyper_representation,
}
POLICIES = ["sqrt", 1, 2, 3, 5, 1000, "host"]
problems = pytest.mark.parametrize("name", PROBLEMS)


def close(a, b, tolerance):
    """Largest difference of two hypergradients, relative to each leaf's largest element, is within the tolerance."""
    for path, x, y in zip(optree.tree_paths(a), optree.tree_leaves(a), optree.tree_leaves(b), strict=True):
        assert np.abs(x - y).max() <= tolerance * np.abs(x).max(), path


@problems
def test_reverse_gives_the_same_bits_under_every_policy(name):
    problem, hparams, batches = PROBLEMS[name]()
    r = hg.reverse(problem, hparams, batches)
    assert all(np.abs(g).max() > 0 for g in optree.tree_leaves(r.grad))
    for policy in POLICIES:
        other = hg.reverse(problem, hparams, batches, checkpoints=policy)
        for x, y in zip(
            optree.tree_leaves((r.value, r.grad, r.params)), optree.tree_leaves((other.value, other.grad, other.params)), strict=True
        ):
            assert x.tobytes() == y.tobytes(), policy


@problems
def test_forward_equals_reverse(name):
    problem, hparams, batches = PROBLEMS[name]()
    r, f = hg.reverse(problem, hparams, batches), hg.forward(problem, hparams, batches)
    assert abs(f.value - r.value) <= 1e-12 * abs(r.value)  # the block may take another closed form: rounding
    close(r.grad, f.grad, 1e-10)
    close(r.params, f.params, 1e-12)


@pytest.mark.backends("host", "emulated")
@pytest.mark.parametrize("name", [n for n in PROBLEMS if "MAML" in n or "representation" in n])
def test_fused_kernels_equal_the_composed_reference(name):
    problem, hparams, batches = PROBLEMS[name]()
    r, f = hg.reverse(problem, hparams, batches), hg.forward(problem, hparams, batches)
    close(f.grad, r.grad, 1e-10)
    with hg.fusion(False):
        composed, forward = hg.reverse(problem, hparams, batches), hg.forward(problem, hparams, batches)
    close(composed.grad, r.grad, 1e-10)
    close(composed.grad, forward.grad, 1e-10)


@problems
def test_all_modes_equal_finite_differences(name):
    problem, hparams, batches = PROBLEMS[name]()
    report = check_hypergrad(problem, hparams, batches, directions=1, checkpoints=["all"])
    assert set(report.difference_error) == {a.codify("hparams") for a in optree.tree_accessors(hparams)}
    assert max(report.difference_error.values()) < 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda h: hg.SGD(lr=h["lr"], momentum=h["momentum"], nesterov=True),
        lambda h: hg.SGD(lr=h["lr"], momentum=0.9, nesterov=True, weight_decay=h["decay"]),
        lambda h: hg.SGD(lr=0.1, momentum=h["momentum"]),
        lambda h: hg.SGD(lr=0.1),
        lambda h: hg.Adam(lr=h["lr"], beta1=h["momentum"], beta2=1.0 - h["decay"], eps=1e-3 * h["lr"]),
        lambda h: hg.Adam(lr=0.05),
        lambda h: hg.AdamW(lr=h["lr"], beta1=h["momentum"], beta2=1.0 - h["decay"], eps=1e-3 * h["lr"], weight_decay=10.0 * h["decay"]),
        lambda h: hg.AdamW(lr=0.05, eps=1e-3, weight_decay=h["decay"]),
        lambda h: hg.RMSprop(lr=0.1 * h["lr"], decay=h["momentum"], eps=1e-3 * h["lr"]),
        lambda h: hg.RMSprop(lr=0.1 * h["lr"], decay=1.0 - h["decay"], eps=1e-3, momentum=h["momentum"]),
        lambda h: hg.Adagrad(lr=h["lr"], eps=h["decay"]),
    ],
    ids=["nesterov", "nesterov+decay", "momentum alone", "no field", "adam, every field", "adam"]
    + ["adamw, every field", "adamw", "rmsprop", "rmsprop+momentum", "adagrad"],
)
def test_every_optimizer_in_every_mode(optimizer):
    problem, hparams, batches = hyper_problems.mlp(n_steps=5)
    problem = hg.Bilevel(problem.inner_loss, problem.outer_loss, problem.init, optimizer)
    check_hypergrad(problem, hparams, batches, directions=1, forward_rtol=1e-10)
