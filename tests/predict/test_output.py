import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib import cbook

from affect_jax.predict.drawing import COLORS, OTHER_COLOR, draw_faces
from affect_jax.predict.media import Frame
from affect_jax.predict.model_file import write
from affect_jax.predict.output import Output
from affect_jax.predict.reader import Face

ROOT = Path(__file__).parents[2]
HAPPY = Face((10.0, 30.0, 60.5, 90.25), 0.9, "happy", {"happy": 0.75, "sad": 0.25})
UNSURE = Face((70.0, 20.0, 95.0, 50.0), 0.6, None, {"happy": 0.5, "sad": 0.5})


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_photograph_a_video_and_broken_files_become_lines_and_drawings(classifier, tmp_path):
    """The script, as a user runs it."""
    write(classifier, tmp_path / "model.safetensors", "")
    photograph = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    (tmp_path / "in").mkdir()
    video = cv2.VideoWriter(str(tmp_path / "in" / "talk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(11):
        video.write(np.full((48, 64, 3), 20 * number, np.uint8))
    video.release()
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    command = [sys.executable, str(ROOT / "scripts" / "predict.py"), photograph, str(tmp_path / "in"), "--faces=whole"]
    command += [f"--classifier={tmp_path / 'model.safetensors'}", f"--out={tmp_path / 'out'}", "--batch_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1  # for the broken file
    assert "broken.jpg: not a readable picture" in done.stderr and "Traceback" not in done.stderr
    assert "12 faces in 12 frames" in done.stdout
    records = lines(tmp_path / "out")
    faces, broken = [one for one in records if one["box"]], [one for one in records if not one["box"]]
    assert [one["reason"] for one in broken] == ["not a readable picture"]
    assert [(one["frame"], one["time"]) for one in faces] == [(0, None)] + [
        (n, pytest.approx(n / 5)) for n in range(11)
    ]
    assert faces[0]["file"] == photograph and faces[0]["box"] == [0, 0, 512, 600]
    for one in faces:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["expression"] == max(one["probabilities"], key=one["probabilities"].get)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["frame"], row["expression"]) for row in rows] == [
        (one["file"], str(one["frame"]), one["expression"] or "") for one in records
    ]
    assert {path.name for path in (tmp_path / "out" / "drawn").iterdir()} == {"grace_hopper.jpg", "talk.mp4"}
    capture = cv2.VideoCapture(str(tmp_path / "out" / "drawn" / "talk.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (11, 5)


def test_a_frame_without_a_face_has_a_line_with_the_reason(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.mp4", 7, 0.28, None), [])
        assert not (tmp_path / "predictions.jsonl").exists()
    nothing = {"box": None, "score": None, "expression": None, "probabilities": {}}
    place = {"file": "a.mp4", "frame": 7, "time": 0.28}
    assert lines(tmp_path) == [{**place, **nothing, "reason": "no face of score 0.5 or more"}]
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.jsonl", "predictions.csv"}


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        for folder, level in (("a", 10), ("b", 200)):
            output.write(Frame(f"{folder}/x.png", 0, None, np.full((100, 100, 3), level, np.uint8)), [HAPPY])
    means = [cv2.imread(str(tmp_path / "drawn" / name))[95:, :5].mean() for name in ("x.jpg", "x_2.jpg")]
    assert means == pytest.approx([10, 200], abs=3)


def test_an_error_leaves_the_results_of_an_earlier_call(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.png", 0, None, None), [HAPPY])
    before = lines(tmp_path)
    with pytest.raises(RuntimeError), Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("b.png", 0, None, None), [])
        raise RuntimeError
    assert lines(tmp_path) == before and before[0]["box"] == [10, 30, 60.5, 90.25]


def test_boxes_are_drawn_where_they_are_and_labels_stay_in_the_picture():
    image = np.full((100, 120, 3), 90, np.uint8)
    drawn = draw_faces(image, [HAPPY, UNSURE])
    assert (image == 90).all()
    assert drawn.shape == image.shape
    assert tuple(drawn[60, 10]) == COLORS["happy"] and tuple(drawn[90, 35]) == COLORS["happy"]
    assert tuple(drawn[40, 95]) == OTHER_COLOR
    assert (drawn[92:] == 90).all()
    for box in ((0, 0, 30, 30), (100, 80, 140, 120), (-20, -20, 5, 5), (0, 0, 120, 100)):
        face = HAPPY._replace(box=box)
        labelled = (draw_faces(image, [face]) == COLORS["happy"]).all(axis=2)
        assert labelled.sum() > 400, box  # the label's ground, wherever the box is
