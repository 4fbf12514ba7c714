"""The scripts, run as a user runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from affect_jax.data import open_split

ROOT = Path(__file__).parents[1]
SMALL = [
    "--config.model.widths=(4,8)",
    "--config.model.dense=(8,)",
    "--config.data.options.num_examples.train=640",
    "--config.data.options.num_examples.val=70",
    "--config.data.options.num_examples.test=70",
    "--config.log_every_steps=2",
]
SHORT = ["--config.total_epochs=1.0", "--config.optim.warmup_epochs=0.0"]
DEMO = "--config=configs/fer_vgg.py:demo"


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, f"scripts/{name}.py", *map(str, arguments)]


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(name, *arguments), cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.slow
def test_demo_teaches_vgg_fer_the_drawn_faces_and_says_what_is_next(tmp_path):
    done = run("train", DEMO, f"--workdir={tmp_path}", JAX_DISABLE_MOST_OPTIMIZATIONS="0")  # it has much to compute
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["val"]["accuracy"]
    assert accuracy > 0.95  # logistic regression stays under 60 %: test_drawn_faces.py
    assert f"{tmp_path}/report.html" in done.stdout
    assert "python scripts/train.py --config=configs/fer_vgg.py" in done.stdout
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert {"config", "metrics", "events", "checkpoints", "report", "figures", "predictions"} <= names


def test_run_stopped_by_sigterm_is_saved_and_the_same_command_finishes_it(tmp_path):
    arguments = (DEMO, f"--workdir={tmp_path}", *SMALL, "--config.total_epochs=10.0", "--config.eval_every_epochs=10.0")
    with subprocess.Popen(command("train", *arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "rerun the command to resume" in rest
    (saved,) = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert 0 < int(saved) < 100
    done = run("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {saved}" in done.stdout
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 100


def test_second_run_compiles_nothing_gives_the_same_metrics_and_its_checkpoint_is_evaluated_with_and_without_tta(
    tmp_path,
):
    cache = tmp_path / "cache"
    entries = []
    for folder in ("first", "second"):
        done = run(
            "train", DEMO, f"--workdir={tmp_path / folder}", *SMALL, *SHORT, JAX_COMPILATION_CACHE_DIR=str(cache)
        )
        assert done.returncode == 0, done.stderr
        # of the step alone: small programs are kept only if they happened to compile slowly
        entries.append({path.name for path in cache.glob("jit_train_steps-*-cache")})
    assert entries[0] == entries[1] != set()
    first, second = (
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("first", "second")
    )
    times = {"seconds", "train_seconds", "compile_seconds", "train/images_per_second"}
    for a, b in zip(first, second, strict=True):  # bit for bit
        assert {key: a[key] for key in a.keys() - times} == {key: b[key] for key in b.keys() - times}
    for tta in ("none", "flip_shift"):
        done = run("evaluate", f"--workdir={tmp_path / 'first'}", "--split=test", f"--tta={tta}")
        assert done.returncode == 0, done.stderr
        assert "95 % interval" in done.stdout and ("augmentation" in done.stdout) == (tta != "none")
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics.keys() == {"val", "test", "test_tta_flip_shift"}
    assert {metrics[name]["num_examples"] for name in metrics} == {70}
    assert (tmp_path / "first" / "figures" / "test_tta_flip_shift_confusion_matrix.png").exists()


def test_sheet_of_augmentations_shows_each_picture_as_it_is_and_changed(tmp_path):
    done = run("show_augmentations", DEMO, f"--out={tmp_path / 'sheet.png'}", "--images=3", "--draws=4")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (3 * 50 * 2, 5 * 50 * 2, 3)
    scenes = "--config=configs/widerface_rcnn.py:demo"
    done = run("show_augmentations", scenes, f"--out={tmp_path / 'scenes.png'}", "--images=2", "--draws=2")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "scenes.png")).shape == (2 * 258 * 2, 3 * 322 * 2, 3)


def test_own_boxes_are_prepared_and_told_how_the_anchors_cover_them(tmp_path, shared_data):
    """WIDER FACE's real pictures as COCO's json."""
    images, rows = [], []
    wider = open_wider_lists(shared_data / "wider_face" / "wider_face_split" / "wider_face_train_bbx_gt.txt")
    (tmp_path / "mine").mkdir()
    for number, (place, boxes) in zip(range(6), wider, strict=False):
        file = shared_data / "wider_face" / "WIDER_train" / "images" / place
        height, width = cv2.imread(str(file)).shape[:2]
        images.append({"id": number, "file_name": Path(place).name, "height": height, "width": width})
        rows += [{"id": len(rows) + i, "image_id": number, "category_id": 1, "bbox": b} for i, b in enumerate(boxes)]
        shutil.copy(file, tmp_path / "mine")
    coco = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "face"}]}
    for split in ("train", "val"):
        (tmp_path / "mine" / f"{split}.json").write_text(json.dumps(coco))
    done = run("prepare_data", "coco_json", f"--source={tmp_path / 'mine'}", f"--data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    config = ("--config=configs/widerface_rcnn.py:two_cores", "--config.data.name=coco_json")
    done = run("show_anchors", *config, f"--config.data.data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"all +{len(rows)} +\d", done.stdout)


def open_wider_lists(file: Path):
    """(picture, boxes [x, y, width, height]) of those with one to five faces."""
    lines = iter(file.read_text().splitlines())
    for place in lines:
        boxes = [[int(side) for side in next(lines).split()[:4]] for _ in range(max(1, int(next(lines))))]
        if len(boxes) <= 5 and all(min(box[2:]) > 0 for box in boxes):
            yield place, boxes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", (), "which config? For example --config=configs/fer_vgg.py"),
        (
            "train",
            ("--config=configs/fer_vgg.py", "--config.data.data_dir=/nowhere"),
            "python scripts/prepare_data.py fer2013",
        ),
        ("train", (DEMO, "--config.optim.weight_decay=0.1"), "adam has none; use adamw"),
        ("train", (DEMO, "--config.data.name=ferr"), "unknown data set 'ferr'; known are"),
        ("train", (DEMO, "--config.model.name=vgg"), "unknown model 'vgg'; known are"),
        ("evaluate", ("--workdir=/nowhere",), "/nowhere is not the folder of a run"),
        ("report", ("/nowhere",), "/nowhere holds no run: neither config.json nor metrics.jsonl is in it"),
    ],
)
def test_wrong_use_is_told_in_words_without_a_traceback(tmp_path, name, arguments, message):
    workdir = (f"--workdir={tmp_path / 'run'}",) if name == "train" else ()
    done = run(name, *arguments, *workdir)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_own_faces_are_prepared_swept_over_seeds_and_two_runs_compared(tmp_path):
    faces = open_split("drawn_faces", "train", num_examples=140)
    for index, image in enumerate(faces.read(range(140))["image"]):
        folder = tmp_path / "faces" / faces.class_names[index % 7]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"person{index // 7}.png"), image)
    data = f"--data_dir={tmp_path}"
    done = run("prepare_data", "folder", f"--source={tmp_path / 'faces'}", data, r"--identity=(person\d+)")
    assert done.returncode == 0, done.stderr
    assert "--config.data.name=folder" in done.stdout
    fields = ["--config.data.name=folder", f"--config.data.data_dir={tmp_path}", *SMALL[:2], *SHORT]
    one = f"--run=one = configs/fer_vgg.py {' '.join(fields)}"
    done = run("sweep", one, "--seeds=0,1", f"--workdir={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "sweep.md").read_text().splitlines()
    assert rows[2].startswith("| one | 2 | ") and "±" in rows[2]
    seeds = [tmp_path / "runs" / "one" / f"seed{seed}" for seed in (0, 1)]
    done = run("report", *seeds, f"--out={tmp_path / 'both.html'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"seed1 minus seed0: .* 95% interval .*; p = ", done.stdout)
    assert "Against seed0 on the same pictures" in (tmp_path / "both.html").read_text()
    done = run("prepare_data", "fer2013", f"--source={tmp_path}", "--identity=(x)")
    assert done.returncode == 1 and "fer2013 has no option --identity; its options are: none" in done.stderr


def test_a_photograph_is_read_by_the_weights_that_come_along(tmp_path):
    from matplotlib.cbook import get_sample_data

    done = run("predict", get_sample_data("grace_hopper.jpg", asfileobj=False), f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (face,) = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    x1, y1, x2, y2 = face["box"]
    assert x1 < 230 < 300 < x2 and y1 < 190 < 280 < y2  # her eyes and her chin
    assert x2 - x1 < 250 and y2 - y1 < 300 and face["score"] > 0.9
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert cv2.imread(str(tmp_path / "drawn" / "grace_hopper.jpg")).shape == (600, 512, 3)
