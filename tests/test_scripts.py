"""The scripts, run as a user runs them. Runs of train.py that are stopped are in runs/test_train_script.py."""

import json
import re
import resource
import shutil
from pathlib import Path

import cv2
import pytest
from run_script import AS_USERS, fork, fork_server, start

from affect_jax.data import open_split

DEMO = "--config=configs/fer_vgg.py:demo"


@pytest.mark.slow
def test_demo_teaches_vgg_fer_the_drawn_faces_and_prints_the_next_commands(tmp_path):
    done = start("train", DEMO, f"--workdir={tmp_path}", **AS_USERS)  # a long computation
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["val"]["accuracy"]
    assert accuracy > 0.95  # logistic regression stays under 60 %: test_drawn_faces.py
    assert f"{tmp_path}/report.html" in done.stdout
    assert "python scripts/train.py --config=configs/fer_vgg.py" in done.stdout
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert {"config", "metrics", "events", "checkpoints", "report", "figures", "predictions"} <= names


def test_sheet_of_augmentations_shows_each_image_unchanged_and_changed(tmp_path):
    done = start("show_augmentations", DEMO, f"--out={tmp_path / 'sheet.png'}", "--images=3", "--draws=4")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (3 * 50 * 2, 5 * 50 * 2, 3)
    scenes = "--config=configs/widerface_rcnn.py:demo"
    done = fork("show_augmentations", scenes, f"--out={tmp_path / 'scenes.png'}", "--images=2", "--draws=2")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "scenes.png")).shape == (2 * 258 * 2, 3 * 322 * 2, 3)


def test_an_earlier_sheet_of_augmentations_is_kept_if_the_disk_is_full(tmp_path):
    out = tmp_path / "sheet.png"
    out.write_text("earlier")
    server, (soft, hard) = fork_server().pid, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (1000, hard))  # of the forked script
    try:
        done = fork("show_augmentations", DEMO, f"--out={out}", "--images=3", "--draws=4")
    finally:
        resource.prlimit(server, resource.RLIMIT_FSIZE, (soft, hard))
    assert done.returncode == 1 and done.stderr == f"OSError: [Errno 27] File too large: '{out}'\n"
    assert out.read_text() == "earlier" and list(tmp_path.iterdir()) == [out]


def test_the_result_of_an_audit_replaces_an_earlier_one_as_a_whole(tmp_path):
    earlier, out = tmp_path / "earlier.json", tmp_path / "audit.json"
    earlier.write_text("earlier")
    out.hardlink_to(earlier)  # a file that is written in place would change both
    done = fork("audit_data", "drawn_faces", "--num_examples=9", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["dataset"] == "drawn_faces" and earlier.read_text() == "earlier"


def test_own_boxes_are_prepared_and_the_coverage_by_anchors_is_printed(tmp_path, shared_data):
    """The boxes are those of real images of WIDER FACE, as COCO's json."""
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
    done = start("prepare_data", "coco_json", f"--source={tmp_path / 'mine'}", f"--data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    config = ("--config=configs/widerface_rcnn.py:two_cores", "--config.data.name=coco_json")
    done = fork("show_anchors", *config, f"--config.data.data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"all +{len(rows)} +\d", done.stdout)


def open_wider_lists(file: Path):
    """Yield (image, boxes [x, y, width, height]) of the images with one to five faces."""
    lines = iter(file.read_text().splitlines())
    for place in lines:
        boxes = [[int(side) for side in next(lines).split()[:4]] for _ in range(max(1, int(next(lines))))]
        if len(boxes) <= 5 and all(min(box[2:]) > 0 for box in boxes):
            yield place, boxes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "train",
            ("--config=configs/fer_vgg.py", "--config.data.data_dir=/nowhere"),
            "python scripts/prepare_data.py fer2013",
        ),
        ("train", (DEMO, "--config.optim.weight_decay=0.1"), "adam has none; use adamw"),
        ("train", (DEMO, "--config.data.name=ferr"), "unknown data set 'ferr'; known are"),
        ("train", (DEMO, "--config.model.name=vgg"), "unknown model 'vgg'; known are"),
        ("evaluate", ("--workdir=/nowhere",), "/nowhere is not the folder of a run"),
        ("evaluate", ("--model=/nowhere",), "/nowhere: neither a model file nor the folder of a run"),
        (
            "prune",
            ("--model=/nowhere", "--out=/nowhere.safetensors"),
            "/nowhere: neither a model file nor the folder of a run",
        ),
        (
            "prune",
            ("--model=affect_jax/predict/weights/widerface_yunet.safetensors", "--out=/nowhere.safetensors"),
            "is a faster_rcnn; only vgg_fer can be pruned",
        ),
        (
            "prepare_data",
            ("fer2013", "--source=/nowhere", "--identity=(x)"),
            "fer2013 has no option --identity; its options are: none",
        ),
        ("report", ("/nowhere",), "/nowhere is not the folder of a run: it has neither config.json nor metrics.jsonl"),
        (
            "audit_data",
            ("drawn_faces", "--num_examples=9", "--out=/nowhere/a.json"),
            "--out=/nowhere/a.json: /nowhere is not a folder where you may write",
        ),
        ("show_anchors", ("--config=configs/widerface_rcnn.py", "--config.data.data_dir=/nowhere"), "prepare_data.py"),
        ("show_augmentations", (DEMO, "--config.data.name=ferr"), "unknown data set 'ferr'; known are"),
        ("sweep", ("--run=a = nowhere.py", "--seeds=zero", "--workdir=/nowhere"), "--seeds=zero; give whole numbers"),
    ],
)
def test_wrong_use_is_an_error_without_a_traceback(tmp_path, name, arguments, message):
    workdir = (f"--workdir={tmp_path / 'run'}",) if name == "train" else ()
    done = fork(name, *arguments, *workdir)
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
    done = fork(
        "prepare_data", "folder", f"--source={tmp_path / 'faces'}", f"--data_dir={tmp_path}", r"--identity=(person\d+)"
    )
    assert done.returncode == 0, done.stderr
    command = next(line for line in done.stdout.splitlines() if line.startswith("next: "))
    assert command.startswith(
        "next: python scripts/train.py --config=configs/fer_vgg_best.py:narrow --config.data.name="
    )
    assert " --config.batch_size=16 " in command  # train has fewer images than a batch of the config
    fields = f"--config.data.name=folder --config.data.data_dir={tmp_path} --config.data.options={{}}"
    done = fork("sweep", f"--run=one = tests/linear_model.py {fields}", "--seeds=0,1", f"--workdir={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "runs" / "sweep.md").read_text().splitlines()
    assert rows[2].startswith("| one | 2 | ") and "±" in rows[2]
    seeds = [tmp_path / "runs" / "one" / f"seed{seed}" for seed in (0, 1)]
    done = fork("report", *seeds, f"--out={tmp_path / 'both.html'}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"seed1 minus seed0: .* 95 % interval .*; p = ", done.stdout)
    assert "Difference from seed0 on the same images" in (tmp_path / "both.html").read_text()


def test_bundled_weights_find_and_read_the_face_in_a_photograph(tmp_path):
    from matplotlib.cbook import get_sample_data

    done = start("predict", get_sample_data("grace_hopper.jpg", asfileobj=False), f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (face,) = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    x1, y1, x2, y2 = face["box"]
    assert x1 < 230 < 300 < x2 and y1 < 190 < 280 < y2  # her eyes and her chin
    assert x2 - x1 < 250 and y2 - y1 < 300 and face["score"] > 0.9
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert cv2.imread(str(tmp_path / "drawn" / "grace_hopper.jpg")).shape == (600, 512, 3)
