"""How soon one accelerator reaches 68, 70 and 72 % of FER2013's val (PublicTest): VGG-FER, bfloat16, a call a pass.

    python scripts/sweep.py --workdir=runs/speedrun --seeds=0,1,2,3,4 --marks=68,70,72 \
        --run="68 = configs/fer_speedrun.py:68" --run="70 = configs/fer_speedrun.py:70" \
        --run="72 = configs/fer_speedrun.py:72"

The set lies on the device, is augmented there, and every pass is one call. The table's seconds are those of training up
to the first evaluation at the mark: compilation, which has a column of its own, evaluation and saving are kept out; the
first updates, with what a device does once, count. Aims on one H100, means of five seeds: `:68` under 10 s, `:70` under
30 s, `:72` under 2 minutes. They have not been tried yet: no accelerator was at hand. Without an argument: `:70`.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "fer2013"
    config.data.input = "resident"
    config.dtype = "bfloat16"
    config.batch_size = 512
    config.steps_per_dispatch = 57  # a pass has 56 or 57 updates
    config.log_every_steps = 100_000  # never between evaluations, which report too: it would cut a dispatch in two
    config.eval_batch_size = 3592  # all of val, in eight equal parts where there are eight devices
    config.keep_checkpoints = 1
    config.model = {
        "name": "vgg_fer",
        "widths": (64, 128, 256, 512),
        "convs_per_block": 2,
        "dense": (512,),
        "dropout": 0.5,
    }
    config.total_epochs = 40.0
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.2
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 4.0
    config.ema_decay = 0.99
    config.label_smoothing = 0.1
    config.augment.rotation = 10.0
    config.augment.width_shift = 0.08
    config.augment.height_shift = 0.08
    config.augment.zoom = 0.1
    config.augment.horizontal_flip = True
    if arg == "68":
        few_passes(config)
    elif arg == "72":
        many_passes(config)
    elif arg not in ("", "70"):
        raise ValueError(f"unknown argument {arg!r}; known are 68, 70 and 72")
    return config


def few_passes(config):
    """Too few to overfit: milder regularizers."""
    config.total_epochs = 14.0
    config.optim.warmup_epochs = 2.0
    config.model.dropout = 0.3
    config.augment.rotation = 8.0
    config.augment.width_shift = config.augment.height_shift = 0.06
    config.augment.zoom = 0.08


def many_passes(config):
    """Enough for mixup and erasing to pay."""
    config.total_epochs = 150.0
    config.optim.warmup_epochs = 10.0
    config.ema_decay = 0.998
    config.mixup_alpha = 0.4
    config.augment.rotation = 15.0
    config.augment.width_shift = config.augment.height_shift = 0.1
    config.augment.zoom = 0.15
    config.augment.erase_probability = 0.5
