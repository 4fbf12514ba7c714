"""Names and layouts of weights in the files of other libraries, and ours."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from affect_jax.config import IMAGENET_MEAN, IMAGENET_STD
from affect_jax.models import mobilefacenet, mobilenet_v1, yunet
from affect_jax.models.mobilenet import STAGES
from affect_jax.models.resnet import BLOCKS
from affect_jax.models.weight_files import Arrays, Preprocess

TORCHVISION_POOLED_SIDE = 7
"""Cells of a pooled RoI along each side in torchvision's detectors."""
IMAGENET = Preprocess(IMAGENET_MEAN, IMAGENET_STD)
MINUS_ONE_TO_ONE = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MOBILEFACENET = Preprocess((0.5, 0.5, 0.5), (128 / 255, 128 / 255, 128 / 255))
ZERO_TO_ONE = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
VGGFACE2 = Preprocess((123.68 / 255, 116.779 / 255, 103.939 / 255), IMAGENET_STD)
"""The mean is that of the weights. They expect pixels in [0, 255]: _from_mobilenet_v1 scales the first kernel."""


_ConvBN = tuple[str, str]
"""Names of a convolution and of its BatchNorm."""


def _from_torch(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout; PyTorch's convolutions are [F, C, kh, kw], its dense kernels [F, C]."""
    if weight == "weight" and array.ndim == 4:
        return "kernel", array.transpose(2, 3, 1, 0)
    if weight == "weight" and array.ndim == 2:
        return "kernel", array.T
    return {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(weight, weight), array


def _from_keras(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout; Keras' depthwise kernels are [kh, kw, C, 1]."""
    if layer.endswith("depthwise/conv"):  # named "depthwise_kernel" in Keras 2, "kernel" in Keras 3
        return "kernel", array.transpose(0, 1, 3, 2)
    names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    return names.get(weight, weight), array


def _mobilenet_v2(
    classifier: str, stem: _ConvBN, head: _ConvBN, bottleneck: Callable[[int, int, int, int], list[_ConvBN]]
) -> dict[str, str]:
    """Return {layer in the file: our layer} of MobileNetV2.

    stem and head are the (convolution, BatchNorm) of these layers in the file. bottleneck(block, stage, repeat, parts)
    returns those of the `parts` (2 or 3) convolutions of a block, which is number `repeat` of its stage.
    """
    layers = {"stem": stem, "head": head}
    places = [(stage, repeat, row[0]) for stage, row in enumerate(STAGES) for repeat in range(row[2])]
    for block, (stage, repeat, expansion) in enumerate(places):
        parts = ("depthwise", "project") if expansion == 1 else ("expand", "depthwise", "project")
        theirs = bottleneck(block, stage, repeat, len(parts))
        layers |= {f"block{block}/{part}": conv_bn for part, conv_bn in zip(parts, theirs, strict=True)}
    modules = {classifier: "classifier"}
    for ours, (conv, bn) in layers.items():
        modules |= {conv: f"backbone/{ours}/conv", bn: f"backbone/{ours}/bn"}
    return modules


def _torchvision_mobilenet() -> dict[str, str]:
    def bottleneck(block: int, stage: int, repeat: int, parts: int) -> list[_ConvBN]:
        theirs, last = f"features.{block + 1}.conv", parts - 1
        inner = [(f"{theirs}.{part}.0", f"{theirs}.{part}.1") for part in range(last)]
        return [*inner, (f"{theirs}.{last}", f"{theirs}.{last + 1}")]

    return _mobilenet_v2(
        "classifier.1", ("features.0.0", "features.0.1"), ("features.18.0", "features.18.1"), bottleneck
    )


def _timm_mobilenet() -> dict[str, str]:
    def bottleneck(block: int, stage: int, repeat: int, parts: int) -> list[_ConvBN]:
        convs = ("conv_dw", "conv_pw") if parts == 2 else ("conv_pw", "conv_dw", "conv_pwl")
        theirs = f"blocks.{stage}.{repeat}"
        return [(f"{theirs}.{conv}", f"{theirs}.bn{i}") for i, conv in enumerate(convs, start=1)]

    return _mobilenet_v2("classifier", ("conv_stem", "bn1"), ("conv_head", "bn2"), bottleneck)


def _keras_mobilenet() -> dict[str, str]:
    def bottleneck(block: int, stage: int, repeat: int, parts: int) -> list[_ConvBN]:
        theirs = "expanded_conv" if block == 0 else f"block_{block}"
        names = [f"{theirs}_{part}" for part in ("expand", "depthwise", "project")[-parts:]]
        return [(name, f"{name}_BN") for name in names]

    return _mobilenet_v2("predictions", ("Conv1", "bn_Conv1"), ("Conv_1", "Conv_1_bn"), bottleneck)


def _resnet() -> dict[str, str]:
    modules = {"conv1": "backbone/conv1", "bn1": "backbone/bn1", "fc": "classifier"}
    for layer in range(1, 5):
        for block in range(max(map(max, BLOCKS.values()))):
            theirs, ours = f"layer{layer}.{block}", f"backbone/layer{layer}_{block}"
            modules |= {f"{theirs}.{name}{i}": f"{ours}/{name}{i}" for name in ("conv", "bn") for i in (1, 2, 3)}
            modules |= {
                f"{theirs}.downsample.0": f"{ours}/downsample_conv",
                f"{theirs}.downsample.1": f"{ours}/downsample_bn",
            }
    return modules


def _torchvision_detector() -> dict[str, str]:
    modules = {f"backbone.body.{theirs}": ours for theirs, ours in _resnet().items() if theirs != "fc"}
    for level in range(4):
        modules |= {f"backbone.fpn.{kind}_blocks.{level}.0": f"fpn/{kind}_C{level + 2}" for kind in ("inner", "layer")}
    modules |= {"rpn.head.conv.0.0": "rpn_head/conv"}
    modules |= {f"rpn.head.{name}": f"rpn_head/{name}" for name in ("cls_logits", "bbox_pred")}
    modules |= {f"roi_heads.box_head.{name}": f"box_head/{name}" for name in ("fc6", "fc7")}
    modules |= {f"roi_heads.box_predictor.{name}": f"box_predictor/{name}" for name in ("cls_score", "bbox_pred")}
    return modules


def _from_torch_detector(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout; the inputs of the first dense layer are [C, P, P] in torchvision, [P, P, C] here."""
    if layer == "box_head/fc6" and weight == "weight":
        features, inputs = array.shape
        cells = TORCHVISION_POOLED_SIDE**2
        array = array.reshape(features, inputs // cells, cells).swapaxes(1, 2).reshape(features, inputs)
    return _from_torch(layer, weight, array)


def _folded_mobilenet_v1() -> dict[str, str]:
    modules = {"stem.conv": "backbone/stem"}
    for block in range(len(mobilenet_v1.BLOCKS)):
        modules |= {
            f"blocks.{block}.{part}.conv": f"backbone/block{block}/{part}" for part in ("depthwise", "pointwise")
        }
    return modules


def _from_folded(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout of a convolution with BatchNorm folded into it; its bias becomes BatchNorm's."""
    name, array = _from_torch(layer, weight, array)
    return f"conv/{name}" if name == "kernel" else f"bn/{name}", array


def _from_mobilenet_v1(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout, as _from_folded does.

    The first kernel of the file is for B, G, R pixels in [0, 255], ours for R, G, B pixels divided by VGGFACE2's std.
    """
    name, array = _from_folded(layer, weight, array)
    if layer == "backbone/stem" and name == "conv/kernel":
        array = array[:, :, ::-1] * (255 * np.array(VGGFACE2.std, np.float32))[:, None]
    return name, array


EMBEDDING = ("gdc.", "pw.", "embed.", "fc.", "fc_bn.")
"""Beginnings of the names of MobileFaceNet's layers after the last feature map; they compute an embedding."""


def _mobilefacenet(folded: bool) -> dict[str, str]:
    units = {"stem": "stem", "stem_dw": "stem_depthwise", "head": "head"}
    if folded:
        units["stem_pw"] = "stem_pointwise"
    for block in range(len(mobilefacenet.BLOCKS)):
        units |= {f"blocks.{block}.{part}": f"block{block}/{part}" for part in ("expand", "depthwise", "project")}
    modules = {}
    for theirs, ours in units.items():
        modules |= {f"{theirs}.conv": f"backbone/{ours}" if folded else f"backbone/{ours}/conv"}
        modules |= {f"{theirs}.bn": f"backbone/{ours}/bn", f"{theirs}.act": f"backbone/{ours}_prelu"}
    return modules


def _prepare_mobilefacenet(arrays: Arrays) -> Arrays:
    """Leave out the layers of the embedding, and give a layer with ReLU, which has no weights, a PReLU of slopes 0."""
    kept = {name: array for name, array in arrays.items() if not name.startswith(EMBEDDING)}
    ends = (".expand.conv.bias", ".depthwise.conv.bias", "head.conv.bias")  # of layers with an activation
    for layer in [name.removesuffix(".conv.bias") for name in kept if name.endswith(ends)]:
        kept.setdefault(f"{layer}.act.weight", np.zeros_like(kept[f"{layer}.conv.bias"]))
    return kept


def _from_mobilefacenet(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout of a layer with its own BatchNorm, or with BatchNorm folded into the convolution."""
    if layer.endswith("_prelu"):
        return "negative_slope", array
    return (_from_torch if layer.endswith(("/conv", "/bn")) else _from_folded)(layer, weight, array)


YUNET_OUTPUTS = ("cls", "obj", "bbox")
"""Outputs of each level of YuNet in the order of our layer, which gives all of them."""


def _join_yunet_outputs(arrays: Arrays) -> Arrays:
    """Join the layers of the outputs of each level, which are one layer here, and leave out those of key points."""
    joined = {name: array for name, array in arrays.items() if ".multi_level_" not in name or "_share_" in name}
    for level in range(3):
        for weight in (f"{level}.conv{conv}.{kind}" for conv in (1, 2) for kind in ("weight", "bias")):
            parts = [arrays[f"bbox_head.multi_level_{output}.{weight}"] for output in YUNET_OUTPUTS]
            joined[f"bbox_head.outputs.{weight}"] = np.concatenate(parts)
    return joined


def _yunet() -> dict[str, str]:
    units = {"backbone.model0.conv2": "backbone/stage0_0"}
    for stage in range(1, len(yunet.STAGES)):
        units |= {f"backbone.model{stage}.conv{place + 1}": f"backbone/stage{stage}_{place}" for place in range(2)}
    modules = {"stem": "backbone"}
    for level in range(3):
        units[f"neck.lateral_convs.{level}"] = f"fpn/lateral{level + 3}"
        units[f"bbox_head.multi_level_share_convs.{level}.0"] = f"rpn_head/shared{level + 3}"
        for conv, ours in (("conv1", "pointwise"), ("conv2", "depthwise")):
            modules[f"bbox_head.outputs.{level}.{conv}"] = f"rpn_head/{ours}{level + 3}"
    for theirs, ours in units.items():
        modules |= {f"{theirs}.conv1": f"{ours}/pointwise", f"{theirs}.conv2": ours}
    return modules


def _from_yunet(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return our name and layout; BatchNorm is folded into the stem and into the second convolution of each unit.

    The stem is for B, G, R pixels in [0, 255] in the file, for R, G, B pixels in [0, 1] here.
    """
    name, array = _from_torch(layer, weight, array)
    if layer == "backbone":
        return ("stem/kernel", 255 * array[:, :, ::-1]) if name == "kernel" else ("stem_bn/bias", array)
    if layer.startswith("rpn_head/depthwise") or layer.rpartition("/")[2].startswith("pointwise"):
        return name, array
    return ("depthwise/kernel", array) if name == "kernel" else ("bn/bias", array)


def with_idle_batch_norm(values: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Add BatchNorm scales and statistics that change nothing to weights that only have BatchNorm biases."""
    idle = {}
    for name, bias in values.items():
        if name.endswith("bn/bias"):
            layer, ones = name.removesuffix("bias"), np.ones_like(bias)
            idle |= {f"{layer}scale": ones * np.sqrt(1 + epsilon, dtype=np.float32)}
            idle |= {f"{layer}mean": 0 * ones, f"{layer}var": ones}
    return {**values, **idle}


@dataclass(frozen=True)
class Naming:
    """Names of the layers in a kind of file, and how its weights become ours."""

    modules: Mapping[str, str]  # layer in the file -> our layer
    weight: Callable[[str, str, np.ndarray], tuple[str, np.ndarray]]  # (our layer, weight in the file) -> our weight
    preprocess: Preprocess
    model_options: Mapping[str, object] = field(default_factory=dict)
    folded: bool = False
    prepare: Callable[[Arrays], Arrays] = dict  # changes the arrays of a file before they are renamed


def _namings() -> dict[str, Naming]:
    torch_mobilenet = {"padding": ((1, 1), (1, 1)), "bn_epsilon": 1e-5}
    return {
        "torchvision's MobileNetV2": Naming(_torchvision_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "timm's MobileNetV2": Naming(_timm_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "torchvision's and timm's ResNet": Naming(
            _resnet(), _from_torch, IMAGENET, {"stride_in_1x1": False, "bn_epsilon": 1e-5}
        ),
        # no bn_epsilon: it is 1e-5 in torchvision, but 0 with COCO_V1, and the file does not state it
        "torchvision's Faster R-CNN": Naming(
            _torchvision_detector(), _from_torch_detector, IMAGENET, {"stride_in_1x1": False}
        ),
        "Keras' MobileNetV2": Naming(
            _keras_mobilenet(), _from_keras, MINUS_ONE_TO_ONE, {"padding": "SAME", "bn_epsilon": 1e-3}
        ),
        "MobileNetV1 of VGGFace2": Naming(
            _folded_mobilenet_v1(), _from_mobilenet_v1, VGGFACE2, {"bn_epsilon": 1e-3}, folded=True
        ),
        "MobileFaceNet": Naming(
            _mobilefacenet(folded=False),
            _from_mobilefacenet,
            MOBILEFACENET,
            {"padding": ((1, 1), (1, 1)), "bn_epsilon": 1e-3, "stem_pointwise": False},
            prepare=_prepare_mobilefacenet,
        ),
        "MobileFaceNet with BatchNorm folded": Naming(
            _mobilefacenet(folded=True),
            _from_mobilefacenet,
            MOBILEFACENET,
            {"padding": "SAME", "bn_epsilon": 1e-3, "stem_pointwise": True},
            folded=True,
            prepare=_prepare_mobilefacenet,
        ),
        "YuNet-n": Naming(
            _yunet(), _from_yunet, ZERO_TO_ONE, {"bn_epsilon": 1e-5}, folded=True, prepare=_join_yunet_outputs
        ),
    }


def recognize(arrays: Arrays, reference: str) -> Naming:
    """Return the naming with the most layers of the file, and at least half of them."""
    layers = {name.rpartition(".")[0] for name in arrays}
    namings = _namings()
    best = max(namings, key=lambda name: len(layers & namings[name].modules.keys()))
    if len(layers & namings[best].modules.keys()) < math.ceil(len(layers) / 2) or not layers:
        known = ", ".join(namings)
        raise ValueError(f"{reference}: unknown names of weights {sorted(arrays)[:5]}; known are those of {known}")
    return namings[best]


def translate(arrays: Arrays, naming: Naming) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (our name, array); a name that is not in the naming is kept, so that `merge` reports it."""
    for name, array in naming.prepare(arrays).items():
        layer, _, weight = name.rpartition(".")
        if weight == "num_batches_tracked":
            continue
        if layer not in naming.modules:
            yield name, array
            continue
        ours = naming.modules[layer]
        name, array = naming.weight(ours, weight, array)
        yield f"{ours}/{name}", array
