"""Write the README.md of an exported model: its contents, the measured differences, and how to call each file."""

from typing import NamedTuple

from affect_jax.export.model_card import tables
from affect_jax.runs.text import markdown_table
from affect_jax.tasks import TASKS


class TaskText(NamedTuple):
    """Text about the models of a task."""

    purpose: str
    input_format: str
    main_output: str
    """Name of the output that the example programs print."""


TEXTS = {
    "classification": TaskText(
        "Classifies the expression of faces",
        "Crop a face as a square, with a tenth of the side of its box added on each side, and scale it to the size"
        " below: uint8, RGB, or gray for one channel. Probabilities are in the order of the classes above. The"
        " batch may have any size.",
        "probabilities",
    ),
    "detection": TaskText(
        "Detects",
        "Scale an image (uint8, RGB), keeping its aspect ratio, to fit the size below, and pad it with zeros at the"
        " right and the bottom; `sizes` is its (height, width) without padding. `boxes` are [x1, y1, x2, y2] in these"
        " pixels: divide them by the scale. `label` 0 is the first class; rows that are not `valid` are padding."
        " StableHLO takes a batch of any size, ONNX one image.",
        "boxes",
    ),
}


EXPOSURE = (
    "The files do not brighten dark images, as the network's own prediction does. Before scaling, call"
    " `affect_jax.data.transforms.raise_exposure(image, {:g})`."
)


def describe(record: dict) -> str:
    """Return the README.md of an exported folder: its contents, the measured differences, and how to call each file."""
    task, presentation = TEXTS[record["task"]], TASKS[record["task"]].presentation
    start, evaluations = record["started_from"], record["about"].get("evaluations", {})
    lines = [
        f"# {record['about']['source']}",
        "",
        f"{task.purpose}: {', '.join(record['class_names'])}.",
        f"Licence of the training data: {record['licence']}.",
        *([f"Training started from {start}, whose data has a licence of its own."] if start else []),
        "",
        *(block + "\n" for block in (tables(evaluations, presentation) if evaluations else [])),
        markdown_table(("file", "MB", "largest difference from the network"), file_rows(record)),
        "",
        f"Compared on {record['checked_on']}. export.json holds all of this and a description of the run.",
        "",
        task.input_format,
        *([EXPOSURE.format(record["exposure_level"])] if record["exposure_level"] else []),
        "`model.safetensors` is for `affect_jax.predict.load` and scripts/predict.py.",
    ]
    for name, file in record["files"].items():
        if "inputs" in file:
            lines += ["", *usage(name, file["inputs"], task.main_output)]
    lines += [
        "",
        f"StableHLO was written by jax {record['jax']}, runs on {', '.join(record['platforms'])} and needs only jax."
        " jax guarantees to read the file for six months; scripts/export.py rebuilds it from `model.safetensors`.",
    ]
    return "\n".join(lines) + "\n"


def usage(name: str, inputs: dict, output: str) -> list[str]:
    """Return lines of Markdown with a program that calls the file."""
    arrays = []
    for key, given in inputs.items():
        batch, *shape = given["shape"]
        arrays.append(f"{key} = np.zeros({(2 if batch == 'batch' else batch, *shape)}, np.{given['dtype']})")
    if name.endswith(".onnx"):
        feed = ", ".join(f'"{key}": {key}' for key in inputs)
        program = [
            *("import numpy as np", "import onnxruntime", "", f'session = onnxruntime.InferenceSession("{name}")'),
            *(*arrays, f'print(session.run(["{output}"], {{{feed}}})[0])'),
        ]
    else:
        program = [
            *("import numpy as np", "from jax import export", ""),
            f'model = export.deserialize(bytearray(open("{name}", "rb").read()))',
            *(*arrays, f'print(model.call({", ".join(inputs)})["{output}"])'),
        ]
    return ["```python", *program, "```"]


def file_rows(record: dict) -> list[tuple[str, str, str]]:
    """Return name, size and differences of each file as text."""
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
