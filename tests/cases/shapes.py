"""Views, joints, arrangements, triangles and diagonals, each against NumPy's function of that name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from checks import Case

import hypergrad as hg
from hypergrad.rules import REGISTRY

CASES: list[Case] = []


def same(name: str, *arguments, shape: tuple[int, ...] = (2, 3, 2), part: int | None = None, **options) -> None:
    """The op against NumPy's; of several results one part."""

    def taken(module):
        def f(x):
            out = getattr(module, name)(x, *arguments, **options)
            return out if part is None else out[part]

        return f

    detail = ", ".join(map(str, [*arguments, *options.items()]))
    CASES.append(Case(f"{name}[{list(shape)}, {detail}]", taken(hg), taken(np), (shape,), exact=True))


same("squeeze", shape=(1, 2, 1))
same("squeeze", 0, shape=(1, 2, 1))
same("expand_dims", (0, -1))
same("moveaxis", (0, 1), (-1, 0))
same("swapaxes", 0, 2)
same("rollaxis", 2)
same("ravel")
for _n in (1, 2, 3):
    same(f"atleast_{_n}d", shape=(3,))
same("split", 2, part=1)
same("array_split", [1, 2], 1, part=1)
same("hsplit", 3, part=2)
same("vsplit", 2, part=0)
same("dsplit", 2, part=1)
same("flip", (0, 2))
same("flipud", shape=(2, 3))
same("fliplr", shape=(2, 3))
same("rot90", 1, shape=(2, 3))
same("rot90", 3, axes=(2, 0))
same("roll", (1, -1), (0, 1))
same("tile", (2, 1, 2), shape=(2, 2))
same("repeat", 2, 1)
same("repeat", [1, 0, 2], 1, shape=(2, 3))
same("pad", ((1, 0), (0, 2)), shape=(2, 3))
same("pad", 1, mode="reflect", shape=(2, 3))
same("tril", -1, shape=(3, 3))
same("triu", 1, shape=(2, 3, 3))
same("diagonal", 1, 2, 0, shape=(2, 3, 3))
same("trace", shape=(3, 3, 2))
same("diag", 1, shape=(3,))
same("diag", -1, shape=(3, 2))
same("cumsum", 1)
same("cumsum", shape=(0, 3))
same("diff", 2, 1)
CASES.append(Case("pad[ones]", lambda x: hg.pad(x, 1, constant_values=1.0) * x, lambda x: np.pad(x, 1, constant_values=1) * x, ((1,),)))

for _name, _shapes in (("vstack", ((2,), (2,))), ("hstack", ((2, 1), (2, 2))), ("dstack", ((2,), (2,))), ("column_stack", ((2,), (2, 2)))):
    CASES.append(Case(_name, lambda *xs, n=_name: getattr(hg, n)(xs), lambda *xs, n=_name: getattr(np, n)(xs), _shapes, exact=True))
CASES += [
    Case("append", lambda x, y: hg.append(x, y, 0), lambda x, y: np.append(x, y, 0), ((1, 2), (2, 2)), exact=True),
    Case(
        "astype[there and back]",
        lambda x: hg.astype(REGISTRY["astype"](x, dtype=np.float64) * 2.0, x.dtype) * x,
        lambda x: x * x * 2,
        ((3,),),
    ),
    Case(
        "methods[of shapes]",
        lambda x: x.transpose(1, 0).ravel().repeat(2).squeeze().swapaxes(0, 0).cumsum() + x.take([0]) + x.trace() + x.diagonal().sum(),
        lambda x: x.transpose(1, 0).ravel().repeat(2).squeeze().swapaxes(0, 0).cumsum() + x.take([0]) + x.trace() + x.diagonal().sum(),
        ((2, 3),),
        exact=True,
    ),
]

CASES = [replace(case, composed=not case.name.startswith(("cumsum", "astype"))) for case in CASES]
