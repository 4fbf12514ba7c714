"""Settings that several experiments in configs/ share: each function sets some fields of a config."""

from ml_collections import ConfigDict

from affect_jax.config import IMAGENET_MEAN, IMAGENET_STD

# ---- Networks and initial weights ----


def vgg_fer(config: ConfigDict) -> None:
    """Set VGG-FER: four blocks of two convolutions and one hidden layer."""
    config.model = {
        "name": "vgg_fer",
        "widths": (64, 128, 256, 512),
        "convs_per_block": 2,
        "dense": (512,),
        "dropout": 0.5,
    }


def imagenet_weights(config: ConfigDict, reference: str, excuse: tuple[str, ...] = ("classifier/.*",)) -> None:
    """Set initial weights from ImageNet, and ImageNet's mean and standard deviation of pixels.

    `excuse` are regexes of the names that the weights and the network need not share.
    """
    config.init_from = reference
    config.init_excuse = excuse
    config.preprocess.mean = IMAGENET_MEAN
    config.preprocess.std = IMAGENET_STD


def mobilenet_v2(config: ConfigDict, **options) -> None:
    """Set MobileNetV2 with dropout 0.4 and ImageNet weights."""
    config.model = {"name": "mobilenet_v2", "dropout": 0.4, **options}
    imagenet_weights(config, "hf-hub:timm/mobilenetv2_100.ra_in1k")


def mobilenet_v2_cnn(config: ConfigDict) -> None:
    """Set four convolutional blocks on the stride-16 feature map of MobileNetV2, with ImageNet weights.

    Faces are enlarged to 96 pixels, so that this map has 6x6 cells.
    """
    config.model = {
        "name": "mobilenet_v2_cnn",
        "attach": "C4",
        "input_size": (96, 96),
        "widths": (256, 256, 256, 256),
        "dense": (512, 256),
        "dropout": 0.5,
    }
    excuse = (r"(block\d|dense\d|classifier).*", r"backbone/(block1[3-6]|head)/.*")
    imagenet_weights(config, "hf-hub:timm/mobilenetv2_100.ra_in1k", excuse)


AFTER_BACKBONE = "(fpn|rpn_head|box_head|box_predictor|backbone/head|classifier)/.*"
"""Names that a detector and a classifier do not share."""


def imagenet_resnet50_detector(config: ConfigDict) -> None:
    """Set ImageNet weights of ResNet-50 for a detector, and freeze what torchvision freezes.

    These are the stem, layer1 and every BatchNorm. All of ResNet-50 must be in the weights; necks without C5 need
    "backbone/layer4_.*" in init_excuse as well.
    """
    imagenet_weights(config, "hf-hub:timm/resnet50.tv_in1k", (AFTER_BACKBONE,))
    config.optim.freeze = ("backbone/(conv1|layer1_.*)/.*", r"backbone/.*bn\d?/.*")


def small_resnet18_detector(config: ConfigDict) -> None:
    """Set a detector for two CPU cores: ResNet-18, 64 channels, few proposals, random weights, nothing frozen."""
    config.data.num_workers = 0
    config.dtype = "float32"
    config.batch_size = 4
    config.init_from, config.init_excuse = "", ()
    config.optim.freeze = ()
    config.model.backbone_name = "resnet18"
    config.model.fpn_channels = 64
    config.model.box.representation_size = 256
    config.model.rpn.pre_nms_top_n_train = config.model.rpn.pre_nms_top_n_test = 500
    config.model.rpn.post_nms_top_n_train = config.model.rpn.post_nms_top_n_test = 300
    config.model.box.batch_size_per_image = 128


# ---- Optimizers with their schedules ----


def published_adam(config: ConfigDict) -> None:
    """Set Adam as published for FER2013: batch 64, learning rate 0.001, constant."""
    config.batch_size = 64
    config.optim.name = "adam"
    config.optim.learning_rate = 0.001


def adamw_linear(
    config: ConfigDict, learning_rate: float = 0.001, weight_decay: float = 0.05, warmup_epochs: float = 0.5
) -> None:
    """Set AdamW with linear decay after a warm-up."""
    config.optim.update(name="adamw", nesterov=False, learning_rate=learning_rate, weight_decay=weight_decay)
    config.optim.update(schedule="linear", step_epochs=(), warmup_epochs=warmup_epochs)


