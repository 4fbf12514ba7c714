"""Configs: every field with its default, the checks of each field, and durations in steps."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation per channel of ImageNet's pixels in [0, 1], red first."""
SELECT_ON = {
    "classification": {"val/accuracy": "max", "val/macro_f1": "max", "val/loss": "min"},
    "detection": {"val/ap50": "max", "val/coco_ap": "max", "val/loss": "min"},
}
"""By task, the metrics that can choose the best checkpoint, and whether the largest or the smallest value is best."""


# ---- Fields and defaults ----


def classification_config() -> ConfigDict:
    """Return all fields of a classifier's run. Regularization and augmentation are off by default."""
    config = _common_config()
    config.task = "classification"
    config.data.name = "fer2013"
    config.data.update(
        {
            "input": "auto",  # "resident": the data set is kept on the device; "stream": batches come from the host
            "resident_limit_gib": 2.0,  # GiB, at least 0; "auto" keeps data sets up to this size on the device
            "targets": "label",  # or "votes": the distribution of the annotators' votes
            "sampling": "shuffled",  # every example once per epoch; or "balanced": every class equally often
        }
    )
    config.model.name = "vgg_fer"
    config.update(
        {
            "augment": {
                "rotation": 0.0,  # degrees either way, 0 to 180
                "width_shift": 0.0,  # fraction of the width either way, 0 to 1
                "height_shift": 0.0,  # fraction of the height either way, 0 to 1
                "shear": 0.0,  # degrees either way, 0 to 60
                "zoom": 0.0,  # scale from 1 - zoom to 1 + zoom, 0 to 0.9
                "horizontal_flip": False,  # of every second image
                "brightness": 0.0,  # fraction of the range of values, added either way, 0 to 1
                "contrast": 0.0,  # contrast from 1 - contrast to 1 + contrast, 0 to 1
                "blur_probability": 0.0,  # 0 to 1
                "blur_sigma": 1.0,  # largest sigma in pixels, above 0
                "equalize_probability": 0.0,  # 0 to 1
                "erase_probability": 0.0,  # 0 to 1
                "erase_area": 0.2,  # largest fraction of the image, 0 to 1
            },
            "loss": "cross_entropy",  # or another name of losses.CLASSIFICATION_LOSSES
            "mixup_alpha": 0.0,  # at least 0; 0: no mixup
            "valence_arousal_weight": 0.0,  # weight of this loss, at least 0; 0: no head for valence and arousal
            "label_smoothing": 0.0,  # 0 to 0.99
            "distillation": {
                "teachers": (),  # model files or workdirs of runs whose predictions are learned as well; (): none
                "weight": 0.5,  # of the teachers' mean probabilities in the targets, 0 to 1
            },
        }
    )
    return config


