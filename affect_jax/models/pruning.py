"""Pruning of channels: a narrow VGG-FER from a wide one, as initial weights for distillation."""

from collections.abc import Sequence

import numpy as np


def prune_vgg(variables: dict, widths: Sequence[int], dense: Sequence[int]) -> dict:
    """Return the variables of a VGG-FER with these widths and dense layers, from those of a wider one.

    Variables are NumPy arrays: "params" with kernels [3, 3, C, F] of convolutions and [pixels * C, F] of dense layers,
    and "batch_stats". `widths` has the channels of each block, `dense` the units of each dense layer before the logits.

    The kept channels have the largest product of two values: the absolute scale of their BatchNorm, as in Network
    Slimming (Liu et al. 2017, arXiv:1708.06519), and the Euclidean norm of the weights that read them in the next
    layer. For units of dense layers, which have no BatchNorm, the first value is the norm of their own weights. Only
    channels of no effect can be removed without a change of the logits, so the result needs training.

    Raises ValueError if a layer has fewer channels than asked for, or the number of layers differs.
    """
    params, statistics = variables["params"], variables["batch_stats"]
    convolutions = sorted(name.removesuffix("_bn") for name in statistics)
    hidden = sorted(name for name in params if name.startswith("dense"))
    convs_per_block = sum(name.startswith("block1_") for name in convolutions)
    sizes = [*np.repeat(widths, convs_per_block), *dense]
    layers = [*convolutions, *hidden, "logits"]
    if len(sizes) != len(layers) - 1 or len(dense) != len(hidden):
        raise ValueError(
            f"the network has {len(convolutions) // convs_per_block} blocks and {len(hidden)} dense layers, "
            f"not {len(widths)} and {len(dense)}"
        )
    pruned = {"params": {}, "batch_stats": {}}
    channels = params[layers[0]]["kernel"].shape[-2]
    kept = np.arange(channels)
    for layer, next_layer, size in zip(layers[:-1], layers[1:], sizes, strict=True):
        kernel = _with_inputs(params[layer]["kernel"], channels, kept)
        channels = kernel.shape[-1]
        if size > channels:
            raise ValueError(f"{layer} has {channels} channels, so it cannot be pruned to {size}")
        norm = f"{layer}_bn"
        own = np.abs(params[norm]["scale"]) if norm in params else np.sqrt(np.square(kernel).sum(0))
        read = np.sqrt(np.square(_by_input(params[next_layer]["kernel"], channels)).sum((0, 2)))
        kept = np.sort(np.argsort(-own * read, kind="stable")[:size])
        pruned["params"][layer] = {
            name: value[..., kept] for name, value in {**params[layer], "kernel": kernel}.items()
        }
        if norm in params:
            for part, values in variables.items():
                pruned[part][norm] = {name: value[kept] for name, value in values[norm].items()}
    logits = params["logits"]
    pruned["params"]["logits"] = {**logits, "kernel": _with_inputs(logits["kernel"], channels, kept)}
    return pruned


def _by_input(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return the kernel of a convolution, or of a dense layer that reads all pixels of a map, as [pixels, C, F]."""
    return kernel.reshape(-1, channels, kernel.shape[-1])


def _with_inputs(kernel: np.ndarray, channels: int, kept: np.ndarray) -> np.ndarray:
    """Return the kernel for the kept channels of its input only."""
    return _by_input(kernel, channels)[:, kept].reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
