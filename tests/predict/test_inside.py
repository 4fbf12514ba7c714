import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from untrained import untrained

from affect_jax.predict.inside import class_activation, face_feature_maps
from affect_jax.tasks.interface import DataFacts

FACE = np.random.default_rng(0).integers(0, 256, (70, 60, 3), np.uint8)


def test_feature_maps_of_vgg_are_its_convolutions_in_order(classifier):
    maps = face_feature_maps(classifier, FACE)
    assert list(maps) == ["block1_conv1_bn", "block2_conv1_bn"]
    assert [features.shape for features in maps.values()] == [(48, 48, 4), (24, 24, 8)]


def test_feature_maps_of_mobilenet_are_its_blocks_in_order(tiny_config, plain_convolutions):
    tiny_config.model = ConfigDict({"name": "mobilenet_v2", "width_multiplier": 0.25})
    maps = face_feature_maps(untrained(tiny_config, DataFacts(("happy", "sad"), (48, 48, 1))), FACE)
    assert [name.split("/")[-1] for name in maps] == ["stem", *(f"block{n}" for n in range(17)), "head"]


def test_class_activation_equals_grad_cam_written_out_for_vgg(classifier):
    """After its last feature map the network has ReLU, pooling and dense layers."""
    layer = "block2_conv1_bn"
    features = jnp.asarray(face_feature_maps(classifier, FACE)[layer])
    params = classifier.variables["params"]

    def logits(features):
        x = jax.nn.relu(features).reshape(12, 2, 12, 2, 8).max((1, 3)).reshape(-1)
        x = jax.nn.relu(x @ params["dense1"]["kernel"] + params["dense1"]["bias"])
        return x @ params["logits"]["kernel"] + params["logits"]["bias"]

    highest = []
    for index, name in enumerate(classifier.data.class_names):
        weights = np.asarray(jax.grad(lambda x, index=index: logits(x)[index])(features)).mean((0, 1))
        expected = np.maximum((np.asarray(features) * weights).sum(-1), 0)
        heat = class_activation(classifier, FACE, name, layer)
        assert heat.shape == (24, 24)
        np.testing.assert_allclose(heat, expected / max(expected.max(), 1e-12), atol=1e-5)
        np.testing.assert_array_equal(heat, class_activation(classifier, FACE, name))
        highest.append(float(heat.max()))
    assert set(highest) == {0.0, 1.0}  # no position raises some class's logit, some position another's


def test_unknown_expression_or_layer_is_an_error_that_lists_the_valid_names(classifier):
    with pytest.raises(ValueError, match="unknown expression 'bored'; choose from happy, sad, neutral"):
        class_activation(classifier, FACE, "bored")
    with pytest.raises(ValueError, match="unknown layer 'block9'; choose from block1_conv1_bn, block2_conv1_bn"):
        class_activation(classifier, FACE, "sad", "block9")
