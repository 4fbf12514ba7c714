"""The first stage is compared with onnxruntime and OpenCV on the published file; the real file is in shared data."""

import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from matplotlib import cbook
from test_faster_rcnn import build_detector

from affect_jax.models.calibration import calibrate_batch_norm
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.ops.anchors import grid_anchors
from affect_jax.ops.boxes import decode_boxes
from affect_jax.ops.nms import nms
from affect_jax.tasks.detection import mean_losses
from affect_jax.train.state import make_apply

STRIDES = (8, 16, 32)
HEIGHT, WIDTH = 320, 256
UNPUBLISHED = ("(fpn/lateral2|box_head|box_predictor)/.*",)


@pytest.fixture(scope="module")
def model():
    return build_detector(
        1,
        backbone_name="yunet_n",
        neck="yunet",
        anchor_sizes=((8.0,), (16.0,), (32.0,)),
        aspect_ratios=(1.0,),
        rpn={"assigner": "simota", "objectness_loss": "yunet", "box_loss": "eiou", "pre_nms_top_n_test": 64}
        | {f"{when}_nms_top_n_train": 32 for when in ("pre", "post")},
        box={
            "units": 1,
            "layers": 1,
            "representation_size": 8,
            "context": 1.4,
            "box_loss": "diou",
            "proposal_weight": 0.5,
        },
    )


@pytest.fixture(scope="module")
def photograph():
    """A public-domain photograph of a face, RGB uint8, which matplotlib contains."""
    image = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    return cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def batch_of(image):
    return {"image": jnp.asarray(image[None] / np.float32(255)), "image_size": jnp.array([image.shape[:2]])}


def zeros_of(model, batch):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, False))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def head_outputs(model, variables, batch):
    """Logits and offsets of all levels."""
    heads = {"capture_intermediates": lambda module, _: module.name == "rpn_head", "mutable": ["intermediates"]}
    _, kept = jax.jit(lambda variables: model.apply(variables, batch, False, **heads))(variables)
    return kept["intermediates"]["rpn_head"]["__call__"][0]


@pytest.fixture(scope="module")
def first_stage(model, photograph, shared_data):
    """Logits and offsets of the published weights for the photograph, and the path of their file."""
    path = shared_data / "weights" / "yunet_n_wider_face.onnx"
    if not path.is_file():
        pytest.skip(f"no real data: {path} is absent")
    batch, pretrained = batch_of(photograph), load_pretrained(path)
    check_options(model, pretrained)
    variables = merge(zeros_of(model, batch), pretrained.values, UNPUBLISHED)
    return *head_outputs(model, variables, batch), path


def test_outputs_of_the_published_weights_equal_onnxruntimes(first_stage, photograph):
    logits, offsets, path = first_stage
    session = onnxruntime.InferenceSession(path)
    pixels = photograph[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"input": pixels}), strict=True))
    for stride, level, level_offsets in zip(STRIDES, logits, offsets, strict=True):
        scores = np.concatenate([expected[f"cls_{stride}"], expected[f"obj_{stride}"]], -1)
        np.testing.assert_allclose(jax.nn.sigmoid(level), scores, atol=1e-4)
        np.testing.assert_allclose(level_offsets, expected[f"bbox_{stride}"], atol=1e-4)


