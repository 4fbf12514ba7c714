"""Configs: every field with its default, by task, durations to steps, and every check across fields in one place."""

import math
import re
from collections.abc import Iterable

from ml_collections import ConfigDict

INPUTS = ("auto", "resident", "stream")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "step")
FRACTIONS = ("width_shift", "height_shift", "zoom", "brightness", "contrast", "erase_area")
DTYPES = ("float32", "bfloat16")
TARGETS = ("label", "votes")
SAMPLINGS = ("shuffled", "balanced")
SELECT_ON = {
    "classification": {"val/accuracy": "max", "val/macro_f1": "max", "val/loss": "min"},
    "detection": {"val/ap50": "max", "val/coco_ap": "max", "val/loss": "min"},
}
"""By task, the figures by which a run may choose its best checkpoint, and whether the largest or smallest is best."""


def classification_config() -> ConfigDict:
    """All fields of a classifier's run. What regularizes or augments is off until a config turns it on."""
    config = _common_config()
    config.task = "classification"
    config.data.name = "fer2013"
    config.data.update(
        {
            "input": "auto",  # "resident": the set lives on the device; "stream": batches come from the host
            "resident_limit_gib": 2.0,  # "auto" takes "resident" up to this size
            "targets": "label",  # or "votes": the distribution that annotators gave
            "sampling": "shuffled",  # every example once a pass; or "balanced": every class equally often
        }
    )
    config.model.name = "vgg_fer"
    config.update(
        {
            "augment": {
                "rotation": 0.0,  # up to so many degrees either way
                "width_shift": 0.0,  # up to this fraction of the width
                "height_shift": 0.0,
                "shear": 0.0,  # degrees
                "zoom": 0.0,  # scale within 1 - zoom and 1 + zoom
                "horizontal_flip": False,
                "brightness": 0.0,
                "contrast": 0.0,
                "blur_probability": 0.0,
                "blur_sigma": 1.0,  # pixels, at most
                "equalize_probability": 0.0,
                "erase_probability": 0.0,
                "erase_area": 0.2,  # fraction of the picture, at most
            },
            "mixup_alpha": 0.0,
            "valence_arousal_weight": 0.0,  # of the loss of a head for valence and arousal; 0: no head
            "label_smoothing": 0.0,
        }
    )
    return config


def detection_config() -> ConfigDict:
    """All fields of a detector's run: torchvision's names, and its values but for anchors of smaller faces."""
    config = _common_config()
    config.task = "detection"
    config.data.name = "widerface"
    config.data.update(
        {
            "buckets": ((640, 640),),  # (height, width) that pictures are brought to, multiples of 32
            "eval_buckets": (),  # the same for evaluation; (): the same sizes
            "max_boxes": 100,  # of a picture, in training
        }
    )
    config.model = {
        "name": "faster_rcnn",
        "backbone_name": "resnet50",  # or "resnet18", "resnet34", "mobilenet_v2"
        "neck": "fpn",  # or "fpn_c4", whose backbone ends at C4, or "c4"
        "stride_in_1x1": False,
        "bn_epsilon": 1e-5,
        "fpn_channels": 256,
        "anchor_sizes": ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)),  # of each level, pixels
        "aspect_ratios": (0.5, 1.0, 2.0),  # height over width
        "rpn_pre_nms_top_n_train": 2000,
        "rpn_pre_nms_top_n_test": 1000,
        "rpn_post_nms_top_n_train": 2000,
        "rpn_post_nms_top_n_test": 1000,
        "rpn_nms_thresh": 0.7,
        "rpn_score_thresh": 0.0,
        "rpn_fg_iou_thresh": 0.7,
        "rpn_bg_iou_thresh": 0.3,
        "rpn_batch_size_per_image": 256,
        "rpn_positive_fraction": 0.5,
        "box_canonical_size": 224.0,
        "box_canonical_level": 4,
        "box_roi_aligned": False,
        "box_representation_size": 1024,
        "box_score_thresh": 0.05,
        "box_nms_thresh": 0.5,
        "box_detections_per_img": 300,
        "box_fg_iou_thresh": 0.5,
        "box_bg_iou_thresh": 0.5,
        "box_batch_size_per_image": 512,
        "box_positive_fraction": 0.25,
    }
    config.preprocess = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    config.transform = {
        "scale_range": (),  # a window at a scale within it, in units of the whole picture's; (): the whole picture
        "min_face": 0.0,  # pixels of the bucket; training ignores smaller boxes
        "horizontal_flip": False,
        "low_light_probability": 0.0,
        "low_light_exposure": (0.03, 0.3),  # fraction of the light that is left
        "brightness": 0.0,
        "contrast": 0.0,
        "blur_probability": 0.0,
        "blur_sigma": 1.0,  # pixels, at most
        "equalize_probability": 0.0,
        "clahe_probability": 0.0,
        "clahe_limit": 2.0,
    }
    config.batch_size = config.eval_batch_size = 8
    config.optim.name = "sgd"
    config.select_on = "val/ap50"
    return config


