"""A function recorded and replayed: of device arrays by a CUDA graph with one launch, of NumPy arrays by a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .backends import backend_of, is_on_gpu
from .backends.cuda import CUDA
from .backends.recording import Recording, recordable
from .errors import ArgumentError, DeviceError, DifferentiationError
from .replay import Replays
from .rules import settings
from .state import is_idle
from .tape import Tensor
from .transforms import tree_values
from .trees import PyTree, tree_flatten, tree_unflatten

_CONSTANTS = (bool, int, float, str, bytes)


def capture(fn: Callable[..., PyTree], *, keep_activations: bool = True) -> Captured:
    """`fn` recorded: a call then costs its arithmetic, and the engine's work, tapes and rules, is not done again.

    **On the GPU** all kernels lie in a CUDA graph, so that a call costs one launch instead of hundreds.
    The first call with arrays of given shapes runs `fn` twice, once to warm up and once to record it. Later calls copy their
    arrays into the graph's, replay it on CuPy's current stream and return copies of its results. Calls on several streams run one after
    the other. Arguments with another tree
    structure, shape, dtype or constant, and another setting of `fusion` or `precision`, get a recording of their own.
    A meta-step of few-shot learning has hundreds of small kernels. The GPU runs them faster than the host launches them.

    **On NumPy arrays** calls of one kind are replayed after two whose recordings agree, with the same bits; see replay.py. What cannot
    be recorded runs as it is: `captured.replays.program` says what is replayed, or why nothing is.

    Args:
        fn: takes and returns pytrees of arrays, and is pure. Only the arrays among its arguments may change between calls:
            random draws and numbers are fixed at the recording. An array that it closes over may be overwritten in place, but on the host
            what NumPy's own functions make of it is fixed, too. It may take gradients: ``capture(value_and_grad(loss))``. On the GPU it
            must not make the host wait: no float(array), no copy to or from NumPy.
        keep_activations: whether a step of `unroll` or `scan` whose state reverse mode keeps in the arrays' memory keeps its results,
            too, so that its transposition need not run it again. The bits are the same.
    Returns: a function of the same arguments.
        On the GPU products of matrices are computed by a kernel of this package, because CuPy records no cuBLAS: they equal those
        outside up to rounding, and large ones are slower.
    Raises: DeviceError if `fn` waits for the GPU or copies from the host, or if NumPy arrays stand beside CuPy's;
        ArgumentError for an argument beside CuPy arrays that is neither array nor number nor text; DifferentiationError inside a transform.
    Cost: on the GPU one copy of each array in and out, and one launch; on the host some microseconds for each kernel. The memory of one
        run of `fn` is held for each recording. Kept activations add the results of all ops in every step, and spare a third of the
        backward pass.
    Source: CUDA C++ Programming Guide, "CUDA Graphs".
    Example:
        >>> step = hg.capture(hg.value_and_grad(lambda w: hg.sum(w**2)))
        >>> for _ in range(3):
        ...     value, grad = step(np.array([1.0, 2.0]))
        >>> value, grad
        (array(5.), array([2., 4.]))
        >>> step.replays.program.split(":")[0]
        'function'
    """
    return Captured(fn, keep_activations)


class Captured:
    """What `capture` returns.

    Attributes: replays: of the calls with NumPy arrays.
    """

    def __init__(self, fn: Callable[..., PyTree], keep_activations: bool) -> None:
        self.fn, self.keep_activations = fn, keep_activations
        self.replays = Replays(whole=True, keep=keep_activations)
        self._graphs: dict[Any, _Recorded] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        """As the function."""
        leaves, spec = tree_flatten(args)
        if not is_idle() or any(isinstance(x, Tensor) for x in leaves):
            raise DifferentiationError(
                "capture: called inside a transform, expected arrays because a recorded graph has no derivative; "
                "capture the function that takes the gradient"
            )
        if not any(is_on_gpu(x) for x in leaves):
            return self.replays.call("function", lambda _, args: self.fn(*args), 0, args, settings())
        key = (spec, settings(), *(_kind(x) for x in leaves))
        if key not in self._graphs:
            self._graphs[key] = _Recorded(self.fn, leaves, spec, self.keep_activations)
        return self._graphs[key](leaves)


def _kind(x: Any) -> Any:
    """What a recording is chosen by: an array's device, shape and dtype; a constant's type and value."""
    if is_on_gpu(x):
        return (x.device.id, x.shape, str(x.dtype))
    if isinstance(x, np.ndarray):
        raise DeviceError(
            f"capture: an argument is a NumPy array of shape {x.shape} beside CuPy arrays, expected one side because its "
            "elements would be fixed at the recording; copy it to the GPU first"
        )
    if type(x) not in _CONSTANTS:
        raise ArgumentError(
            f"capture: an argument is a {type(x).__qualname__}, expected arrays, numbers or text because anything else "
            "would be fixed at the recording; pass its arrays"
        )
    return (type(x), x)


class _Recorded:
    """One graph with the memory it works in."""

    def __init__(self, fn: Callable[..., PyTree], leaves: Sequence[Any], spec: Any, keep_activations: bool) -> None:
        xp = backend_of(*(x for x in leaves if is_on_gpu(x))).xp
        self.inputs = [xp.array(x) if is_on_gpu(x) else x for x in leaves]
        self.pool = xp.cuda.MemoryPool()  # the graph keeps writing to its memory, so nobody else may get it
        args = tree_unflatten(spec, self.inputs)
        xp.cuda.get_current_stream().synchronize()  # so that the other stream finds the inputs written
        self.stream = xp.cuda.Stream(non_blocking=True)
        with self.stream, xp.cuda.using_allocator(self.pool.malloc):
            shared = Recording(keep_activations)
            recordable(fn, shared, *args)  # compiles kernels, makes library handles and fills the pool: a recording must do none of it
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                out = recordable(fn, shared, *args)
            except BaseException as error:
                with suppress(RuntimeError):  # the recording has failed already; ending it may raise that again
                    self.stream.end_capture()
                if isinstance(error, RuntimeError):
                    raise DeviceError(
                        f"capture: the function cannot be recorded ({error}), expected kernels only because the host must "
                        "not wait for the GPU inside; take float(...), printing, copies to NumPy and products by CuPy itself out of it"
                    ) from error
                raise
            self.graph = self.stream.end_capture()
        self.constants = shared.constants  # the graph reads them
        self.outputs, self.spec = tree_flatten(tree_values(out))
        self.last: tuple[int, Any] | None = None  # the stream of the last call, and the event behind it

    def __call__(self, leaves: Sequence[Any]) -> PyTree:
        stream = backend_of(*(x for x in self.inputs if is_on_gpu(x))).xp.cuda.get_current_stream()
        if self.last is not None and self.last[0] != stream.ptr:
            stream.wait_event(self.last[1])  # two calls at once would work in the same memory
        pairs = [(own, given) for own, given in zip(self.inputs, leaves, strict=True) if is_on_gpu(own)]
        CUDA.fill([own for own, _ in pairs], [given for _, given in pairs])
        self.graph.launch()
        copies = iter(CUDA.copies([x for x in self.outputs if is_on_gpu(x)]))
        self.last = stream.ptr, stream.record()
        return tree_unflatten(self.spec, [next(copies) if is_on_gpu(x) else x for x in self.outputs])
