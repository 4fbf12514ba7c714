"""Our networks, training steps and predictions in PyTorch, to compare speed; torch is imported only inside functions.

PyTorch runs in a separate process, with its own memory and threads, and with the settings of the allocator that our
process has. It uses channels last, autocast for "bfloat16" and, on CUDA, cuDNN's autotuned convolutions and TF32 for
float32 products, as XLA does.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from affect_jax.models.mobilenet import STAGES
from affect_jax.process import can_keep_freed_memory, keep_freed_memory, use_huge_pages


class Twin(NamedTuple):
    """A network by name, its options, its dtype, and whether torch.compile is used."""

    network: str
    image_shape: tuple[int, int, int]
    num_classes: int
    options: dict
    dtype: str
    compiled: bool


class Optimizer(NamedTuple):
    """An optimizer by name; `momentum` and `nesterov` apply to sgd."""

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    nesterov: bool = False


def optimizer_of(config: ConfigDict) -> Optimizer:
    """Return the optimizer of a config."""
    optim = config.optim
    return Optimizer(optim.name, optim.learning_rate, optim.momentum, optim.weight_decay, optim.nesterov)


def vgg_fer(
    image_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    convs_per_block: int = 2,
    dense: Sequence[int] = (512,),
    dropout: float = 0.5,
):
    """Return the network of affect_jax.models.vgg as a torch module for images [B, C, H, W]."""
    from torch import nn

    height, width, channels = image_shape
    layers = []
    for features in widths:
        for _ in range(convs_per_block):
            layers += [nn.Conv2d(channels, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
            channels = features
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    features = channels * (height >> len(widths)) * (width >> len(widths))
    for hidden in dense:
        layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def mobilenet_v2(
    image_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.2, input_size: Sequence[int] = ()
):
    """Return the MobileNetV2 of affect_jax.models.mobilenet, width 1, as a torch module for images [B, C, H, W]."""
    from torch import nn

    def conv_bn(channels: int, features: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list:
        convolution = nn.Conv2d(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(features)]

    class InvertedResidual(nn.Module):
        def __init__(self, channels: int, features: int, expansion: int, stride: int):
            super().__init__()
            hidden = channels * expansion
            layers = [*conv_bn(channels, hidden), nn.ReLU6(inplace=True)] if expansion != 1 else []
            layers += [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True), *conv_bn(hidden, features)]
            self.layers, self.shortcut = nn.Sequential(*layers), stride == 1 and channels == features

        def forward(self, x):
            return x + self.layers(x) if self.shortcut else self.layers(x)

    class Input(nn.Module):
        def forward(self, x):
            x = x.repeat(1, 3, 1, 1) if x.shape[1] == 1 else x
            if not input_size:
                return x
            return nn.functional.interpolate(x, tuple(input_size), mode="bilinear", align_corners=False)

    layers, channels = [Input(), *conv_bn(3, 32, 3, 2), nn.ReLU6(inplace=True)], 32
    for expansion, features, repeats, first_stride in STAGES:
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, features, expansion, first_stride if repeat == 0 else 1))
            channels = features
    layers += [*conv_bn(channels, 1280), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(1280, num_classes))


NETWORKS = {"vgg_fer": vgg_fer, "mobilenet_v2": mobilenet_v2}
SHARED = ("score_thresh", "nms_thresh", "fg_iou_thresh", "bg_iou_thresh", "batch_size_per_image", "positive_fraction")
TOP_N = [f"{when}_nms_top_n_{mode}" for when in ("pre", "post") for mode in ("train", "test")]
TORCHVISION_ARGUMENTS = {"rpn": (*TOP_N, *SHARED), "box": ("detections_per_img", *SHARED)}
"""Fields of `rpn` and `box` that are arguments of torchvision's detector, after "rpn_" and "box_"."""
PASSED_ON = {
    *("backbone_name", "fpn_channels", "anchor_sizes", "aspect_ratios"),
    *("box.canonical_size", "box.canonical_level", "box.representation_size"),
    *(f"{part}.{name}" for part, names in TORCHVISION_ARGUMENTS.items() for name in names),
}
"""Fields of a detector's model that `faster_rcnn` gives to torchvision; of the others it has the default values."""


def start(name: str, make_work: Callable[..., Callable[[], None]], *arguments) -> Callable[[], None]:
    """Start a process with the work that make_work(*arguments) returns; return a function that runs the work once.

    The function raises ChildProcessError with PyTorch's message if the work fails. The process ends with this process.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make_work, arguments), daemon=True)
    process.start()
    theirs.close()

    def work() -> None:
        ours.send(None)
        try:
            problem = ours.recv()
        except EOFError:
            problem = "its process ended"
        if problem:
            raise ChildProcessError(f"PyTorch cannot run {name}: {problem}")

    return work


def _serve(connection, make_work: Callable[..., Callable[[], None]], arguments: tuple) -> None:
    """Run the work for each message and send None or the error message."""
    if can_keep_freed_memory():
        keep_freed_memory()  # both as in our own process
        use_huge_pages()
    problem = work = None
    try:
        work = make_work(*arguments)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        if not problem:
            try:
                work()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        connection.send(problem)


def torch_device() -> str:
    """Return "cuda" if available, set up like XLA, else "cpu"."""
    import torch

    torch.set_float32_matmul_precision("high")  # TF32; the default for convolutions
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def finish(device: str) -> None:
    """Wait until the device has finished its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def build_network(twin: Twin, device: str):
    """Return the network on the device, and the callable, which is compiled if the twin is."""
    import torch

    model = NETWORKS[twin.network](twin.image_shape, twin.num_classes, **twin.options)
    model = model.to(device, memory_format=torch.channels_last)
    return model, torch.compile(model) if twin.compiled else model


