"""hypergrad and PyTorch: a function of one library inside a gradient of the other. It needs the extra `torch`; host memory alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..backends import Array
from ..bilevel import HyperGradient
from ..errors import ArgumentError, DeviceError, DifferentiationError
from ..state import IDLE, within
from ..trees import PyTree, tree_flatten, tree_leaves, tree_map, tree_structure, tree_unflatten
from .foreign import Foreign, Given, as_op, floating, host, pullback_of, pulled, values_of

__all__ = ["from_torch", "hypergradient", "to_torch"]


def to_torch(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of hypergrad Tensors as a function of torch tensors, through which torch differentiates.

    Args:
        f: takes pytrees of Tensors, returns a pytree of Tensors, such as the weights that `hg.unroll` ends at. It gets a Tensor for each
            floating torch tensor, and a NumPy array for each of integers or bools; every other argument is passed as it is.
    Returns: a function of the same arguments, in torch tensors on the CPU; its results are torch tensors.
    Raises: DTypeError for float16, bfloat16 and complex tensors, and for float32 beside float64; DeviceError for a tensor on a GPU;
        what f raises. In the backward pass: DifferentiationError where an array that f used was written to.
    Rules: tensors that require gradients get them by ``hg.vjp``, of any order where the derivatives of f nest. Those of `hg.unroll` and
        `hg.scan` do not: a second derivative raises DifferentiationError. torch.func's transforms are refused by torch.
    Cost: that of ``hg.vjp``, whose memory lives as long as the graph; f alone under torch.no_grad(). Arrays are shared, not copied.
        With create_graph=True f is run once more.
    Example:
        >>> import torch
        >>> from hypergrad.interop.torch import to_torch
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> torch.sum(to_torch(lambda h: hg.square(h))(x)).backward()  # a network before it would get its gradients, too
        >>> x.grad
        tensor([2., 6.])
    """

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda x: _array(x) if isinstance(x, torch.Tensor) and not _floats(x) else x, (args, kwargs))
        given = Given("to_torch", f, args, kwargs, lambda x: isinstance(x, torch.Tensor))
        for x in given.arrays:
            _check("to_torch", x)
        return given.tree(_apply(given, given.arrays))

    return wrapped


def hypergradient(run: Callable[[PyTree], HyperGradient]) -> Callable[[PyTree], torch.Tensor]:
    """The outer objective of a bilevel problem as a function of torch tensors, with the hypergradient as its gradient.

    Args:
        run: hparams, a pytree of NumPy arrays -> HyperGradient: any pass, such as ``lambda h: hg.reverse(problem, h, batches)``,
            `hg.forward`, or `hg.implicit` at weights that it finds itself.
    Returns: a function of hparams, a pytree of torch tensors, with a 0-d tensor as its result.
    Raises: ArgumentError for a leaf that is no torch tensor, and for a gradient unlike hparams; DTypeError and DeviceError as `to_torch`;
        DifferentiationError where it is differentiated twice.
    Cost: one call of `run`, which gives the value and the gradient, in the forward pass.
    Example:
        >>> import torch
        >>> from hypergrad.interop.torch import hypergradient
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.25)
        ... )
        >>> h = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> hypergradient(lambda h: hg.reverse(problem, h, range(3)))(h).backward()
        >>> h.grad
        tensor([1.5312, 3.0625], dtype=torch.float64)
    """

    def objective(hparams: PyTree) -> torch.Tensor:
        leaves, spec = tree_flatten(hparams)
        for x in leaves:
            if not isinstance(x, torch.Tensor):
                raise ArgumentError(f"hypergradient: hparams has a leaf of {type(x)}, expected torch tensors; convert it with torch.tensor")
            _check("hypergradient", x)
        value: torch.Tensor = _Hypergradient.apply(run, spec, *leaves)
        return value

    return objective


