import ast
import importlib.util
import inspect
import json
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from affect_jax.train.writers import JsonlWriter, TensorBoardWriter


def clu_interface() -> dict[str, list[str]]:
    """Methods of clu's MetricWriter and their arguments, read from its source: importing it wants TensorFlow."""
    folder = Path(importlib.util.find_spec("clu").origin).parent
    tree = ast.parse((folder / "metric_writers" / "interface.py").read_text())
    (writer,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MetricWriter"]
    methods = [node for node in writer.body if isinstance(node, ast.FunctionDef)]
    return {method.name: [argument.arg for argument in method.args.args] for method in methods}


def test_our_writer_has_clus_methods_with_their_arguments():
    wanted = {"write_scalars", "write_images", "write_histograms", "write_texts", "write_hparams", "flush", "close"}
    interface = clu_interface()
    assert wanted <= interface.keys()
    for name in wanted:
        assert list(inspect.signature(getattr(TensorBoardWriter, name)).parameters) == interface[name]


def test_tensorboard_reads_back_what_was_written(tmp_path):
    writer = TensorBoardWriter(tmp_path, first_step=0)
    writer.write_scalars(3, {"train/loss": 0.5, "val/accuracy": 0.25})
    writer.write_images(3, {"faces": np.full((2, 8, 6, 1), 128, np.uint8)})
    writer.write_histograms(3, {"weights": np.arange(10.0)}, {"weights": 5})
    writer.write_texts(3, {"note": "words"})
    writer.write_hparams({"seed": 1})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (3, 0.5)
    tags = events.Tags()
    assert "faces" in tags["images"] and "weights" in tags["histograms"] and "note/text_summary" in tags["tensors"]


def test_record_goes_on_behind_its_first_step_and_drops_a_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "x": step / 2}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "x')
    writer = JsonlWriter(path, first_step=2)
    writer.write_scalars(3, {"x": 9.0})
    writer.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}, {"step": 3, "x": 9.0}]
