"""The host kernels in plain NumPy, for one episode: loops over filter taps, dense arrays, no algebra saved.

Everything is analytic once the code (winner and active bit of each pooling window) is fixed, so tangents come
from a complex step: f(x + i*h*x_dot).imag / h is exact to the last digits for h = 1e-30.
"""

import numpy as np

STEP = 1e-30


def conv2d(x, w, stride=1, pad_h=1, pad_w=1):
    n, h, wd, _ = x.shape
    r, s, _, k = w.shape
    p, q = (h + 2 * pad_h - r) // stride + 1, (wd + 2 * pad_w - s) // stride + 1
    xp = np.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    y = np.zeros((n, p, q, k), np.result_type(x, w))
    for i in range(r):
        for j in range(s):
            y += xp[:, i : i + (p - 1) * stride + 1 : stride, j : j + (q - 1) * stride + 1 : stride] @ w[i, j]
    return y


def conv2d_dgrad(y_bar, w, shape, stride=1, pad_h=1, pad_w=1):
    n, h, wd, c = shape
    _, p, q, _ = y_bar.shape
    xp = np.zeros((n, h + 2 * pad_h, wd + 2 * pad_w, c), np.result_type(y_bar, w))
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            window = xp[:, i : i + (p - 1) * stride + 1 : stride, j : j + (q - 1) * stride + 1 : stride]
            window += y_bar @ w[i, j].T
    return xp[:, pad_h : pad_h + h, pad_w : pad_w + wd]


def conv2d_wgrad(x, y_bar, r=3, s=3, stride=1, pad_h=1, pad_w=1):
    _, p, q, k = y_bar.shape
    xp = np.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    w_bar = np.zeros((r, s, x.shape[-1], k), np.result_type(x, y_bar))
    for i in range(r):
        for j in range(s):
            window = xp[:, i : i + (p - 1) * stride + 1 : stride, j : j + (q - 1) * stride + 1 : stride]
            w_bar[i, j] = np.einsum("npqc,npqk->ck", window, y_bar)
    return w_bar


def normalize(z, eps):
    mean = z.mean((0, 1, 2))
    rstd = 1 / np.sqrt(((z - mean) ** 2).mean((0, 1, 2)) + eps)
    return mean, rstd, (z - mean) * rstd


def windows(u):
    """(N, H, W, K) -> (4, N, H//2, W//2, K), in the order of the code."""
    h, w = u.shape[1] // 2 * 2, u.shape[2] // 2 * 2
    return np.stack([u[:, dy:h:2, dx:w:2] for dy in (0, 1) for dx in (0, 1)])


def pre_pool(x, w, gamma, beta, eps):
    z = conv2d(x, w)
    return gamma * normalize(z, eps)[2] + beta


def decide(u):
    four = windows(u)
    best = four.max(0)
    return (four.argmax(0) | np.where(best > 0, 4, 0)).astype(np.uint8)


def block(x, w, gamma, beta, code, eps):
    four = windows(pre_pool(x, w, gamma, beta, eps))
    return np.take_along_axis(four, (code & 3)[None].astype(int), 0)[0] * (code >> 2)


def block_vjp(x, w, gamma, y_bar, code, eps):
    """x_bar, w_bar, gamma_bar, beta_bar by the textbook backward pass over full-size arrays."""
    z = conv2d(x, w)
    _, rstd, xhat = normalize(z, eps)
    u_bar = np.zeros(z.shape, np.result_type(z, y_bar))
    h, wd = z.shape[1] // 2 * 2, z.shape[2] // 2 * 2
    for i in range(4):
        u_bar[:, i // 2 : h : 2, i % 2 : wd : 2] = np.where((code & 3 == i) & (code > 3), y_bar, 0)
    xhat_bar = u_bar * gamma
    z_bar = rstd * (xhat_bar - xhat_bar.mean((0, 1, 2)) - xhat * (xhat_bar * xhat).mean((0, 1, 2)))
    gamma_bar, beta_bar = (u_bar * xhat).sum((0, 1, 2)), u_bar.sum((0, 1, 2))
    return conv2d_dgrad(z_bar, w, x.shape), conv2d_wgrad(x, z_bar), gamma_bar, beta_bar


def tangent(f, primals, tangents):
    """The tangents of f's outputs; a tangent of None is zero."""
    steps = [p if d is None else p + 1j * STEP * d for p, d in zip(primals, tangents, strict=True)]
    out = f(*steps)
    return tuple(o.imag / STEP for o in out) if isinstance(out, tuple) else out.imag / STEP


def patch_statistics(x):
    n, h, w, c = x.shape
    xp = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.stack([xp[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], 3).reshape(-1, 9 * c)
    mean = patches.mean(0)
    return mean, (patches - mean).T @ (patches - mean) / len(patches)


def gather_images(images, index, dtype):
    known = (index >= 0) & (index < len(images))
    x = np.full((*index.shape, *images.shape[1:]), np.nan, dtype)
    x[known] = images[index[known]] / dtype(255)
    return x


def sgd_step(w, v, g, lr, momentum, weight_decay, nesterov):
    g = g + weight_decay * w
    v = momentum * v + g
    return w - lr * (g + momentum * v if nesterov else v), v


def adam_step(w, m, s, g, lr, beta1, beta2, eps, t):
    m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g * g
    return w - lr * (m / (1 - beta1 ** (t + 1))) / np.sqrt(s / (1 - beta2 ** (t + 1)) + eps), m, s


def adamw_step(w, m, s, g, lr, beta1, beta2, eps, weight_decay, t):
    after, m, s = adam_step(w, m, s, g, lr, beta1, beta2, eps, t)
    return after - lr * weight_decay * w, m, s


def rmsprop_step(w, s, v, g, lr, decay, eps, momentum):
    s = decay * s + (1 - decay) * g * g
    v = momentum * v + g / np.sqrt(s + eps)
    return w - lr * v, s, v


def adagrad_step(w, s, g, lr, eps):
    s = s + g * g
    return w - lr * g / np.sqrt(s + eps), s


def elementwise_vjp(f, primals, y_bars):
    """Cotangents of the primals of an elementwise f, whose Jacobian is diagonal; of a number, the sum over elements."""
    bars = []
    for i, p in enumerate(primals):
        slopes = tangent(f, primals, [np.ones_like(q) if j == i else None for j, q in enumerate(primals)])
        bar = sum(b * d for b, d in zip(y_bars, slopes, strict=True))
        bars.append(np.sum(bar) if np.ndim(p) == 0 else bar)
    return bars
