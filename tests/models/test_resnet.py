import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.deterministic import random_weights

from affect_jax.models import build_model
from affect_jax.models.pretrained import merge, named_weights
from affect_jax.models.resnet import ResNetBackbone

KEY = jax.random.key(0)
FACES = np.random.default_rng(0).normal(size=(4, 48, 48, 1)).astype(np.float32)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(model, x=FACES):
    return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.asarray(x), False))


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_resnet_has_torchvisions_number_of_parameters(name, parameters):
    logits, variables = shapes_of(build_model(name, num_classes=1000))
    assert logits.shape == (4, 1000)
    assert count(variables["params"]) == parameters


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_taps_tell_channels_and_strides_of_the_feature_maps(depth, stride_in_1x1):
    backbone = ResNetBackbone(depth, stride_in_1x1=stride_in_1x1)
    widen = 4 if depth == 50 else 1
    expected = {"C2": (64 * widen, 4), "C3": (128 * widen, 8), "C4": (256 * widen, 16), "C5": (512 * widen, 32)}
    assert backbone.taps == expected
    features, _ = shapes_of(backbone, np.zeros((2, 50, 97, 3)))
    assert list(features) == ["C2", "C3", "C4", "C5"]
    for tap, (channels, stride) in expected.items():
        assert features[tap].shape == (2, -(-50 // stride), -(-97 // stride), channels)


def test_stages_behind_the_last_tap_do_not_exist():
    features, variables = shapes_of(ResNetBackbone(50, last="C4"), np.zeros((1, 64, 64, 3)))
    assert list(features) == ["C2", "C3", "C4"]
    assert not any(name.startswith("layer4") for name in variables["params"])
    assert count(variables["params"]) + count(variables["batch_stats"]) == 8_573_888  # values of the ImageNet file


def test_unknown_depth_and_tap_name_the_known_ones():
    with pytest.raises(ValueError, match="no ResNet of depth 19; known are 18, 34, 50"):
        shapes_of(ResNetBackbone(19))
    with pytest.raises(ValueError, match=r"unknown feature map 'P2'.* C2, C3, C4, C5"):
        shapes_of(ResNetBackbone(18, last="P2"))


def test_every_parameter_gets_a_finite_gradient_and_every_statistic_moves():
    model = build_model("resnet18", num_classes=7, dropout=0.5)
    _, shapes = shapes_of(model)
    variables = merge(shapes, random_weights({name: value.shape for name, value in named_weights(shapes).items()}))

    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params}, FACES, True, mutable=["batch_stats"], rngs={"dropout": KEY}
        )
        return -jnp.sum(jax.nn.log_softmax(logits)[:, 0]), updates["batch_stats"]

    quick_to_compile = {"xla_backend_optimization_level": 0}
    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=quick_to_compile)
    grads, batch_stats = gradient(variables["params"])
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: np.any(a != b), batch_stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_logits_are_float32_whatever_the_compute_dtype():
    logits, variables = shapes_of(build_model("resnet18", num_classes=7, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype(jnp.float32)}
