"""The detector is compared with torchvision's, whose results reference/make_detector_reference.py wrote."""

import json
import runpy
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
    random_weights,
    sample,
)
from safetensors.numpy import save_file

from affect_jax.config import detection_config
from affect_jax.config_checks import ANCHOR_STRIDES
from affect_jax.models import build_model
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.names import selects
from affect_jax.ops import matching
from affect_jax.tasks.detection import mean_losses
from affect_jax.train.state import make_apply

REFERENCE = Path(__file__).parent / "reference"
CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = json.loads((REFERENCE / "detector_names.json").read_text())
EXPECTED = np.load(REFERENCE / "detector.npz")
MAX_BOXES = 6


def padded_batch(case):
    """Return the images of a case as a batch, normalized, with zeros around them, and their boxes."""
    images, truths = detector_inputs(case)
    height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (0, 1))
    batch = {
        "image": np.zeros((len(images), height, width, 3), np.float32),
        "image_size": np.array([image.shape[:2] for image in images], np.int32),
        "boxes": np.zeros((len(images), MAX_BOXES, 4), np.float32),
        "label": np.zeros((len(images), MAX_BOXES), np.int32),
        "box_mask": np.zeros((len(images), MAX_BOXES), bool),
        "ignore": np.zeros((len(images), MAX_BOXES), bool),
    }
    for i, (image, (boxes, label)) in enumerate(zip(images, truths, strict=True)):
        batch["image"][i, : image.shape[0], : image.shape[1]] = (image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
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
    """Weights of torchvision's detector under our names; every name must fit."""
    shapes = jax.eval_shape(lambda: detector().init(jax.random.key(0), padded_batch(CASES[1]), False))
    pretrained = load(tmp_path_factory.mktemp("weights"), detector_weights(NAMES["resnet18"]))
    check_options(detector(), pretrained)
    return merge(shapes, pretrained.values)


@jax.jit
def evaluate(variables, batch):
    outputs, kept = detector().apply(variables, batch, False, capture_intermediates=True, mutable=["intermediates"])
    return outputs, kept["intermediates"]


def assert_same_in_order(boxes, expected):
    """Compare boxes; two neighbours whose scores differ by rounding only may change places."""
    counterpart = np.abs(np.asarray(boxes)[:, None] - expected).max(2).argmin(1)
    np.testing.assert_array_equal(np.sort(counterpart), np.arange(len(expected)))
    assert np.abs(counterpart - np.arange(len(expected))).max() <= 1
    np.testing.assert_allclose(boxes, expected[counterpart], atol=0.01)


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("case", CASES)
def test_pyramid_rpn_proposals_and_detections_equal_torchvisions(case, variables):
    batch = padded_batch(case)
    outputs, kept = evaluate(variables, batch)
    pyramid, (logits, offsets) = kept["fpn"]["__call__"][0], kept["rpn_head"]["__call__"][0]
    proposals, _ = kept["proposal_network"]["__call__"][0]
    for level, features in enumerate(pyramid):
        shape = features.shape[:3]
        for ours, name, take in (
            (features, "pyramid", sample),
            (logits[level].reshape(*shape, -1), "objectness", lambda x: x[:, ::3, ::3]),
            (offsets[level].reshape(*shape, -1), "offsets", lambda x: x[:, ::3, ::3]),
        ):
            np.testing.assert_allclose(take(np.asarray(ours)), EXPECTED[f"{case}/{name}/{level}"], atol=1e-4, rtol=1e-5)
    for i, (boxes, valid) in enumerate(zip(proposals.boxes, proposals.valid, strict=True)):
        assert_same_in_order(boxes[valid], EXPECTED[f"{case}/proposals/{i}"])
        found = {name: np.asarray(value[i]) for name, value in outputs["detections"].items()}
        detected = found.pop("valid")
        assert detected.sum() == len(EXPECTED[f"{case}/scores/{i}"]) >= 10
        np.testing.assert_allclose(found["boxes"][detected], EXPECTED[f"{case}/boxes/{i}"], atol=0.01)
        np.testing.assert_allclose(found["scores"][detected], EXPECTED[f"{case}/scores/{i}"], atol=1e-4)
        np.testing.assert_array_equal(found["label"][detected] + 1, EXPECTED[f"{case}/labels/{i}"])
        assert not found["boxes"][~detected].any()


@pytest.mark.usefixtures("plain_convolutions")
def test_losses_in_evaluation_do_not_depend_on_the_batch(variables):
    batch = padded_batch(CASES[1])
    together = evaluate(variables, batch)[0]["losses"]
    last = evaluate(variables, jax.tree.map(lambda x: x[-1:], batch))[0]["losses"]
    for name, (total, count) in together.items():
        np.testing.assert_allclose((total[-1:], count[-1:]), last[name], rtol=1e-4, err_msg=name)


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_torchvisions(case, variables, tmp_path, monkeypatch):
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


def test_torchvisions_resnet50_weights_fit(tmp_path):
    model = build_detector(90)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), padded_batch(CASES[1]), False))
    weights = {name: np.zeros(shape, np.float32) for name, shape in NAMES["fasterrcnn_resnet50_fpn"].items()}
    pretrained = load(tmp_path, weights)
    merge(shapes, pretrained.values)
    other = build_detector(1)
    shapes = jax.eval_shape(lambda: other.init(jax.random.key(0), padded_batch(CASES[1]), False))
    with pytest.raises(
        ValueError, match="wrong shape: box_predictor/bbox_pred/bias is \\(364,\\), the network's is \\(8,\\)"
    ):
        merge(shapes, pretrained.values)
    merge(shapes, pretrained.values, excuse=("box_predictor/.*",))


