"""The notebooks run from top to bottom; only the cell with the parameters is changed."""

import base64
import json
import re
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def run(name, parameters: str):
    """Run a notebook in the root of the checkout with other parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source += "\n" + parameters
    return NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()


def images(notebook) -> list[np.ndarray]:
    """Return the images that the cells show, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_COLOR) for png in shown]


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The notebook colab_tpu after it ran, and the folder of its run."""
    folder = tmp_path_factory.mktemp("colab") / "run"
    small = "'--config.model.widths=(4,8)' '--config.model.dense=(8,)' --config.total_epochs=0.2"
    small += " --config.optim.warmup_epochs=0.0 --config.data.options.num_examples.train=640"
    return run("colab_tpu", f"OPTIONS = {small!r}\nWORKDIR = {str(folder)!r}"), folder


@pytest.mark.slow
def test_colab_notebook_trains_evaluates_and_packs_the_demo(colab):
    notebook, folder = colab
    archive = ROOT / f"{folder.name}.zip"
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        text = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output)
        assert re.search(rf"Accuracy +{metrics['val']['accuracy']:.2%}", text)
        assert len(images(notebook)) == 2
        assert archive.stat().st_size > 10_000
    finally:
        archive.unlink(missing_ok=True)


@pytest.mark.slow
def test_check_intermediate_shows_feature_maps_activations_and_augmentations_of_a_run(colab):
    shown = images(run("check_intermediate", f"MODEL = {str(colab[1])!r}"))
    assert len(shown) == 4
    assert all(image.std() > 10 for image in shown)
