"""The state of the engine: which tapes are open, which of them record, and whether tangents flow.

The state is an immutable object in a context variable. `within` runs a function in another state: it calls the function in a
copy of the context, and the interpreter itself returns to the old one. No Python code has to restore anything. So an
exception, or a KeyboardInterrupt at any instruction, leaves the state as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple, ParamSpec, TypeVar

from .backends.host import keep_memory
from .errors import DifferentiationError

P = ParamSpec("P")
R = TypeVar("R")

MOST_TAPES = 64  # open at once in one thread


class Jvp:
    """One level of tangents.

    Attributes:
        levels: bit mask of the tapes that recorded when the tangents were seeded. Only these may record the tangents.
        carriers: nodes whose outputs have tangents that are on a tape themselves.
        open: whether the jvp is still running.
    """

    __slots__ = ("levels", "carriers", "open")

    def __init__(self, levels: int) -> None:
        self.levels, self.open = levels, True
        self.carriers: list[Any] = []


class State(NamedTuple):
    """The engine's state at one point of the program.

    Attributes:
        tapes: the open tapes, outermost first.
        open: bit mask of them.
        active: bit mask of those that record.
        paused: bit mask of those that are set aside while a run computes; nothing inside the run may depend on them.
        jvp: the jvp that is running, or None.
        thread: the bit range of the thread that opened the tapes and the jvp.

    The methods do not call `_replace`. Like every tuple that Python makes from an iterator, its result is not taken from the interpreter's
    list of free tuples, but goes there when it is dropped: up to 2,000 of each length.
    """

    tapes: tuple[Any, ...] = ()
    open: int = 0
    active: int = 0
    paused: int = 0
    jvp: Jvp | None = None
    thread: _Share | None = None

    def with_tape(self, tape: Any) -> State:
        """The state with that tape open. It assigns the tape its bit."""
        share = _thread.share
        if len(self.tapes) == MOST_TAPES:
            raise DifferentiationError(
                f"grad: called inside {MOST_TAPES} others, expected fewer because each needs a bit of its own; "
                "take the gradients one after the other"
            )
        tape.bit = 1 << (share.number * MOST_TAPES + len(self.tapes))
        return State((*self.tapes, tape), self.open | tape.bit, self.active | tape.bit, self.paused, self.jvp, share)

    def recording(self, mask: int) -> State:
        """The same state, but only the tapes in `mask` record."""
        return self if mask == self.active else State(self.tapes, self.open, mask, self.paused, self.jvp, self.thread)

    def aside(self) -> State:
        """The same state, but no tape records, and Tensors that a tape follows are refused."""
        return State(self.tapes, self.open, 0, self.paused | self.active, self.jvp, self.thread)

    def with_tangents(self) -> State:
        """The state inside a jvp."""
        if self.jvp is not None:
            raise DifferentiationError(
                "jvp: called inside another jvp, expected none because a Tensor carries one level of tangents; "
                "use hg.grad for one of the two levels, or hg.hvp"
            )
        return State(self.tapes, self.open, self.active, self.paused, Jvp(self.active), _thread.share)


class _Share:
    """A thread's own range of bits, so that tapes of two threads never share a bit. It is free again when the thread ends."""

    taken: set[int] = set()
    lock = threading.Lock()

    def __init__(self) -> None:
        with self.lock:
            self.number = next(i for i in range(len(self.taken) + 1) if i not in self.taken)
            self.taken.add(self.number)

    def __del__(self) -> None:
        self.taken.discard(self.number)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.share = _Share()


_thread = _Thread()
IDLE = State()
_STATE: ContextVar[State] = ContextVar("state", default=IDLE)
current = _STATE.get  # () -> State


def own_thread(state: State) -> bool:
    """Whether the state belongs to the calling thread, or to none."""
    return state.thread is None or state.thread is _thread.share


def within(state: State, f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """f(*args, **kwargs), run in that state."""
    return copy_context().run(_enter, state, f, args, kwargs)


def _enter(state: State, f: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    _STATE.set(state)
    keep_memory()  # ends with the copy of the context
    return f(*args, **kwargs)


def set_aside(f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """f(*args, **kwargs) with nothing recorded. Tensors that a tape follows are refused inside; tangents still flow."""
    return within(current().aside(), f, *args, **kwargs)


def is_idle() -> bool:
    """Whether no transform is at work: nothing records and no tangents flow."""
    state = current()
    return not state.active and state.jvp is None
