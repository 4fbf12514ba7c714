"""A trained network as files that need none of this code, each checked against the network before it has its name.

B batch, of any size; H W C a picture's height, width, channels; K classes; D detections of a picture.
"""

import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export, lax

from affect_jax.data import find_dataset, open_split
from affect_jax.data.boxes_pipeline import padded_box_batches
from affect_jax.ops.boxes import box_iou
from affect_jax.predict.reader import compiled_predict, face_input
from affect_jax.runs.model_file import Trained, read, write
from affect_jax.tasks import build_task

PLATFORMS = ("cpu", "cuda", "tpu")
NUM_FACES, NUM_PICTURES = 128, 4
"""That the files are checked on."""
CLEAR_SCORE = 0.5
"""A detector's files are held to its detections from here on, and to the best one of each picture."""
TOLERANCES = {
    "float32": {"probabilities": 1e-4, "valence_arousal": 1e-4, "scores": 1e-3, "overlap": 0.01},
    "float16": {"probabilities": 0.05, "valence_arousal": 0.05, "scores": 0.05, "overlap": 0.5},
}
"""Largest differences of files, by what their weights are kept as; "overlap" is 1 - IoU.

Of two boxes on one face rounded weights may leave the other: they overlap by half, or both would have stayed.
"""

SMALL_FILE = "model.safetensors"

Outputs = dict[str, np.ndarray]


class Interface(NamedTuple):
    """What a network takes and gives, once exported."""

    function: Callable[..., dict[str, jax.Array]]
    """(variables, *arrays with B in front) -> outputs by name."""
    inputs: dict[str, jax.ShapeDtypeStruct]
    """By name, without B."""


def export_model(trained: Trained, folder: str | Path, licence: str = "", with_onnx: bool = True) -> dict:
    """Write the network into a new folder as all that its task has; gives the record that export.json holds.

    Always model.safetensors (float16), which prediction reads, and StableHLO of jax.export, one file, or one for each
    size of picture of a detector; of a classifier model.onnx unless `with_onnx` is False. The folder has its name when
    every file's outputs on real pictures have been compared with the network's. ValueError where one differs too much,
    or where nobody knows the `licence` of the training data; ModuleNotFoundError where ONNX' packages are absent.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; remove it or name another")
    classifies = trained.config.task == "classification"
    if classifies and with_onnx:
        check_onnx_installed()
    licence = licence or known_licence(trained)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(trained, partial / SMALL_FILE, licence)
        if classifies:
            files, checked_on = fill_classifier(trained, partial, licence, with_onnx)
        else:
            files, checked_on = fill_detector(trained, partial)
        record = {
            "task": trained.config.task,
            "class_names": trained.data.class_names,
            "checked_on": checked_on,
            "files": files,
            "licence": licence,
            "started_from": Path(trained.config.init_from).name,
            "about": {name: value for name, value in trained.about.items() if name != "licence"},
            "jax": version("jax"),
        }
        (partial / "export.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        (partial / "README.md").write_text(describe(record), encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return record


def check_onnx_installed() -> None:
    """ModuleNotFoundError, with the remedy, where ONNX cannot be written and checked."""
    if absent := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"no package {' and no '.join(absent)}: pip install 'affect_jax[export]', or leave ONNX out with --noonnx"
        )


def known_licence(trained: Trained) -> str:
    """What the licence of the training data allows: by the model file, or by the data set; ValueError where unknown."""
    name = trained.config.data.name
    licence = trained.about.get("licence") or getattr(find_dataset(name), "LICENCE", "")
    if not licence:
        raise ValueError(f"what may be done with a model trained on {name!r}? Say it by --licence='...'")
    return licence


def fill_classifier(trained: Trained, folder: Path, licence: str, with_onnx: bool) -> tuple[dict, str]:
    """Check a classifier's small file, write and check the others: their records, and what all were checked on."""
    interface = classifier_interface(in_float32(trained))
    checked_on, faces = faces_to_check(trained)
    expected = outputs(interface.function(trained.variables, faces))
    files = {}

    def check(name: str, found: Outputs, tolerance: str) -> None:
        files[name] = accept(folder / name, probability_differences(expected, found), tolerance)

    again = read(folder / SMALL_FILE).variables
    check(SMALL_FILE, outputs(interface.function(again, faces)), "float16")
    (folder / "model.stablehlo").write_bytes(to_stablehlo(interface, trained.variables))
    check("model.stablehlo", outputs(read_stablehlo(folder / "model.stablehlo").call(faces)), "float32")
    files["model.stablehlo"]["inputs"] = described(interface)
    if with_onnx:
        write_onnx(interface, trained, folder / "model.onnx", licence)
        check("model.onnx", run_onnx(folder / "model.onnx", faces), "float32")
        files["model.onnx"]["inputs"] = described(interface)
    return files, checked_on


