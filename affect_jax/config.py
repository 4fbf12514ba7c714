"""Configs: every field with its default, variants, and durations in steps."""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation per channel of ImageNet's pixels in [0, 1], red first."""
SELECT_ON = {
    "classification": {"val/accuracy": "max", "val/macro_f1": "max", "val/loss": "min"},
    "detection": {"val/ap50": "max", "val/coco_ap": "max", "val/loss": "min"},
}
"""Metrics that can select the best checkpoint, by task, and whether the largest or the smallest value is best."""


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
                "horizontal_flip": False,  # with probability 0.5
                "brightness": 0.0,  # fraction of the range of values, added either way, 0 to 1
                "contrast": 0.0,  # contrast from 1 - contrast to 1 + contrast, 0 to 1
                "blur_probability": 0.0,  # 0 to 1
                "blur_sigma": 1.0,  # largest sigma in pixels, above 0
                "equalize_probability": 0.0,  # 0 to 1
                "erase_probability": 0.0,  # 0 to 1
                "erase_area": 0.2,  # largest fraction of the image, 0 to 1
            },
            "loss": "cross_entropy",  # or another name of losses.CLASSIFICATION_LOSSES
            "mixup_alpha": 0.0,  # 0 to 10; 0: no mixup
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
    """Return all fields of a detector's run.

    Fields that torchvision also has keep its names and defaults, but anchors are smaller and an image can have more
    detections.
    """
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
        "neck": "fpn",  # or "fpn_c4", whose backbone ends at C4, or "yunet" of yunet_n
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
            "assigner": "iou",  # or "simota"
            "objectness_loss": "cross_entropy",  # of a sample of the anchors; or of all: "yunet"
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
            "rois_at_once": 0,  # proposals that prediction classifies in one group; 0: all, and P2 is always made
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
        "horizontal_flip": False,  # with probability 0.5
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
"""Functions that return all fields with their defaults, by task."""


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


def evaluation_buckets(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """Return the sizes (height, width) of a detector's input in evaluation, in pixels."""
    return config.data.eval_buckets or config.data.buckets


def differing_fields(old: dict, new: dict, prefix: str = "") -> list[tuple[str, object, object]]:
    """Return (dotted name, old value, new value) of the fields that differ; a missing field has the value "absent"."""
    differences = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            differences += differing_fields(a, b, f"{prefix}{name}.")
        elif a != b:
            differences.append((prefix + name, a, b))
    return differences


def epochs_to_steps(epochs: float, num_examples: int, batch_size: int) -> int:
    """Return the number of steps nearest to `epochs` epochs, at least 1 if epochs > 0."""
    return max(round(epochs * num_examples / batch_size), math.ceil(min(epochs, 1)))
