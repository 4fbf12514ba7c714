"""Statistics of BatchNorm measured on images, for weights whose BatchNorm was folded into the convolutions."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict


def calibrate_batch_norm(model: nn.Module, variables: dict, x: jax.Array) -> dict:
    """Return variables whose BatchNorm statistics are those of x, with the same outputs in evaluation mode.

    One pass in evaluation mode measures the mean and variance of every BatchNorm's input, per channel. Scale and bias
    change so that each layer computes the same function as before. Afterwards a training step, which normalizes by the
    statistics of its batch, starts from nearly the same function too. `x` is a batch of the network's inputs.
    """
    measured = jax.jit(lambda variables, x: _batch_norm_statistics(model, variables, x))(variables, x)
    params = flatten_dict(variables["params"], sep="/")
    statistics = flatten_dict(variables["batch_stats"], sep="/")
    for layer, (mean, var, epsilon) in measured.items():
        gain = params[f"{layer}/scale"] / jnp.sqrt(statistics[f"{layer}/var"] + epsilon)
        params[f"{layer}/bias"] += gain * (mean - statistics[f"{layer}/mean"])
        params[f"{layer}/scale"] = gain * jnp.sqrt(var + epsilon)
        statistics |= {f"{layer}/mean": mean, f"{layer}/var": var}
    return {"params": unflatten_dict(params, sep="/"), "batch_stats": unflatten_dict(statistics, sep="/")}


def _batch_norm_statistics(model: nn.Module, variables: dict, x: jax.Array) -> dict[str, tuple]:
    """{path of a BatchNorm: (mean, variance, epsilon)} of the inputs of every BatchNorm in evaluation mode.

    Layers inside a loop over groups of proposals are left out: `sow` stores nothing there.
    """

    def measure(next_function, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            features = args[0].astype(jnp.float32)
            axes = tuple(range(features.ndim - 1))
            statistics = features.mean(axes), features.var(axes), context.module.epsilon
            context.module.sow("measured", "statistics", statistics, reduce_fn=lambda _, last: last)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(measure):
        _, found = model.apply(variables, x, False, mutable=["measured"])
    return {"/".join(path[:-1]): statistics for path, statistics in flatten_dict(found.get("measured", {})).items()}
