import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import linen as nn
from jax import lax
from untrained import untrained

from affect_jax.export.export import classifier_interface
from affect_jax.export.onnx_graph import to_onnx
from affect_jax.models.layers import max_pool
from affect_jax.ops.conv import conv2d
from affect_jax.tasks.interface import DataFacts

RNG = np.random.default_rng(0)
KERNEL, DEPTHWISE = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 3, 4, 5), (3, 3, 1, 4)))
MATRIX, BIAS = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=4).astype(np.float32)

FUNCTIONS = {
    "strided convolution": lambda x: conv2d(x, KERNEL, (2, 1), ((0, 1), (2, 1))),
    "depthwise convolution, then normalization": lambda x: jax.nn.relu6(
        (conv2d(x, DEPTHWISE, (1, 1), "SAME", 4) - BIAS) * lax.rsqrt(jnp.square(BIAS) + 1e-5) + BIAS
    ),
    "two convolutions and a shortcut": lambda x: (
        x + conv2d(jax.nn.relu(conv2d(x, KERNEL, (1, 1), "SAME"))[..., :4], KERNEL, (1, 1), "SAME")[..., :4]
    ),
    "dilated convolution": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", rhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "mean over pixels, of a convolution": lambda x: conv2d(x, KERNEL, (1, 1), "VALID").mean((1, 2)),
    "sum over one axis, of a convolution": lambda x: conv2d(x, KERNEL, (1, 1), "VALID").sum(2),
    "max-pooling of odd sides": max_pool,
    "max-pooling with padding": lambda x: nn.max_pool(x, (3, 2), (2, 2), ((1, 1), (1, 0))),
    "max-pooling, SAME, of a convolution": lambda x: nn.max_pool(
        conv2d(x, KERNEL, (1, 1), "SAME"), (2, 2), (2, 2), "SAME"
    ),
    "dense layer": lambda x: x.reshape(x.shape[0], -1) @ jnp.ones((9 * 7 * 4, 3)) + jnp.arange(3.0),
    "product that keeps axes before and after": lambda x: jnp.einsum("bhwc,cd->bdwh", x, MATRIX),
    "product of two maps of an image": lambda x: jnp.einsum("bhwc,bhvc->bwv", x, jnp.tanh(x)),
    "resizing": lambda x: jax.image.resize(x, (x.shape[0], 12, 10, 4), "bilinear"),
    "softmax": lambda x: jax.nn.softmax(x.mean((1, 2))),
    "strides, squeezing and stacking": lambda x: jnp.stack(
        [lax.slice_in_dim(x, 1, 9, 3, 1)[:, :, :, 0], x[:, :3, :, 1]], 2
    ),
    "other axes": lambda x: jnp.concatenate([x, 2 * x], 1).transpose(0, 3, 1, 2) ** 3,
    "concatenated channels": lambda x: jnp.concatenate([conv2d(x, KERNEL, (1, 1), "SAME"), x], -1),
    "activations": lambda x: jax.nn.swish(x) + jax.nn.gelu(x) + jax.nn.leaky_relu(x) + lax.erf(x),
    "activations of positive numbers": lambda x: (
        jnp.sqrt(jnp.abs(x)) + jnp.log(jnp.exp(x) + 1) - jnp.minimum(-x, x) / 3
    ),
    "comparisons": lambda x: jnp.where((x > 0) == (x <= 0.5), x, jnp.where(x >= 1, 2.0, jnp.where(x < -1, 3.0, -x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_equals_the_jax_function_at_any_batch_size(name):
    function = FUNCTIONS[name]
    model = to_onnx(lambda x: {"y": function(x)}, "x", (9, 7, 4), np.float32)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = RNG.normal(size=(batch, 9, 7, 4)).astype(np.float32)
        expected = np.asarray(function(jnp.asarray(x)))
        (found,) = session.run(["y"], {"x": x})
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_mobilenet_with_preprocessing_has_no_transpose_between_convolutions(tiny_config, plain_convolutions):
    options = {"width_multiplier": 0.25, "input_size": (64, 64), "widths": (8, 8), "dense": (8,), "attach": "C4"}
    tiny_config.model = {"name": "mobilenet_v2_cnn", **options}
    tiny_config.valence_arousal_weight = 0.5
    trained = untrained(tiny_config, DataFacts(("happy", "sad", "neutral"), (48, 48, 1)))
    trained.variables["params"]["classifier"]["kernel"] *= 500  # untrained, the probabilities are nearly constant
    interface = classifier_interface(trained)
    model = to_onnx(lambda faces: interface.function(trained.variables, faces), "faces", (48, 48, 1), np.uint8)
    assert [node.op_type for node in model.graph.node].count("Transpose") <= 2  # before the first, after the last
    faces = RNG.integers(0, 256, (3, 48, 48, 1), np.uint8)
    expected = interface.function(trained.variables, faces)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["probabilities", "valence_arousal"], {"faces": faces})
    assert found[0].std(axis=0).max() > 1e-3
    for value, name in zip(found, ("probabilities", "valence_arousal"), strict=True):
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (jnp.sort, "sort is not supported by the ONNX exporter; supported are abs, add"),
        (lambda x: x.reshape(-1, 4), "only one side may depend on the batch"),
        (
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2), (1, 1, 1, 1), "VALID"),
            "does not support reduce_window_max over",
        ),
        (lambda x: jnp.concatenate([x, jnp.zeros_like(x)], -1), "it depends on the batch"),
    ],
)
def test_unsupported_function_is_an_error_that_names_the_primitive(function, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(lambda x: {"y": function(x)}, "x", (9, 7, 4), np.float32)
