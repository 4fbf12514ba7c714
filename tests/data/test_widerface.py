import cv2
import numpy as np
import pytest
from PIL import Image

from affect_jax.data import open_split
from affect_jax.data.source import BadInput
from affect_jax.data.widerface import Widerface

TRAIN = """0--Parade/a.jpg
2
3 4 10 16 0 0 0 0 0 0 
30 10 8 12 2 0 1 1 2 0 
0--Parade/b.jpg
0
0 0 0 0 0 0 0 0 0 0 
1--Handshaking/c.jpg
1
20 5 10 12 0 0 0 0 0 0 
"""


@pytest.fixture
def source(tmp_path):
    """Write three training images in the original layout without val; c.jpg is rotated by its EXIF orientation."""
    root = tmp_path / "wider_face"
    rng = np.random.default_rng(0)
    for name in ("0--Parade/a", "0--Parade/b", "1--Handshaking/c"):
        path = root / "WIDER_train" / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name.endswith("c") else 1
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(path, exif=exif)
    (root / "wider_face_split").mkdir()
    (root / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text(TRAIN)
    return root


def write_list(source, text: str):
    (source / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text(text)


def test_images_are_read_back_with_their_boxes_and_invalid_faces_are_ignored(tmp_path, source):
    done = Widerface.prepare(tmp_path / "data", source=source)
    assert done.counts["train"] == {"face": 3}
    for remark in ("train: 1 images without boxes are kept", "train: 1 boxes are ignored in evaluation"):
        assert remark in done.remarks
    split = open_split("widerface", "train", tmp_path / "data")
    image = split.read_image(0)
    np.testing.assert_array_equal(image["boxes"], [[3, 4, 13, 20], [30, 10, 38, 22]])
    assert image["ignore"].tolist() == [False, True] and image["label"].tolist() == [0, 0]
    assert split.box_counts().tolist() == [2, 0, 1] and split.image_names([1]) == ["WIDER_train/images/0--Parade/b.jpg"]


def test_sizes_and_pixels_equal_those_of_opencv(tmp_path, source):
    Widerface.prepare(tmp_path / "data", source=source)
    split = open_split("widerface", "train", tmp_path / "data")
    assert split.sizes().tolist() == [[40, 50], [40, 50], [50, 40]]
    for index, place in enumerate(split.image_names(range(3))):
        np.testing.assert_array_equal(split.read_image(index)["image"][..., ::-1], cv2.imread(str(source / place)))


BAD = {
    "count": (
        TRAIN.replace("jpg\n2\n", "jpg\n3\n"),
        "gt.txt, row 2: 0--Parade/a.jpg: the list announces 3 faces, 2 lines",
        1,
    ),
    "no count": (TRAIN.replace("jpg\n1\n", "jpg\n"), "gt.txt, row 9: no number of faces after 1--Hand", 2),
    "cut line": (
        TRAIN.replace("3 4 10 16 0", "3 4 10 16"),
        r"gt.txt, row 3: '3 4 10 .*' is not x1 y1 w h and 6 attr",
        2,
    ),
    "outside": (TRAIN.replace("20 5 10", "40 5 10"), r"gt.txt, row 10: the box .* is outside its 40x50 image", 2),
    "no image": (
        TRAIN.replace("b.jpg", "d.jpg"),
        "gt.txt, row 5: WIDER_train/images/0--Parade/d.jpg: no such file",
        3,
    ),
    "no name": ("7\n" + TRAIN, "gt.txt, row 1: '7' comes before the first image", 3),
}


@pytest.mark.parametrize(("text", "message", "faces"), BAD.values(), ids=BAD)
def test_bad_lines_are_reported_and_can_be_skipped(tmp_path, source, text, message, faces):
    write_list(source, text)
    with pytest.raises(BadInput, match=message):
        Widerface.prepare(tmp_path / "data", source=source)
    done = Widerface.prepare(tmp_path / "data", source=source, on_bad_row="skip")
    assert len(done.skipped) == 1 and done.counts["train"] == {"face": faces}


def test_boxes_without_area_are_left_out_and_counted(tmp_path, source):
    without_area = TRAIN.replace("3 4 10 16", "3 4 0 16").replace("20 5 10 12", "20 5 10 0")
    write_list(source, without_area.replace("2 0 1 1 2 0", "2 0 1 0 2 0"))
    done = Widerface.prepare(tmp_path / "data", source=source)
    assert done.counts["train"] == {"face": 1} and not done.skipped
    (remark,) = [remark for remark in done.remarks if "without area" in remark]
    assert remark.startswith("2 boxes without area were left out; the first: ") and remark.endswith("gt.txt, row 3")
    assert open_split("widerface", "train", tmp_path / "data").box_counts().tolist() == [1, 0, 0]


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4damaged"])
def test_a_missing_or_damaged_index_is_an_error_that_names_it(tmp_path, source, content):
    prepared = Widerface.prepare(tmp_path / "data", source=source)
    index = prepared.directory / "boxes_train.npz"
    index.unlink() if content is None else index.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=f"{index} (is missing|cannot be used)"):
        open_split("widerface", "train", tmp_path / "data")


def test_a_wrong_folder_has_a_clear_error(tmp_path):
    with pytest.raises(BadInput, match=r"no wider_face_split/.*give a folder with WIDER_train/images"):
        Widerface.prepare(tmp_path / "data", source=tmp_path)


def test_the_real_images_have_their_counts_and_skin_colors_in_their_boxes(tmp_path, shared_data):
    folder = shared_data / "wider_face"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    for name in ("WIDER_val", "WIDER_train"):  # reading the images of val is enough
        (tmp_path / "part" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "part" / name).symlink_to(folder / name)
    (tmp_path / "part" / "wider_face_split").mkdir()
    val_list = "wider_face_split/wider_face_val_bbx_gt.txt"
    (tmp_path / "part" / val_list).symlink_to(folder / val_list)
    done = Widerface.prepare(tmp_path / "data", source=tmp_path / "part")
    assert done.counts["val"] == {"face": 1827}
    split = open_split("widerface", "test", tmp_path / "data")
    assert len(split) == 180
    redder = []
    for index in range(0, 180, 9):
        image = split.read_image(index)
        assert image["image"].shape[:2] == tuple(split.sizes()[index])
        for x1, y1, x2, y2 in image["boxes"].astype(int):
            face = image["image"][y1:y2, x1:x2].reshape(-1, 3).mean(axis=0)
            redder.append(face[0] > face[2])
    assert np.mean(redder) > 0.8  # skin is redder in RGB
