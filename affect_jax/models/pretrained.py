"""Weights that others trained: read from a file or a hub, renamed to ours, merged strictly.

A weight's **name** here is its path in `params` or `batch_stats`, as "backbone/stem/conv/kernel": no name is in both.
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

from affect_jax.models.mobilenet import STAGES
from affect_jax.models.mobilenet_v1 import BLOCKS
from affect_jax.models.roi_heads import POOLED_SIDE
from affect_jax.packages import require


@dataclass(frozen=True)
class Preprocess:
    """Input that the weights were trained on: RGB pixels, scaled to [0, 1], less `mean`, over `std`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Pretrained:
    """Weights under our names, float32, and what it takes to compute with them what their makers did.

    `model_options` are fields of the network (padding, bn_epsilon, stride_in_1x1) with the values that they want.
    `folded` weights had BatchNorm folded into the convolutions. Their BatchNorm adds the bias and nothing else, which
    is right in evaluation mode; before training, measure its statistics with calibrate_batch_norm.
    """

    source: str
    values: Mapping[str, np.ndarray]
    preprocess: Preprocess
    model_options: Mapping[str, object]
    folded: bool = False


OWN_RECORD = "affect_jax"
"""The one entry in the metadata of a model file of ours: JSON, the config in it."""
IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MINUS_ONE_TO_ONE = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VGGFACE2 = Preprocess((123.68 / 255, 116.779 / 255, 103.939 / 255), IMAGENET.std)
"""The mean is that of the weights. They want pixels in [0, 255]; the first kernel absorbs the scale (_from_folded)."""


def load_pretrained(reference: str | Path) -> Pretrained:
    """Weights of MobileNetV2 or a ResNet as torchvision, timm or (MobileNetV2, .h5) keras.applications name them, of
    torchvision's Faster R-CNN with a feature pyramid (its first COCO weights, COCO_V1, want bn_epsilon 0), of
    MobileNetV1 with BatchNorm folded (names as `blocks.0.depthwise.conv.weight`), or of a model file of ours, as
    predict.model_file writes it.

    `reference` is a local file (.safetensors; .pth or .pt where torch is installed; .h5 where h5py is), a file in a
    Hugging Face repository, "hf://org/repo/path/to/file", or all of a timm model, "hf-hub:org/repo"; "@revision" behind
    the repository pins one. ValueError says what is wrong with a reference, ImportError which package it wants.
    """
    reference = str(reference)
    path, preprocess = _fetch(reference)
    if path.suffix not in READERS:
        raise ValueError(f"{reference}: a weight file ends in {', '.join(READERS)}, not {path.suffix or 'nothing'!r}")
    arrays, metadata = READERS[path.suffix](path)
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
    """Weights under our names, of a network that was trained with this config of ours."""
    model, preprocess = config["model"], config["preprocess"]
    options = {name: _as_tuples(model[name]) for name in ("padding", "bn_epsilon", "stride_in_1x1") if name in model}
    mean, std = (_as_tuples(preprocess[name]) for name in ("mean", "std"))
    return Pretrained(source, values, Preprocess(mean, std), options)


def check_options(model: nn.Module, pretrained: Pretrained) -> None:
    """ValueError where an option of the network differs from what the weights want: the features would be wrong."""
    problems = [
        f"{option} is {_as_tuples(getattr(model, option, None))} but was {wanted}"
        for option, wanted in pretrained.model_options.items()
        if _as_tuples(getattr(model, option, None)) != wanted
    ]
    if problems:
        raise ValueError(f"{pretrained.source} was trained in another network than this: {'; '.join(problems)}")


def named_weights(variables: Mapping) -> dict:
    """{name: array} of the network's `params` and `batch_stats`."""
    return {
        name: value for collection in variables.values() for name, value in flatten_dict(collection, sep="/").items()
    }


