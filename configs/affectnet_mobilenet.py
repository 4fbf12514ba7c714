"""MobileNetV2 on AffectNet, eight classes with valence and arousal: classes equally often, ImageNet weights.

    python scripts/prepare_data.py affectnet --source=PATH
    python scripts/train.py --config=configs/affectnet_mobilenet.py --workdir=runs/affectnet_mobilenet
    python scripts/evaluate.py --workdir=runs/affectnet_mobilenet --split=test

Selects on faces taken from the training set (val); test is the publishers' validation set. The same for the set that
was prepared with --num_classes=7. `init_from` can be a file with torchvision's or timm's names; the default needs a
network. Not measured: the pictures are to be had from their publishers only.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    if arg:
        raise ValueError(f"unknown argument {arg!r}; there is none")
    config = classification_config()
    config.data.name = "affectnet"
    config.data.sampling = "balanced"
    config.data.num_workers = 4
    config.data.input = "stream"
    config.batch_size = 256
    config.total_epochs = 12.0
    config.dtype = "bfloat16"
    config.model = {"name": "mobilenet_v2", "dropout": 0.4}
    config.valence_arousal_weight = 0.5
    config.init_from = "hf-hub:timm/mobilenetv2_100.ra_in1k"
    config.init_excuse = ("classifier/.*",)
    config.preprocess.mean = (0.485, 0.456, 0.406)
    config.preprocess.std = (0.229, 0.224, 0.225)
    config.optim.name = "adamw"
    config.optim.learning_rate = 0.001
    config.optim.weight_decay = 0.05
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 1.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.999
    config.augment.rotation = 10.0
    config.augment.width_shift = 0.05
    config.augment.height_shift = 0.05
    config.augment.zoom = 0.1
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.horizontal_flip = True
    config.augment.erase_probability = 0.25
    config.log_every_steps = 100
    return config
