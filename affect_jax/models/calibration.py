"""Statistics of BatchNorm measured on images, for weights whose BatchNorm was folded into the convolutions."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict


def calibrate_batch_norm(model: nn.Module, variables: dict, x: jax.Array, loaded: Collection[str]) -> dict:
    """Return variables whose BatchNorm statistics are those of x, with the same outputs in evaluation mode.

    Only layers whose scale is in `loaded`, the names of loaded weights, change. One pass in evaluation mode measures
    the mean and variance of their inputs, per channel. Scale and bias change so that each layer computes the same
    function as before. Afterwards a training step, which normalizes by the statistics of its batch, starts from nearly
    the same function too. `x` is a batch of the network's inputs.
    """
    measured = jax.jit(lambda variables, x: _batch_norm_statistics(model, variables, x, loaded))(variables, x)
    params = flatten_dict(variables["params"], sep="/")
    statistics = flatten_dict(variables["batch_stats"], sep="/")
    for layer, (mean, var, epsilon) in measured.items():
        gain = params[f"{layer}/scale"] / jnp.sqrt(statistics[f"{layer}/var"] + epsilon)
        params[f"{layer}/bias"] += gain * (mean - statistics[f"{layer}/mean"])
        params[f"{layer}/scale"] = gain * jnp.sqrt(var + epsilon)
        statistics |= {f"{layer}/mean": mean, f"{layer}/var": var}
    return {"params": unflatten_dict(params, sep="/"), "batch_stats": unflatten_dict(statistics, sep="/")}


def _batch_norm_statistics(model: nn.Module, variables: dict, x: jax.Array, loaded: Collection[str]) -> dict:
    """Return the mean [C], variance [C] and epsilon for each loaded BatchNorm, by path.

    They are measured on its inputs in evaluation mode.
    """
    found = {}

    def measure(next_function, args, kwargs, context):
        path = "/".join(context.module.path)
        if isinstance(context.module, nn.BatchNorm) and f"{path}/scale" in loaded:
            features = args[0].astype(jnp.float32)
            axes = tuple(range(features.ndim - 1))
            found[path] = features.mean(axes), features.var(axes), context.module.epsilon
        return next_function(*args, **kwargs)

    with nn.intercept_methods(measure):
        model.apply(variables, x, False)
    return found
