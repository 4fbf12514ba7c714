import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from affect_jax.config import classification_config
from affect_jax.evaluate.classification import classification_metrics
from affect_jax.evaluate.figures import save_figures
from affect_jax.evaluate.report import write_report
from affect_jax.train.comparison import write_runs
from affect_jax.train.workdir import DataFacts, Workdir, claim

RESULTS = Path(__file__).parents[2] / "results"
NAMES = ("angry", "<happy> & co", "sad")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Which tags a page has, whether they close, what it refers to, and what its tables say."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], ""
        self.rows, self.definitions = [], []
        self.feed(text)

    @property
    def pairs(self):
        return dict(zip(self.definitions[::2], self.definitions[1::2], strict=True))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("dt", "dd"):
            self.definitions.append("")
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
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if {"dt", "dd"} & set(self.open):
            self.definitions[-1] += data


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
        "shown": "val",
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
    val, flipped = found.rows[1:3]
    assert val[:3] == ["val", f"{expected['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"]
    assert flipped[0] == "test_tta_flip" and "flip" in flipped
    assert found.pairs == {"command": "train --x='<1>'", "seed": "0"}
    assert "sad taken for <happy> & co" in found.text
    at_half = expected["coverage"]["confidence"].index(0.5)
    named, right = (expected["coverage"][what][at_half] for what in ("coverage", "accuracy"))
    assert f"50%{named:.1%}{right:.1%}" in found.text


def test_page_of_a_run_from_before_coverage_was_measured_is_a_page(tmp_path):
    old = {name: value for name, value in metrics().items() if name != "coverage"}
    found = page(tmp_path, evaluations={"val": old})
    assert found.open == [] and "Share named" not in found.text


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
    monkeypatch.setattr("affect_jax.files.os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        page(tmp_path, title="another")
    assert re.search("another", (tmp_path / "report.html").read_text()) is None
    assert (tmp_path / "report.html").read_text() == before


def leave_run(path, records, evaluations, **fields):
    """The folder of a run: its config, a record with an unfinished line at its end, and what was evaluated."""
    config = classification_config()
    config.update(fields)
    claim(Workdir(path), config, DataFacts(NAMES, (48, 48, 1)))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3')
    if evaluations:
        (path / "metrics.json").write_text(json.dumps(evaluations))


def compared(tmp_path, *folders):
    write_runs(tmp_path / "all.html", folders)
    return Page((tmp_path / "all.html").read_text())


def test_records_without_a_config_are_compared_by_their_numbers_tasks_apart(tmp_path):
    names = ("fer_finetune", "scenes_rcnn_demo", "fer_vgg_best_two_cores")
    found = compared(tmp_path, *(RESULTS / name for name in names))
    assert found.open == [] and "<script" not in (tmp_path / "all.html").read_text()
    assert all(reference.startswith(("data:", "#")) for reference in found.references)
    metrics = {name: json.loads((RESULTS / name / "metrics.json").read_text()) for name in names}
    rows = {(row[0].split()[-1], *row[1:3]) for row in found.rows}
    for name, score in zip(names, ("accuracy", "ap50", "accuracy"), strict=True):
        for one in metrics[name].values():
            low, high = one[f"{score}_ci95"]
            assert (name, f"{one[score]:.2%}", f"{low:.2%} to {high:.2%}") in rows
    assert "Runs of different tasks stand apart" in found.text
    assert "only a record of the run is kept" in found.text


def test_runs_that_go_on_are_shown_and_what_differs_is_told(tmp_path):
    learned = [
        {"step": 10, "epoch": 0.5, "train/loss": 1.2, "train/accuracy": 0.4, "seconds": 60.0},
        {"step": 20, "epoch": 1.0, "val/loss": 1.1, "val/accuracy": 0.45, "seconds": 120.0},
    ]
    leave_run(tmp_path / "<done>", learned, {"val": metrics()})
    leave_run(tmp_path / "going", learned[:1], {}, seed=7)
    leave_run(tmp_path / "begun", [], {}, batch_size=32)
    leave_run(tmp_path / "other", learned, {"val": metrics(3)}, total_epochs=1.0)
    found = compared(tmp_path, *(tmp_path / name for name in ("<done>", "going", "begun", "other")))
    assert found.open == []
    assert "not evaluated yet: going, begun." in found.text
    assert "val of <done>" in found.text and "val of other runs has other pictures or classes" in found.text
    assert ["seed", "0", "7", "0", "0"] in found.rows and ["batch_size", "64", "64", "32", "64"] in found.rows
    assert [row[3] for row in found.rows if row[0][2:] in ("going", "other")][:2] == ["0.5 of 120", "1 of 1"]
    assert compared(tmp_path, tmp_path / "begun").open == []