def to_input(images: np.ndarray, device: str):
    """Return images uint8 [B, H, W, C] as normalized input [B, C, H, W] on the device, channels last."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def autocast(device: str, dtype: str):
    """Return the context in which products use bfloat16 if `dtype` is "bfloat16"."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def build_optimizer(optimizer: Optimizer, parameters):
    """Return the torch optimizer with the settings of affect_jax.train.optim; sgd decays all parameters."""
    import torch

    name, learning_rate, momentum, weight_decay, nesterov = optimizer
    return {
        "adam": lambda: torch.optim.Adam(parameters, learning_rate),
        "adamw": lambda: torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay),
        "sgd": lambda: torch.optim.SGD(
            parameters, learning_rate, momentum, nesterov=nesterov, weight_decay=weight_decay
        ),
    }[name]()


def step_work(twin: Twin, optimizer: Optimizer, batch: dict[str, np.ndarray], num_steps: int) -> Callable[[], None]:
    """Return a function that runs `num_steps` training steps with cross-entropy; for `start`.

    The batch is put on the device once, before the steps.
    """
    import torch

    device = torch_device()
    model, network = build_network(twin, device)
    model.train()
    images, labels = to_input(batch["image"], device), torch.tensor(batch["label"]).long().to(device)
    rule = build_optimizer(optimizer, model.parameters())

    def work() -> None:
        for _ in range(num_steps):
            rule.zero_grad(set_to_none=True)
            with autocast(device, twin.dtype):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            rule.step()
        finish(device)

    return work


def predict_work(twin: Twin, images: np.ndarray, calls: int) -> Callable[[], None]:
    """Return a function that predicts `calls` times, from images uint8 [B, H, W, C] to probabilities; for `start`."""
    import torch

    device = torch_device()
    model, network = build_network(twin, device)
    model.eval()

    def work() -> None:
        for _ in range(calls):
            with torch.inference_mode(), autocast(device, twin.dtype):
                network(to_input(images, device)).float().softmax(-1).cpu().numpy()

    return work


def import_torchvision():
    """Import torchvision, with the operators of the package torchvision_cpu if that is installed."""
    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401
    import torchvision

    return torchvision


def faster_rcnn(num_classes: int, options: dict):
    """Return torchvision's Faster R-CNN with the options PASSED_ON of ours; images are not resized."""
    torchvision = import_torchvision()
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
    from torchvision.ops.misc import FrozenBatchNorm2d

    resnet = getattr(torchvision.models, options["backbone_name"])(weights=None, norm_layer=FrozenBatchNorm2d)
    channels, hidden = options["fpn_channels"], options["box"]["representation_size"]
    backbone = BackboneWithFPN(
        resnet,
        {f"layer{stage}": str(stage - 1) for stage in range(1, 5)},
        [resnet.inplanes // 2**halvings for halvings in (3, 2, 1, 0)],
        channels,
        LastLevelMaxPool(),
    )
    pool = MultiScaleRoIAlign(
        ["0", "1", "2", "3"],
        output_size=7,
        sampling_ratio=2,
        canonical_scale=options["box"]["canonical_size"],
        canonical_level=options["box"]["canonical_level"],
    )
    same = {f"{part}_{name}": options[part][name] for part, names in TORCHVISION_ARGUMENTS.items() for name in names}
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            options["anchor_sizes"], (options["aspect_ratios"],) * len(options["anchor_sizes"])
        ),
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * 49, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
        **same,
    )
    model.transform.resize = lambda image, target: (image, target)
    return model


def detector_work(
    num_classes: int, options: dict, dtype: str, optimizer: Optimizer, batch: dict[str, np.ndarray], train: bool
) -> Callable[[], None]:
    """Return a function that trains torchvision's detector for a step or, unless `train`, detects; for `start`."""
    import torch

    device = torch_device()
    model = faster_rcnn(num_classes, options).to(device).train(train)
    images = list(torch.tensor(batch["image"]).permute(0, 3, 1, 2).float().div(255).to(device))
    targets = [
        {"boxes": torch.tensor(boxes[mask]).to(device), "labels": torch.tensor(label[mask]).long().to(device) + 1}
        for boxes, label, mask in zip(batch["boxes"], batch["label"], batch["box_mask"], strict=True)
    ]
    rule = build_optimizer(optimizer, model.parameters())

    def step() -> None:
        rule.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            loss = sum(model(images, targets).values())
        loss.backward()
        rule.step()
        finish(device)

    def detect() -> None:
        with torch.inference_mode(), autocast(device, dtype):
            model(images)
        finish(device)

    return step if train else detect


def roi_align_work(
    maps: Sequence[np.ndarray], rois: np.ndarray, stride: int, size: float, level: int, backward: bool
) -> Callable[[], None]:
    """Return torchvision's RoIAlign of rois [1, R, 4] on four maps [1, H, W, C], the first of `stride`; for `start`."""
    import torch

    import_torchvision()
    from torchvision.ops import MultiScaleRoIAlign

    device = torch_device()
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=size, canonical_level=level)
    features = {str(i): torch.tensor(x).permute(0, 3, 1, 2).contiguous().to(device) for i, x in enumerate(maps)}
    image_size = [tuple(side * stride for side in maps[0].shape[1:3])]
    regions = [torch.tensor(rois[0]).to(device)]
    for feature_map in features.values():
        feature_map.requires_grad_(backward)

    def work() -> None:
        pooled = pool(features, regions, image_size)
        if backward:
            torch.autograd.grad((pooled**2).sum(), list(features.values()))
        finish(device)

    return work
