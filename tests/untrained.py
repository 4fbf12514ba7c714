"""Untrained networks for tests of what is done with trained networks."""

import jax
import numpy as np

from affect_jax.runs.model_file import Trained
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import init_variables

_variables = {}


def untrained(config, data: DataFacts) -> Trained:
    """Return a config's network with its initial values, each multiplied by a random factor near 1."""
    key = config.to_json(), data
    if key not in _variables:
        task = build_task(config)
        variables = init_variables(task.build_network(data), jax.random.key(0), task.network_inputs(data))
        rng = np.random.default_rng(1)
        _variables[key] = jax.tree.map(lambda x: x * rng.uniform(0.8, 1.2, x.shape).astype(np.float32), variables)
    variables = jax.tree.map(lambda x: x, _variables[key])  # new dicts, which tests may change
    return Trained(config, data, variables, {"source": "untrained"})
