"""Convolution and its transposes, pooling, batch normalisation, the fused block, against loops in NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
from checks import Array, Case

import hypergrad as hg
from hypergrad.rules import REGISTRY

CASES: list[Case] = []


def conv_reference(x: Array, w: Array, *, stride: int = 1, pad: tuple[int, int] = (0, 0)) -> Array:
    """y by a loop over the filter's taps; w may have an episode axis, which lines up with x's axis -5."""
    r, s = w.shape[-4:-2]
    wide = np.pad(x, [(0, 0)] * (x.ndim - 3) + [(pad[0], pad[0]), (pad[1], pad[1]), (0, 0)])
    p, q = (wide.shape[-3] - r) // stride + 1, (wide.shape[-2] - s) // stride + 1
    total = None
    for i in range(r):
        for j in range(s):
            patch = wide[..., i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride, :]
            tap = w[..., i, j, :, :]
            share = np.matmul(patch, tap if tap.ndim == 2 else tap[:, None, None])
            total = share if total is None else total + share
    return total


def dgrad_reference(y: Array, w: Array, *, stride: int, pad: tuple[int, int], hw: tuple[int, int]) -> Array:
    """The transpose in x: every output pixel adds its share to the pixels under its window."""
    (p, q), (r, s) = y.shape[-3:-1], w.shape[-4:-2]
    wide = np.zeros((*y.shape[:-3], hw[0] + 2 * pad[0], hw[1] + 2 * pad[1], w.shape[-2]), y.dtype)
    for i in range(r):
        for j in range(s):
            wide[..., i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride, :] += np.matmul(
                y, w[..., i, j, :, :].swapaxes(-1, -2)
            )
    return wide[..., pad[0] : pad[0] + hw[0], pad[1] : pad[1] + hw[1], :]


def wgrad_reference(x: Array, y: Array, *, stride: int, pad: tuple[int, int], rs: tuple[int, int]) -> Array:
    """The transpose in w: every tap is the product of the pixels it meets with the outputs."""
    p, q = y.shape[-3:-1]
    wide = np.pad(x, [(0, 0)] * (x.ndim - 3) + [(pad[0], pad[0]), (pad[1], pad[1]), (0, 0)])
    taps = [
        np.einsum("...npqc,...npqk->...ck", wide[..., i : i + stride * (p - 1) + 1 : stride, j : j + stride * (q - 1) + 1 : stride, :], y)
        for i in range(rs[0])
        for j in range(rs[1])
    ]
    return np.stack(taps, axis=-3).reshape(*taps[0].shape[:-2], *rs, *taps[0].shape[-2:])


def dilated_reference(x: Array, w: Array, d: int) -> Array:
    """A filter with zeros between its taps."""
    wide = np.zeros(((w.shape[0] - 1) * d + 1, (w.shape[1] - 1) * d + 1, *w.shape[2:]), w.dtype)
    wide[::d, ::d] = w
    return conv_reference(x, wide, pad=((wide.shape[0] - 1) // 2, (wide.shape[1] - 1) // 2))


def grouped_reference(x: Array, w: Array) -> Array:
    """Two groups, each with half of the channels and half of the filters."""
    k, c = w.shape[-1] // 2, w.shape[-2]
    parts = [conv_reference(x[..., i * c : (i + 1) * c], w[..., i * k : (i + 1) * k], pad=(1, 1)) for i in range(2)]
    return np.concatenate(parts, -1)


CASES += [
    Case("conv2d[dilation 2]", partial(hg.conv2d, dilation=2), partial(dilated_reference, d=2), ((1, 4, 5, 2), (3, 3, 2, 1)), exact=True),
    Case("conv2d[2 groups]", partial(hg.conv2d, groups=2), grouped_reference, ((1, 3, 4, 4), (3, 3, 2, 6)), exact=True),
]


for _name, _x, _w, _stride, _padding in (
    ("same", (2, 5, 4, 3), (3, 3, 3, 2), 1, "same"),
    ("valid", (1, 5, 5, 2), (3, 2, 2, 3), 1, "valid"),
    ("stride 2", (2, 7, 6, 2), (3, 3, 2, 2), 2, "same"),
    ("stride 3, pad 2", (1, 6, 5, 1), (2, 2, 1, 4), 3, 2),
    ("1x1", (2, 3, 3, 4), (1, 1, 4, 5), 1, "valid"),
    ("1x1, stride 2", (1, 5, 5, 2), (1, 1, 2, 3), 2, "valid"),
    ("5x3", (1, 6, 7, 2), (5, 3, 2, 2), 1, "same"),
    ("one pixel", (1, 1, 1, 1), (3, 3, 1, 1), 1, "same"),
    ("33 channels", (1, 4, 3, 33), (3, 3, 33, 31), 1, "same"),
    ("no image", (0, 4, 4, 2), (3, 3, 2, 3), 1, "same"),
    ("no channel", (2, 4, 4, 0), (3, 3, 0, 2), 1, "same"),
    ("filter = image", (2, 4, 3, 2), (4, 3, 2, 3), 1, "valid"),
    ("shared, 3 episodes", (3, 2, 4, 4, 2), (3, 3, 2, 3), 1, "same"),
    ("per episode", (3, 2, 4, 5, 2), (3, 3, 3, 2, 3), 1, "same"),
    ("per episode, stride 2", (2, 1, 5, 5, 2), (2, 3, 3, 2, 2), 2, 1),
    ("two leading axes", (2, 2, 1, 4, 4, 1), (2, 3, 3, 1, 2), 1, "same"),
):
    _r, _s = _w[-4:-2]
    _pad = ((_r - 1) // 2, (_s - 1) // 2) if _padding == "same" else (0, 0) if _padding == "valid" else (_padding, _padding)
    CASES.append(
        Case(
            f"conv2d[{_name}]",
            partial(hg.conv2d, stride=_stride, padding=_padding),
            partial(conv_reference, stride=_stride, pad=_pad),
            (_x, _w),
            exact=True,
        )
    )
for _name, _batch, _hw, _rs, _c, _k, _stride, _pad in (
    ("3x3", (2,), (5, 4), (3, 3), 2, 3, 1, (1, 1)),
    ("stride 2 with a row left over", (1,), (6, 5), (3, 2), 1, 2, 2, (0, 0)),
    ("episodes", (2, 2), (4, 4), (3, 3), 2, 2, 1, (1, 1)),
    ("stride 3", (1,), (8, 8), (2, 2), 2, 1, 3, (1, 1)),
):
    _pq = tuple((_hw[i] + 2 * _pad[i] - _rs[i]) // _stride + 1 for i in (0, 1))
    _attrs = {"stride": _stride, "pad": _pad, "hw": _hw, "rs": _rs}
    _lead, _n = _batch[:-1], _batch[-1]
    CASES += [
        Case(
            f"conv2d_dgrad[{_name}]",
            partial(REGISTRY["conv2d_dgrad"], **_attrs),
            partial(dgrad_reference, stride=_stride, pad=_pad, hw=_hw),
            ((*_lead, _n, *_pq, _k), (*_rs, _c, _k)),
            exact=True,
        ),
        Case(
            f"conv2d_wgrad[{_name}]",
            partial(REGISTRY["conv2d_wgrad"], **_attrs),
            partial(wgrad_reference, stride=_stride, pad=_pad, rs=_rs),
            ((*_lead, _n, *_hw, _c), (*_lead, _n, *_pq, _k)),
            exact=True,
        ),
    ]


def windows(x: Array, size: int = 2) -> Array:
    p, q = x.shape[-3] // size, x.shape[-2] // size
    cut = x[..., : p * size, : q * size, :].reshape(*x.shape[:-3], p, size, q, size, x.shape[-1])
    return np.moveaxis(cut, (-4, -2), (-2, -1)).reshape(*x.shape[:-3], p, q, x.shape[-1], size * size)


def rivals(windowed: Array) -> float:
    """Distance of a window's largest element from its second."""
    ordered = np.sort(windowed, axis=-1)
    return float(np.min(ordered[..., -1] - ordered[..., -2])) if ordered.size and ordered.shape[-1] > 1 else np.inf