def test_boxes_and_scores_of_the_published_weights_equal_opencvs(first_stage, photograph):
    logits, offsets, path = first_stage
    grids = [grid_anchors((HEIGHT // s, WIDTH // s), (s, s), (s,), (1.0,)) for s in STRIDES]
    boxes = decode_boxes(jnp.concatenate(offsets, 1)[0], jnp.concatenate(grids))
    scores = jnp.sqrt(jax.nn.sigmoid(jnp.concatenate(logits, 1)[0]).prod(-1))
    kept = np.asarray(nms(boxes, scores, scores >= 0.3, 0.3))
    detector = cv2.FaceDetectorYN.create(str(path), "", (WIDTH, HEIGHT), score_threshold=0.3, nms_threshold=0.3)
    _, found = detector.detect(np.ascontiguousarray(photograph[..., ::-1]))
    order = np.argsort(-scores[kept])
    assert len(found) == kept.sum() >= 1
    np.testing.assert_allclose(scores[kept][order], found[:, -1], atol=1e-3)
    np.testing.assert_allclose(
        boxes[kept][order], np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], 1), atol=1
    )


def test_calibration_changes_the_published_layers_and_no_output(model, photograph, first_stage):
    logits, _, path = first_stage
    batch, names = batch_of(photograph), load_pretrained(path).values
    model = model.clone(box={**model.box, "rois_at_once": 7})  # the second stage runs in a loop
    variables = merge(zeros_of(model, batch), names, UNPUBLISHED)
    calibrated = calibrate_batch_norm(model, variables, batch, names)
    before, after = named_weights(variables), named_weights(calibrated)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in names if re.search(r"bn/(scale|bias|mean|var)$", name)}
    for calibrated_level, level in zip(head_outputs(model, calibrated, batch)[0], logits, strict=True):
        np.testing.assert_allclose(calibrated_level, level, atol=1e-4)


def test_file_that_is_not_onnx_is_named(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"broken\.onnx is not a complete ONNX file"):
        load_pretrained(tmp_path / "broken.onnx")


@pytest.mark.usefixtures("plain_convolutions")
def test_every_layer_trains(model):
    """With random weights, every parameter of both stages has a finite gradient that is not zero."""
    boxes = jnp.array([[[10.0, 12, 26, 30], [40, 20, 80, 60]], [[50, 5, 60, 16], [0, 0, 0, 0]]])
    batch = {"image": jax.random.uniform(jax.random.key(0), (2, 64, 96, 3)), "image_size": jnp.full((2, 2), 64)}
    batch |= {"boxes": boxes, "label": jnp.zeros((2, 2), int), "box_mask": boxes[..., 2] > 0}
    batch["ignore"] = jnp.zeros((2, 2), bool)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(1), batch, False)

    @jax.jit
    @jax.grad
    def gradient(params):
        outputs, _ = make_apply(model)({**variables, "params": params}, batch, True, jax.random.key(2))
        return sum(mean_losses(outputs["losses"]).values())

    gradients = named_weights({"params": gradient(variables["params"])})
    assert all(np.isfinite(g).all() for g in gradients.values())
    # the biases before BatchNorm have none; RoIs of these boxes are all on the finest map
    idle = ("pointwise/bias", "pointwise5", "depthwise5")
    assert not [n for n, g in gradients.items() if not np.abs(g).max() > 0 and not any(part in n for part in idle)]


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize(("canonical_size", "pooled_from_finest"), [(112.0, True), (1.0, False)])
def test_detections_are_the_same_whether_the_finest_map_is_always_computed_or_only_if_needed(
    model, photograph, canonical_size, pooled_from_finest
):
    """With ground truth it is always computed; the smaller the canonical size, the coarser the map of a RoI."""
    model = model.clone(box={**model.box, "canonical_size": canonical_size, "score_thresh": 0.0, "rois_at_once": 16})
    batch = batch_of(photograph[:64, :96])
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), batch, False)
    of_finest = variables["params"]["fpn"]["lateral2"]["pointwise"]["kernel"]
    truth = {"boxes": jnp.ones((1, 1, 4)), "label": jnp.zeros((1, 1), int)}
    truth |= {name: jnp.zeros((1, 1), bool) for name in ("box_mask", "ignore")}
    detect = jax.jit(lambda variables, batch: model.apply(variables, batch, False)["detections"])
    found, expected = detect(variables, batch), detect(variables, batch | truth)
    assert expected["valid"].sum() > 3
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)
    variables["params"]["fpn"]["lateral2"]["pointwise"]["kernel"] = of_finest + 1.0
    assert np.array_equal(detect(variables, batch)["scores"], found["scores"]) != pooled_from_finest
