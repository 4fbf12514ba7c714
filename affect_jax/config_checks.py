"""Checks of a config: of each field, and of fields against each other."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from affect_jax.config import SELECT_ON, default_config, detection_config
from affect_jax.losses import CLASSIFICATION_LOSSES

# ---- Checks of one field ----


class Check(NamedTuple):
    """A condition on a value, and the condition in words, as in "must be above 0"."""

    holds: Callable[[Any], bool]
    words: str


def between(low: float, high: float, unit: str = "") -> Check:
    """Return the check of a number from `low` to `high`, both included."""
    return Check(lambda value: low <= value <= high, f"must be between {low} and {high} {unit}".rstrip())


def at_least(low: float, hint: str = "") -> Check:
    """Return the check of a finite number that is not below `low`."""
    return Check(lambda value: low <= value < math.inf, f"must be at least {low}{hint and f' ({hint})'}")


def above(low: float) -> Check:
    """Return the check of a finite number above `low`."""
    return Check(lambda value: low < value < math.inf, f"must be above {low}")


def one_of(*names: str) -> Check:
    """Return the check of a name."""
    return Check(lambda value: value in names, f"must be one of {', '.join(names)}")


def each(check: Check, count: int = 0) -> Check:
    """Return the check of a tuple of at least `count` values that all pass `check`."""
    least = f"needs {count} or more values; " if count else ""
    return Check(lambda values: len(values) >= count and all(map(check.holds, values)), f"{least}each {check.words}")


# ---- Checks of fields ----


def increasing(pair: tuple[float, ...]) -> bool:
    """Return True for a pair (smallest, largest) of numbers above 0."""
    return len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf


FRACTION = between(0, 1)
COUNT = Check(lambda value: isinstance(value, int) and value >= 1, "must be a whole number of at least 1")
IMAGE_SIZE = Check(
    lambda size: len(size) == 2 and all(type(side) is int and side > 0 and side % 32 == 0 for side in size),
    "must be (height, width), multiples of 32",
)
FILE = Check(lambda path: not path or Path(path).is_file(), "must be empty or a file that exists")
RANGE = Check(lambda pair: not pair or increasing(pair), "must be () or (smallest, largest), both above 0")
EPOCH_LIMIT = Check(lambda pair: len(pair) == 2 and pair[1] >= 1, "must be (regex, number), the number at least 1")
MULTIPLIER = Check(lambda pair: len(pair) == 2 and pair[1] >= 0, "must be (regex, factor), the factor at least 0")
COMMON_CHECKS = {
    "seed": between(0, 2**32 - 1),
    "total_epochs": Check(lambda epochs: 0 < epochs <= 100_000, "must be above 0 and at most 100,000"),
    "batch_size": at_least(1),
    "accumulate_steps": at_least(1),
    "dtype": one_of("float32", "bfloat16"),
    "data.num_workers": at_least(0, "0 reads in the process of the run"),
    "preprocess.mean": each(FRACTION, count=1),
    "preprocess.std": each(above(0), count=1),
    "optim.name": one_of("adam", "adamw", "sgd"),
    "optim.learning_rate": above(0),
    "optim.momentum": between(0, 0.9999),
    "optim.weight_decay": between(0, 10),
    "optim.clip_norm": at_least(0, "0 is no limit"),
    "optim.schedule": one_of("constant", "cosine", "linear", "step"),
    "optim.warmup_epochs": at_least(0),
    "optim.final_fraction": FRACTION,
    "optim.step_epochs": each(above(0)),
    "optim.step_factor": FRACTION,
    "optim.multipliers": each(MULTIPLIER),
    "optim.freeze_epochs": at_least(0, "0 freezes for the whole run"),
    "ema_decay": between(0, 0.99999),
    "steps_per_dispatch": at_least(0, "0 chooses by device"),
    "log_every_steps": at_least(1),
    "eval_every_epochs": at_least(0.001),
    "eval_batch_size": at_least(1),
    "keep_checkpoints": at_least(1),
}
ANCHOR_STRIDES = {"fpn": (4, 8, 16, 32, 64), "fpn_c4": (4, 8, 16, 32), "yunet": (8, 16, 32)}
"""Pixels between the cells of the maps that anchors are on, finest first, by neck of Faster R-CNN."""
BASIC_RESNETS = ("resnet18", "resnet34")
"""Networks of residual blocks without a 1x1 convolution that could have the stride."""
NOT_READ = (
    ("backbone_name", (*BASIC_RESNETS, "mobilenet_v2", "yunet_n"), "has no ResNet bottlenecks", ("stride_in_1x1",)),
    ("neck", ("yunet",), "has its own pyramid", ("fpn_channels",)),
    ("rpn.assigner", ("simota",), "assigns without this threshold", ("rpn.fg_iou_thresh", "rpn.bg_iou_thresh")),
    ("rpn.objectness_loss", ("yunet",), "takes all anchors", ("rpn.batch_size_per_image", "rpn.positive_fraction")),
)
"""Fields of Faster R-CNN without effect: (field, its values, the reason, the fields without effect then)."""
HEAD_CHECKS = {
    "nms_thresh": FRACTION,
    "score_thresh": FRACTION,
    "fg_iou_thresh": FRACTION,
    "bg_iou_thresh": FRACTION,
    "batch_size_per_image": at_least(1),
    "positive_fraction": FRACTION,
    "box_loss": one_of("smooth_l1", "diou", "eiou"),
    "box_loss_weight": at_least(0),
}
"""Checks of the fields that the RPN and the box head share."""
FASTER_RCNN_CHECKS = {
    "model.neck": one_of(*ANCHOR_STRIDES),
    "model.bn_epsilon": above(0),
    "model.fpn_channels": at_least(1),
    "model.anchor_sizes": each(each(above(0), count=1), count=1),
    "model.aspect_ratios": each(above(0), count=1),
    **{f"model.rpn.pre_nms_top_n_{when}": at_least(1) for when in ("train", "test")},
    **{f"model.rpn.post_nms_top_n_{when}": at_least(1) for when in ("train", "test")},
    **{f"model.{head}.{field}": check for head in ("rpn", "box") for field, check in HEAD_CHECKS.items()},
    "model.box.canonical_size": above(0),
    "model.box.canonical_level": between(2, 6),
    "model.rpn.assigner": one_of("iou", "simota"),
    "model.rpn.objectness_loss": one_of("cross_entropy", "yunet"),
    "model.box.pooled_side": at_least(1),
    "model.box.context": above(0),
    "model.box.representation_size": at_least(1),
    "model.box.layers": between(1, 2),
    "model.box.units": at_least(0),
    "model.box.proposal_weight": FRACTION,
    "model.box.detections_per_img": at_least(1),
    "model.box.rois_at_once": at_least(0, "0 is all at once"),
}
CHECKS = {
    "classification": {
        **COMMON_CHECKS,
        "data.input": one_of("auto", "resident", "stream"),
        "data.resident_limit_gib": at_least(0),
        "data.targets": one_of("label", "votes"),
        "data.sampling": one_of("shuffled", "balanced"),
        "augment.rotation": between(0, 180, "degrees"),
        "augment.width_shift": FRACTION,
        "augment.height_shift": FRACTION,
        "augment.shear": between(0, 60, "degrees"),
        "augment.zoom": between(0, 0.9),
        "augment.brightness": FRACTION,
        "augment.contrast": FRACTION,
        "augment.blur_probability": FRACTION,
        "augment.blur_sigma": above(0),
        "augment.equalize_probability": FRACTION,
        "augment.erase_probability": FRACTION,
        "augment.erase_area": FRACTION,
        "loss": one_of(*CLASSIFICATION_LOSSES),
        "mixup_alpha": between(0, 10),
        "valence_arousal_weight": at_least(0, "0 is no head for valence and arousal"),
        "label_smoothing": between(0, 0.99),
        "distillation.weight": FRACTION,
        "select_on": one_of(*SELECT_ON["classification"]),
    },
    "detection": {
        **COMMON_CHECKS,
        "data.buckets": each(IMAGE_SIZE, count=1),
        "data.eval_buckets": each(IMAGE_SIZE),
        "data.max_boxes": at_least(1),
        "data.epoch_limits": each(EPOCH_LIMIT),
        "preprocess.exposure_level": between(0, 255),
        "transform.scale_range": RANGE,
        "transform.side_range": RANGE,
        "transform.anywhere_probability": FRACTION,
        "transform.reference_boxes": FILE,
        "transform.min_face": at_least(0),
        "transform.low_light_probability": FRACTION,
        "transform.low_light_exposure": Check(
            lambda pair: increasing(pair) and pair[1] <= 1, "must be (smallest, largest), both above 0 and at most 1"
        ),
        "transform.brightness": FRACTION,
        "transform.contrast": FRACTION,
        "transform.blur_probability": FRACTION,
        "transform.blur_sigma": above(0),
        "transform.equalize_probability": FRACTION,
        "transform.clahe_probability": FRACTION,
        "transform.clahe_limit": above(0),
        "steps_per_dispatch": between(0, 1),
        "select_on": one_of(*SELECT_ON["detection"]),
    },
}
"""Checks of each field, except those of the network, by task."""
NETWORK_CHECKS = {
    "model.dropout": between(0, 0.99),
    "model.widths": each(COUNT, count=1),
    "model.dense": each(COUNT),
    "model.convs_per_block": at_least(1),
    "model.width_multiplier": above(0),
}
"""Checks of fields that only some classifiers have."""


# ---- Rules across fields: each yields messages ----


def _common_rules(config: ConfigDict) -> Iterator[str]:
    optim, pixels = config.optim, config.preprocess
    parts = config.accumulate_steps
    if config.batch_size % parts:
        yield f"batch_size {config.batch_size} does not split into accumulate_steps {parts} equal parts"
    if config.init_excuse and not config.init_from:
        yield "init_excuse is set but init_from is empty; set init_from, or clear init_excuse"
    if len(pixels.mean) != len(pixels.std):
        yield f"preprocess.mean {pixels.mean} and preprocess.std {pixels.std} must have one value per channel each"
    if optim.name == "adam" and optim.weight_decay:
        yield "optim.weight_decay is set but adam has none; use adamw"
    if optim.nesterov and optim.name != "sgd":
        yield f"optim.nesterov is set but {optim.name} has none; use sgd or clear it"
    if optim.warmup_epochs >= config.total_epochs:
        yield f"optim.warmup_epochs {optim.warmup_epochs} must be below total_epochs {config.total_epochs}"
    if optim.final_fraction and optim.schedule in ("constant", "step"):
        yield f"optim.final_fraction is set but the schedule {optim.schedule} has none; use cosine or linear"
    if optim.freeze_epochs >= config.total_epochs:
        yield f"optim.freeze_epochs {optim.freeze_epochs} must be below total_epochs {config.total_epochs}"
    if optim.freeze_epochs and not optim.freeze:
        yield "optim.freeze_epochs is set but optim.freeze is empty; name the parameters to freeze"
    if optim.schedule == "step":
        yield from _step_rules(optim)
    elif len(optim.step_epochs) > 0:
        yield f"optim.step_epochs is set but the schedule {optim.schedule} has none; use step, or clear it"
    yield from _regex_rules("init_excuse", config.init_excuse)
    yield from _regex_rules("optim.freeze", optim.freeze)
    yield from _regex_rules("optim.multipliers", [regex for regex, _ in optim.multipliers])


def _regex_rules(field: str, regexes: Sequence[str]) -> Iterator[str]:
    for regex in regexes:
        try:
            re.compile(regex)
        except (re.error, TypeError) as error:  # TypeError: not a text
            yield f"{field}: {regex!r} is not a valid regular expression: {error}"


def _step_rules(optim: ConfigDict) -> Iterator[str]:
    epochs = optim.step_epochs
    if len(epochs) == 0:
        yield "optim.schedule is step but optim.step_epochs is empty"
    if any(later <= earlier for earlier, later in pairwise(epochs)):
        yield f"optim.step_epochs is {epochs}; the epochs must increase"
    if len(epochs) > 0 and epochs[0] < optim.warmup_epochs:
        yield f"optim.step_epochs is {epochs}; the first must not be below optim.warmup_epochs {optim.warmup_epochs}"


def _classification_rules(config: ConfigDict) -> Iterator[str]:
    yield from _common_rules(config)
    yield from _problems(
        {field: check for field, check in NETWORK_CHECKS.items() if field.partition(".")[2] in config.model}, config
    )
    if config.data.input == "resident" and config.data.num_workers:
        yield "data.num_workers is set but data.input is resident, which reads the data set once; use stream"
    if config.model.get("stride_in_1x1") and config.model.name in BASIC_RESNETS:
        yield f"model.stride_in_1x1 is True but {config.model.name} has no bottlenecks; set it to False"
    if config.valence_arousal_weight and config.accumulate_steps != 1:
        yield "valence_arousal_weight needs accumulate_steps = 1: its loss is computed over the whole batch"


def _detection_rules(config: ConfigDict) -> Iterator[str]:
    yield from _common_rules(config)
    if config.transform.scale_range and config.transform.side_range:
        yield "transform.scale_range and transform.side_range are both set; set one of them to ()"
    yield from _regex_rules("data.epoch_limits", [regex for regex, _ in config.data.epoch_limits])
    if config.transform.anywhere_probability and not config.transform.side_range:
        yield "transform.anywhere_probability is set but transform.side_range is empty; set the range of the windows"
    if _is_faster_rcnn(config):
        yield from _faster_rcnn_rules(config.model, config.accumulate_steps)


def _is_faster_rcnn(config: ConfigDict) -> bool:
    return config.task == "detection" and config.model.name == "faster_rcnn"


def _faster_rcnn_rules(model: ConfigDict, accumulate_steps: int) -> Iterator[str]:
    if accumulate_steps != 1 and model.rpn.objectness_loss != "cross_entropy":
        yield (
            f"model.rpn.objectness_loss {model.rpn.objectness_loss} needs accumulate_steps = 1: its sum over all"
            " anchors is divided by the positive anchors of the whole batch"
        )
    yield from _not_read_rules(model)
    neck, levels, of_neck = model.neck, len(model.anchor_sizes), len(ANCHOR_STRIDES[model.neck])
    if levels != of_neck:
        yield f"model.anchor_sizes has {levels} levels but the neck {neck} has {of_neck}; give sizes for each"
    per_level = {len(sizes) for sizes in model.anchor_sizes}
    if len(per_level) > 1:
        yield f"model.anchor_sizes is {model.anchor_sizes}; every level needs the same number of sizes"
    if neck == "yunet" and (per_level != {1} or len(model.aspect_ratios) != 1):
        yield "the neck yunet has one anchor per cell: give one size for each level and one of model.aspect_ratios"
    for head in ("rpn", "box"):
        background, foreground = model[head].bg_iou_thresh, model[head].fg_iou_thresh
        if background > foreground:
            yield f"model.{head}.bg_iou_thresh {background} is above model.{head}.fg_iou_thresh {foreground}"


def _not_read_rules(model: ConfigDict) -> Iterator[str]:
    defaults = detection_config().model
    for choice, values, reason, fields in NOT_READ:
        for field in fields if model[choice] in values else ():
            if model[field] != (default := defaults[field]):
                yield (
                    f"model.{field} is {model[field]!r} but model.{choice} {model[choice]} {reason};"
                    f" set it to {default!r}"
                )


RULES = {"classification": _classification_rules, "detection": _detection_rules}
"""Functions that yield the problems of fields with each other, by task."""
USED_AFTER_TRAINING = ("data", "dtype", "eval_batch_size", "model", "preprocess", "seed", "select_on")
"""First names of the fields that evaluation and prediction read."""


# ---- Checks of a whole config ----


def validate(config: ConfigDict) -> None:
    """Check every field, then the fields against each other; ValueError lists all problems."""
    problems = _problems({"task": one_of(*CHECKS)}, config)
    problems = problems or _missing(config) or _problems(checks_of(config), config) or list(RULES[config.task](config))
    if problems:
        raise ValueError("\n  ".join(["the config is not valid:", *problems]))


def validate_for_use(config: ConfigDict) -> None:
    """Check the fields that are used after training; ValueError lists all problems.

    Fields that only training uses may have values of an older version.
    """
    problems = _problems({"task": one_of(*CHECKS)}, config)
    if not problems:
        checks = checks_of(config)
        used = {field: check for field, check in checks.items() if field.partition(".")[0] in USED_AFTER_TRAINING}
        problems = _problems(used, config)
    if problems:
        raise ValueError("\n  ".join(["the config is not valid:", *problems]))


def _missing(config: ConfigDict) -> list[str]:
    """Return a message if the config is not one of its task, as after --config.task=detection."""
    fields = config.to_dict()
    lacking = [name for name in default_config(config.task) if name not in fields]
    others = f"{config.task} needs the fields {', '.join(lacking)}; choose a config of this task"
    return [f"task is {config.task!r}; {others}"] if lacking else []


def checks_of(config: ConfigDict) -> dict[str, Check]:
    """Return the checks of the fields of a config whose task is known."""
    return CHECKS[config.task] | (FASTER_RCNN_CHECKS if _is_faster_rcnn(config) else {})


def _problems(checks: dict[str, Check], config: ConfigDict) -> list[str]:
    return [
        f"{field} is {config[field]!r}; {check.words}"
        for field, check in checks.items()
        if not _holds(check, config[field])
    ]


def _holds(check: Check, value: Any) -> bool:
    try:
        return bool(check.holds(value))
    except TypeError:  # parts of another type, such as text in place of a number
        return False