DEFAULTS = {"classification": classification_config, "detection": detection_config}
"""All fields of a run with their defaults, by its task."""


def _common_config() -> ConfigDict:
    """What every run has."""
    return ConfigDict(
        {
            "task": "",
            "seed": 0,
            "total_epochs": 120.0,  # passes over the training split; fractions are fine, here and below
            "batch_size": 64,  # of one update, over all devices
            "accumulate_steps": 1,  # parts that a batch is split into where it does not fit in memory whole
            "dtype": "float32",  # of the network's arithmetic; parameters, statistics and losses are float32
            "data": {
                "name": "",
                "data_dir": "data",
                "options": {},  # further arguments of the data set
                "num_workers": 0,  # processes that read pictures
            },
            "model": {"name": ""},
            "init_from": "",  # weights to start from: a file, a hub reference, another run's workdir
            "init_excuse": (),  # regexes of the names that may be missing, extra or misshapen there
            "preprocess": {"mean": (0.5,), "std": (0.25,)},  # per channel, of pixels in [0, 1]
            "optim": {
                "name": "adam",
                "learning_rate": 0.001,  # the schedule's peak
                "momentum": 0.9,  # of sgd, Nesterov's
                "weight_decay": 0.0,  # on kernels only
                "clip_norm": 0.0,  # largest global norm of the gradient; 0: no limit
                "schedule": "constant",
                "warmup_epochs": 0.0,
                "final_fraction": 0.0,  # of the peak, that "cosine" and "linear" end at
                "step_epochs": (),  # where "step" multiplies the rate by step_factor
                "step_factor": 0.1,
                "multipliers": (),  # pairs (regex, factor) on the rate of the parameters whose names match
                "freeze": (),  # regexes of parameters that stay as they are, with their BatchNorm statistics
                "freeze_epochs": 0.0,  # for how long; 0: for good
            },
            "ema_decay": 0.0,  # average of the weights that evaluation uses; 0: the weights themselves
            "steps_per_dispatch": 0,  # updates per call to the device; 0: one on CPU and of a detector, else 32
            "log_every_steps": 50,
            "eval_every_epochs": 1.0,  # evaluates on val and saves
            "eval_batch_size": 256,
            "keep_checkpoints": 2,  # newest ones, beside the best
            "select_on": "val/accuracy",
        }
    )


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """The number of updates nearest to `epochs` passes, at least one where epochs > 0."""
    return max(round(epochs * num_examples / batch_size), math.ceil(min(epochs, 1)))


class Problems(list):
    """What does not hold of a config, a line each."""

    def require(self, holds: bool, problem: str) -> None:
        """Note the problem unless `holds`."""
        if not holds:
            self.append(problem)

    def one_of(self, field: str, value: str, known: Iterable[str]) -> None:
        """Note a value that is not known."""
        self.require(value in known, f"{field} is {value!r}; known are {', '.join(known)}")

    def within(self, field: str, value: float, low: float, high: float) -> None:
        """Note a value outside its range."""
        self.require(low <= value <= high, f"{field} is {value}; it lies within {low} and {high}")


def validate(config: ConfigDict) -> None:
    """Check ranges, names, and fields against one another; ValueError lists all that does not hold."""
    problems = Problems()
    _check_run(config, problems)
    _check_optim(config, problems)
    CHECKS[config.task](config, problems)
    if problems:
        raise ValueError("the config cannot be run:\n" + "\n".join(f"  {problem}" for problem in problems))


def _check_run(config: ConfigDict, problems: Problems) -> None:
    problems.one_of("dtype", config.dtype, DTYPES)
    problems.one_of("select_on", config.select_on, SELECT_ON[config.task])
    for field in ("total_epochs", "batch_size", "accumulate_steps", "log_every_steps", "eval_every_epochs"):
        problems.require(config[field] > 0, f"{field} is {config[field]}; it must be above 0")
    for field, holds, hint in (
        ("eval_batch_size", config.eval_batch_size > 0, "it must be above 0"),
        ("keep_checkpoints", config.keep_checkpoints > 0, "at least the newest is kept"),
        ("steps_per_dispatch", config.steps_per_dispatch >= 0, "0 chooses by device"),
    ):
        problems.require(holds, f"{field} is {config[field]}; {hint}")
    problems.require(
        config.data.num_workers >= 0, f"data.num_workers is {config.data.num_workers}; 0 reads in this process"
    )
    problems.within("ema_decay", config.ema_decay, 0.0, 0.99999)
    problems.require(
        config.batch_size % config.accumulate_steps == 0,
        f"batch_size {config.batch_size} does not split into accumulate_steps {config.accumulate_steps} equal parts",
    )
    problems.require(
        config.init_from != "" or len(config.init_excuse) == 0,
        "init_excuse is set but init_from is empty: there is nothing to excuse",
    )
    problems.require(
        len(config.preprocess.mean) == len(config.preprocess.std) and min(config.preprocess.std) > 0,
        f"preprocess.mean {config.preprocess.mean} and std {config.preprocess.std}: one each per channel, std above 0",
    )
    for pattern in (*config.init_excuse, *config.optim.freeze, *(pair[0] for pair in config.optim.multipliers)):
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{pattern!r} is no regex: {error}")


