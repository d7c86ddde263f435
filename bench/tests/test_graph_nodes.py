"""How many kernels and operations of CuPy the captured meta-steps take, on a pretended GPU that records them at full size."""

import graph_nodes
import pytest
from meta_problems import Sizes
from places import needs_emulator

MOST = {"hyper-representation": 158, "maml": 434}


@needs_emulator
@pytest.mark.parametrize("problem", MOST)
def test_captured_meta_steps_take_no_more_launches_than_before(problem):
    nodes = graph_nodes.recorded(problem, Sizes())
    kernels = [node for node in nodes if node.call]
    assert {node.call for node in kernels} >= {"patch_cov", "conv_bn_relu_pool_value", "linear_cross_entropy_vjp_jvp"}
    assert len(nodes) <= MOST[problem], f"{len(kernels)} kernels and {len(nodes) - len(kernels)} operations"
