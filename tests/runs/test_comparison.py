"""What runs leave is read again and compared; what the page of it looks like is in tests/evaluate/test_report.py."""

import numpy as np
import pytest

from affect_jax.runs.comparison import compare_runs, differing, short_names
from affect_jax.runs.evaluation import read_detections, write_detections


def test_runs_are_called_by_as_little_of_their_path_as_tells_them_apart():
    assert list(short_names(["runs/a", "elsewhere/b"])) == ["a", "b"]
    assert list(short_names(["runs/C3/seed0", "runs/C4/seed0"])) == ["C3/seed0", "C4/seed0"]
    with pytest.raises(ValueError, match="given twice"):
        short_names(["runs/a", "runs/../runs/a"])


def test_fields_that_differ_have_the_value_of_every_run():
    settings = [
        {"seed": 0, "model": {"a": 1, "b": 2}},
        {"seed": 0, "model": {"a": 3, "b": 2}},
        {"seed": 1, "model": {"a": 1}},
    ]
    assert differing(settings) == {"model.a": [1, 3, 1], "model.b": [2, 2, "absent"], "seed": [0, 0, 1]}
    assert differing(settings[:1]) == differing([]) == {}


def leave_predictions(path, labels, predicted):
    (path / "predictions").mkdir(parents=True)
    np.savez(path / "predictions" / "val.npz", labels=labels, probs=np.eye(3)[predicted])


def test_two_runs_are_compared_on_the_pictures_that_one_alone_has_right(tmp_path):
    labels = np.arange(12) % 3
    leave_predictions(tmp_path / "a", labels, labels)
    leave_predictions(tmp_path / "b", labels, np.where(np.arange(12) < 5, (labels + 1) % 3, labels))
    found = compare_runs(tmp_path / "a", tmp_path / "b", "val")
    assert (found["only_a"], found["only_b"]) == (5, 0)
    assert found["difference"] == pytest.approx(5 / 12)
    assert found["p_value"] == pytest.approx(2 * 0.5**5)


def test_runs_on_other_pictures_or_without_predictions_are_refused_in_words(tmp_path):
    leave_predictions(tmp_path / "a", np.array([0, 1]), np.array([0, 1]))
    leave_predictions(tmp_path / "b", np.array([1, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="not the same pictures: their labels differ"):
        compare_runs(tmp_path / "a", tmp_path / "b", "val")
    (tmp_path / "b" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match="only a record of the run is kept"):
        compare_runs(tmp_path / "a", tmp_path / "b", "test")
    with pytest.raises(FileNotFoundError, match=r"evaluate.py --workdir=.*/b --split=test --tta=flip"):
        compare_runs(tmp_path / "b", tmp_path / "a", "test_tta_flip")


def detected(counts, scores):
    """Truths and detections of pictures with `counts` boxes in a row, found exactly, all with one of `scores`."""
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


def test_detections_and_true_boxes_come_back_picture_by_picture(tmp_path):
    pictures = detected([2, 0, 3, 0], [0.9, 0.1, 0.3, 0.2])
    write_detections(tmp_path / "val.npz", *pictures)
    for written, read in zip(pictures, read_detections(tmp_path / "val.npz"), strict=True):
        for one, again in zip(written, read, strict=True):
            assert one.keys() == again.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], again[name])


def test_two_detectors_are_compared_by_their_area_on_the_same_pictures(tmp_path):
    truths, found = detected([1] * 8, [0.9] * 8)
    half = [{name: values[: picture % 2] for name, values in one.items()} for picture, one in enumerate(found)]
    for name, detections in (("all", found), ("half", half)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        write_detections(tmp_path / name / "predictions" / "val.npz", truths, detections)
    compared = compare_runs(tmp_path / "all", tmp_path / "half", "val")
    low, high = compared["difference_ci95"]
    assert compared["difference"] == pytest.approx(0.5) and 0 < low < 0.5 < high <= 1
    write_detections(tmp_path / "half" / "predictions" / "val.npz", truths[:-1], found[:-1])
    with pytest.raises(ValueError, match="not the same pictures: their true boxes differ"):
        compare_runs(tmp_path / "all", tmp_path / "half", "val")
    np.savez(tmp_path / "half" / "predictions" / "val.npz", count=[1], scores=[0.5])
    with pytest.raises(ValueError, match="older version, without true boxes; evaluate the run again"):
        compare_runs(tmp_path / "all", tmp_path / "half", "val")