def fill_detector(trained: Trained, folder: Path) -> tuple[dict, str]:
    """The same of a detector, of which there is no ONNX."""
    again = read(folder / SMALL_FILE).variables
    checked_on, split = scenes_to_check(trained)
    files, halves = {}, []
    data = trained.config.data
    for height, width in data.eval_buckets or data.buckets:
        interface = detector_interface(in_float32(trained), (height, width))
        batch = next(padded_box_batches(split, NUM_PICTURES, ((height, width),)))
        arrays = [batch["image"], batch["image_size"].astype(np.int32)]
        expected = outputs(interface.function(trained.variables, *arrays))
        halves.append(detection_differences(expected, outputs(interface.function(again, *arrays))))
        name = f"model_{height}x{width}.stablehlo"
        (folder / name).write_bytes(to_stablehlo(interface, trained.variables))
        found = outputs(read_stablehlo(folder / name).call(*arrays))
        files[name] = accept(folder / name, detection_differences(expected, found), "float32")
        files[name]["inputs"] = described(interface)
    worst = {name: max(one[name] for one in halves) for name in halves[0]}
    return {SMALL_FILE: accept(folder / SMALL_FILE, worst, "float16"), **files}, checked_on


def in_float32(trained: Trained) -> Trained:
    """The network in the arithmetic that every platform has."""
    config = trained.config.copy_and_resolve_references()
    config.dtype = "float32"
    return trained._replace(config=config)


def classifier_interface(trained: Trained) -> Interface:
    """Faces uint8 [B, H, W, C] to probabilities [B, K], and valence_arousal [B, 2] of a network with that head."""
    predict = compiled_predict(trained)
    names = {"probabilities": "probs"}
    if trained.config.valence_arousal_weight > 0:
        names["valence_arousal"] = "valence_arousal"

    def classify(variables: dict, faces: jax.Array) -> dict[str, jax.Array]:
        predicted = predict(variables, {"image": faces})
        return {name: predicted[inner] for name, inner in names.items()}

    return Interface(classify, {"faces": jax.ShapeDtypeStruct(trained.data.image_shape, np.uint8)})


def detector_interface(trained: Trained, bucket: tuple[int, int]) -> Interface:
    """Pictures uint8 [B, H, W, 3] and sizes int32 [B, 2] of what is picture in them to detections.

    These are boxes float32 [B, D, 4], scores float32 [B, D], falling, label int32 [B, D] and valid bool [B, D].
    """
    compiled = compiled_predict(trained)

    def detect(variables: dict, pictures: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        return compiled(variables, {"image": pictures, "image_size": sizes})["detections"]

    inputs = {
        "pictures": jax.ShapeDtypeStruct((*bucket, 3), np.uint8),
        "sizes": jax.ShapeDtypeStruct((2,), np.int32),
    }
    return Interface(detect, inputs)


def to_stablehlo(interface: Interface, variables: dict) -> bytes:
    """The function with its variables inside, as jax.export writes it: for all PLATFORMS, B open."""

    def one(*arrays: jax.Array) -> dict[str, jax.Array]:
        # Behind the barrier XLA takes the variables for variable: it would compute all that follows from them alone, as
        # Winograd's kernels, while it compiles, for minutes.
        results = interface.function(lax.optimization_barrier(variables), *(array[None] for array in arrays))
        return jax.tree.map(lambda result: result[0], results)

    (batch,) = export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in interface.inputs.values()]
    # mapped over the batch: a network sees a batch of 1, where a strided slice of an open batch would be a gather
    return bytes(export.export(jax.jit(jax.vmap(one)), platforms=PLATFORMS)(*inputs).serialize())


