"""A linear classifier and a config that trains it: a whole run in seconds, because each program compiles at once.

Also a config file: a script takes --config=tests/linear_model.py with this folder in PYTHONPATH.
"""

from flax import linen as nn
from ml_collections import ConfigDict

from affect_jax.config import classification_config
from affect_jax.models import MODELS
from affect_jax.models.layers import BatchNorm

MODELS["linear"] = "linear_model:LinearClassifier"


class LinearClassifier(nn.Module):
    """Means of 8x8 pixels, BatchNorm, dropout, and one or two dense layers. x [B, H, W, C] -> logits [B, K]."""

    num_classes: int
    hidden: int = 0
    """Width of the first dense layer; without it there is one layer."""
    dropout: float = 0.5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.avg_pool(x, (8, 8), (8, 8)).reshape(len(x), -1)
        x = BatchNorm(dtype=self.dtype, name="bn")(x, not train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.hidden, name="hidden")(x) if self.hidden else x
        return nn.Dense(self.num_classes, name="logits")(x)


def get_config() -> ConfigDict:
    """Return the config of twelve steps on few drawn faces, with every source of randomness switched on."""
    config = classification_config()
    config.data.name = "drawn_faces"
    config.data.options = {"num_examples": {"train": 100, "val": 40, "test": 40}}
    config.model = {"name": "linear", "dropout": 0.5}
    config.batch_size = 16
    config.eval_batch_size = 32
    config.total_epochs = 1.92
    config.eval_every_epochs = 0.96
    config.log_every_steps = 2
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.32
    config.ema_decay = 0.9
    config.mixup_alpha = 0.2
    config.label_smoothing = 0.1
    config.augment.rotation = 10.0
    config.augment.horizontal_flip = True
    config.augment.erase_probability = 0.5
    return config
