"""Two-dimensional convolutions, NHWC, by the fastest algorithm on the device.

- TPU: XLA's convolution.
- GPU: 1x1 kernels as matrix products, depthwise ones as shifted multiplications, others XLA's. With XLA's
  convolutions and no tuning, a step of MobileNetV2 took 117 ms on an H200 (bfloat16, batch 128); with tuning it had not
  compiled after 65 s.
- CPU: besides these two, few input channels as shifted multiplications, one input channel as a product of patches, and
  3x3 with stride 1 and many channels by Winograd's algorithm. The last would use one core for small arrays, as of one
  image: these are XLA's, or a product of patches.

All are equal in value and gradient up to rounding.
Shapes: B batch, H W input, h w output, C channels in, F channels out, kh kw kernel.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from affect_jax.ops.padding import Pixels, pad
from affect_jax.ops.sums import pixel_sums
from affect_jax.ops.winograd import winograd, winograd_gradients

Padding = str | Pixels

MANY_CHANNELS = 64
"""Smallest number of channels in and out for which Winograd saves more in products than it costs in sums."""
FEW_TAPS = 36
"""Convolutions of an image with up to this number of products per output are shifted multiplications.

XLA fuses them with the next layers.
"""
MAX_PATCH_VALUES = 2**21
"""Convolutions of one channel are products of patches if all patches have at most this number of values.

They are faster in a training step of VGG-FER, as long as the patches stay in the cache.
"""
PATCH_OUTPUTS = 2
"""Outputs of a patch: with more of them, fewer pixels are copied, but more products are with zeros."""
FEW_PRODUCTS = 2**24
"""Largest product of pixels of the batch, channels in and channels out for which XLA is faster than Winograd.