def read_stablehlo(path: Path) -> export.Exported:
    """The function in a file of to_stablehlo."""
    return export.deserialize(bytearray(path.read_bytes()))


def write_onnx(interface: Interface, trained: Trained, path: Path, licence: str) -> None:
    """A classifier as ONNX, checked for its form; class names, source and licence are in its metadata."""
    import onnx

    from affect_jax.export.onnx_graph import to_onnx

    ((name, face),) = interface.inputs.items()
    model = to_onnx(lambda faces: interface.function(trained.variables, faces), name, face.shape, face.dtype)
    class_names = json.dumps(trained.data.class_names)
    about = {"class_names": class_names, "source": trained.about["source"], "licence": licence}
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def run_onnx(path: Path, faces: np.ndarray) -> Outputs:
    """What onnxruntime makes of the faces, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"faces": faces}), strict=True))


def faces_to_check(trained: Trained) -> tuple[str, np.ndarray]:
    """Faces uint8 [N, H, W, C] of the run's val split, drawn ones where it is not at hand; and what they are called."""
    shape = trained.data.image_shape
    try:
        split = build_task(trained.config).open_split("val")
        if tuple(split.image_shape) == tuple(shape):
            places = np.unique(np.linspace(0, len(split) - 1, NUM_FACES).astype(int))
            return f"{len(places)} faces of {trained.config.data.name}, val", split.read(places)["image"]
    except FileNotFoundError:
        pass  # a model goes where its data does not
    drawn = open_split("drawn_faces", "val", num_examples=NUM_FACES).read(np.arange(NUM_FACES))["image"]
    return f"{NUM_FACES} drawn faces", np.stack([face_input(face.repeat(3, axis=-1), shape) for face in drawn])


def scenes_to_check(trained: Trained) -> tuple[str, object]:
    """A split of pictures: the run's val, drawn scenes where it is not at hand; and what its first ones are called."""
    try:
        split, name = build_task(trained.config).open_split("val"), f"pictures of {trained.config.data.name}, val"
    except FileNotFoundError:
        split, name = open_split("drawn_scenes", "val", num_examples=NUM_PICTURES), "drawn scenes"
    return f"{min(NUM_PICTURES, len(split))} {name}", split


def outputs(arrays: dict[str, jax.Array]) -> Outputs:
    """On the host."""
    return {name: np.asarray(value) for name, value in jax.device_get(arrays).items()}


def probability_differences(expected: Outputs, found: Outputs) -> dict[str, float]:
    """The largest difference in each output."""
    return {name: float(np.abs(found[name] - value).max()) for name, value in expected.items()}


def detection_differences(expected: Outputs, found: Outputs) -> dict[str, float]:
    """The largest difference of a clear detection from the one of `found` that overlaps it most.

    In "scores" and in "overlap" (1 - IoU). ValueError where nothing is found in any picture.
    """
    scores, overlaps = [], []
    for row, valid in enumerate(expected["valid"]):
        clear = valid & ((expected["scores"][row] >= CLEAR_SCORE) | (np.arange(len(valid)) == 0))
        iou = np.asarray(box_iou(expected["boxes"][row], found["boxes"][row])) * found["valid"][row]
        scores.append(np.abs(expected["scores"][row] - found["scores"][row][iou.argmax(1)])[clear])
        overlaps.append(1 - iou.max(1)[clear])
    if not np.concatenate(scores).size:
        raise ValueError("the network finds nothing in the pictures that its files are checked on: train it first")
    return {"scores": float(np.concatenate(scores).max()), "overlap": float(np.concatenate(overlaps).max())}


