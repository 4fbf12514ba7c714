import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affect_jax.ops.matching import (
    BACKGROUND,
    IGNORED,
    GroundTruth,
    covered,
    match_boxes,
    match_by_iou,
    sample_balanced,
)


def match_by_loops(iou, valid, high, low, low_quality):
    matched = []
    for a in range(iou.shape[1]):
        overlaps = [(iou[n, a], -n) for n in range(len(iou)) if valid[n]]
        best, where = max(overlaps, default=(-1.0, 0))
        choice = -where if best >= high else BACKGROUND if best < low else IGNORED
        for n in range(len(iou)):
            if low_quality and valid[n] and 0 < iou[n].max() == iou[n, a]:
                choice = -where
        matched.append(choice)
    return matched


def test_matches_equal_a_hand_computed_example():
    iou = jnp.array([[0.8, 0.5, 0.1, 0.0], [0.1, 0.4, 0.2, 0.0]])
    valid = jnp.array([True, True])
    np.testing.assert_array_equal(match_boxes(iou, valid, 0.7, 0.3, False), [0, IGNORED, BACKGROUND, BACKGROUND])
    # the second anchor has the highest IoU with the second box, but its best box is the first
    np.testing.assert_array_equal(match_boxes(iou, valid, 0.7, 0.3, True), [0, 0, BACKGROUND, BACKGROUND])


@pytest.mark.parametrize("low_quality", [False, True])
def test_matches_equal_those_of_loops(low_quality):
    rng = np.random.default_rng(0)
    match = jax.jit(match_boxes, static_argnums=(2, 3, 4))
    for _ in range(20):
        iou = np.round(rng.random((6, 40)) ** 2, 1).astype(np.float32)  # many ties
        iou[rng.random(6) < 0.3] = 0.0  # boxes without any overlap
        valid = rng.random(6) < 0.7
        np.testing.assert_array_equal(
            match(iou, valid, 0.7, 0.3, low_quality),
            match_by_loops(iou, valid, np.float32(0.7), np.float32(0.3), low_quality),
        )


def test_without_ground_truth_everything_is_background():
    for valid in (np.zeros(3, bool), np.ones(3, bool)):
        assert (np.asarray(match_boxes(jnp.zeros((3, 5)), valid, 0.7, 0.3, True)) == BACKGROUND).all()


def test_candidate_is_covered_if_half_its_area_is():
    boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    candidates = jnp.array(
        [[5.0, 0.0, 15.0, 10.0], [6.0, 0.0, 16.0, 10.0], [51.0, 51.0, 52.0, 52.0], [3.0, 3.0, 3.0, 3.0]]
    )
    np.testing.assert_array_equal(covered(candidates, boxes, jnp.array([True, True])), [True, False, True, False])
    assert not np.asarray(covered(candidates, boxes, jnp.array([False, False]))).any()


def test_candidates_inside_an_ignored_region_are_neither_positive_nor_background():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 12, 12], [20, 0, 30, 10], [60, 0, 70, 10]])
    is_box, ignore = np.array([True, True, True, False]), np.array([False, True, True, True])
    truth = GroundTruth(boxes, np.zeros(4, int), is_box, ignore)
    # the object, a region, a part of it, a box of which 0.3 is inside it, and a region that is padding
    candidates = jnp.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [22, 0, 28, 10], [27, 0, 37, 10], [60, 0, 70, 10]])
    matched = match_by_iou(candidates, truth, 0.5, 0.5, allow_low_quality_matches=False)
    np.testing.assert_array_equal(matched, [0, IGNORED, IGNORED, BACKGROUND, BACKGROUND])


@pytest.mark.parametrize(("positives", "negatives"), [(100, 400), (3, 400), (100, 4), (0, 50), (0, 0), (7, 0)])
def test_sample_is_balanced_if_there_are_enough_candidates(positives, negatives):
    size, count = 32, 600
    rng = np.random.default_rng(positives + negatives)
    kinds = rng.permutation(np.array([1] * positives + [0] * negatives + [2] * (count - positives - negatives)))
    indices, sampled = sample_balanced(jnp.asarray(rng.random(count, np.float32)), kinds == 1, kinds == 0, size, 0.25)
    indices, sampled = np.asarray(indices), np.asarray(sampled)
    assert indices.shape == sampled.shape == (size,)
    chosen = kinds[indices[sampled]]
    expected = min(positives, 8)
    assert (chosen == 1).sum() == expected and (chosen == 0).sum() == min(negatives, size - expected)
    assert len(set(indices[sampled].tolist())) == sampled.sum() and (chosen[:expected] == 1).all()


def test_fewer_candidates_than_samples_leave_no_positive_out_that_fits():
    positive = np.arange(100) < 90
    indices, sampled = sample_balanced(jnp.linspace(0, 0.9, 100), positive, ~positive, 256, 0.5)
    assert indices.shape == sampled.shape == (100,) and sampled.all()


def test_candidates_are_drawn_equally_often():
    positive, negative = np.arange(40) < 20, np.arange(40) >= 20
    draw = jax.jit(lambda key: sample_balanced(jax.random.uniform(key, (40,)), positive, negative, 16, 0.5)[0])
    drawn = np.bincount(np.concatenate([draw(jax.random.key(i)) for i in range(500)]), minlength=40)
    assert (np.abs(drawn - 500 * 16 / 40) < 4.5 * np.sqrt(500 * 0.4 * 0.6)).all()
