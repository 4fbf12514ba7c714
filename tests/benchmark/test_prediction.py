import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from run_script import fork

from affect_jax.benchmark import prediction
from affect_jax.predict.networks import Classifier, Detector
from affect_jax.predict.reader import FaceReader
from affect_jax.runs.model_file import save_trained

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")
def test_script_measures_speed_and_memory_of_prediction(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((30 + number, 50, 3), 40 * number, np.uint8))
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_predict.py"), f"--images={tmp_path}"]
    command += [f"--classifier={tmp_path / 'model.safetensors'}", "--detector=whole", "--frame_size=48,64"]
    command += [
        "--num_frames=4",
        "--batch_sizes=1,3",
        "--rounds=2",
        "--memory_frames=40",
        f"--yunet={tmp_path}/no.onnx",
    ]
    done = subprocess.run([*command, f"--out={tmp_path / 'rows.json'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    timed, memory = ([row for row in rows if row["work"] == work] for work in ("read", "memory"))
    assert [row["implementation"] for row in timed] == ["affect_jax, batch 1", "affect_jax, batch 3"]
    assert all(0 < row["frames_per_second"] <= row["frames_per_second_best"] for row in timed)
    assert "yunet was not timed: it failed; for its error, run: " in done.stdout
    assert "deface was not timed: no --peers" in done.stdout and "fer was not timed: no --peers" in done.stdout
    assert [row["frames"] for row in memory] == list(range(4, 41, 4))


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--frame_size=480", "give height and width, such as 480,640"),
        ("--frame_size=480x640", "give numbers above 0, such as 480,640"),
        ("--batch_sizes=1,0", "give numbers above 0, such as 1,16"),
        ("--batch_sizes=1,-2", "give numbers above 0, such as 1,16"),
    ],
)
def test_wrong_sizes_are_one_line_with_the_flag(argument, reason):
    done = fork("benchmark_predict", "--images=none", argument)
    assert (done.returncode, done.stderr) == (1, f"ValueError: {argument}; {reason}\n")


def test_our_detector_and_reader_are_timed_on_a_video(classifier, detector, tmp_path):
    video = prediction.write_video(tmp_path / "a.avi", [np.full((64, 96, 3), 40 * n, np.uint8) for n in range(3)])
    find = Detector(detector, 2, 0.5)
    works = prediction.our_works(
        video, lambda size: FaceReader(Classifier(classifier, size), find, size, 0.1, 0, 1), [2]
    )
    rows = prediction.speed_rows(works, 3, rounds=1)
    assert [(row["work"], row["implementation"]) for row in rows] == [
        (w, "affect_jax, batch 2") for w in ("find", "read")
    ]


def test_frames_per_second_worked_by_hand(monkeypatch):
    monkeypatch.setattr(prediction, "interleaved_seconds", lambda works, rounds: {("read", "ours"): [0.25, 2.0, 0.5]})
    (row,) = prediction.speed_rows({}, 32, rounds=3)
    assert (row["frames_per_second"], row["frames_per_second_best"]) == (64, 128)


def test_yunet_passes_over_a_video_for_each_line(shared_data, tmp_path):
    file = shared_data / "weights" / "yunet_n_wider_face.onnx"
    if not file.is_file():
        pytest.skip(f"no real data: {file} is absent")
    video = prediction.write_video(tmp_path / "a.avi", [np.full((64, 96, 3), 40 * n, np.uint8) for n in range(3)])
    works, remarks = prediction.peer_works(video, "", str(file))
    assert list(works) == [("find", "yunet")] and len(remarks) == 2
    (row,) = prediction.speed_rows(works, 3, rounds=2)
    assert row["implementation"] == "yunet" and 0 < row["frames_per_second"] <= row["frames_per_second_best"]
