"""Runs of a detector on drawn scenes, from config to report."""

import base64
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from processes import config_of, ended, start_processes
from run_records import assert_same_bits, history, saved_state, stop_after
from run_script import fork

from affect_jax.evaluate.detection import detection_metrics
from affect_jax.runs.comparison import compare_runs
from affect_jax.runs.evaluation import evaluate_function, predictions_of
from affect_jax.runs.model_file import load_trained
from affect_jax.runs.training import train_and_evaluate
from affect_jax.tasks import build_task
from affect_jax.train.signals import Interrupted


@pytest.fixture(scope="module")
def finished_run(tiny_detector_config, tmp_path_factory):
    """The folder of a run and the metrics that it returned. Read only."""
    path = tmp_path_factory.mktemp("detector") / "run"
    return path, train_and_evaluate(tiny_detector_config, path)


def test_resumed_run_of_a_detector_equals_an_uninterrupted_run_bit_for_bit(
    finished_run, tiny_detector_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted, match="stopped after step 2 of 6"):
            train_and_evaluate(tiny_detector_config, tmp_path)
    path, straight = finished_run
    assert train_and_evaluate(tiny_detector_config, tmp_path) == straight
    assert_same_bits(saved_state(path, 6), saved_state(tmp_path, 6))
    assert history(tmp_path) == history(path)


def test_record_has_the_four_losses_of_both_splits(finished_run):
    parts = ("objectness", "rpn_box_reg", "classifier", "box_reg")
    for split in ("train", "val"):
        records = [record for record in history(finished_run[0]) if f"{split}/loss" in record]
        for record in records:
            total = sum(record[f"{split}/loss_{part}"] for part in parts)
            assert record[f"{split}/loss"] == pytest.approx(total, rel=1e-5)
    losses = [record["train/loss"] for record in history(finished_run[0]) if "train/loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--tta=flip", "--tta is not an option for detection"),
        ("--peer=centerface", "1 names of published detectors and 0 ONNX files"),
        ("--buckets=640x650", "a bucket is '640x650'; it must be (height, width), multiples of 32, such as 768x1024"),
    ],
)
def test_options_that_do_not_fit_are_refused(finished_run, option, message):
    done = fork("evaluate", f"--workdir={finished_run[0]}", option)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluations_are_recorded_under_their_names_and_the_report_shows_images(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    done = fork("evaluate", f"--workdir={run}", "--dark", "--brighten=clahe")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    plain, dark = metrics["val"], metrics["val_dark_clahe"]
    assert f"drawn_scenes, val, dark, clahe: {plain['num_boxes']} boxes in 4 images" in done.stdout
    assert dark["num_boxes"] == plain["num_boxes"]
    assert dark["losses"] != plain["losses"]
    with np.load(run / "predictions" / "val_dark_clahe.npz") as arrays:
        assert arrays["count"].sum() == len(arrays["scores"]) == len(arrays["boxes"])
        assert len(arrays["count"]) == dark["num_pictures"]
    assert compare_runs(run, finished_run[0], "val") == {"difference": 0.0, "difference_ci95": [0.0, 0.0]}
    report = (run / "report.html").read_text()
    images = [base64.b64decode(text) for text in re.findall(r"data:image/\w+;base64,([^\"']+)", report)]
    drawn = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) for image in images]
    assert len(drawn) >= 3  # curves of losses, precision over recall, and the worst images
    assert all(image.std() > 1 for image in drawn)


