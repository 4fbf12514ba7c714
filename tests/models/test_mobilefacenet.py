"""Features are compared with those that reference/make_mobilefacenet_reference.py computed in torch."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import features_from_file, shapes_of
from reference.deterministic import identity_weights
from safetensors.numpy import save_file

from affect_jax.models import build_model
from affect_jax.models.mobilefacenet import BLOCKS, MobileFaceNetBackbone, PReLU
from affect_jax.models.pretrained import check_options, load_pretrained, merge, named_weights
from affect_jax.ops.photometric import normalize
from affect_jax.tasks import build_task
from affect_jax.train.loop import Trainer
from affect_jax.train.state import make_apply

FEATURES = np.load(Path(__file__).parent / "reference" / "mobilefacenet.npz")
TAPS = ("block0", "block5", "block14", "head_prelu")
FOLDED = {"padding": "SAME", "stem_pointwise": True}
"""Fields of the network for weights with BatchNorm folded."""
EMBEDDING = {"gdc.conv.weight": (512, 1, 7, 7), "fc.weight": (8, 128), "fc.bias": (8,)}


def file_shapes(folded):
    """Return {name: shape} of a published file, with BatchNorm folded or not."""
    layers = {"stem": (64, 3, 3), "stem_dw": (64, 1, 3), "head": (512, 128, 1)}
    if folded:
        layers["stem_pw"] = (64, 64, 1)
    channels = 64
    for block, (expansion, features, _) in enumerate(BLOCKS):
        hidden = channels * expansion
        layers |= {f"blocks.{block}.expand": (hidden, channels, 1), f"blocks.{block}.depthwise": (hidden, 1, 3)}
        layers[f"blocks.{block}.project"] = (features, hidden, 1)
        channels = features
    shapes = dict(EMBEDDING)
    for layer, (outputs, inputs, side) in layers.items():
        shapes[f"{layer}.conv.weight"] = (outputs, inputs, side, side)
        vectors = ["conv.bias"] if folded else [f"bn.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
        if not layer.endswith(("project", "stem_pw")):
            vectors.append("act.weight")
        shapes |= {f"{layer}.{vector}": (outputs,) for vector in vectors}
    return shapes


def random_file(folder, folded):
    """Write a file of random weights with the published names."""
    save_file(identity_weights(file_shapes(folded)), folder / "mobilefacenet.safetensors")
    return folder / "mobilefacenet.safetensors"


def assert_features_equal_torchs(network, file, **fields):
    for tap, found in features_from_file(file, "mobilefacenet", MobileFaceNetBackbone, TAPS, **fields).items():
        np.testing.assert_allclose(found, FEATURES[f"{network}/{tap}"], rtol=1e-5, atol=1e-4, err_msg=tap)


@pytest.mark.parametrize(("network", "fields"), [("random", {}), ("random_folded", FOLDED)])
def test_features_with_random_weights_equal_torchs(network, fields, tmp_path):
    assert_features_equal_torchs(network, random_file(tmp_path, folded=bool(fields)), **fields)


@pytest.mark.parametrize(("network", "fields"), [("ms1m", {}), ("sirius", FOLDED), ("affectnet", FOLDED)])
def test_features_with_the_published_weights_equal_torchs(network, fields, shared_data):
    assert_features_equal_torchs(network, shared_data / "weights" / f"mobilefacenet_{network}.safetensors", **fields)


def test_network_with_the_fields_of_another_file_is_refused(tmp_path):
    pretrained = load_pretrained(random_file(tmp_path, folded=True))
    with pytest.raises(ValueError, match=r"padding is .*must be SAME.*stem_pointwise is False, must be True"):
        check_options(build_model("mobilefacenet", num_classes=7), pretrained)


@pytest.mark.parametrize("width_multiplier", [0.25, 1.0])
def test_backbone_has_stride_16_and_rounds_sides_up(width_multiplier):
    features, _ = shapes_of(MobileFaceNetBackbone(width_multiplier), np.zeros((2, 50, 97, 3)))
    assert features.shape == (2, math.ceil(50 / 16), math.ceil(97 / 16), int(512 * width_multiplier))


def test_prelu_has_a_slope_for_each_channel_below_0_and_is_the_identity_above():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    slopes = jnp.array([0.0, 0.25, 1.0, -0.5])
    found = PReLU().apply({"params": {"negative_slope": slopes}}, x)
    np.testing.assert_allclose(found, np.maximum(x, 0) + np.asarray(slopes) * np.minimum(x, 0), rtol=1e-6)


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("folded", [False, True])
def test_run_from_a_published_file_starts_with_its_function(folded, tiny_config, tmp_path):
    """BatchNorm that was folded has the statistics of training images; other BatchNorm keeps those of the file."""
    config, file = tiny_config, random_file(tmp_path, folded)
    config.model = {"name": "mobilefacenet", "dropout": 0.0, **(FOLDED if folded else {})}
    config.init_from, config.init_excuse = str(file), ("classifier/.*",)
    pretrained = load_pretrained(file)
    config.preprocess.mean, config.preprocess.std = pretrained.preprocess.mean, pretrained.preprocess.std
    task = build_task(config)
    trainer = Trainer(config, task, pretrained)
    variables = {"params": trainer.state.params, "batch_stats": trainer.state.batch_stats}
    split = task.open_split("train")
    x = normalize(split.read(np.arange(len(split)))["image"], pretrained.preprocess.mean, pretrained.preprocess.std)
    apply = jax.jit(make_apply(trainer.model), static_argnums=2)
    in_evaluation, _ = apply(variables, x, False)
    loaded = merge(variables, pretrained.values, config.init_excuse)
    np.testing.assert_allclose(in_evaluation, apply(loaded, x, False)[0], atol=1e-4)
    if folded:
        np.testing.assert_allclose(apply(variables, x, True, jax.random.key(0))[0], in_evaluation, atol=1e-4)
    else:
        for name, statistic in named_weights({"batch_stats": variables["batch_stats"]}).items():
            np.testing.assert_array_equal(statistic, pretrained.values[name])
