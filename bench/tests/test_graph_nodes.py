"""How many kernels and operations of CuPy the captured meta-steps take, on a pretended GPU that records them at full size."""

import json

import cuda_model
import graph_nodes
import pytest
from meta_problems import Sizes
from places import needs_emulator

MOST = {"hyper-representation": 60, "maml": 315}
IDLE = {"hyper-representation": 0.15e-3, "maml": 1.45e-3}  # seconds that the model predicts for kernels that fill no large GPU
HEAD = {"hyper-representation": "linear_head_descent_vjp", "maml": "linear_cross_entropy_vjp_jvp"}  # whose second order it has


@needs_emulator
@pytest.mark.parametrize("problem", MOST)
def test_captured_meta_steps_take_no_more_launches_than_before(problem):
    nodes = graph_nodes.recorded(problem, Sizes())
    kernels = [node for node in nodes if node.call]
    assert {node.call for node in kernels} >= {"patch_cov", "conv_bn_relu_pool_value", HEAD[problem]}
    assert len(nodes) <= MOST[problem], f"{len(kernels)} kernels and {len(nodes) - len(kernels)} operations"


@needs_emulator
def test_the_table_of_the_model_is_of_these_kernels():
    """Its launches are those of today; after a change of a kernel or of the model, run bench/cuda_model.py --update."""
    assert cuda_model.predictions("H200") == json.loads(cuda_model.TABLE.read_text())["H200"]


@needs_emulator
@pytest.mark.parametrize("problem", MOST)
def test_kernels_that_take_long_leave_no_multiprocessor_idle_but_those_known(problem):
    known = {
        "conv_statistics",
        "conv_moments",
        "conv_cotangent",
        "wgrad3x3",
        "winograd_wgrad3x3",
        "reduce_winners",
        "close_first",
        "merge_parts",
    }
    known |= {"first_statistics", "combine_filters", "head_value", "head_jvp", "descend_head", "pull_head"}
    rows = cuda_model.idle(cuda_model.rows_of(problem, "H200"))
    assert {row["kernel"] for row in rows} <= known
    assert max(row["seconds"] for row in rows) < 40e-6 and sum(row["count"] * row["seconds"] for row in rows) < IDLE[problem]
