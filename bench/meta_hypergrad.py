"""hypergrad's own variants: on the host, and meta-steps on the GPU, run operation by operation or captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from meta_problems import EPS, INNER_STEP, Arrays, Sizes, Step, Unsupported, Variant
from run_problems import RunSizes
from runs_hypergrad import value_and_grad

import hypergrad as hg
from hypergrad.meter import Meter

SLICE = 4  # episodes of MAML that are held together on the host


def _network(w: Mapping[str, Any], images: Any, sizes: Sizes) -> Any:
    x = images
    for i in range(sizes.blocks):
        x = hg.conv_bn_relu_pool(x, w[f"w{i}"], w[f"gamma{i}"], w[f"beta{i}"], eps=EPS)
    return hg.reshape(x, (*images.shape[:2], sizes.features))


def _loss(features: Any, weight: Any, bias: Any, labels: Any) -> Any:
    """Mean loss of every episode, (E,)."""
    return hg.mean(hg.linear_cross_entropy(features, weight, bias, labels), axis=-1)


def _query_loss(judged: Callable[[Any, Any, Arrays], Any], shared: Any, learner: Any, data: Arrays, sizes: Sizes, xp: Any) -> Any:
    """Mean query loss of all episodes, `judged` giving those of each image: on the host one episode at a time, to hold its values only."""

    def part(shared: Any, learner: Any, rows: slice) -> Any:
        return hg.sum(judged(shared, learner, {name: data[name][rows] for name in ("query", "query_labels")})), None

    total, _ = hg.accumulate(part, shared, learner, sizes.episodes, 1 if xp is np else sizes.episodes)
    return total * (1.0 / data["query_labels"].size)


def hyper_representation(sizes: Sizes, data: Arrays, xp: Any) -> Callable[[Any], Any]:
    """params -> mean query loss."""
    dtype = data["support"].dtype
    zero = xp.zeros((sizes.features, sizes.ways), dtype), xp.zeros(sizes.ways, dtype)

    def meta_loss(p: Any) -> Any:
        support = _network(p, data["support"], sizes)
        w = hg.linear_head_descent(support, *zero, data["support_labels"], p["lr"], sizes.steps)

        def judged(p: Any, w: Any, some: Arrays) -> Any:
            return hg.linear_cross_entropy(_network(p, some["query"], sizes), *w, some["query_labels"])

        return _query_loss(judged, p, w, data, sizes, xp)

    return meta_loss


def maml(sizes: Sizes, data: Arrays, xp: Any) -> Callable[[Any], Any]:
    """params -> mean query loss after every episode's own T steps; on the host of some episodes at a time, to hold their values only."""

    def of_some(p: Any, _: Any, rows: slice) -> Any:
        some = {name: a[rows] for name, a in data.items()}
        episodes = len(some["support"])

        def inner(w: Any, hparams: Any, batch: Any) -> Any:
            return hg.sum(_loss(_network(w, some["support"], sizes), w["head"], w["bias"], some["support_labels"]))

        def judged(_: Any, w: Any, few: Arrays) -> Any:
            return hg.linear_cross_entropy(_network(w, few["query"], sizes), w["head"], w["bias"], few["query_labels"])

        start = {name: hg.broadcast_to(a, (episodes, *a.shape)) for name, a in p.items() if name != "bias"}
        start["bias"] = hg.broadcast_to(p["bias"], (episodes, sizes.ways))
        w = hg.unroll(inner, start, {}, hg.full_batch(None, sizes.steps), optimizer=hg.SGD(lr=INNER_STEP))
        loss = _query_loss(judged, (), w, some, replace(sizes, episodes=episodes), xp)
        return loss if episodes == sizes.episodes else loss * (episodes / sizes.episodes), None

    def meta_loss(p: Any) -> Any:
        together = SLICE if xp is np else sizes.episodes
        return of_some(p, (), slice(None))[0] if together >= sizes.episodes else hg.accumulate(of_some, p, (), sizes.episodes, together)[0]

    return meta_loss


class _OnHost:
    def __init__(self, make: Callable[[], Callable[[Any], Any]], params: Arrays) -> None:
        self.make, self.step, self.params = make, make(), params
        self.peak: int | None = None

    def run(self) -> Any:
        return self.step(self.params)

    def wait(self) -> None:
        """Host kernels have returned."""

    def result(self, out: Any) -> tuple[float, Arrays]:
        return float(out[0]), {name: np.asarray(g) for name, g in out[1].items()}

    def peak_bytes(self) -> int | None:
        if self.peak is None:  # in a run of its own: tracing costs time
            step = self.make()  # a captured one takes its memory when it is recorded, by its first two calls
            with Meter(memory=True) as meter:
                for _ in range(3):
                    step(self.params)
            self.peak = meter.peak_bytes
        return self.peak


class _OnGpu:
    def __init__(self, make: Callable[[], Callable[[Any], Any]], params: Arrays, cupy: Any) -> None:
        self.make, self.step, self.params, self.cupy = make, make(), params, cupy

    def run(self) -> Any:
        return self.step(self.params)

    def wait(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def result(self, out: Any) -> tuple[float, Arrays]:
        return float(out[0]), {name: self.cupy.asnumpy(g) for name, g in out[1].items()}

    def peak_bytes(self) -> int | None:
        held = int(self.cupy.get_default_memory_pool().used_bytes())  # the peers count what the step begins with, too
        step = self.make()  # a graph takes its memory when it is recorded
        with Meter(memory=True) as meter:
            step(self.params)
            self.wait()
        return held + (meter.peak_device_bytes or 0)


def _make(problem: str, sizes: Sizes, data: Arrays, xp: Any) -> Callable[[Any], Any]:
    return (maml if problem == "maml" else hyper_representation)(sizes, data, xp)


def _host(mode: str) -> Variant:
    """On the host; a long run goes in reverse with the checkpoints that `mode` names, or forward. A meta-step is captured, unless the
    mode is "eager"."""

    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        if tf32:
            raise Unsupported("the host has no tf32")
        run = isinstance(sizes, RunSizes)
        step = value_and_grad(problem, sizes, data, mode) if run else hg.value_and_grad(_make(problem, sizes, data, np))
        return _OnHost((lambda: step) if run or mode == "eager" else (lambda: hg.capture(step)), params)

    return make


def _gpu(captured: bool, own: str | None = None) -> Variant:
    """On the GPU; `own` is a precision of ours for comparisons in float32."""

    def make(problem: str, sizes: Sizes, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        if device != "cuda":
            raise Unsupported("runs on a GPU only")
        if own is not None and tf32:
            raise Unsupported(f"{own} stands beside float32")
        cupy = import_module("cupy")
        on_gpu = {name: cupy.asarray(a) for name, a in data.items()}
        value_and_grad = hg.value_and_grad(_make(problem, sizes, on_gpu, cupy))

        def step(p: Any) -> Any:
            with hg.precision(own or ("tf32" if tf32 else "float32")):
                return value_and_grad(p)

        start = {name: cupy.asarray(a) for name, a in params.items()}
        return _OnGpu((lambda: hg.capture(step)) if captured else (lambda: step), start, cupy)

    return make


VARIANTS: dict[str, Variant] = {
    "hypergrad host": _host("all"),
    "hypergrad host eager": _host("eager"),
    "hypergrad host sqrt": _host("sqrt"),
    "hypergrad host reversible": _host("reversible"),
    "hypergrad host forward": _host("forward"),
    "hypergrad": _gpu(False),
    "hypergrad captured": _gpu(True),
    "hypergrad captured 3xtf32": _gpu(True, "3xtf32"),
}
