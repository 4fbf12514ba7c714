"""Graphs of ONNX nodes that are built from jaxprs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax.extend import core

BATCH = "batch"
"""Name of the symbolic dimension."""


class Tensor(NamedTuple):
    """The output of a node of the graph."""

    name: str
    shape: tuple[int | str, ...]
    """Sizes in jax's order of axes; 1 for an axis that jax broadcasts, since ONNX operators broadcast by themselves."""
    order: tuple[int, ...]
    """jax's axis for each axis of the tensor."""


Value = Tensor | np.ndarray
"""An array is a constant."""
Conversion = Callable[..., Value | list[Value]]
"""(graph, equation, *inputs) -> output, or list of outputs."""


class Graph:
    """Nodes and constants in the order of their creation.

    `operators` has the conversions by the name of jax's primitive, `functions` those by the name of a function compiled
    with jax.jit; the calls of other functions are inlined.
    """

    def __init__(self, operators: Mapping[str, Conversion], functions: Mapping[str, Conversion]):
        self.operators, self.functions = operators, functions
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._transposed: dict[tuple, str] = {}

    def run(
        self, jaxpr: core.Jaxpr, consts: Sequence[Value], arguments: Sequence[Value], wanted: Sequence[bool] = ()
    ) -> list[Value | None]:
        """Return the outputs of the jaxpr for the arguments; adds nodes for all that is not constant.

        An output that is not wanted is None; by default all are wanted.
        """
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def read(var) -> Value:
            return np.asarray(var.val, var.aval.dtype) if isinstance(var, core.Literal) else values.get(var)

        wanted = wanted or [True] * len(jaxpr.outvars)
        needed = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and isinstance(var, core.Var)}
        equations = []
        for equation in reversed(jaxpr.eqns):
            if wanted_here := needed.intersection(equation.outvars):
                needed |= {var for var in equation.invars if isinstance(var, core.Var)}
                equations.append((equation, [var in wanted_here for var in equation.outvars]))
        for equation, wanted_here in reversed(equations):
            results = self._apply(equation, [read(var) for var in equation.invars], wanted_here)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(var) if want else None for var, want in zip(jaxpr.outvars, wanted, strict=True)]

    def _apply(self, equation: core.JaxprEqn, inputs: list[Value], wanted: list[bool]) -> list[Value | None]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":  # of lax.platform_dependent: choose the default branch
            return [np.asarray(params["platforms"].index(None))]
        if name == "cond" and not isinstance(inputs[0], Tensor):
            return self.inline(params["branches"][int(inputs[0])], inputs[1:], wanted)
        convert = self.functions.get(params["name"]) if name == "jit" else self.operators.get(name)
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        if inner and not convert:
            return self.inline(inner, inputs, wanted)
        shapes = [sizes(var.aval) for var in equation.outvars]
        if not any(isinstance(value, Tensor) for value in inputs) and not any(BATCH in shape for shape in shapes):
            results = equation.primitive.bind(*inputs, **params)
            return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]
        if not convert:
            supported = ", ".join(sorted(self.operators))
            raise ValueError(f"{name} is not supported by the ONNX exporter; supported are {supported}")
        results = convert(self, equation, *inputs)
        return results if equation.primitive.multiple_results else [results]

    def inline(
        self, inner: core.ClosedJaxpr | core.Jaxpr, inputs: Sequence[Value], wanted: Sequence[bool] = ()
    ) -> list[Value | None]:
        """Return the outputs of an inner jaxpr, as run does."""
        if isinstance(inner, core.ClosedJaxpr):
            return self.run(inner.jaxpr, [np.asarray(value) for value in inner.consts], inputs, wanted)
        return self.run(inner, [], inputs, wanted)

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        return self.add_with_outputs(operator, inputs, 1, **attributes)[0]

    def add_with_outputs(self, operator: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its `count` outputs."""
        name = f"{operator}_{len(self.nodes)}"
        outputs = [name, *(f"{name}_{place}" for place in range(1, count))]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), outputs, name, **attributes))
        return outputs

    def constant(self, value) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, order="C")
        return name

    def integers(self, values: Sequence[int]) -> str:
        """Add a constant of axes, shapes or positions and return its name."""
        return self.constant(np.asarray(values, np.int64))

    def in_order(self, value: Value, order: Sequence[int] | None = None) -> str:
        """Return the name of the value with its axes in `order`, by default jax's."""
        order = tuple(range(rank(value)) if order is None else order)
        if not isinstance(value, Tensor):
            return self.constant(np.transpose(value, order))
        if value.order == order:
            return value.name
        perm = tuple(value.order.index(axis) for axis in order)
        key = value.name, perm
        if key not in self._transposed:
            self._transposed[key] = self.add("Transpose", [value.name], perm=perm)
        return self._transposed[key]


def sizes(aval) -> tuple[int | str, ...]:
    """Return the shape with BATCH for jax's symbol; ValueError if a side is another function of the batch."""
    shape = tuple(side if isinstance(side, int) else str(side) for side in aval.shape)
    if any(isinstance(side, str) and side != BATCH for side in shape) or shape.count(BATCH) > 1:
        raise ValueError(f"the ONNX exporter does not support the shape {shape}: only one side may depend on the batch")
    return shape


def rank(value: Value) -> int:
    """Return the number of axes."""
    return len(value.shape)
