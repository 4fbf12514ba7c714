"""The notebooks run from top to bottom, as they are but for the cell of parameters."""

import base64
import json
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from affect_jax.runs.training import train_and_evaluate

ROOT = Path(__file__).parents[1]


def run(name, parameters: str):
    """The notebook, run in the project's root with other parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source += "\n" + parameters
    return NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()


def pictures(notebook) -> list[np.ndarray]:
    """What its cells show, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [cv2.imdecode(np.frombuffer(base64.b64decode(png), np.uint8), cv2.IMREAD_COLOR) for png in shown]


@pytest.mark.slow
def test_check_intermediate_shows_maps_activations_and_augmentations_of_a_run(tiny_config, tmp_path):
    train_and_evaluate(tiny_config, tmp_path / "run")
    shown = pictures(run("check_intermediate", f"MODEL = {str(tmp_path / 'run')!r}"))
    assert len(shown) == 4
    assert all(picture.std() > 10 for picture in shown)


@pytest.mark.slow
def test_colab_notebook_trains_evaluates_and_packs_the_demo(tmp_path):
    small = "'--config.model.widths=(4,8)' '--config.model.dense=(8,)' --config.total_epochs=0.2"
    small += " --config.optim.warmup_epochs=0.0 --config.data.options.num_examples.train=640"
    notebook = run("colab_tpu", f"OPTIONS = {small!r}\nWORKDIR = {str(tmp_path / 'run')!r}")
    try:
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        text = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output)
        assert f"accuracy {metrics['val']['accuracy']:.2%}" in text
        assert len(pictures(notebook)) == 2
        assert (ROOT / "run.zip").stat().st_size > 10_000
    finally:
        (ROOT / "run.zip").unlink(missing_ok=True)
