"""Conversions of jax's primitives to ONNX operators: each adds nodes to a graph and returns their outputs."""

from collections.abc import Sequence
from string import ascii_letters
from typing import Any

import numpy as np
import onnx
from jax import lax

from affect_jax.export.onnx_graph import BATCH, Conversion, Graph, Tensor, Value, rank, sizes


def elementwise(operator: str, **attributes: Any) -> Conversion:
    """Return the conversion to an operator that broadcasts; the result has the axis order of a transposed operand."""

    def convert(graph: Graph, equation, *inputs: Value) -> Tensor:
        full = len(equation.outvars[0].aval.shape)
        inputs = [x if isinstance(x, Tensor) else without_copies(x) for x in inputs]
        orders = [value.order for value in inputs if isinstance(value, Tensor) and rank(value) == full]
        order = next((order for order in orders if order != tuple(range(full))), tuple(range(full)))
        names = [graph.in_order(value, order if rank(value) == full else ()) for value in inputs]
        shapes = [value.shape for value in inputs if rank(value) == full]
        shape = tuple(next((side for side in sides if side != 1), 1) for sides in zip(*shapes, strict=True))
        return Tensor(graph.add(operator, names, **attributes), shape, order)

    return convert


def without_copies(value: np.ndarray) -> np.ndarray:
    """Return the value with sides of 1 if all its elements are equal."""
    return value[(slice(1),) * value.ndim] if value.size and (value == value.flat[0]).all() else value


def not_equal(graph: Graph, equation, *inputs: Value) -> Tensor:
    """Convert x != y."""
    equal = elementwise("Equal")(graph, equation, *inputs)
    return equal._replace(name=graph.add("Not", [equal.name]))


def log1p(graph: Graph, equation, x: Value) -> Tensor:
    """Convert log(1 + x)."""
    total = elementwise("Add")(graph, equation, x, np.ones((), equation.invars[0].aval.dtype))
    return total._replace(name=graph.add("Log", [total.name]))


def log2(graph: Graph, equation, x: Value) -> Tensor:
    """Convert the logarithm to base 2, which is a primitive since jax 0.11."""
    natural = elementwise("Log")(graph, equation, x)
    scale = graph.constant(np.asarray(1 / np.log(2), equation.invars[0].aval.dtype))
    return natural._replace(name=graph.add("Mul", [natural.name, scale]))


def rsqrt(graph: Graph, equation, x: Value) -> Tensor:
    """Convert 1 / sqrt(x)."""
    root = elementwise("Sqrt")(graph, equation, x)
    return root._replace(name=graph.add("Reciprocal", [root.name]))


def power(graph: Graph, equation, x: Value) -> Tensor:
    """Convert an integer power of x."""
    return elementwise("Pow")(graph, equation, x, np.asarray(equation.params["y"], equation.invars[0].aval.dtype))


def square(graph: Graph, equation, x: Value) -> Tensor:
    """Convert x * x."""
    return elementwise("Mul")(graph, equation, x, x)


def select(graph: Graph, equation, which: Value, *cases: Value) -> Tensor:
    """Convert a choice between two cases: the second where `which` is true."""
    return elementwise("Where")(graph, equation, which, *reversed(cases))


def same(graph: Graph, equation, x: Value) -> Value:
    """Return x."""
    return x


def cast(graph: Graph, equation, x: Tensor) -> Tensor:
    """Convert a cast to another dtype."""
    return cast_to(graph, x, equation.params["new_dtype"])


def cast_to(graph: Graph, x: Tensor, dtype) -> Tensor:
    """Return x with another dtype."""
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return x._replace(name=graph.add("Cast", [x.name], to=to))


def transpose(graph: Graph, equation, x: Tensor) -> Tensor:
    """Record a transpose in the axis order of the tensor; adds no node."""
    axes = equation.params["permutation"]
    return Tensor(x.name, tuple(x.shape[axis] for axis in axes), tuple(axes.index(axis) for axis in x.order))


