import numpy as np
import pytest
from networks import count, shapes_of

from affect_jax.models.resnet import ResNetBackbone


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_feature_maps_have_the_channels_and_strides_of_the_paper(depth, stride_in_1x1):
    widen = 4 if depth == 50 else 1
    expected = {"C2": (64 * widen, 4), "C3": (128 * widen, 8), "C4": (256 * widen, 16), "C5": (512 * widen, 32)}
    features, _ = shapes_of(ResNetBackbone(depth, stride_in_1x1=stride_in_1x1), np.zeros((2, 50, 97, 3)))
    assert list(features) == list(expected)
    for tap, (channels, stride) in expected.items():
        assert features[tap].shape == (2, -(-50 // stride), -(-97 // stride), channels)


def test_network_ends_at_the_last_feature_map():
    features, variables = shapes_of(ResNetBackbone(50, last="C4"), np.zeros((1, 64, 64, 3)))
    assert list(features) == ["C2", "C3", "C4"]
    assert not any(name.startswith("layer4") for name in variables["params"])
    assert count(variables["params"]) + count(variables["batch_stats"]) == 8_573_888  # values of the ImageNet file


def test_unknown_depth_and_feature_map_are_refused():
    with pytest.raises(ValueError, match="no ResNet of depth 19; known are 18, 34, 50"):
        shapes_of(ResNetBackbone(19))
    with pytest.raises(ValueError, match=r"unknown feature map 'P2'.* C2, C3, C4, C5"):
        shapes_of(ResNetBackbone(18, last="P2"))
