"""Configs: every field with its default, durations to steps, and every check across fields in one place."""

import math
import re

from ml_collections import ConfigDict

INPUTS = ("auto", "resident", "stream")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle", "step")
FRACTIONS = ("width_shift", "height_shift", "zoom", "brightness", "contrast", "erase_area")
DTYPES = ("float32", "bfloat16")
TARGETS = ("label", "votes")
SAMPLINGS = ("shuffled", "balanced")
SELECT_ON = {"val/accuracy": "max", "val/macro_f1": "max", "val/loss": "min"}
"""The figures by which a run may choose its best checkpoint, and whether the largest or the smallest is best."""


def classification_config() -> ConfigDict:
    """All fields of a classifier's run. What regularizes or augments is off until a config turns it on."""
    return ConfigDict(
        {
            "seed": 0,
            "total_epochs": 120.0,  # passes over the training split; fractions are fine, here and below
            "batch_size": 64,  # of one update, over all devices
            "accumulate_steps": 1,  # parts that a batch is split into where it does not fit in memory whole
            "dtype": "float32",  # of the network's arithmetic; parameters, statistics and losses are float32
            "data": {
                "name": "fer2013",
                "data_dir": "data",
                "options": {},  # further arguments of the data set
                "input": "auto",  # "resident": the set lives on the device; "stream": batches come from the host
                "resident_limit_gib": 2.0,  # "auto" takes "resident" up to this size
                "num_workers": 0,  # reading processes of "stream"
                "targets": "label",  # or "votes": the distribution that annotators gave
                "sampling": "shuffled",  # every example once a pass; or "balanced": every class equally often
            },
            "model": {"name": "vgg_fer"},
            "init_from": "",  # weights to start from: a file, a hub reference, another run's workdir
            "init_excuse": (),  # regexes of the names that may be missing, extra or misshapen there
            "preprocess": {"mean": (0.5,), "std": (0.25,)},  # per channel, of pixels in [0, 1]
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
            "optim": {
                "name": "adam",
                "learning_rate": 0.001,  # the schedule's peak
                "momentum": 0.9,  # of sgd, Nesterov's
                "weight_decay": 0.0,  # on kernels only
                "clip_norm": 0.0,  # largest global norm of the gradient; 0: no limit
                "schedule": "constant",
                "warmup_epochs": 0.0,
                "final_fraction": 0.0,  # of the peak, that "cosine" and "one_cycle" end on
                "step_epochs": (),  # where "step" multiplies the rate by step_factor
                "step_factor": 0.1,
                "multipliers": (),  # pairs (regex, factor) on the rate of the parameters whose names match
                "freeze": (),  # regexes of parameters that stay as they are, with their BatchNorm statistics
                "freeze_epochs": 0.0,  # for how long; 0: for good
            },
            "ema_decay": 0.0,  # average of the weights that evaluation uses; 0: the weights themselves
            "steps_per_dispatch": 0,  # updates per call to the device; 0: one on CPU, 32 elsewhere
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


def validate(config: ConfigDict) -> None:
    """Check ranges, names, and fields against one another; ValueError lists all that does not hold."""
    problems = []

    def require(holds: bool, problem: str) -> None:
        if not holds:
            problems.append(problem)

    def one_of(field: str, value: str, known) -> None:
        require(value in known, f"{field} is {value!r}; known are {', '.join(known)}")

    def within(field: str, value: float, low: float, high: float) -> None:
        require(low <= value <= high, f"{field} is {value}; it lies within {low} and {high}")

    one_of("dtype", config.dtype, DTYPES)
    one_of("data.input", config.data.input, INPUTS)
    one_of("data.targets", config.data.targets, TARGETS)
    one_of("data.sampling", config.data.sampling, SAMPLINGS)
    one_of("optim.name", config.optim.name, OPTIMIZERS)
    one_of("optim.schedule", config.optim.schedule, SCHEDULES)
    one_of("select_on", config.select_on, SELECT_ON)

    for field in ("total_epochs", "batch_size", "accumulate_steps", "log_every_steps", "eval_every_epochs"):
        require(config[field] > 0, f"{field} is {config[field]}; it must be above 0")
    require(config.eval_batch_size > 0, f"eval_batch_size is {config.eval_batch_size}; it must be above 0")
    require(config.keep_checkpoints > 0, f"keep_checkpoints is {config.keep_checkpoints}; at least the newest is kept")
    require(config.steps_per_dispatch >= 0, f"steps_per_dispatch is {config.steps_per_dispatch}; 0 chooses by device")
    require(config.data.num_workers >= 0, f"data.num_workers is {config.data.num_workers}; 0 reads in this process")
    require(config.optim.learning_rate > 0, f"optim.learning_rate is {config.optim.learning_rate}; it must be above 0")
    within("ema_decay", config.ema_decay, 0.0, 0.99999)
    within("label_smoothing", config.label_smoothing, 0.0, 0.99)
    within("optim.final_fraction", config.optim.final_fraction, 0.0, 1.0)
    require(config.mixup_alpha >= 0, f"mixup_alpha is {config.mixup_alpha}; 0 is off")
    weight = config.valence_arousal_weight
    require(weight >= 0, f"valence_arousal_weight is {weight}; 0 is no head")
    require(
        weight == 0 or config.accumulate_steps == 1,
        "valence_arousal_weight is set and accumulate_steps is not 1: concordance is a figure of the whole batch",
    )
    for field, value in config.augment.items():
        if field.endswith("probability") or field in FRACTIONS:
            within(f"augment.{field}", value, 0.0, 1.0)

    require(
        config.batch_size % config.accumulate_steps == 0,
        f"batch_size {config.batch_size} does not split into accumulate_steps {config.accumulate_steps} equal parts",
    )
    require(config.augment.zoom != 1.0, "augment.zoom is 1.0, which could shrink a picture to nothing; stay below")
    require(
        config.optim.name != "adam" or config.optim.weight_decay == 0,
        "optim.weight_decay is set but adam has none; use adamw",
    )
    require(
        config.optim.schedule != "step" or len(config.optim.step_epochs) > 0,
        "optim.schedule is step but optim.step_epochs is empty",
    )
    require(
        config.optim.warmup_epochs < config.total_epochs,
        f"optim.warmup_epochs {config.optim.warmup_epochs} does not end within total_epochs {config.total_epochs}",
    )
    require(
        config.optim.freeze_epochs == 0 or len(config.optim.freeze) > 0,
        "optim.freeze_epochs is set but optim.freeze names nothing",
    )
    for pattern in (*config.init_excuse, *config.optim.freeze, *(pair[0] for pair in config.optim.multipliers)):
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"{pattern!r} is no regex: {error}")
    require(
        config.init_from != "" or len(config.init_excuse) == 0,
        "init_excuse is set but init_from is empty: there is nothing to excuse",
    )
    require(
        config.data.input != "resident" or config.data.num_workers == 0,
        "data.num_workers is set but data.input is resident, which reads the set once; use stream",
    )
    require(
        len(config.preprocess.mean) == len(config.preprocess.std) and min(config.preprocess.std) > 0,
        f"preprocess.mean {config.preprocess.mean} and std {config.preprocess.std}: one each per channel, std above 0",
    )
    if problems:
        raise ValueError("the config cannot be run:\n" + "\n".join(f"  {problem}" for problem in problems))
