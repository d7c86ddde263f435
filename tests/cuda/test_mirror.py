"""The mirror by which kernel tests reach a GPU, here between two pieces of host memory."""

import numpy as np
import pytest
import test_kernels as suite
from mirror import RIM, Mirror

from hypergrad.backends.host import HOST


def view(memory, offset, a):
    return np.ndarray(a.shape, a.dtype, memory, offset, a.strides)


@pytest.fixture
def mirror(monkeypatch):
    made = Mirror(HOST.run, np.copy, np.copy, view)
    monkeypatch.setattr(suite, "HOST", made)
    return made


@pytest.mark.parametrize("sizes", [(3, 2, 7, 7, 5, 33), (2, 3, 2, 3, 3, 5)], ids=str)
def test_kernels_run_through_it(mirror, sizes):
    suite.test_block_rungs(sizes, np.float32)
    suite.test_batch_axes_may_have_any_stride()
    suite.test_empty_sums_are_zero()


def test_writes_beyond_an_output_are_found(mirror):
    def overrun(name, y):
        y.base[RIM + y.nbytes] = 1
        return {"y": y}

    broken = Mirror(overrun, np.copy, np.copy, view)
    with pytest.raises(AssertionError, match="some_kernel wrote beyond an output"):
        broken.run("some_kernel", y=np.ones(3))


def test_only_outputs_change_and_gaps_keep_their_bytes():
    def add(name, x, y):
        y[...] = x + 1
        x[...] = 0
        return {"y": y}

    whole = np.arange(12.0)
    a, out = np.arange(6.0), whole[::-2]
    assert Mirror(add, np.copy, np.copy, view).run("add", x=a, y=out)["y"] is out
    assert (a == np.arange(6.0)).all()
    assert (whole[1::2] == [6, 5, 4, 3, 2, 1]).all() and (whole[::2] == np.arange(0, 12, 2)).all()
