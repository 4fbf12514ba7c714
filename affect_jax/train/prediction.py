"""Predictions on the devices of a mesh. B batch, N examples of a split."""

from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from affect_jax.data.pipeline import HostBatch, process_rows
from affect_jax.tasks.interface import Batch, Evaluation, PredictFn, Task
from affect_jax.train.mesh import replicated, split_over_devices, to_devices

BATCHES_IN_FLIGHT = 2
"""Batches on the devices at a time: one is computed while the next is transferred."""


def compile_predict(predict: PredictFn, mesh: Mesh) -> PredictFn:
    """Jit `predict`; every process gets all rows of the outputs, so that each can compute the metrics."""
    return jax.jit(predict, out_shardings=replicated(mesh))


def predict_split(predict: PredictFn, variables: dict, task: Task, evaluation: Evaluation, mesh: Mesh) -> Any:
    """Return the task's predictions of all examples of an evaluation, in the order of the split.

    Batches have the config's size, rounded up to a multiple of the devices. RuntimeError unless every example occurs
    once.
    """
    batch_size = -(-task.config.eval_batch_size // mesh.size) * mesh.size
    num_examples = len(evaluation.split)
    pending, fetched = deque(), []
    rows = process_rows(batch_size, jax.process_index(), jax.process_count())
    batches = task.evaluation_batches(evaluation, batch_size, rows)
    total = -(-num_examples // batch_size)
    for batch in tqdm(batches, f"evaluating {evaluation.name}", total, delay=2, leave=False, disable=None):
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
    outputs = jax.tree.map(lambda *parts: np.concatenate(parts)[order], *[outputs for _, outputs in fetched])
    return task.predictions(outputs)


def _dispatch(predict: PredictFn, variables: dict, batch: HostBatch, mesh: Mesh) -> tuple[dict[str, Any], Batch]:
    on_devices = to_devices(batch, split_over_devices(mesh))
    rows = {name: on_devices.pop(name) for name in ("index", "mask")}
    return predict(variables, on_devices), jax.device_put(rows, replicated(mesh))


def _fetch(outputs: dict[str, Any], rows: Batch) -> tuple[np.ndarray, dict[str, Any]]:
    outputs, rows = jax.device_get((outputs, rows))
    real = rows["mask"] > 0
    return rows["index"][real], jax.tree.map(lambda value: value[real], outputs)
