import ast
import importlib.util
import inspect
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from affect_jax.train.writers import JsonlWriter, MetricWriter, TensorBoardWriter, read_records


def clu_interface() -> dict[str, list[str]]:
    """The methods of clu's MetricWriter and their arguments, read from its source: importing it needs TensorFlow."""
    folder = Path(importlib.util.find_spec("clu").origin).parent
    tree = ast.parse((folder / "metric_writers" / "interface.py").read_text())
    (writer,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "MetricWriter"]
    methods = [node for node in writer.body if isinstance(node, ast.FunctionDef)]
    return {method.name: [argument.arg for argument in method.args.args] for method in methods}


@pytest.mark.parametrize("writer", [JsonlWriter, TensorBoardWriter])
def test_methods_of_our_writers_have_the_arguments_of_clus(writer):
    interface = clu_interface()
    for name in ("write_scalars", "flush", "close"):
        assert hasattr(MetricWriter, name)
        assert list(inspect.signature(getattr(writer, name)).parameters) == interface[name]


def test_tensorboard_reads_the_scalars_that_were_written(tmp_path):
    writer = TensorBoardWriter(tmp_path, first_step=0)
    writer.write_scalars(3, {"train/loss": 0.5, "val/accuracy": 0.25})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (3, 0.5)


@pytest.mark.parametrize("first_step", [0, 7])
def test_tensorboard_hides_the_steps_of_an_earlier_attempt(tmp_path, first_step):
    for start, steps in ((0, [5, 12, 20]), (first_step, [step for step in (4, 10, 15) if step > first_step])):
        writer = TensorBoardWriter(tmp_path, start)
        for step in steps:
            writer.write_scalars(step, {"train/loss": 0.5})
        writer.close()
        for file in tmp_path.glob("events.*.*"):  # their names have the second, and two attempts begin in one here
            file.rename(tmp_path / f"attempt{len(list(tmp_path.iterdir()))}.tfevents")
    shown = [scalar.step for scalar in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")]
    assert shown == {0: [4, 10, 15], 7: [5, 10, 15]}[first_step]


@pytest.mark.parametrize("line", [b"garbage\n", b"5\n", b'{"loss": 1}\n', b"\xff\xfe\n"])
def test_damaged_line_of_a_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n{"st')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is damaged; restore or remove this line"):
        JsonlWriter(path, first_step=1)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert read_records(path) == [{"step": 1}, {"step": 2}]


def test_record_continues_after_the_first_step_and_drops_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "x": step / 2}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "x')
    writer = JsonlWriter(path, first_step=2)
    writer.write_scalars(3, {"x": 9.0})
    writer.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [{"step": 1, "x": 0.5}, {"step": 2, "x": 1.0}, {"step": 3, "x": 9.0}]
