"""hypergrad: differentiate through training.

Hypergradients of ``min over lambda of E(s_T, lambda)``, where s_t are the states of an optimiser: by reverse mode over a
checkpointed trajectory or by forward mode over tangents, on NumPy and CuPy arrays, with fused kernels.
"""

from typing import TYPE_CHECKING

from . import startup, threads  # noqa: F401  before all that takes time

# isort: split
from . import constraints, errors, ops, parallel
from .backends.host import release_memory
from .batching import vmap
from .bilevel import Bilevel, HyperGradient, Stats, full_batch
from .capture import capture
from .checkpointing import checkpoint
from .clipping import clip_by_norm, clip_by_value
from .errors import HypergradError
from .jacobians import hessian, jacobian
from .learned import LSTMOptimizer, lstm_params
from .ops import *  # noqa: F403
from .optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, schedule
from .passes.accumulate import accumulate
from .passes.drmad import drmad
from .passes.finite_differences import finite_differences
from .passes.forward import forward
from .passes.hoag import Hoag, hoag
from .passes.implicit import implicit
from .passes.online import Online, online
from .passes.reverse import reverse
from .passes.scan import scan
from .passes.single_loop import SingleLoop, saba, soba
from .passes.solvers import CG, FixedPoint, Neumann, NormalCG, Nystrom
from .passes.t1t2 import t1t2
from .passes.unroll import unroll
from .plan import Plan, plan
from .profiling import Profile, profile
from .rules import fusion, precision
from .tape import Tensor
from .transforms import grad, hvp, jvp, stop_gradient, value_and_grad, vjp

__version__ = "0.1.0"

__all__ = [
    "CG",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Bilevel",
    "FixedPoint",
    "Hoag",
    "HyperGradient",
    "HypergradError",
    "LSTMOptimizer",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "Online",
    "Optimizer",
    "Plan",
    "Profile",
    "RMSprop",
    "SingleLoop",
    "Stats",
    "Tensor",
    "accumulate",
    "capture",
    "checkpoint",
    "clip_by_norm",
    "clip_by_value",
    "constraints",
    "drmad",
    "errors",
    "finite_differences",
    "forward",
    "full_batch",
    "fusion",
    "grad",
    "hessian",
    "hoag",
    "hvp",
    "implicit",
    "jacobian",
    "jvp",
    "lstm_params",
    "online",
    "parallel",
    "plan",
    "precision",
    "profile",
    "release_memory",
    "reverse",
    "saba",
    "scan",
    "schedule",
    "soba",
    "stop_gradient",
    "t1t2",
    "unroll",
    "value_and_grad",
    "vjp",
    "vmap",
]
if not TYPE_CHECKING:  # type checkers have the ops from ops/__init__.py
    __all__ += ops.__all__
