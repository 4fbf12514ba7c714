import jax
import jax.numpy as jnp
import numpy as np
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
    proposals = Proposals(boxes, jnp.array([0.9, 0.2]), jnp.ones(2, bool))
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]]))
    size = jnp.array([100, 100])
    found = select_detections(logits, jnp.zeros((2, 2, 4)), proposals, size, 0.0, 0.5, 2, proposal_weight=0.7)
    np.testing.assert_allclose(found["scores"], [0.9**0.7 * 0.5**0.3, 0.2**0.7 * 0.8**0.3], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"], boxes, atol=1e-4)


def test_context_enlarges_the_proposals_that_are_classified():
    rng = np.random.default_rng(0)
    features = [jnp.asarray(rng.normal(size=(1, 16, 16, 4)), jnp.float32)]
    corners = rng.uniform(20, 60, (1, 6, 2)).astype(np.float32)
    boxes = jnp.concatenate([corners, corners + rng.uniform(15, 40, (1, 6, 2)).astype(np.float32)], -1)
    heads = RoIHeads(
        MLPHead(8, layers=1, units=0, bn_epsilon=1e-3),
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

    def arguments(boxes):
        return (
            features,
            Proposals(boxes, jnp.ones((1, 6)), jnp.ones((1, 6), bool)),
            jnp.array([[128, 128]]),
            None,
            False,
        )

    variables = heads.init(jax.random.key(0), *arguments(boxes))
    variables["params"]["box_predictor"]["cls_score"]["kernel"] *= 100.0  # so that scores differ
    detections, _ = heads.clone(context=1.4).apply(variables, *arguments(boxes))
    (expected, _), (without, _) = (heads.apply(variables, *arguments(x)) for x in (enlarge_boxes(boxes, 1.4), boxes))
    np.testing.assert_allclose(detections["scores"], expected["scores"], rtol=1e-5)
    assert np.abs(detections["scores"] - without["scores"]).max() > 0.01