def merge(variables: Mapping, weights: Mapping[str, np.ndarray], excuse: Sequence[str] = (), source: str = "") -> dict:
    """The network's variables with their values replaced by `weights`, {name: array}.

    A name that is missing in `weights`, or extra, or has another shape is an error; one ValueError lists all. Only a
    regex in `excuse` that matches the whole name excuses it: then the initial value stays, or the extra one is left
    out. A head for another number of classes is excused by name, as `classifier/.*`.
    """
    initial = named_weights(variables)
    problems = {name: f"missing: {name} {initial[name].shape}" for name in initial if name not in weights}
    problems |= {name: f"extra: {name} {weights[name].shape}" for name in weights if name not in initial}
    problems |= {
        name: f"misshapen: {name} is {weights[name].shape}, the network's is {initial[name].shape}"
        for name in initial
        if name in weights and weights[name].shape != initial[name].shape
    }
    errors = [text for name, text in problems.items() if not any(re.fullmatch(regex, name) for regex in excuse)]
    if errors:
        listing = "\n".join(f"  {text}" for text in sorted(errors))
        raise ValueError(f"{source or 'the weights'}: {len(errors)} do not fit the network\n{listing}")
    if initial.keys() <= problems.keys():
        raise ValueError(f"{source or 'the weights'}: excused by {tuple(excuse)}, not one weight is left to load")

    def merged(collection: Mapping) -> dict:
        flat = flatten_dict(collection, sep="/")
        new = {name: old if name in problems else jnp.asarray(weights[name], old.dtype) for name, old in flat.items()}
        return unflatten_dict(new, sep="/")

    return {name: merged(collection) for name, collection in variables.items()}


# --- where files come from


def _fetch(reference: str) -> tuple[Path, Preprocess | None]:
    """The local file behind a reference, and the preprocessing where its repository tells."""
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
            raise ValueError(f"{reference}: its config.json has no mean and std; name the file as hf://org/repo/file")
        preprocess = Preprocess(tuple(trained["mean"]), tuple(trained["std"]))
        return _download(reference, repository, revision, "model.safetensors"), preprocess
    if re.match(r"[a-z_-]+:", reference):
        raise ValueError(
            f"unknown kind of reference {reference!r}; known are a local file, hf://org/repo/file and hf-hub:org/repo"
        )
    if not Path(reference).is_file():
        raise ValueError(
            f"no file {reference!r}; a file on the hub is hf://org/repo/file, a timm model hf-hub:org/repo"
        )
    return Path(reference), None


def _download(reference: str, repository: str, revision: str | None, name: str) -> Path:
    require("huggingface_hub", purpose=reference)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except (OSError, ValueError) as error:  # its own errors, for a network that is not there too, are all of these
        raise ValueError(
            f"{reference}: {name} of {repository} is neither in huggingface_hub's cache nor to be had from the hub "
            f"({type(error).__name__}: {error}). Check the name and the network, or give the path of a file downloaded "
            "elsewhere"
        ) from error


# --- formats: file -> ({their name: array}, metadata)

Arrays = dict[str, np.ndarray]


def _read_safetensors(path: Path) -> tuple[Arrays, dict]:
    try:
        with safe_open(path, "flax") as file:  # numpy has no bfloat16, which some files are in
            arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[Arrays, dict]:
    require("torch", purpose=f"{path}, unless it is converted to .safetensors,")
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own errors share no base
        raise ValueError(f"{path} is not a file of torch weights alone: {error}") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
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
            file.get("model_weights", file).visititems(add)  # a whole model holds its optimizer beside them
    except OSError as error:
        raise ValueError(f"{path} is not a whole HDF5 file: {error}") from error
    return arrays, {}


READERS = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch, ".h5": _read_keras}


def _options_in(metadata: Mapping[str, str]) -> dict[str, object]:
    """Options of the network that metadata states: `bn_eps`; `stride` "in the first 1x1 ..." for ResNet v1."""
    options = {}
    if "bn_eps" in metadata:
        options["bn_epsilon"] = float(metadata["bn_eps"])
    if "stride" in metadata:
        options["stride_in_1x1"] = metadata["stride"].startswith("in the first 1x1")
    return options


