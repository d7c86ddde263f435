"""The functions of NumPy that HIPS/autograd differentiates, and what stands for each here; the table is in bench/results.

`python tests/numpy_surface.py` writes the table again. jax.numpy has these functions under the same names, but for real_if_close.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import CASES  # noqa: E402
from numpy_calls import CALLS  # noqa: E402

import hypergrad as hg  # noqa: E402
from hypergrad.errors import DTypeError  # noqa: E402
from hypergrad.ops import numpy_protocol as protocol  # noqa: E402
from hypergrad.tape import Tensor  # noqa: E402

RESULTS = Path(__file__).parents[1] / "bench/results/numpy_surface.md"

# Of its files numpy_vjps.py, numpy_jvps.py, numpy_wrapper.py and linalg.py.
AUTOGRAD = """abs absolute add amax amin angle append arccos arccosh arcsin arcsinh arctan arctan2 arctanh array_split atleast_1d
    atleast_2d atleast_3d broadcast_to clip column_stack concatenate conj conjugate cos cosh cross cumsum deg2rad degrees diag
    diagonal diff divide dot dsplit dstack einsum exp exp2 expand_dims expm1 fabs fliplr flipud fmax fmin full gradient hsplit
    hstack imag inner kron linspace log log10 log1p log2 logaddexp logaddexp2 matmul max maximum mean min minimum mod moveaxis
    multiply nan_to_num negative outer pad partition power prod rad2deg radians ravel real real_if_close reciprocal remainder
    repeat reshape roll rollaxis rot90 select sin sinc sinh sort split sqrt square squeeze stack std subtract sum swapaxes tan
    tanh tensordot tile trace transpose tril triu true_divide var vsplit vstack where linalg.cholesky linalg.det linalg.eig
    linalg.eigh linalg.inv linalg.norm linalg.pinv linalg.slogdet linalg.solve linalg.svd"""


class Row(NamedTuple):
    """A function of the list.

    Attributes:
        name: in numpy, as "linalg.inv".
        ours: what computes it with its derivatives; None where nothing does.
        tests: how many cases its derivatives are checked on, and in how many calls as NumPy's its value.
        remedy: what the error says to do, where nothing computes it.
    """

    name: str
    ours: str | None
    tests: str
    remedy: str


def _numpys(name: str) -> Any:
    head, _, tail = name.partition(".")
    return getattr(np.linalg, tail) if tail else getattr(np, head)


def _refusal(func: Any) -> str:
    """What the error for a function without an op says to do."""
    try:
        Tensor(np.eye(2)).__array_function__(func, (Tensor,), (Tensor(np.eye(2)),), {})
    except DTypeError as error:
        return str(error).partition("; ")[2]
    raise AssertionError(f"{func} was neither served nor refused")


def rows() -> list[Row]:
    """The whole list."""
    cases = Counter(id(getattr(hg, case.name.partition("[")[0], None)) for case in CASES)
    names = {id(getattr(hg, name)): name for name in reversed(hg.ops.__all__)}
    found = []
    for name in AUTOGRAD.split():
        func, tail = _numpys(name), name.rpartition(".")[2]
        op = protocol._served.get(func, getattr(hg, tail, None))
        if op is None:
            found.append(Row(name, None, "", _refusal(func)))
            continue
        own = tail if hasattr(hg, tail) else names.get(id(op))
        calls = CALLS.get(name) or CALLS.get(func.__name__) or CALLS.get(own or "", [])
        tests = _counted(cases[id(getattr(hg, own))] if own else 0, "case") + _counted(len(calls), "call")
        found.append(Row(name, f"hg.{own}" if own else f"np.{name} of a Tensor", ", ".join(tests) or "a test of its own", ""))
    return found


def _counted(n: int, what: str) -> list[str]:
    return [f"{n} {what}{'s' * (n != 1)}"] if n else []


def table() -> str:
    """The list as a table in Markdown."""
    found = rows()
    covered = [row for row in found if row.ours is not None]
    lines = [
        "# NumPy's functions that HIPS/autograd differentiates, and this package's",
        "",
        f"{len(covered)} of {len(found)} are here. Each case is checked in float64 and float32, to second order in every nesting.",
        "Written by `python tests/numpy_surface.py`; a test keeps it up to date.",
        "",
        "| numpy, autograd.numpy, jax.numpy | here | tested by |",
        "|---|---|---|",
        *(f"| {row.name} | {row.ours} | {row.tests} |" for row in covered),
        "",
        "| refused | what the error says |",
        "|---|---|",
        *(f"| {row.name} | {row.remedy} |" for row in found if row.ours is None),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    RESULTS.write_text(table())
