"""The whole detector is held against torchvision's: reference/make_detector_reference.py wrote its numbers."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.deterministic import (
    CASES,
    DETECTOR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    detector_inputs,
    detector_weights,
    gradient_direction,
    gradient_figures,
    sample,
)
from safetensors.numpy import save_file

from affect_jax.config import detection_config
from affect_jax.models import build_model
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.ops import matching
from affect_jax.tasks.detection import mean_losses
from affect_jax.train.state import make_apply

REFERENCE = Path(__file__).parent / "reference"
NAMES = json.loads((REFERENCE / "detector_names.json").read_text())
EXPECTED = np.load(REFERENCE / "detector.npz")
MOST_BOXES = 6


def padded_batch(case):
    """The pictures of a case side by side, normalized, with zeros around them, and their boxes."""
    pictures, truths = detector_inputs(case)
    height, width = (-(-max(picture.shape[axis] for picture in pictures) // 32) * 32 for axis in (0, 1))
    batch = {
        "image": np.zeros((len(pictures), height, width, 3), np.float32),
        "image_size": np.array([picture.shape[:2] for picture in pictures], np.int32),
        "boxes": np.zeros((len(pictures), MOST_BOXES, 4), np.float32),
        "label": np.zeros((len(pictures), MOST_BOXES), np.int32),
        "box_mask": np.zeros((len(pictures), MOST_BOXES), bool),
        "ignore": np.zeros((len(pictures), MOST_BOXES), bool),
    }
    for i, (picture, (boxes, label)) in enumerate(zip(pictures, truths, strict=True)):
        batch["image"][i, : picture.shape[0], : picture.shape[1]] = (picture / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
        batch["boxes"][i, : len(boxes)] = boxes
        batch["label"][i, : len(boxes)] = label
        batch["box_mask"][i, : len(boxes)] = True
    return batch


def load(tmp_path, arrays, name="weights"):
    save_file(arrays, tmp_path / f"{name}.safetensors")
    return load_pretrained(tmp_path / f"{name}.safetensors")


def build_detector(num_classes, **fields):
    """The detector of a config in which these fields of `model` are set."""
    model = detection_config().model
    model.update(fields)
    return build_model(num_classes=num_classes, **model)


@cache
def detector():
    return build_detector(2, backbone_name="resnet18", **DETECTOR)


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """torchvision's weights under our names: every one of them, and none else."""
    shapes = jax.eval_shape(lambda: detector().init(jax.random.key(0), padded_batch(CASES[1]), False))
    pretrained = load(tmp_path_factory.mktemp("weights"), detector_weights(NAMES["resnet18"]))
    check_options(detector(), pretrained)
    return merge(shapes, pretrained.values)


@jax.jit
def evaluate(variables, batch):
    outputs, kept = detector().apply(variables, batch, False, capture_intermediates=True, mutable=["intermediates"])
    return outputs, kept["intermediates"]


@pytest.mark.parametrize("case", CASES)
def test_pyramid_rpn_proposals_and_detections_are_torchvisions(case, variables):
    batch = padded_batch(case)
    outputs, kept = evaluate(variables, batch)
    pyramid, (objectness, offsets) = kept["fpn"]["__call__"][0], kept["rpn_head"]["__call__"][0]
    proposals, _ = kept["rpn"]["__call__"][0]
    for level, features in enumerate(pyramid):
        shape = features.shape[:3]
        for ours, name, take in (
            (features, "pyramid", sample),
            (objectness[level].reshape(*shape, -1), "objectness", lambda x: x[:, ::3, ::3]),
            (offsets[level].reshape(*shape, -1), "offsets", lambda x: x[:, ::3, ::3]),
        ):
            np.testing.assert_allclose(take(np.asarray(ours)), EXPECTED[f"{case}/{name}/{level}"], atol=1e-4, rtol=1e-5)
    for i, (boxes, valid) in enumerate(zip(*proposals, strict=True)):
        np.testing.assert_allclose(boxes[valid], EXPECTED[f"{case}/proposals/{i}"], atol=0.01)
        found = {name: np.asarray(value[i]) for name, value in outputs["detections"].items()}
        kept_ones = found.pop("valid")
        assert kept_ones.sum() == len(EXPECTED[f"{case}/scores/{i}"]) >= 10
        np.testing.assert_allclose(found["boxes"][kept_ones], EXPECTED[f"{case}/boxes/{i}"], atol=0.01)
        np.testing.assert_allclose(found["scores"][kept_ones], EXPECTED[f"{case}/scores/{i}"], atol=1e-4)
        np.testing.assert_array_equal(found["label"][kept_ones] + 1, EXPECTED[f"{case}/labels/{i}"])
        assert not found["boxes"][~kept_ones].any()


