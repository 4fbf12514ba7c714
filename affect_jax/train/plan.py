"""The steps of a run: how many there are, and after which of them something happens."""

from functools import partial
from typing import NamedTuple

from ml_collections import ConfigDict

from affect_jax.config import epochs_to_steps


class Plan(NamedTuple):
    """The steps of a run; the first is step 1."""

    steps_per_epoch: float
    total_steps: int
    eval_steps: set[int]
    """Steps after which val is evaluated: those nearest to each eval_every_epochs, and the last."""
    thaw_step: int
    """The last step that holds the frozen parameters; total_steps if they are never thawed."""
    boundaries: list[int]
    """Steps after which a dispatch must end, in order: log lines, evaluations, the end of freezing, the last step."""


def plan_steps(config: ConfigDict, num_examples: int) -> Plan:
    """Return the plan of a run whose epochs have `num_examples` examples."""

    steps = partial(epochs_to_steps, num_examples=num_examples, batch_size=config.batch_size)
    total = steps(config.total_epochs)
    evaluations = int(config.total_epochs / config.eval_every_epochs)
    eval_steps = {min(steps(i * config.eval_every_epochs), total) for i in range(1, evaluations + 1)} | {total}
    thaw_step = min(steps(config.optim.freeze_epochs), total) or total
    log_steps = range(config.log_every_steps, total, config.log_every_steps)
    boundaries = sorted({*log_steps, *eval_steps, thaw_step, total})
    return Plan(num_examples / config.batch_size, total, eval_steps, thaw_step, boundaries)
