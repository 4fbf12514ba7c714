"""A trained network in one file: safetensors, with all in its metadata that is needed to use it and to judge it."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from affect_jax.config import default_config
from affect_jax.files import whole_file
from affect_jax.models.pretrained import OWN_RECORD, merge, named_weights
from affect_jax.runs import workdir
from affect_jax.runs.best_checkpoint import load_best_variables
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import init_variables

FLOAT16_MAX = float(np.finfo(np.float16).max)


class Trained(NamedTuple):
    """A network with its weights, and what it was made from."""

    config: ConfigDict
    data: DataFacts
    variables: dict
    about: dict
    """For people: "source", "step", "evaluations" by name, "environment"; of a file also "licence"."""


def read(path: str | Path) -> Trained:
    """The network in a model file, or the best checkpoint of the run in a folder.

    FileNotFoundError where there is neither, ValueError on a file that is none of ours.
    """
    path = Path(path)
    if path.is_dir():
        return read_run(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: neither a model file nor a run's folder; name one that is")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        weights = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if OWN_RECORD not in metadata:
        raise ValueError(f"{path} holds weights alone; a model file of ours, as scripts/export.py writes it, is wanted")
    record = workdir.tuples(json.loads(metadata[OWN_RECORD]))
    config = default_config(record["config"]["task"])
    config.update(record["config"])
    data, task = DataFacts(**record["data"]), build_task(config)
    model, inputs = task.build_network(data), task.network_inputs(data)
    shapes = jax.eval_shape(lambda key: init_variables(model, key, inputs), jax.random.key(0))
    return Trained(config, data, merge(shapes, weights, source=str(path)), record["about"])


def read_run(path: str | Path) -> Trained:
    """The best checkpoint of the run in a folder."""
    run = workdir.Workdir(path)
    config, data = workdir.load_config(run), workdir.load_data_facts(run)
    step, variables = load_best_variables(run)
    about = {
        "source": Path(path).name,
        "step": step,
        "evaluations": {name: summary(metrics) for name, metrics in workdir.load_metrics(run).items()},
        "environment": workdir.load_environment(run),
    }
    return Trained(config, data, variables, about)


def write(trained: Trained, path: str | Path, licence: str) -> None:
    """The network as float16 in a file; `licence` says what the training data's own allows."""
    weights = {name: np.asarray(value) for name, value in named_weights(trained.variables).items()}
    if too_large := [name for name, value in weights.items() if not (np.abs(value) <= FLOAT16_MAX).all()]:
        raise ValueError(f"float16 cannot hold {', '.join(too_large)}")
    record = {
        "config": json.loads(trained.config.to_json()),
        "data": trained.data._asdict(),
        "about": {**trained.about, "licence": licence},
    }
    halves = {name: np.ascontiguousarray(value, np.float16) for name, value in weights.items()}
    with whole_file(path) as file:
        file.write(safetensors.numpy.save(halves, {OWN_RECORD: json.dumps(record)}))


def summary(metrics: dict) -> dict:
    """An evaluation's figures, less the many points of its curve."""
    return {name: value for name, value in metrics.items() if name != "curve"}
