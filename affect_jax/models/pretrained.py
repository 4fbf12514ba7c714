"""Pretrained weights: read them from a file or a hub, rename them to the names of our networks, merge them strictly.

The name of a weight is its path in `params` or `batch_stats`, as "backbone/stem/conv/kernel"; no name is in both.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from affect_jax.files import explained
from affect_jax.models import mobilenet_v1, yunet
from affect_jax.models.mobilenet import STAGES
from affect_jax.models.resnet import BLOCKS
from affect_jax.names import check_patterns, selects
from affect_jax.packages import require


@dataclass(frozen=True)
class Preprocess:
    """Normalization of the input that the weights were trained on: (RGB pixels in [0, 1] - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Pretrained:
    """Weights under our names, float32, with the input and the network that they were trained with.

    `model_options` are the values of fields of the network: padding, bn_epsilon, stride_in_1x1. `folded` weights had
    BatchNorm folded into the convolutions. Their BatchNorm adds the bias and nothing else, which is right in evaluation
    mode; before training, measure its statistics with calibrate_batch_norm.
    """

    source: str
    values: Mapping[str, np.ndarray]
    preprocess: Preprocess
    model_options: Mapping[str, object]
    folded: bool = False


TORCHVISION_POOLED_SIDE = 7
"""Cells of a pooled RoI along each side in torchvision's detectors."""
OWN_RECORD = "affect_jax"
"""Key of the metadata of our model files: JSON with the config."""
IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MINUS_ONE_TO_ONE = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ZERO_TO_ONE = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
VGGFACE2 = Preprocess((123.68 / 255, 116.779 / 255, 103.939 / 255), IMAGENET.std)
"""The mean is that of the weights. They expect pixels in [0, 255]; _from_folded scales the first kernel instead."""


def load_pretrained(reference: str | Path) -> Pretrained:
    """Load the weights of a file or of a repository on the Hugging Face hub.

    `reference` is a local file (.safetensors; .pth or .pt if torch is installed; .h5 if h5py is installed), a file of a
    repository, "hf://org/repo/path/to/file", or a timm model, "hf-hub:org/repo". "@revision" after the repository
    selects a revision.

    The weights are those of MobileNetV2 or a ResNet under the names of torchvision, timm or, for MobileNetV2 in a .h5
    file, keras.applications; of torchvision's Faster R-CNN with a feature pyramid (its weights COCO_V1 need bn_epsilon
    0); of MobileNetV1 with BatchNorm folded (names as `blocks.0.depthwise.conv.weight`); or of one of our model files,
    see predict.model_file. Raises ValueError for a wrong reference or file, ImportError for a missing package.
    """
    reference = str(reference)
    path, preprocess = _fetch(reference)
    if path.suffix not in READERS:
        raise ValueError(f"{reference}: weight files end in {', '.join(READERS)}, not in {path.suffix!r}")
    arrays, metadata = READERS[path.suffix](path)
    with explained(reference):
        if OWN_RECORD in metadata:
            return trained_with(json.loads(metadata[OWN_RECORD])["config"], arrays, reference)
        naming = _recognize(arrays, reference)
        values = dict(_translate(arrays, naming))
        if naming.folded:
            values = _with_idle_batch_norm(values, naming.model_options["bn_epsilon"])
        return Pretrained(
            source=reference,
            values=values,
            preprocess=preprocess or naming.preprocess,
            model_options={**naming.model_options, **_options_in(metadata)},
            folded=naming.folded,
        )


def trained_with(config: Mapping, values: Mapping[str, np.ndarray], source: str) -> Pretrained:
    """Return weights under our names with the input and the network of the config that they were trained with."""
    model, preprocess = config["model"], config["preprocess"]
    options = {name: _as_tuples(model[name]) for name in ("padding", "bn_epsilon", "stride_in_1x1") if name in model}
    mean, std = (_as_tuples(preprocess[name]) for name in ("mean", "std"))
    return Pretrained(source, values, Preprocess(mean, std), options)


def check_options(model: nn.Module, pretrained: Pretrained) -> None:
    """Raise ValueError if a field of the network differs from that of the weights: features would be wrong."""
    problems = [
        f"{option} is {_as_tuples(getattr(model, option, None))}, must be {expected}"
        for option, expected in pretrained.model_options.items()
        if _as_tuples(getattr(model, option, None)) != expected
    ]
    if problems:
        raise ValueError(f"{pretrained.source} needs other fields of the network: {'; '.join(problems)}")


def named_weights(variables: Mapping) -> dict:
    """Return {name: array} of the network's `params` and `batch_stats`."""
    return {
        name: value for collection in variables.values() for name, value in flatten_dict(collection, sep="/").items()
    }


def merge(variables: Mapping, weights: Mapping[str, np.ndarray], excuse: Sequence[str] = (), source: str = "") -> dict:
    """Return the network's variables with the values of `weights`, {name: array}.

    Raises one ValueError that lists every name that is missing in `weights`, or extra, or has another shape. A regex of
    `excuse` that matches the whole name excuses it: then the initial value is kept, or the extra one is left out. For
    example, "classifier/.*" excuses a head for another number of classes. A regex that matches no name is an error too.
    """
    initial = named_weights(variables)
    check_patterns(excuse, initial.keys() | weights.keys(), "init_excuse")
    problems = {name: f"missing: {name} {initial[name].shape}" for name in initial if name not in weights}
    problems |= {name: f"extra: {name} {weights[name].shape}" for name in weights if name not in initial}
    problems |= {
        name: f"wrong shape: {name} is {weights[name].shape}, the network's is {initial[name].shape}"
        for name in initial
        if name in weights and weights[name].shape != initial[name].shape
    }
    excused = selects(excuse)
    errors = [text for name, text in problems.items() if not excused(name)]
    if errors:
        listing = "\n".join(f"  {text}" for text in sorted(errors))
        raise ValueError(f"{source or 'the weights'}: {len(errors)} weights do not fit the network\n{listing}")
    if initial.keys() <= problems.keys():
        raise ValueError(f"{source or 'the weights'}: init_excuse {tuple(excuse)} excuses every weight of the network")

    def merged(collection: Mapping) -> dict:
        flat = flatten_dict(collection, sep="/")
        new = {name: old if name in problems else jnp.asarray(weights[name], old.dtype) for name, old in flat.items()}
        return unflatten_dict(new, sep="/")

    return {name: merged(collection) for name, collection in variables.items()}


# --- references


def _fetch(reference: str) -> tuple[Path, Preprocess | None]:
    """Return the local file of a reference, and the preprocessing if its repository has it."""
    hub_file = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", reference)
    timm_model = re.fullmatch(r"hf-hub:([^/@]+/[^/@]+)(?:@(.+))?", reference)
    if hub_file:
        repository, revision, name = hub_file.groups()
        return _download(reference, repository, revision, name), None
    if timm_model:
        repository, revision = timm_model.groups()
        config = json.loads(_download(reference, repository, revision, "config.json").read_text(encoding="utf-8"))
        trained = config.get("pretrained_cfg", config)
        if not {"mean", "std"} <= trained.keys():
            raise ValueError(f"{reference}: its config.json has no mean and std; use hf://org/repo/file instead")
        preprocess = Preprocess(tuple(trained["mean"]), tuple(trained["std"]))
        return _download(reference, repository, revision, "model.safetensors"), preprocess
    if re.match(r"[a-z_-]+:", reference):
        raise ValueError(
            f"unknown kind of reference {reference!r}; use a local file, hf://org/repo/file or hf-hub:org/repo"
        )
    if not Path(reference).is_file():
        raise ValueError(
            f"no file {reference!r}; for the hub, use hf://org/repo/file or, for a timm model, hf-hub:org/repo"
        )
    return Path(reference), None


def _download(reference: str, repository: str, revision: str | None, name: str) -> Path:
    require("huggingface_hub", purpose=reference)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except (OSError, ValueError) as error:  # base classes of the hub's errors, also without a network
        raise ValueError(
            f"{reference}: {name} of {repository} is neither in huggingface_hub's cache nor available from the hub "
            f"({type(error).__name__}: {error}). Check the name and the network, or download the file elsewhere and "
            "give its path"
        ) from error


# --- file formats: path -> ({name in the file: array}, metadata)

Arrays = dict[str, np.ndarray]


def _read_safetensors(path: Path) -> tuple[Arrays, dict]:
    try:
        with safe_open(path, "flax") as file:  # numpy has no bfloat16, which some files are in
            arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[Arrays, dict]:
    require("torch", purpose=f"{path}, unless it is converted to .safetensors,")
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of pickle, zip and torch have no common base class
        raise ValueError(f"{path} is not a file of torch weights: {error}") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state) if isinstance(state, dict) else {}
    return {name: value.float().numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}, {}


