import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from affect_jax.ops import conv, winograd
from affect_jax.ops.conv import conv2d

EXPLICIT = ((2, 0), (1, 3))
UP_TO_TWO = ((2, 0), (1, 2))
"""Padding for which Winograd's algorithm is used."""


def reference(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def random_case(size, kernel_size, channels, features, groups, batch=6, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *size, channels)).astype(dtype)
    kernel = rng.normal(size=(*kernel_size, channels // groups, features)).astype(dtype)
    return x, kernel


def value_and_gradients(convolve, x, kernel, *static):
    """Return the convolution, and its gradients by x and kernel for a fixed gradient of its value."""

    def compute(x, kernel):
        y, pull_back = jax.vjp(lambda x, kernel: convolve(x, kernel, *static), x, kernel)
        gradient = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
        return y, *pull_back(gradient)

    return jax.jit(compute)(x, kernel)


def assert_equal(ours, reference, tolerance):
    for actual, expected in zip(ours, reference, strict=True):
        assert actual.dtype == expected.dtype
        scale = np.abs(np.asarray(expected, np.float32)).max()
        np.testing.assert_allclose(actual.astype(np.float32), expected.astype(np.float32), atol=tolerance * scale)


MANY = conv.MANY_CHANNELS


@pytest.fixture(autouse=True)
def winograd_for_small_arrays(monkeypatch):
    monkeypatch.setattr(conv, "FEW_PRODUCTS", 0)


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "channels", "features", "groups"),
    [
        ((1, 1), (2, 2), "SAME", 3, 5, 1),
        ((1, 1), (1, 2), EXPLICIT, 3, 5, 1),
        ((3, 3), (1, 1), "SAME", 3, 5, 1),
        ((3, 3), (1, 1), "VALID", MANY, 5, 1),
        ((3, 3), (1, 1), EXPLICIT, 3, MANY, 1),
        ((3, 3), (1, 1), "SAME", MANY, MANY, 1),
        ((3, 3), (1, 1), "VALID", MANY + 1, MANY, 1),
        ((3, 3), (1, 1), UP_TO_TWO, MANY, MANY + 1, 1),
        ((5, 3), (1, 1), "SAME", MANY, MANY, 1),
        ((3, 3), (2, 2), "SAME", 3, 5, 1),
        ((4, 6), (3, 2), EXPLICIT, 4, 5, 1),
        ((4, 6), (3, 2), EXPLICIT, 1, 5, 1),
        ((3, 2), (1, 2), "VALID", 1, 5, 1),
        ((3, 3), (1, 1), "SAME", 1, MANY, 1),
        ((7, 7), (2, 2), ((3, 3), (3, 3)), 3, 5, 1),
        ((3, 3), (1, 1), "SAME", 4, 4, 4),
        ((3, 3), (2, 2), "SAME", 4, 4, 4),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), 4, 4, 4),
        ((5, 3), (2, 1), EXPLICIT, 4, 4, 4),
        ((3, 3), (1, 1), "SAME", 4, 8, 2),
    ],
)
@pytest.mark.parametrize("size", [(8, 12), (11, 7)])
def test_value_and_gradients_equal_xlas(size, kernel_size, strides, padding, channels, features, groups):
    x, kernel = random_case(size, kernel_size, channels, features, groups)
    static = (strides, padding, groups)
    assert_equal(
        value_and_gradients(conv2d, x, kernel, *static), value_and_gradients(reference, x, kernel, *static), 1e-5
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", UP_TO_TWO])
@pytest.mark.parametrize("size", [(8, 12), (11, 7)])
@pytest.mark.parametrize(("form", "tolerance"), [(winograd.F2, 1e-5), (winograd.F3, 2e-5), (winograd.F4, 5e-5)])
def test_all_forms_of_winograd_equal_xla(monkeypatch, form, tolerance, size, padding):
    monkeypatch.setattr(winograd, "tile_form", lambda kernel, size: form)
    x, kernel = random_case(size, (3, 3), MANY, MANY + 1, 1)
    static = ((1, 1), padding, 1)
    assert_equal(
        value_and_gradients(conv2d, x, kernel, *static), value_and_gradients(reference, x, kernel, *static), tolerance
    )


@pytest.mark.parametrize("channels", [2, MANY])
@pytest.mark.parametrize(
    "padding", [((3, 0), (1, 1)), ((1, 1), (5, 0)), ((-1, 1), (1, 1)), ((0, 4), (2, -2)), ((4, 4), (5, 0))]
)
def test_any_padding_equals_a_convolution_of_the_padded_image(padding, channels):
    x, kernel = random_case((9, 8), (3, 3), channels, channels + 1, 1)

    def convolve_padded(x, kernel):
        padded = lax.pad(x, 0.0, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
        return reference(padded, kernel, (1, 1), "VALID", 1)

    ours = value_and_gradients(conv2d, x, kernel, (1, 1), padding)
    assert_equal(ours, value_and_gradients(convolve_padded, x, kernel), 1e-5)


def test_large_tiles_are_used_for_many_channels_if_they_fit_the_map():
    kernel = jnp.zeros((3, 3, winograd.VERY_MANY_CHANNELS, winograd.VERY_MANY_CHANNELS))
    assert all(winograd.tile_form(kernel, (side, side)) is winograd.F4 for side in (12, 24, 48, 15))
    assert all(winograd.tile_form(kernel, (side, side)) is winograd.F3 for side in (3, 6, 9, 14))
    assert all(winograd.tile_form(kernel, (12, side)) is winograd.F2 for side in (5, 7, 10))
    assert winograd.tile_form(kernel[:, :, :MANY], (12, 12)) is winograd.F4
    assert winograd.tile_form(kernel[:, :, :MANY, :MANY], (12, 12)) is winograd.F2
    assert winograd.tile_form(kernel.astype(jnp.bfloat16), (12, 12)) is winograd.F2


# (kernel size, channels, groups) of each algorithm: 1x1, XLA, patches, shifted multiplications, depthwise, Winograd
ALGORITHMS = [(1, 4, 1), (3, 5, 1), (3, 1, 1), (3, 4, 1), (3, 4, 4), (3, MANY + 1, 1)]


@pytest.mark.parametrize(("k", "channels", "groups"), ALGORITHMS)
def test_bfloat16_is_near_float32(k, channels, groups):
    x, kernel = random_case((8, 8), (k, k), channels, channels, groups, dtype=jnp.bfloat16)
    static = ((1, 1), "SAME", groups)
    ours = value_and_gradients(conv2d, x, kernel, *static)
    exact = value_and_gradients(reference, x.astype(np.float32), kernel.astype(np.float32), *static)
    assert {a.dtype for a in ours} == {jnp.dtype(jnp.bfloat16)}
    assert_equal([a.astype(np.float32) for a in ours], exact, 2e-2)


@pytest.mark.parametrize(("k", "channels", "groups"), ALGORITHMS)
def test_vmap_over_kernels_equals_a_loop(k, channels, groups):
    x, kernel = random_case((8, 8), (k, k), channels, channels, groups)
    kernels = jnp.stack([kernel, 2 * kernel])
    static = ((1, 1), "SAME", groups)
    ours = jax.vmap(lambda kernel: value_and_gradients(conv2d, x, kernel, *static))(kernels)
    one_by_one = [value_and_gradients(reference, x, kernel, *static) for kernel in kernels]
    assert_equal(ours, [jnp.stack(parts) for parts in zip(*one_by_one, strict=True)], 1e-5)


@pytest.mark.parametrize(("k", "channels", "groups"), ALGORITHMS)
def test_batch_on_a_mesh_gives_the_same_result(k, channels, groups):
    mesh = Mesh(jax.devices(), ("data",))
    x, kernel = random_case((8, 8), (k, k), channels, channels, groups, batch=2 * mesh.size)
    static = ((1, 1), "SAME", groups)
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    assert_equal(
        value_and_gradients(conv2d, sharded, replicated, *static),
        value_and_gradients(reference, x, kernel, *static),
        1e-5,
    )


@pytest.mark.parametrize(("k", "channels", "groups"), ALGORITHMS)
def test_tpu_uses_xlas_convolutions_and_gpu_those_of_other_than_1x1_and_depthwise_kernels(k, channels, groups):
    x, kernel = random_case((8, 8), (k, k), channels, channels, groups)

    def convolutions(platform):
        compute = jax.jit(lambda x, kernel: value_and_gradients(conv2d, x, kernel, (1, 1), "SAME", groups))
        return compute.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert convolutions("tpu") == 3
    assert convolutions("cuda") == (0 if k == 1 or groups > 1 else 3)
    assert convolutions("cpu") == dict(zip(ALGORITHMS, (0, 3, 0, 2, 0, 0), strict=True))[k, channels, groups]


@pytest.mark.parametrize(
    ("batch", "side", "form"), [(1, 12, conv._xla), (1, 6, conv._columns), (64, 12, conv._winograd)]
)
def test_small_convolutions_of_many_channels_use_xla_or_patches_and_large_ones_winograd(monkeypatch, batch, side, form):
    monkeypatch.undo()
    assert conv._cpu_forms((batch, side, side, 256), (3, 3, 256, 256), (1, 1), ((1, 1), (1, 1)), 1)[0] is form
    x, kernel = random_case((side, side), (3, 3), 256, 256, 1, batch)
    static = ((1, 1), "SAME", 1)
    assert_equal(
        value_and_gradients(conv2d, x, kernel, *static), value_and_gradients(reference, x, kernel, *static), 5e-5
    )
