import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib import cbook

from affect_jax.predict.drawing import COLORS, OTHER_COLOR, draw_faces
from affect_jax.predict.media import Frame, find_sources, read_frames
from affect_jax.predict.output import DrawnVideo, Output
from affect_jax.predict.reader import Classifier, Face, FaceReader
from affect_jax.runs.model_file import write

ROOT = Path(__file__).parents[2]
HAPPY = Face((10.0, 30.0, 60.5, 90.25), 0.9, "happy", {"happy": 0.75, "sad": 0.25})
UNSURE = Face((70.0, 20.0, 95.0, 50.0), 0.6, None, {"happy": 0.5, "sad": 0.5})


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_module_writes_lines_and_drawings_of_a_photo_a_video_and_a_broken_file(classifier, tmp_path):
    """python -m affect_jax.predict, from a folder other than the checkout."""
    write(classifier, tmp_path / "model.safetensors", "")
    photograph = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    (tmp_path / "in").mkdir()
    video = cv2.VideoWriter(str(tmp_path / "in" / "talk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(11):
        video.write(np.full((48, 64, 3), 20 * number, np.uint8))
    video.release()
    (tmp_path / "in" / "broken.jpg").write_bytes(b"not an image")
    command = [sys.executable, "-m", "affect_jax.predict", photograph, "in", "--faces=whole", "--out=out"]
    command += ["--classifier=model.safetensors", "--batch_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1  # for the broken file
    assert "broken.jpg: not a readable" in done.stderr and "Traceback" not in done.stderr
    assert "12 faces in 12 frames" in done.stdout
    records = lines(tmp_path / "out")
    faces, broken = [record for record in records if record["box"]], [record for record in records if not record["box"]]
    assert len(broken) == 1 and broken[0]["reason"].startswith("not a readable")
    assert [(record["frame"], record["time"]) for record in faces] == [(0, None)] + [
        (n, pytest.approx(n / 5)) for n in range(11)
    ]
    assert faces[0]["file"] == photograph and faces[0]["box"] == [0, 0, 512, 600]
    for record in faces:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["expression"] == max(record["probabilities"], key=record["probabilities"].get)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["frame"], row["expression"]) for row in rows] == [
        (record["file"], str(record["frame"]), record["expression"] or "") for record in records
    ]
    assert {path.name for path in (tmp_path / "out" / "drawn").iterdir()} == {"grace_hopper.jpg", "talk.mp4"}
    capture = cv2.VideoCapture(str(tmp_path / "out" / "drawn" / "talk.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (11, 5)


def gray_levels(path):
    """Return the mean gray level of each frame of a video."""
    capture, found = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        found.append(frame[1].mean())
    return found


def gray_video(path, num_frames, size, rate=10.0):
    """Write a video of uniform frames whose gray level counts up."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    for number in range(num_frames):
        writer.write(np.full((*size[::-1], 3), number % 250, np.uint8))
    writer.release()
    return str(path)


def test_ctrl_c_keeps_the_results_so_far(classifier, tmp_path):
    write(classifier, tmp_path / "model.safetensors", "")
    video = gray_video(tmp_path / "long.avi", 30_000, (32, 32))
    command = [sys.executable, str(ROOT / "scripts" / "predict.py"), video, "--faces=whole", "--batch_size=4"]
    command += [f"--classifier={tmp_path / 'model.safetensors'}", f"--out={tmp_path / 'out'}"]
    # A test run in the background of a shell ignores SIGINT, and its children inherit that.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=restore
    )
    started, unfinished = time.monotonic(), tmp_path / "out" / "predictions.jsonl.partial"
    while not (unfinished.exists() and unfinished.stat().st_size) and time.monotonic() < started + 300:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr
    assert "interrupted; the results so far are kept" in stdout
    frames = [line["frame"] for line in lines(tmp_path / "out")]
    assert frames == list(range(len(frames))) and 0 < len(frames) < 30_000
    assert len(gray_levels(tmp_path / "out" / "drawn" / "long.mp4")) == pytest.approx(len(frames), abs=1)


def resident_megabytes():
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")
def test_memory_stays_flat_over_a_video(classifier, tmp_path):
    """600 frames, 550 MB, are read, classified and drawn within 110 MB."""
    video = gray_video(tmp_path / "long.avi", 600, (640, 480))
    read_faces, memory = FaceReader(Classifier(classifier, 8), None, 8, 0.1, 0.0), []
    with Output(tmp_path / "out", classifier.data.class_names, True, 0.5) as output:
        read_faces([np.zeros((480, 640, 3), np.uint8)])  # compile
        before = resident_megabytes()
        for frame, faces in read_faces.stream(read_frames(find_sources([video]), print)):
            output.write(frame, faces)
            memory.append(resident_megabytes())
    assert len(memory) == 600
    assert max(memory) - before < 110
    assert memory[-1] - memory[100] < 15


def test_drawn_video_has_the_duration_of_the_frame_times(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.02, 1.04, 1.5, 9999.0, 9999.1]
    video = DrawnVideo(tmp_path / "x.mp4", 10.0, (64, 48))
    for number, time_ in enumerate(times):
        size = (48, 64, 3) if number != 1 else (24, 32, 3)  # the frame size may change
        video.write(time_, np.full(size, 25 * number, np.uint8))
    video.close()
    # each frame once, the third until 1.0 s, the sixth until 1.5 s; the jump to 9999 s is not filled
    expected = [0, 1, *[2] * 8, 3, 4, 5, 5, 5, 6, 7, 8]
    assert gray_levels(tmp_path / "x.mp4") == pytest.approx(25 * np.array(expected), abs=4)


def test_failed_write_of_a_drawing_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"cannot write .*x.mp4"):
        DrawnVideo(tmp_path / "absent" / "x.mp4", 10.0, (64, 48))
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)  # its result on a full disk
    with (
        pytest.raises(OSError, match=r"cannot write .*x.jpg"),
        Output(tmp_path, ("happy", "sad"), True, 0.5) as output,
    ):
        output.write(Frame("x.png", 0, None, np.zeros((9, 9, 3), np.uint8)), [])


def test_frame_without_a_face_has_a_line_with_the_reason(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.mp4", 7, 0.28, None), [])
        assert not (tmp_path / "predictions.jsonl").exists()
    nothing = {"box": None, "score": None, "expression": None, "probabilities": {}}
    place = {"file": "a.mp4", "frame": 7, "time": 0.28}
    assert lines(tmp_path) == [{**place, **nothing, "reason": "no face with a score of at least 0.5"}]
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.jsonl", "predictions.csv"}


def test_images_with_the_same_name_do_not_overwrite_each_other(tmp_path):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        for folder, level in (("a", 10), ("b", 200)):
            output.write(Frame(f"{folder}/x.png", 0, None, np.full((100, 100, 3), level, np.uint8)), [HAPPY])
    means = [cv2.imread(str(tmp_path / "drawn" / name))[95:, :5].mean() for name in ("x.jpg", "x_2.jpg")]
    assert means == pytest.approx([10, 200], abs=3)


def test_error_keeps_the_results_of_an_earlier_call(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.png", 0, None, None), [HAPPY])
    before = lines(tmp_path)
    with pytest.raises(RuntimeError), Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("b.png", 0, None, None), [])
        raise RuntimeError
    assert lines(tmp_path) == before and before[0]["box"] == [10, 30, 60.5, 90.25]


def test_boxes_are_drawn_in_place_and_labels_stay_inside_the_image():
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
        assert labelled.sum() > 400, box  # the background of the label


def test_labels_of_a_crowd_cover_no_face():
    image = np.full((300, 300, 3), 90, np.uint8)
    boxes = [(x, y, x + 20, y + 25) for y in range(40, 300, 40) for x in range(10, 280, 30)]
    crowd = [HAPPY._replace(box=tuple(map(float, box))) for box in boxes]
    drawn = (draw_faces(image, crowd) == COLORS["happy"]).all(axis=2)
    for x1, y1, x2, y2 in boxes:
        assert not drawn[y1 + 7 : y2 - 7, x1 + 6 : x2 - 6].any()
    alone = (draw_faces(image, [crowd[0]]) == COLORS["happy"]).all(axis=2).sum()
    assert alone < drawn.sum() < 0.5 * len(crowd) * alone  # some faces have labels, not all
