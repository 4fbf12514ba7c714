import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import run_on_four_devices
from jax import lax

from affect_jax.ops import roi_align as roi_align_module
from affect_jax.ops.roi_align import roi_align, roi_levels

STRIDES = (4, 8)


def bilinear(image, y, x):
    """Return the value of image [H, W, C] at a point: 0 more than a cell outside, else that of the nearest point."""
    height, width, channels = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = (1 - u) * image[top, left] + u * image[top, right]
    return (1 - v) * upper + v * ((1 - u) * image[bottom, left] + u * image[bottom, right])


def align_by_loops(image, stride, roi, size, sampling, aligned):
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = np.asarray(roi, np.float64) / stride - shift
    width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
    result = np.zeros((size, size, image.shape[-1]))
    steps = (np.arange(sampling) + 0.5) / sampling
    for row in range(size):
        for column in range(size):
            points = [(y1 + (row + v) * height / size, x1 + (column + u) * width / size) for v in steps for u in steps]
            result[row, column] = np.mean([bilinear(image, y, x) for y, x in points], axis=0)
    return result


def make_case(seed):
    rng = np.random.default_rng(seed)
    features = [rng.standard_normal((2, 96 // stride, 128 // stride, 3)).astype(np.float32) for stride in STRIDES]
    corners = rng.uniform(-20, 100, (2, 9, 2))
    rois = np.concatenate([corners, corners + rng.uniform(0, 70, corners.shape)], -1).astype(np.float32)
    rois[:, 0] = 0.0  # padding
    rois[:, 1] = (-300, -300, -200, -200)  # outside the image
    rois[:, 2] = (60, 50, 60, 50)  # no area
    return features, rois, rng.integers(0, 2, (2, 9)).astype(np.int32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "sampling"), [(7, 2), (3, 1), (2, 3)])
def test_pooled_rois_equal_those_of_loops(size, sampling, aligned):
    features, rois, levels = make_case(size)
    pooled = jax.jit(lambda *x: roi_align(x[0], STRIDES, x[1], x[2], size, sampling, aligned))(features, rois, levels)
    for image in range(2):
        for i, (roi, level) in enumerate(zip(rois[image], levels[image], strict=True)):
            expected = align_by_loops(features[level][image], STRIDES[level], roi, size, sampling, aligned)
            np.testing.assert_allclose(pooled[image, i], expected, atol=1e-4)


def test_ramp_is_pooled_to_its_values_at_cell_centers():
    ramp = np.arange(16, dtype=np.float32) + np.zeros((1, 16, 16), np.float32)  # the column's number
    pooled = roi_align([ramp[..., None]], (1,), jnp.array([[[2.0, 2.0, 10.0, 10.0]]]), jnp.zeros((1, 1), int), 4)
    np.testing.assert_allclose(pooled[0, 0, :, :, 0], np.tile([3.0, 5.0, 7.0, 9.0], (4, 1)), atol=1e-5)


def test_gradient_is_exact_and_finite_for_rois_without_area():
    features, rois, levels = make_case(0)
    weights = np.random.default_rng(1).standard_normal((2, 9, 2, 2, 3)).astype(np.float32)

    def total(features):
        return (roi_align(features, STRIDES, rois, levels, 2) * weights).sum()

    gradient = jax.grad(total)(features)
    # the value is linear in the features, so it is the product of gradient and features
    np.testing.assert_allclose(
        sum((g * f).sum() for g, f in zip(gradient, features, strict=True)), total(features), rtol=1e-4
    )
    assert all(np.isfinite(g).all() for g in gradient)


@pytest.fixture
def accelerator_branch(monkeypatch):
    """Run the branch for accelerators on CPU."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *inputs, cpu, default: default(*inputs))


def gradient_of_mean_square(features, rois, levels):
    return jax.jit(jax.value_and_grad(lambda x: (roi_align(x, STRIDES, rois, levels) ** 2).mean()))(features)


def test_accelerator_branch_has_the_values_and_gradients_of_the_cpu_branch(request, monkeypatch):
    case = make_case(2)
    expected = gradient_of_mean_square(*case)
    request.getfixturevalue("accelerator_branch")
    for rois_at_once in (1, 4, 18, 100):
        monkeypatch.setattr(roi_align_module, "GATHERED_BYTES", rois_at_once * 4 * 28**2 * 3)
        for ours, cpu in zip(*map(jax.tree.leaves, (gradient_of_mean_square(*case), expected)), strict=True):
            np.testing.assert_allclose(ours, cpu, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("accelerator_branch")
def test_accelerator_branch_bounds_the_memory_of_samples(monkeypatch):
    features = [jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.float32)] * 2
    rois, levels = jax.ShapeDtypeStruct((1, 512, 4), jnp.float32), jax.ShapeDtypeStruct((1, 512), jnp.int32)
    samples_of_all = 512 * 4 * 28**2 * 16  # bytes
    temporary = {}
    for limit in (samples_of_all, samples_of_all // 32):
        monkeypatch.setattr(roi_align_module, "GATHERED_BYTES", limit)
        lowered = jax.jit(lambda *x: gradient_of_mean_square(*x)).lower(features, rois, levels)
        temporary[limit] = lowered.compile().memory_analysis().temp_size_in_bytes
    all_at_once, in_chunks = temporary.values()
    assert all_at_once > samples_of_all and in_chunks < samples_of_all / 2


@pytest.mark.parametrize("branch", ["cpu", "accelerator"])
def test_gradient_of_bfloat16_features_is_near_that_of_float32(branch, request):
    """All RoIs are pooled from the same few cells."""
    if branch == "accelerator":
        request.getfixturevalue("accelerator_branch")
    rng = np.random.default_rng(0)
    features = [jnp.asarray(rng.standard_normal((1, 16, 16, 4)), dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    rois = jnp.asarray(rng.normal((20, 20, 40, 40), 1, (1, 512, 4)), jnp.float32)
    weights = rng.uniform(0.5, 1.5, (1, 512, 7, 7, 4)).astype(np.float32)

    def total(features):
        return (roi_align([features], (4,), rois, jnp.zeros((1, 512), int)) * weights).sum()

    exact, rounded = (np.asarray(jax.grad(total)(of_type), np.float32) for of_type in features)
    np.testing.assert_allclose(rounded, exact, rtol=0.01, atol=0.01 * exact.max())


ON_FOUR_DEVICES = """
from jax import lax
from affect_jax.ops.roi_align import roi_align

if sys.argv[1] == "accelerator":
    lax.platform_dependent = lambda *inputs, cpu, default: default(*inputs)

def split_array(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

features = [split_array((8, 24, 32, 3)), split_array((8, 12, 16, 3))]
rois, levels = split_array((8, 40, 4)), split_array((8, 40), jnp.int32)
pool = lambda features, rois, levels: (roi_align(features, (4, 8), rois, levels) ** 2).sum((1, 2, 3, 4))
gradient = jax.grad(lambda *inputs: pool(*inputs).sum())
for function in (pool, gradient):
    assert_no_communication(jax.jit(function, out_shardings=split).lower(features, rois, levels).compile())
"""


@pytest.mark.parametrize("branch", ["cpu", "accelerator"])
def test_images_on_several_devices_are_pooled_without_communication(branch):
    run_on_four_devices(ON_FOUR_DEVICES, branch)


def test_levels_follow_equation_1_of_the_paper():
    sides = np.array([1, 55, 57, 111, 113, 223, 225, 450, 5000], np.float32)
    rois = np.stack([np.zeros_like(sides), np.zeros_like(sides), sides, sides], -1)
    expected = [min(max(int(np.floor(4 + np.log2(side / 224))), 2), 5) - 2 for side in sides]
    np.testing.assert_array_equal(roi_levels(jnp.asarray(rois), 4, 2, 224.0, 4), expected)
    assert int(roi_levels(jnp.zeros(4), 4, 2, 224.0, 4)) == 0