@pytest.mark.parametrize("case", CASES)
def test_losses_and_their_gradients_are_torchvisions(case, variables, tmp_path, monkeypatch):
    monkeypatch.setattr(
        matching, "sampling_priority", lambda key, shape: jnp.broadcast_to(jnp.linspace(0.9, 0.1, shape[-1]), shape)
    )
    apply = make_apply(detector(), frozen=lambda name: name.startswith("backbone/"))

    @jax.jit
    def loss(params, batch):
        outputs, _ = apply({**variables, "params": params}, batch, True, jax.random.key(0))
        means = mean_losses(outputs["losses"])
        return sum(means.values()), means

    gradient, means = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], padded_batch(case))
    for name, value in means.items():
        np.testing.assert_allclose(value, EXPECTED[f"{case}/{name}"], atol=1e-4, err_msg=name)

    prefix = f"{case}/gradient/"
    names = [name.removeprefix(prefix) for name in EXPECTED if name.startswith(prefix)]
    directions = {name: gradient_direction(name, NAMES["resnet18"][name]) for name in names}
    ours = named_weights({"params": gradient})
    named = load(tmp_path, directions, "directions").values
    numbers = {name: np.full(NAMES["resnet18"][name], i, np.float32) for i, name in enumerate(names)}
    their_name = {our: names[int(value.flat[0])] for our, value in load(tmp_path, numbers, "names").values.items()}
    assert len(their_name) == len(names) >= 50
    for our, name in their_name.items():
        figures = gradient_figures(ours[our], named[our])
        expected = EXPECTED[f"{case}/gradient/{name}"]
        np.testing.assert_allclose(figures, expected, atol=1e-4 * max(1.0, expected[0]), err_msg=name)


def test_torchvisions_resnet50_weights_fit_name_by_name(tmp_path):
    model = build_detector(90)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), padded_batch(CASES[1]), False))
    weights = {name: np.zeros(shape, np.float32) for name, shape in NAMES["fasterrcnn_resnet50_fpn"].items()}
    pretrained = load(tmp_path, weights)
    merge(shapes, pretrained.values)
    other = build_detector(1)
    shapes = jax.eval_shape(lambda: other.init(jax.random.key(0), padded_batch(CASES[1]), False))
    with pytest.raises(
        ValueError, match="misshapen: box_predictor/bbox_pred/bias is \\(364,\\), the network's is \\(8,\\)"
    ):
        merge(shapes, pretrained.values)
    merge(shapes, pretrained.values, excuse=("box_predictor/.*",))


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize(
    ("backbone", "neck", "levels"), [("resnet18", "fpn_c4", 4), ("resnet18", "c4", 1), ("mobilenet_v2", "fpn", 5)]
)
def test_other_backbones_and_necks_learn_with_every_parameter_and_detect(backbone, neck, levels):
    """The pyramid over a ResNet's C2 to C5 is torchvision's, above; these are other places of the same parts."""
    model = build_detector(
        1,
        backbone_name=backbone,
        neck=neck,
        fpn_channels=8,
        anchor_sizes=[(8.0 * 2**level,) for level in range(levels)],
        aspect_ratios=(1.0,),
        rpn={f"{when}_nms_top_n_{mode}": 32 for when in ("pre", "post") for mode in ("train", "test")},
        box={"representation_size": 8, "score_thresh": 0.0},
    )
    picture = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    boxes = jnp.array([[[10.0, 12, 26, 30], [40, 20, 80, 60]], [[50, 5, 60, 16], [0, 0, 0, 0]]])
    batch = {"image": picture, "image_size": jnp.array([[64, 96], [60, 90]]), "boxes": boxes}
    batch |= {"label": jnp.zeros((2, 2), int), "box_mask": boxes[..., 2] > 0, "ignore": jnp.zeros((2, 2), bool)}
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(1), batch, False)

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            apply = make_apply(model)
            outputs, _ = apply({**variables, "params": params}, batch, True, jax.random.key(2))
            return sum(mean_losses(outputs["losses"]).values())

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(variables["params"])
    assert np.isfinite(loss)
    still = [name for name, value in named_weights({"params": gradient}).items() if not np.abs(value).max() > 0]
    # an offset of a class, or of an anchor, that no sample has is not learned from
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not [name for name in still if name.startswith(("backbone", "fpn", "box_head"))]
    detections = jax.jit(lambda variables: model.apply(variables, batch, False)["detections"])(variables)
    assert detections["valid"].any(axis=1).all()
    boxes = np.asarray(detections["boxes"])[np.asarray(detections["valid"])]
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= 96
