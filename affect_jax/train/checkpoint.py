"""Checkpoints of state, data iterator and clock: the newest ones and the best. Restoring is strict.

Each checkpoint has checksums of its files, which are verified before anything is read from it.
"""

import itertools
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from affect_jax.data.pipeline import BatchIterator
from affect_jax.names import misfits, path_name
from affect_jax.train.checksums import CHECKSUMS, ITEMS, find_damage, write_checksums
from affect_jax.train.state import TrainState


class Checkpoints:
    """A run's checkpoints by step: the `keep` newest ones and the best by `metric`, whose `mode` is "max" or "min".

    With `read_only` nothing is written, so that a run that is training there is not disturbed.
    """

    def __init__(self, directory: Path, metric: str, mode: str, keep: int, read_only: bool = False):
        self._directory, self._metric, self._mode = directory, metric, mode
        self._saving: int | None = None
        best = checkpoint_managers.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
        newest = checkpoint_managers.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
                best_fn=best.get_metric_fn,  # without it, orbax drops the metrics
                best_mode="max",
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                save_interval_steps=0 if read_only else 1,  # otherwise orbax warns that it does not save
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
            # named, so that a checkpoint can be inspected before, or without, a save
            item_handlers={
                name: ocp.StandardCheckpointHandler() if name == "state" else ocp.JsonCheckpointHandler()
                for name in ITEMS
            },
        )

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: BatchIterator,
        seconds: dict[str, float],
        metrics: dict | None,
    ) -> None:
        """Save in the background all that is needed to resume after `step`, and the metrics if it was evaluated.

        Raises OSError, here or at a later call, if saving fails.
        """
        newest = self._manager.latest_step()
        if newest is not None and step <= newest:  # orbax would skip it silently
            raise ValueError(f"checkpoint {step} is not newer than {newest}, the newest checkpoint")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(iterator.get_state()),  # the same in every process
            clock=ocp.args.JsonSave(seconds),
        )
        self.wait()
        self._saving = step
        with self._explained_failure():
            self._manager.save(step, args=items, metrics=metrics)

    def wait(self) -> None:
        """Wait for the last save; raise OSError if it failed."""
        with self._explained_failure():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise OSError if the last save has failed by now."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    @contextmanager
    def _explained_failure(self):
        try:
            yield
        except Exception as error:  # of orbax, tensorstore or the system
            self._remove_partial()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise OSError(
                f"checkpoint {self._saving} was not saved in {self._directory}: {reason}. Earlier checkpoints are"
                " intact: free disk space or make the folder writable, then rerun the command to resume from the newest"
                " one."
            ) from error

    def _remove_partial(self) -> None:
        """Free the disk space of a failed save."""
        if jax.process_index() == 0:
            for partial in self._partial_folders():
                shutil.rmtree(partial, ignore_errors=True)

    def _write_checksums(self) -> None:
        """Write the checksums; orbax calls this in process 0 before the complete folder gets its final name."""
        (folder,) = self._partial_folders()
        write_checksums(folder)

    def _partial_folders(self) -> list[Path]:
        """Return the folder, under orbax's temporary name, of a checkpoint that is being saved, if there is one."""
        return list(self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"))

    def restore(self, step: int, state: TrainState, iterator: BatchIterator) -> tuple[TrainState, dict[str, float]]:
        """Return the state saved at `step`, sharded as `state`, and the clock's seconds; move the iterator."""
        check_fit(state, self._manager.item_metadata(step)["state"].tree, f"checkpoint {step}")
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target),
            data=ocp.args.JsonRestore(),
            clock=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=items)
        iterator.set_state(restored["data"])
        return restored["state"], restored["clock"]

    def restore_variables(self, step: int, sharding: Sharding) -> dict:
        """Return the variables for evaluation saved at `step`; raise ValueError if the checkpoint is damaged."""
        check_undamaged(self._directory / str(step))
        saved = self._manager.item_metadata(step)["state"].tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved)
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        return TrainState(**state).eval_variables

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint that has metrics, or None; the later of two equal ones."""
        metrics = {step: self._manager.metrics(step) for step in sorted(self._manager.all_steps(), reverse=True)}
        scores = {step: self._score(found) for step, found in metrics.items() if found}
        return max(scores, key=scores.get, default=None)

    def is_best(self, metrics: dict) -> bool:
        """Return True if these metrics are at least as good as those of every checkpoint."""
        self.wait()
        return self.best is None or self._score(metrics) >= self._score(self._manager.metrics(self.best))

    def close(self) -> None:
        """Wait for the last save and close."""
        self.wait()
        self._manager.close()

    def _score(self, metrics: dict) -> float:
        """Return a value that is larger for better metrics; NaN is worst."""
        score = metrics[self._metric] * (1 if self._mode == "max" else -1)
        return -math.inf if math.isnan(score) else score


def set_aside_damaged(directory: Path) -> list[str]:
    """Rename damaged checkpoints, so that a run resumes from the newest intact one; return lines that report it.

    All processes call this together. ValueError if no checkpoint is intact; then nothing is renamed.
    """
    lines = []
    if jax.process_index() == 0:
        folders = step_folders(directory)
        damage = {step: problem for step, folder in folders.items() if (problem := find_damage(folder))}
        if damage and len(damage) == len(folders):
            raise ValueError(
                f"all checkpoints in {directory} are damaged; restore one from a backup, or start a new run in another"
                " --workdir:\n" + "\n".join(f"  {step}: {problem}" for step, problem in damage.items())
            )
        for step, problem in damage.items():
            name = unused_name(directory, f"damaged_{step}")
            folders.pop(step).rename(directory / name)
            lines.append(f"checkpoint {step} is damaged: {problem}; renamed to {directory / name}")
        for step, folder in folders.items():
            if not (folder / CHECKSUMS).exists():
                lines.append(f"checkpoint {step} was not verified: it is from an older version, without {CHECKSUMS}")
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    return lines


def check_undamaged(folder: Path, item: str = "") -> None:
    """Raise ValueError if the checkpoint in `folder`, or one `item` of it, is damaged."""
    if problem := find_damage(folder, item):
        raise ValueError(
            f"checkpoint {folder} is damaged: {problem}. Restore it from a backup, or rerun the training command, which"
            " renames it and resumes from the checkpoint before it."
        )


def step_folders(directory: Path) -> dict[int, Path]:
    """Return the folders of the checkpoints by step, in order."""
    folders = {int(path.name): path for path in directory.glob("*") if path.name.isdigit()}
    return dict(sorted(folders.items()))


def unused_name(directory: Path, name: str) -> str:
    """Return the name, with a number appended if it is taken."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not (directory / name).exists())


def check_fit(wanted, found, where: str) -> None:
    """Raise ValueError if the tree `found` differs from `wanted`; it lists the names that misfits finds."""
    if lines := misfits(_shapes(wanted), _shapes(found)).values():
        raise ValueError(f"{where} does not fit the model:\n" + "\n".join(f"  {line}" for line in sorted(lines)))


def _shapes(tree) -> dict[str, tuple]:
    """Return the shapes of a tree's arrays by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): tuple(leaf.shape) for path, leaf in leaves}
