"""Two-dimensional convolutions, NHWC, in the form that is fastest on the device at hand.

On GPU and TPU every convolution is XLA's own. On CPU XLA is slow at some of them, and these take other forms, equal in
value and gradient: 1x1 as a matrix product; depthwise as shifted multiplications; the weight gradient of dense kernels
at stride 1, and with few channels the convolution itself, as matrix products over a few images at a time.
Shapes: B batch, H W input, h w output, C channels in, F channels out, kh kw kernel.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
# What the matrix products of a few images read should stay in the processor's cache.
CHUNK_BYTES = 8 * 2**20
# Up to here XLA's convolution on CPU spends more on gathering the pixels than on multiplying them.
FEW_CHANNELS = 64


def conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int = 1) -> jax.Array:
    """Convolution of x [B, H, W, C] with kernel [kh, kw, C // groups, F] -> [B, h, w, F]; groups is 1 or C (depthwise).

    `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). The form is that of the platform which the
    computation is lowered for. Differentiable in reverse mode only.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv2d(x, kernel, tuple(strides), tuple(map(tuple, padding)), groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(x, kernel, *static):
    forward, _ = _cpu_forms(kernel.shape, *static)
    return lax.platform_dependent(x, kernel, cpu=partial(forward, static), default=partial(_xla, static))


def _conv2d_forward(x, kernel, *static):
    return _conv2d(x, kernel, *static), (x, kernel)


def _conv2d_backward(*static_residuals_gradient):
    *static, (x, kernel), gradient = static_residuals_gradient
    static = tuple(static)
    _, gradients = _cpu_forms(kernel.shape, *static)
    default = partial(_derived_gradients, _xla, static)
    return lax.platform_dependent(x, kernel, gradient, cpu=partial(gradients, static), default=default)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _cpu_forms(kernel_shape, strides, padding, groups):
    """The fastest forms on CPU: of the convolution, and of its gradients by x and by the kernel."""
    kh, kw, group_channels, features = kernel_shape
    if group_channels == 1 and groups == features > 1:
        return _depthwise, _depthwise_gradients
    if groups > 1:
        return _xla, partial(_derived_gradients, _xla)
    if kh == kw == 1 and padding == ((0, 0), (0, 0)):
        return _pointwise, partial(_derived_gradients, _pointwise)
    if strides == (1, 1):
        return (_products if min(group_channels, features) <= FEW_CHANNELS else _xla), _dense_gradients
    return _xla, partial(_derived_gradients, _xla)


def _derived_gradients(form, static, x, kernel, gradient):
    """The gradients of a form as jax differentiates it."""
    return jax.vjp(partial(form, static), x, kernel)[1](gradient)


def _xla(static, x, kernel):
    strides, padding, groups = static
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, feature_group_count=groups
    )


def _pointwise(static, x, kernel):
    (down, right), _, _ = static
    return jnp.dot(x[:, ::down, ::right], kernel[0, 0])


def _products(static, x, kernel):
    """Stride 1: one product of the columns under the kernel with all its rows, [B, H, w, kw C] x [kw C, kh F].

    The kernel's rows are then added up, each from its own rows of the product. This gathers kw, not kh kw, times x.
    """
    _, padding, _ = static
    kh, kw, channels, features = kernel.shape
    weights = kernel.transpose(1, 2, 0, 3).reshape(kw * channels, kh * features)

    def convolve(x):
        products = jnp.dot(_side_by_side(_pad(x, padding), kw, axis=2), weights)
        h = products.shape[1] - kh + 1
        return sum(products[:, i : i + h, :, i * features : (i + 1) * features] for i in range(kh))

    y = lax.map(convolve, *_chunks(kernel, x))
    return y.reshape(x.shape[0], *y.shape[2:])


def _dense_gradients(static, x, kernel, gradient):
    """Stride 1: by x the convolution of the gradient with the turned kernel; by the kernel one product, as above.

    The product pairs the columns of x with the rows of the gradient: [kw C, B H w] x [B H w, kh F].
    """
    _, padding, _ = static
    kh, kw, channels, features = kernel.shape
    turned_padding = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip((kh, kw), padding, strict=True))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    turned_static = ((1, 1), turned_padding, 1)
    forward, _ = _cpu_forms(turned.shape, *turned_static)

    def add_product(total, chunk):
        x, gradient = chunk
        columns = _side_by_side(_pad(x, ((0, 0), padding[1])), kw, axis=2)
        rows = _side_by_side(_pad(gradient, (turned_padding[0], (0, 0))), kh, axis=1)
        return total + jnp.einsum("bhwr,bhwc->rc", rows, columns, preferred_element_type=jnp.float32), None

    zeros = jnp.zeros((kh * features, kw * channels), jnp.float32)
    total, _ = lax.scan(add_product, zeros, _chunks(kernel, x, gradient))
    # The first of the gradient's rows met the last of the kernel's.
    by_kernel = jnp.flip(total.reshape(kh, features, kw, channels).transpose(0, 2, 3, 1), 0)
    return forward(turned_static, gradient, turned), by_kernel.astype(kernel.dtype)


def _depthwise(static, x, kernel):
    strides, padding, _ = static
    taps = _taps(_pad(x, padding), kernel.shape[:2], strides)
    return sum(tap * weight for tap, weight in zip(taps, kernel.reshape(-1, kernel.shape[-1]), strict=True))


def _depthwise_gradients(static, x, kernel, gradient):
    """By x the convolution of the gradient, spread by the strides, with the turned kernel; by the kernel kh kw sums."""
    strides, padding, groups = static
    size = kernel.shape[:2]
    by_kernel = [
        jnp.einsum("bhwc,bhwc->bc", tap, gradient, preferred_element_type=jnp.float32).sum(0)
        for tap in _taps(_pad(x, padding), size, strides)
    ]
    turned_padding = tuple(
        (k - 1 - low, n + low - 1 - (m - 1) * stride)
        for k, n, m, stride, (low, _) in zip(size, x.shape[1:3], gradient.shape[1:3], strides, padding, strict=True)
    )
    spread = _pad(gradient, turned_padding, [stride - 1 for stride in strides])
    by_x = _depthwise(((1, 1), ((0, 0), (0, 0)), groups), spread, jnp.flip(kernel, (0, 1)))
    return by_x, jnp.stack(by_kernel).reshape(kernel.shape).astype(kernel.dtype)


def _pad(x, padding, between=(0, 0)):
    """x with zeros around it and between its pixels; negative padding crops."""
    edges = [(low, high, inside) for (low, high), inside in zip(padding, between, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _taps(x, size, strides):
    """The pixels of the padded x that each position of the kernel meets, [B, h, w, C] each."""
    ends = [n - k + 1 for n, k in zip(x.shape[1:3], size, strict=True)]
    return [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] for i in range(size[0]) for j in range(size[1])
    ]


def _side_by_side(x, count, axis):
    """The `count` shifts of the padded x along an axis, concatenated in the channels."""
    length = x.shape[axis] - count + 1
    return jnp.concatenate([lax.slice_in_dim(x, i, i + length, axis=axis) for i in range(count)], axis=-1)


def _chunks(kernel, *arrays):
    """Arrays [B, ...] as [B / n, n, ...]: n divides B, and CHUNK_BYTES hold the matrices of n images (or n is 1)."""
    kh, kw, channels, features = kernel.shape
    batch, h, w, _ = arrays[0].shape
    image_bytes = h * w * (kw * channels + kh * features) * arrays[0].dtype.itemsize
    n = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * image_bytes <= CHUNK_BYTES))
    return tuple(array.reshape(batch // n, n, *array.shape[1:]) for array in arrays)
