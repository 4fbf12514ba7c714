"""MobileFaceNet from face identities (MS-Celeb-1M), fine-tuned on FER2013 in eight epochs.

    python scripts/train.py --config=configs/fer_mobilefacenet.py --config.init_from=PATH/mobilefacenet_ms1m.safetensors
    python scripts/train.py --config=configs/fer_mobilefacenet.py:ferplus --config.init_from=runs/fer_mobilefacenet

The weights are insightface's in liguiyuan/mobilefacenet-ncnn (`models/model-0000.params`), renamed to
`stem.conv.weight` and `blocks.0.depthwise.conv.weight`. They were trained on the identities of MS-Celeb-1M, whose
publisher has withdrawn it, and no terms are stated for them: use them for research, and do not publish a model that
starts from them. `:folded` takes files under Apache-2.0 that were trained on the same data, `face_reid.tflite` of
sawthiha/mp_proctor or the same with the last stage of its `face_affect.tflite`. BatchNorm is folded into their
convolutions and is restored from 512 training images.

Selects on PublicTest (val). `:ferplus` and `:folded_ferplus` continue from a run or a model file of FER2013, with the
votes of FER+'s annotators.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import adamw_linear, warped_faces


def get_config(variant=""):
    config = classification_config()
    config.total_epochs = 8.0
    config.model = {"name": "mobilefacenet", "dropout": 0.4, "input_size": (96, 96)}
    config.init_from = "mobilefacenet_ms1m.safetensors"
    config.init_excuse = ("classifier/.*",)
    config.preprocess.mean = (0.5, 0.5, 0.5)
    config.preprocess.std = (128 / 255, 128 / 255, 128 / 255)
    adamw_linear(config)
    # frozen features of the middle blocks separate expressions better than those of the last ones, so the last ones
    # must change most; stem and first blocks are generic
    config.optim.multipliers = ((r"backbone/(stem.*|block[0-4])/.*", 0.3),)
    config.label_smoothing = 0.1
    config.ema_decay = 0.998
    warped_faces(config, rotation=15.0, shift=0.08, zoom=0.15)
    config.augment.erase_probability = 0.25
    return apply_variant(config, variant, {"folded": folded, "ferplus": ferplus, "folded_ferplus": folded_ferplus})


def folded(config):
    """Start from weights with BatchNorm folded: they were trained in TensorFlow, with one more layer in the stem."""
    config.model.padding, config.model.stem_pointwise = "SAME", True
    config.init_from = "mobilefacenet_sirius.safetensors"


def ferplus(config):
    """Train on FER+'s votes, without label smoothing and at half the learning rate."""
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.init_from = "runs/fer_mobilefacenet"
    config.optim.learning_rate = 0.0005
    config.label_smoothing = 0.0


def folded_ferplus(config):
    """Continue on FER+'s votes from a run of `:folded`."""
    folded(config)
    ferplus(config)
