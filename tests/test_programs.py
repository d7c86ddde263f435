"""Programs as users of autograd, JAX, torch and NumPy write them: they run unchanged but for the import.

A program gets its imports as arguments: `np` is autograd.numpy, jax.numpy or torch, and here NumPy (hypergrad for torch); `ad` has grad,
hessian, ... of that library. It returns a scalar function, its arguments, and numbers that it went on to compute. The gradients of the
function are those of finite differences (both orders, every nesting), and all numbers those of the original libraries, where installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from checks import assert_same

import hypergrad as hg
from hypergrad.testing import check_gradients

PROGRAMS: dict[str, Callable[..., Any]] = {}
TORCH: dict[str, Callable[..., Any]] = {}


def program(f: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a program for autograd and JAX."""
    PROGRAMS[f.__name__] = f
    return f


def torch_program(f: Callable[..., Any]) -> Callable[..., Any]:
    """Registers a program for torch."""
    TORCH[f.__name__] = f
    return f


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    rng = numpy.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


# --- as with autograd and JAX -----------------------------------------------------------------------------------------


@program
def the_readme_of_autograd(np: Any, ad: Any) -> Any:
    def tanh(x: Any) -> Any:
        y = np.exp(-2.0 * x)
        return (1.0 - y) / (1.0 + y)

    slope = ad.grad(tanh)
    curvature = ad.grad(ad.grad(tanh))
    return tanh, (1.0,), [slope(1.0), curvature(1.0), ad.grad(curvature)(1.0)]


@program
def least_squares(np: Any, ad: Any) -> Any:
    x, w_true = draw((20, 3), (3,))
    y = x @ w_true

    def loss(w: Any, b: Any) -> Any:
        return np.mean((x @ w + b - y) ** 2)

    w, b = numpy.zeros(3), 0.0
    for _ in range(10):
        gw, gb = ad.grad(loss, (0, 1))(w, b)
        w, b = w - 0.1 * gw, b - 0.1 * gb
    return loss, (numpy.ones(3), 0.5), [w, b]


@program
def logistic_regression(np: Any, ad: Any) -> Any:
    (x,) = draw((15, 4))
    targets = x[:, 0] > 0

    def sigmoid(z: Any) -> Any:
        return 0.5 * (np.tanh(z / 2.0) + 1)

    def loss(weights: Any) -> Any:
        preds = sigmoid(x @ weights)
        label_probabilities = preds * targets + (1 - preds) * (1 - targets)
        return -np.sum(np.log(label_probabilities))

    weights = numpy.zeros(4)
    for _ in range(5):
        weights = weights - ad.grad(loss)(weights) * 0.05
    return loss, (numpy.full(4, 0.3),), [weights]


@program
def newtons_method(np: Any, ad: Any) -> Any:
    a, b = draw((6, 3), (6,))

    def f(x: Any) -> Any:
        return np.sum(np.log(1.0 + np.exp(a @ x - b))) + 0.5 * np.sum(x * x)

    x = numpy.zeros(3)
    for _ in range(4):
        x = x - numpy.linalg.solve(numpy.asarray(ad.hessian(f)(x)), numpy.asarray(ad.grad(f)(x)))
    return f, (numpy.ones(3),), [x, ad.hessian(f)(x)]


@program
def rosenbrock_with_momentum(np: Any, ad: Any) -> Any:
    def rosenbrock(x: Any) -> Any:
        return np.sum(100.0 * (x[1:] - x[:-1] ** 2.0) ** 2.0 + (1 - x[:-1]) ** 2.0)

    x, v = numpy.array([-0.5, 0.3, 0.2]), numpy.zeros(3)
    for _ in range(10):
        v = 0.9 * v - 1e-4 * ad.grad(rosenbrock)(x)
        x = x + v
    return rosenbrock, (numpy.array([0.4, 0.3, -0.2]),), [x]


@program
def a_network_as_a_list_of_layers(np: Any, ad: Any) -> Any:
    w1, w2, x = draw((3, 5), (5, 2), (8, 3))
    labels = numpy.arange(8) % 2
    params = [(w1, numpy.zeros(5)), (w2, numpy.zeros(2))]

    def logsumexp(z: Any) -> Any:
        top = np.max(z, axis=1, keepdims=True)
        return top + np.log(np.sum(np.exp(z - top), axis=1, keepdims=True))

    def predict(params: Any, inputs: Any) -> Any:
        for w, b in params:
            outputs = inputs @ w + b
            inputs = np.tanh(outputs)
        return outputs - logsumexp(outputs)

    def loss(params: Any) -> Any:
        return -np.mean(predict(params, x)[numpy.arange(8), labels])

    for _ in range(5):
        gradient = ad.grad(loss)(params)
        params = [(w - 0.1 * dw, b - 0.1 * db) for (w, b), (dw, db) in zip(params, gradient, strict=True)]
    return loss, (params,), [x for layer in params for x in layer]


