"""VGG-FER on FER+, trained on the votes of the annotators; accuracy is that of the official majority label.

    python scripts/prepare_data.py ferplus --source=PATH/fer2013.csv --votes=PATH/fer2013new.csv
    python scripts/train.py --config=configs/ferplus_vgg.py --workdir=runs/ferplus_vgg

The best checkpoint is selected on FER+'s val (3,199 faces kept by the majority rule). `:majority` trains on the
majority labels instead.

`:narrow` distills that run into a network with 29 % of its weights, which starts from its most important channels:

    python scripts/prune.py --model=runs/ferplus_vgg --out=runs/ferplus_vgg_pruned.safetensors
    python scripts/train.py --config=configs/ferplus_vgg.py:narrow --workdir=runs/ferplus_vgg_narrow
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import narrow_vgg, regularized_vgg


def get_config(variant=""):
    config = classification_config()
    config.data.name = "ferplus"
    config.data.targets = "votes"
    regularized_vgg(config)
    return apply_variant(config, variant, {"majority": majority, "narrow": narrow})


def majority(config):
    """Train on the majority labels."""
    config.data.targets = "label"


def narrow(config):
    """Learn the predictions of a run of this config, from its most important channels, in ten epochs on CPU."""
    narrow_vgg(config, "runs/ferplus_vgg_pruned.safetensors", epochs=10.0)
    config.distillation.update(teachers=("runs/ferplus_vgg",), weight=0.7)
