"""Tests of every classifier; a new network gets one row in CLASSIFIERS."""

import jax
import jax.numpy as jnp
import pytest
from networks import assert_every_parameter_and_statistic_trains, count, shapes_of

from affect_jax.models import MODELS, build_model

CLASSIFIERS = {
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
