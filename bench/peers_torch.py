"""The problems in PyTorch: operation by operation, channels-last, with torch.func, compiled, and captured in a CUDA graph.

Each is written as its users write it: a loop over episodes with autograd.grad(create_graph=True), or one function of an
episode under torch.func.vmap and grad. A tuned allocator is set up by the environment of the process: glibc keeps freed memory
instead of handing it back and taking new pages at every step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from meta_problems import EPS, INNER_STEP, Arrays, Sizes, Step, Variant
from run_problems import RunSizes
from runs_torch import Run, RunStep, derivative
from torch import Tensor

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors], Tensor]


def _batch_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def _composed_batch_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """For torch.func, whose second derivative of F.batch_norm under vmap is wrong (torch 2.13: gradients off by 2%)."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    scale = torch.rsqrt(centred.square().mean((0, 2, 3), keepdim=True) + EPS) * gamma[None, :, None, None]
    return centred * scale + beta[None, :, None, None]


def _network(w: Mapping[str, Tensor], images: Tensor, sizes: Sizes, batch_norm: Callable[..., Tensor] = _batch_norm) -> Tensor:
    x = images
    for i in range(sizes.blocks):
        x = F.conv2d(x, w[f"w{i}"], padding=1)
        x = F.max_pool2d(F.relu(batch_norm(x, w[f"gamma{i}"], w[f"beta{i}"])), 2)
    return x.flatten(1)


class Episodes:
    """Losses of a problem; `data` holds images (E, N, C, H, W)."""

    def __init__(self, problem: str, sizes: Sizes, data: Tensors, channels_last: bool) -> None:
        self.problem, self.sizes, self.data = problem, sizes, data
        self.images = {part: [self._layout(x, channels_last) for x in data[part].unbind()] for part in ("support", "query")}

    @staticmethod
    def _layout(x: Tensor, channels_last: bool) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x.contiguous()

    def one(self, p: Tensors, e: int) -> Tensor:
        """Query loss of an episode, second order by autograd."""
        y, y_query = self.data["support_labels"][e], self.data["query_labels"][e]
        images, query = self.images["support"][e], self.images["query"][e]
        if self.problem == "maml":
            w = dict(p)
            for _ in range(self.sizes.steps):
                loss = F.cross_entropy(_network(w, images, self.sizes) @ w["head"] + w["bias"], y)
                grads = torch.autograd.grad(loss, list(w.values()), create_graph=True)
                w = {name: v - INNER_STEP * g for (name, v), g in zip(w.items(), grads, strict=True)}
            return F.cross_entropy(_network(w, query, self.sizes) @ w["head"] + w["bias"], y_query)
        support, query = _network(p, images, self.sizes), _network(p, query, self.sizes)
        weight = support.new_zeros(self.sizes.features, self.sizes.ways, requires_grad=True)
        bias = support.new_zeros(self.sizes.ways, requires_grad=True)
        for _ in range(self.sizes.steps):
            grads = torch.autograd.grad(F.cross_entropy(support @ weight + bias, y), (weight, bias), create_graph=True)
            weight, bias = weight - p["lr"] * grads[0], bias - p["lr"] * grads[1]
        return F.cross_entropy(query @ weight + bias, y_query)

    def mapped(self, p: Tensors) -> Tensor:
        """Mean query loss, all episodes at once by vmap, second order by nesting grad."""
        one = self._maml if self.problem == "maml" else self._representation
        d = self.data
        arguments = (d["support"], d["support_labels"], d["query"], d["query_labels"])
        return torch.func.vmap(one, in_dims=(None, 0, 0, 0, 0))(p, *arguments).mean()

    def _features(self, w: Tensors, images: Tensor) -> Tensor:
        return _network(w, images, self.sizes, _composed_batch_norm)

    def _maml(self, p: Tensors, images: Tensor, y: Tensor, query: Tensor, y_query: Tensor) -> Tensor:
        def loss(w: Tensors, x: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self._features(w, x) @ w["head"] + w["bias"], labels)

        w = p
        for _ in range(self.sizes.steps):
            grads = torch.func.grad(loss)(w, images, y)
            w = {name: v - INNER_STEP * grads[name] for name, v in w.items()}
        return loss(w, query, y_query)

    def _representation(self, p: Tensors, images: Tensor, y: Tensor, query: Tensor, y_query: Tensor) -> Tensor:
        support, of_query = self._features(p, images), self._features(p, query)

        def loss(w: Tensors) -> Tensor:
            return F.cross_entropy(support @ w["weight"] + w["bias"], y)

        w = {"weight": support.new_zeros(self.sizes.features, self.sizes.ways), "bias": support.new_zeros(self.sizes.ways)}
        for _ in range(self.sizes.steps):
            grads = torch.func.grad(loss)(w)
            w = {name: v - p["lr"] * grads[name] for name, v in w.items()}
        return F.cross_entropy(of_query @ w["weight"] + w["bias"], y_query)


