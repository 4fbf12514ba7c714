"""Faster R-CNN with ResNet-50 and a feature pyramid on DARK FACE, the published set-up: batch 8, SGD with momentum 0.9,
learning rate 0.001 with decay, 100 epochs; brightness and contrast, Gaussian blur and histogram equalization.

    python scripts/prepare_data.py darkface --source=PATH
    python scripts/train.py --config=configs/darkface_rcnn.py --config.init_from=PATH/resnet50.safetensors
    python scripts/evaluate.py --workdir=runs/darkface_rcnn

Trains on 5,400 of the labelled pictures and selects its checkpoint by AP50 on the other 600 (the list is in
affect_jax/data/darkface_split.txt), which are also what is reported: the publishers' test server is closed.
`:two_cores` is ResNet-18 on small windows of pictures, from random weights.
"""

from affect_jax.config import apply_variant, detection_config
from affect_jax.recipes import sgd_linear


def get_config(variant=""):
    config = detection_config()
    config.data.name = "darkface"
    config.data.buckets = ((736, 1088),)  # 1080x720 as they are, sides rounded up to multiples of 32
    config.data.max_boxes = 100
    config.data.num_workers = 8
    config.total_epochs = 100.0
    config.batch_size = 8
    config.dtype = "bfloat16"
    config.init_excuse = ("fpn/.*", "rpn_head/.*", "box_head/.*", "box_predictor/.*", ".*/layer4_.*", "fc/.*")
    config.init_from = "hf-hub:timm/resnet50.tv_in1k"
    config.optim.freeze = ("backbone/(conv1|bn1|layer1_.*)",)
    config.model.anchor_sizes = ((4.0,), (8.0,), (16.0,), (32.0,), (64.0,))  # half the faces are under 12 pixels
    config.optim.learning_rate = 0.001
    config.optim.momentum = 0.9
    config.optim.schedule = "step"
    config.optim.step_epochs = (60.0, 85.0)
    config.transform.horizontal_flip = True
    config.transform.brightness = 0.2
    config.transform.contrast = 0.3
    config.transform.blur_probability = 0.2
    config.transform.blur_sigma = 1.5
    config.transform.equalize_probability = 0.2
    return apply_variant(config, variant, {"two_cores": two_cores})


def two_cores(config):
    """ResNet-18 with a pyramid of 64 channels, fewer samples, windows of pictures."""
    config.data.buckets, config.data.eval_buckets = ((320, 320),), ((736, 1088),)
    config.data.num_workers = 0
    config.dtype = "float32"
    config.batch_size = 4
    config.total_epochs = 1.0
    config.init_from, config.init_excuse = "", ()
    config.optim.freeze = ()
    sgd_linear(config, 0.02, weight_decay=0.0, warmup_epochs=0.1)
    config.model.backbone_name = "resnet18"
    config.model.fpn_channels = 64
    config.model.box.representation_size = 256
    config.model.rpn.pre_nms_top_n_train = config.model.rpn.pre_nms_top_n_test = 500
    config.model.rpn.post_nms_top_n_train = config.model.rpn.post_nms_top_n_test = 300
    config.model.box.batch_size_per_image = 128
    config.transform.scale_range = (3.0, 6.0)  # of a picture that fits: windows at their own size and larger
