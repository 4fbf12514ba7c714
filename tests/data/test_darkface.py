import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.darkface import NUM_LABELLED, Darkface, val_numbers
from affect_jax.data.source import BadInput

IN_VAL, IN_TRAIN = 234, 252
LABELS = {IN_VAL: "2\n3 4 13 20\n30 10 40 22\n", IN_TRAIN: "0\n", 1: "1\n5 5 9 12\n"}


@pytest.fixture
def source(tmp_path):
    """Write three noise images in the original layout."""
    root = tmp_path / "dark_face"
    (root / "image").mkdir(parents=True)
    (root / "label").mkdir()
    rng = np.random.default_rng(0)
    for number, label in LABELS.items():
        cv2.imwrite(str(root / "image" / f"{number}.png"), rng.integers(0, 60, (40, 50, 3), np.uint8))
        (root / "label" / f"{number}.txt").write_text(label)
    return root


def test_the_committed_list_is_the_600_names_of_lowest_sha256():
    def digest(number: int) -> str:
        return hashlib.sha256(f"{number}.png".encode()).hexdigest()

    assert sorted(val_numbers()) == sorted(sorted(range(1, NUM_LABELLED + 1), key=digest)[:600])


def test_images_are_read_back_with_their_boxes_in_the_split_of_the_list(tmp_path, source):
    done = Darkface.prepare(tmp_path / "data", source=source)
    assert done.counts == {"train": {"face": 1}, "val": {"face": 2}, "test": {"face": 0}}
    for remark in (
        "train: 2 images, 1 boxes, at most 1 in an image",
        "train: 1 images without boxes are kept",
        "train has 2 images, the published set has 5,400",
    ):
        assert remark in done.remarks
    train, val = (open_split("darkface", split, tmp_path / "data") for split in ("train", "val"))
    assert val.class_names == ("face",) and val.image_names([0]) == [f"image/{IN_VAL}.png"]
    assert train.image_names(np.arange(2)) == ["image/1.png", f"image/{IN_TRAIN}.png"]
    assert train.sizes().tolist() == [[40, 50]] * 2 and train.box_counts().tolist() == [1, 0]
    expected = np.array([[3, 4, 13, 20], [30, 10, 40, 22]], np.float32)
    np.testing.assert_array_equal(val.boxes(0), expected)
    for split in (val, pickle.loads(pickle.dumps(val)), open_split("darkface", "test", tmp_path / "data")):
        image = split.read_image(0)
        np.testing.assert_array_equal(image["image"][..., ::-1], cv2.imread(str(source / "image" / f"{IN_VAL}.png")))
        np.testing.assert_array_equal(image["boxes"], expected)
        assert {name: (array.dtype, array.shape) for name, array in image.items()} == {
            "image": (np.uint8, (40, 50, 3)),
            "boxes": (np.float32, (2, 4)),
            "label": (np.int32, (2,)),
            "ignore": (np.bool_, (2,)),
        }
    empty = train.read_image(1)
    assert empty["boxes"].shape == (0, 4) and empty["boxes"].dtype == np.float32
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"index {index} of 2"):
            train.read_image(index)


def test_records_have_the_original_bytes_and_the_boxes_of_the_index(tmp_path, source):
    Darkface.prepare(tmp_path / "data", source=source)
    val = open_split("darkface", "val", tmp_path / "data")
    (record,) = val._records.read(np.array([0]))
    assert record["image"].bytes_list.value[0] == (source / "image" / f"{IN_VAL}.png").read_bytes()
    np.testing.assert_array_equal(np.reshape(record["boxes"].float_list.value, (-1, 4)), val.boxes(0))
    assert list(record["size"].int64_list.value) == val.sizes()[0].tolist()


def test_all_images_go_to_the_requested_split(tmp_path, source):
    done = Darkface.prepare(tmp_path / "data", source=source, as_split="val")
    assert done.counts["val"] == {"face": 3} and not any("published" in remark for remark in done.remarks)
    assert len(open_split("darkface", "test", tmp_path / "data")) == 3
    with pytest.raises(ValueError, match="has no split train; it has val"):
        open_split("darkface", "train", tmp_path / "data")
    with pytest.raises(ValueError, match="as_split is 'test'"):
        Darkface.prepare(tmp_path / "other", source=source, as_split="test")


