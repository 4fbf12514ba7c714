"""The best checkpoint of a run."""

from typing import Any, NamedTuple

from affect_jax import files
from affect_jax.runs.workdir import Workdir, load_config, load_data_facts
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Apply, DataFacts, Task
from affect_jax.train.builders import build_checkpoints
from affect_jax.train.checkpoint import check_fit, check_undamaged, step_folders
from affect_jax.train.mesh import data_mesh, replicated
from affect_jax.train.state import make_apply, variable_shapes


class BestCheckpoint(NamedTuple):
    """The network of a run with the variables of its best checkpoint."""

    task: Task
    data: DataFacts
    step: int
    apply: Apply
    variables: dict


def load_best_checkpoint(run: Workdir) -> BestCheckpoint:
    """Load the network of a run and its best variables; ValueError if they do not fit together."""
    task, data, model, shapes = build_network(run)
    step, variables = load_best_variables(run)
    check_fit(shapes, variables, f"checkpoint {step}")
    return BestCheckpoint(task, data, step, make_apply(model), variables)


def build_network(run: Workdir) -> tuple[Task, DataFacts, Any, dict]:
    """Build the network of a run; return its task and data, the network, and the shapes of its variables."""
    task, data = build_task(load_config(run)), load_data_facts(run)
    with files.explained(run.config):
        model = task.build_network(data)
        return task, data, model, variable_shapes(model, task.network_inputs(data))


def load_best_variables(run: Workdir) -> tuple[int, dict]:
    """Return the step and the variables of the best checkpoint.

    FileNotFoundError before the first evaluation, ValueError if a checkpoint is damaged.
    """
    for folder in step_folders(run.checkpoints).values():
        check_undamaged(folder, "metrics")  # the best checkpoint is found by its metrics
    config = load_config(run)
    with files.explained(run.checkpoints):
        checkpoints = build_checkpoints(config, run.checkpoints, read_only=True)
        step = checkpoints.best
        if step is None:
            raise FileNotFoundError(f"{run.checkpoints} has no evaluated checkpoint; wait until the run is evaluated")
        variables = checkpoints.restore_variables(step, replicated(data_mesh()))
        checkpoints.close()
        return step, variables
