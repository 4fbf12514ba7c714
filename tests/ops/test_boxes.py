import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_iou import iou

from affect_jax.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes, enlarge_boxes, is_large

DEGENERATE = np.array([[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 3, 3], [-50, -50, -40, -40]], np.float32)


def random_boxes(rng, count, size=100.0):
    """Return boxes with an area, and four without: padding, a line, swapped corners, outside the image."""
    corners = rng.uniform(-10, size, (count - len(DEGENERATE), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, size / 2, corners.shape)], -1)
    return np.concatenate([boxes, DEGENERATE]).astype(np.float32)


def test_area_and_iou_equal_a_hand_computed_example():
    a, b = jnp.array([[0.0, 0.0, 4.0, 2.0]]), jnp.array([[2.0, 1.0, 6.0, 3.0], [4.0, 0.0, 6.0, 2.0]])
    np.testing.assert_array_equal(box_area(b), [8, 4])
    np.testing.assert_allclose(box_iou(a, b), [[2 / 14, 0]], rtol=1e-6)  # boxes that touch do not intersect


def test_iou_equals_that_of_loops_over_pairs():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 40)
    expected = [[iou(one, other) for other in b.astype(np.float64)] for one in a.astype(np.float64)]
    np.testing.assert_allclose(jax.jit(box_iou)(a, b), expected, atol=1e-6)


def test_offsets_equal_a_hand_computed_example():
    reference, box = jnp.array([[0.0, 0.0, 10.0, 20.0]]), jnp.array([[5.0, 10.0, 25.0, 20.0]])
    expected = np.array([[(15 - 5) / 10, (15 - 10) / 20, np.log(2), np.log(0.5)]])
    np.testing.assert_allclose(encode_boxes(box, reference), expected, rtol=1e-6)
    weights = (10.0, 10.0, 5.0, 5.0)
    np.testing.assert_allclose(encode_boxes(box, reference, weights), expected * weights, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoding_inverts_encoding(weights):
    rng = np.random.default_rng(1)
    boxes, references = (random_boxes(rng, 50)[:-4] for _ in range(2))
    decoded = decode_boxes(encode_boxes(boxes, references, weights), references, weights)
    np.testing.assert_allclose(decoded, boxes, atol=1e-3)


def test_growth_of_a_decoded_box_is_limited():
    huge = decode_boxes(jnp.array([[0.0, 0.0, 1e9, 1e9]]), jnp.array([[0.0, 0.0, 16.0, 16.0]]))
    np.testing.assert_allclose(huge[0, 2:] - huge[0, :2], [1000.0, 1000.0], rtol=1e-5)


def test_enlarged_boxes_keep_their_centers():
    enlarged = enlarge_boxes(jnp.array([[10.0, 10.0, 20.0, 30.0]]), 1.5)
    np.testing.assert_allclose(enlarged, [[7.5, 5.0, 22.5, 35.0]])


def test_clipped_boxes_are_inside_the_image():
    clipped = clip_boxes(jnp.array([[-5.0, 2.0, 70.0, 90.0], [80.0, 80.0, 90.0, 90.0]]), jnp.array([40, 60]))
    np.testing.assert_array_equal(clipped, [[0, 2, 60, 40], [60, 40, 60, 40]])
    np.testing.assert_array_equal(is_large(clipped, 1e-3), [True, False])


def test_degenerate_boxes_have_finite_values_and_gradients():
    def total(boxes, references):
        offsets = encode_boxes(boxes, references)
        return box_iou(boxes, references).sum() + offsets.sum() + decode_boxes(offsets, references).sum()

    value, gradients = jax.value_and_grad(total, (0, 1))(jnp.asarray(DEGENERATE), jnp.asarray(DEGENERATE[::-1]))
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
