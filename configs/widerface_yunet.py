"""Faster R-CNN on YuNet-n, small and fast, on WIDER FACE; half of the windows are darkened. The bundled detector.

    python scripts/prepare_data.py widerface --source=PATH
    python scripts/train.py --config=configs/widerface_yunet.py --config.init_from=PATH/yunet_n.onnx
    python scripts/train.py --config=configs/widerface_yunet.py:whole --config.init_from=runs/widerface_yunet
    python scripts/evaluate.py --workdir=runs/widerface_yunet --dark --as_predicted

The weights are those of YuNet-n (Apache-2.0), trained on WIDER FACE and published in the repository
ShiqiYu/libfacedetection.train. The first stage is this network without key points. It is frozen while the second stage
trains; `:whole` then trains both. `:scratch` trains both from random weights. The best checkpoint is selected by AP50
on WIDER FACE's validation images.
"""

from affect_jax.config import apply_variant, detection_config
from affect_jax.recipes import adamw_linear

PUBLISHED = "backbone/.*|fpn/lateral[345]/.*|rpn_head/.*"


def get_config(variant=""):
    config = detection_config()
    config.data.name = "widerface"
    config.data.buckets = ((384, 384),)
    config.data.eval_buckets = ((768, 1024), (1024, 768))
    config.data.max_boxes = 64
    # of the 5,054 training images of the bundled detector, 1,151 show demonstrations and 659 interviews
    config.data.epoch_limits = (("Demonstration", 400), ("Interview", 300))
    config.total_epochs = 6.0
    config.batch_size = 8
    config.model.backbone_name = "yunet_n"
    config.model.neck = "yunet"
    config.model.anchor_sizes = ((8.0,), (16.0,), (32.0,))
    config.model.aspect_ratios = (1.0,)
    config.model.rpn.update(
        pre_nms_top_n_train=400,
        pre_nms_top_n_test=2000,
        post_nms_top_n_train=300,
        post_nms_top_n_test=1000,
        nms_thresh=0.6,
        score_thresh=0.02,
        assigner="simota",
        objectness_loss="yunet",
        box_loss="eiou",
        box_loss_weight=5.0,
    )
    config.model.box.update(
        canonical_size=112.0,
        context=1.4,
        roi_aligned=True,
        pooled_side=5,
        units=3,
        layers=1,
        representation_size=128,
        score_thresh=0.02,
        nms_thresh=0.45,
        detections_per_img=750,
        batch_size_per_image=64,
        positive_fraction=0.5,
        box_loss="diou",
        box_loss_weight=2.0,
        proposal_weight=0.7,
        rois_at_once=16,
    )
    config.preprocess.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), exposure_level=60.0)
    config.init_from = "yunet_n.onnx"
    config.init_excuse = ("(fpn/lateral2|box_head|box_predictor)/.*",)
    config.optim.freeze = (PUBLISHED,)
    adamw_linear(config, 0.001, weight_decay=0.01, warmup_epochs=0.2)
    config.optim.clip_norm = 10.0
    config.ema_decay = 0.999
    config.transform.side_range = (0.2, 1.2)
    config.transform.anywhere_probability = 0.2
    config.transform.min_face = 5.0
    config.transform.horizontal_flip = True
    config.transform.low_light_probability = 0.5
    config.transform.brightness = 0.1
    config.transform.contrast = 0.2
    return apply_variant(config, variant, {"whole": whole, "scratch": scratch})


def whole(config):
    """Train both stages, from a run of the second stage, without the layers whose gradients take most of the time."""
    config.init_from, config.init_excuse = "runs/widerface_yunet", ()
    config.optim.freeze = ("backbone/(stem|stage[0-2]_.)/.*", "(backbone|fpn|rpn_head)/.*bn/.*")
    config.optim.multipliers = ((PUBLISHED, 0.1),)


def scratch(config):
    """Train both stages from random weights."""
    config.init_from, config.init_excuse = "", ()
    config.optim.freeze = ()