@program
def a_recurrent_network_by_hand(np: Any, ad: Any) -> Any:
    u, w, inputs, targets = draw((4, 2), (4, 4), (6, 2), (6,))
    params = {"u": u, "w": 0.3 * w, "out": numpy.ones(4)}

    def loss(params: Any) -> Any:
        h, total = numpy.zeros(4), 0.0
        for x, y in zip(inputs, targets, strict=True):
            h = np.tanh(params["u"] @ x + params["w"] @ h)
            total = total + (params["out"] @ h - y) ** 2
        return total / len(inputs)

    gradient = ad.grad(loss)(params)
    return loss, (params,), [gradient[k] for k in params]


@program
def an_lstm_cell_by_hand(np: Any, ad: Any) -> Any:
    weights, inputs = draw((5, 8), (4, 3))

    def sigmoid(x: Any) -> Any:
        return 1.0 / (1.0 + np.exp(-x))

    def loss(weights: Any) -> Any:
        h, c = numpy.zeros(2), numpy.zeros(2)
        for x in inputs:
            gates = np.concatenate([x, h]) @ weights
            forget, write, read, change = (gates[2 * i : 2 * i + 2] for i in range(4))
            c = sigmoid(forget) * c + sigmoid(write) * np.tanh(change)
            h = sigmoid(read) * np.tanh(c)
        return np.sum(h * h)

    return loss, (weights,), [ad.grad(loss)(weights)]


@program
def a_variational_autoencoder(np: Any, ad: Any) -> Any:
    x, noise, enc, dec = draw((6, 4), (6, 2), (4, 4), (2, 4))

    def elbo(params: Any) -> Any:
        hidden = x @ params["enc"]
        mean, log_std = hidden[:, :2], hidden[:, 2:]
        z = mean + np.exp(log_std) * noise  # the reparametrisation trick
        logits = z @ params["dec"]
        likelihood = -np.sum((x > 0) * np.log(1.0 + np.exp(-logits)) + (x <= 0) * np.log(1.0 + np.exp(logits)), axis=1)
        divergence = 0.5 * np.sum(np.exp(2.0 * log_std) + mean**2 - 1.0 - 2.0 * log_std, axis=1)
        return np.mean(likelihood - divergence)

    params = {"enc": 0.3 * enc, "dec": dec}
    for _ in range(3):
        gradient = ad.grad(elbo)(params)
        params = {k: v + 0.1 * gradient[k] for k, v in params.items()}
    return elbo, (params,), list(params.values())


@program
def a_mixture_of_gaussians(np: Any, ad: Any) -> Any:
    (x,) = draw((12, 2))

    def log_likelihood(params: Any) -> Any:
        logits, means, log_scales = params
        log_weights = logits - np.log(np.sum(np.exp(logits)))
        z = (x[:, None, :] - means) / np.exp(log_scales)
        each = log_weights - 0.5 * np.sum(z * z, axis=2) - np.sum(log_scales, axis=1) - numpy.log(2 * numpy.pi)
        top = np.max(each, axis=1, keepdims=True)
        return np.sum(np.log(np.sum(np.exp(each - top), axis=1)) + top[:, 0])

    params = [numpy.zeros(3), draw((3, 2), seed=1)[0], numpy.zeros((3, 2))]
    value, gradient = ad.value_and_grad(log_likelihood)(params)
    return log_likelihood, (params,), [value, *gradient]


@program
def an_attention_head(np: Any, ad: Any) -> Any:
    x, q, k, v = draw((5, 4), (4, 3), (4, 3), (4, 3))

    def loss(q: Any, k: Any, v: Any) -> Any:
        scores = (x @ q) @ np.transpose(x @ k) / numpy.sqrt(3.0)
        scores = np.where(numpy.tril(numpy.ones((5, 5))) > 0, scores, -1e9)
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
        weights = weights / np.sum(weights, axis=-1, keepdims=True)
        return np.sum((weights @ (x @ v)) ** 2)

    return loss, (q, k, v), list(ad.grad(loss, (0, 1, 2))(q, k, v))


@program
def a_pendulum_fitted_to_a_path(np: Any, ad: Any) -> Any:
    observed = numpy.cos(0.3 * numpy.arange(10))

    def path(params: Any) -> Any:
        angle, speed, dt = params["angle"], 0.0, 0.1
        found = []
        for _ in range(10):
            speed = speed - dt * params["stiffness"] * np.tanh(angle) - dt * params["friction"] * speed
            angle = angle + dt * speed
            found.append(angle)
        return np.stack(found)

    def loss(params: Any) -> Any:
        return np.mean((path(params) - observed) ** 2)

    params = {"angle": 1.0, "stiffness": 2.0, "friction": 0.1}
    gradient = ad.grad(loss)(params)
    return loss, (params,), [gradient[k] for k in sorted(params)]


