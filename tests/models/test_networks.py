"""Tests of every classifier; a new network gets one row in CLASSIFIERS."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from networks import FACES, assert_every_parameter_and_statistic_trains, count, shapes_of

from affect_jax.config import detection_config
from affect_jax.models import MODELS, build_model

CLASSIFIERS = {
    "mobilefacenet": {"width_multiplier": 0.25, "stem_pointwise": True},
    "mobilenet_v1": {"width_multiplier": 0.25},
    "mobilenet_v2": {"width_multiplier": 0.35},
    "mobilenet_v2_cnn": {"width_multiplier": 0.35, "attach": "C2"},
    "resnet18": {"dropout": 0.5},
    "vgg_fer": {"widths": (4, 8, 8, 16), "dense": (16,)},
}
"""Fields of a small network, by name."""


def test_every_classifier_is_tested():
    deeper, of_tests = {"resnet34", "resnet50"}, {"linear", "tiny_faster_rcnn"}
    assert CLASSIFIERS.keys() | deeper | {"faster_rcnn"} == MODELS.keys() - of_tests


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_has_a_finite_gradient_and_every_statistic_changes(name):
    assert_every_parameter_and_statistic_trains(build_model(name, num_classes=7, **CLASSIFIERS[name]))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parameters_statistics_and_logits_are_float32_for_bfloat16(name):
    logits, variables = shapes_of(build_model(name, num_classes=7, dtype=jnp.bfloat16, **CLASSIFIERS[name]))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "parameters", "statistics"),
    [
        ("mobilenet_v1", 4_231_976, 21_888),  # Keras' trainable and other parameters
        ("mobilenet_v2", 3_504_872, 2 * 17_056),  # this and the others: torchvision's
        ("resnet18", 11_689_512, 9_600),
        ("resnet34", 21_797_672, 17_024),
        ("resnet50", 25_557_032, 53_120),
    ],
)
def test_network_has_the_published_number_of_parameters_and_statistics(name, parameters, statistics):
    logits, variables = shapes_of(build_model(name, num_classes=1000))
    assert logits.shape == (4, 1000)
    assert count(variables["params"]) == parameters
    assert count(variables["batch_stats"]) == statistics


def fields_read(trace, monkeypatch) -> dict[str, set[str]]:
    """Return the fields of each class of modules that code of affect_jax reads in `trace`."""
    read = {}

    def record(module, name):
        if sys._getframe(1).f_globals["__name__"].startswith("affect_jax"):
            read.setdefault(type(module).__name__, set()).add(name)
        return object.__getattribute__(module, name)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__getattribute__", record, raising=False)
        trace()
    return read


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_field_of_a_classifier_is_read(name, monkeypatch):
    """A field of config.model that nothing reads is an option without effect."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    model = build_model(name, num_classes=7, **CLASSIFIERS[name])
    fields = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    read = fields_read(lambda: jax.eval_shape(lambda: model.init(keys, FACES, True)), monkeypatch)
    assert fields - read[type(model).__name__] == set()


@pytest.mark.usefixtures("plain_convolutions")
def test_every_field_of_a_detector_is_read(monkeypatch):
    """The same for config.model of a detector with its parts rpn and box."""
    config = detection_config().model
    config.backbone_name = "resnet18"
    boxes, mask = jnp.ones((1, 2, 4)), jnp.ones((1, 2), bool)
    batch = {"image": jnp.ones((1, 64, 64, 3)), "image_size": jnp.full((1, 2), 64), "boxes": boxes}
    batch |= {"label": jnp.zeros((1, 2), int), "box_mask": mask, "ignore": ~mask}
    model = build_model(num_classes=1, **config)
    keys = {"params": jax.random.key(0), "sampler": jax.random.key(1)}

    def trace():
        for train in (True, False):
            jax.eval_shape(lambda train=train: model.init(keys, batch, train))

    read = fields_read(trace, monkeypatch)
    assert set(config) - {"name"} - read["FasterRCNN"] == set()
    assert set(config.rpn) - read["RegionProposalNetwork"] == set()
    assert set(config.box) - read["RoIHeads"] - read["MLPHead"] == set()