def _read_keras(path: Path) -> tuple[Arrays, dict]:
    require("h5py", purpose=str(path))
    import h5py

    arrays = {}

    def add(name: str, item) -> None:
        if isinstance(item, h5py.Dataset) and "/" in name:
            layer, weight = name.split("/")[-2:]
            arrays[f"{layer}.{weight.removesuffix(':0')}"] = np.asarray(item, np.float32)

    try:
        with h5py.File(path) as file:
            file.get("model_weights", file).visititems(add)  # the file of a whole model has the optimizer too
    except OSError as error:
        raise ValueError(f"{path} is not a complete HDF5 file: {error}") from error
    return arrays, {}


def _read_onnx(path: Path) -> tuple[Arrays, dict]:
    require("onnx", purpose=str(path))
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path).graph
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{path} is not a complete ONNX file: {error}") from error
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    arrays, layers = {}, {}  # layers: {output of a convolution: its name}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        layer, kind = node.input[1].rpartition(".")[::2]
        if kind != "weight":  # a convolution with BatchNorm folded into it has lost its name
            before = layers.get(node.input[0], "")
            layer = f"{before.removesuffix('.conv1')}.conv2" if before.endswith(".conv1") else "stem"
        layers[node.output[0]] = layer
        for weight, name in zip(("weight", "bias"), node.input[1:], strict=False):
            arrays[f"{layer}.{weight}"] = np.asarray(weights[name], np.float32)
    return arrays, {}


