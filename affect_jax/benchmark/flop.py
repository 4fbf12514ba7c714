"""Count the operations of networks: two per multiplication of convolutions and matrix products."""

import jax
import numpy as np
from ml_collections import ConfigDict

from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts, Task
from affect_jax.train.state import Network, make_apply, variable_shapes


def forward_flop(config: ConfigDict) -> float:
    """Return the operations of the network for one image.

    For a detector, an image has the size of the first bucket. Boxes, NMS and loops of unknown length are not counted.
    """
    task, data, model, variables = _build(config)
    apply, inputs = make_apply(model), task.network_inputs(data)
    return count_flop(jax.make_jaxpr(lambda variables, x: apply(variables, x, False))(variables, inputs).jaxpr)


def training_flop(config: ConfigDict, batch: dict[str, np.ndarray]) -> float:
    """Return the operations of the forward pass of a training step for one image: see forward_flop."""
    task, data, model, variables = _build(config)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    loss = jax.make_jaxpr(task.loss_fn(make_apply(model), data))
    traced = loss(variables["params"], variables["batch_stats"], shapes, jax.random.key(0))
    return count_flop(traced.jaxpr) / config.batch_size


def _build(config: ConfigDict) -> tuple[Task, DataFacts, Network, dict]:
    """Return the task, the facts of its data, its network and the shapes of the network's variables."""
    task = build_task(config)
    data = task.data_facts(task.open_split("train"))
    model = task.build_network(data)
    return task, data, model, variable_shapes(model, task.network_inputs(data))


def count_flop(jaxpr) -> float:
    """Return the operations of a program's convolutions and matrix products, two per multiplication."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * np.prod(kernel) / features
        elif name == "dot_general":
            contracted = [equation.invars[0].aval.shape[axis] for axis in params["dimension_numbers"][0][0]]
            total += 2 * equation.outvars[0].aval.size * np.prod(contracted)
        elif name == "scan":
            total += params["length"] * count_flop(params["jaxpr"].jaxpr)
        elif name == "cond":  # a convolution by platform; the last branch with products has XLA's own
            counts = [count_flop(branch.jaxpr) for branch in params["branches"]]
            total += next(filter(None, reversed(counts)), 0.0)
        else:
            inner = params.get("jaxpr", params.get("call_jaxpr"))
            total += count_flop(getattr(inner, "jaxpr", inner)) if inner is not None else 0.0
    return total