def detection_config() -> ConfigDict:
    """Return all fields of a detector's run: torchvision's names and values, except anchors for smaller faces."""
    config = _common_config()
    config.task = "detection"
    config.data.name = "widerface"
    config.data.update(
        {
            "buckets": ((640, 640),),  # (height, width) of batches in training, pixels, multiples of 32
            "eval_buckets": (),  # the same for evaluation; (): the sizes of training
            "max_boxes": 100,  # boxes of an image in training, at least 1
            "epoch_limits": (),  # pairs (regex, number): at most so many images with a matching path per epoch
        }
    )
    config.model = {
        "name": "faster_rcnn",
        "backbone_name": "resnet50",  # or "resnet18", "resnet34", "mobilenet_v2", "yunet_n"
        "neck": "fpn",  # or "fpn_c4", whose backbone ends at C4, or "c4", or "yunet" of yunet_n
        "stride_in_1x1": False,
        "bn_epsilon": 1e-5,
        "fpn_channels": 256,
        "anchor_sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)),  # of each level, pixels
        "aspect_ratios": (0.5, 1.0, 2.0),  # height over width
        "rpn": {
            "pre_nms_top_n_train": 2000,
            "pre_nms_top_n_test": 1000,
            "post_nms_top_n_train": 2000,
            "post_nms_top_n_test": 1000,
            "nms_thresh": 0.7,
            "score_thresh": 0.0,
            "fg_iou_thresh": 0.7,
            "bg_iou_thresh": 0.3,
            "batch_size_per_image": 256,
            "positive_fraction": 0.5,
            "assigner": "iou",  # or "atss", "simota"
            "objectness_loss": "cross_entropy",  # of a sample of the anchors; or of all: "yunet", "quality_focal"
            "box_loss": "smooth_l1",  # or "diou", "eiou"
            "box_loss_weight": 1.0,  # at least 0
        },
        "box": {
            "canonical_size": 224.0,
            "canonical_level": 4,
            "roi_aligned": False,
            "pooled_side": 7,  # cells of a pooled RoI along each side
            "context": 1.0,  # sides of the pooled region over those of the proposal
            "representation_size": 1024,
            "layers": 2,  # dense layers before the predictor, 1 or 2
            "units": 0,  # separable convolutions before the dense layers
            "score_thresh": 0.05,
            "nms_thresh": 0.5,
            "detections_per_img": 300,
            "fg_iou_thresh": 0.5,
            "bg_iou_thresh": 0.5,
            "batch_size_per_image": 512,
            "positive_fraction": 0.25,
            "box_loss": "smooth_l1",  # or "diou", "eiou"
            "box_loss_weight": 1.0,  # at least 0
            "proposal_weight": 0.0,  # of the proposal's score in the score, a weighted geometric mean, 0 to 1
            "rois_at_once": 0,  # proposals that prediction classifies in one group; 0: all
        },
    }
    config.preprocess = {
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "exposure_level": 0.0,  # darker images are brightened to this mean, 0 to 255, after all random changes; 0: off
    }
    config.transform = {
        "scale_range": (),  # (smallest, largest) scale of a random window; 1 fits the whole image; (): the whole image
        "side_range": (),  # (smallest, largest) shorter side of a random window, as a multiple of the image's
        "anywhere_probability": 0.0,  # fraction of these windows that are placed without regard to the boxes, 0 to 1
        "reference_boxes": "",  # JSON file of boxes whose sizes and places a face gets in a window; "": none
        "min_face": 0.0,  # pixels of the bucket, at least 0; training ignores smaller boxes
        "horizontal_flip": False,  # of every second image
        "low_light_probability": 0.0,  # 0 to 1
        "low_light_exposure": (0.03, 0.3),  # (smallest, largest) fraction of the light that remains, above 0, to 1
        "brightness": 0.0,  # fraction of the range of values, added either way, 0 to 1
        "contrast": 0.0,  # contrast from 1 - contrast to 1 + contrast, 0 to 1
        "blur_probability": 0.0,  # 0 to 1
        "blur_sigma": 1.0,  # largest sigma in pixels, above 0
        "equalize_probability": 0.0,  # 0 to 1
        "clahe_probability": 0.0,  # 0 to 1
        "clahe_limit": 2.0,  # contrast limit of CLAHE, above 0
    }
    config.batch_size = config.eval_batch_size = 8
    config.optim.name = "sgd"
    config.select_on = "val/ap50"
    return config