def accept(path: Path, differences: dict[str, float], tolerance: str) -> dict:
    """The record of a file; ValueError where it differs more from the network than its kind may."""
    allowed = {name: TOLERANCES[tolerance][name] for name in differences}
    if too_large := [name for name, value in differences.items() if not value <= allowed[name]]:
        figures = ", ".join(f"{name} by {differences[name]:.3g}, allowed are {allowed[name]:g}" for name in too_large)
        raise ValueError(f"{path.name} differs from the network: {figures}; nothing was written")
    return {"bytes": path.stat().st_size, "largest_difference": differences, "tolerance": allowed}


def described(interface: Interface) -> dict:
    """Shapes and dtypes of the inputs, for export.json."""
    return {
        name: {"shape": ["batch", *value.shape], "dtype": str(value.dtype)} for name, value in interface.inputs.items()
    }


def describe(record: dict) -> str:
    """README.md of an exported folder: what is in it, how far it can be trusted, and how each file is used."""
    classifies = record["task"] == "classification"
    start, evaluations = record["started_from"], record["about"].get("evaluations", {})
    lines = [
        f"# {record['about']['source']}",
        "",
        f"{'Names the expression of faces' if classifies else 'Finds'}: {', '.join(record['class_names'])}.",
        f"Licence of the training data: {record['licence']}.",
        *([f"Training started from {start}, whose data has a licence of its own."] if start else []),
        "",
        *(f"- {name}: {shown_metrics(metrics)}" for name, metrics in evaluations.items()),
        "",
        "| file | MB | largest difference from the network |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in table(record)),
        "",
        f"Compared on {record['checked_on']}. export.json has all of this, and how the run was made.",
        "",
        CLASSIFIER_INPUT if classifies else DETECTOR_INPUT,
        "Any number goes in at once. `model.safetensors` is for `affect_jax.predict.load` and scripts/predict.py.",
    ]
    for name, file in record["files"].items():
        if "inputs" in file:
            lines += ["", *usage(name, file["inputs"], "probabilities" if classifies else "boxes")]
    lines += [
        "",
        f"StableHLO was written by jax {record['jax']}, runs on {', '.join(PLATFORMS)} and needs jax alone."
        " jax promises to read such a file for six months; scripts/export.py makes it anew from `model.safetensors`.",
    ]
    return "\n".join(lines) + "\n"


CLASSIFIER_INPUT = (
    "A face is cut out as a square, a tenth of its box's side added on each side, and scaled to the size below: uint8,"
    " RGB, or gray where there is one channel. Probabilities are in the order of the classes above."
)
DETECTOR_INPUT = (
    "A picture (uint8, RGB) is scaled, its aspect kept, until it fits the size below, and lies at the upper left,"
    " zeros right of it and below; `sizes` has its (height, width) there. `boxes` are [x1, y1, x2, y2] in these pixels:"
    " divide them by the scale. `scores` and `label` (0 the first class) are theirs; rows not `valid` are padding."
)


def usage(name: str, inputs: dict, output: str) -> list[str]:
    """Lines of Markdown with a program that calls the file."""
    arrays = [f"{key} = np.zeros({(2, *one['shape'][1:])}, np.{one['dtype']})" for key, one in inputs.items()]
    if name.endswith(".onnx"):
        given = ", ".join(f'"{key}": {key}' for key in inputs)
        program = [
            *("import numpy as np", "import onnxruntime", "", f'session = onnxruntime.InferenceSession("{name}")'),
            *(*arrays, f'print(session.run(["{output}"], {{{given}}})[0])'),
        ]
    else:
        program = [
            *("import numpy as np", "from jax import export", ""),
            f'model = export.deserialize(bytearray(open("{name}", "rb").read()))',
            *(*arrays, f'print(model.call({", ".join(inputs)})["{output}"])'),
        ]
    return ["```python", *program, "```"]


def table(record: dict) -> list[tuple[str, str, str]]:
    """Name, size and differences of each file, for people."""
    return [
        (
            name,
            f"{file['bytes'] / 1e6:.1f}",
            ", ".join(
                f"{output} {value:.2g} (allowed {file['tolerance'][output]:g})"
                for output, value in file["largest_difference"].items()
            ),
        )
        for name, file in record["files"].items()
    ]


def shown_metrics(metrics: dict) -> str:
    """The figures of an evaluation that are single ones, for people."""
    figures = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )
