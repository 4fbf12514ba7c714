"""Faster R-CNN with ResNet-50 and a feature pyramid on DARK FACE, a common set-up: batch 8, SGD with momentum 0.9,
learning rate 0.001 with decay, 100 epochs; brightness and contrast, Gaussian blur and histogram equalization.

    python scripts/prepare_data.py darkface --source=PATH
    python scripts/train.py --config=configs/darkface_rcnn.py --config.init_from=PATH/resnet50.safetensors
    python scripts/evaluate.py --workdir=runs/darkface_rcnn

Trains on 5,400 of the labelled images. The checkpoint is selected by AP50 on the other 600 (listed in
affect_jax/data/darkface_split.txt), and results are reported on them too, because the publishers' test server is
closed. `:two_cores` is ResNet-18 on small crops, from random weights. `:simulated` needs no image of DARK FACE: it
trains on WIDER FACE, made dark, with faces of the sizes and places of a file of boxes:

    python scripts/train.py --config=configs/darkface_rcnn.py:simulated \\
        --config.init_from=PATH/resnet50_v1.safetensors --config.transform.reference_boxes=PATH/boxes.json
"""

from affect_jax.config import apply_variant, detection_config
from affect_jax.recipes import adamw_linear, imagenet_resnet50_detector, sgd_linear, small_resnet18_detector


def get_config(variant=""):
    config = detection_config()
    config.data.name = "darkface"
    config.data.buckets = ((736, 1088),)  # 720x1080 without resizing, sides rounded up to multiples of 32
    config.data.max_boxes = 100
    config.data.num_workers = 8
    config.total_epochs = 100.0
    config.batch_size = 8
    config.dtype = "bfloat16"
    imagenet_resnet50_detector(config)
    config.model.anchor_sizes = ((4.0,), (8.0,), (16.0,), (32.0,), (64.0,))  # half of the faces are below 12 pixels
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
    return apply_variant(config, variant, {"two_cores": two_cores, "simulated": simulated})


def two_cores(config):
    """Train ResNet-18 on enlarged crops of the images."""
    small_resnet18_detector(config)
    config.data.buckets, config.data.eval_buckets = ((320, 320),), ((736, 1088),)
    config.total_epochs = 1.0
    sgd_linear(config, 0.02, weight_decay=0.0, warmup_epochs=0.1)
    config.transform.scale_range = (3.0, 6.0)  # relative to the whole image in the bucket


def simulated(config):
    """Train on dark windows of WIDER FACE for less than an hour on two cores, from ResNet-50 without its last stage.

    The weights are those of ResNet v1 from conv1 to layer3. Because the run is short, AdamW replaces SGD,
    and more anchors are positive.
    """
    config.data.name = "widerface"
    config.data.buckets = ((256, 384),)
    config.data.eval_buckets = ((384, 576), (576, 384))  # faces of WIDER FACE are about as large as in DARK FACE
    config.data.max_boxes = 64
    config.data.num_workers = 0
    config.batch_size = 2
    config.eval_batch_size = 4
    config.total_epochs = config.eval_every_epochs = 0.12
    config.log_every_steps = 10
    config.dtype = "float32"
    config.model.neck = "fpn_c4"
    config.model.stride_in_1x1 = True
    config.model.bn_epsilon = 1.001e-5
    config.model.anchor_sizes = config.model.anchor_sizes[:4]
    config.model.rpn.fg_iou_thresh = 0.5
    config.model.rpn.pre_nms_top_n_train = config.model.rpn.pre_nms_top_n_test = 500
    config.model.rpn.post_nms_top_n_train = config.model.rpn.post_nms_top_n_test = 300
    config.model.box.batch_size_per_image = 64
    config.model.box.positive_fraction = 0.5
    adamw_linear(config, 0.0003, weight_decay=0.01, warmup_epochs=0.006)
    config.optim.multipliers = (("backbone/.*", 0.3),)
    config.optim.clip_norm = 10.0
    config.transform.side_range = (0.5, 1.5)  # of windows without faces
    config.transform.min_face = 3.0
    config.transform.low_light_probability = 1.0
