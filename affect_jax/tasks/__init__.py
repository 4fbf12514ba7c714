"""Tasks by name. A task holds all that differs between the kinds of run; `interface.Task` lists what it offers."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from affect_jax.tasks.classification import Classification
from affect_jax.tasks.detection import Detection
from affect_jax.tasks.interface import Task, Teacher

TASKS: dict[str, type[Task]] = {"classification": Classification, "detection": Detection}


def build_task(config: ConfigDict, teachers: Sequence[Teacher] = ()) -> Task:
    """Return the task of a config; `teachers` are needed only to train with distillation."""
    return TASKS[config.task](config, teachers)
