"""VGG-FER on FER2013 with SGD, linear decay, label smoothing, mixup, erasing and a weight average, for a GPU.

    python scripts/train.py --config=configs/fer_vgg_best.py --workdir=runs/fer_vgg_best
    python scripts/evaluate.py --workdir=runs/fer_vgg_best --split=test --tta=flip

The 100 epochs have not been measured. The best checkpoint is selected on PublicTest (val). `:two_cores` trained in 47
minutes on two CPU cores. `:narrow` continues from the bundled classifier of FER+, a network with 29 % of the weights.
`:distilled` continues that run, distilled from it and from a run of `fer_finetune.py`:

    python scripts/train.py --config=configs/fer_vgg_best.py:narrow --workdir=runs/fer_vgg_narrow
    python scripts/train.py --config=configs/fer_vgg_best.py:distilled --workdir=runs/fer_vgg_distilled
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import adamw_linear, narrow_vgg, regularized_vgg, warped_faces


def get_config(variant=""):
    config = classification_config()
    regularized_vgg(config)
    config.label_smoothing = 0.1
    config.mixup_alpha = 0.4
    return apply_variant(config, variant, {"two_cores": two_cores, "narrow": narrow, "distilled": distilled})


def two_cores(config):
    """Train half the channels for few epochs, with less regularization."""
    config.dtype = "float32"
    config.model.widths = (32, 64, 128, 256)
    config.model.dense = (256,)
    config.model.dropout = 0.3
    config.batch_size = 64
    config.total_epochs = 14.0
    adamw_linear(config, 0.0015, weight_decay=0.02)
    config.label_smoothing = 0.05
    config.mixup_alpha = 0.0
    warped_faces(config, rotation=8.0, shift=0.06, zoom=0.08)
    config.augment.erase_probability = 0.0


def narrow(config):
    """Continue from the bundled FER+ classifier, with a new last layer, for twelve epochs on CPU."""
    narrow_vgg(config, "affect_jax/predict/weights/ferplus_vgg.safetensors", epochs=12.0)
    config.init_excuse = ("logits/.*",)
    config.optim.warmup_epochs = 0.5
    config.mixup_alpha = 0.0


def distilled(config):
    """Continue a run of `:narrow`, with its own predictions and those of a MobileNetV2 as further targets."""
    narrow_vgg(config, "runs/fer_vgg_narrow", epochs=5.0)
    config.mixup_alpha = 0.0
    config.distillation.update(teachers=("runs/fer_vgg_narrow", "runs/fer_finetune"), weight=0.7)
