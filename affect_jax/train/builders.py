"""From a config to the parts of a run; below these functions nobody sees a config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from affect_jax.config import SELECT_ON, epochs_to_steps
from affect_jax.data import open_split
from affect_jax.data.boxes_pipeline import choose_buckets, padded_box_batches
from affect_jax.data.transforms import fitting_scale, transform
from affect_jax.evaluate.anchor_coverage import best_anchor_iou, coverage_by_height
from affect_jax.evaluate.figures import draw_boxes
from affect_jax.models import build_model
from affect_jax.models.calibration import calibrate_batch_norm
from affect_jax.models.faster_rcnn import ANCHOR_STRIDES
from affect_jax.models.pretrained import Preprocess, check_options, load_pretrained, merge, named_weights, trained_with
from affect_jax.ops.augment import augment
from affect_jax.train import classification, detection
from affect_jax.train.checkpoint import Checkpoints, check_undamaged, step_folders
from affect_jax.train.mesh import data_mesh, replicated
from affect_jax.train.optim import make_optimizer, make_schedule
from affect_jax.train.state import Apply, Network, init_variables
from affect_jax.train.steps import LossFn
from affect_jax.train.workdir import Workdir, load_config

CALIBRATION_IMAGES = 512
"""Training images on which the statistics of a folded BatchNorm are measured."""


def build_split(config: ConfigDict, split: str):
    """The split "train", "val" or "test" of the config's data set."""
    return open_split(config.data.name, split, config.data.data_dir, **config.data.options.to_dict())


def build_network(config: ConfigDict, num_classes: int) -> Network:
    """The config's network; a classifier has two outputs more for valence and arousal where they have a weight."""
    options = {key: value for key, value in config.model.items() if key != "name"}
    outputs = num_classes + (2 if config.get("valence_arousal_weight", 0) > 0 else 0)
    return build_model(config.model.name, num_classes=outputs, dtype=jnp.dtype(config.dtype), **options)


def build_checkpoints(config: ConfigDict, run: Workdir, read_only: bool = False) -> Checkpoints:
    """The checkpoints of the run."""
    mode = SELECT_ON[config.task][config.select_on]
    return Checkpoints(run.checkpoints, config.select_on, mode, config.keep_checkpoints, read_only)


def network_inputs(config: ConfigDict, image_shape: tuple[int, ...] = ()):
    """Shapes of what the config's network takes, of one picture; a detector's parameters do not depend on its size."""
    if config.task == "detection":
        image = jax.ShapeDtypeStruct((1, *config.data.buckets[0], 3), jnp.float32)
        return {"image": image, "image_size": jax.ShapeDtypeStruct((1, 2), jnp.int32)}
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def build_variables(config: ConfigDict, model: Network, key: jax.Array, inputs) -> dict:
    """The network's first variables: drawn, and replaced by those of config.init_from, if any, strictly."""
    variables = init_variables(model, key, inputs)
    if not config.init_from:
        return variables
    if (Path(config.init_from) / "config.json").exists():
        run = Workdir(config.init_from)
        _, trained = load_best_variables(run)
        pretrained = trained_with(load_config(run), named_weights(trained), config.init_from)
    else:
        pretrained = load_pretrained(config.init_from)
    check_options(model, pretrained)
    check_preprocess(config, pretrained.preprocess)
    variables = merge(variables, pretrained.values, config.init_excuse, config.init_from)
    if not pretrained.folded:
        return variables
    split = build_split(config, "train")
    images = split.read(np.arange(min(CALIBRATION_IMAGES, len(split))))["image"]
    normalized = classification.normalize(images, config.preprocess.mean, config.preprocess.std)
    return calibrate_batch_norm(model, variables, normalized)


def load_best_variables(run: Workdir) -> tuple[int, dict]:
    """Step and variables of the best checkpoint of a run.

    FileNotFoundError before the first evaluation, ValueError where a checkpoint is damaged.
    """
    for folder in step_folders(run.checkpoints).values():
        check_undamaged(folder, "metrics")  # by which the best is found
    checkpoints = build_checkpoints(load_config(run), run, read_only=True)
    step = checkpoints.best
    if step is None:
        raise FileNotFoundError(f"{run.checkpoints} holds no evaluated checkpoint yet; let the run reach an evaluation")
    variables = checkpoints.restore_variables(step, replicated(data_mesh()))
    checkpoints.close()
    return step, variables


def check_preprocess(config: ConfigDict, wanted: Preprocess) -> None:
    """ValueError where the config normalizes pixels otherwise than the weights were trained with."""
    if (config.preprocess.mean, config.preprocess.std) != (wanted.mean, wanted.std):
        raise ValueError(
            f"{config.init_from} was trained on pixels of other mean and std; set"
            f" config.preprocess.mean = {wanted.mean} and config.preprocess.std = {wanted.std}"
        )


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
    return make_optimizer(
        optim.name,
        schedule,
        optim.momentum,
        optim.nesterov,
        optim.weight_decay,
        optim.clip_norm,
        optim.multipliers,
    )


