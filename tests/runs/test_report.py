"""The page of one run, with the sections of both tasks."""

import base64
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from html_page import Page

from affect_jax.evaluate import figures
from affect_jax.evaluate.classification import classification_metrics
from affect_jax.evaluate.detection import detection_metrics
from affect_jax.runs.report import save_figures, write_report
from affect_jax.tasks import classification_report, detection_report

NAMES = ("angry", "<happy> & co", "sad")
HISTORY = [
    {"step": 10, "epoch": 0.5, "train/loss": 1.2, "train/accuracy": 0.4},
    {"step": 20, "epoch": 1.0, "train/loss": 1.0, "train/accuracy": 0.5},
    {"step": 20, "epoch": 1.0, "val/loss": 1.1, "val/accuracy": 0.45, "val/ap50": 0.3},
]


def predictions(seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)


def metrics(seed=0, tta="none"):
    return {**classification_metrics(*predictions(seed), NAMES), "tta": tta, "checkpoint_step": 20}


def split_of(images, labels):
    """A split in memory with the parts of InMemorySplit that the report reads."""
    return SimpleNamespace(
        class_names=NAMES,
        arrays={"image": images},
        labels=lambda: np.asarray(labels),
        image_names=lambda indices: [f"image {index}" for index in indices],
    )


def classifier_sections(evaluations):
    probs, labels = predictions()
    images = np.random.default_rng(0).integers(0, 256, (60, 48, 48, 1), np.uint8)
    samples = np.zeros((2, 3, 48, 48, 1), np.uint8)
    return classification_report.sections(evaluations, "val", split_of(images, labels), probs, samples)


def write(path, evaluations=None, sections=None, **changes):
    if evaluations is None:
        evaluations = {"val": metrics(), "test_tta_flip": metrics(1, "flip")}
    if sections is None:
        sections = classifier_sections(evaluations) if evaluations else []
    arguments = {
        "title": "a <run>",
        "protocol": {"command": "train --x='<1>'", "seed": "0"},
        "history": HISTORY,
        "evaluations": evaluations,
        "presentation": classification_report.PRESENTATION,
        "sections": sections,
        "config": {"seed": 0, "model": {"name": "<b>"}},
        "environment": {"jax": "1"},
        **changes,
    }
    write_report(path / "report.html", **arguments)
    return Page(path / "report.html")


def test_page_needs_no_other_file_and_has_all_figures(tmp_path):
    page = write(tmp_path)
    assert page.stands_alone
    assert {"html", "svg", "table", "img", "details"} <= set(page.tags)
    assert page.tags.count("svg") == 5  # learning curves, and a matrix and a calibration plot of each evaluation


def test_metrics_have_their_interval_and_the_protocol(tmp_path):
    page, expected = write(tmp_path), metrics()
    low, high = expected["accuracy_ci95"]
    heads, val, flipped = page.rows[:3]
    assert heads[:3] == ["Evaluation", "Accuracy", "95 % interval"]
    assert val[:3] == ["val", f"{expected['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"]
    assert flipped[0] == "test_tta_flip" and "flip" in flipped
    assert page.pairs == {"command": "train --x='<1>'", "seed": "0"}
    for name, row in expected["per_class"].items():
        assert [name, *(f"{row[key]:.1%}" for key in ("recall", "precision", "f1")), str(row["support"])] in page.rows
    at_half = expected["coverage"]["confidence"].index(0.5)
    assert ["50%", *(f"{expected['coverage'][key][at_half]:.1%}" for key in ("coverage", "accuracy"))] in page.rows


def test_columns_without_a_value_and_their_notes_are_left_out(tmp_path):
    page = write(tmp_path)
    assert "CCC" not in page.text and "Macro-F1: unweighted mean" in page.text
    page = write(tmp_path, evaluations={"val": {**metrics(), "ccc_valence": 0.5}, "test": metrics(1)})
    column = page.rows[0].index("CCC valence")
    assert [row[column] for row in page.rows[1:3]] == ["0.500", "–"] and "concordance" in page.text


def test_metrics_of_older_runs_without_coverage_are_shown(tmp_path):
    old = {name: value for name, value in metrics().items() if name != "coverage"}
    page = write(tmp_path, evaluations={"val": old})
    assert page.stands_alone and "Coverage" not in page.text


def test_text_is_escaped(tmp_path):
    source = write(tmp_path).source
    assert "a &lt;run&gt;" in source and "<happy>" not in source and '<b>"' not in source


