import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from untrained import untrained

from affect_jax.predict.inside import class_activation, maps_of_face
from affect_jax.tasks.interface import DataFacts

FACE = np.random.default_rng(0).integers(0, 256, (70, 60, 3), np.uint8)


def test_maps_of_vgg_are_those_of_its_convolutions_in_order(classifier):
    maps = maps_of_face(classifier, FACE)
    assert list(maps) == ["block1_conv1_bn", "block2_conv1_bn"]
    assert [features.shape for features in maps.values()] == [(48, 48, 4), (24, 24, 8)]


def test_maps_of_mobilenet_are_those_of_its_blocks_in_order(tiny_config):
    tiny_config.model = ConfigDict({"name": "mobilenet_v2", "width_multiplier": 0.25})
    maps = maps_of_face(untrained(tiny_config, DataFacts(("happy", "sad"), (48, 48, 1))), FACE)
    assert [name.split("/")[-1] for name in maps] == ["stem", *(f"block{n}" for n in range(17)), "head"]


def test_class_activation_is_grad_cam_worked_by_hand(classifier):
    """The last map of this network goes through ReLU, pooling and dense layers: a twin in NumPy and jax.grad."""
    part = "block2_conv1_bn"
    features = jnp.asarray(maps_of_face(classifier, FACE)[part])
    params = classifier.variables["params"]

    def logits(features):
        x = jax.nn.relu(features).reshape(12, 2, 12, 2, 8).max((1, 3)).reshape(-1)
        x = jax.nn.relu(x @ params["dense1"]["kernel"] + params["dense1"]["bias"])
        return x @ params["logits"]["kernel"] + params["logits"]["bias"]

    highest = []
    for place, name in enumerate(classifier.data.class_names):
        weights = np.asarray(jax.grad(lambda x, place=place: logits(x)[place])(features)).mean((0, 1))
        expected = np.maximum((np.asarray(features) * weights).sum(-1), 0)
        heat = class_activation(classifier, FACE, name, part)
        assert heat.shape == (24, 24)
        np.testing.assert_allclose(heat, expected / max(expected.max(), 1e-12), atol=1e-5)
        np.testing.assert_array_equal(heat, class_activation(classifier, FACE, name))
        highest.append(float(heat.max()))
    assert set(highest) == {0.0, 1.0}  # nothing speaks for some class, something for another


def test_unknown_expressions_and_parts_are_told_with_the_known_ones(classifier):
    with pytest.raises(ValueError, match="unknown expression 'bored'; known are happy, sad, neutral"):
        class_activation(classifier, FACE, "bored")
    with pytest.raises(ValueError, match="unknown part 'block9'; known are block1_conv1_bn, block2_conv1_bn"):
        class_activation(classifier, FACE, "sad", "block9")