BAD = {
    "count": ("3\n3 4 13 20\n", r"label/234.txt, row 1: the header announces 3 faces, the file has 1", 0),
    "no count": ("3 4 13 20\n", r"label/234.txt, row 1: the number of faces is '3 4 13 20'", 0),
    "empty file": ("", r"label/234.txt, row 1: the number of faces is ''", 0),
    "three numbers": ("2\n3 4 13 20\n1 2 3\n", r"label/234.txt, row 3: '1 2 3' is not x1 y1 x2 y2", 1),
    "no area": ("2\n9 4 9 20\n3 4 13 20\n", r"label/234.txt, row 2: the box \[9.0, 4.0, 9.0, 20.0\] has no area", 1),
    "nan": ("2\n9 4 nan 20\n3 4 13 20\n", r"label/234.txt, row 2: the box .*nan.* has no area", 1),
    "outside": ("2\n3 4 13 20\n50 4 59 20\n", r"label/234.txt, row 3: the box .* is outside its 50x40 image", 1),
}


@pytest.mark.parametrize(("label", "message", "faces"), BAD.values(), ids=BAD)
def test_bad_lines_are_reported_and_can_be_skipped(tmp_path, source, label, message, faces):
    (source / "label" / f"{IN_VAL}.txt").write_text(label)
    with pytest.raises(BadInput, match=message + ".*--on_bad_row=skip"):
        Darkface.prepare(tmp_path / "data", source=source)
    done = Darkface.prepare(tmp_path / "data", source=source, on_bad_row="skip")
    assert len(done.skipped) == 1 and done.counts["val"] == {"face": faces}


def test_a_box_outside_the_border_is_clipped_with_a_remark(tmp_path, source):
    (source / "label" / f"{IN_VAL}.txt").write_text("1\n-3 4 13 48\n")
    done = Darkface.prepare(tmp_path / "data", source=source)
    np.testing.assert_array_equal(open_split("darkface", "val", tmp_path / "data").boxes(0), [[0, 4, 13, 40]])
    assert any(remark.startswith("1 boxes reach") and "234.txt, row 2" in remark for remark in done.remarks)


def test_unpaired_and_broken_images_are_reported_and_left_out_of_records_and_index(tmp_path, source):
    broken = source / "image" / "1.png"
    broken.write_bytes(broken.read_bytes()[:1500])
    with pytest.raises(BadInput, match=r"image/1.png: not a readable image"):
        Darkface.prepare(tmp_path / "data", source=source)
    assert list((tmp_path / "data").iterdir()) == []
    (source / "label" / "77.txt").write_text("0\n")
    (source / "image" / "78.png").write_bytes((source / "image" / "252.png").read_bytes())
    with pytest.raises(BadInput, match=r"label/77.txt: no image/77.png"):
        Darkface.prepare(tmp_path / "data", source=source)
    (source / "label" / f"{IN_TRAIN}.txt").write_text("1\n5 5 9 12\n")
    done = Darkface.prepare(tmp_path / "data", source=source, on_bad_row="skip")
    assert sorted(error.file.rsplit("/", 1)[1] for error in done.skipped) == ["1.png", "77.txt", "78.png"]
    assert done.counts["train"] == {"face": 1}
    train = open_split("darkface", "train", tmp_path / "data")
    assert len(train) == len(train.sizes()) == 1 and train.image_names([0]) == [f"image/{IN_TRAIN}.png"]


def test_a_wrong_folder_has_a_clear_error(tmp_path, source):
    with pytest.raises(BadInput, match=r"no folder image and label; give a folder with image/N\.png and"):
        Darkface.prepare(tmp_path / "data", source=source / "image")
    with pytest.raises(FileNotFoundError, match=r"not prepared; run\n  python scripts/prepare_data\.py darkface"):
        open_split("darkface", "val", tmp_path / "data")


def test_the_real_images_are_read_back_with_their_known_boxes(tmp_path, shared_data):
    folder = shared_data / "dark_face"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    known = json.loads((folder / "boxes_of_all_6000.json").read_text())
    Darkface.prepare(tmp_path, source=folder, as_split="val")
    split = open_split("darkface", "val", tmp_path)
    assert split.image_names(range(4)) == [f"image/{number}.png" for number in (234, 252, 1482, 2850)]
    for index, place in enumerate(split.image_names(range(4))):
        image = split.read_image(index)
        assert image["image"].shape == (720, 1080, 3)
        x, y, width, height = np.array(known[place.removeprefix("image/")]["boxes"]).T
        np.testing.assert_array_equal(image["boxes"], np.stack([x, y, x + width, y + height], axis=1))


def test_hidden_files_are_ignored(tmp_path, source):
    for name in ("image/._1.png", "label/._1.txt", "image/.DS_Store"):
        (source / name).write_bytes(b"junk")
    assert not any("._1" in remark for remark in Darkface.prepare(tmp_path / "data", source=source).remarks)
