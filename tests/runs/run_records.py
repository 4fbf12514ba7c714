"""Helpers of the tests in this folder: records of a run, and stopping a run."""

import contextlib
import json
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp

from affect_jax.train import loop

TIMES = {"seconds", "train_seconds", "compile_seconds", "train/images_per_second"}


def history(path):
    """Return the records of a run, without times."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def saved_state(path, step):
    """Return the arrays of a checkpoint by name."""
    folder, checkpointer = (path / "checkpoints" / str(step) / "state").absolute(), ocp.StandardCheckpointer()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = checkpointer.metadata(folder).item_metadata.tree
    tree = checkpointer.restore(
        folder, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), found)
    )
    return {jax.tree_util.keystr(key): np.asarray(value) for key, value in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def stop_after(monkeypatch, steps):
    """Ask the run to stop after a number of steps, as SIGTERM would."""

    class Request:
        signal = signal.SIGTERM

        def is_due_after(self, step):
            return step >= steps

    monkeypatch.setattr(loop, "stop_request", lambda: contextlib.nullcontext(Request()))
