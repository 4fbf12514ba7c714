import json

import cv2
import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.coco_json import CocoJson
from affect_jax.data.source import BadInput

CATEGORIES = [{"id": 7, "name": "hat"}, {"id": 3, "name": "face"}]


def content(split: str) -> dict:
    """Write two images: one with a face, a hat and a crowd of faces, one without boxes."""
    return {
        "images": [
            {"id": 12, "file_name": f"images/{split}_a.png", "height": 40, "width": 50},
            {"id": 11, "file_name": f"images/{split}_b.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 3, "bbox": [3, 4, 10.5, 16], "iscrowd": 0},
            {"id": 2, "image_id": 12, "category_id": 7, "bbox": [3, 1, 10, 4]},
            {"id": 3, "image_id": 12, "category_id": 3, "bbox": [20, 4, 30, 16], "iscrowd": 1},
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "own"
    (root / "images").mkdir(parents=True)
    for split in ("train", "val"):
        write(root, split, content(split))
        for name in "ab":
            cv2.imwrite(str(root / "images" / f"{split}_{name}.png"), np.full((40, 50, 3), 90, np.uint8))
    return root


def write(root, split: str, contents: dict):
    (root / f"{split}.json").write_text(json.dumps(contents))


def test_boxes_of_any_classes_are_read_back_by_name(tmp_path, source):
    done = CocoJson.prepare(tmp_path / "data", source=source)
    assert done.counts["val"] == {"face": 2, "hat": 1} and done.config == "widerface_rcnn:two_cores"
    split = open_split("coco_json", "val", tmp_path / "data")
    assert split.class_names == ("face", "hat") and len(split) == 2
    image = split.read_image(0)
    np.testing.assert_array_equal(image["boxes"], np.float32([[3, 4, 13.5, 20], [3, 1, 13, 5], [20, 4, 50, 20]]))
    assert image["label"].tolist() == [0, 1, 0] and image["ignore"].tolist() == [False, False, True]
    assert split.box_counts().tolist() == [3, 0]
    with pytest.raises(ValueError, match="has no split test"):
        open_split("coco_json", "test", tmp_path / "data")


def spoil(name: str, number: int, **fields):
    def change(contents: dict):
        contents[name][number].update(fields)

    return change


BAD_ROWS = {
    "no area": (spoil("annotations", 1, bbox=[3, 1, 0, 4]), "train.json: annotation 2: the box .* has no area"),
    "no area in float32": (
        spoil("annotations", 1, bbox=[40.0000001, 5, 1e-7, 5]),
        "annotation 2: the box .* has no area",
    ),
    "infinite in float32": (spoil("annotations", 1, bbox=[1, 1, 1e300, 4]), "annotation 2: the box .* has no area"),
    "no numbers": (
        spoil("annotations", 1, bbox=[3, 1]),
        r"annotation 2: bbox is \[3, 1\], not \[x, y, width, height\]",
    ),
    "outside": (spoil("annotations", 0, bbox=[60, 1, 2, 4]), "annotation 1: the box .* is outside its 50x40 image"),
    "no image": (spoil("annotations", 0, image_id=99), "annotation 1: no image has the id 99"),
    "no category": (spoil("annotations", 0, category_id=1), "annotation 1: no category has the id 1"),
    "too long a name": (spoil("images", 1, file_name="a" * 300 + ".png"), "train.json: a{300}.png: File name too long"),
    "file of another image": (
        spoil("images", 1, file_name="./images/../images/train_a.png"),
        r"train.json: ./images/../images/train_a.png: another image has the same file",
    ),
    "no file": (spoil("images", 1, file_name="lost.png"), "train.json: lost.png: no such file"),
    "other size": (
        spoil("images", 1, height=50, width=40),
        "train_b.png has 50x40 pixels upright, the file states 40x50",
    ),
    "size of no number": (spoil("images", 1, width="wide"), "train_b.png: its size in the file is 'wide'"),
    "unclear crowd": (spoil("annotations", 1, iscrowd="maybe"), "annotation 2: iscrowd is 'maybe', not 0 or 1"),
    "a mask without box": (
        spoil("annotations", 1, bbox=None, segmentation={"counts": "PQ4", "size": [40, 50]}),
        "annotation 2: bbox is None, .*; masks are not read",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_entries_are_reported_and_can_be_skipped(tmp_path, source, change, message):
    contents = content("train")
    change(contents)
    write(source, "train", contents)
    with pytest.raises(BadInput, match=message):
        CocoJson.prepare(tmp_path / "data", source=source)
    assert len(CocoJson.prepare(tmp_path / "data", source=source, on_bad_row="skip").skipped) == 1


def sizes(*values):
    def change(contents: dict):
        for image, value in zip(contents["images"], values, strict=True):
            image["height"] = image["width"] = value

    return change


def texts(contents: dict):
    """Write numbers as strings."""
    for image in contents["images"]:
        image.update(id=str(image["id"]), height="40", width="50")
    for annotation in contents["annotations"]:
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
        annotation["iscrowd"] = str(annotation.get("iscrowd", 0))
        annotation["category_id"] = str(annotation["category_id"])


def masks(contents: dict):
    for annotation in contents["annotations"]:
        annotation["segmentation"] = {"counts": [0, 200, 1800], "size": [40, 50]}


def backslashes(contents: dict):
    for image in contents["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")


@pytest.mark.parametrize("change", [sizes(None, -1), sizes("", 0), texts, masks, backslashes])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_as_tools_write_them_give_the_same_boxes(tmp_path, source, change, mark):
    for split in ("train", "val"):
        contents = content(split)
        change(contents)
        (source / f"{split}.json").write_text(mark + json.dumps(contents), encoding="utf-8")
    CocoJson.prepare(tmp_path / "data", source=source)
    image = open_split("coco_json", "train", tmp_path / "data").annotations(0)
    np.testing.assert_array_equal(image["boxes"], np.float32([[3, 4, 13.5, 20], [3, 1, 13, 5], [20, 4, 50, 20]]))
    assert image["label"].tolist() == [0, 1, 0] and image["ignore"].tolist() == [False, False, True]


def test_a_split_without_boxes_is_an_error_and_a_class_without_boxes_is_reported(tmp_path, source):
    write(source, "val", {**content("val"), "annotations": content("val")["annotations"][:1]})
    assert "val has no hat" in CocoJson.prepare(tmp_path / "data", source=source).remarks
    write(source, "val", {**content("val"), "annotations": []})
    with pytest.raises(BadInput, match="val: no boxes in 2 images; label its images"):
        CocoJson.prepare(tmp_path / "others", source=source)
    write(source, "val", {**content("val"), "annotations": content("val")["annotations"][2:]})
    with pytest.raises(BadInput, match="val: every box is ignored in 2 images"):
        CocoJson.prepare(tmp_path / "others", source=source)


def test_an_image_in_two_splits_is_reported(tmp_path, source):
    assert not any("splits" in remark for remark in CocoJson.prepare(tmp_path / "data", source=source).remarks)
    shared = content("val")
    shared["images"][1]["file_name"] = "./images/train_a.png"
    write(source, "val", shared)
    done = CocoJson.prepare(tmp_path / "data", source=source, overwrite=True)
    place = source / "images" / "train_a.png"
    assert f"images in two or more splits: 1, for example {place}; results will be too high" in done.remarks


def test_checks_and_remarks_do_not_count_images_that_cannot_be_read(tmp_path, source):
    labelled = content("train")
    labelled["annotations"][0]["bbox"] = [-3, 4, 10.5, 16]
    write(source, "train", labelled)
    clipped = "1 boxes reach outside their image and were clipped at its border; the first: "
    assert any(remark.startswith(clipped) for remark in CocoJson.prepare(tmp_path / "data", source=source).remarks)
    labelled["annotations"].append({"id": 4, "image_id": 11, "category_id": 3, "bbox": [3, 4, 10, 16]})
    write(source, "train", labelled)
    damaged = source / "images" / "train_a.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    done = CocoJson.prepare(tmp_path / "data", source=source, on_bad_row="skip", overwrite=True)
    assert "train: 1 images, 1 boxes, at most 1 in an image" in done.remarks
    assert not any("were clipped" in remark for remark in done.remarks)
    assert done.counts["train"] == {"face": 1, "hat": 0}
    assert open_split("coco_json", "train", tmp_path / "data").image_names([0]) == ["images/train_b.png"]
    labelled["annotations"].pop()
    write(source, "train", labelled)
    with pytest.raises(BadInput, match=r"train: no boxes in 1 images; .* \(a bad row was skipped .*train_a.png"):
        CocoJson.prepare(tmp_path / "others", source=source, on_bad_row="skip")
    assert not list((tmp_path / "others").glob("*"))


def test_files_in_another_format_have_clear_errors(tmp_path, source):
    def assert_error(message: str):
        with pytest.raises((BadInput, FileNotFoundError), match=message):
            CocoJson.prepare(tmp_path / "data", source=source)

    write(source, "val", {**content("val"), "categories": CATEGORIES[:1]})
    assert_error("val.json: its categories are {7: 'hat'}, those of train.json")
    write(source, "val", {**content("val"), "categories": [*CATEGORIES, {"id": "7", "name": "cap"}]})
    assert_error("val.json: two categories have the same id; give each its own id")
    write(source, "val", {**content("val"), "images": [{"id": 1}]})
    assert_error("val.json: images, object number 1: file_name is None; each object of images needs file_name")
    write(source, "val", {**content("val"), "images": None})
    assert_error(
        "val.json: images does not have COCO's format; images must be a list of objects, each with id and file_name"
    )
    for name in ("\ud800", "face\nhat", " ", ""):
        write(source, "val", {**content("val"), "categories": [{"id": 3, "name": "face"}, {"id": 7, "name": name}]})
        assert_error(r"val.json: categories, object number 2: name is .*; a name must be one line of text")
    (source / "val.json").write_text("{")
    assert_error("val.json: not valid JSON")
    (source / "val.json").unlink()
    assert_error("no val.json; give a folder with train.json, val.json")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CocoJson.prepare(tmp_path / "data", source=tmp_path / "absent")
