"""Features are compared with those that reference/make_mobilenet_v1_reference.py computed in torch."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import features_from_file, shapes_of
from reference.deterministic import folded_weights, random_weights
from safetensors.numpy import save_file

from affect_jax.models import build_model
from affect_jax.models.calibration import calibrate_batch_norm
from affect_jax.models.mobilenet_v1 import BLOCKS, MobileNetV1Backbone
from affect_jax.models.pretrained import load_pretrained, merge, named_weights
from affect_jax.models.weight_names import VGGFACE2
from affect_jax.ops.photometric import normalize
from affect_jax.tasks import build_task
from affect_jax.train.loop import Trainer
from affect_jax.train.state import make_apply

KEY = jax.random.key(0)
FEATURES = np.load(Path(__file__).parent / "reference" / "mobilenet_v1.npz")
TAPS = ("block0", "block5", "block12")
FILE = "mobilenet_v1_vggface2.safetensors"


def file_shapes():
    """{name: shape} of the published file."""
    shapes, before = {"stem.conv.weight": (32, 3, 3, 3), "stem.conv.bias": (32,)}, 32
    for block, (channels, _) in enumerate(BLOCKS):
        depthwise, pointwise = f"blocks.{block}.depthwise.conv", f"blocks.{block}.pointwise.conv"
        shapes |= {f"{depthwise}.weight": (before, 1, 3, 3), f"{depthwise}.bias": (before,)}
        shapes |= {f"{pointwise}.weight": (channels, before, 1, 1), f"{pointwise}.bias": (channels,)}
        before = channels
    return shapes


@pytest.fixture
def random_file(tmp_path):
    """A file of random weights with the published names."""
    save_file(folded_weights(file_shapes()), tmp_path / FILE)
    return tmp_path / FILE


def assert_features_equal_torchs(network, file):
    for tap, found in features_from_file(file, "mobilenet_v1", MobileNetV1Backbone, TAPS).items():
        np.testing.assert_allclose(found, FEATURES[f"{network}/{tap}"], atol=1e-4, err_msg=tap)


def test_features_with_random_weights_equal_torchs(random_file):
    assert_features_equal_torchs("random", random_file)


def test_features_with_the_published_weights_equal_torchs(shared_data):
    assert_features_equal_torchs("vggface2", shared_data / "weights" / FILE)


@pytest.mark.parametrize("width_multiplier", [0.25, 1.0])
def test_backbone_has_stride_32_and_rounds_sides_up(width_multiplier):
    features, _ = shapes_of(MobileNetV1Backbone(width_multiplier), np.zeros((2, 50, 97, 3)))
    assert features.shape == (2, math.ceil(50 / 32), math.ceil(97 / 32), int(1024 * width_multiplier))


def random_network(name):
    """A narrow network with random weights and statistics, and a batch of images."""
    x = np.random.default_rng(0).normal(size=(16, 48, 48, 3)).astype(np.float32)
    model = build_model(name, num_classes=7, width_multiplier=0.25, dropout=0.0)
    _, shapes = shapes_of(model, x)
    return model, merge(shapes, random_weights({name: w.shape for name, w in named_weights(shapes).items()})), x


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("name", ["mobilefacenet", "mobilenet_v1", "mobilenet_v2"])
def test_calibration_keeps_the_outputs_and_makes_training_mode_agree_with_them(name):
    model, variables, x = random_network(name)
    calibrated = calibrate_batch_norm(model, variables, x, named_weights(variables))
    assert jax.tree.structure(calibrated) == jax.tree.structure(variables)
    apply = jax.jit(make_apply(model), static_argnums=2)
    before, _ = apply(variables, x, False)
    after, _ = apply(calibrated, x, False)
    other = -x[:, ::-1]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(calibrated, other, False)[0], apply(variables, other, False)[0], 1e-4, 1e-5)
    in_training, _ = apply(calibrated, x, True, KEY)
    np.testing.assert_allclose(in_training, before, rtol=1e-3, atol=1e-4)
    assert np.abs(apply(variables, x, True, KEY)[0] - before).max() > 0.01


@pytest.mark.usefixtures("plain_convolutions")
def test_run_from_a_folded_file_starts_with_its_function_and_with_statistics_of_the_training_images(
    tiny_config, random_file
):
    config = tiny_config
    config.model = {"name": "mobilenet_v1", "dropout": 0.0}
    config.init_from, config.init_excuse = str(random_file), ("classifier/.*",)
    config.preprocess.mean, config.preprocess.std = VGGFACE2.mean, VGGFACE2.std
    task = build_task(config)
    trainer = Trainer(config, task, load_pretrained(random_file))
    split, variables = (
        task.open_split("train"),
        {"params": trainer.state.params, "batch_stats": trainer.state.batch_stats},
    )
    apply = jax.jit(make_apply(trainer.model), static_argnums=2)
    x = normalize(split.read(np.arange(len(split)))["image"], VGGFACE2.mean, VGGFACE2.std)
    in_evaluation, _ = apply(variables, x, False)
    folded = merge(variables, load_pretrained(random_file).values, config.init_excuse)
    np.testing.assert_allclose(in_evaluation, apply(folded, x, False)[0], atol=1e-4)
    np.testing.assert_allclose(apply(variables, x, True, KEY)[0], in_evaluation, atol=1e-4)
