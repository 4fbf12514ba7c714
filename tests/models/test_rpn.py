"""Losses of all anchors are compared with formulas written out for each anchor."""

import jax
import jax.numpy as jnp
import numpy as np
from loop_iou import iou

from affect_jax.models.roi_heads import RoISamples, box_losses
from affect_jax.models.rpn import rpn_losses, select_proposals
from affect_jax.ops.boxes import decode_boxes
from affect_jax.ops.matching import IGNORED, GroundTruth, Samples

ANCHORS = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]], np.float32)
MATCHED = np.array([-1, 1, 0, IGNORED])
TRUTH = GroundTruth(
    np.array([[1, 9, 8, 15], [7, 0, 17, 9]], np.float32), np.zeros(2, int), np.ones(2, bool), np.zeros(2, bool)
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(p, target):
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


def losses_of(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 2)).astype(np.float32)
    offsets = rng.normal(0, 0.2, (4, 4)).astype(np.float32)
    samples = Samples(jnp.arange(4), jnp.asarray(MATCHED != IGNORED), jnp.asarray(MATCHED))
    found = jax.jit(rpn_losses, static_argnums=(5, 6, 7))(samples, logits, offsets, ANCHORS, TRUTH, name, "diou", 2.0)
    predicted = np.asarray(decode_boxes(offsets, ANCHORS))
    quality = [iou(predicted[a], TRUTH.boxes[m]) if m >= 0 else 0.0 for a, m in enumerate(MATCHED)]
    return found, sigmoid(logits), quality


def test_yunet_loss_equals_its_formula_and_leaves_out_ignored_anchors():
    found, probs, quality = losses_of("yunet")
    expected = cross_entropy(probs[0, 1], 0)
    for anchor in (1, 2):
        expected += cross_entropy(probs[anchor, 1], 1) + cross_entropy(probs[anchor, 0], quality[anchor])
    np.testing.assert_allclose(found["loss_objectness"], (expected, 2), rtol=1e-5)
    box_reg, count = found["loss_rpn_box_reg"]
    assert box_reg > 0 and count == 2


def test_cross_entropy_counts_all_sampled_anchors():
    found, probs, _ = losses_of("cross_entropy")
    scores = np.sqrt(probs.prod(1))
    expected = sum(cross_entropy(scores[a], float(MATCHED[a] >= 0)) for a in (0, 1, 2))
    np.testing.assert_allclose(found["loss_objectness"], (expected, 3), rtol=1e-5)


def test_weight_of_the_box_loss_multiplies_only_the_box_losses_of_both_stages():
    offsets = np.random.default_rng(0).normal(0, 0.2, (4, 4)).astype(np.float32)
    samples, logits = Samples(jnp.arange(4), jnp.ones(4, bool), jnp.array([-1, 1, 0, -1])), jnp.zeros((4, 2))
    rois = RoISamples(ANCHORS, jnp.ones(4, bool), jnp.array([0, 1, 1, 0]), TRUTH.boxes[np.array([0, 1, 0, 0])])

    def losses(weight):
        first = rpn_losses(samples, logits, offsets, ANCHORS, TRUTH, "yunet", "eiou", weight)
        return first | box_losses(logits, offsets[:, None].repeat(2, 1), rois, "diou", weight)

    one, three = losses(1.0), losses(3.0)
    for name, (total, count) in one.items():
        factor = 3 if "box_reg" in name else 1
        np.testing.assert_allclose(three[name], (factor * total, count), rtol=1e-6, err_msg=name)
    assert one["loss_rpn_box_reg"][0] > 0 and one["loss_box_reg"][0] > 0


def test_highest_score_that_the_limits_left_out_worked_by_hand():
    """The fourth box is a copy of the first, which NMS removes."""
    corners = np.array([[0, 0], [30, 0], [60, 0], [0, 0], [90, 0]], np.float32)
    levels = np.log(np.float32([0.9, 0.8, 0.7, 0.6, 0.5])), np.zeros((5, 4)), np.concatenate([corners, corners + 9], 1)

    def left_out(pre_nms_top_n, post_nms_top_n):
        size = jnp.array([100, 100])
        return select_proposals(*([x] for x in levels), size, pre_nms_top_n, post_nms_top_n, 0.5, 0.05).left_out

    limits = [(5, 4), (6, 5), (5, 3), (4, 4), (4, 2)]
    np.testing.assert_allclose([left_out(*both) for both in limits], [0, 0, 0.7, 0.6, 0.8], rtol=1e-6)


def test_a_level_of_which_all_anchors_are_kept_gives_the_proposals_of_the_best_anchors():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (40, 2)).astype(np.float32)
    anchors = np.concatenate([corners, corners + rng.uniform(4, 30, (40, 2))], 1).astype(np.float32)
    log_scores, offsets = np.log(rng.uniform(0.01, 0.99, 40)), rng.normal(0, 0.1, (40, 4))

    def proposals(log_scores, offsets, anchors):
        levels = (np.float32(log_scores),), (np.float32(offsets),), (np.float32(anchors),)
        found = select_proposals(*levels, jnp.array([100, 100]), 40, 40, 0.3, 0.05)
        return found.boxes[found.valid], found.scores[found.valid]

    kept = proposals(log_scores, offsets, anchors)
    # one more anchor than are kept, the worst, so that the best are chosen
    more = np.append(log_scores, -9.0), np.vstack([offsets, np.zeros(4)]), np.vstack([anchors, anchors[:1]])
    assert 10 < len(kept[0]) < 40
    jax.tree.map(np.testing.assert_array_equal, kept, proposals(*more))