def expanded(graph: Graph, x: Value, shape: tuple[int | str, ...]) -> Tensor:
    """Return x expanded to a shape, in jax's order; ValueError if a constant would expand along the batch."""
    name, plain = graph.in_order(x), tuple(range(rank(x)))
    if x.shape != shape:
        if BATCH in shape and x.shape[shape.index(BATCH)] != BATCH:
            raise ValueError(f"the ONNX exporter does not support a constant of shape {shape}: it depends on the batch")
        name = graph.add("Expand", [name, graph.integers([1 if side == BATCH else side for side in shape])])
    return Tensor(name, shape, plain)


def reshape(graph: Graph, equation, x: Value) -> Tensor:
    """Convert a reshape."""
    given, shape = sizes(equation.invars[0].aval), sizes(equation.outvars[0].aval)
    return reshaped(graph, expanded(graph, x, given), shape)


def reshaped(graph: Graph, x: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    """Return x, in jax's order of axes, reshaped."""
    plain = tuple(range(len(shape)))
    if x.shape == shape:
        return x
    sides = graph.integers([-1 if side == BATCH else side for side in shape])
    return Tensor(graph.add("Reshape", [graph.in_order(x), sides]), shape, plain)


def broadcast(graph: Graph, equation, x: Value) -> Value:
    """Insert axes of size 1 for a broadcast; an operator that cannot broadcast expands them later."""
    places, wanted = equation.params["broadcast_dimensions"], sizes(equation.outvars[0].aval)
    shape = [1] * len(wanted)
    for place, side in zip(places, x.shape, strict=True):
        shape[place] = side
    if not isinstance(x, Tensor):
        return x.reshape(shape)
    return reshaped(graph, x, tuple(shape))


def stack(graph: Graph, equation, *inputs: Value) -> Tensor:
    """Convert a stack along a new axis."""
    return stacked(graph, inputs, equation.params["axis"], sizes(equation.outvars[0].aval))


def stacked(graph: Graph, inputs: Sequence[Value], axis: int, shape: tuple[int | str, ...]) -> Tensor:
    """Return the inputs stacked along a new axis."""
    single = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [reshaped(graph, expanded(graph, x, (*shape[:axis], *shape[axis + 1 :])), single) for x in inputs]
    name = graph.add("Concat", [part.name for part in parts], axis=axis)
    return Tensor(name, shape, tuple(range(len(shape))))


def concatenate(graph: Graph, equation, *inputs: Value) -> Tensor:
    """Convert a concatenation."""
    parts = [expanded(graph, x, sizes(var.aval)) for x, var in zip(inputs, equation.invars, strict=True)]
    shape = sizes(equation.outvars[0].aval)
    name = graph.add("Concat", [part.name for part in parts], axis=equation.params["dimension"])
    return Tensor(name, shape, tuple(range(len(shape))))


def cut(graph: Graph, equation, x: Value) -> Tensor:
    """Convert a slice."""
    params, x = equation.params, expanded_in_place(graph, x, sizes(equation.invars[0].aval))
    return sliced(graph, x, params["start_indices"], params["limit_indices"], params["strides"])


def gather(graph: Graph, equation, x: Value, indices: Value) -> Tensor:
    """Convert a gather of a slice at one constant position, as x[:, :3] is with a symbolic batch, or of elements."""
    x = expanded_in_place(graph, x, sizes(equation.invars[0].aval))
    if isinstance(indices, Tensor) or indices.ndim > 1:
        return gather_elements(graph, equation, x, indices)
    return gather_slice(graph, equation, x, indices)


def gather_slice(graph: Graph, equation, x: Tensor, indices: np.ndarray) -> Tensor:
    """Convert a gather of a slice at one constant position; ValueError if it has axes of a batch."""
    params = equation.params
    numbers, given = params["dimension_numbers"], x.shape
    if numbers.operand_batching_dims:
        raise ValueError("the ONNX exporter does not support a gather of slices for a batch")
    starts = dict(zip(numbers.start_index_map, indices.tolist(), strict=True))
    starts = [starts.get(axis, 0) for axis in range(len(given))]
    limits = [
        side if side == BATCH else start + int(size)
        for side, start, size in zip(given, starts, params["slice_sizes"], strict=True)
    ]
    return reshaped(graph, sliced(graph, x, starts, limits), sizes(equation.outvars[0].aval))


def gather_elements(graph: Graph, equation, x: Tensor, indices: Value) -> Tensor:
    """Convert x[i, j, :], for arrays i, j; ValueError on slices or on indices that may be out of bounds."""
    params, shape = equation.params, sizes(equation.outvars[0].aval)
    numbers, index_shape = params["dimension_numbers"], sizes(equation.invars[1].aval)
    batch, indexed = numbers.operand_batching_dims, numbers.start_index_map
    index_batch, rest = numbers.start_indices_batching_dims, numbers.offset_dims
    whole = [axis for axis in range(rank(x)) if axis not in (*batch, *indexed)]
    lengths = [x.shape[axis] if axis in whole else 1 for axis in range(rank(x))]
    if tuple(map(str, params["slice_sizes"])) != tuple(map(str, lengths)) or len(rest) != len(whole):
        raise ValueError("the ONNX exporter does not support a gather of slices at several positions")
    if params["mode"] != lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        raise ValueError(f"the ONNX exporter does not support a gather of mode {params['mode'].name}")
    positions = [axis for axis in range(len(index_shape) - 1) if axis not in index_batch]
    indices = cast_to(graph, expanded(graph, indices, index_shape), np.int64)
    operands = [
        graph.in_order(x, (*batch, *indexed, *whole)),
        graph.in_order(indices, (*index_batch, *positions, len(index_shape) - 1)),
    ]
    name = graph.add("GatherND", operands, batch_dims=len(batch))
    of_indices = [axis for axis in range(len(shape)) if axis not in rest]
    order = [*(of_indices[axis] for axis in (*index_batch, *positions)), *rest]
    return Tensor(name, shape, tuple(map(int, order)))


def sliced(graph: Graph, x: Tensor, starts: Sequence, limits: Sequence, strides: Sequence | None = None) -> Tensor:
    """Slice x from starts to limits along each axis except the batch axis."""
    given, strides = x.shape, strides or (1,) * rank(x)
    axes = [axis for axis, side in enumerate(given) if side != BATCH]
    shape = [
        side if side == BATCH else len(range(*place))
        for side, *place in zip(given, starts, limits, strides, strict=True)
    ]
    parts = [[values[axis] for axis in axes] for values in (starts, limits)]
    operands = [*parts, [x.order.index(axis) for axis in axes], [strides[axis] for axis in axes]]
    return Tensor(graph.add("Slice", [x.name, *map(graph.integers, operands)]), tuple(shape), x.order)


def expanded_in_place(graph: Graph, x: Value, shape: tuple[int | str, ...]) -> Tensor:
    """Return x in its own axis order if it has the full shape, else expanded in jax's order."""
    return x if isinstance(x, Tensor) and x.shape == shape else expanded(graph, x, shape)


def reduce(operator: str) -> Conversion:
    """Return the conversion to an operator that reduces axes."""

    def convert(graph: Graph, equation, x: Tensor) -> Tensor:
        x, axes = expanded_in_place(graph, x, sizes(equation.invars[0].aval)), equation.params["axes"]
        places = graph.integers([x.order.index(axis) for axis in axes])
        name = graph.add(operator, [x.name, places], keepdims=0)
        left = [axis for axis in x.order if axis not in axes]
        order = tuple(sorted(left).index(axis) for axis in left)
        return Tensor(name, sizes(equation.outvars[0].aval), order)

    return convert


def all_true(graph: Graph, equation, x: Tensor) -> Tensor:
    """Convert a logical "and" over axes."""
    return cast_to(graph, reduce("ReduceMin")(graph, equation, cast_to(graph, x, np.int32)), bool)


def top_k(graph: Graph, equation, x: Value) -> list[Tensor]:
    """Convert the k largest values and their indices; of equal values both sides take the first."""
    x = expanded_in_place(graph, x, sizes(equation.invars[0].aval))
    count, axis = graph.integers([equation.params["k"]]), x.order.index(equation.params["axis"])
    values, indices = graph.add_with_outputs("TopK", [x.name, count], 2, axis=axis)
    shape = sizes(equation.outvars[0].aval)
    return [Tensor(values, shape, x.order), cast_to(graph, Tensor(indices, shape, x.order), np.int32)]


def pad(graph: Graph, equation, x: Value, value: np.ndarray) -> Tensor:
    """Convert padding with a constant; ValueError on padding between elements."""
    x, config = expanded_in_place(graph, x, sizes(equation.invars[0].aval)), equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise ValueError("the ONNX exporter does not support padding between elements")
    if any(low or high for low, high, _ in config):
        pads = [config[axis][end] for end in (0, 1) for axis in x.order]
        x = x._replace(name=graph.add("Pad", [x.name, graph.integers(pads), graph.constant(value)]))
    return x._replace(shape=sizes(equation.outvars[0].aval))


def unroll(graph: Graph, equation, *inputs: Value) -> list[Tensor]:
    """Convert lax.map by repeating its body; ValueError on a scan that carries values."""
    params = equation.params
    if "ft_in" in params:  # jax 0.11
        count, num_carry = (len(list(part)) for part in params["ft_in"].unpack()[:2])
    else:
        count, num_carry = params["num_consts"], params["num_carry"]
    if num_carry:
        raise ValueError("the ONNX exporter does not support a scan that carries values; lax.map does not")
    shared, mapped = inputs[:count], zip(inputs[count:], equation.invars[count:], strict=True)
    mapped = [expanded_in_place(graph, x, sizes(var.aval)) for x, var in mapped]
    results = [
        graph.inline(params["jaxpr"], [*shared, *(row(graph, x, place) for x in mapped)])
        for place in range(params["length"])
    ]
    return [
        stacked(graph, parts, 0, sizes(var.aval))
        for parts, var in zip(zip(*results, strict=True), equation.outvars, strict=True)
    ]


def row(graph: Graph, x: Tensor, place: int) -> Tensor:
    """Return x[place]."""
    starts, limits = [place, *[0] * (rank(x) - 1)], [place + 1, *x.shape[1:]]
    return reshaped(graph, sliced(graph, x, starts, limits), x.shape[1:])


def suppress(
    graph: Graph, equation, boxes: Value, scores: Value, valid: Value, iou_threshold: np.ndarray
) -> list[Tensor]:
    """Convert ops.nms.nms, also under vmap, to NonMaxSuppression; ValueError on several axes of a batch."""
    *batch, count, _ = sizes(equation.invars[0].aval)
    shape = sizes(equation.outvars[0].aval)
    # vmap may order the axes of inputs and output differently; without effect if only one is longer than 1
    if BATCH in batch or sum(side != 1 for side in batch) > 1 or shape[-1] != count:
        raise ValueError("the ONNX exporter supports non-maximum suppression only along one axis of fixed length")
    boxes, scores, valid = (
        expanded(graph, x, sizes(var.aval)) for x, var in zip((boxes, scores, valid), equation.invars, strict=False)
    )
    sets = int(np.prod(batch))
    lowest = np.finfo(np.float32).min
    eligible = graph.add("Where", [valid.name, scores.name, graph.constant(np.float32(-np.inf))])
    operands = [
        reshaped(graph, boxes, (sets, count, 4)).name,
        graph.add("Reshape", [eligible, graph.integers((sets, 1, count))]),
        graph.integers([count]),
        graph.constant(np.float32(iou_threshold)),
        graph.constant(lowest),
    ]
    kept = graph.add("NonMaxSuppression", operands)  # rows of (set, class, box)
    places = graph.add("Gather", [kept, graph.integers([0, 2])], axis=1)
    number = graph.add("Shape", [kept], start=0, end=1)
    true = graph.add("Expand", [graph.constant(True), number])
    mask = graph.add("ScatterND", [graph.constant(np.zeros((sets, count), bool)), places, true])
    return [reshaped(graph, Tensor(mask, (sets, count), (0, 1)), shape)]


def max_pool(graph: Graph, equation, x: Tensor) -> Tensor:
    """Convert max-pooling; ValueError unless the windows span two of four axes without dilation."""
    params = equation.params
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    space = [axis for axis in range(len(window)) if window[axis] != 1]
    rest = [axis for axis in range(len(window)) if axis not in space]
    holes = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if holes or len(rest) != 2 or any(strides[axis] != 1 or padding[axis] != (0, 0) for axis in rest):
        raise ValueError(f"the ONNX exporter does not support reduce_window_max over {window}")
    x, order = expanded_in_place(graph, x, sizes(equation.invars[0].aval)), (*rest, *space)
    name = graph.add(
        "MaxPool",
        [graph.in_order(x, order)],
        kernel_shape=[window[axis] for axis in space],
        strides=[strides[axis] for axis in space],
        pads=[padding[axis][end] for end in (0, 1) for axis in space],
    )
    return Tensor(name, sizes(equation.outvars[0].aval), order)


def convolve(graph: Graph, equation, x: Value, kernel: Value) -> Tensor:
    """Convert a convolution; ValueError on input dilation, batch groups or negative padding."""
    params = equation.params
    numbers, padding = params["dimension_numbers"], params["padding"]
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1 or np.min(padding) < 0:
        raise ValueError("the ONNX exporter supports no input dilation, batch groups or negative padding")
    x = expanded_in_place(graph, x, sizes(equation.invars[0].aval))
    name = graph.add(
        "Conv",
        [graph.in_order(x, numbers.lhs_spec), graph.in_order(kernel, numbers.rhs_spec)],
        strides=params["window_strides"],
        pads=[pair[end] for end in (0, 1) for pair in padding],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return Tensor(name, sizes(equation.outvars[0].aval), tuple(numbers.out_spec))


def multiply(graph: Graph, equation, *inputs: Value) -> Tensor:
    """Convert dot_general: batch axes first, then the free axes of each operand."""
    (contracted, batched), shapes = equation.params["dimension_numbers"], [sizes(var.aval) for var in equation.invars]
    letters = iter(ascii_letters)
    terms = [[""] * len(shape) for shape in shapes]
    for left, right in [*zip(*batched, strict=True), *zip(*contracted, strict=True)]:
        terms[0][left] = terms[1][right] = next(letters)
    result = [terms[0][axis] for axis in batched[0]]
    for term in terms:
        for axis in [axis for axis, letter in enumerate(term) if not letter]:
            term[axis] = next(letters)
            result.append(term[axis])
    written = ",".join("".join(term) for term in terms) + "->" + "".join(result)
    names = [expanded(graph, x, shape).name for x, shape in zip(inputs, shapes, strict=True)]
    shape = sizes(equation.outvars[0].aval)
    return Tensor(graph.add("Einsum", names, equation=written), shape, tuple(range(len(shape))))


SAME_NAME = (
    *("abs", "add", "and", "div", "erf", "exp", "floor", "log", "max", "min", "mul", "neg", "not", "pow", "sign"),
    *("sqrt", "sub", "tanh"),
)
OTHER_NAME = {
    "eq": "Equal",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "logistic": "Sigmoid",
    "lt": "Less",
}
OPERATORS: dict[str, Conversion] = {
    **{name: elementwise(name.capitalize()) for name in SAME_NAME},
    **{name: elementwise(operator) for name, operator in OTHER_NAME.items()},
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "conv_general_dilated": convolve,
    "convert_element_type": cast,
    "copy": same,
    "dot_general": multiply,
    "gather": gather,
    "integer_pow": power,
    "log1p": log1p,
    "log2": log2,
    "ne": not_equal,
    "pad": pad,
    "reduce_and": all_true,
    "reduce_max": reduce("ReduceMax"),
    "reduce_sum": reduce("ReduceSum"),
    "reduce_window_max": max_pool,
    "rem": elementwise("Mod", fmod=1),
    "reshape": reshape,
    "rsqrt": rsqrt,
    "scan": unroll,
    "select_n": select,
    "slice": cut,
    "square": square,
    "squeeze": reshape,
    "stack": stack,
    "stop_gradient": same,
    "top_k": top_k,
    "transpose": transpose,
}
"""Conversions by the name of jax's primitive."""
FUNCTIONS: dict[str, Conversion] = {"nms": suppress}
"""Conversions by the name of a function compiled with jax.jit."""
