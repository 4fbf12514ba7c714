"""Count the operations of programs: two per multiplication of convolutions and matrix products."""

from collections.abc import Callable

import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr


def program_flop(program: Callable, *arguments) -> float:
    """Return the operations of a function of these arguments or shapes that its results depend on.

    Boxes, NMS and loops of unknown length are not counted.
    """
    jaxpr, _ = dce_jaxpr(jax.make_jaxpr(program)(*arguments).jaxpr, True)
    return jaxpr_flop(jaxpr)


def jaxpr_flop(jaxpr) -> float:
    """Return the operations of a program's convolutions and matrix products, two per multiplication."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            spread = np.prod(params["lhs_dilation"])  # one of so many values is not an inserted zero
            total += 2 * equation.outvars[0].aval.size * np.prod(kernel) / features / spread
        elif name == "dot_general":
            contracted = [equation.invars[0].aval.shape[axis] for axis in params["dimension_numbers"][0][0]]
            total += 2 * equation.outvars[0].aval.size * np.prod(contracted)
        elif name == "scan":
            total += params["length"] * jaxpr_flop(params["jaxpr"].jaxpr)
        elif name == "cond":  # a convolution by platform; the last branch with products has XLA's own
            counts = [jaxpr_flop(branch.jaxpr) for branch in params["branches"]]
            total += next(filter(None, reversed(counts)), 0.0)
        else:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            total += jaxpr_flop(getattr(inner, "jaxpr", inner)) if inner is not None else 0.0
    return total