def _check_optim(config: ConfigDict, problems: Problems) -> None:
    optim = config.optim
    problems.one_of("optim.name", optim.name, OPTIMIZERS)
    problems.one_of("optim.schedule", optim.schedule, SCHEDULES)
    problems.require(optim.learning_rate > 0, f"optim.learning_rate is {optim.learning_rate}; it must be above 0")
    problems.within("optim.final_fraction", optim.final_fraction, 0.0, 1.0)
    problems.require(
        optim.name != "adam" or optim.weight_decay == 0, "optim.weight_decay is set but adam has none; use adamw"
    )
    problems.require(
        optim.schedule != "step" or len(optim.step_epochs) > 0,
        "optim.schedule is step but optim.step_epochs is empty",
    )
    problems.require(
        optim.warmup_epochs < config.total_epochs,
        f"optim.warmup_epochs {optim.warmup_epochs} does not end within total_epochs {config.total_epochs}",
    )
    problems.require(
        optim.freeze_epochs == 0 or len(optim.freeze) > 0, "optim.freeze_epochs is set but optim.freeze names nothing"
    )


def _check_classification(config: ConfigDict, problems: Problems) -> None:
    problems.one_of("data.input", config.data.input, INPUTS)
    problems.one_of("data.targets", config.data.targets, TARGETS)
    problems.one_of("data.sampling", config.data.sampling, SAMPLINGS)
    problems.require(
        config.data.input != "resident" or config.data.num_workers == 0,
        "data.num_workers is set but data.input is resident, which reads the set once; use stream",
    )
    problems.within("label_smoothing", config.label_smoothing, 0.0, 0.99)
    problems.require(config.mixup_alpha >= 0, f"mixup_alpha is {config.mixup_alpha}; 0 is off")
    weight = config.valence_arousal_weight
    problems.require(weight >= 0, f"valence_arousal_weight is {weight}; 0 is no head")
    problems.require(
        weight == 0 or config.accumulate_steps == 1,
        "valence_arousal_weight is set and accumulate_steps is not 1: concordance is a figure of the whole batch",
    )
    for field, value in config.augment.items():
        if field.endswith("probability") or field in FRACTIONS:
            problems.within(f"augment.{field}", value, 0.0, 1.0)
    problems.require(
        config.augment.zoom != 1.0, "augment.zoom is 1.0, which could shrink a picture to nothing; stay below"
    )


def _check_detection(config: ConfigDict, problems: Problems) -> None:
    problems.require(len(config.data.buckets) > 0, "data.buckets is empty; a detector needs one at least")
    for field in ("buckets", "eval_buckets"):
        for bucket in config.data[field]:
            problems.require(
                len(bucket) == 2 and min(bucket) > 0 and all(side % 32 == 0 for side in bucket),
                f"data.{field} has {tuple(bucket)}; each is a height and a width, multiples of 32",
            )
    problems.require(config.data.max_boxes > 0, f"data.max_boxes is {config.data.max_boxes}; it must be above 0")
    problems.require(
        config.steps_per_dispatch in (0, 1),
        f"steps_per_dispatch is {config.steps_per_dispatch}; batches of several sizes go to the device one by one",
    )
    levels = {"fpn": 5, "fpn_c4": 4, "c4": 1}
    neck, sizes = config.model.neck, config.model.anchor_sizes
    problems.one_of("model.neck", neck, levels)
    problems.require(
        len(sizes) == levels.get(neck, len(sizes)),
        f"model.anchor_sizes has {len(sizes)} levels, the neck {neck!r} gives {levels.get(neck)}",
    )
    scales = config.transform.scale_range
    problems.require(
        len(scales) == 0 or (len(scales) == 2 and 0 < scales[0] <= scales[1]),
        f"transform.scale_range is {scales}; it is empty, or a smallest and a largest scale above 0",
    )
    for field, value in config.transform.items():
        if field.endswith("probability") or field in FRACTIONS:
            problems.within(f"transform.{field}", value, 0.0, 1.0)


CHECKS = {"classification": _check_classification, "detection": _check_detection}