def _common_config() -> ConfigDict:
    """Return the fields of every run."""
    return ConfigDict(
        {
            "task": "",  # "classification" or "detection"
            "seed": 0,  # 0 to 2**32 - 1
            "total_epochs": 120.0,  # of the training split, above 0, at most 100,000; epochs may be fractions
            "batch_size": 64,  # examples per step over all devices, at least 1
            "accumulate_steps": 1,  # equal parts of a batch that is too large for the memory, at least 1
            "dtype": "float32",  # or "bfloat16", of the network's arithmetic; parameters and losses are float32
            "data": {
                "name": "",
                "data_dir": "data",
                "options": {},  # further arguments of the data set
                "num_workers": 0,  # processes that read streamed images, at least 0; 0: the process of the run
            },
            "model": {"name": ""},  # and the arguments of the network
            "init_from": "",  # initial weights: a file, a hub reference or the workdir of another run
            "init_excuse": (),  # regexes of names that may be missing, extra or of another shape in init_from
            "preprocess": {"mean": (0.5,), "std": (0.25,)},  # per channel, of pixels in [0, 1]; std is above 0
            "optim": {
                "name": "adam",  # or "adamw", "sgd"
                "learning_rate": 0.001,  # the peak of the schedule, above 0
                "momentum": 0.9,  # of sgd, 0 to 0.9999
                "nesterov": False,  # sgd with Nesterov's momentum
                "weight_decay": 0.0,  # of kernels only, 0 to 10
                "clip_norm": 0.0,  # largest global norm of the gradient, at least 0; 0: no limit
                "schedule": "constant",  # or "cosine", "linear", "step"
                "warmup_epochs": 0.0,  # epochs of linear warm-up, at least 0
                "final_fraction": 0.0,  # fraction of the peak where "cosine" and "linear" end, 0 to 1
                "step_epochs": (),  # epochs at which "step" multiplies the learning rate by step_factor, increasing
                "step_factor": 0.1,  # 0 to 1
                "multipliers": (),  # pairs (regex, factor): factor on the learning rate of the parameters that match
                "freeze": (),  # regexes of parameters that do not train, and whose BatchNorm statistics stay as well
                "freeze_epochs": 0.0,  # epochs for which they are frozen, at least 0; 0: the whole run
            },
            "ema_decay": 0.0,  # decay of the weight average that evaluation uses, 0 to 0.99999; 0: no average
            "steps_per_dispatch": 0,  # steps per call to the device; 0: 32 for resident data on accelerators, else 1
            "log_every_steps": 50,  # at least 1
            "eval_every_epochs": 1.0,  # epochs between evaluations on val, each with a checkpoint, at least 0.001
            "eval_batch_size": 64,  # at least 1; larger batches are slower on CPU
            "keep_checkpoints": 2,  # newest checkpoints that are kept besides the best, at least 1
            "select_on": "val/accuracy",  # metric that chooses the best checkpoint: see SELECT_ON
        }
    )


DEFAULTS = {"classification": classification_config, "detection": detection_config}
"""By task, the function that returns all fields with their defaults."""


def default_config(task: str) -> ConfigDict:
    """Return all fields of a run of `task` with their defaults; ValueError on an unknown task."""
    if task not in DEFAULTS:
        raise ValueError(f"task is {task!r}; must be one of {', '.join(DEFAULTS)}")
    return DEFAULTS[task]()


