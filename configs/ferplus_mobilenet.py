"""MobileNetV2 with four convolutional blocks on FER+, the annotators' votes as targets; accuracy is against the label.

    python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
    python scripts/train.py --config=configs/ferplus_mobilenet.py --config.init_from=PATH/mobilenet_v2.safetensors

Selects on FER+'s val (3,199 faces kept by the majority rule). `:two_cores` is what two CPU cores train in half an hour.
`init_from` can be a file with torchvision's or timm's names; the default needs a network.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.batch_size = 64
    config.total_epochs = 40.0
    config.model = {
        "name": "mobilenet_v2_cnn",
        "attach": "C4",
        "input_size": (96, 96),
        "widths": (256, 256, 256, 256),
        "dense": (512, 256),
        "dropout": 0.5,
    }
    config.init_from = "hf-hub:timm/mobilenetv2_100.ra_in1k"
    config.init_excuse = (r"(block\d|dense\d|classifier).*", r"backbone/(block1[3-6]|head)/.*")
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.001
    config.optim.weight_decay = 0.05
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 0.5
    config.augment.rotation = 10.0
    config.augment.width_shift = 0.1
    config.augment.height_shift = 0.1
    config.augment.zoom = 0.1
    config.augment.horizontal_flip = True
    if arg == "two_cores":
        config.total_epochs = 6.0
        config.ema_decay = 0.998
        config.model.dropout = 0.3
    elif arg:
        raise ValueError(f"unknown argument {arg!r}; known is two_cores")
    return config