def test_evaluation_in_other_buckets_and_on_crops_of_large_faces_is_recorded_under_its_name(
    tiny_detector_config, finished_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    done = fork("evaluate", f"--workdir={run}", "--large_faces", "--buckets=96x96,64x128", "--as_predicted")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    crops = metrics["val_96x96_64x128_large_faces"]
    assert crops["num_pictures"] == crops["num_boxes"] == crops["repeated"]["boxes"] > 0
    assert "drawn_scenes, val, 96x96, 64x128, large_faces" in done.stdout and "Repeated" in done.stdout
    predicted = metrics["val_96x96_64x128_large_faces_as_predicted"]
    assert predicted["num_boxes"] == crops["num_boxes"] and predicted["checkpoint_step"] == crops["checkpoint_step"]
    assert predicted["ap50"] != crops["ap50"] and re.search(r"^ *predict\.py ", done.stdout, re.MULTILINE)
    name = "val_96x96_64x128_large_faces_as_predicted"
    assert compare_runs(run, run, name)["difference"] == 0.0
    task = build_task(tiny_detector_config)
    _, predictions = task.read_predictions(run / "predictions" / f"{name}.npz")
    split = task.evaluation("val", large_faces=True).split
    found = detection_metrics([split.annotations(i) for i in range(len(split))], predictions["detections"], ("face",))
    assert found["ap50"] == predicted["ap50"] and (run / "predictions" / f"{name}.csv").is_file()


def test_published_detector_is_evaluated_on_the_same_images_and_a_model_is_not_recorded(finished_run, shared_data):
    file = shared_data / "weights" / "yunet_n_wider_face.onnx"
    if not file.is_file():
        pytest.skip(f"no real data: {file} is absent")
    recorded = (finished_run[0] / "metrics.json").read_text()
    done = fork("evaluate", f"--model={finished_run[0]}", "--as_predicted", "--peer=yunet", f"--peer_file={file}")
    assert done.returncode == 0, done.stderr
    boxes = json.loads(recorded)["val"]["num_boxes"]
    for name in ("this model", r"predict\.py", "yunet"):
        (row,) = re.findall(rf"^ *{name} .*$", done.stdout, re.MULTILINE)
        assert f" {boxes} " in row
    assert (finished_run[0] / "metrics.json").read_text() == recorded


def test_model_of_a_run_is_named_after_its_folder_also_inside_it(finished_run, monkeypatch):
    monkeypatch.chdir(finished_run[0])
    assert [load_trained(path).about["source"] for path in (finished_run[0], ".")] == ["run", "run"]


@pytest.mark.slow
def test_two_processes_with_a_worker_each_train_a_detector_like_one(finished_run, tmp_path):
    run = tmp_path / "run"
    arguments = (config_of(finished_run[0], tmp_path), f"--workdir={run}", "--config.data.num_workers=1")
    done = ended(start_processes(2, "scripts/train.py", *arguments))
    assert [code for code, _ in done] == [0, 0], done
    assert "step 6/6" in done[0][1] and "step " not in done[1][1]
    one, two = (losses_of_three_steps(path) for path in (finished_run[0], run))
    assert two == pytest.approx(one, rel=2e-3, abs=1e-5)
    assert {name for _, name in one} >= {"train/loss_objectness", "train/loss_box_reg", "val/loss"}


def losses_of_three_steps(run) -> dict[tuple[int, str], float]:
    """Return the losses by step and name; after more steps rounding changes which proposals are selected."""
    records = [record for record in history(run) if record["step"] <= 3]
    return {(r["step"], name): value for r in records for name, value in r.items() if "/loss" in name}


@pytest.mark.slow
def test_two_processes_evaluate_a_detector_like_one(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run[0], run)
    done = ended(start_processes(2, "scripts/evaluate.py", f"--workdir={run}"))
    assert [code for code, _ in done] == [0, 0], done
    assert "AP50" in done[0][1] and "AP50" not in done[1][1]
    one, two = (json.loads((folder / "metrics.json").read_text())["val"] for folder in (finished_run[0], run))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["ap50"] == pytest.approx(one["ap50"], abs=1e-3) and two["num_boxes"] == one["num_boxes"]
    one, two = (np.load(folder / "predictions" / "val.npz") for folder in (finished_run[0], run))
    np.testing.assert_array_equal(two["count"], one["count"])
    np.testing.assert_allclose(two["scores"], one["scores"], atol=1e-4)


def test_evaluation_on_other_classes_is_refused_and_a_single_class_may_have_another_name(finished_run):
    trained = load_trained(finished_run[0])
    task = build_task(trained.config)
    evaluation = task.evaluation("val")
    data = [trained.data._replace(class_names=names) for names in (("car", "face"), ("head",))]
    two, other = (trained._replace(data=one) for one in data)
    with pytest.raises(ValueError, match="the network was trained for car, face; the data has face"):
        predictions_of(task, two, evaluation)
    assert predictions_of(task, other, evaluation)["detections"]


def test_function_that_finds_every_face_has_perfect_metrics_on_the_same_images(tiny_detector_config):
    """Boxes are mapped back to their images through the order, scaling and padding of evaluation."""
    task = build_task(tiny_detector_config)
    evaluation, known = task.evaluation("val"), {}
    for batch in task.evaluation_batches(evaluation, 2):
        for image, (height, width), boxes, mask in zip(
            *(batch[name] for name in ("image", "image_size", "boxes", "box_mask")), strict=True
        ):
            known[image[:height, :width].tobytes()] = boxes[mask]

    def find(image):
        boxes = known[image.tobytes()]
        return {"boxes": boxes, "scores": np.ones(len(boxes), np.float32), "label": np.zeros(len(boxes), np.int32)}

    config = tiny_detector_config.copy_and_resolve_references()
    config.preprocess.exposure_level = 250.0  # is for the run's network: the function gets the images themselves
    metrics = evaluate_function(find, build_task(config), evaluation)
    assert metrics["ap50"] == metrics["coco_ap"] == metrics["recall"] == metrics["precision"] == 1.0
