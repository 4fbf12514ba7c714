"""Checkpoints: state, data iterator and clock together, the newest ones and the best; restored strictly.

Each holds checksums of its files, that are held against them before anything is taken from it.
"""

import itertools
import shutil
from contextlib import contextmanager
from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from orbax.checkpoint import checkpoint_managers

from affect_jax.names import path_name
from affect_jax.train.checksums import CHECKSUMS, find_damage, write_checksums
from affect_jax.train.state import TrainState


class Checkpoints:
    """A run's checkpoints by step: the `keep` newest, and the best by `metric`, whose `mode` is "max" or "min".

    Where they are `read_only`, a run that is under way there is not disturbed.
    """

    def __init__(self, directory: Path, metric: str, mode: str, keep: int, read_only: bool = False):
        self._directory, self._metric, self._mode = directory, metric, mode
        self._saving: int | None = None
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
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                save_interval_steps=0 if read_only else 1,  # else orbax warns that it does not save
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
            # by name, so that a checkpoint can also be looked into before, or without, a save
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "clock": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: grain.DatasetIterator,
        seconds: dict[str, float],
        metrics: dict | None,
    ) -> None:
        """Save in the background what is needed to go on behind update `step`; metrics where it was evaluated.

        OSError, here or at a later call, where it cannot be saved.
        """
        newest = self._manager.latest_step()
        if newest is not None and step <= newest:  # orbax would skip it without a word
            raise ValueError(f"checkpoint {step} is not newer than {newest}, the newest there")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(iterator.get_state()),  # the same in every process
            clock=ocp.args.JsonSave(seconds),
        )
        self.wait()
        self._saving = step
        with self._failure_told():
            self._manager.save(step, args=items, metrics=metrics)

    def wait(self) -> None:
        """Wait for the last save; OSError where it has failed."""
        with self._failure_told():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """OSError where the last save has failed by now."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    @contextmanager
    def _failure_told(self):
        try:
            yield
        except Exception as error:  # of orbax, tensorstore or the system
            self._remove_partial()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise OSError(
                f"checkpoint {self._saving} was not saved in {self._directory}: {reason}. Those before it are as they"
                " were: once it can be written there, the same command goes on from the newest of them."
            ) from error

    def _remove_partial(self) -> None:
        """Give back the room that a failed save took."""
        if jax.process_index() == 0:
            for partial in self._directory.glob(f"{self._saving}.*"):
                shutil.rmtree(partial, ignore_errors=True)

    def _write_checksums(self) -> None:
        """Called by orbax in process 0 when all is written and before the folder gets its final name."""
        (folder,) = (path for path in self._directory.iterdir() if path.name.split(".")[0] == str(self._saving))
        write_checksums(folder)

    def restore(
        self, step: int, state: TrainState, iterator: grain.DatasetIterator
    ) -> tuple[TrainState, dict[str, float]]:
        """The state saved at `step`, laid out as `state` is, and its clock's seconds; moves the iterator there too."""
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
        """The variables for evaluation as saved at `step`, by their own names and shapes; ValueError on damage."""
        check_undamaged(self._directory / str(step))
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
        self.wait()
        return self.best is None or self._score(metrics) >= self._score(self._manager.metrics(self.best))

    def close(self) -> None:
        """Wait for the last save and end."""
        self.wait()
        self._manager.close()

    def _score(self, metrics: dict) -> float:
        return metrics[self._metric] * (1 if self._mode == "max" else -1)


def set_aside_damaged(directory: Path) -> list[str]:
    """Give damaged checkpoints another name, so that a run goes on from the newest sound one; what was found and done.

    For all processes at once. ValueError where none is sound; then all stay as they are.
    """
    lines = []
    if jax.process_index() == 0:
        folders = step_folders(directory)
        damage = {step: problem for step, folder in folders.items() if (problem := find_damage(folder))}
        if damage and len(damage) == len(folders):
            raise ValueError(
                f"all checkpoints in {directory} are damaged; bring one back from a copy, or start anew in another"
                " --workdir:\n" + "\n".join(f"  {step}: {problem}" for step, problem in damage.items())
            )
        for step, problem in damage.items():
            name = unused_name(directory, f"damaged_{step}")
            folders.pop(step).rename(directory / name)
            lines.append(f"checkpoint {step} is damaged: {problem}; it is now {directory / name}")
        for step, folder in folders.items():
            if not (folder / CHECKSUMS).exists():
                lines.append(f"checkpoint {step} is not checked: it has no {CHECKSUMS}, as of an older version")
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    return lines


def check_undamaged(folder: Path, item: str = "") -> None:
    """ValueError, with what to do, where the checkpoint in `folder`, or the one item of it, is damaged."""
    if problem := find_damage(folder, item):
        raise ValueError(
            f"checkpoint {folder} is damaged: {problem}. Bring it back from a copy; or start the run's own command"
            " again, which sets it aside and goes on from the one before."
        )


def step_folders(directory: Path) -> dict[int, Path]:
    """The folders of the checkpoints there, by step, in order."""
    folders = {int(path.name): path for path in directory.glob("*") if path.name.isdigit()}
    return dict(sorted(folders.items()))


def unused_name(directory: Path, name: str) -> str:
    """The name, with a number behind it where it is taken."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(name for name in names if not (directory / name).exists())


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