@pytest.mark.parametrize("missing", ["history", "evaluations", "sections"])
def test_page_without_a_part_is_valid(tmp_path, missing):
    assert write(tmp_path, **{missing: {} if missing == "evaluations" else []}).stands_alone


def images_of(page):
    urls = [reference for reference in page.references if reference.startswith("data:image")]
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED) for url in urls
    ]


def test_mistakes_are_shown_without_loss_the_most_confident_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1), np.uint8)
    probs = np.array([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05], [0.07, 0.93, 0.0]])
    found = classification_report.mistakes_sections("val", split_of(images, [2, 0, 2]), probs)
    page = write(tmp_path, sections=found)
    np.testing.assert_array_equal(images_of(page), images[[2, 0], ..., 0])
    assert page.text.index("sad classified as <happy> & co, 93.0%") < page.text.index("image 0")
    assert classification_report.mistakes_sections("val", split_of(images, probs.argmax(1)), probs) == []


def detector_predictions():
    """Two images of two classes: a correct, a false and a missed box, then a correct box."""
    boxes = np.array([[10, 10, 40, 40], [60, 10, 90, 60]], np.float32)
    truths = [
        {"boxes": boxes, "label": np.array([0, 1]), "ignore": np.zeros(2, bool)},
        {"boxes": boxes[:1], "label": np.array([0]), "ignore": np.zeros(1, bool)},
    ]
    false = np.array([[10, 60, 40, 90]], np.float32)
    detections = [
        {"boxes": np.concatenate([boxes[:1], false]), "scores": np.array([0.9, 0.8]), "label": np.array([0, 0])},
        {"boxes": boxes[:1], "scores": np.array([0.7]), "label": np.array([0])},
    ]
    return truths, detections


def detector_page(path):
    truths, detections = detector_predictions()
    found = {**detection_metrics(truths, detections, ("face", "hand")), "split": "x, val", "checkpoint_step": 20}
    images = [np.full((100, 120, 3), 90, np.uint8)] * 2
    sections = detection_report.sections(
        {"val": found}, "val", truths, detections, lambda index: (images[index], f"image_{index}.jpg")
    )
    save_figures(path / "figures", sections, "val")
    return write(path, evaluations={"val": found}, presentation=detection_report.PRESENTATION, sections=sections), found


def test_page_of_a_detector_has_recall_by_height_ap_by_class_and_drawn_mistakes(tmp_path):
    page, found = detector_page(tmp_path)
    assert page.stands_alone and page.tags.count("svg") == 2
    assert found["recall"] == pytest.approx(2 / 3)
    assert page.rows[1][page.rows[0].index("Recall")] == "66.67%"
    assert ["16 to 32 px", "2", "100.0%", "100.0%"] in page.rows and ["32 to 64 px", "1", "0.0%", "0.0%"] in page.rows
    assert ["face", "83.3%"] in page.rows and ["hand", "0.0%"] in page.rows
    (image,) = images_of(page)  # only the first image has mistakes
    assert image.shape == (100, 120, 3) and image.std() > 10
    assert "image_0.jpg" in page.text and "image_1.jpg" not in page.text


def test_correct_false_and_missed_boxes_have_their_colors():
    truths, detections = detector_predictions()
    image = np.full((100, 120, 3), 90, np.uint8)
    drawn = detection_report.draw_mistakes(image, truths[0], detections[0])
    assert tuple(drawn[10, 25]) == figures.RIGHT_COLOR
    assert tuple(drawn[60, 25]) == figures.WRONG_COLOR
    assert tuple(drawn[10, 75]) == figures.MISSED_COLOR
    assert tuple(drawn[50, 50]) == (90, 90, 90)


def test_figures_are_saved_as_images_of_the_evaluation(tmp_path):
    save_figures(tmp_path, classifier_sections({"val": metrics(), "test": metrics(1)}), "val")
    detector_page(tmp_path)
    assert {file.name for file in tmp_path.glob("*.png")} == {"val_confusion_matrix.png", "val_calibration.png"}
    for file in (*tmp_path.glob("*.png"), tmp_path / "figures" / "precision_recall.png"):
        image = cv2.imread(str(file))
        assert min(image.shape[:2]) > 200 and image.std() > 10


def test_report_is_complete_or_absent(tmp_path, monkeypatch):
    before = write(tmp_path).source
    monkeypatch.setattr("affect_jax.files.os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, title="another")
    assert (tmp_path / "report.html").read_text() == before
