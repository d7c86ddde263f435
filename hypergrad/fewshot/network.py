"""The four-block convolutional network of few-shot learning, as functions on a flat dictionary of arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..data.images import check_number
from ..errors import ShapeError
from ..ops import conv_bn_relu_pool, reshape
from ..tape import Tensor


def init_network(
    seed: int,
    in_channels: int,
    filters: int,
    blocks: int = 4,
    dtype: DTypeLike = np.float32,
    last_gamma: float = 1.0,
    last_beta: float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Parameters of `blocks` blocks of [3x3 convolution, batch normalization, ReLU, 2x2 max-pool].

    Filters are drawn uniformly with variance 2 / (fan_in + fan_out); gamma is 1 and beta 0, but for
    the last block where they can be chosen. The convolution has no bias: batch normalization would remove it.

    Args:
        seed: of the random draw; the same seed gives the same bits on every machine.
        in_channels: channels of the images, >= 1.
        filters: channels of every block's output, >= 1.
        blocks: number of blocks, >= 1.
        dtype: float32 or float64.
        last_gamma, last_beta: initial scale and shift of the last block's normalization, so of the features.
    Returns: {"block1.filters": (3, 3, C, K), "block1.gamma": (K,), "block1.beta": (K,), ...}.
    Raises: ArgumentError if a size is smaller than 1.
    Cost: one draw a parameter.
    Source: Vinyals et al. 2016, arXiv:1606.04080 (the network); Glorot & Bengio 2010 (the initial filters).
    """
    for name, size in (("in_channels", in_channels), ("filters", filters), ("blocks", blocks)):
        check_number(f"init_network: {name}", size, 1)
    rng = np.random.default_rng([seed, 0x6E6574])
    params: dict[str, NDArray[Any]] = {}
    channels = in_channels
    for block in range(1, blocks + 1):
        limit = np.sqrt(6.0 / (9 * channels + 9 * filters))
        params[f"block{block}.filters"] = rng.uniform(-limit, limit, (3, 3, channels, filters)).astype(dtype)
        params[f"block{block}.gamma"] = np.full(filters, last_gamma if block == blocks else 1.0, dtype)
        params[f"block{block}.beta"] = np.full(filters, last_beta if block == blocks else 0.0, dtype)
        channels = filters
    return params


def count_blocks(params: Mapping[str, Any]) -> int:
    """Number of blocks in `params`.

    Args: params: of `init_network`, other entries are ignored. Cost: O(1).
    """
    return sum(1 for name in params if name.startswith("block") and name.endswith(".filters"))


def feature_size(height: int, width: int, filters: int, blocks: int = 4) -> int:
    """Components of h(x) for images of `height` x `width`: every block halves both sides, rounding down.

    Args: height, width: of the images; filters, blocks: of the network.
    Returns: the number D of `features`.
    Raises: ShapeError if nothing would be left after the last pooling.
    Cost: O(1).
    """
    if min(height, width) >> blocks < 1:
        raise ShapeError(
            f"features: images have {height}x{width} pixels, expected at least {1 << blocks} a side because each of "
            f"the {blocks} blocks halves them; use larger images or fewer blocks"
        )
    return (height >> blocks) * (width >> blocks) * filters


def features(params: Mapping[str, Any], images: Any) -> Tensor:
    """The representation h(x, params) of every image; each episode is normalized by its own batch statistics.

    Args:
        params: of `init_network`, arrays or Tensors.
        images: (E, N, H, W, C), the dtype of `params`, any range.
    Returns: Tensor (E, N, D), D = filters * floor(H / 2**blocks) * floor(W / 2**blocks).
    Raises: ShapeError if images are not (E, N, H, W, C) or too small to be halved `blocks` times.
    Cost: E*N times 18*H*W*C*K flop for the first block and 18*H*W*K*K/4**b for block b+1 (b = 1, 2, ...).
    """
    if len(images.shape) != 5:
        raise ShapeError(
            f"features: images have shape {tuple(images.shape)}, expected (E, N, H, W, C) because batch statistics "
            "are taken per episode; add a leading episode axis"
        )
    episodes, count, height, width = images.shape[:4]
    blocks = count_blocks(params)
    size = feature_size(height, width, params[f"block{blocks}.gamma"].shape[-1], blocks)
    return reshape(run_blocks(params, images, range(1, blocks + 1)), (episodes, count, size))


def run_blocks(params: Mapping[str, Any], x: Any, blocks: Iterable[int]) -> Any:
    """Some blocks of the network, one after the other.

    Args: params: of `init_network`; x: images or an earlier block's output, (E, N, H, W, C); blocks: their numbers, from 1.
    Returns: (E, N, H', W', K), each side halved by each block. Cost: see `features`.
    """
    for block in blocks:
        x = conv_bn_relu_pool(x, params[f"block{block}.filters"], params[f"block{block}.gamma"], params[f"block{block}.beta"])
    return x
