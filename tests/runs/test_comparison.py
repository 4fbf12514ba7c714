"""Comparison of runs from the files in their folders. The page of a comparison is tested with the reports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from affect_jax.config import classification_config, detection_config
from affect_jax.data.split import BoxesSplit
from affect_jax.runs.comparison import compare_runs, differing, short_names, write_runs
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import Evaluation


def test_runs_get_the_shortest_names_that_differ():
    assert list(short_names(["runs/a", "elsewhere/b"])) == ["a", "b"]
    assert list(short_names(["runs/C3/seed0", "runs/C4/seed0"])) == ["C3/seed0", "C4/seed0"]
    with pytest.raises(ValueError, match="given twice"):
        short_names(["runs/a", "runs/../runs/a"])


def test_runs_that_cannot_be_read_are_named_and_the_others_kept(tmp_path):
    good, page = Path(__file__).parents[2] / "results" / "fer_vgg", tmp_path / "page.html"
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        write_runs(page, [tmp_path])
    assert not page.exists()
    (comparison,), problems = write_runs(page, [tmp_path, good, tmp_path / "none"])
    assert [run.name for run in comparison.runs] == ["fer_vgg"] and page.exists()
    assert "metrics.jsonl, line 1 is damaged" in problems[0] and "none is not the folder of a run" in problems[1]


@pytest.mark.parametrize("content", ["[]", '{"val": {"accuracy": 0.5}}', '{"val": 1}'])
def test_a_run_with_other_metrics_is_named_and_the_others_kept(tmp_path, content):
    good = Path(__file__).parents[2] / "results" / "fer_vgg"
    other = shutil.copytree(good, tmp_path / "other")
    (other / "metrics.json").write_text(content)
    (comparison,), problems = write_runs(tmp_path / "page.html", [other, good])
    assert [run.name for run in comparison.runs] == ["fer_vgg"]
    assert str(other / "metrics.json") in problems[0]


def test_fields_that_differ_have_the_value_of_every_run():
    settings = [
        {"seed": 0, "model": {"a": 1, "b": 2}},
        {"seed": 0, "model": {"a": 3, "b": 2}},
        {"seed": 1, "model": {"a": 1}},
    ]
    assert differing(settings) == {"model.a": [1, 3, 1], "model.b": [2, 2, "absent"], "seed": [0, 0, 1]}
    assert differing(settings[:1]) == differing([]) == {}


class Labels:
    """A split of a classifier: its labels."""

    def __init__(self, labels, class_names=("a", "b", "c"), fingerprint=""):
        self.arrays = {"label": np.asarray(labels)}
        self.class_names, self.fingerprint = class_names, fingerprint

    def __len__(self):
        return len(self.arrays["label"])


class Boxes(BoxesSplit):
    """A split of a detector: its ground truth."""

    class_names = ("face",)

    def __init__(self, truths):
        self.truths = truths

    def __len__(self):
        return len(self.truths)

    def annotations(self, image):
        return self.truths[image]


def write_run(path, config, predictions, split):
    """Write config.json and the predictions on val of a run."""
    (path / "predictions").mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"config": json.loads(config.to_json())}))
    evaluation = Evaluation("val", {}, split, {})
    build_task(config).write_predictions(path / "predictions" / "val.npz", predictions, evaluation, step=5)


def write_classifier(path, labels, predicted, **identity):
    predictions = {"probs": np.eye(3)[predicted], "valence_arousal": np.zeros((len(labels), 0))}
    write_run(path, classification_config(), predictions, Labels(labels, **identity))


def write_detector(path, truths, detections):
    write_run(path, detection_config(), {"detections": detections, "losses": {"loss": 0.1}}, Boxes(truths))


def test_classifiers_are_compared_on_the_images_that_only_one_has_right(tmp_path):
    labels = np.arange(12) % 3
    write_classifier(tmp_path / "a", labels, labels)
    write_classifier(tmp_path / "b", labels, np.where(np.arange(12) < 5, (labels + 1) % 3, labels))
    found = compare_runs(tmp_path / "a", tmp_path / "b", "val")
    assert (found["only_a"], found["only_b"]) == (5, 0)
    assert found["difference"] == pytest.approx(5 / 12)
    assert found["p_value"] == pytest.approx(2 * 0.5**5)


def test_runs_on_other_images_or_without_predictions_are_refused(tmp_path):
    write_classifier(tmp_path / "a", [0, 1], np.array([0, 1]))
    write_classifier(tmp_path / "b", [1, 1], np.array([0, 1]))
    with pytest.raises(ValueError, match="the images are not the same: their labels differ"):
        compare_runs(tmp_path / "a", tmp_path / "b", "val")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="only a record of the run is kept"):
        compare_runs(tmp_path / "a", tmp_path / "b", "test")
    (tmp_path / "b" / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"evaluate.py --workdir=.*/b --split=test --tta=flip"):
        compare_runs(tmp_path / "b", tmp_path / "a", "test_tta_flip")


def test_predictions_of_another_checkpoint_than_the_metrics_are_refused(tmp_path):
    for name in ("a", "b"):
        write_classifier(tmp_path / name, [0, 1], np.array([0, 1]))  # of step 5
        (tmp_path / name / "metrics.json").write_text(json.dumps({"val": {"checkpoint_step": 5}}))
    compare_runs(tmp_path / "a", tmp_path / "b", "val")
    (tmp_path / "b" / "metrics.json").write_text(json.dumps({"val": {"checkpoint_step": 3}}))
    with pytest.raises(
        ValueError, match=r"b/predictions/val.npz is of checkpoint 5, the metrics of 3: run\n .*--split"
    ):
        compare_runs(tmp_path / "a", tmp_path / "b", "val")


@pytest.mark.parametrize(
    ("identity", "both"),
    [
        ({"class_names": ("b", "a", "c")}, "the classes a, b, c and the classes b, a, c"),
        ({"fingerprint": "8f3e"}, "images or labels with the fingerprints 77aa and 8f3e"),
    ],
)
def test_runs_on_data_sets_with_the_same_labels_but_another_identity_are_refused(tmp_path, identity, both):
    write_classifier(tmp_path / "a", [0, 1], np.array([0, 1]), fingerprint="77aa")
    write_classifier(tmp_path / "b", [0, 1], np.array([0, 1]), **identity)
    with pytest.raises(ValueError, match=f"val of .*a and of .*b: the images are not the same: they have {both}"):
        compare_runs(tmp_path / "a", tmp_path / "b", "val")
    write_classifier(tmp_path / "b", [0, 1], np.array([0, 1]))  # prepared by an older version, without fingerprint
    assert compare_runs(tmp_path / "a", tmp_path / "b", "val")["difference"] == 0


def detected(counts, scores):
    """Ground truth with `counts` boxes in a row per image, and exact detections of it with one of `scores`."""
    boxes = [
        np.stack([np.array([20.0 * i, 0, 20 * i + 10, 10]) for i in range(count)] or [np.zeros(4)])[:count]
        for count in counts
    ]
    truths = [
        {"boxes": b.astype(np.float32), "label": np.zeros(len(b), int), "ignore": np.zeros(len(b), bool)} for b in boxes
    ]
    found = [
        {"boxes": b.astype(np.float32), "scores": np.full(len(b), score, np.float32), "label": np.zeros(len(b), int)}
        for b, score in zip(boxes, scores, strict=True)
    ]
    return truths, found


def test_predictions_of_a_detector_are_read_unchanged(tmp_path):
    truths, detections = detected([2, 0, 3, 0], [0.9, 0.1, 0.3, 0.2])
    write_detector(tmp_path, truths, detections)
    step, predictions = build_task(detection_config()).read_predictions(tmp_path / "predictions" / "val.npz")
    assert step == 5 and predictions["losses"] == {"loss": 0.1}
    for written, read in zip(detections, predictions["detections"], strict=True):
        assert written.keys() == read.keys()
        for name in written:
            np.testing.assert_array_equal(written[name], read[name])


def test_detectors_are_compared_by_their_average_precision(tmp_path):
    truths, found = detected([1] * 8, [0.9] * 8)
    half = [{name: values[: image % 2] for name, values in one.items()} for image, one in enumerate(found)]
    write_detector(tmp_path / "all", truths, found)
    write_detector(tmp_path / "half", truths, half)
    compared = compare_runs(tmp_path / "all", tmp_path / "half", "val")
    low, high = compared["difference_ci95"]
    assert compared["difference"] == pytest.approx(0.5) and 0 < low < 0.5 < high <= 1
    write_detector(tmp_path / "half", [*truths[:-1], {**truths[-1], "label": np.array([1])}], found)
    with pytest.raises(ValueError, match="the images are not the same: their true boxes differ"):
        compare_runs(tmp_path / "all", tmp_path / "half", "val")
    write_detector(tmp_path / "half", truths[:-1], found[:-1])
    with pytest.raises(ValueError, match="the images are not the same: they have 8 and 7 images"):
        compare_runs(tmp_path / "all", tmp_path / "half", "val")
    np.savez(tmp_path / "half" / "predictions" / "val.npz", count=[1], scores=[0.5])
    with pytest.raises(ValueError, match="older version, without true boxes; evaluate the run again"):
        compare_runs(tmp_path / "all", tmp_path / "half", "val")
