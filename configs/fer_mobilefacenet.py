"""MobileFaceNet from face identities (MS-Celeb-1M) and AffectNet, fine-tuned on FER2013 in eight epochs.

    python scripts/train.py --config=configs/fer_mobilefacenet.py \\
        --config.init_from=PATH/mobilefacenet_affectnet.safetensors
    python scripts/train.py --config=configs/fer_mobilefacenet.py:ferplus --config.init_from=runs/fer_mobilefacenet

The weights are those of `face_reid.tflite` of sawthiha/mp_proctor (Apache-2.0) with the last stage of its
`face_affect.tflite`, renamed to `stem.conv.weight` and `blocks.0.depthwise.conv.weight`. BatchNorm is folded into the
convolutions and is restored from 512 training images. They were trained on the identities of MS-Celeb-1M and, as their
outputs suggest, on AffectNet. All of `face_reid.tflite` works as well.

`:ms1m` takes weights with BatchNorm, insightface's in liguiyuan/mobilefacenet-ncnn (`models/model-0000.params`), also
trained on MS-Celeb-1M. No terms are stated for them: do not publish a model that starts from them.

The publisher of MS-Celeb-1M has withdrawn it: say so where you publish a model that starts from any of these weights.

The best checkpoint is selected on PublicTest (val). `:ferplus` and `:ms1m_ferplus` continue from a run or a model file
of FER2013, with the votes of FER+'s annotators.
"""

from affect_jax.config import apply_variant, classification_config
from affect_jax.recipes import continued_on_ferplus, from_face_identities


def get_config(variant=""):
    config = classification_config()
    config.model = {
        "name": "mobilefacenet",
        "dropout": 0.4,
        "input_size": (96, 96),
        "padding": "SAME",
        "stem_pointwise": True,
    }
    config.init_from = "mobilefacenet_affectnet.safetensors"
    config.preprocess.mean = (0.5, 0.5, 0.5)
    config.preprocess.std = (128 / 255, 128 / 255, 128 / 255)
    from_face_identities(config, generic=r"backbone/(stem.*|block[0-4])/.*")
    return apply_variant(config, variant, {"ms1m": ms1m, "ferplus": ferplus, "ms1m_ferplus": ms1m_ferplus})


def ms1m(config):
    """Start from weights with BatchNorm, of a network with PyTorch's padding and without the last layer of the stem."""
    del config.model["padding"], config.model["stem_pointwise"]
    config.init_from = "mobilefacenet_ms1m.safetensors"


def ferplus(config):
    """Continue on FER+'s votes."""
    continued_on_ferplus(config, "runs/fer_mobilefacenet")


def ms1m_ferplus(config):
    """Continue on FER+'s votes from a run of `:ms1m`."""
    ms1m(config)
    continued_on_ferplus(config, "runs/fer_mobilefacenet_ms1m")
