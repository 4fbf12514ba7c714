import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from affect_jax.evaluate.classification import classification_metrics
from affect_jax.evaluate.figures import save_figures
from affect_jax.evaluate.report import write_report

NAMES = ("angry", "<happy> & co", "sad")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Which tags a page has, whether they close, what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def metrics(seed=0, **extra):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), 60)
    found = classification_metrics(probs, rng.integers(0, 3, 60), NAMES)
    return {**found, "tta": "none", "checkpoint_step": 20, **extra}


def page(tmp_path, **changes):
    history = [
        {"step": 10, "epoch": 0.5, "train/loss": 1.2, "train/accuracy": 0.4},
        {"step": 20, "epoch": 1.0, "train/loss": 1.0, "train/accuracy": 0.5},
        {"step": 20, "epoch": 1.0, "val/loss": 1.1, "val/accuracy": 0.45},
    ]
    face = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48, 1)
    mistake = {"image": face, "true": "sad", "predicted": NAMES[1], "confidence": 0.93, "id": "val 17"}
    arguments = {
        "title": "a <run>",
        "protocol": {"command": "train --x='<1>'", "seed": "0"},
        "history": history,
        "evaluations": {"val": metrics(), "test_tta_flip": metrics(1, tta="flip")},
        "mistakes": [mistake],
        "class_names": NAMES,
        "config": {"seed": 0, "model": {"name": "<b>"}},
        "environment": {"jax": "1"},
        "samples": np.zeros((2, 3, 48, 48, 1), np.uint8),
        **changes,
    }
    write_report(tmp_path / "report.html", **arguments)
    return Page((tmp_path / "report.html").read_text())


def test_page_stands_alone_and_every_tag_closes(tmp_path):
    found = page(tmp_path)
    assert found.open == []
    assert {"html", "svg", "table", "img", "details"} <= set(found.tags)
    assert found.tags.count("svg") == 5  # curves, and for each evaluation a matrix and a calibration
    assert all(reference.startswith(("data:", "#")) for reference in found.references)
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_numbers_come_with_their_interval_and_protocol(tmp_path):
    found, expected = page(tmp_path), metrics()
    low, high = expected["accuracy_ci95"]
    for text in (f"{expected['accuracy']:.2%}", f"{low:.2%} to {high:.2%}", "test-time augmentation: flip", "seed: 0"):
        assert text in found.text
    assert "sad taken for <happy> & co" in found.text


def test_text_is_escaped(tmp_path):
    page(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "a &lt;run&gt;" in html and "<happy>" not in html and '<b>"' not in html


@pytest.mark.parametrize("missing", ["history", "mistakes", "evaluations"])
def test_page_without_a_part_is_a_page(tmp_path, missing):
    empty = {} if missing == "evaluations" else []
    assert page(tmp_path, **{missing: empty}).open == []


def test_mistakes_are_the_pictures_themselves(tmp_path):
    import base64

    face = np.random.default_rng(0).integers(0, 256, (48, 48, 1), np.uint8)
    mistake = {"image": face, "true": "sad", "predicted": "angry", "confidence": 0.5, "id": "val 1"}
    source = page(tmp_path, mistakes=[mistake], evaluations={}).references
    png = next(r for r in source if r.startswith("data:image/png"))
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(png.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, face[..., 0])


def test_figures_of_an_evaluation_are_readable_pictures(tmp_path):
    save_figures(tmp_path / "figures", "val", metrics(), NAMES)
    for name in ("val_confusion_matrix.png", "val_calibration.png"):
        picture = cv2.imread(str(tmp_path / "figures" / name))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10


def test_report_is_whole_or_absent(tmp_path, monkeypatch):
    page(tmp_path)
    before = (tmp_path / "report.html").read_text()
    monkeypatch.setattr("affect_jax.files.os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page(tmp_path, title="another")
    assert re.search("another", (tmp_path / "report.html").read_text()) is None
    assert (tmp_path / "report.html").read_text() == before
