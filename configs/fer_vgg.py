"""VGG-FER on FER2013, a common set-up: 48x48 gray, batch 64, Adam 0.001, 120 epochs, dropout 0.5, warped faces.

    python scripts/prepare_data.py fer2013 --source=PATH/fer2013.csv
    python scripts/train.py --config=configs/fer_vgg.py --workdir=runs/fer_vgg
    python scripts/evaluate.py --workdir=runs/fer_vgg --split=test

Trains on Training; the best checkpoint is selected by accuracy on PublicTest (val). 68 % of val has been claimed for
this set-up. `:demo` runs the same code on drawn faces, in a minute on two CPU cores.
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
    """Train a narrow network on drawn faces for few epochs, with less dropout and, as they vary enough, no warps."""
    config.data.name = "drawn_faces"
    config.data.options = {"num_examples": {"train": 5000, "val": 500, "test": 500}}
    config.model.widths = (16, 24, 32, 64)
    config.model.convs_per_block = 1
    config.model.dense = (128,)
    config.model.dropout = 0.1
    config.batch_size = 32
    config.total_epochs = 4.0
    config.optim.learning_rate = 0.005
    config.optim.schedule = "linear"
    config.optim.warmup_epochs = 0.5
    config.augment = classification_config().augment
    config.augment.horizontal_flip = True
