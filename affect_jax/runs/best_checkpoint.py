"""The best checkpoint of a run."""

from affect_jax import files
from affect_jax.runs.workdir import Workdir, load_config
from affect_jax.train.builders import build_checkpoints
from affect_jax.train.checkpoint import check_undamaged, step_folders
from affect_jax.train.mesh import data_mesh, replicated


def load_best_variables(run: Workdir) -> tuple[int, dict]:
    """Return the step and the variables of the best checkpoint.

    FileNotFoundError before the first evaluation, ValueError if a checkpoint is damaged.
    """
    for folder in step_folders(run.checkpoints).values():
        check_undamaged(folder, "metrics")  # the best checkpoint is found by its metrics
    config = load_config(run)
    if not run.checkpoints.exists():
        raise FileNotFoundError(f"{run.path} has no checkpoints: only a record of the run is kept")
    with files.explained(run.checkpoints):
        checkpoints = build_checkpoints(config, run.checkpoints, read_only=True)
        step = checkpoints.best
        if step is None:
            raise FileNotFoundError(f"{run.checkpoints} has no evaluated checkpoint; wait until the run is evaluated")
        variables = checkpoints.restore_variables(step, replicated(data_mesh()))
        checkpoints.close()
        return step, variables
