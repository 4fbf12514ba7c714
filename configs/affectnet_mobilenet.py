"""MobileNetV2 on AffectNet, eight classes with valence and arousal: AdamW, classes equally often, ImageNet weights.

    python scripts/prepare_data.py affectnet --source=PATH
    python scripts/train.py --config=configs/affectnet_mobilenet.py --workdir=runs/affectnet_mobilenet
    python scripts/evaluate.py --workdir=runs/affectnet_mobilenet --split=test

The best checkpoint is selected on faces held out from the training set (val); test is the publishers' validation set.
A data set prepared with --num_classes=7 works too. The default `init_from` needs a network connection; a file with the
names of torchvision or timm works as well. Not measured: the images are available from their publishers only.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import adamw_linear, affectnet, mobilenet_v2


def get_config(variant=""):
    config = classification_config()
    affectnet(config)
    mobilenet_v2(config)
    adamw_linear(config, warmup_epochs=1.0)
    return apply_variant(config, variant)
