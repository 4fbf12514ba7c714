"""Functions from a config to the parts of training. Functions below this module take plain arguments."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from affect_jax.config import SELECT_ON, epochs_to_steps
from affect_jax.models.pretrained import CLASS_LAYERS, Pretrained, check_options, merge, named_weights
from affect_jax.models.weight_files import Preprocess
from affect_jax.names import Selects, check_patterns, selects
from affect_jax.tasks.interface import DataFacts, Task, same_classes
from affect_jax.train.checkpoint import Checkpoints
from affect_jax.train.optim import make_optimizer, make_schedule
from affect_jax.train.state import Network, init_some, init_variables, make_apply, variable_shapes
from affect_jax.train.steps import TrainStep, make_train_step


def build_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """Build the learning rate by step."""
    optim = config.optim

    steps = partial(epochs_to_steps, num_examples=num_examples, batch_size=config.batch_size)
    return make_schedule(
        optim.schedule,
        optim.learning_rate,
        total_steps=steps(config.total_epochs),
        warmup_steps=steps(optim.warmup_epochs),
        final_fraction=optim.final_fraction,
        boundaries=tuple(steps(epochs) for epochs in optim.step_epochs),
        factor=optim.step_factor,
    )


def build_frozen(config: ConfigDict) -> Selects | None:
    """Build the selection of the parameters that the config freezes; None if it freezes none."""
    return selects(config.optim.freeze) if config.optim.freeze else None


def build_optimizer(config: ConfigDict, schedule: optax.Schedule, thaw_step: int = 0) -> optax.GradientTransformation:
    """Build the config's optimizer; its frozen parameters are held before `thaw_step`."""
    optim = config.optim
    return make_optimizer(
        optim.name,
        schedule,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        multipliers=optim.multipliers,
        frozen=build_frozen(config),
        thaw_step=thaw_step,
    )


def build_train_step(
    config: ConfigDict,
    task: Task,
    model: Network,
    data: DataFacts,
    optimizer: optax.GradientTransformation,
    frozen: Selects | None,
) -> TrainStep:
    """Build the config's training step, in which the `frozen` parameters do not change."""
    loss_fn = task.loss_fn(make_apply(model, frozen), data)
    return make_train_step(loss_fn, optimizer, config.accumulate_steps, config.ema_decay, frozen=frozen)


def check_selections(config: ConfigDict, variables: dict) -> None:
    """Raise ValueError if a pattern of config.optim matches no parameter."""
    names = named_weights({"params": variables["params"]}).keys()  # statistics follow their layer's parameters
    check_patterns(config.optim.freeze, names, "optim.freeze")
    check_patterns([pattern for pattern, _ in config.optim.multipliers], names, "optim.multipliers")


def build_variables(
    config: ConfigDict,
    model: Network,
    key: jax.Array,
    inputs,
    pretrained: Pretrained | None = None,
    class_names: Sequence[str] = (),
) -> dict:
    """Return the network's initial variables: pretrained weights, if given; only those that they lack are drawn.

    ValueError if the weights do not fit the network, or were trained on images with another mean and std, or for other
    classes than the data's.
    """
    if pretrained is None:
        return init_variables(model, key, inputs)
    check_options(model, pretrained)
    check_preprocess(config, pretrained.preprocess)
    weights = of_same_classes(config, pretrained, class_names)
    variables = merge(variable_shapes(model, inputs), weights, config.init_excuse, config.init_from)
    lacking = [name for name, x in named_weights(variables).items() if isinstance(x, jax.ShapeDtypeStruct)]
    if not lacking:
        return variables
    drawn = init_some(model, key, inputs, lacking)
    return merge(variables, named_weights(variables) | drawn)


def of_same_classes(config: ConfigDict, pretrained: Pretrained, class_names: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Return the weights without the layers of other classes than `class_names`, or in another order.

    A single class may have another name. ValueError if `config.init_excuse` does not excuse these layers. If no layer
    has a name of CLASS_LAYERS, it must excuse some layer.
    """
    trained, given = tuple(pretrained.class_names), tuple(class_names)
    if not trained or not given or same_classes(trained, given):
        return pretrained.values
    of_classes, excused = selects([CLASS_LAYERS]), selects(config.init_excuse)
    layers = {name.partition("/")[0] for name in pretrained.values if of_classes(name) and not excused(name)}
    if not any(map(of_classes, pretrained.values)) and not config.init_excuse:
        layers = {"LAST_LAYER"}
    if layers:
        raise ValueError(
            f"{config.init_from} was trained for the classes {', '.join(trained)}; the data has {', '.join(given)}."
            f" To start with a new last layer, add '{min(layers)}/.*' to config.init_excuse"
        )
    return {name: value for name, value in pretrained.values.items() if not of_classes(name)}


def check_preprocess(config: ConfigDict, trained: Preprocess) -> None:
    """Raise ValueError if the config normalizes images in another way than the weights were trained with."""
    if (config.preprocess.mean, config.preprocess.std) != (trained.mean, trained.std):
        raise ValueError(
            f"{config.init_from} was trained on pixels of other mean and std; set"
            f" config.preprocess.mean = {trained.mean} and config.preprocess.std = {trained.std}"
        )


def build_checkpoints(config: ConfigDict, directory: Path, read_only: bool = False) -> Checkpoints:
    """Open the checkpoints in a directory."""
    mode = SELECT_ON[config.task][config.select_on]
    return Checkpoints(directory, config.select_on, mode, config.keep_checkpoints, read_only)
