import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from affect_jax.models.roi_heads import BoxPredictor, MLPHead, RoIHeads, RoISamples, box_losses, select_detections
from affect_jax.models.rpn import Proposals
from affect_jax.ops.boxes import enlarge_boxes


def test_unused_places_do_not_count_even_if_their_logits_are_nan():
    rng = np.random.default_rng(0)
    logits, label, sampled = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12), np.arange(12) < 9
    samples = RoISamples(rois=jnp.ones((12, 4)), sampled=sampled, label=label, boxes=jnp.ones((12, 4)))

    def classifier_loss(logits, samples):
        losses = box_losses(logits, jnp.zeros((len(logits), 3, 4)), samples, "smooth_l1", 1.0)
        return losses["loss_classifier"][0]

    with_nan = np.where(sampled[:, None], logits, np.nan)
    loss, gradient = jax.value_and_grad(classifier_loss)(with_nan, samples)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = log_loss(label[:9], probs[:9], labels=range(3), normalize=False)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    used = jax.tree.map(lambda x: x[:9], samples)
    np.testing.assert_allclose(gradient[:9], jax.grad(classifier_loss)(logits[:9], used), rtol=1e-5)
    assert not gradient[9:].any()


def test_score_is_the_weighted_geometric_mean_of_proposal_and_class():
    boxes = jnp.array([[0.0, 0, 10, 10], [40, 40, 60, 60]])
    proposals = Proposals(boxes, jnp.array([0.9, 0.2]), jnp.ones(2, bool), 0.0)
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))
    size = jnp.array([100, 100])
    found = select_detections(logits, jnp.zeros((2, 2, 4)), proposals, size, 0.0, 0.5, 2, proposal_weight=0.7)
    np.testing.assert_allclose(found["scores"], [0.9**0.7 * 0.5**0.3, 0.2**0.7 * 0.8**0.3], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-4)


HEADS = RoIHeads(
    MLPHead(8, layers=1, units=1, bn_epsilon=1e-3),
    BoxPredictor(1),
    strides=(8,),
    pooled_side=3,
    canonical_size=112.0,
    canonical_level=4,
    roi_aligned=True,
    score_thresh=0.0,
    nms_thresh=1.0,
    detections_per_img=6,
    fg_iou_thresh=0.5,
    bg_iou_thresh=0.5,
    batch_size_per_image=8,
    positive_fraction=0.25,
    context=1.0,
    box_loss="smooth_l1",
    box_loss_weight=1.0,
    proposal_weight=0.0,
    rois_at_once=0,
)
RNG = np.random.default_rng(0)
FEATURES = [RNG.normal(size=(2, 16, 16, 4)).astype(np.float32)]
CORNERS = RNG.uniform(20, 60, (2, 6, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(15, 40, (2, 6, 2))], -1).astype(np.float32)
ALL = np.ones((2, 6), bool)


@pytest.fixture(scope="module")
def detect():
    """Return the function from heads with settings, and proposals, to the detections by one set of random weights."""

    def inputs(boxes, valid):
        return FEATURES, Proposals(boxes, jnp.ones((2, 6)), valid, jnp.zeros(2)), jnp.full((2, 2), 128), None, False

    variables = HEADS.init(jax.random.key(0), *inputs(BOXES, ALL))
    for layer in ("cls_score", "bbox_pred"):
        variables["params"]["box_predictor"][layer]["kernel"] *= 300.0  # otherwise all scores are about 0.5

    def detect(boxes=BOXES, valid=ALL, **settings):
        return HEADS.clone(**settings).apply(variables, *inputs(boxes, valid))[0]

    return detect


def test_context_enlarges_the_proposals_that_are_classified(detect):
    scores = detect(context=1.4)["scores"]
    np.testing.assert_allclose(scores, detect(enlarge_boxes(BOXES, 1.4))["scores"], rtol=1e-5)
    assert np.abs(scores - detect()["scores"]).max() > 0.01


@pytest.mark.parametrize("count", [6, 3])
def test_proposals_classified_in_groups_give_the_detections_of_all_at_once(detect, count):
    """With three valid proposals, the last groups are left out."""
    valid = np.arange(6) < np.array([[1], [count]])
    expected, found = detect(valid=valid), detect(valid=valid, rois_at_once=2)
    assert expected["valid"].sum() == 1 + count and np.ptp(expected["scores"][1, :count]) > 0.1
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)
