"""3x3 convolutions with stride 1 by Winograd's algorithm (Lavin and Gray 2015, arXiv:1509.09308).

A map is cut into overlapping tiles, and tiles and kernel are transformed, so that m x m outputs of a tile take
(m + 2)^2 products instead of 9 m^2. Each product of the algorithm is one matrix product over all tiles.
Shapes: B batch, H W input, h w output, C channels in, F channels out.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from affect_jax.ops.padding import Pixels, pad

VERY_MANY_CHANNELS = 128
"""Smallest number of channels in or out for which larger tiles than those of F(2x2, 3x3) are faster, if they fit."""
SINGLE_CORE_CHANNELS = 64
"""Largest number of channels in and out for which products of the gradient by the kernel use one core only."""


class TileForm(NamedTuple):
    """The algorithm F(m x m, 3x3): m x m outputs of a tile x and a 3x3 kernel k are A'[(G k G') * (B' x B)]A.

    Lavin and Gray, sections 4.1 and 4.3. The number of products per tile is (m + 2)^2 instead of 9 m^2.
    """

    outputs: int
    """m"""
    of_input: tuple[tuple[float, ...], ...]
    """B' [m + 2, m + 2]"""
    of_kernel: tuple[tuple[float, ...], ...]
    """G [m + 2, 3]"""
    of_output: tuple[tuple[float, ...], ...]
    """A' [m, m + 2]"""


F2 = TileForm(
    2,
    ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    ((1, 1, 1, 0), (0, 1, -1, -1)),
)
F3 = TileForm(
    3,
    ((2, -1, -2, 1, 0), (0, -2, -1, 1, 0), (0, 2, -3, 1, 0), (0, -1, 0, 1, 0), (0, 2, -1, -2, 1)),
    ((1 / 2, 0, 0), (-1 / 2, -1 / 2, -1 / 2), (-1 / 6, 1 / 6, -1 / 6), (1 / 6, 1 / 3, 2 / 3), (0, 0, 1)),
    ((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 1)),
)
F4 = TileForm(
    4,
    (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)


def winograd(x: jax.Array, kernel: jax.Array, padding: Pixels) -> jax.Array:
    """Convolve x [B, H, W, C] with kernel [3, 3, C, F]: [B, h, w, F]; `padding` is 0 to 2 on each side."""
    size = _output_size(x, padding)
    form = tile_form(kernel, size)
    tiles = _tiles(form.of_input, _padded_blocks(form, x, padding), (0, 0), size)
    return _convolve_tiles(form, tiles, kernel, 0, size)


def winograd_gradients(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Pixels
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of `winograd` by x and by the kernel from the gradient [B, h, w, F] by its outputs.

    The first is the convolution with the rotated kernel, the second is made of products of the tiles.
    """
    size, x_size = gradient.shape[1:3], x.shape[1:3]
    form = tile_form(kernel, size)
    # Both gradients read one padded copy. From the array itself, XLA would compute its last layers again for each tile.
    # It is padded as in `winograd`, so that the transforms of maps of one shape are compiled once for both.
    before = tuple(2 - low for low, _ in padding)
    number = [-(-max(sizes) // form.outputs) + 1 for sizes in zip(size, x_size, strict=True)]
    blocks = _blocks(form, gradient, before, number)
    tiles = _tiles(form.of_input, blocks, (0, 0), x_size)
    by_x = _convolve_tiles(form, tiles, jnp.flip(kernel, (0, 1)), 1, x_size)
    x_blocks = _padded_blocks(form, x, padding)
    if max(kernel.shape[2:]) <= SINGLE_CORE_CHANNELS:
        (h, w), (top, left) = size, before
        x_copy = _pixels(x_blocks)[:, : h + 2, : w + 2]
        gradient_copy = _pixels(blocks)[:, top : h + top, left : w + left]
        return by_x, _gradient_by_kernel(x_copy, kernel, gradient_copy)
    input_tiles = _tiles(form.of_input, x_blocks, (0, 0), size)
    output_tiles = _tiles(_transposed(form.of_output), blocks, before, size)
    pairs = zip(input_tiles, output_tiles, strict=True)
    products = [[_pixel_product(*pair) for pair in zip(*rows, strict=True)] for rows in pairs]
    by_kernel = _combine_stacked(_transposed(form.of_kernel), products, (0, 0))
    return by_x, by_kernel.astype(kernel.dtype)


def tile_form(kernel: jax.Array, size: Sequence[int]) -> TileForm:
    """Return the fastest form for a kernel [3, 3, C, F] and `size` outputs (h, w): in bfloat16 F2, the most exact."""
    if max(kernel.shape[2:]) >= VERY_MANY_CHANNELS and kernel.dtype == jnp.float32:
        for form in (F4, F3):
            if all(-n % form.outputs <= n / 8 for n in size):  # few outputs of the tiles are outside of the map
                return form
    return F2


def _gradient_by_kernel(x, kernel, gradient):
    """Return XLA's gradient by the kernel [3, 3, C, F] of the convolution of a padded x."""
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = partial(lax.conv_general_dilated, x, window_strides=(1, 1), padding="VALID", dimension_numbers=numbers)
    return jax.vjp(convolve, kernel)[1](gradient)[0]


def _convolve_tiles(form, tiles, kernel, channel_axis, size):
    """Return the `size` first pixels of tiles * kernel [3, 3, C, F], or [3, 3, F, C] if the channel axis is 1."""
    pairs = zip(tiles, _transformed_kernel(form, kernel), strict=True)
    channels = (((3,), (channel_axis,)), ((), ()))
    products = [[lax.dot_general(*pair, channels) for pair in zip(*row, strict=True)] for row in pairs]
    return _pixels(_combine_stacked(form.of_output, products, (2, 3)))[:, : size[0], : size[1]]


def _transformed_kernel(form, kernel):
    """Return G k G' of kernel [3, 3, C, F] as a grid of arrays [C, F].

    It is one matrix product, because XLA takes long to compile a weighted sum for each entry.
    """
    side = form.outputs + 2
    matrix = jnp.asarray(np.kron(form.of_kernel, form.of_kernel), kernel.dtype)
    entries = (matrix @ kernel.reshape(9, -1)).reshape(side, side, *kernel.shape[2:])
    return [[entries[i, j] for j in range(side)] for i in range(side)]


def _pixel_product(x, y):
    """Sum x [B, h, w, C] times y [B, h, w, F] over all pixels: [C, F]. Flat, or XLA on CPU would transpose both."""
    flat = [array.reshape(-1, array.shape[-1]) for array in (x, y)]
    return lax.dot_general(*flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnums=(0, 2, 3))  # traced once for all maps of the same shape
def _tiles(matrix, blocks, first, size):
    """Return matrix @ tile @ matrix.T for the tiles of a map of `size` outputs: a grid of [B, down, across, C].

    The first tile begins at pixel `first` of the blocks; the next begins as many pixels further as a block has.
    """
    (top, left), side, m = first, len(matrix[0]), blocks.shape[2]
    down, across = (-(-n // m) for n in size)
    rows = _weighted_sums(matrix, [blocks[:, i // m : i // m + down, i % m] for i in range(top, top + side)])
    columns = range(left, left + side)
    return [_weighted_sums(matrix, [row[:, :, j // m : j // m + across, j % m] for j in columns]) for row in rows]


def _combine_stacked(matrix, grid, axes):
    """Return matrix @ grid @ matrix.T of a grid of arrays in one array, with its rows and columns on two new axes."""
    columns = [_weighted_sums(matrix, column) for column in zip(*grid, strict=True)]
    rows = [jnp.stack(_weighted_sums(matrix, row), axes[1]) for row in zip(*columns, strict=True)]
    return jnp.stack(rows, axes[0])


def _padded_blocks(form, x, padding):
    """Return the padded x as blocks, for the tiles of its convolution."""
    number = [-(-n // form.outputs) + 1 for n in _output_size(x, padding)]
    return _blocks(form, x, [low for low, _ in padding], number)


def _blocks(form, x, before, number):
    """Return x [B, H, W, C] in blocks of m x m pixels, [B, down, m, across, m, C]; `before` zeros precede each axis."""
    m = form.outputs
    x = pad(x, [(low, m * n - low - pixels) for low, n, pixels in zip(before, number, x.shape[1:3], strict=True)])
    return x.reshape(x.shape[0], number[0], m, number[1], m, x.shape[3])


def _pixels(blocks):
    """Return blocks [B, down, m, across, m, C] as a map [B, m down, m across, C]."""
    batch, down, m, across, _, channels = blocks.shape
    return blocks.reshape(batch, m * down, m * across, channels)


def _output_size(x, padding):
    """Return height and width of a 3x3 convolution of x with stride 1."""
    return tuple(size + low + high - 2 for size, (low, high) in zip(x.shape[1:3], padding, strict=True))


def _transposed(matrix):
    return tuple(zip(*matrix, strict=True))


def _weighted_sums(matrix, parts):
    """Return matrix @ parts for parts that are arrays."""
    return [
        sum(part if weight == 1 else weight * part for weight, part in zip(weights, parts, strict=True) if weight)
        for weights in matrix
    ]
