"""A trained network in one safetensors file, with all that is needed to use it and to judge it in its metadata."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from affect_jax.files import explained, find_bundled, whole_file
from affect_jax.models.pretrained import OWN_RECORD, merge, named_weights, variables_of
from affect_jax.runs import workdir
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import variable_shapes

MODEL_FILE = "model.safetensors"
"""Name of the model file in the folder of an export."""
FLOAT16_MAX = float(np.finfo(np.float16).max)


class Trained(NamedTuple):
    """A trained network: its config, the properties of its data, its weights and its origin."""

    config: ConfigDict
    data: DataFacts
    variables: dict
    about: dict
    """Origin: "source", "step", "evaluations" and the identities of "splits" by name, "environment", and "licence" if
    read from a file."""


def load_trained(path: str | Path) -> Trained:
    """Load the network in a model file or in the folder of an export, or the best checkpoint of the run in a folder.

    A file of this package can be named "affect_jax/..." in any working directory.
    The weights are compared with the network when it is first used: see predict.networks.compiled_predict.
    FileNotFoundError if there is neither, ValueError if the file is not a model file.
    """
    path = Path(find_bundled(str(path)))
    if path.is_dir():
        if workdir.Workdir(path).config.exists() or not (path / MODEL_FILE).is_file():
            return load_trained_run(path)
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: neither a model file nor the folder of a run")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        weights = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        others = "" if path.suffix == ".safetensors" else "; models are read from .safetensors files only"
        raise ValueError(f"{path} is not a complete safetensors file: {error}{others}") from None
    if OWN_RECORD not in metadata:
        raise ValueError(f"{path} has weights but no config; use a model file that scripts/export.py wrote")
    with explained(path):
        record = json.loads(metadata[OWN_RECORD])
        config, data = workdir.config_of(record["config"]), workdir.data_facts_of(record["data"])
        return Trained(config, data, variables_of(weights), record["about"])


def check_weights(trained: Trained) -> None:
    """Raise ValueError if the weights do not fit the network of the config.

    This traces the network, which takes a second: call it to explain an error.
    """
    source = str(trained.about.get("source", "the model"))
    with explained(f"the config of {source}"):
        task = build_task(trained.config)
        shapes = variable_shapes(task.build_network(trained.data), task.network_inputs(trained.data))
    merge(shapes, named_weights(trained.variables), source=source)


def load_trained_run(path: str | Path) -> Trained:
    """Load the best checkpoint of the run in a folder.

    FileNotFoundError before the first evaluation, ValueError if a file is damaged.
    """
    from affect_jax.runs.best_checkpoint import load_best_variables  # with orbax, which model files do not need

    run = workdir.Workdir(path)
    config, data = workdir.load_config(run), workdir.load_data_facts(run)
    step, variables = load_best_variables(run)
    about = {
        "source": Path(path).resolve().name,  # "." has no name
        "step": step,
        "splits": {name: split._asdict() for name, split in workdir.load_splits(run).items()},
        # those of an earlier best checkpoint would be shown as those of these weights
        "evaluations": {
            name: summary(metrics)
            for name, metrics in workdir.load_metrics(run).items()
            if metrics["checkpoint_step"] == step
        },
        "environment": workdir.load_environment(run),
    }
    return Trained(config, data, variables, about)


def save_trained(trained: Trained, path: str | Path, licence: str) -> None:
    """Save the network as float16; `licence` is that of the training data. ValueError beyond float16's range."""
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
    """Return the metrics of an evaluation without the many points of its curve."""
    return {name: value for name, value in metrics.items() if name != "curve"}
