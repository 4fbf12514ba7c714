"""MobileNetV2 with four convolutional blocks on FER2013, the published set-up: Adam, batch 64, 100 epochs, ImageNet.

    python scripts/train.py --config=configs/fer_mobilenet.py --config.init_from=PATH/mobilenet_v2.safetensors

Faces of 48 pixels leave the base at 2x2, where nothing is left to pool; here the blocks stand on the base's map of
stride 16 of faces brought to 96 pixels, 6x6: after one pass of `:two_cores` 56.1 % of val were right, and 53.4 % with
the blocks on stride 8 (seed 0). `:literal` is the stack on the whole base at 48 pixels, `:two_cores` what two CPU cores
train in half an hour. Selects on PublicTest (val). `init_from` can be a file with torchvision's or timm's names; the
default needs a network.
"""

from affect_jax.config import classification_config


def get_config(arg=""):
    config = classification_config()
    config.data.name = "fer2013"
    config.batch_size = 64
    config.total_epochs = 100.0
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
    config.optim.name = "adam"
    config.optim.learning_rate = 0.001
    config.augment.rotation = 10.0
    config.augment.width_shift = 0.1
    config.augment.height_shift = 0.1
    config.augment.zoom = 0.1
    config.augment.horizontal_flip = True
    if arg == "literal":
        config.model.attach, config.model.input_size = "head", ()
        config.init_excuse = config.init_excuse[:1]
    elif arg == "two_cores":
        two_cores(config)
    elif arg:
        raise ValueError(f"unknown argument {arg!r}; known are literal and two_cores")
    return config


def two_cores(config):
    """What two CPU cores train in half an hour: few epochs of AdamW with a linear decay."""
    config.total_epochs = 4.0
    config.model.dropout = 0.3
    config.optim.name = "adamw"
    config.optim.weight_decay = 0.05
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 0.5
    config.label_smoothing = 0.1