def apply_variant(
    config: ConfigDict, name: str, variants: dict[str, Callable[[ConfigDict], None]] | None = None
) -> ConfigDict:
    """Return the config, changed by the variant called `name`: the text after the colon in --config=FILE:NAME.

    An empty name changes nothing. ValueError on an unknown name.
    """
    variants = variants or {}
    if name and name not in variants:
        known = f"the variants are {', '.join(variants)}" if variants else "this config has no variants"
        raise ValueError(f"unknown variant {name!r}: {known}")
    if name:
        variants[name](config)
    return config


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Return the number of steps nearest to `epochs` epochs, at least 1 if epochs > 0."""
    return max(round(epochs * num_examples / batch_size), math.ceil(min(epochs, 1)))


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
NECK_LEVELS = {"fpn": 5, "fpn_c4": 4, "c4": 1, "yunet": 3}
"""Feature levels of each neck of Faster R-CNN."""
BASIC_RESNETS = ("resnet18", "resnet34")
"""Networks of residual blocks without a 1x1 convolution that could have the stride."""
NOT_READ = (
    ("backbone_name", (*BASIC_RESNETS, "mobilenet_v2", "yunet_n"), "has no ResNet bottlenecks", ("stride_in_1x1",)),
    ("neck", ("c4",), "has no pyramid", ("fpn_channels",)),
    ("neck", ("yunet",), "has its own pyramid", ("fpn_channels",)),
    ("neck", ("c4",), "pools from one map", ("box.canonical_size", "box.canonical_level")),
    (
        "neck",
        ("c4",),
        "has the last stage of the ResNet as box head",
        ("box.pooled_side", "box.representation_size", "box.layers", "box.units"),
    ),
    (
        "rpn.assigner",
        ("atss", "simota"),
        "assigns without this threshold",
        ("rpn.fg_iou_thresh", "rpn.bg_iou_thresh"),
    ),
    (
        "rpn.objectness_loss",
        ("yunet", "quality_focal"),
        "takes all anchors",
        ("rpn.batch_size_per_image", "rpn.positive_fraction"),
    ),
)
"""Values of fields of a detector's model, the reason why it does not read other fields, and these fields."""
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
        "mixup_alpha": at_least(0, "0 is no mixup"),
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
        "model.neck": one_of(*NECK_LEVELS),
        "model.bn_epsilon": above(0),
        "model.fpn_channels": at_least(1),
        "model.anchor_sizes": each(each(above(0), count=1), count=1),
        "model.aspect_ratios": each(above(0), count=1),
        **{f"model.rpn.pre_nms_top_n_{when}": at_least(1) for when in ("train", "test")},
        **{f"model.rpn.post_nms_top_n_{when}": at_least(1) for when in ("train", "test")},
        **{f"model.{head}.{field}": check for head in ("rpn", "box") for field, check in HEAD_CHECKS.items()},
        "model.box.canonical_size": above(0),
        "model.box.canonical_level": between(2, 6),
        "model.rpn.assigner": one_of("iou", "atss", "simota"),
        "model.rpn.objectness_loss": one_of("cross_entropy", "yunet", "quality_focal"),
        "model.box.pooled_side": at_least(1),
        "model.box.context": above(0),
        "model.box.representation_size": at_least(1),
        "model.box.layers": between(1, 2),
        "model.box.units": at_least(0),
        "model.box.proposal_weight": FRACTION,
        "model.box.detections_per_img": at_least(1),
        "model.box.rois_at_once": at_least(0, "0 is all at once"),
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
"""By task, the check of each field."""
NETWORK_CHECKS = {
    "model.dropout": between(0, 0.99),
    "model.widths": each(at_least(1), count=1),
    "model.dense": each(at_least(1)),
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
        yield "transform.scale_range and transform.side_range are both set; a window has one size"
    yield from _regex_rules("data.epoch_limits", [regex for regex, _ in config.data.epoch_limits])
    yield from _not_read_rules(config.model)
    neck, levels = config.model.neck, len(config.model.anchor_sizes)
    if levels != NECK_LEVELS[neck]:
        yield f"model.anchor_sizes has {levels} levels but the neck {neck} has {NECK_LEVELS[neck]}; give sizes for each"
    per_level = {len(sizes) for sizes in config.model.anchor_sizes}
    if len(per_level) > 1:
        yield f"model.anchor_sizes is {config.model.anchor_sizes}; every level needs the same number of sizes"
    if neck == "yunet" and (per_level != {1} or len(config.model.aspect_ratios) != 1):
        yield "the neck yunet has one anchor per cell: give one size for each level and one of model.aspect_ratios"
    if config.transform.anywhere_probability and not config.transform.side_range:
        yield "transform.anywhere_probability is set but transform.side_range is empty; set the range of the windows"
    for head in ("rpn", "box"):
        background, foreground = config.model[head].bg_iou_thresh, config.model[head].fg_iou_thresh
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


USED_AFTER_TRAINING = ("data", "dtype", "eval_batch_size", "model", "preprocess", "seed", "select_on")


def validate(config: ConfigDict) -> None:
    """Check every field, then the fields against each other; ValueError lists all problems."""
    problems = _problems({"task": one_of(*CHECKS)}, config)
    problems = problems or _problems(CHECKS[config.task], config) or list(RULES[config.task](config))
    if problems:
        raise ValueError("\n  ".join(["the config is not valid:", *problems]))


def validate_for_use(config: ConfigDict) -> None:
    """Check the fields that are used after training; ValueError lists all problems.

    Fields that only training uses may have values of an older version.
    """
    problems = _problems({"task": one_of(*CHECKS)}, config)
    checks = CHECKS.get(config.task, {})
    used = {field: check for field, check in checks.items() if field.partition(".")[0] in USED_AFTER_TRAINING}
    if problems := problems or _problems(used, config):
        raise ValueError("\n  ".join(["the config is not valid:", *problems]))


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
