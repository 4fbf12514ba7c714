"""Checkpoints: state, data iterator and clock together, the newest ones and the best; restored strictly."""

from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from affect_jax.names import path_name
from affect_jax.train.state import TrainState


class Checkpoints:
    """A run's checkpoints by step: the `keep` newest, and the best by `metric`, whose `mode` is "max" or "min"."""

    def __init__(self, directory: Path, metric: str, mode: str, keep: int):
        self._metric, self._mode = metric, mode
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[metric],
            reverse=mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        newest = checkpoint_managers.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
                best_fn=best.get_metric_fn,  # without it orbax drops the metrics
                best_mode=mode,
                cleanup_tmp_directories=True,
            ),
            # by name, so that a checkpoint can also be looked into before, or without, a save
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": grain.checkpoint.CheckpointHandler(),
                "clock": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self, step: int, state: TrainState, iterator: grain.DatasetIterator, seconds: float, metrics: dict | None
    ) -> None:
        """Save in the background what is needed to go on behind update `step`; metrics where it was evaluated."""
        newest = self._manager.latest_step()
        if newest is not None and step <= newest:  # orbax would skip it without a word
            raise ValueError(f"checkpoint {step} is not newer than {newest}, the newest there")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=grain.checkpoint.CheckpointSave(iterator),
            clock=ocp.args.JsonSave({"seconds": seconds}),
        )
        self._manager.save(step, args=items, metrics=metrics)

    def restore(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> tuple[TrainState, float]:
        """The state saved at `step`, laid out as `state` is, and the run's seconds; moves the iterator there too."""
        check_fit(state, self._manager.item_metadata(step)["state"].tree, f"checkpoint {step}")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target),
            data=grain.checkpoint.CheckpointRestore(iterator),
            clock=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["clock"]["seconds"]

    def restore_variables(self, step: int, sharding: Sharding) -> dict:
        """The variables for evaluation as saved at `step`, by their own names and shapes."""
        saved = self._manager.item_metadata(step)["state"].tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved)
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return state["ema"] or {name: state[name] for name in ("params", "batch_stats")}

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint among those with metrics; the later one of equals, as kept."""
        metrics = {step: self._manager.metrics(step) for step in sorted(self._manager.all_steps(), reverse=True)}
        scores = {step: self._score(found) for step, found in metrics.items() if found}
        return max(scores, key=scores.get, default=None)

    def is_best(self, metrics: dict) -> bool:
        """Whether these metrics are at least as good as those of every checkpoint there."""
        self._manager.wait_until_finished()
        return self.best is None or self._score(metrics) >= self._score(self._manager.metrics(self.best))

    def close(self) -> None:
        """Wait for the last save and end."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _score(self, metrics: dict) -> float:
        return metrics[self._metric] * (1 if self._mode == "max" else -1)


def check_fit(wanted, found, where: str) -> None:
    """ValueError that lists what is missing, extra and misshapen in the tree `found` beside the tree `wanted`."""
    wanted, found = _shapes(wanted), _shapes(found)
    problems = [f"missing: {name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"extra: {name} {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"misshapen: {name} is {found[name]}, the model's is {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if problems:
        raise ValueError(f"{where} does not fit the model:\n" + "\n".join(f"  {problem}" for problem in problems))


def _shapes(tree) -> dict[str, tuple]:
    """{name: shape} of a tree's arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