class TorchStep:
    """A meta-step; `compute` maps the parameters to (loss, gradients)."""

    def __init__(
        self, compute: Callable[[Tensors], tuple[Tensor, Tensors]], params: Tensors, sizes: Sizes, *, cuda: bool, captured: bool
    ) -> None:
        self.compute, self.params, self.sizes, self.cuda, self.captured = compute, params, sizes, cuda, captured

    def run(self) -> Any:
        return self.compute(self.params)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def result(self, out: Any) -> tuple[float, Arrays]:
        grads = {}
        for name, g in out[1].items():
            if name == "head":
                g = g.reshape(*_head_shape(self.sizes)).permute(1, 2, 0, 3).reshape(self.sizes.features, self.sizes.ways)
            elif name.startswith("w"):
                g = g.permute(2, 3, 1, 0)
            grads[name] = g.detach().cpu().contiguous().numpy()
        return float(out[0]), grads

    def peak_bytes(self) -> int | None:
        if not self.cuda:
            return None
        if not self.captured:  # not counting the workspaces of convolutions that were only tried
            torch.cuda.reset_peak_memory_stats()
            self.run()
            self.wait()
        return int(torch.cuda.max_memory_allocated())


def _head_shape(sizes: Sizes) -> tuple[int, int, int, int]:
    side = sizes.side >> sizes.blocks
    return sizes.filters, side, side, sizes.ways  # torch flattens channels first


def _captured(compute: Callable[[Tensors], tuple[Tensor, Tensors]], params: Tensors) -> Callable[[Tensors], tuple[Tensor, Tensors]]:
    """The step as one CUDA graph; its outputs are overwritten by every replay."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up outside the graph: libraries choose algorithms and take workspaces
        for _ in range(3):
            compute(params)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute(params)

    def replay(_: Tensors) -> tuple[Tensor, Tensors]:
        graph.replay()
        return out

    return replay


def set_threads() -> None:
    """As many threads as the environment says."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def to_torch(problem: str, sizes: Sizes, data: Arrays, params: Arrays, device: str, channels_last: bool) -> tuple[Episodes, Tensors]:
    images = {part: torch.tensor(data[part], device=device).permute(0, 1, 4, 2, 3).contiguous() for part in ("support", "query")}
    labels = {part: torch.tensor(data[part], device=device) for part in ("support_labels", "query_labels")}
    leaves = {}
    for name, a in params.items():
        value = torch.tensor(a, device=device)
        if name == "head":
            filters, side, _, ways = _head_shape(sizes)
            value = value.reshape(side, side, filters, ways).permute(2, 0, 1, 3).reshape(sizes.features, ways)
        elif name.startswith("w"):
            value = value.permute(3, 2, 0, 1)
            value = value.contiguous(memory_format=torch.channels_last) if channels_last else value.contiguous()
        leaves[name] = value.contiguous() if value.ndim != 4 else value
    return Episodes(problem, sizes, {**images, **labels}, channels_last), leaves


def by_episodes(loss: Callable[[Tensors, int], Tensor], n_episodes: int) -> Callable[[Tensors], tuple[Tensor, Tensors]]:
    """Mean loss and its gradient, one episode after the other, whose graph is freed before the next."""

    def compute(p: Tensors) -> tuple[Tensor, Tensors]:
        leaves = list(p.values())
        value, total = torch.zeros_like(leaves[-1].flatten()[0]), [torch.zeros_like(a) for a in leaves]
        for e in range(n_episodes):
            one = loss(p, e) / n_episodes
            total = [a.add_(g) for a, g in zip(total, torch.autograd.grad(one, leaves), strict=True)]
            value += one.detach()
        return value, dict(zip(p, total, strict=True))

    return compute


def _by_func(loss: Loss) -> Callable[[Tensors], tuple[Tensor, Tensors]]:
    def compute(p: Tensors) -> tuple[Tensor, Tensors]:
        grads, value = torch.func.grad_and_value(loss)(p)
        return value, grads

    return compute


def _variant(
    *, func: bool = False, channels_last: bool = False, compiled: bool = False, captured: bool = False, tuned: bool = False
) -> Variant:
    def make(problem: str, sizes: Any, dtype: str, data: Arrays, params: Arrays, device: str, tf32: bool) -> Step:
        if captured and device != "cuda":
            raise RuntimeError("CUDA graphs need a GPU")
        if tuned and "MALLOC_TOP_PAD_" not in os.environ:
            raise RuntimeError("the environment of this process tunes no allocator")
        set_threads()
        if isinstance(sizes, RunSizes):
            return RunStep(derivative(Run(problem, sizes, data, params, device), "forward" if func else "reverse"), device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        episodes, leaves = to_torch(problem, sizes, data, params, device, channels_last)
        if func:
            compute = _by_func(episodes.mapped)
        else:
            leaves = {name: a.requires_grad_() for name, a in leaves.items()}
            compute = by_episodes(episodes.one, sizes.episodes)
        if compiled:
            compute = torch.compile(compute, fullgraph=True)
        if captured:
            compute = _captured(compute, leaves)
        return TorchStep(compute, leaves, sizes, cuda=device == "cuda", captured=captured)

    return make


VARIANTS: dict[str, Variant] = {
    "torch": _variant(),
    "torch channels-last": _variant(channels_last=True),
    "torch tuned allocator": _variant(tuned=True),
    "torch channels-last tuned allocator": _variant(channels_last=True, tuned=True),
    "torch.func vmap": _variant(func=True),
    "torch.compile": _variant(func=True, compiled=True),
    "torch.func jacfwd": _variant(func=True),
    "torch CUDA graph": _variant(channels_last=True, captured=True),
}
