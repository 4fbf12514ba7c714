"""Predictions on the devices of a mesh. B batch, N examples of a split."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from affect_jax.tasks.interface import Batch, HostBatch, PredictFn
from affect_jax.train.mesh import replicated, split_over_devices, to_devices

BATCHES_IN_FLIGHT = 2
"""Batches on the devices at a time: one is computed while the next is transferred."""


def compile_predict(predict: PredictFn, mesh: Mesh) -> PredictFn:
    """Jit `predict`; every process gets all rows of the outputs, so that each can compute the metrics."""
    return jax.jit(predict, out_shardings=replicated(mesh))


def predict_split(
    predict: PredictFn, variables: dict, batches: Iterable[HostBatch], num_examples: int, mesh: Mesh
) -> dict[str, Any]:
    """Return the outputs of `predict` as NumPy arrays [N, ...] in the order of the split.

    `batches` are this process's rows of Task.evaluation_batches. RuntimeError unless every example occurs once.
    """
    pending, fetched = deque(), []
    for batch in batches:
        pending.append(_dispatch(predict, variables, batch, mesh))
        if len(pending) == BATCHES_IN_FLIGHT:
            fetched.append(_fetch(*pending.popleft()))
    fetched += [_fetch(*one) for one in pending]
    index = np.concatenate([index for index, _ in fetched])
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], np.arange(num_examples)):
        raise RuntimeError(
            f"{len(index)} predictions of {len(np.unique(index))} examples; the split has {num_examples}"
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts)[order], *[outputs for _, outputs in fetched])


def _dispatch(predict: PredictFn, variables: dict, batch: HostBatch, mesh: Mesh) -> tuple[dict[str, Any], Batch]:
    on_devices = to_devices(batch, split_over_devices(mesh))
    rows = {name: on_devices.pop(name) for name in ("index", "mask")}
    return predict(variables, on_devices), jax.device_put(rows, replicated(mesh))


def _fetch(outputs: dict[str, Any], rows: Batch) -> tuple[np.ndarray, dict[str, Any]]:
    outputs, rows = jax.device_get((outputs, rows))
    real = rows["mask"] > 0
    return rows["index"][real], jax.tree.map(lambda value: value[real], outputs)
