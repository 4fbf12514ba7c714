"""ResNet-18 on AffectNet, eight classes with valence and arousal: SGD, classes equally often, ImageNet weights.

    python scripts/prepare_data.py affectnet --source=PATH
    python scripts/train.py --config=configs/affectnet_resnet.py --workdir=runs/affectnet_resnet
    python scripts/evaluate.py --workdir=runs/affectnet_resnet --split=test

The best checkpoint is selected on faces held out from the training set (val); test is the publishers' validation set.
A data set prepared with --num_classes=7 works too. The default `init_from` needs a network connection; a file with the
names of torchvision or timm works as well. Not measured: the images are available from their publishers only.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import affectnet, imagenet_weights, sgd_linear


def get_config(variant=""):
    config = classification_config()
    affectnet(config)
    config.model = {"name": "resnet18"}
    imagenet_weights(config, "hf-hub:timm/resnet18.tv_in1k")
    sgd_linear(config, 0.02)
    return apply_variant(config, variant)
