"""The page of several runs."""

import json
from pathlib import Path

import numpy as np
from html_page import Page

from affect_jax.config import classification_config
from affect_jax.evaluate.classification import classification_metrics
from affect_jax.runs.comparison import write_runs
from affect_jax.runs.workdir import Workdir, claim
from affect_jax.tasks.interface import DataFacts

RESULTS = Path(__file__).parents[2] / "results"
NAMES = ("angry", "happy", "sad")


def metrics(seed=0):
    rng = np.random.default_rng(seed)
    found = classification_metrics(rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60), NAMES)
    return {**found, "tta": "none", "checkpoint_step": 20}


def write_run(path, records, evaluations, **fields):
    """Write the folder of a run: its config, records with an incomplete last line, and its evaluations."""
    config = classification_config()
    config.update(fields)
    claim(Workdir(path), config, DataFacts(NAMES, (48, 48, 1)), {})
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3')
    if evaluations:
        (path / "metrics.json").write_text(json.dumps(evaluations))


def compare(tmp_path, *folders):
    write_runs(tmp_path / "all.html", folders)
    return Page(tmp_path / "all.html")


def test_records_without_a_config_are_compared_separately_by_task(tmp_path):
    names = ("fer_finetune", "scenes_rcnn_demo", "fer_vgg_best_two_cores")
    page = compare(tmp_path, *(RESULTS / name for name in names))
    assert page.stands_alone
    rows = {(row[0].split()[-1], *row[1:3]) for row in page.rows}
    for name, score in zip(names, ("accuracy", "ap50", "accuracy"), strict=True):
        for evaluation in json.loads((RESULTS / name / "metrics.json").read_text()).values():
            low, high = evaluation[f"{score}_ci95"]
            assert (name, f"{evaluation[score]:.2%}", f"{low:.2%} to {high:.2%}") in rows
    assert "Runs of different tasks are shown separately" in page.text
    assert "only a record of the run is kept" in page.text


def test_unfinished_runs_and_differences_between_configs_are_shown(tmp_path):
    records = [
        {"step": 10, "epoch": 0.59, "train/loss": 1.2, "train/accuracy": 0.4, "seconds": 60.0},
        {"step": 20, "epoch": 1.0, "val/loss": 1.1, "val/accuracy": 0.45, "seconds": 120.0},
    ]
    write_run(tmp_path / "<done>", records, {"val": metrics()})
    write_run(tmp_path / "going", records[:1], {}, seed=7)
    write_run(tmp_path / "begun", [], {}, batch_size=32)
    write_run(tmp_path / "other", records, {"val": metrics(3)}, total_epochs=1.0)
    page = compare(tmp_path, *(tmp_path / name for name in ("<done>", "going", "begun", "other")))
    assert page.stands_alone
    assert "not evaluated yet: going, begun." in page.text
    assert "val of <done>" in page.text and "evaluations of the other runs have other images or classes" in page.text
    assert ["seed", "0", "7", "0", "0"] in page.rows and ["batch_size", "64", "64", "32", "64"] in page.rows
    assert [row[3] for row in page.rows if row[0][2:] in ("going", "other")][:2] == ["0.5 of 120", "1 of 1"]
    assert compare(tmp_path, tmp_path / "begun").stands_alone


def test_runs_on_the_same_images_are_tested_against_the_first(tmp_path):
    labels = np.arange(12) % 3
    correct = {"first": labels, "second": np.where(np.arange(12) < 5, (labels + 1) % 3, labels)}
    for name, predicted in correct.items():
        probs = np.eye(3)[predicted]
        evaluation = {**classification_metrics(probs, labels, NAMES), "tta": "none", "checkpoint_step": 20}
        write_run(tmp_path / name, [], {"val": evaluation})
        (tmp_path / name / "predictions").mkdir()
        np.savez(tmp_path / name / "predictions" / "val.npz", labels=labels, probs=probs)
    page = compare(tmp_path, tmp_path / "first", tmp_path / "second")
    heads = ["Run", "Difference, points", "95 % interval", "Only this run correct", "Only the first run correct"]
    test = page.rows[page.rows.index([*heads, "p-value"]) + 1]
    assert [test[0][2:], test[1], *test[3:]] == ["second", "-41.67", "0", "5", "0.062"]