def spread(shape: tuple[int, ...], rng: np.random.Generator) -> list[Array]:
    n = int(np.prod(shape))
    return [((rng.permutation(n) - n / 2) * 0.03).reshape(shape)]


for _shape, _size in (
    ((1, 4, 4, 2), 2),
    ((2, 5, 3, 1), 2),
    ((2, 2, 2, 3), 2),
    ((3, 7, 9, 2), 3),
    ((2, 3, 2), 1),
    ((2, 2, 5, 5, 1), 2),
    ((0, 4, 4, 2), 2),
    ((1, 5, 8, 33), 2),
    ((1, 6, 5, 3), 4),
):
    CASES.append(
        Case(
            f"max_pool2d[{list(_shape)}, {_size}]",
            partial(hg.max_pool2d, size=_size),
            lambda x, n=_size: windows(x, n).max(axis=-1),
            (_shape,),
            margin=lambda x, n=_size: rivals(windows(x, n)),
            make=partial(spread, _shape),
        )
    )
    CASES.append(
        Case(
            f"avg_pool2d[{list(_shape)}, {_size}]",
            partial(hg.avg_pool2d, size=_size),
            lambda x, n=_size: windows(x, n).mean(axis=-1),
            (_shape,),
            exact=True,
        )
    )


def norm_reference(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    axes = (-4, -3, -2) if x.ndim > 3 else (-2,)
    wide = [p if p.ndim == 1 else p.reshape(-1, *(1,) * len(axes), p.shape[-1]) for p in (gamma, beta)]
    return wide[0] * (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + x.dtype.type(eps)) + wide[1]


for _shapes, _eps in (
    (((3, 3, 2, 2), (2,), (2,)), 1e-5),
    (((2, 3, 2, 2, 3), (3,), (3,)), 1e-5),
    (((2, 3, 2, 2, 3), (2, 3), (2, 3)), 1e-5),
    (((2, 3, 2, 2, 3), (2, 3), (3,)), 0.1),
    (((1, 2, 2, 1), (1,), (1,)), 1.0),
    (((33, 1, 1, 31), (31,), (31,)), 1e-5),
    (((1, 37, 30, 3), (3,), (3,)), 1e-5),
    (((1, 1, 1, 2), (2,), (2,)), 0.5),
    (((2, 2, 3, 2, 2, 3), (2, 3), (3,)), 0.1),
    (((5, 3), (3,), (3,)), 1e-5),
    (((2, 4, 3), (2, 3), (3,)), 0.1),
):
    CASES.append(Case(f"batch_norm[{_shapes}, eps={_eps}]", partial(hg.batch_norm, eps=_eps), partial(norm_reference, eps=_eps), _shapes))


def running_reference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, share: Array) -> Array:
    """The result in training, and the statistics after it."""
    axes = (-4, -3, -2) if x.ndim > 3 else (-2,)
    count = x.size // x.mean(axis=axes).size
    after = [
        (1 - share) * mean + share * x.mean(axis=axes),
        (1 - share) * var + share * x.var(axis=axes) * x.dtype.type(count / (count - 1)),
    ]
    return np.concatenate([norm_reference(x, gamma, beta).ravel(), *(a.ravel() for a in after)])


