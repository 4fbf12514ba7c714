import csv
import gzip

import cv2
import numpy as np
import pytest

from affect_jax import labels
from affect_jax.data import open_split
from affect_jax.data.affectnet import COLUMNS, TRAINING_COUNTS, Affectnet, parse_box, parse_target
from affect_jax.data.drawn_faces import DrawnFaces
from affect_jax.data.source import BadInput

# (expression, valence, arousal) of the training and of the validation faces; 8 none, 9 uncertain, 10 non-face
TRAINING = [(index % 8, round(-0.9 + 0.05 * index, 2), round(0.8 - 0.03 * index, 2)) for index in range(32)]
TRAINING += [(8, 0.0, 0.1), (9, -2.0, -2.0), (10, -2.0, -2.0)]
VALIDATION = [(index % 8, 0.25, -0.5) for index in range(16)]
SPLITS = (("train_set", "training.csv", TRAINING), ("val_set", "validation.csv", VALIDATION))


def face(index: int, size: int = 224) -> np.ndarray:
    """Return a drawn face in BGR whose color depends on its index."""
    gray = DrawnFaces("train", num_examples=64, image_size=(size, size)).read(np.array([index]))["image"][0]
    tint = np.array([index * 4, 255 - index * 4, 128])
    return np.round(0.3 * gray + 0.7 * tint).astype(np.uint8)


@pytest.fixture
def npy_layout(tmp_path):
    """Write train_set/images/N.jpg and annotations/N_{exp,val,aro,lnd}.npy, values as text like the originals."""
    root = tmp_path / "npy"
    for folder, _, rows in SPLITS:
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "annotations").mkdir()
        for index, (expression, valence, arousal) in enumerate(rows):
            cv2.imwrite(str(root / folder / "images" / f"{index}.jpg"), face(index), [cv2.IMWRITE_JPEG_QUALITY, 98])
            stem = root / folder / "annotations" / str(index)
            for name, value in (("exp", expression), ("val", valence), ("aro", arousal)):
                np.save(f"{stem}_{name}.npy", np.array(str(value)))
            np.save(f"{stem}_lnd.npy", np.linspace(0, 223, 136))
    return root


@pytest.fixture
def csv_layout(tmp_path):
    """Write training.csv, validation.csv and whole images Manually_Annotated_Images/<folder>/NAME.jpg."""
    root = tmp_path / "csv"
    for number, (_, name, rows) in enumerate(SPLITS):
        folder = root / "Manually_Annotated_Images" / str(100 + number)
        folder.mkdir(parents=True)
        with open(root / name, "w", newline="") as out:
            writer = csv.DictWriter(out, [*COLUMNS[:5], "facial_landmarks", *COLUMNS[5:]])
            writer.writeheader()
            for index, (expression, valence, arousal) in enumerate(rows):
                image = np.zeros((300, 400, 3), np.uint8)
                image[40:240, 100:300] = face(index, 200)
                cv2.imwrite(str(folder / f"{index}.png"), image)
                box = ("NULL",) * 4 if expression == 10 else (100, 40, 200, 200)
                row = (f"{100 + number}/{index}.png", *box, expression, valence, arousal)
                writer.writerow({**dict(zip(COLUMNS, row, strict=True)), "facial_landmarks": "1;2;3;4"})
    return root


def prepare(tmp_path, source, **options):
    options = {"val_per_class": 1, "allow_other_counts": True, "image_size": 96, **options}
    return Affectnet.prepare(tmp_path / "data", source=source, **options)


@pytest.mark.parametrize("layout", ["npy_layout", "csv_layout"])
def test_both_layouts_give_the_faces_in_color_with_their_targets(tmp_path, layout, request):
    done = prepare(tmp_path, request.getfixturevalue(layout), margin=0.0)
    assert {split: sum(counts.values()) for split, counts in done.counts.items()} == {"train": 24, "val": 8, "test": 16}
    assert set(done.counts["val"].values()) == {1}  # for each class
    assert [f"1 faces left out: {name}" in done.remarks for name in ("none", "uncertain", "non-face")] == [True] * 3
    seen = set()
    for split, rows in (("train", TRAINING), ("val", TRAINING), ("test", VALIDATION)):
        opened = open_split("affectnet", split, tmp_path / "data")
        batch = opened.read(np.arange(len(opened)))
        assert opened.class_names == labels.AFFECTNET and opened.image_shape == (96, 96, 3)
        targets = (batch[key] for key in ("image", "label", "valence_arousal"))
        names = opened.image_names(np.arange(len(opened)))
        for name, image, label, valence_arousal in zip(names, *targets, strict=True):
            # N.jpg, or row N + 2 after the header
            index = int(name.split("/")[-1].removesuffix(".jpg")) if "jpg" in name else int(name.split()[-1]) - 2
            assert (label, *valence_arousal) == pytest.approx(rows[index])
            expected = cv2.resize(face(index), (96, 96), interpolation=cv2.INTER_AREA)[..., ::-1]
            assert np.abs(image.astype(int) - expected).mean() < 4
            seen.add((name, split))
    assert len(seen) == 48  # no face twice, no face lost


