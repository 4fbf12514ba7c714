"""Networks as they start, for tests of what is done with trained ones."""

import jax
import numpy as np

from affect_jax.runs.model_file import Trained
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import init_variables


def untrained(config, data: DataFacts) -> Trained:
    """A config's network as it starts, with every value moved off its round one."""
    task = build_task(config)
    variables = init_variables(task.build_network(data), jax.random.key(0), task.network_inputs(data))
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    moved = [leaf * rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32) for leaf in leaves]
    return Trained(config, data, jax.tree.unflatten(tree, moved), {"source": "untrained"})