def with_running(x: hg.Tensor, gamma: hg.Tensor, beta: hg.Tensor, mean: hg.Tensor, var: hg.Tensor, share: hg.Tensor) -> hg.Tensor:
    y, after = hg.batch_norm(x, gamma, beta, running=(mean, var), momentum=share)
    return hg.concatenate([hg.ravel(y), *map(hg.ravel, after)])


def evaluated(x: Array, gamma: Array, beta: Array, mean: Array, var: Array) -> Array:
    """By the running statistics."""
    wide = [p if p.ndim == 1 else p[:, None, None, None] for p in (gamma, beta, mean, var)]
    return wide[0] * (x - wide[2]) / np.sqrt(wide[3] + x.dtype.type(1e-5)) + wide[1]


for _x, _p in (((3, 2, 2, 2), (2,)), ((5, 3), (3,)), ((2, 2, 2, 1, 3), (2, 3))):
    CASES.append(Case(f"batch_norm[running, {_x}]", with_running, running_reference, (_x, *[_p] * 4, ()), 0.2, 0.9, composed=True))
for _x, _p in (((3, 2, 2, 2), (2,)), ((4, 3), (3,)), ((2, 2, 2, 1, 3), (2, 3))):
    CASES.append(
        Case(
            f"batch_norm[evaluated, {_x}]",
            lambda x, gamma, beta, mean, var: hg.batch_norm(x, gamma, beta, running=(mean, var), training=False)[0],
            evaluated,
            (_x, *[_p] * 4),
            0.2,
            1.5,
            composed=True,
        )
    )


