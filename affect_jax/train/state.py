"""The state of a run, and the only training code that uses flax."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from affect_jax.models.pretrained import named_weights
from affect_jax.names import Selects
from affect_jax.process import OLDER_EMITTERS
from affect_jax.tasks.interface import Apply

if TYPE_CHECKING:  # prediction does not need it
    import optax

Network = nn.Module


class TrainState(struct.PyTreeNode):
    """Parameters, BatchNorm statistics, optimizer state and, optionally, a moving average of the weights."""

    step: jax.Array  # int32 [], number of steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # {"params", "batch_stats"}, or None

    @property
    def eval_variables(self) -> dict:
        """The variables for evaluation: the moving average if there is one."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(model: Network, key: jax.Array, inputs: Any) -> dict:
    """Draw `params` and `batch_stats` of a network; `inputs` are arrays, or shapes, that the network accepts."""
    return run_once(lambda key: _initial(model, key, inputs), key)


def init_some(model: Network, key: jax.Array, inputs: Any, names: Iterable[str]) -> dict[str, jax.Array]:
    """Draw only the variables called `names`, with the values that init_variables would give them; by name."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        initial = named_weights(_initial(model, key, inputs))
        return {name: initial[name] for name in names}

    return run_once(draw, key)


def run_once(function: Callable, *arguments):
    """Compile a function and call it. XLA on CPU optimizes it little: compilation takes longer than the one call."""
    quick = {"xla_backend_optimization_level": 1, **OLDER_EMITTERS}
    return jax.jit(function, compiler_options=quick if jax.default_backend() == "cpu" else None)(*arguments)


def _initial(model: Network, key: jax.Array, inputs: Any) -> dict:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    variables = model.init(key, zeros, False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def variable_shapes(model: Network, inputs: Any) -> dict:
    """Return the shapes and types of `params` and `batch_stats` of a network, without computing them."""
    return jax.eval_shape(lambda: _initial(model, jax.random.key(0), inputs))


def create_state(variables: dict, tx: "optax.GradientTransformation", with_ema: bool) -> TrainState:
    """Return the state before the first step."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    # Copies: a donated state must not hold a buffer twice.
    ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)


def make_apply(model: Network, frozen: Selects | None = None) -> Apply:
    """Return the network as a function `apply(variables, x, train, key) -> (outputs, new batch_stats)`.

    A BatchNorm whose parameters are `frozen` uses its stored statistics in training too, and does not change them.
    """

    def keep_statistics(next_function, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm) and frozen("/".join((*context.module.path, "scale"))):
            x, _, *rest = args
            return next_function(x, True, *rest, **kwargs)
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
    """Return a table of names, shapes and sizes of the parameters."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