@program
def a_support_vector_machine(np: Any, ad: Any) -> Any:
    (x,) = draw((16, 3))
    y = numpy.sign(x[:, 0] - 0.2 * x[:, 1])

    def loss(w: Any) -> Any:
        return np.mean(np.maximum(0.0, 1.0 - y * (x @ w))) + 0.01 * np.sum(np.abs(w))

    w = numpy.full(3, 0.1)
    for _ in range(5):
        w = w - 0.2 * ad.grad(loss)(w)
    return loss, (numpy.array([0.31, -0.22, 0.13]),), [w]


@program
def a_robust_regression(np: Any, ad: Any) -> Any:
    x, w = draw((16, 3), (3,))
    y = x @ w + numpy.where(numpy.arange(16) % 5 == 0, 4.0, 0.1)

    def huber(r: Any) -> Any:
        return np.where(np.abs(r) < 1.0, 0.5 * r**2, np.abs(r) - 0.5)

    def loss(w: Any) -> Any:
        return np.sum(huber(x @ w - y))

    return loss, (numpy.zeros(3),), [ad.grad(loss)(numpy.zeros(3))]


@program
def word_vectors(np: Any, ad: Any) -> Any:
    vectors, contexts = draw((7, 3), (7, 3))
    words, near = numpy.array([0, 2, 2, 5, 6]), numpy.array([1, 3, 4, 6, 0])

    def loss(vectors: Any, contexts: Any) -> Any:
        scores = vectors[words] @ contexts.T
        picked = np.sum(vectors[words] * contexts[near], axis=1)
        return np.mean(np.log(np.sum(np.exp(scores), axis=1)) - picked)

    return loss, (vectors, contexts), list(ad.grad(loss, (0, 1))(vectors, contexts))


@program
def a_contrastive_loss(np: Any, ad: Any) -> Any:
    left, right, w = draw((6, 4), (6, 4), (4, 3))

    def normalised(z: Any) -> Any:
        return z / np.sqrt(np.sum(z * z, axis=1, keepdims=True) + 1e-8)

    def loss(w: Any, temperature: Any) -> Any:
        logits = np.einsum("id,jd->ij", normalised(left @ w), normalised(right @ w)) / temperature
        return np.mean(np.log(np.sum(np.exp(logits), axis=1)) - logits[numpy.arange(6), numpy.arange(6)])

    return loss, (w, 0.5), list(ad.grad(loss, (0, 1))(w, 0.5))


@program
def one_step_of_maml(np: Any, ad: Any) -> Any:
    w, x, x_query = draw((3,), (8, 3), (8, 3))

    def loss(w: Any, x: Any) -> Any:
        return np.mean(np.tanh(x @ w) ** 2 + np.exp(-(x @ w)))

    def meta_loss(w: Any, lr: Any) -> Any:
        return loss(w - lr * ad.grad(loss)(w, x), x_query)

    return meta_loss, (w, 0.1), list(ad.grad(meta_loss, (0, 1))(w, 0.1))


@program
def a_hessian_product_by_two_gradients(np: Any, ad: Any) -> Any:
    x, v, a = draw((4,), (4,), (4, 4))

    def f(x: Any) -> Any:
        return np.sum(np.exp(a @ x) * x)

    def product(x: Any, v: Any) -> Any:
        return ad.grad(lambda x: np.sum(ad.grad(f)(x) * v))(x)

    return f, (0.3 * x,), [product(0.3 * x, v)]


@program
def batch_norm_by_hand(np: Any, ad: Any) -> Any:
    x, w, gamma = draw((10, 3), (3, 4), (4,))

    def loss(w: Any, gamma: Any) -> Any:
        h = x @ w
        centred = h - np.mean(h, axis=0)
        scaled = centred / np.sqrt(np.mean(centred**2, axis=0) + 1e-5)
        return np.mean(np.maximum(gamma * scaled, 0.01 * scaled) ** 2)

    return loss, (w, gamma), list(ad.grad(loss, (0, 1))(w, gamma))


@program
def poisson_regression_with_an_offset(np: Any, ad: Any) -> Any:
    x, w = draw((14, 3), (3,))
    counts, exposure = numpy.arange(14) % 4, numpy.linspace(0.5, 2.0, 14)

    def loss(w: Any) -> Any:
        log_rate = x @ w + numpy.log(exposure)
        return np.sum(np.exp(log_rate) - counts * log_rate)

    w = 0.1 * w
    for _ in range(3):
        w = w - numpy.linalg.solve(numpy.asarray(ad.hessian(loss)(w)), numpy.asarray(ad.grad(loss)(w)))
    return loss, (numpy.full(3, 0.2),), [w]


