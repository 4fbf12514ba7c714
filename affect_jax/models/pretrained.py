"""Pretrained weights under the names of our networks: load them, check them, merge them strictly.

The name of a weight is its path in `params` or `batch_stats`, as "backbone/stem/conv/kernel"; no name is in both.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from affect_jax.files import explained
from affect_jax.models import build_model
from affect_jax.models.weight_files import READERS, Preprocess, fetch
from affect_jax.models.weight_names import recognize, translate, with_idle_batch_norm
from affect_jax.names import check_patterns, misfits, selects

OWN_RECORD = "affect_jax"
"""Key of the metadata of our model files: JSON with the config."""
CLASS_LAYERS = "(logits|classifier|box_predictor)/.*"
"""Names of the weights that have one part for each class."""


@dataclass(frozen=True)
class Pretrained:
    """Weights under our names, float32, with the input and the network that they were trained with.

    `model_options` are the values of fields of the network, as padding and bn_epsilon. `class_names` are () if they are
    not known. `folded` weights had BatchNorm folded into the convolutions. Their BatchNorm adds the bias and nothing
    else, which is right in evaluation mode; before training, measure its statistics with calibrate_batch_norm.
    """

    source: str
    values: Mapping[str, np.ndarray]
    preprocess: Preprocess
    model_options: Mapping[str, object]
    class_names: tuple[str, ...] = ()
    folded: bool = False


def load_pretrained(reference: str | Path) -> Pretrained:
    """Load the weights of a file or of a repository on the Hugging Face hub.

    `reference` is a local file (.safetensors; .pth or .pt if torch, .h5 if h5py, .onnx if onnx is installed), a file of
    a repository, "hf://org/repo/path/to/file", or a timm model, "hf-hub:org/repo". "@revision" after the repository
    selects a revision.

    The weights are those of MobileNetV2 or a ResNet under the names of torchvision, timm or, for MobileNetV2 in a .h5
    file, keras.applications; of torchvision's Faster R-CNN with a feature pyramid (its weights COCO_V1 need bn_epsilon
    0); of MobileNetV1 with BatchNorm folded, or MobileFaceNet with BatchNorm or with BatchNorm folded (names as
    `blocks.0.depthwise.conv.weight`); of YuNet-n (.onnx); or of one of our model files, see runs.model_file. Raises
    ValueError for a wrong reference or file, ImportError for a missing package.
    """
    reference = str(reference)
    path, preprocess = fetch(reference)
    if path.suffix not in READERS:
        raise ValueError(f"{reference}: weight files end in {', '.join(READERS)}, not in {path.suffix!r}")
    arrays, metadata = READERS[path.suffix](path)
    with explained(reference):
        if OWN_RECORD in metadata:
            record = json.loads(metadata[OWN_RECORD])
            return trained_with(record["config"], record["data"]["class_names"], arrays, reference)
        naming = recognize(arrays, reference)
        values = dict(translate(arrays, naming))
        if naming.folded:
            values = with_idle_batch_norm(values, naming.model_options["bn_epsilon"])
        return Pretrained(
            source=reference,
            values=values,
            preprocess=preprocess or naming.preprocess,
            model_options={**naming.model_options, **_options_in(metadata)},
            folded=naming.folded,
        )


def trained_with(
    config: Mapping, class_names: Sequence[str], values: Mapping[str, np.ndarray], source: str
) -> Pretrained:
    """Return weights under our names with the input, the network and the classes that they were trained with."""
    fields = {name: _as_tuples(value) for name, value in config["model"].items()}
    model = build_model(fields.pop("name"), num_classes=1, dtype=np.float32, **fields)
    options = {
        name: _as_tuples(getattr(model, name))
        for name in ("padding", "bn_epsilon", "stride_in_1x1")
        if hasattr(model, name)
    }
    preprocess = config["preprocess"]
    mean, std = (_as_tuples(preprocess[name]) for name in ("mean", "std"))
    return Pretrained(source, values, Preprocess(mean, std), options, tuple(class_names))


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


def variables_of(weights: Mapping[str, np.ndarray]) -> dict:
    """Return the network's variables, float32, from weights by name: the inverse of named_weights.

    Names that end in mean or var are BatchNorm statistics.
    """
    collections = {"params": {}, "batch_stats": {}}
    for name, value in weights.items():
        is_statistic = name.rpartition("/")[2] in ("mean", "var")
        collections["batch_stats" if is_statistic else "params"][name] = to_device(value, np.float32)
    return {name: unflatten_dict(flat, sep="/") for name, flat in collections.items()}


def to_device(value: np.ndarray, dtype: np.dtype) -> jax.Array:
    """Return an array of `dtype`, converted on the host: the device compiles a program for each shape."""
    return jax.device_put(np.asarray(value, dtype))


def merge(variables: Mapping, weights: Mapping[str, np.ndarray], excuse: Sequence[str] = (), source: str = "") -> dict:
    """Return the network's variables with the values of `weights`, {name: array}.

    Raises one ValueError that lists every name that is missing in `weights`, or extra, or has another shape. A regex of
    `excuse` that matches the whole name excuses it: then the initial value is kept, or the extra one is left out. For
    example, "classifier/.*" excuses a head for another number of classes. A regex that matches no name is an error too.
    """
    initial = named_weights(variables)
    check_patterns(excuse, initial.keys() | weights.keys(), "init_excuse")
    wanted, found = ({name: value.shape for name, value in arrays.items()} for arrays in (initial, weights))
    problems = misfits(wanted, found)
    excused = selects(excuse)
    errors = [text for name, text in problems.items() if not excused(name)]
    if errors:
        listing = "\n".join(f"  {text}" for text in sorted(errors))
        raise ValueError(f"{source or 'the weights'}: {len(errors)} weights do not fit the network\n{listing}")
    if initial.keys() <= problems.keys():
        raise ValueError(f"{source or 'the weights'}: init_excuse {tuple(excuse)} excuses every weight of the network")

    def merged(collection: Mapping) -> dict:
        flat = flatten_dict(collection, sep="/")
        new = {name: old if name in problems else to_device(weights[name], old.dtype) for name, old in flat.items()}
        return unflatten_dict(new, sep="/")

    return {name: merged(collection) for name, collection in variables.items()}


def _options_in(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of the network in metadata: `bn_eps`; `stride` "in the first 1x1 ..." for ResNet v1."""
    options = {}
    if "bn_eps" in metadata:
        options["bn_epsilon"] = float(metadata["bn_eps"])
    if "stride" in metadata:
        options["stride_in_1x1"] = metadata["stride"].startswith("in the first 1x1")
    return options


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
