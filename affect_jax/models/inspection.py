"""Look into networks: the outputs and the calls of their layers. B batch, H W C height, width, channels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn


def feature_maps(model: nn.Module, variables: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Return the outputs [B, H, W, C] of the network's modules by path, in order; after BatchNorm where it follows."""
    maps: dict[str, jax.Array] = {}

    def keep(next_function, args, kwargs, context):
        output = next_function(*args, **kwargs)
        if context.method_name == "__call__" and getattr(output, "ndim", 0) == 4:
            path = "/".join(context.module.path)
            for inner in [name for name in maps if name.startswith(f"{path}/") or f"{name}_bn" == path]:
                del maps[inner]
            maps[path] = output
        return output

    @jax.jit
    def values(variables: dict, x: jax.Array) -> list[jax.Array]:
        with nn.intercept_methods(keep):
            model.apply(variables, x, False)
        return list(maps.values())

    found = values(variables, x)  # tracing fills the dict in order; jit would sort it
    return dict(zip(maps, found, strict=True))


class LayerCall(NamedTuple):
    """One call of a layer, a module with parameters and without inner modules."""

    kind: str
    apply: Callable[[dict, jax.Array], jax.Array]
    """(variables, x) -> output."""
    variables: dict[str, Any]
    """Shapes of the layer's own parameters and statistics."""
    x: jax.ShapeDtypeStruct


def layer_calls(function: Callable, *arguments: Any) -> list[LayerCall]:
    """Return the calls of layers in a function of networks, in order, without computing it."""
    calls, running = [], []

    def record(next_function, args, kwargs, context):
        inherited = context.module.path in running  # a call of the base class by the same layer
        running.append(context.module.path)
        output = next_function(*args, **kwargs)
        running.pop()
        params = context.module.variables.get("params", {})
        is_layer = params and all(hasattr(leaf, "shape") for leaf in params.values())
        if is_layer and context.method_name == "__call__" and not inherited:
            layer, (x, *rest) = context.module.clone(parent=None, name=None), args

            def apply(variables: dict, x: jax.Array) -> jax.Array:
                return layer.apply(variables, x, *rest, **kwargs, mutable=["batch_stats"])[0]

            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (dict(context.module.variables), x)
            )
            calls.append(LayerCall(type(layer).__name__, apply, *shapes))
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(function, *arguments)
    return calls


def apply_from(model: nn.Module, path: str) -> Callable[[dict, jax.Array, jax.Array], jax.Array]:
    """Return the network as a function (variables, x, output of the module at `path`) -> outputs."""

    def apply(variables: dict, x: jax.Array, features: jax.Array) -> jax.Array:
        def replace(next_function, args, kwargs, context):
            output = next_function(*args, **kwargs)
            return features if context.method_name == "__call__" and "/".join(context.module.path) == path else output

        with nn.intercept_methods(replace):
            return model.apply(variables, x, False)

    return apply