def from_torch(f: Callable[..., Any], *, proven: bool = False) -> Callable[..., Any]:
    """A function of torch tensors as a function of hypergrad Tensors: an inner loss or a step of `hg.scan` may be written in torch.

    Args:
        f: takes pytrees of torch tensors, returns a pytree of floating torch tensors. It must give the same bits each time. It gets a torch
            tensor for each Tensor and NumPy array among its arguments; every other argument is passed as it is.
        proven: whether the derivatives of f are those of its value, as they are unless it has an autograd.Function that decides
            otherwise. Then `hg.unroll` transposes a step by the symmetric Hessian, and `hg.implicit` takes the loss.
    Returns: a function of the same arguments with Tensors in its result. It may be differentiated in its Tensors, in every mode and
        nesting, as far as torch has the second derivatives (torch raises an error for those that it lacks).
    Raises: DifferentiationError where f uses a tensor from outside that requires a gradient, for its derivative would be lost, and where
        f gives other bits when it is evaluated again; ArgumentError for a result that is no floating tensor; DTypeError for float32 beside
        float64; DeviceError for CuPy arrays and for results on a GPU.
    Cost: Tensors and results are copied. A first gradient uses torch's own graph. Each further derivative evaluates f again, a tangent by
        two reverse sweeps and one more per direction.
    Example:
        >>> import torch
        >>> from hypergrad.interop.torch import from_torch
        >>> loss = from_torch(lambda w, h, batch: torch.nn.functional.mse_loss(w, h))
        >>> hg.grad(loss)(np.array([1.0, 2.0]), np.array([0.0, 0.0]), None)
        array([1., 2.])
    """
    return as_op(_TORCH, f, torch.tensor, lambda x: isinstance(x, torch.Tensor) and _floats(x), _refuse_others, proven=proven)


# --- hypergrad inside torch ---------------------------------------------------------------------------------------------


