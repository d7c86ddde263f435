"""Where the time of replayed steps goes: seconds, bytes and flop of every instruction."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from time import perf_counter
from typing import Any

Label = tuple[str, str, int, int]


@dataclass(frozen=True)
class Row:
    """What one kind of instruction took.

    Attributes:
        name: of the function or kernel.
        shape: of its result.
        calls: how often it ran.
        seconds: in all calls.
        bytes: read and written in all calls, each array once a call.
        flop: floating-point operations in all calls; a matrix product has 2MNK, every other instruction one for each element it writes.
    """

    name: str
    shape: str
    calls: int
    seconds: float
    bytes: int
    flop: int


class Profile:
    """The instructions that ran in a `profile` context. `print` shows them as a table.

    Example:
        >>> print(hg.Profile())
        profile: no step was replayed; `stats.program` of a pass says why
    """

    def __init__(self) -> None:
        self._found: dict[Label, list[float]] = {}
        self._token: Token[Profile | None] | None = None

    def run(self, label: Label, call: Callable[[], Any]) -> None:
        """Calls an instruction, (name, shape, bytes, flop), and counts it."""
        start = perf_counter()
        call()
        found = self._found.setdefault(label, [0, 0.0])
        found[0] += 1
        found[1] += perf_counter() - start

    @property
    def rows(self) -> list[Row]:
        """One for each kind of instruction, the most seconds first."""
        rows = [
            Row(name, shape, int(calls), seconds, int(calls) * size, int(calls) * flop)
            for (name, shape, size, flop), (calls, seconds) in self._found.items()
        ]
        return sorted(rows, key=lambda row: -row.seconds)

    def __str__(self) -> str:
        rows = self.rows
        if not rows:
            return "profile: no step was replayed; `stats.program` of a pass says why"
        total = sum(row.seconds for row in rows)
        lines = [f"{'instruction':42} {'result':>18} {'calls':>8} {'ms':>10} {'%':>6} {'GB/s':>7} {'GF/s':>7}"]
        for row in rows:
            rate = 1e9 * row.seconds or 1.0
            lines.append(
                f"{row.name[:42]:42} {row.shape[:18]:>18} {row.calls:8d} {1e3 * row.seconds:10.2f} {100 * row.seconds / total:6.1f} "
                f"{row.bytes / rate:7.2f} {row.flop / rate:7.2f}"
            )
        lines.append(f"{'in all':42} {'':18} {sum(row.calls for row in rows):8d} {1e3 * total:10.2f}")
        return "\n".join(lines)

    def __enter__(self) -> Profile:
        self._token = _profile.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _profile.reset(self._token)


_profile: ContextVar[Profile | None] = ContextVar("profile", default=None)
current_profile = _profile.get  # () -> Profile | None


def profile() -> Profile:
    """A context that measures the instructions of every step that is replayed inside it.

    Steps that the engine computes itself are not in it: those of short runs, the first two of each kind, and all of a run whose
    `stats.program` begins with "none".

    Returns: a Profile: `str` gives a table, `rows` the numbers.
    Cost: about 1 us for each instruction.
    Example:
        >>> problem = hg.Bilevel(
        ...     lambda w, h, b: hg.sum((w - h) ** 2), lambda w, h: hg.sum(w**2), lambda h: np.zeros(2), lambda h: hg.SGD(lr=0.1)
        ... )
        >>> with hg.profile() as found:
        ...     result = hg.reverse(problem, np.ones(2), hg.full_batch(None, 20))
        >>> "sgd_step_value" in str(found)
        True
    """
    return Profile()