@program
def a_gaussian_process(np: Any, ad: Any) -> Any:
    x, y = draw((7,), (7,))

    def negative_log_likelihood(params: Any) -> Any:
        length, noise = np.exp(params[0]), np.exp(params[1])
        k = np.exp(-0.5 * ((x[:, None] - x[None, :]) / length) ** 2) + noise * np.eye(7)
        _, logdet = np.linalg.slogdet(k)
        return 0.5 * np.dot(y, np.linalg.solve(k, y)) + 0.5 * logdet

    params = numpy.array([0.1, -1.0])
    for _ in range(3):
        params = params - 0.1 * ad.grad(negative_log_likelihood)(params)
    return negative_log_likelihood, (numpy.array([0.2, -0.5]),), [params]


# --- as with torch ----------------------------------------------------------------------------------------------------


@torch_program
def a_functional_network(torch: Any, grad: Any, tensor: Any) -> Any:
    x, y, w1, w2 = map(tensor, draw((8, 3), (8,), (3, 5), (5,)))

    def loss(params: Any) -> Any:
        hidden = torch.tanh(x @ params["w1"])
        return ((hidden @ params["w2"] - y) ** 2).mean() + 0.1 * sum((p**2).sum() for p in params.values())

    params = {"w1": w1, "w2": w2}
    for _ in range(3):
        g = grad(loss)(params)
        params = {k: p - 0.1 * g[k] for k, p in params.items()}
    return loss, (params,), list(params.values())


@torch_program
def cross_entropy_and_softmax(torch: Any, grad: Any, tensor: Any) -> Any:
    x, w = map(tensor, draw((6, 4), (4, 3)))
    labels = numpy.arange(6) % 3

    def loss(w: Any) -> Any:
        logits = x @ w
        log_probs = logits - torch.logsumexp(logits, 1).reshape(6, 1)
        entropy = -(torch.softmax(logits, -1) * log_probs).sum(1)
        return -log_probs[numpy.arange(6), labels].mean() - 0.1 * entropy.mean()

    return loss, (w,), [grad(loss)(w)]


@torch_program
def a_gated_unit(torch: Any, grad: Any, tensor: Any) -> Any:
    x, w, v = map(tensor, draw((5, 3), (3, 4), (3, 4)))

    def loss(w: Any, v: Any) -> Any:
        gated = torch.sigmoid(x @ w) * torch.relu(x @ v)
        return torch.sqrt((gated * gated).sum() + 1.0)

    return loss, (w, v), list(grad(loss, (0, 1))(w, v))


@torch_program
def attention_heads_by_einsum(torch: Any, grad: Any, tensor: Any) -> Any:
    x, wq, wk, wv = map(tensor, draw((5, 4), (2, 4, 3), (2, 4, 3), (2, 4, 3)))

    def loss(wq: Any, wk: Any, wv: Any) -> Any:
        q, k, v = (torch.einsum("nd,hde->hne", x, w) for w in (wq, wk, wv))
        weights = torch.softmax(torch.einsum("hne,hme->hnm", q, k) / 3**0.5, -1)
        return (torch.einsum("hnm,hme->hne", weights, v) ** 2).mean()

    return loss, (wq, wk, wv), list(grad(loss, (0, 1, 2))(wq, wk, wv))


# --- the checks -------------------------------------------------------------------------------------------------------


def numbers(results: Any) -> list[Any]:
    return [numpy.asarray(r) for r in results]


def here(name: str) -> Any:
    """The program with NumPy and hypergrad, or with hypergrad as torch."""
    return TORCH[name](hg, hg.grad, numpy.asarray) if name in TORCH else PROGRAMS[name](numpy, hg)


@pytest.mark.parametrize("name", [*PROGRAMS, *TORCH])
def test_the_gradients_are_those_of_finite_differences(name: str) -> None:
    f, args, results = here(name)
    check_gradients(f, *args)
    assert all(numpy.isfinite(r).all() for r in numbers(results))


def same(ours: Any, theirs: Any, name: str) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(numbers(ours), numbers(theirs), strict=True):
        assert_same(a, b, name, 1e-10)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_numbers_are_those_of_autograd(name: str) -> None:
    autograd = pytest.importorskip("autograd")
    same(here(name)[2], PROGRAMS[name](importlib.import_module("autograd.numpy"), autograd)[2], name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_numbers_are_those_of_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        api = SimpleNamespace(grad=jax.grad, value_and_grad=jax.value_and_grad, hessian=jax.hessian)
        same(here(name)[2], PROGRAMS[name](jax.numpy, api)[2], name)
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("name", TORCH)
def test_the_numbers_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    same(here(name)[2], TORCH[name](torch, torch.func.grad, torch.tensor)[2], name)
