"""Files of pretrained weights: find them locally or on the Hugging Face hub, and read their arrays."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from affect_jax.packages import require

Arrays = dict[str, np.ndarray]
"""Arrays by their name in the file."""


@dataclass(frozen=True)
class Preprocess:
    """Normalization of the input that the weights were trained on: (RGB pixels in [0, 1] - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def fetch(reference: str) -> tuple[Path, Preprocess | None]:
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
