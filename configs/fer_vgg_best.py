"""VGG-FER on FER2013, the best recipe we found: SGD with linear decay, label smoothing, mixup, erasing, weight average.

    python scripts/train.py --config=configs/fer_vgg_best.py --workdir=runs/fer_vgg_best
    python scripts/evaluate.py --workdir=runs/fer_vgg_best --split=test --tta=flip

Selects on PublicTest (val). `:two_cores` is cut to what two CPU cores do in an hour: half the channels, few passes,
therefore less regularization. What was measured is in the README's table.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "fer2013"
    config.batch_size = 128
    config.total_epochs = 100.0
    config.dtype = "bfloat16"
    config.model = {
        "name": "vgg_fer",
        "widths": (64, 128, 256, 512),
        "convs_per_block": 2,
        "dense": (512,),
        "dropout": 0.5,
    }
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.05
    config.optim.weight_decay = 5e-4
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 10.0
    config.label_smoothing = 0.1
    config.mixup_alpha = 0.4
    config.ema_decay = 0.999
    config.augment.rotation = 15.0
    config.augment.width_shift = 0.1
    config.augment.height_shift = 0.1
    config.augment.zoom = 0.15
    config.augment.horizontal_flip = True
    config.augment.erase_probability = 0.5
    if arg == "two_cores":
        two_cores(config)
    elif arg:
        raise ValueError(f"unknown argument {arg!r}; known is two_cores")
    return config


def two_cores(config):
    """What fits into an hour of two CPU cores: half the channels, few passes, milder regularizers."""
    config.dtype = "float32"
    config.model.widths = (32, 64, 128, 256)
    config.model.dense = (256,)
    config.model.dropout = 0.3
    config.batch_size = 64
    config.total_epochs = 14.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.0015
    config.optim.weight_decay = 0.02
    config.optim.warmup_epochs = 0.5
    config.label_smoothing = 0.05
    config.mixup_alpha = 0.0
    config.augment.erase_probability = 0.0
    config.augment.rotation = 8.0
    config.augment.width_shift = 0.06
    config.augment.height_shift = 0.06
    config.augment.zoom = 0.08
