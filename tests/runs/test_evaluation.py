from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from affect_jax.runs import evaluation
from affect_jax.runs.workdir import Workdir, load_metrics
from affect_jax.tasks.sections import Table


class StandInTask:
    """A task without data, which writes empty predictions."""

    def metrics(self, predictions, evaluation) -> dict:
        return {"accuracy": predictions}

    def write_predictions(self, path, predictions, evaluation, step) -> None:
        np.savez(path)

    def prediction_table(self, predictions, evaluation) -> Table:
        return Table(["image"], [])


def test_evaluations_that_end_at_the_same_time_are_all_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "write_run_report", lambda *arguments: None)
    names = [f"test_{number}" for number in range(64)]

    def record(name: str) -> None:
        about = SimpleNamespace(name=name, about={})
        evaluation.record_evaluation(Workdir(tmp_path), StandInTask(), about, 7, 0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, names))
    recorded = load_metrics(Workdir(tmp_path))
    assert recorded == {name: {"checkpoint_step": 7, "accuracy": 0.5} for name in names}
