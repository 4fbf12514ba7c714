"""MobileNetV2 from ImageNet, fine-tuned on FER2013 in twelve epochs, no layer frozen.

    python scripts/train.py --config=configs/fer_finetune.py --config.init_from=PATH/mobilenet_v2.safetensors
    python scripts/train.py --config=configs/fer_finetune.py:ferplus
    python scripts/train.py --config=configs/fer_finetune.py:distilled

The best checkpoint is selected on PublicTest (val). The default `init_from` needs a network connection; a file with the
names of torchvision or timm works as well. `:ferplus` continues a run of this config and trains on the votes of FER+'s
annotators.

`:long` trains for 40 epochs on an accelerator. `:distilled` does the same and also learns the predictions of
runs of `fer_vgg_best.py` and `fer_mobilenet_v1.py`.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import adamw_linear, continued_on_ferplus, long_cycle, mobilenet_v2, warped_faces


def get_config(variant=""):
    config = classification_config()
    config.total_epochs = 12.0
    mobilenet_v2(config, input_size=(96, 96))
    adamw_linear(config)
    config.label_smoothing = 0.1
    config.ema_decay = 0.998
    warped_faces(config, shift=0.08)
    variants = {"ferplus": ferplus, "long": long_cycle, "distilled": distilled}
    return apply_variant(config, variant, variants)


def ferplus(config):
    """Continue on FER+'s votes with stronger augmentation."""
    continued_on_ferplus(config, "runs/fer_finetune")
    config.augment.rotation = 15.0
    config.augment.zoom = 0.15
    config.augment.erase_probability = 0.25


def distilled(config):
    """Learn from two other networks in a long cycle."""
    long_cycle(config)
    config.distillation.teachers = ("runs/fer_vgg_best", "runs/fer_mobilenet_v1")