def block_reference(x: Array, w: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    return np.maximum(windows(norm_reference(conv_reference(x, w, pad=(1, 1)), gamma, beta, eps)).max(axis=-1), 0)


def block_margin(x: Array, w: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> float:
    """Distance of the pooled values from 0 and of active windows' largest elements from their rivals."""
    u = windows(norm_reference(conv_reference(x, w, pad=(1, 1)), gamma, beta, eps))
    ordered = np.sort(u, axis=-1)
    top, second = ordered[..., -1], ordered[..., -2]
    return float(min(np.min(np.abs(top)), np.min(np.where(top > 0, top - second, np.inf), initial=np.inf)))


for _name, _shapes, _eps in (
    ("2x2", ((2, 2, 2, 2), (3, 3, 2, 2), (2,), (2,)), 0.1),
    ("5x3", ((1, 5, 3, 1), (3, 3, 1, 2), (2,), (2,)), 0.1),
    ("episodes", ((2, 1, 2, 3, 5), (2, 3, 3, 5, 1), (2, 1), (1,)), 0.1),
):
    CASES.append(
        Case(
            f"conv_bn_relu_pool[{_name}]",
            partial(hg.conv_bn_relu_pool, eps=_eps),
            partial(block_reference, eps=_eps),
            _shapes,
            margin=partial(block_margin, eps=_eps),
        )
    )
_images = np.random.default_rng(3).uniform(-1, 1, (2, 2, 5, 4, 3)).astype(np.float32)
for _name, _x, _shapes in (
    ("first", _images, ((3, 3, 3, 2), (2,), (2,))),
    ("first, per episode", _images, ((2, 3, 3, 3, 1), (2, 1), (2, 1))),
    ("first, one image", _images[0, :1, :, :, :1], ((3, 3, 1, 3), (3,), (3,))),
):
    CASES.append(
        Case(
            f"conv_bn_relu_pool[{_name}]",
            lambda w, gamma, beta, x=_x: hg.conv_bn_relu_pool(x.astype(w.dtype), w, gamma, beta, eps=0.1),
            lambda w, gamma, beta, x=_x: block_reference(x.astype(w.dtype), w, gamma, beta, 0.1),
            _shapes,
            margin=lambda w, gamma, beta, x=_x: block_margin(x.astype(w.dtype), w, gamma, beta, 0.1),
        )
    )


def sequences(x: Array, w: Array, stride: int, pad: int) -> Array:
    wide = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(pad, pad), (0, 0)])
    return conv_reference(wide[..., None, :, :], w[..., None, :, :, :], stride=stride)[..., 0, :, :]


CASES += [
    Case("conv1d[same]", hg.conv1d, partial(sequences, stride=1, pad=1), ((2, 5, 2), (3, 2, 3)), exact=True),
    Case("conv1d[stride 2, pad 1]", partial(hg.conv1d, stride=2, padding=1), partial(sequences, stride=2, pad=1), ((2, 1, 5, 2), (2, 2, 1)),
         exact=True),
    Case("conv_transpose2d[same]", hg.conv_transpose2d, partial(dgrad_reference, stride=1, pad=(1, 1), hw=(3, 4)),
         ((2, 3, 4, 2), (3, 3, 2, 2)), exact=True),
    Case("conv_transpose2d[stride 2]", partial(hg.conv_transpose2d, stride=2, padding="valid"),
         partial(dgrad_reference, stride=2, pad=(0, 0), hw=(4, 6)), ((2, 1, 2, 3, 2), (2, 2, 3, 2)), exact=True),
]  # fmt: skip
