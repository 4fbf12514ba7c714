"""Export a trained network as files that run without this package, each compared with the network first.

B batch, of any size; H W C height, width, channels of an image; K classes; D detections of an image.
"""

import json
import secrets
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export, lax

from affect_jax.config import evaluation_buckets
from affect_jax.data import find_dataset, open_split
from affect_jax.data.boxes_pipeline import padded_box_batches
from affect_jax.data.faces import face_input
from affect_jax.data.pipeline import spread_indices
from affect_jax.data.split import BoxesSplit
from affect_jax.export.readme import describe
from affect_jax.ops.boxes import box_iou
from affect_jax.packages import require
from affect_jax.predict.networks import compiled_predict
from affect_jax.runs.model_file import MODEL_FILE, Trained, load_trained, save_trained
from affect_jax.tasks import build_task

PLATFORMS = ("cpu", "cuda", "tpu")
NUM_FACES, NUM_SCENES = 128, 4
"""Number of images on which the files are compared with the network."""
CLEAR_SCORE = 0.5
"""A detector's files are compared on detections with at least this score, and on the best detection of each image."""
TOLERANCES = {
    "float32": {"probabilities": 1e-4, "valence_arousal": 1e-4, "scores": 1e-3, "overlap": 0.01},
    "float16": {"probabilities": 0.05, "valence_arousal": 0.05, "scores": 0.05, "overlap": 0.5},
}
"""Largest allowed differences by the type of the weights in the file; "overlap" is 1 - IoU.

With rounded weights, NMS may keep the other of two boxes of a face; these overlap by at least half.
"""

Outputs = dict[str, np.ndarray]


class Interface(NamedTuple):
    """Function and inputs of an exported network."""

    function: Callable[..., dict[str, jax.Array]]
    """(variables, *arrays [B, ...]) -> outputs by name."""
    inputs: dict[str, jax.ShapeDtypeStruct]
    """Shapes by name, without B."""


