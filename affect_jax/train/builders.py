"""From a config to the parts of a run; below these functions nobody sees a config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from affect_jax.config import epochs_to_steps
from affect_jax.data import open_split
from affect_jax.models import build_model
from affect_jax.ops.augment import augment
from affect_jax.train import classification
from affect_jax.train.optim import make_optimizer, make_schedule
from affect_jax.train.state import Apply, Network
from affect_jax.train.steps import LossFn


def build_split(config: ConfigDict, split: str):
    """The split "train", "val" or "test" of the config's data set."""
    return open_split(config.data.name, split, config.data.data_dir, **config.data.options.to_dict())


def build_network(config: ConfigDict, num_classes: int) -> Network:
    """The config's network."""
    options = {key: value for key, value in config.model.items() if key != "name"}
    return build_model(config.model.name, num_classes=num_classes, dtype=jnp.dtype(config.dtype), **options)


def build_schedule(config: ConfigDict, num_examples: int) -> optax.Schedule:
    """Learning rate by step."""
    optim = config.optim

    def steps(epochs: float) -> int:
        return epochs_to_steps(epochs, num_examples, config.batch_size)

    return make_schedule(
        optim.schedule,
        optim.learning_rate,
        total_steps=steps(config.total_epochs),
        warmup_steps=steps(optim.warmup_epochs),
        final_fraction=optim.final_fraction,
        boundaries=tuple(steps(epochs) for epochs in optim.step_epochs),
        factor=optim.step_factor,
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The config's optimizer."""
    optim = config.optim
    return make_optimizer(optim.name, schedule, optim.momentum, optim.weight_decay, optim.clip_norm)


def build_loss_fn(config: ConfigDict, apply: Apply, num_classes: int) -> LossFn:
    """The loss of a training batch."""
    return classification.make_loss_fn(
        apply,
        num_classes,
        config.preprocess.mean,
        config.preprocess.std,
        config.data.targets,
        config.augment.to_dict(),
        config.mixup_alpha,
        config.label_smoothing,
    )


def build_predict(config: ConfigDict, apply: Apply, mesh: Mesh, tta: str = "none"):
    """Images to probabilities, compiled."""
    return classification.make_predict(apply, config.preprocess.mean, config.preprocess.std, mesh, tta)


def augmented_samples(config: ConfigDict, split, count: int, draws: int) -> np.ndarray:
    """The first images as they are and then as augmented, `draws` times each: uint8 [count, 1 + draws, H, W, C]."""
    images = split.read(np.arange(min(count, len(split))))["image"]
    repeated = jnp.repeat(jnp.asarray(images, jnp.float32), draws, axis=0)
    changed = jax.jit(lambda key, x: augment(key, x, **config.augment))(jax.random.key(config.seed), repeated)
    changed = np.asarray(jnp.clip(jnp.round(changed), 0, 255), np.uint8).reshape(len(images), draws, *images.shape[1:])
    return np.concatenate([images[:, None], changed], axis=1)
