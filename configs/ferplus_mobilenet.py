"""MobileNetV2 with four convolutional blocks on FER+, trained on the votes; accuracy is that of the majority label.

    python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
    python scripts/train.py --config=configs/ferplus_mobilenet.py --config.init_from=PATH/mobilenet_v2.safetensors

The best checkpoint is selected on FER+'s val (3,199 faces kept by the majority rule). `:two_cores` trains in an hour on
two shared CPU cores. The default `init_from` needs a network connection; a file with the names of torchvision or timm
works as well.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import adamw_linear, mobilenet_v2_cnn, warped_faces


def get_config(variant=""):
    config = classification_config()
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.total_epochs = 40.0
    mobilenet_v2_cnn(config)
    adamw_linear(config)
    warped_faces(config)
    return apply_variant(config, variant, {"two_cores": two_cores})


def two_cores(config):
    """Train for few epochs, with less dropout and a weight average."""
    config.total_epochs = 6.0
    config.ema_decay = 0.998
    config.model.dropout = 0.3