def sgd_linear(
    config: ConfigDict, learning_rate: float, weight_decay: float = 5e-4, warmup_epochs: float = 1.0
) -> None:
    """Set SGD with Nesterov momentum 0.9, and linear decay after a warm-up."""
    config.optim.update(name="sgd", nesterov=True, learning_rate=learning_rate, weight_decay=weight_decay)
    config.optim.update(schedule="linear", step_epochs=(), warmup_epochs=warmup_epochs)


# ---- Augmentation ----


def warped_faces(config: ConfigDict, rotation: float = 10.0, shift: float = 0.1, zoom: float = 0.1) -> None:
    """Set random rotation (degrees), shifts (fraction of the side), zoom and horizontal flips."""
    config.augment.rotation = rotation
    config.augment.width_shift = config.augment.height_shift = shift
    config.augment.zoom = zoom
    config.augment.horizontal_flip = True


# ---- Whole set-ups ----


def regularized_vgg(config: ConfigDict) -> None:
    """Set a long training of VGG-FER with strong regularization: warps, erasing and a weight average."""
    vgg_fer(config)
    config.batch_size = 128
    config.total_epochs = 100.0
    config.dtype = "bfloat16"
    sgd_linear(config, 0.05, warmup_epochs=10.0)
    config.ema_decay = 0.999
    warped_faces(config, rotation=15.0, zoom=0.15)
    config.augment.erase_probability = 0.5


def narrow_vgg(config: ConfigDict, init_from: str, epochs: float) -> None:
    """Set a VGG-FER of two million weights that is trained further on CPU, after regularized_vgg."""
    config.model.update(widths=(48, 96, 160, 256), dense=(256,))
    config.init_from = init_from
    config.dtype = "float32"
    config.total_epochs = epochs
    config.optim.update(learning_rate=0.02, warmup_epochs=0.2)
    config.ema_decay = 0.998


def from_face_identities(config: ConfigDict, generic: str) -> None:
    """Set eight epochs of FER2013 for a network that was trained on face identities, no layer frozen.

    Frozen features of the middle blocks separate expressions better than those of the last ones, so the last ones must
    change most. The layers that the regex `generic` selects, the first ones, learn at 0.3 times the rate.
    """
    config.total_epochs = 8.0
    config.init_excuse = ("classifier/.*",)
    adamw_linear(config)
    config.optim.multipliers = ((generic, 0.3),)
    config.label_smoothing = 0.1
    config.ema_decay = 0.998
    warped_faces(config, rotation=15.0, shift=0.08, zoom=0.15)
    config.augment.erase_probability = 0.25


def long_cycle(config: ConfigDict, epochs: float = 40.0) -> None:
    """Set a long fine-tuning for an accelerator, with mixup, erasing and strong warps against overfitting."""
    config.total_epochs = epochs
    config.eval_every_epochs = 2.0
    config.batch_size = 128
    config.dtype = "bfloat16"
    config.optim.learning_rate *= 1.4  # the square root of the ratio of the batches
    config.mixup_alpha = 0.2
    warped_faces(config, rotation=15.0, shift=0.08, zoom=0.15)
    config.augment.erase_probability = 0.25


def continued_on_ferplus(config: ConfigDict, init_from: str) -> None:
    """Continue from a run or model file of FER2013 on FER+'s votes, at half the learning rate.

    The votes need no label smoothing.
    """
    config.data.name = "ferplus"
    config.data.targets = "votes"
    config.init_from = init_from
    config.optim.learning_rate = 0.0005
    config.label_smoothing = 0.0


def affectnet(config: ConfigDict) -> None:
    """Set AffectNet with valence and arousal and balanced classes, and the fields that do not depend on the network."""
    config.data.name = "affectnet"
    config.data.sampling = "balanced"
    config.data.num_workers = 4
    config.data.input = "stream"
    config.batch_size = 256
    config.total_epochs = 12.0
    config.dtype = "bfloat16"
    config.valence_arousal_weight = 0.5
    config.label_smoothing = 0.1
    config.ema_decay = 0.999
    warped_faces(config, shift=0.05)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.erase_probability = 0.25
    config.log_every_steps = 100
