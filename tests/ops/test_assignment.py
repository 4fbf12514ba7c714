"""The assignment is compared with loops that follow the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_iou import iou

from affect_jax.ops.anchors import grid_anchors
from affect_jax.ops.assignment import assign_by_cost
from affect_jax.ops.boxes import decode_boxes
from affect_jax.ops.matching import BACKGROUND, IGNORED, GroundTruth

LEVELS = ((8, 12, 8), (4, 6, 16), (2, 3, 32))  # rows, columns, stride
ANCHORS = np.concatenate([grid_anchors((rows, columns), (s, s), (s,), (1.0,)) for rows, columns, s in LEVELS])
MAX_BOXES = 7


def random_truth(rng) -> GroundTruth:
    """Boxes of 4 to 60 pixels, some close to each other, some ignored, some padding."""
    sides = rng.uniform(4, 60, (MAX_BOXES, 2))
    low = rng.uniform(0, 70, (MAX_BOXES, 2))
    low[1], sides[1] = low[0] + 3, sides[0] * 0.9
    boxes = np.concatenate([low, low + sides], 1).astype(np.float32)
    return GroundTruth(boxes, np.zeros(MAX_BOXES, int), rng.random(MAX_BOXES) < 0.8, rng.random(MAX_BOXES) < 0.2)


def contains(box, point):
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def background(anchor, truth):
    """IGNORED if the anchor's center is within half an anchor of an ignored region."""
    half, center = (anchor[2] - anchor[0]) / 2, (anchor[:2] + anchor[2:]) / 2
    for box, real, ignore in zip(truth.boxes, truth.mask, truth.ignore, strict=True):
        if real and ignore and contains(box + np.array([-half, -half, half, half]), center):
            return IGNORED
    return BACKGROUND


def simota_by_loops(log_scores, predicted, truth):
    objects = [n for n in range(MAX_BOXES) if truth.mask[n] and not truth.ignore[n]]
    centers, strides = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2, ANCHORS[:, 2] - ANCHORS[:, 0]
    cost = {}  # {(box, cell): cost}
    for cell, center in enumerate(centers):
        inside, central = {}, {}
        for n in objects:
            box = truth.boxes[n]
            inside[n] = contains(box, center)
            central[n] = max(abs((box[:2] + box[2:]) / 2 - center)) < 2.5 * strides[cell]
        if any(inside.values()) or any(central.values()):
            for n in objects:
                far = 0.0 if inside[n] and central[n] else 1e5
                overlap = iou(truth.boxes[n], predicted[cell])
                cost[n, cell] = -log_scores[cell] - 3 * np.log(overlap + 1e-7) + far, overlap
    takers = {}
    for n in objects:
        of_box = sorted((value, cell) for (m, cell), (value, _) in cost.items() if m == n)
        overlaps = sorted((overlap for (m, _), (_, overlap) in cost.items() if m == n), reverse=True)
        for _, cell in of_box[: max(1, int(sum(overlaps[:10])))]:
            takers.setdefault(cell, []).append(n)
    matched = [background(anchor, truth) for anchor in ANCHORS]
    for cell, boxes in takers.items():
        matched[cell] = boxes[0] if len(boxes) == 1 else min(objects, key=lambda n: cost[n, cell][0])
    return matched


@pytest.mark.parametrize("seed", range(8))
def test_simota_equals_loops(seed):
    rng = np.random.default_rng(seed)
    truth = random_truth(rng)
    log_scores = np.log(rng.random(len(ANCHORS), np.float32))
    predicted = np.array(decode_boxes(rng.normal(0, 0.3, (len(ANCHORS), 4)).astype(np.float32), ANCHORS))
    near = rng.random(len(ANCHORS)) < 0.3  # boxes with high IoU, so that a box takes several cells
    predicted[near] = truth.boxes[rng.integers(0, MAX_BOXES, near.sum())] + rng.normal(0, 1, (near.sum(), 4))
    matched = jax.jit(assign_by_cost)(log_scores, jnp.asarray(predicted), ANCHORS, truth)
    np.testing.assert_array_equal(matched, simota_by_loops(log_scores, predicted, truth))
    assert (matched >= 0).sum() >= (truth.mask & ~truth.ignore).sum() / 2


def test_image_without_boxes_is_all_background():
    truth = GroundTruth(np.zeros((3, 4), np.float32), np.zeros(3, int), np.zeros(3, bool), np.zeros(3, bool))
    assert (assign_by_cost(jnp.zeros(len(ANCHORS)), ANCHORS, ANCHORS, truth) == BACKGROUND).all()
