"""Temporary: the kernel helper replaces this file."""
from __future__ import annotations
from typing import Any
import numpy as np
Array = Any
class Backend:
    name = "host"; xp: Any = np
    def empty(self, shape: Any, dtype: Any) -> Array: return np.empty(shape, dtype)
    def run(self, name: str, inputs: Any, outputs: Any, **attrs: Any) -> None:
        from hypergrad import _host
        _host.run(name, [*inputs, *outputs], attrs, 0)
_b = Backend()
def backend_of(*arrays: Any) -> Backend: return _b
def as_array(x: Any) -> Array: return np.asarray(x)
