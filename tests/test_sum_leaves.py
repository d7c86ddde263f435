"""The kernel that sums, adds and copies the leaves of trees in one launch, called as the backend calls it, against NumPy."""

import numpy as np
import pytest
import test_kernels as suite

pytestmark = pytest.mark.backends("host", "emulated", "gpu")

ODD = [(3, 2), (), (1,), (0,), (31,), (2, 0, 3), (33,), (1023,), (4, 1, 65), (2, 2, 1, 2, 2)]
LEAVES = {"odd": ODD, "many": [(i % 5,) for i in range(173)], "none": [], "large": [(5,), (17001,), (0,), (8193,)]}


def drawn(leaves, dtype, rows):
    rng = np.random.default_rng(0)
    return [np.asarray(rng.standard_normal((rows, *shape)), dtype) for shape in leaves]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 1), (1, 3), (0, 2), (5, 2)], ids=str)
@pytest.mark.parametrize("leaves", LEAVES)
def test_sums_of_leaves(leaves, sizes, dtype, backend):
    rows, copies = sizes
    xs, ys = drawn(LEAVES[leaves], dtype, rows), drawn(LEAVES[leaves], dtype, 1)
    ys = [None if i % 3 == 2 else y[0, ...] for i, y in enumerate(ys)]

    def run():
        return suite.call("sum_leaves", x=xs, y=ys, Q=copies, **({} if xs else {"P": rows}))["out"]

    for x, y, out in zip(xs, ys, backend.same_bits(run), strict=True):
        total = x.astype(np.float64).sum(0).astype(dtype)
        np.testing.assert_array_equal(out, np.broadcast_to(total if y is None else total + y, out.shape))
        assert out.shape == (copies, *x.shape[1:])
