"""MobileNetV2 from ImageNet, whole, fine-tuned on FER2013 in twelve passes.

    python scripts/train.py --config=configs/fer_finetune.py --config.init_from=PATH/mobilenet_v2.safetensors
    python scripts/train.py --config=configs/fer_finetune.py:ferplus

Selects on PublicTest (val). `init_from` can be a file with torchvision's or timm's names; the default needs a network.
`:ferplus` goes on from there, from the weights that come along, with the votes of FER+'s annotators.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "fer2013"
    config.batch_size = 64
    config.total_epochs = 12.0
    config.model = {"name": "mobilenet_v2", "dropout": 0.4, "input_size": (96, 96)}
    config.init_from = "hf-hub:timm/mobilenetv2_100.ra_in1k"
    config.init_excuse = ("classifier/.*",)
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.001
    config.optim.weight_decay = 0.05
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 0.5
    config.label_smoothing = 0.1
    config.ema_decay = 0.998
    config.augment.rotation = 10.0
    config.augment.width_shift = 0.08
    config.augment.height_shift = 0.08
    config.augment.zoom = 0.1
    config.augment.horizontal_flip = True
    if arg == "ferplus":
        ferplus(config)
    elif arg:
        raise ValueError(f"unknown argument {arg!r}; known is ferplus")
    return config


def ferplus(config):
    """FER+'s votes, which need no smoothing; the faces are known already, so they are changed more and learned less."""
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.init_from = "affect_jax/predict/weights/fer2013_mobilenet_v2.safetensors"
    config.optim.learning_rate = 0.0005
    config.label_smoothing = 0.0
    config.augment.rotation = 15.0
    config.augment.zoom = 0.15
    config.augment.erase_probability = 0.25