def test_the_margin_grows_the_box_of_whole_images(tmp_path, csv_layout):
    prepare(tmp_path, csv_layout, margin=0.25)
    opened = open_split("affectnet", "test", tmp_path / "data")
    image = opened.read(np.array([0]))["image"][0]
    assert image[48, 48].any() and not image[4].any()  # the face in the middle, black around it


def test_val_has_the_same_faces_for_any_order_of_the_source(tmp_path, npy_layout):
    def val_files(name):
        Affectnet.prepare(tmp_path / name, source=npy_layout, val_per_class=2, allow_other_counts=True)
        opened = open_split("affectnet", "val", tmp_path / name)
        return opened.image_names(np.arange(len(opened)))

    assert val_files("a") == val_files("b") and len(val_files("c")) == 16


def test_seven_classes_exclude_contempt_and_count_it(tmp_path, npy_layout):
    done = prepare(tmp_path, npy_layout, num_classes=7)
    assert "contempt" not in done.counts["test"] and sum(done.counts["test"].values()) == 14
    assert "6 faces left out: contempt" in done.remarks


def test_other_counts_are_an_error_with_found_and_published_counts(tmp_path, npy_layout):
    with pytest.raises(BadInput, match=r"neutral 4 instead of 74,874 and 2 instead of 500.*--allow_other_counts"):
        prepare(tmp_path, npy_layout, allow_other_counts=False)
    assert sum(TRAINING_COUNTS.values()) == 287_651


def test_a_bad_row_is_reported_with_file_and_row_and_can_be_skipped(tmp_path, csv_layout):
    text = (csv_layout / "training.csv").read_text().splitlines()
    text[5] = text[5].replace(",4,", ",11,", 1)
    (csv_layout / "training.csv").write_text("\n".join(text))
    (csv_layout / "Manually_Annotated_Images" / "100" / "7.png").unlink()
    with pytest.raises(BadInput, match=r"training.csv, row 6: expression is '11', not 0 to 10"):
        prepare(tmp_path, csv_layout)
    done = prepare(tmp_path, csv_layout, on_bad_row="skip")
    assert [(error.file.rsplit("/", 1)[1], error.row) for error in done.skipped] == [
        ("training.csv", 6),
        ("training.csv", 9),
    ]
    assert "7.png: no such file" in done.skipped[1].reason


def test_lists_in_a_folder_of_the_source_are_named_with_it_and_give_the_same_val(tmp_path, csv_layout):
    def val_names():
        prepare(tmp_path, csv_layout, overwrite=True)
        opened = open_split("affectnet", "val", tmp_path / "data")
        return opened.image_names(np.arange(len(opened)))

    at_top = val_names()
    (csv_layout / "lists").mkdir()
    for name in ("training.csv", "validation.csv"):
        (csv_layout / name).rename(csv_layout / "lists" / name)
    assert val_names() == [f"lists/{name}" for name in at_top]
    (csv_layout / "Manually_Annotated_Images" / "100" / "7.png").unlink()
    with pytest.raises(BadInput, match=rf"^{csv_layout}/lists/training.csv, row 9: .*7.png: no such file"):
        prepare(tmp_path, csv_layout, overwrite=True)


def test_a_missing_annotation_is_reported_with_its_image(tmp_path, npy_layout):
    (npy_layout / "val_set" / "annotations" / "3_aro.npy").unlink()
    with pytest.raises(BadInput, match=r"val_set/images/3.jpg: no 3_aro.npy"):
        prepare(tmp_path, npy_layout)


def test_the_error_for_an_unknown_layout_names_the_known_layouts(tmp_path):
    with pytest.raises(BadInput, match=r"not one of the two layouts.*train_set/ and val_set/, or with training.csv"):
        prepare(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 6}, "num_classes is 6"),
        ({"image_size": 0}, "image_size is 0"),
        ({"margin": -3.0}, "margin is -3.0; must be between 0 and 1"),
        ({"val_per_class": 0}, "val_per_class is 0; must be at least 1"),
    ],
)
def test_wrong_options_are_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, tmp_path, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("x", "0", "0"), "expression is 'x'"),
        (("3", "1.5", "0"), "not between -1 and 1"),
        (("3", "-2", "-2"), "not between -1 and 1"),
        (("3", "", "0"), "are not numbers"),
        (("3", "nan", "0"), "not between -1 and 1"),
    ],
)
def test_invalid_targets_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        parse_target(*values)


def test_boxes_are_converted_to_corners_and_null_to_none():
    assert parse_box("10", "20", "30", "40") == (10, 20, 40, 60)
    assert parse_box("NULL", "NULL", "NULL", "NULL") is None
    with pytest.raises(ValueError, match="0 wide"):
        parse_box("10", "20", "0", "40")


def test_hidden_files_are_ignored_and_lists_may_be_compressed(tmp_path, npy_layout, csv_layout):
    (npy_layout / "train_set" / "images" / "._0.jpg").write_bytes(b"junk")
    of_npy = prepare(tmp_path, npy_layout)
    text = (csv_layout / "training.csv").read_bytes()
    (csv_layout / "training.csv.gz").write_bytes(gzip.compress(text))
    (csv_layout / "training.csv").unlink()
    assert prepare(tmp_path, csv_layout, overwrite=True).counts == of_npy.counts
