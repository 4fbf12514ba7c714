"""VGG-FER on FER+, the annotators' votes as targets; accuracy is against the official majority label.

    python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
    python scripts/train.py --config=configs/ferplus_vgg.py --workdir=runs/ferplus_vgg

Selects on FER+'s val (3,199 faces kept by the majority rule). `:majority` trains on the labels instead.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "ferplus"
    config.data.targets = "votes"
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
    config.ema_decay = 0.999
    config.augment.rotation = 15.0
    config.augment.width_shift = 0.1
    config.augment.height_shift = 0.1
    config.augment.zoom = 0.15
    config.augment.horizontal_flip = True
    config.augment.erase_probability = 0.5
    if arg == "majority":
        config.data.targets = "label"
    elif arg:
        raise ValueError(f"unknown argument {arg!r}; known is majority")
    return config