READERS = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".h5": _read_keras,
    ".onnx": _read_onnx,
}


def _options_in(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of the network in metadata: `bn_eps`; `stride` "in the first 1x1 ..." for ResNet v1."""
    options = {}
    if "bn_eps" in metadata:
        options["bn_epsilon"] = float(metadata["bn_eps"])
    if "stride" in metadata:
        options["stride_in_1x1"] = metadata["stride"].startswith("in the first 1x1")
    return options


# --- namings: {name in the file: array} -> {our name: array}


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
    """Return our name and layout of a convolution with BatchNorm folded into it; its bias becomes BatchNorm's.

    The first kernel of the file is for B, G, R pixels in [0, 255], ours for R, G, B pixels divided by VGGFACE2's std.
    """
    name, array = _from_torch(layer, weight, array)
    if layer == "backbone/stem" and name == "kernel":
        array = array[:, :, ::-1] * (255 * np.array(VGGFACE2.std, np.float32))[:, None]
    return f"conv/{name}" if name == "kernel" else f"bn/{name}", array


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


def _with_idle_batch_norm(values: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Add BatchNorm scales and statistics that change nothing to weights that only have BatchNorm biases."""
    idle = {}
    for name, bias in values.items():
        if name.endswith("bn/bias"):
            layer, ones = name.removesuffix("bias"), np.ones_like(bias)
            idle |= {f"{layer}scale": ones * np.sqrt(1 + epsilon, dtype=np.float32)}
            idle |= {f"{layer}mean": 0 * ones, f"{layer}var": ones}
    return {**values, **idle}


@dataclass(frozen=True)
class _Naming:
    modules: Mapping[str, str]  # layer in the file -> our layer
    weight: Callable[[str, str, np.ndarray], tuple[str, np.ndarray]]  # (our layer, weight in the file) -> our weight
    preprocess: Preprocess
    model_options: Mapping[str, object] = field(default_factory=dict)
    folded: bool = False
    prepare: Callable[[Arrays], Arrays] = dict  # changes the arrays of a file before they are renamed


def _namings() -> dict[str, _Naming]:
    torch_mobilenet = {"padding": ((1, 1), (1, 1)), "bn_epsilon": 1e-5}
    return {
        "torchvision's MobileNetV2": _Naming(_torchvision_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "timm's MobileNetV2": _Naming(_timm_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "torchvision's and timm's ResNet": _Naming(
            _resnet(), _from_torch, IMAGENET, {"stride_in_1x1": False, "bn_epsilon": 1e-5}
        ),
        # no bn_epsilon: it is 1e-5 in torchvision, but 0 with COCO_V1, and the file does not state it
        "torchvision's Faster R-CNN": _Naming(
            _torchvision_detector(), _from_torch_detector, IMAGENET, {"stride_in_1x1": False}
        ),
        "Keras' MobileNetV2": _Naming(
            _keras_mobilenet(), _from_keras, MINUS_ONE_TO_ONE, {"padding": "SAME", "bn_epsilon": 1e-3}
        ),
        "MobileNetV1 of VGGFace2": _Naming(
            _folded_mobilenet_v1(), _from_folded, VGGFACE2, {"bn_epsilon": 1e-3}, folded=True
        ),
        "YuNet-n": _Naming(
            _yunet(), _from_yunet, ZERO_TO_ONE, {"bn_epsilon": 1e-5}, folded=True, prepare=_join_yunet_outputs
        ),
    }


def _recognize(arrays: Arrays, reference: str) -> _Naming:
    """Return the naming with the most layers of the file, and at least half of them."""
    layers = {name.rpartition(".")[0] for name in arrays}
    namings = _namings()
    best = max(namings, key=lambda name: len(layers & namings[name].modules.keys()))
    if len(layers & namings[best].modules.keys()) < math.ceil(len(layers) / 2) or not layers:
        known = ", ".join(namings)
        raise ValueError(f"{reference}: unknown names of weights {sorted(arrays)[:5]}; known are those of {known}")
    return namings[best]


def _translate(arrays: Arrays, naming: _Naming) -> Iterator[tuple[str, np.ndarray]]:
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


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
