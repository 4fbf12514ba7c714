"""Convert a jax function to ONNX, primitive by primitive, for batches of any size or of a fixed one.

Parameters become constants of the graph, and expressions of constants are evaluated during the conversion. ONNX
convolves [B, C, H, W]: the output of a convolution keeps that axis order until an operator needs another.
Non-maximum suppression, a loop in jax, becomes the ONNX operator; lax.map is unrolled.

The package jax2onnx (0.17.1, November 2026) converts VGG-FER and MobileNetV1 but not the other networks: it rejects
lax.platform_dependent, which ops/conv.py uses, positional arguments of flax's max_pool, which ResNet uses, and
jax.image.resize with a symbolic batch; onnxruntime rejects its MobileNetV2 (incompatible dimensions in the residual
additions). It also requires orbax-checkpoint < 0.11.37, and this package requires >= 0.12.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import onnx
from jax import export

from affect_jax.export.onnx_graph import BATCH, Graph, Tensor, sizes
from affect_jax.export.onnx_operators import FUNCTIONS, OPERATORS

OPSET, IR_VERSION = 18, 8
"""Versions of December 2022, which older runtimes read as well."""


def to_onnx(
    function: Callable[..., Mapping[str, jax.Array]],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    batch_size: int | None = None,
) -> onnx.ModelProto:
    """Return a function of arrays [batch, ...] as a model; its outputs by name are [batch, ...] too.

    `inputs` holds the shapes by name, without the batch axis. The batch may have any size if batch_size is None.
    Raises ValueError on a primitive of jax that is not supported.
    """
    batch = export.symbolic_shape(BATCH)[0] if batch_size is None else batch_size
    arrays = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in inputs.values()]
    traced, outputs = jax.make_jaxpr(function, return_shape=True)(*arrays)
    graph = Graph(OPERATORS, FUNCTIONS)
    known = [np.asarray(value) for value in traced.consts]
    given = [Tensor(name, sizes(array), tuple(range(array.ndim))) for name, array in zip(inputs, arrays, strict=True)]
    results = graph.run(traced.jaxpr, known, given)
    for output, result in zip(sorted(outputs), results, strict=True):
        graph.nodes.append(onnx.helper.make_node("Identity", [graph.in_order(result)], [output]))
    described = onnx.helper.make_graph(
        graph.nodes,
        "network",
        [tensor_info(name, array) for name, array in zip(inputs, arrays, strict=True)],
        [tensor_info(output, outputs[output]) for output in sorted(outputs)],
        [onnx.numpy_helper.from_array(value, constant) for constant, value in graph.constants.items()],
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(described, opset_imports=[opset], ir_version=IR_VERSION)


def tensor_info(name: str, aval) -> onnx.ValueInfoProto:
    """Return the description of an input or output."""
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(aval.dtype), sizes(aval))