@pytest.fixture(scope="module", params=["darkface_rcnn.py", "widerface_rcnn.py"])
def resnet50_config(request):
    """A config of a detector with ResNet-50, and the shapes of its network's variables."""
    config = runpy.run_path(str(CONFIGS / request.param))["get_config"]()
    model = build_model(num_classes=1, **config.model)
    return config, jax.eval_shape(lambda: model.init(jax.random.key(0), padded_batch(CASES[1]), False))


def test_config_with_resnet50_trains_what_torchvision_trains(resnet50_config, tmp_path):
    """No BatchNorm and neither stem nor layer1, of parameters and statistics."""
    config, shapes = resnet50_config
    frozen = selects(config.optim.freeze)
    trained = {name for name in named_weights(shapes) if not frozen(name)}
    shapes_in_torchvision = NAMES["fasterrcnn_resnet50_fpn"]
    theirs = {name: np.zeros(shapes_in_torchvision[name], np.float16) for name in NAMES["trained_from_imagenet"]}
    assert trained == load(tmp_path, theirs).values.keys()


def test_config_with_resnet50_loads_imagenet_weights_only_with_layer4(resnet50_config, tmp_path):
    config, shapes = resnet50_config
    resnet50 = json.loads((REFERENCE / "names.json").read_text())["torchvision/resnet50"]
    weights = load(tmp_path, {name: np.zeros(shape, np.float16) for name, shape in resnet50.items()}).values
    merge(shapes, weights, config.init_excuse)
    without_layer4 = {name: value for name, value in weights.items() if "layer4" not in name}
    with pytest.raises(ValueError, match="missing: backbone/layer4_0/bn1/bias"):
        merge(shapes, without_layer4, config.init_excuse)


@pytest.mark.parametrize("file", ["darkface_rcnn.py", "widerface_rcnn.py"])
def test_config_with_random_weights_freezes_nothing(file):
    config = runpy.run_path(str(CONFIGS / file))["get_config"]("two_cores")
    assert config.init_from == "" and config.optim.freeze == ()


@pytest.mark.slow
@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize(("backbone", "neck"), [("resnet18", "fpn_c4"), ("mobilenet_v2", "fpn")])
def test_other_backbones_and_necks_train_every_layer_and_detect(backbone, neck):
    """The tests above compare ResNet with a pyramid on C2 to C5; here are the other backbones and necks."""
    model = build_detector(
        1,
        backbone_name=backbone,
        neck=neck,
        fpn_channels=8,
        anchor_sizes=[(2.0 * stride,) for stride in ANCHOR_STRIDES[neck]],
        aspect_ratios=(1.0,),
        rpn={f"{when}_nms_top_n_{mode}": 32 for when in ("pre", "post") for mode in ("train", "test")},
        box={"representation_size": 8, "score_thresh": 0.0},
    )
    images = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    boxes = jnp.array([[[10.0, 12, 26, 30], [40, 20, 80, 60]], [[50, 5, 60, 16], [0, 0, 0, 0]]])
    batch = {"image": images, "image_size": jnp.array([[64, 96], [60, 90]]), "boxes": boxes}
    batch |= {"label": jnp.zeros((2, 2), int), "box_mask": boxes[..., 2] > 0, "ignore": jnp.zeros((2, 2), bool)}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), batch, False))
    variables = merge(shapes, random_weights({name: value.shape for name, value in named_weights(shapes).items()}))

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            apply = make_apply(model)
            outputs, _ = apply({**variables, "params": params}, batch, True, jax.random.key(2))
            return sum(mean_losses(outputs["losses"]).values())

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(variables["params"])
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    without_gradient = [name for name, g in named_weights({"params": gradient}).items() if not np.abs(g).max() > 0]
    # the offsets of a class, or of an anchor, that is not in the sample have no gradient
    assert not [name for name in without_gradient if name.startswith(("backbone", "fpn", "box_head"))]
    detections = jax.jit(lambda variables: model.apply(variables, batch, False)["detections"])(variables)
    assert detections["valid"].any(axis=1).all()
    boxes = np.asarray(detections["boxes"])[np.asarray(detections["valid"])]
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= 96