# --- namings: {their name: array} -> {our name: array}


def _from_torch(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Our name and layout of a weight of our layer; convolutions are [F, C, kh, kw] there, dense kernels [F, C]."""
    if weight == "weight" and array.ndim == 4:
        return "kernel", array.transpose(2, 3, 1, 0)
    if weight == "weight" and array.ndim == 2:
        return "kernel", array.T
    return {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(weight, weight), array


def _from_keras(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Our name and layout of a weight of our layer; depthwise kernels are [kh, kw, C, 1] there."""
    if layer.endswith("depthwise/conv"):  # the weight is a "depthwise_kernel" in Keras 2, a "kernel" in Keras 3
        return "kernel", array.transpose(0, 1, 3, 2)
    names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    return names.get(weight, weight), array


def _bottlenecks() -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
    """(block, stage, place in the stage, its parts) of MobileNetV2's bottlenecks, in order."""
    places = [(stage, repeat, row[0]) for stage, row in enumerate(STAGES) for repeat in range(row[2])]
    for block, (stage, repeat, expansion) in enumerate(places):
        yield block, stage, repeat, ("depthwise", "project") if expansion == 1 else ("expand", "depthwise", "project")


def _torchvision_mobilenet() -> dict[str, str]:
    last = sum(1 for _ in _bottlenecks()) + 1
    modules = {"classifier.1": "classifier"}
    for index, ours in ((0, "stem"), (last, "head")):
        modules |= {f"features.{index}.0": f"backbone/{ours}/conv", f"features.{index}.1": f"backbone/{ours}/bn"}
    for block, _, _, parts in _bottlenecks():
        for i, part in enumerate(parts):
            theirs = f"features.{block + 1}.conv"
            conv, bn = (f"{i}", f"{i + 1}") if part == "project" else (f"{i}.0", f"{i}.1")
            ours = f"backbone/block{block}/{part}"
            modules |= {f"{theirs}.{conv}": f"{ours}/conv", f"{theirs}.{bn}": f"{ours}/bn"}
    return modules


def _timm_mobilenet() -> dict[str, str]:
    modules = {"conv_stem": "backbone/stem/conv", "bn1": "backbone/stem/bn"}
    modules |= {"conv_head": "backbone/head/conv", "bn2": "backbone/head/bn", "classifier": "classifier"}
    for block, stage, repeat, parts in _bottlenecks():
        convs = ("conv_dw", "conv_pw") if len(parts) == 2 else ("conv_pw", "conv_dw", "conv_pwl")
        for i, (part, conv) in enumerate(zip(parts, convs, strict=True), start=1):
            theirs, ours = f"blocks.{stage}.{repeat}", f"backbone/block{block}/{part}"
            modules |= {f"{theirs}.{conv}": f"{ours}/conv", f"{theirs}.bn{i}": f"{ours}/bn"}
    return modules


def _keras_mobilenet() -> dict[str, str]:
    modules = {"Conv1": "backbone/stem/conv", "bn_Conv1": "backbone/stem/bn"}
    modules |= {"Conv_1": "backbone/head/conv", "Conv_1_bn": "backbone/head/bn", "predictions": "classifier"}
    for block, _, _, parts in _bottlenecks():
        for part in parts:
            theirs = f"expanded_conv_{part}" if block == 0 else f"block_{block}_{part}"
            ours = f"backbone/block{block}/{part}"
            modules |= {theirs: f"{ours}/conv", f"{theirs}_BN": f"{ours}/bn"}
    return modules


def _resnet() -> dict[str, str]:
    modules = {"conv1": "backbone/conv1", "bn1": "backbone/bn1", "fc": "classifier"}
    most_blocks = 6
    for layer in range(1, 5):
        for block in range(most_blocks):
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
    """_from_torch; the first dense layer sees pooled RoIs as [C, P, P] there, as [P, P, C] here."""
    if layer == "box_head/fc6" and weight == "weight":
        features, inputs = array.shape
        cells = POOLED_SIDE**2
        array = array.reshape(features, inputs // cells, cells).swapaxes(1, 2).reshape(features, inputs)
    return _from_torch(layer, weight, array)


def _folded_mobilenet_v1() -> dict[str, str]:
    modules = {"stem.conv": "backbone/stem"}
    for block in range(len(BLOCKS)):
        modules |= {
            f"blocks.{block}.{part}.conv": f"backbone/block{block}/{part}" for part in ("depthwise", "pointwise")
        }
    return modules


def _from_folded(layer: str, weight: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """_from_torch for a convolution with BatchNorm folded into it; its bias becomes BatchNorm's.

    The first kernel is for pixels in [0, 255] in the order B, G, R there, for R, G, B over VGGFACE2's std here.
    """
    name, array = _from_torch(layer, weight, array)
    if layer == "backbone/stem" and name == "kernel":
        array = array[:, :, ::-1] * (255 * np.array(VGGFACE2.std, np.float32))[:, None]
    return f"conv/{name}" if name == "kernel" else f"bn/{name}", array


def _with_idle_batch_norm(values: Mapping[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Weights that have only the biases of BatchNorm, with scales and statistics that change nothing."""
    idle = {}
    for name, bias in values.items():
        if name.endswith("bn/bias"):
            layer, ones = name.removesuffix("bias"), np.ones_like(bias)
            idle |= {f"{layer}scale": ones * np.sqrt(1 + epsilon, dtype=np.float32)}
            idle |= {f"{layer}mean": 0 * ones, f"{layer}var": ones}
    return {**values, **idle}


@dataclass(frozen=True)
class _Naming:
    modules: Mapping[str, str]  # their layer -> ours
    weight: Callable[[str, str, np.ndarray], tuple[str, np.ndarray]]  # (our layer, their weight) -> our weight
    preprocess: Preprocess
    model_options: Mapping[str, object] = field(default_factory=dict)
    folded: bool = False


def _namings() -> dict[str, _Naming]:
    torch_mobilenet = {"padding": ((1, 1), (1, 1)), "bn_epsilon": 1e-5}
    return {
        "torchvision's MobileNetV2": _Naming(_torchvision_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "timm's MobileNetV2": _Naming(_timm_mobilenet(), _from_torch, IMAGENET, torch_mobilenet),
        "torchvision's and timm's ResNet": _Naming(
            _resnet(), _from_torch, IMAGENET, {"stride_in_1x1": False, "bn_epsilon": 1e-5}
        ),
        # no bn_epsilon: torchvision's is 1e-5, but 0 with its first COCO weights, and the file does not tell
        "torchvision's Faster R-CNN": _Naming(
            _torchvision_detector(), _from_torch_detector, IMAGENET, {"stride_in_1x1": False}
        ),
        "Keras' MobileNetV2": _Naming(
            _keras_mobilenet(), _from_keras, MINUS_ONE_TO_ONE, {"padding": "SAME", "bn_epsilon": 1e-3}
        ),
        "MobileNetV1 of VGGFace2": _Naming(
            _folded_mobilenet_v1(), _from_folded, VGGFACE2, {"bn_epsilon": 1e-3}, folded=True
        ),
    }


def _recognize(arrays: Arrays, reference: str) -> _Naming:
    """The naming that knows most of the file's layers, and at least half of them."""
    layers = {name.rpartition(".")[0] for name in arrays}
    namings = _namings()
    best = max(namings, key=lambda name: len(layers & namings[name].modules.keys()))
    if len(layers & namings[best].modules.keys()) < math.ceil(len(layers) / 2) or not layers:
        known = ", ".join(namings)
        raise ValueError(f"{reference}: not a naming that we know ({known}); it begins with {sorted(arrays)[:5]}")
    return namings[best]


def _translate(arrays: Arrays, naming: _Naming) -> Iterator[tuple[str, np.ndarray]]:
    """(our name, array); what the naming does not know keeps its name, for `merge` to report."""
    for name, array in arrays.items():
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