def build_loss_fn(config: ConfigDict, apply: Apply, num_classes: int) -> LossFn:
    """The loss of a training batch."""
    if config.task == "detection":
        return detection.make_loss_fn(apply, config.preprocess.mean, config.preprocess.std)
    return classification.make_loss_fn(
        apply,
        num_classes,
        config.preprocess.mean,
        config.preprocess.std,
        config.data.targets,
        config.augment.to_dict(),
        config.mixup_alpha,
        config.label_smoothing,
        config.valence_arousal_weight,
    )


def build_predict(config: ConfigDict, apply: Apply, num_classes: int, mesh: Mesh, tta: str = "none"):
    """Images to predictions, compiled."""
    return classification.make_predict(apply, num_classes, config.preprocess.mean, config.preprocess.std, mesh, tta)


def build_detect(config: ConfigDict, apply: Apply, mesh: Mesh) -> detection.Detect:
    """Batches of pictures to detections and losses, compiled."""
    return detection.make_detect(apply, config.preprocess.mean, config.preprocess.std, mesh)


def evaluation_box_batches(
    config: ConfigDict, split, settings: Mapping = MappingProxyType({}), rows: slice = slice(None)
) -> Iterator[dict]:
    """Every picture of the split once, `rows` of each batch; `settings`, transforms.transform's, change them first."""
    data = config.data
    buckets = data.eval_buckets or data.buckets
    return padded_box_batches(
        split, config.eval_batch_size, buckets, data.max_boxes, settings, config.seed, rows, data.num_workers
    )


def anchor_coverage(config: ConfigDict, split) -> dict[str, dict[str, float]]:
    """coverage_by_height of the split's boxes in the pictures that evaluation sees, whole."""
    buckets = config.data.eval_buckets or config.data.buckets
    chosen = choose_buckets(split.sizes(), buckets)
    boxes, best = [], []
    for place, bucket in enumerate(buckets):
        for picture in np.flatnonzero(chosen == place):
            scale = fitting_scale(split.sizes()[picture], bucket)
            boxes.append(split.boxes(int(picture)) * scale)
            best.append(
                best_anchor_iou(
                    boxes[-1],
                    bucket,
                    ANCHOR_STRIDES[config.model.neck],
                    config.model.anchor_sizes,
                    config.model.aspect_ratios,
                )
            )
    return coverage_by_height(np.concatenate(boxes), np.concatenate(best))


def changed_samples(config: ConfigDict, split, count: int, draws: int) -> np.ndarray:
    """The split's first pictures as they are and then as training sees them, `draws` times each.

    uint8 [count, 1 + draws, H, W, C]; of a detector in its first bucket, with boxes drawn, ignored ones yellow.
    """
    return (transformed_samples if config.task == "detection" else augmented_samples)(config, split, count, draws)


def transformed_samples(config: ConfigDict, split, count: int, draws: int) -> np.ndarray:
    """changed_samples of a detector."""
    rows = []
    for index in range(min(count, len(split))):
        picture = split.read_image(index)
        rows.append([])
        for draw in range(1 + draws):
            settings = config.transform.to_dict() if draw else {}
            rng = np.random.default_rng((config.seed, index, draw))
            seen = transform(**picture, bucket=tuple(config.data.buckets[0]), rng=rng, **settings)
            boxes, ignore = seen["boxes"], seen["ignore"]
            rows[-1].append(draw_boxes(seen["image"], right=boxes[~ignore], wrong=boxes[:0], missed=boxes[ignore]))
    return np.array(rows)


def augmented_samples(config: ConfigDict, split, count: int, draws: int) -> np.ndarray:
    """changed_samples of a classifier."""
    return augmented_images(config, split.read(np.arange(min(count, len(split))))["image"], draws)


def augmented_images(config: ConfigDict, images: np.ndarray, draws: int) -> np.ndarray:
    """Images uint8 [B, H, W, C], each as it is and then `draws` times as training sees it: [B, 1 + draws, H, W, C]."""
    repeated = jnp.repeat(jnp.asarray(images, jnp.float32), draws, axis=0)
    changed = jax.jit(lambda key, x: augment(key, x, **config.augment))(jax.random.key(config.seed), repeated)
    changed = np.asarray(jnp.clip(jnp.round(changed), 0, 255), np.uint8).reshape(len(images), draws, *images.shape[1:])
    return np.concatenate([images[:, None], changed], axis=1)
