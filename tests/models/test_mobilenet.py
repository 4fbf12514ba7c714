import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from networks import FACES, count, shapes_of

from affect_jax.models import build_model
from affect_jax.models.inputs import rgb_input
from affect_jax.models.mobilenet import MobileNetV2Backbone

MAPS = {"C1": (16, 2), "C2": (24, 4), "C3": (32, 8), "C4": (96, 16), "C5": (320, 32), "head": (1280, 32)}
"""Channels and stride of the feature maps: the paper's table 2."""
HALF_WIDTH = {"C1": 8, "C2": 16, "C3": 16, "C4": 48, "C5": 160, "head": 1280}
"""Channels at half the width, rounded to multiples of 8."""


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))])
@pytest.mark.parametrize("last", ["C3", "head"])
@pytest.mark.parametrize("width_multiplier", [0.5, 1.0])
def test_feature_maps_up_to_the_last_have_the_channels_and_strides_of_the_paper(padding, last, width_multiplier):
    backbone = MobileNetV2Backbone(width_multiplier, last, padding)
    features, _ = shapes_of(backbone, np.zeros((2, 50, 97, 3)))
    assert list(features) == list(MAPS)[: list(MAPS).index(last) + 1]
    for name, found in features.items():
        channels, stride = MAPS[name]
        channels = HALF_WIDTH[name] if width_multiplier == 0.5 else channels
        assert found.shape == (2, -(-50 // stride), -(-97 // stride), channels)


@pytest.mark.parametrize("attach", MAPS)
@pytest.mark.parametrize("input_size", [(), (96, 96)])
def test_blocks_attach_to_any_feature_map_and_leave_one_pixel(attach, input_size):
    model = build_model("mobilenet_v2_cnn", num_classes=7, attach=attach, input_size=input_size)
    logits, variables = shapes_of(model)
    params = variables["params"]
    assert logits.shape == (4, 7)
    channels, stride = MAPS[attach]
    assert params["block1_conv"]["kernel"].shape == (3, 3, channels, 256)
    side = (96 if input_size else 48) / stride / 2**4
    assert params["dense1"]["kernel"].shape == (256 * max(1, int(np.ceil(side))) ** 2, 512)
    assert params["dense2"]["kernel"].shape == (512, 256)


def test_blocks_on_the_head_have_the_expected_number_of_parameters():
    _, variables = shapes_of(build_model("mobilenet_v2_cnn", num_classes=7))
    blocks = 9 * 256 * (1280 + 3 * 256) + 4 * 2 * 256
    dense = (256 + 1) * 512 + (512 + 1) * 256 + (256 + 1) * 7
    assert count(variables["params"]) == 2_223_872 + blocks + dense


def test_unknown_feature_map_is_refused():
    with pytest.raises(ValueError, match=r"unknown feature map 'C9'.* C1, C2, C3, C4, C5, head"):
        shapes_of(build_model("mobilenet_v2_cnn", num_classes=7, attach="C9"))


def test_gray_input_is_repeated_and_resized_as_in_opencv():
    resized = rgb_input(FACES, (96, 120))
    assert resized.shape == (4, 96, 120, 3)
    for face, ours in zip(FACES, resized, strict=True):
        expected = cv2.resize(face, (120, 96), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(ours, np.repeat(expected[..., None], 3, axis=-1), atol=1e-5)
    np.testing.assert_array_equal(rgb_input(FACES), np.repeat(FACES, 3, axis=-1))


def test_gray_pixels_normalized_for_rgb_equal_the_same_image_in_rgb():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    gray = np.abs(FACES)
    rgb = np.repeat(gray, 3, axis=-1)
    np.testing.assert_array_equal(rgb_input((gray - mean) / std), rgb_input((rgb - mean) / std))


def test_image_with_four_channels_is_refused():
    with pytest.raises(ValueError, match=r"4 channels.*gray \(1\) or RGB \(3\)"):
        rgb_input(jnp.zeros((1, 8, 8, 4)))