For one face it is 1.2 to 1.7 times as fast.
"""
FEW_PIXELS = 64
"""Convolutions of few products are faster as products of patches if the batch has at most this number of pixels."""


def conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int = 1) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [kh, kw, C // groups, F]: [B, h, w, F]; groups is 1 or C (depthwise).

    `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). The algorithm is chosen for the platform that the
    computation is lowered for. Differentiable in reverse mode only.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    # Winograd's gradients need padding below the kernel's side, and with few channels XLA's gradient by x on CPU is
    # wrong for large padding (jax 0.10.2).
    sides = zip(padding, kernel.shape[:2], strict=True)
    within = tuple((min(low, side - 1), min(high, side - 1)) for (low, high), side in sides)
    surplus = [(low - a, high - b) for (low, high), (a, b) in zip(padding, within, strict=True)]
    return _conv2d(pad(x, surplus) if any(map(any, surplus)) else x, kernel, tuple(strides), within, groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(x, kernel, *static):
    forward, _ = _cpu_forms(x.shape, kernel.shape, *static)
    xla = partial(_xla, static)
    if forward in (_depthwise, _pointwise):
        return lax.platform_dependent(x, kernel, tpu=xla, default=partial(forward, static))
    return lax.platform_dependent(x, kernel, cpu=partial(forward, static), default=xla)


def _conv2d_forward(x, kernel, *static):
    return _conv2d(x, kernel, *static), (x, kernel)


def _conv2d_backward(*static_residuals_gradient):
    *static, (x, kernel), gradient = static_residuals_gradient
    static = tuple(static)
    forward, gradients = _cpu_forms(x.shape, kernel.shape, *static)
    default = partial(_derived_gradients, _xla, static)
    if forward is _depthwise:
        plain = partial(gradients, static, pixel_sums=_plain_sums)
        return lax.platform_dependent(x, kernel, gradient, cpu=partial(gradients, static), tpu=default, default=plain)
    if forward is _pointwise:
        return lax.platform_dependent(x, kernel, gradient, tpu=default, default=partial(gradients, static))
    return lax.platform_dependent(x, kernel, gradient, cpu=partial(gradients, static), default=default)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _cpu_forms(x_shape, kernel_shape, strides, padding, groups):
    """Return the fastest algorithms on CPU for the convolution, and for its gradients by x and by the kernel."""
    kh, kw, group_channels, features = kernel_shape
    if group_channels == 1 and groups == features > 1:
        return _depthwise, _depthwise_gradients
    if groups > 1:
        return _xla, partial(_derived_gradients, _xla)
    if kh == kw == 1 and padding == ((0, 0), (0, 0)):
        return _pointwise, partial(_derived_gradients, _pointwise)
    if group_channels == 1 and _patches_are_few(x_shape, kernel_shape, strides):
        return _patches, partial(_derived_gradients, _patches)
    if group_channels > 1 and kh * kw * group_channels <= FEW_TAPS:
        return _shifted, partial(_derived_gradients, _xla)
    fits_winograd = (kh, kw) == (3, 3) and strides == (1, 1) and min(padding[0] + padding[1]) >= 0
    if fits_winograd and min(group_channels, features) >= MANY_CHANNELS:
        return _form_of_many_channels(math.prod(x_shape[:3]), group_channels, features), _winograd_gradients
    return _xla, partial(_derived_gradients, _xla)


def _form_of_many_channels(pixels, channels, features):
    """Return the fastest algorithm of a 3x3 convolution with stride 1 of so many pixels in all images together."""
    if is_symbolic_dim(pixels) or pixels * channels * features > FEW_PRODUCTS:
        return _winograd
    return _columns if pixels <= FEW_PIXELS else _xla


def _patches_are_few(x_shape, kernel_shape, strides):
    """Return True if a batch of this shape can be convolved by _patches with about MAX_PATCH_VALUES values or less."""
    kh, kw, _, _ = kernel_shape
    down, right = strides
    if is_symbolic_dim(x_shape[0]) or not right <= kw <= (PATCH_OUTPUTS + 1) * right:
        return False
    copies_of_value = kh * (PATCH_OUTPUTS * right + kw - right) / (PATCH_OUTPUTS * down * right)
    return math.prod(x_shape) * copies_of_value <= MAX_PATCH_VALUES


def _derived_gradients(form, static, x, kernel, gradient):
    """Return the gradients of an algorithm, differentiated by jax."""
    return jax.vjp(partial(form, static), x, kernel)[1](gradient)


def _xla(static, x, kernel):
    strides, padding, groups = static
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _pointwise(static, x, kernel):
    (down, right), _, _ = static
    x = x[:, ::down, ::right]
    # flat: otherwise the gradient by the kernel is a product over three axes, for which XLA on CPU transposes both
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:3], -1)


def _patches(static, x, kernel):
    """Convolve by a product of patches, each of which has the pixels of PATCH_OUTPUTS neighbouring outputs.

    A patch has kh rows of PATCH_OUTPUTS * stride + kw - stride pixels. They are copied as whole blocks of pixels, and
    the kernel is repeated with zeros around it, once for each output.
    """
    (down, right), padding, _ = static
    kh, kw, channels, features = kernel.shape
    h, w = (
        (size + low + high - side) // stride + 1
        for size, (low, high), side, stride in zip(x.shape[1:3], padding, (kh, kw), (down, right), strict=True)
    )
    blocks, width = -(-w // PATCH_OUTPUTS), PATCH_OUTPUTS * right
    ends = down * (h - 1) + kh, (blocks + 1) * width
    x = pad(x, [(low, end - low - n) for (low, _), end, n in zip(padding, ends, x.shape[1:3], strict=True)])
    rows = [x[:, i : i + down * (h - 1) + 1 : down].reshape(-1, h, blocks + 1, width * channels) for i in range(kh)]
    overlap = (kw - right) * channels
    patches = jnp.concatenate([part for row in rows for part in (row[:, :, :-1], row[:, :, 1:, :overlap])], axis=3)
    kernels = [
        jnp.pad(kernel, ((0, 0), (right * i, right * (PATCH_OUTPUTS - 1 - i)), (0, 0), (0, 0)))
        for i in range(PATCH_OUTPUTS)
    ]
    weights = jnp.stack(kernels, axis=3).reshape(patches.shape[3], PATCH_OUTPUTS * features)
    y = jnp.dot(patches.reshape(-1, patches.shape[3]), weights)
    return y.reshape(-1, h, blocks * PATCH_OUTPUTS, features)[:, :, :w]


def _columns(static, x, kernel):
    """Convolve by a product of patches, each of which has the pixels of one output."""
    strides, padding, _ = static
    patches = jnp.concatenate(_taps(pad(x, padding), kernel.shape[:2], strides), axis=3)
    y = jnp.dot(patches.reshape(-1, patches.shape[3]), kernel.reshape(-1, kernel.shape[3]))
    return y.reshape(*patches.shape[:3], -1)


def _shifted(static, x, kernel):
    """Convolve by adding the products of each shifted channel of the image with its weights."""
    strides, padding, _ = static
    channels = jnp.split(pad(x, padding), x.shape[-1], axis=-1)
    taps = [tap for channel in channels for tap in _taps(channel, kernel.shape[:2], strides)]
    return _weighted_sum(taps, kernel.transpose(2, 0, 1, 3))


def _winograd(static, x, kernel):
    _, padding, _ = static
    return winograd(x, kernel, padding)


def _winograd_gradients(static, x, kernel, gradient):
    _, padding, _ = static
    return winograd_gradients(x, kernel, gradient, padding)


def _depthwise(static, x, kernel):
    strides, padding, _ = static
    taps = _taps(pad(x, padding), kernel.shape[:2], strides)
    return _weighted_sum(taps, kernel)


def _weighted_sum(taps, weights):
    """Return the sum over N taps [B, h, w, F or 1] times weights [..., F] of N rows, added in float32."""
    rows = weights.astype(jnp.float32).reshape(-1, weights.shape[-1])
    return sum(tap * row for tap, row in zip(taps, rows, strict=True)).astype(taps[0].dtype)


def _plain_sums(*arrays):
    return [array.astype(jnp.float32).sum((0, 1, 2)) for array in arrays]


def _depthwise_gradients(static, x, kernel, gradient, pixel_sums=pixel_sums):
    """Return the gradients by x (convolution of the dilated gradient with the rotated kernel) and by the kernel."""
    strides, padding, groups = static
    size = kernel.shape[:2]
    taps = _taps(pad(x, padding), size, strides)
    by_kernel = jnp.stack(pixel_sums(*(tap.astype(jnp.float32) * gradient for tap in taps)))
    rotated_padding = tuple(
        (k - 1 - low, n + low - 1 - (m - 1) * stride)
        for k, n, m, stride, (low, _) in zip(size, x.shape[1:3], gradient.shape[1:3], strides, padding, strict=True)
    )
    spread = pad(gradient, rotated_padding, [stride - 1 for stride in strides])
    by_x = _depthwise(((1, 1), ((0, 0), (0, 0)), groups), spread, jnp.flip(kernel, (0, 1)))
    return by_x, by_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _taps(x, size, strides):
    """Return the pixels of the padded x at each position of the kernel, [B, h, w, C] each."""
    ends = [n - k + 1 for n, k in zip(x.shape[1:3], size, strict=True)]
    return [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] for i in range(size[0]) for j in range(size[1])
    ]