def export_model(trained: Trained, folder: str | Path, licence: str = "", with_onnx: bool = True) -> dict:
    """Write the network to a new folder and return the record that export.json holds.

    The folder gets model.safetensors (float16), which prediction reads, and files of StableHLO and, unless `with_onnx`
    is False, of ONNX: one for a classifier, one per input size for a detector. The folder gets its name after the
    outputs of every file have been compared with those of the network.

    Raises FileExistsError if the folder exists, ValueError if a file differs too much from the network or the `licence`
    of the training data is unknown, ImportError if the packages for ONNX are missing.
    """
    folder = Path(folder)
    check_is_new(folder)
    if with_onnx:
        require("onnx", "onnxruntime", purpose="ONNX (left out by --noonnx)")
    licence = licence or known_licence(trained)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")  # another process may export there too
    partial.mkdir(parents=True)
    try:
        save_trained(trained, partial / MODEL_FILE, licence)
        files, checked_on = WRITERS[trained.config.task](trained, partial, licence, with_onnx)
        record = {
            "task": trained.config.task,
            "class_names": trained.data.class_names,
            "checked_on": checked_on,
            "files": files,
            "licence": licence,
            "exposure_level": trained.config.preprocess.get("exposure_level", 0.0),
            "started_from": Path(trained.config.init_from).name,
            "about": {name: value for name, value in trained.about.items() if name != "licence"},
            "jax": version("jax"),
            "platforms": PLATFORMS,
        }
        (partial / "export.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        (partial / "README.md").write_text(describe(record), encoding="utf-8")
        check_is_new(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return record


def check_is_new(folder: Path) -> None:
    """Raise FileExistsError if the folder exists."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another --out")


def known_licence(trained: Trained) -> str:
    """Return the licence of the training data, from the model file or the data set; ValueError if it is unknown."""
    name = trained.config.data.name
    licence = trained.about.get("licence") or getattr(find_dataset(name), "LICENCE", "")
    if not licence:
        raise ValueError(f"the licence of the training data {name!r} is unknown; give it with --licence='...'")
    return licence


def write_classifier(trained: Trained, folder: Path, licence: str, with_onnx: bool) -> tuple[dict, str]:
    """Write and compare the files of a classifier; return their records and a description of the images compared."""
    interface = classifier_interface(in_float32(trained))
    checked_on, faces = faces_to_check(trained)
    expected = outputs(interface.function(trained.variables, faces))
    files = {}

    def check(name: str, found: Outputs, tolerance: str) -> None:
        files[name] = accept(folder / name, probability_differences(expected, found), tolerance)

    rounded = load_trained(folder / MODEL_FILE).variables
    check(MODEL_FILE, outputs(interface.function(rounded, faces)), "float16")
    (folder / "model.stablehlo").write_bytes(to_stablehlo(interface, trained.variables))
    check("model.stablehlo", outputs(read_stablehlo(folder / "model.stablehlo").call(faces)), "float32")
    files["model.stablehlo"]["inputs"] = described(interface)
    if with_onnx:
        write_onnx(interface, trained, folder / "model.onnx", licence)
        check("model.onnx", run_onnx(folder / "model.onnx", faces), "float32")
        files["model.onnx"]["inputs"] = described(interface)
    return files, checked_on


def write_detector(trained: Trained, folder: Path, licence: str, with_onnx: bool) -> tuple[dict, str]:
    """Write and compare the files of a detector; return their records and a description of the images compared."""
    rounded = load_trained(folder / MODEL_FILE).variables
    checked_on, split = scenes_to_check(trained)
    files, rounding = {}, []
    for height, width in evaluation_buckets(trained.config):
        interface = detector_interface(in_float32(trained), (height, width))
        batch = next(padded_box_batches(split, NUM_SCENES, ((height, width),)))
        arrays = [batch["image"], batch["image_size"].astype(np.int32)]
        expected = outputs(interface.function(trained.variables, *arrays))
        rounding.append(detection_differences(expected, outputs(interface.function(rounded, *arrays))))
        name = f"model_{height}x{width}.stablehlo"
        (folder / name).write_bytes(to_stablehlo(interface, trained.variables))
        found = outputs(read_stablehlo(folder / name).call(*arrays))
        files[name] = accept(folder / name, detection_differences(expected, found), "float32")
        files[name]["inputs"] = described(interface)
        if with_onnx:
            name = f"model_{height}x{width}.onnx"
            interface = detector_interface(without_groups(in_float32(trained)), (height, width))
            write_onnx(interface, trained, folder / name, licence, batch_size=1)
            found = run_onnx(folder / name, *arrays)
            files[name] = accept(folder / name, detection_differences(expected, found), "float32")
            files[name]["inputs"] = described(interface, batch_size=1)
    largest = {name: max(differences[name] for differences in rounding) for name in rounding[0]}
    return {MODEL_FILE: accept(folder / MODEL_FILE, largest, "float16"), **files}, checked_on


def in_float32(trained: Trained) -> Trained:
    """Return the model with float32 arithmetic, which every platform supports."""
    config = trained.config.copy_and_resolve_references()
    config.dtype = "float32"
    return trained._replace(config=config)


def without_groups(trained: Trained) -> Trained:
    """Return the detector that does the same for every image; the ONNX exporter has no conditions and no such loops."""
    config = trained.config.copy_and_resolve_references()
    if "box" in config.model:
        config.model.box.rois_at_once = 0
    return trained._replace(config=config)


def classifier_interface(trained: Trained) -> Interface:
    """Return the interface of a classifier.

    Input: faces uint8 [B, H, W, C]. Outputs: probabilities [B, K] and, if the network has that head, valence_arousal
    [B, 2].
    """
    predict = compiled_predict(trained)
    names = {"probabilities": "probs"}
    if trained.config.valence_arousal_weight > 0:
        names["valence_arousal"] = "valence_arousal"

    def classify(variables: dict, faces: jax.Array) -> dict[str, jax.Array]:
        predicted = predict(variables, {"image": faces})
        return {name: predicted[inner] for name, inner in names.items()}

    return Interface(classify, {"faces": jax.ShapeDtypeStruct(trained.data.image_shape, np.uint8)})


def detector_interface(trained: Trained, bucket: tuple[int, int]) -> Interface:
    """Return the interface of a detector for one input size.

    Inputs: images uint8 [B, H, W, 3], padded with zeros, and sizes int32 [B, 2], the (height, width) without padding.
    Outputs: boxes float32 [B, D, 4], scores float32 [B, D] in descending order, label int32 [B, D], valid bool [B, D].
    """
    compiled = compiled_predict(trained)

    def detect(variables: dict, images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        return compiled(variables, {"image": images, "image_size": sizes})["detections"]

    inputs = {
        "images": jax.ShapeDtypeStruct((*bucket, 3), np.uint8),
        "sizes": jax.ShapeDtypeStruct((2,), np.int32),
    }
    return Interface(detect, inputs)


def to_stablehlo(interface: Interface, variables: dict) -> bytes:
    """Serialize the function and its variables with jax.export, for all PLATFORMS and any B."""

    def one(*arrays: jax.Array) -> dict[str, jax.Array]:
        # The barrier prevents constant folding: XLA would evaluate functions of the variables, such as Winograd's
        # kernels, during compilation, which takes minutes.
        results = interface.function(lax.optimization_barrier(variables), *(array[None] for array in arrays))
        return jax.tree.map(lambda result: result[0], results)

    (batch,) = export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in interface.inputs.values()]
    # vmap: the network sees a batch of 1; with a symbolic batch, a strided slice would become a gather
    return bytes(export.export(jax.jit(jax.vmap(one)), platforms=PLATFORMS)(*inputs).serialize())


def read_stablehlo(path: Path) -> export.Exported:
    """Read a file that to_stablehlo wrote."""
    return export.deserialize(bytearray(path.read_bytes()))


def write_onnx(interface: Interface, trained: Trained, path: Path, licence: str, batch_size: int | None = None) -> None:
    """Write the network as ONNX for any B, or a fixed one; its metadata have the class names, source and licence."""
    import onnx

    from affect_jax.export.onnx_model import to_onnx

    model = to_onnx(partial(interface.function, trained.variables), interface.inputs, batch_size)
    class_names = json.dumps(trained.data.class_names)
    about = {"class_names": class_names, "source": trained.about["source"], "licence": licence}
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def run_onnx(path: Path, *arrays: np.ndarray) -> Outputs:
    """Return the outputs of onnxruntime, on the CPU, for arrays [B, ...]; a file for one image is run B times."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, names = session.get_inputs(), [output.name for output in session.get_outputs()]
    batches = [arrays]
    if inputs[0].shape[0] == 1:
        batches = [[array[i : i + 1] for array in arrays] for i in range(len(arrays[0]))]
    found = [
        session.run(names, {one.name: array for one, array in zip(inputs, batch, strict=True)}) for batch in batches
    ]
    return {name: np.concatenate(values) for name, *values in zip(names, *found, strict=True)}


def faces_to_check(trained: Trained) -> tuple[str, np.ndarray]:
    """Return a description and faces uint8 [N, H, W, C]: the run's val split, or drawn faces if it is not available."""
    shape = trained.data.image_shape
    try:
        split = build_task(trained.config).open_split("val")
        if tuple(split.image_shape) == tuple(shape):
            indices = spread_indices(len(split), NUM_FACES)
            return f"{len(indices)} faces of {trained.config.data.name}, val", split.read(indices)["image"]
    except FileNotFoundError:
        pass  # the model is on a machine without its data
    drawn = open_split("drawn_faces", "val", num_examples=NUM_FACES).read(np.arange(NUM_FACES))["image"]
    return f"{NUM_FACES} drawn faces", np.stack([face_input(face.repeat(3, axis=-1), shape) for face in drawn])


def scenes_to_check(trained: Trained) -> tuple[str, BoxesSplit]:
    """Return a description and a split: the run's val split, or drawn scenes if it is not available."""
    try:
        split, name = build_task(trained.config).open_split("val"), f"images of {trained.config.data.name}, val"
    except FileNotFoundError:
        split, name = open_split("drawn_scenes", "val", num_examples=NUM_SCENES), "drawn scenes"
    return f"{min(NUM_SCENES, len(split))} {name}", split


def outputs(arrays: dict[str, jax.Array]) -> Outputs:
    """Copy the outputs to the host."""
    return {name: np.asarray(value) for name, value in jax.device_get(arrays).items()}


def probability_differences(expected: Outputs, found: Outputs) -> dict[str, float]:
    """Return the largest difference of each output."""
    return {name: float(np.abs(found[name] - value).max()) for name, value in expected.items()}


def detection_differences(expected: Outputs, found: Outputs) -> dict[str, float]:
    """Return the largest differences in "scores" and "overlap" (1 - IoU) between matching detections.

    A clear detection (see CLEAR_SCORE) of either matches the detection of the other with the same label and the largest
    IoU. Raises ValueError if `expected` has no detection.
    """
    if not expected["valid"].any():
        raise ValueError("the network detects nothing in the images used for the comparison; train it first")
    both = [_largest_differences(expected, found), _largest_differences(found, expected)]
    return {name: max(one[name] for one in both) for name in both[0]}


def _largest_differences(detections: Outputs, others: Outputs) -> dict[str, float]:
    """Return the largest differences of the clear detections from their matches among the others."""
    scores, overlaps = [np.zeros(1)], [np.zeros(1)]
    for row, valid in enumerate(detections["valid"]):
        clear = valid & ((detections["scores"][row] >= CLEAR_SCORE) | (np.arange(len(valid)) == 0))
        may_match = others["valid"][row] & (detections["label"][row][:, None] == others["label"][row])
        iou = np.asarray(box_iou(detections["boxes"][row], others["boxes"][row])) * may_match
        scores.append(np.abs(detections["scores"][row] - others["scores"][row][iou.argmax(1)])[clear])
        overlaps.append(1 - iou.max(1)[clear])
    return {"scores": float(np.concatenate(scores).max()), "overlap": float(np.concatenate(overlaps).max())}


def accept(path: Path, differences: dict[str, float], tolerance: str) -> dict:
    """Return the record of a file; ValueError if it differs too much from the network."""
    allowed = {name: TOLERANCES[tolerance][name] for name in differences}
    if too_large := [name for name, value in differences.items() if not value <= allowed[name]]:
        figures = ", ".join(f"{name} by {differences[name]:.3g}, allowed {allowed[name]:g}" for name in too_large)
        raise ValueError(f"{path.name} differs from the network: {figures}; nothing was written")
    return {"bytes": path.stat().st_size, "largest_difference": differences, "tolerance": allowed}


def described(interface: Interface, batch_size: int | str = "batch") -> dict:
    """Return shapes and dtypes of the inputs, for export.json."""
    return {
        name: {"shape": [batch_size, *value.shape], "dtype": str(value.dtype)}
        for name, value in interface.inputs.items()
    }


WRITERS = {"classification": write_classifier, "detection": write_detector}
"""Functions (trained, folder, licence, with_onnx) -> (records of the files, description of the images), by task."""
