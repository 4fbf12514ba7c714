import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affect_jax.ops import nms as module
from affect_jax.ops.nms import nms


@pytest.fixture(params=["on CPU", "on other devices"])
def suppress(request, monkeypatch):
    if request.param == "on other devices":
        monkeypatch.setattr(module, "_keep_in_blocks", module._keep_at_once)
    nms.clear_cache()
    yield nms
    nms.clear_cache()


def nms_by_loops(boxes, scores, valid, threshold):
    boxes = boxes.astype(np.float64)
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    kept = np.zeros(len(boxes), bool)
    for i in sorted(np.flatnonzero(valid), key=lambda i: -scores[i]):
        sides = np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2])
        shared = np.maximum(sides, 0).prod(-1)
        unions = areas[i] + areas[kept] - shared
        kept[i] = not (shared > threshold * unions).any()
    return kept


def crowd(rng, count):
    """Return boxes in clusters, which have long chains of suppression."""
    centers = rng.uniform(0, 300, (count // 8 + 1, 2)).repeat(8, 0)[:count] + rng.normal(0, 6, (count, 2))
    sides = rng.uniform(10, 60, (count, 2))
    return np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype(np.float32)


def test_chain_of_boxes_equals_a_hand_computed_example(suppress):
    # the IoU of neighbours is 1/3; a box that is suppressed does not suppress others
    boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    np.testing.assert_array_equal(
        suppress(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.ones(3, bool), 0.3), [True, False, True]
    )
    np.testing.assert_array_equal(
        suppress(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.ones(3, bool), 0.3), [False, True, False]
    )
    assert np.asarray(
        suppress(boxes, jnp.ones(3), jnp.ones(3, bool), 1 / 3)
    ).all()  # more than the threshold, not equal


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_kept_boxes_equal_those_of_a_greedy_loop_and_opencv(threshold, suppress):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        boxes, scores = crowd(rng, 300), (1 + rng.permutation(300)).astype(np.float32) / 300
        valid = rng.random(300) < 0.8
        stays = np.asarray(suppress(boxes, scores, valid, threshold))
        np.testing.assert_array_equal(stays, nms_by_loops(boxes, scores, valid, threshold))
        corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], -1)[valid].astype(np.float64)
        kept = cv2.dnn.NMSBoxes(corners_and_sides.tolist(), scores[valid].tolist(), 0.0, threshold)
        np.testing.assert_array_equal(np.flatnonzero(stays), np.sort(np.flatnonzero(valid)[kept]))


def test_first_of_equal_scores_is_kept(suppress):
    boxes = jnp.tile(jnp.array([0.0, 0.0, 5.0, 5.0]), (4, 1))
    np.testing.assert_array_equal(suppress(boxes, jnp.ones(4), jnp.array([False, True, True, True]), 0.5), [0, 1, 0, 0])


def test_valid_boxes_of_the_lowest_possible_score_are_suppressed_too(suppress):
    boxes, valid = jnp.tile(jnp.array([0.0, 0.0, 5.0, 5.0]), (300, 1)), jnp.arange(300) >= 200
    assert np.flatnonzero(suppress(boxes, jnp.full(300, -jnp.inf), valid, 0.5)).tolist() == [200]


def test_boxes_without_area_suppress_nothing_and_no_valid_box_is_fine(suppress):
    without_area = jnp.zeros((5, 4))
    assert np.asarray(suppress(without_area, jnp.ones(5), jnp.ones(5, bool), 0.5)).all()
    assert not np.asarray(suppress(without_area, jnp.ones(5), jnp.zeros(5, bool), 0.5)).any()


def test_vmap_over_images_equals_a_loop(suppress):
    rng = np.random.default_rng(3)
    boxes = np.stack([crowd(rng, 200) for _ in range(4)])
    scores, valid = rng.random((4, 200), np.float32), rng.random((4, 200)) < [[1.0], [0.5], [0.1], [0.0]]
    together = jax.vmap(suppress, (0, 0, 0, None))(boxes, scores, valid, 0.4)
    for i in range(4):
        np.testing.assert_array_equal(together[i], suppress(boxes[i], scores[i], valid[i], 0.4))