class _Function(torch.autograd.Function):
    """The leaves of the result of f(*tensors); `keep` says whether a tape is recorded at once, or by the backward pass."""

    @staticmethod
    def forward(ctx: Any, f: Callable[..., list[Any]], keep: bool, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [_array(x) for x in tensors]
        ctx.f, ctx.pullback, ctx.n_inputs = f, None, len(tensors)
        ctx.save_for_backward(*tensors)
        if keep and any(ctx.needs_input_grad):
            outs, ctx.pullback = pullback_of(_chosen(f, values, ctx.needs_input_grad[2:]), _some(values, ctx.needs_input_grad[2:]))
        else:
            outs = values_of(f, values)
        return tuple(torch.from_numpy(x) for x in outs)

    @staticmethod
    def backward(ctx: Any, *bars: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors, want = ctx.saved_tensors, ctx.needs_input_grad[2:]  # torch raises here where one was changed in place
        if torch.is_grad_enabled():  # create_graph=True: the pullback is a function of the tensors and of the cotangents
            every: list[Any] = list(_Function.apply(pulled(ctx.f, len(tensors)), False, *tensors, *bars))
            return None, None, *(g if wanted else None for g, wanted in zip(every, want, strict=True))
        pullback = ctx.pullback
        if pullback is None:
            values = [_array(x) for x in tensors]
            _, pullback = pullback_of(_chosen(ctx.f, values, want), _some(values, want))
        got = iter(pullback([_array(b) for b in bars]))
        return None, None, *(torch.from_numpy(next(got)) if wanted else None for wanted in want)


def _apply(f: Callable[..., list[Any]], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    outs: Sequence[torch.Tensor] = _Function.apply(f, torch.is_grad_enabled(), *tensors)
    return outs


def _some(values: Sequence[Any], want: Sequence[bool]) -> list[Any]:
    return [x for x, wanted in zip(values, want, strict=True) if wanted]


def _chosen(f: Callable[..., list[Any]], values: Sequence[Array], want: Sequence[bool]) -> Callable[..., list[Any]]:
    """f as a function of the wanted arguments alone."""

    def of(*some: Any) -> list[Any]:
        rest = iter(some)
        return f(*(next(rest) if wanted else x for x, wanted in zip(values, want, strict=True)))

    return of


class _Hypergradient(torch.autograd.Function):
    """The outer objective; its gradient comes with its value."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[PyTree], HyperGradient], spec: Any, *tensors: torch.Tensor) -> torch.Tensor:
        r = within(IDLE, run, tree_unflatten(spec, [_array(x) for x in tensors]))
        grads = tree_leaves(r.grad)
        if tree_structure(r.grad) != spec or [tuple(g.shape) for g in grads] != [tuple(x.shape) for x in tensors]:
            raise ArgumentError(
                f"hypergradient: r.grad has structure {tree_structure(r.grad)} and shapes {[g.shape for g in grads]}, expected those of "
                "hparams; give run's argument to the pass as it is"
            )
        ctx.save_for_backward(*tensors, *(torch.from_numpy(np.asarray(g)) for g in grads))
        return torch.from_numpy(np.asarray(r.value))

    @staticmethod
    def backward(ctx: Any, bar: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        half = len(ctx.saved_tensors) // 2
        tensors, grads = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        return None, None, *(_Once.apply(bar, g, *tensors) for g in grads)


class _Once(torch.autograd.Function):
    """bar * gradient, whose derivative in the hyperparameters, the `tensors`, is not there."""

    @staticmethod
    def forward(ctx: Any, bar: torch.Tensor, gradient: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return bar * gradient

    @staticmethod
    def backward(ctx: Any, bar: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise DifferentiationError(
            "hypergradient: its gradient is being differentiated again, expected first order because the passes already use second "
            "derivatives of the inner loss; leave create_graph out"
        )


# --- torch inside hypergrad ---------------------------------------------------------------------------------------------


class _Torch:
    """See foreign.Library. Reverse mode of torch alone, which takes more functions than torch.func does."""

    name = "torch"
    caches = False

    def evaluate(self, f: Foreign, fixed: Sequence[Any], values: Sequence[Array], keep: bool) -> tuple[list[Array], Any]:
        inputs = [torch.tensor(x).requires_grad_() for x in values]  # copies, which f may not change unseen
        with torch.enable_grad():  # always, so that torch takes the same kernels each time
            outs = list(f(fixed, *inputs))
        for x in outs:
            _check("from_torch", x)
        return _arrays(outs), (inputs, outs) if keep else None

    def pull_kept(self, kept: Any, bars: Sequence[Array], want: Sequence[bool]) -> list[Array]:
        inputs, outs = kept
        got = _gradients(outs, _some(inputs, want), [torch.tensor(b) for b in bars], create_graph=False)
        return _arrays(got)

    def pulled(self, f: Foreign, n_inputs: int, want: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        def g(fixed: Sequence[Any], *given: torch.Tensor) -> list[torch.Tensor]:
            outs = f(fixed, *given[:n_inputs])
            check(_arrays(outs))
            return _gradients(outs, _some(given[:n_inputs], want), given[n_inputs:], create_graph=True)

        return g

    def pushed(self, f: Foreign, n_inputs: int, moving: Sequence[bool], check: Callable[[Sequence[Any]], None]) -> Foreign:
        """The cotangents are linear in the cotangents of the results, u; their own pullback in u maps tangents forward."""

        def g(fixed: Sequence[Any], *given: torch.Tensor) -> list[torch.Tensor]:
            outs, dots = f(fixed, *given[:n_inputs]), given[n_inputs:]
            check(_arrays(outs))
            us = [torch.zeros_like(x).requires_grad_() for x in outs]
            back = _gradients(outs, _some(given[:n_inputs], moving), us, create_graph=True)
            rows = [_gradients(back, us, [d[p] for d in dots], create_graph=True) for p in range(len(dots[0]))]
            return [torch.stack(list(c)) for c in zip(*rows, strict=True)] or [x.new_zeros((0, *x.shape)) for x in outs]

        return g


_TORCH = _Torch()


def _gradients(
    outs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], bars: Sequence[torch.Tensor], *, create_graph: bool
) -> list[torch.Tensor]:
    """torch.autograd.grad with zeros where there is no dependence."""
    taped = [(x, b) for x, b in zip(outs, bars, strict=True) if x.requires_grad]
    got: Sequence[Any] = [None] * len(inputs)
    if taped and inputs:
        roots, weights = zip(*taped, strict=True)
        got = torch.autograd.grad(roots, inputs, weights, create_graph=create_graph, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, got, strict=True)]


def _refuse_others(outs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Raises: DifferentiationError where the graph of the results has a leaf that is none of the inputs."""
    own, seen = {id(x) for x in inputs}, set()
    pending = [x.grad_fn for x in outs if x.grad_fn is not None]
    strange = [x for x in outs if x.grad_fn is None and x.requires_grad and id(x) not in own]
    while pending and not strange:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        strange = [] if leaf is None or id(leaf) in own else [leaf]
        pending += [n for n, _ in node.next_functions if n is not None]
    if strange:
        raise DifferentiationError(
            f"from_torch: the function uses a tensor of shape {tuple(strange[0].shape)} from outside that requires a gradient, expected "
            "its arguments only because the derivative would be lost; pass it as an argument (torch.func.functional_call gives a module "
            "its parameters), or detach it"
        )


# --- arrays ---------------------------------------------------------------------------------------------------------------


def _floats(x: torch.Tensor) -> bool:
    return bool(x.is_floating_point() or x.is_complex())


def _check(where: str, x: torch.Tensor) -> None:
    """Raises: DTypeError and DeviceError for tensors that hypergrad cannot take."""
    floating(where, x.dtype)
    if x.device.type != "cpu":
        raise DeviceError(f"{where}: a tensor is on {x.device}, expected the CPU because only host memory is handed over; use .cpu()")


def _array(x: torch.Tensor) -> Array:
    """The tensor's memory as a NumPy array."""
    return host("to_torch", x.detach().resolve_neg())


def _arrays(tensors: Sequence[torch.Tensor]) -> list[Array]:
    """Copies of the tensors."""
    return [np.array(x.detach().resolve_neg().numpy()) for x in tensors]
