import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from run_script import fork

from affect_jax import labels
from affect_jax.data.audit import audit, correlation, exact_groups, fingerprints
from affect_jax.data.folder import Folder
from affect_jax.data.split import FacesSplit

ROOT = Path(__file__).parents[2]


def smooth_faces(count, seed):
    """Return images with large shapes, as in faces: uint8 [N, 48, 48, 1]."""
    noise = np.random.default_rng(seed).normal(size=(count, 6, 6)).astype(np.float32)
    large = np.stack([cv2.resize(one, (48, 48), interpolation=cv2.INTER_CUBIC) for one in noise])
    return np.clip(128 + 50 * large, 0, 255).astype(np.uint8)[..., None]


class Faces(FacesSplit):
    class_names, image_shape = labels.FER2013, (48, 48, 1)

    def __init__(self, images, label):
        self.images, self.label = images, np.array(label, np.int32)

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return {"image": self.images[indices], "label": self.label[indices]}


@pytest.fixture
def planted():
    """Return train, val and test of 20, 10 and 10 different images, with planted copies."""
    train, val, test = np.split(smooth_faces(40, 0), [20, 30])
    train[3] = train[2]
    test[1] = train[5]
    val[4] = train[7]
    jpeg = cv2.imdecode(cv2.imencode(".jpg", train[9])[1], cv2.IMREAD_GRAYSCALE)
    val[6, ..., 0] = np.clip(0.8 * jpeg + 20.0, 0, 255)
    test[8] = np.roll(val[8], 1, axis=1)
    train[11], train[12], test[2] = 0, 255, 0
    train[13], test[3] = 0, 0
    train[13, 5:7, 5:7], test[3, 5:7, 5:7] = 20, 21  # constant but for noise
    train_labels, val_labels, test_labels = np.zeros(20), np.zeros(10), np.zeros(10)
    val_labels[4] = labels.FER2013.index("sad")
    return {"train": Faces(train, train_labels), "val": Faces(val, val_labels), "test": Faces(test, test_labels)}


def names(group):
    return [(image["split"], image["index"]) for image in group]


def test_an_audit_finds_exactly_the_planted_problems(planted):
    found = json.loads(json.dumps(audit(planted)))
    assert [names(group) for group in found["identical"]] == [
        [("train", 2), ("train", 3)],
        [("train", 5), ("test", 1)],
        [("train", 7), ("val", 4)],
    ]
    assert [[image["label"] for image in group] for group in found["conflicting_labels"]] == [["angry", "sad"]]
    assert [names(pair["images"]) for pair in found["nearly_identical"]] == [
        [("train", 9), ("val", 6)],
        [("val", 8), ("test", 8)],
    ]
    assert names(found["constant"]) == [("train", 11), ("train", 12), ("train", 13), ("test", 2), ("test", 3)]
    summary = found["summary"]
    assert summary["train"]["identical_to"] == {"train": 2, "val": 1, "test": 1}
    assert summary["test"]["identical_to"] == {"train": 1, "val": 0, "test": 0}
    assert summary["val"]["nearly_identical_to"] == {"train": 1, "test": 1}
    assert [summary[split]["conflicting_labels"] for split in summary] == [1, 1, 0]


def test_identical_groups_equal_a_comparison_of_all_pixels():
    palette = smooth_faces(12, 1)
    rng = np.random.default_rng(2)
    splits = {name: Faces(palette[rng.integers(0, 12, 15)], np.zeros(15)) for name in ("train", "val", "test")}
    groups = exact_groups({name: fingerprints(split, name) for name, split in splits.items()})
    images = {(name, i): split.read(np.array([i]))["image"] for name, split in splits.items() for i in range(15)}
    together = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    equal = {frozenset((a, b)) for a, b in combinations(images, 2) if np.array_equal(images[a], images[b])}
    assert together == equal and equal


def test_correlation_equals_pearsons(planted):
    first, second = (planted[name].read(np.arange(10))["image"][..., 0] for name in ("val", "test"))
    got = correlation(first, second)
    for i in range(10):
        expected = 0 if i == 2 else np.corrcoef(first[i].ravel(), second[i].ravel())[0, 1]
        assert got[i] == pytest.approx(expected, abs=1e-5)


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_scripts_prepare_a_data_set_with_bad_rows_and_audit_it(sheet, write_csv, tmp_path):
    rows = sheet.rows()
    rows[4][0] = "9"
    rows[11][1] = rows[0][1]
    source = write_csv(rows)
    prepare = ("scripts/prepare_data.py", "fer2013", f"--source={source}", f"--data_dir={tmp_path}")

    refused = run(*prepare, "--allow_other_counts")
    assert refused.returncode == 1
    assert f"BadInput: {source}, row 6: emotion is '9'" in refused.stderr and "Traceback" not in refused.stderr

    done = run(*prepare, "--allow_other_counts", "--on_bad_row=skip")
    assert done.returncode == 0, done.stderr
    assert "1 bad rows skipped:" in done.stdout and f"{source}, row 6: emotion is '9'" in done.stdout
    assert str(tmp_path / "fer2013" / "1.0.0") in done.stdout

    out = tmp_path / "audit.json"
    audited = run("scripts/audit_data.py", "fer2013", f"--data_dir={tmp_path}", f"--out={out}")
    assert audited.returncode == 0, audited.stderr
    assert "fer2013.csv, row 2 (train, angry) = fer2013.csv, row 13 (test, fear)" in audited.stdout
    assert len(json.loads(out.read_text())["conflicting_labels"]) == 1


def test_a_data_set_without_test_is_audited_and_a_data_set_of_boxes_is_refused(tmp_path):
    for name, tone in (("dark", 40), ("light", 200)):
        for index in range(8):
            image = np.random.default_rng([tone, index // 2]).integers(tone - 30, tone + 30, (48, 48)).astype(np.uint8)
            (tmp_path / "faces" / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "faces" / name / f"{index}.png"), image)
    Folder.prepare(tmp_path / "data", source=tmp_path / "faces", test_share=0.0, val_share=0.5)
    done = fork("audit_data", "folder", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 0, done.stderr
    assert "of val is also in train" in done.stdout and "test" not in done.stdout
    assert fork("audit_data", "drawn_scenes", "--num_examples=2").stderr.startswith("ValueError: only data sets of")
    assert fork("audit_data", "drawn_scenes").stderr == "ValueError: drawn_scenes needs the option num_examples\n"
    done = fork("audit_data", "folder", f"--data_dir={tmp_path / 'data'}", "--num_examples=2")
    assert done.stderr == "ValueError: folder has no option num_examples; its options are: none\n"
