from functools import partial

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
from affect_jax.export.onnx_model import to_onnx
from affect_jax.models.fpn import upsample_nearest
from affect_jax.ops.conv import conv2d
from affect_jax.ops.nms import nms
from affect_jax.ops.pool import max_pool, max_pool_2x2
from affect_jax.tasks.interface import DataFacts

RNG = np.random.default_rng(0)
KERNEL, DEPTHWISE = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 3, 4, 5), (3, 3, 1, 4)))
MATRIX, BIAS = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
INPUT = {"x": jax.ShapeDtypeStruct((9, 7, 4), np.float32)}


def blocks_as_channels(x: jax.Array) -> jax.Array:
    """Return x [B, H, W, C] with blocks of 2x2 pixels as one pixel each, [B, H / 2, W / 2, 4 C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


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
    "max-pooling of odd sides": max_pool_2x2,
    "max-pooling with its own gradient": lambda x: max_pool(x, 3, 2, 1),
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
    "blocks of pixels as channels": lambda x: blocks_as_channels(conv2d(x, KERNEL, (1, 1), "SAME")[:, :8, :6]),
    "repeated pixels": lambda x: upsample_nearest(conv2d(x, KERNEL, (1, 1), "SAME")),
    "other axes": lambda x: jnp.concatenate([x, 2 * x], 1).transpose(0, 3, 1, 2) ** 3,
    "concatenated channels": lambda x: jnp.concatenate([conv2d(x, KERNEL, (1, 1), "SAME"), x], -1),
    "activations": lambda x: jax.nn.swish(x) + jax.nn.gelu(x) + jax.nn.leaky_relu(x) + lax.erf(x),
    "activations of positive numbers": lambda x: (
        jnp.sqrt(jnp.abs(x)) + jnp.log(jnp.exp(x) + 1) - jnp.minimum(-x, x) / 3
    ),
    "comparisons": lambda x: jnp.where((x > 0) == (x <= 0.5), x, jnp.where(x >= 1, 2.0, jnp.where(x < -1, 3.0, -x))),
}


NUMBERS = jnp.arange(200.0).reshape(40, 5)

FUNCTIONS_OF_ONE_IMAGE = {
    "best cells and their rows": lambda x: jax.vmap(
        lambda row, values: values[lax.top_k(row, 9)[1]] * lax.top_k(row, 9)[0][:, None]
    )(x.sum(-1).reshape(1, -1), x.reshape(1, -1, 4)),
    "rows of a constant at places of several axes": lambda x: NUMBERS[(jnp.abs(x) * 9).astype(jnp.int32)],
    "gather of elements by row and column": lambda x: x[0][lax.top_k(x[0, ..., 0].T, 5)[1], jnp.arange(5)],
    "padding of a convolution": lambda x: jnp.pad(
        conv2d(x, KERNEL, (1, 1), "SAME"), ((0, 0), (2, 0), (0, 1), (0, 3)), constant_values=7
    ),
    "map in chunks": lambda x: lax.map(
        lambda row: row["x"] @ MATRIX * row["factor"], {"x": x[0], "factor": jnp.arange(9.0)}, batch_size=4
    ),
    "whole numbers and truths": lambda x: jnp.where(
        jnp.all((x > 0) & ~(x > 2), -1, keepdims=True), (9 * x).astype(jnp.int32) // 4, jnp.floor(x).astype(jnp.int32)
    ),
    "logarithms near 1": lambda x: jax.nn.log_sigmoid(20 * x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_equals_the_jax_function_at_any_batch_size(name):
    function = FUNCTIONS[name]
    model = to_onnx(lambda x: {"y": function(x)}, INPUT)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = RNG.normal(size=(batch, 9, 7, 4)).astype(np.float32)
        expected = np.asarray(function(jnp.asarray(x)))
        (found,) = session.run(["y"], {"x": x})
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def run_with_one_image(function, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the output of onnxruntime for a function converted for the batch size of the inputs."""
    (batch_size,) = {len(array) for array in inputs.values()}
    shapes = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in inputs.items()}
    model = to_onnx(lambda *arrays: {"y": function(*arrays)}, shapes, batch_size)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], inputs)[0]


@pytest.mark.parametrize("name", FUNCTIONS_OF_ONE_IMAGE)
def test_graph_equals_the_jax_function_for_one_image(name):
    function = FUNCTIONS_OF_ONE_IMAGE[name]
    x = RNG.normal(size=(1, 9, 7, 4)).astype(np.float32)
    expected, found = np.asarray(function(jnp.asarray(x))), run_with_one_image(function, {"x": x})
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_non_maximum_suppression_of_several_levels_equals_ours():
    corners = RNG.uniform(0, 60, (3, 200, 2))
    boxes = np.concatenate([corners, corners + RNG.uniform(0, 30, (3, 200, 2))], -1).astype(np.float32)
    boxes[0, :5] = 0
    scores = RNG.integers(0, 50, (3, 200)).astype(np.float32) / 50  # some are equal
    valid = RNG.random((3, 200)) < 0.8
    valid[2] = False
    function = jax.vmap(lambda *arrays: nms(*arrays, 0.4))
    found = run_with_one_image(function, {"boxes": boxes, "scores": scores, "valid": valid})
    np.testing.assert_array_equal(found, function(boxes, scores, valid))
    assert found[0].any() and not found[2].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v2_cnn", {"widths": (8, 8), "dense": (8,), "attach": "C4"}),
        ("mobilefacenet", {"padding": "SAME", "stem_pointwise": True}),
    ],
)
def test_network_with_preprocessing_has_no_transpose_between_convolutions(
    name, options, tiny_config, plain_convolutions
):
    tiny_config.model = {"name": name, "width_multiplier": 0.25, "input_size": (64, 64), **options}
    tiny_config.valence_arousal_weight = 0.5
    trained = untrained(tiny_config, DataFacts(("happy", "sad", "neutral"), (48, 48, 1)))
    trained.variables["params"]["classifier"]["kernel"] *= 1000  # untrained, the probabilities are nearly constant
    interface = classifier_interface(trained)
    model = to_onnx(partial(interface.function, trained.variables), interface.inputs)
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
        (
            lambda x: lax.scan(lambda total, row: (total + row, total), x[:, 0], x.swapaxes(0, 1))[1],
            "carries values",
        ),
        (
            lambda x: jax.vmap(lambda one: nms(one[0], one[0, :, 0], one[0, :, 0] > 0, 0.5))(x),
            "one axis of fixed length",
        ),
    ],
)
def test_unsupported_function_is_an_error_that_names_the_primitive(function, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(lambda x: {"y": function(x)}, INPUT)
