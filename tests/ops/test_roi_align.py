import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affect_jax.ops.roi_align import roi_align, roi_levels

STRIDES = (4, 8)


def bilinear(image, y, x):
    """Value of image [H, W, C] at a point; 0 more than a cell outside, the border's within."""
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
    rois[:, 1] = (-300, -300, -200, -200)  # off the picture
    rois[:, 2] = (60, 50, 60, 50)  # no area
    return features, rois, rng.integers(0, 2, (2, 9)).astype(np.int32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "sampling"), [(7, 2), (3, 1), (2, 3)])
def test_pooled_rois_are_those_of_loops(size, sampling, aligned):
    features, rois, levels = make_case(size)
    pooled = jax.jit(lambda *x: roi_align(x[0], STRIDES, x[1], x[2], size, sampling, aligned))(features, rois, levels)
    for image in range(2):
        for i, (roi, level) in enumerate(zip(rois[image], levels[image], strict=True)):
            expected = align_by_loops(features[level][image], STRIDES[level], roi, size, sampling, aligned)
            np.testing.assert_allclose(pooled[image, i], expected, atol=1e-4)


def test_a_ramp_is_pooled_to_its_values_at_the_cells_centres():
    ramp = np.arange(16, dtype=np.float32) + np.zeros((1, 16, 16), np.float32)  # the column's number
    pooled = roi_align([ramp[..., None]], (1,), jnp.array([[[2.0, 2.0, 10.0, 10.0]]]), jnp.zeros((1, 1), int), 4)
    np.testing.assert_allclose(pooled[0, 0, :, :, 0], np.tile([3.0, 5.0, 7.0, 9.0], (4, 1)), atol=1e-5)


def test_gradient_is_the_derivative_and_finite_for_worthless_rois():
    features, rois, levels = make_case(0)
    weights = np.random.default_rng(1).standard_normal((2, 9, 2, 2, 3)).astype(np.float32)

    def total(features):
        return (roi_align(features, STRIDES, rois, levels, 2) * weights).sum()

    gradient = jax.grad(total)(features)
    # linear in the features: the gradient times them is the value
    np.testing.assert_allclose(
        sum((g * f).sum() for g, f in zip(gradient, features, strict=True)), total(features), rtol=1e-4
    )
    assert all(np.isfinite(g).all() for g in gradient)


def test_levels_follow_equation_1_of_the_paper():
    sides = np.array([1, 55, 57, 111, 113, 223, 225, 450, 5000], np.float32)
    rois = np.stack([np.zeros_like(sides), np.zeros_like(sides), sides, sides], -1)
    expected = [min(max(int(np.floor(4 + np.log2(side / 224))), 2), 5) - 2 for side in sides]
    np.testing.assert_array_equal(roi_levels(jnp.asarray(rois), 4, 2, 224.0, 4), expected)
    assert int(roi_levels(jnp.zeros(4), 4, 2, 224.0, 4)) == 0
