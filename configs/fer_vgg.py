"""VGG-FER on FER2013, the published set-up: 48x48 gray, batch 64, Adam 0.001, 120 epochs, dropout 0.5, warped faces.

    python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv
    python scripts/train.py --config=configs/fer_vgg.py --workdir=runs/fer_vgg
    python scripts/evaluate.py --workdir=runs/fer_vgg --split=test

Trains on Training; the best checkpoint is selected by accuracy on PublicTest (val). The published accuracy is 68 % on
val. `:demo` runs the same code on drawn faces, in two minutes on two CPU cores.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import published_adam, vgg_fer, warped_faces


def get_config(variant=""):
    config = classification_config()
    config.total_epochs = 120.0
    vgg_fer(config)
    published_adam(config)
    warped_faces(config)
    config.augment.shear = 10.0
    return apply_variant(config, variant, {"demo": demo})


def demo(config):
    """Train a narrow network on drawn faces for few epochs; drawn faces vary enough without warps."""
    config.data.name = "drawn_faces"
    config.data.options = {"num_examples": {"train": 7000, "val": 1000, "test": 1000}}
    config.model.widths = (16, 32, 64, 128)
    config.model.convs_per_block = 1
    config.model.dense = (128,)
    config.total_epochs = 8.0
    config.optim.learning_rate = 0.003
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 1.0
    config.augment = classification_config().augment
    config.augment.horizontal_flip = True
