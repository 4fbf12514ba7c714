"""What a run carries from step to step, and the one place where training code touches flax."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from affect_jax.names import Selects

Network = nn.Module
Apply = Callable[..., tuple[jax.Array, Any]]


class TrainState(struct.PyTreeNode):
    """Parameters, BatchNorm statistics, optimizer state and, where it is kept, the average of the weights."""

    step: jax.Array  # int32 [], updates done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # {"params", "batch_stats"}, or None

    @property
    def eval_variables(self) -> dict:
        """The variables that evaluation uses: the average of the weights where there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(model: Network, key: jax.Array, inputs: Any) -> dict:
    """Fresh `params` and `batch_stats` of a network; `inputs` are such as it takes, arrays or their shapes."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    variables = jax.jit(lambda key: model.init(key, zeros, False))(key)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def create_state(variables: dict, tx: optax.GradientTransformation, with_ema: bool) -> TrainState:
    """The state before the first update."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    # copies: a donated state may not hold one buffer twice
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)


def make_apply(model: Network, frozen: Selects | None = None) -> Apply:
    """The network as a function `apply(variables, x, train, key) -> (outputs, new batch_stats)`.

    A BatchNorm whose parameters are `frozen` works with its statistics as they are, in training too.
    """

    def keep_statistics(next_function, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and frozen("/".join((*context.module.path, "scale"))):
            x, _ = args
            return next_function(x, True)
        return next_function(*args, **kwargs)

    def apply(variables: dict, x: jax.Array, train: bool, key: jax.Array | None = None):
        if not train:
            return model.apply(variables, x, False), variables["batch_stats"]
        with nn.intercept_methods(keep_statistics) if frozen else nullcontext():
            outputs, updates = model.apply(
                variables, x, True, rngs={"dropout": key, "sampler": key}, mutable=["batch_stats"]
            )
        return outputs, updates.get("batch_stats", {})

    return apply


def describe_parameters(variables: dict) -> str:
    """Table of names, shapes and sizes."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
