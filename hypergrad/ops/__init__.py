"""Differentiable ops with NumPy's names, and those a convolutional network needs.

Every file of this folder is imported, and the ops in its `__all__` are exported: a new op is a new file.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules
from typing import TYPE_CHECKING

from ..rules import REGISTRY as _REGISTRY
from . import numpy_protocol as _numpy_protocol

if TYPE_CHECKING:  # which read no loop: the same names, from each file
    from .activations import *  # noqa: F403
    from .arrangement import *  # noqa: F403
    from .arrays import *  # noqa: F403
    from .block import *  # noqa: F403
    from .bounds import *  # noqa: F403
    from .constants import *  # noqa: F403
    from .conv import *  # noqa: F403
    from .decompositions import *  # noqa: F403
    from .elementwise import *  # noqa: F403
    from .head import *  # noqa: F403
    from .head_descent import *  # noqa: F403
    from .initialisers import *  # noqa: F403
    from .layers import *  # noqa: F403
    from .linalg import *  # noqa: F403
    from .losses import *  # noqa: F403
    from .matrices import *  # noqa: F403
    from .norm import *  # noqa: F403
    from .pooling import *  # noqa: F403
    from .powers import *  # noqa: F403
    from .products import *  # noqa: F403
    from .reductions import *  # noqa: F403
    from .shapes import *  # noqa: F403
    from .sorting import *  # noqa: F403
    from .special import *  # noqa: F403
    from .statistics import *  # noqa: F403
    from .systems import *  # noqa: F403
    from .trigonometry import *  # noqa: F403
else:
    _ops = {}
    for _module in _iter_modules(__path__):  # noqa: F405
        _found = _import_module(f"{__name__}.{_module.name}")
        _ops.update({name: getattr(_found, name) for name in getattr(_found, "__all__", ())})
    globals().update(_ops)
    __all__ = sorted(_ops)

    for _op in _REGISTRY.values():  # all that are declared by now are the package's own, which its tests prove
        _op.proven = True
    _numpy_protocol.serve(_ops)
