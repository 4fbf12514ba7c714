import bz2
import gzip
import pickle
import tarfile
import zipfile
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image
from prepared_sheet import USAGES, assert_is_sheet, prepare, read_all

from affect_jax import labels
from affect_jax.data import open_split
from affect_jax.data.fer2013 import CLASS_COUNTS, Fer2013, count_differences
from affect_jax.data.ferplus import CLASS_COUNTS as FERPLUS_COUNTS
from affect_jax.data.source import BadInput


def test_the_real_challenge_has_the_published_counts_pixels_and_labels(real_fer2013, tmp_path):
    path, faces, rows = real_fer2013
    done = Fer2013.prepare(tmp_path, source=path)
    assert list(done.counts["train"].values()) == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert list(done.counts["val"].values()) == [467, 56, 496, 895, 653, 415, 607]
    assert list(done.counts["test"].values()) == [491, 55, 528, 879, 594, 416, 626]
    for split, usage in USAGES.items():
        where = np.array([index for index, row in enumerate(rows) if row["Usage"] == usage])
        of = open_split("fer2013", split, tmp_path)
        assert len(of) == len(where)
        assert of.class_names == labels.FER2013
        sample = np.random.default_rng(0).permutation(len(of))[:2000]
        batch = of.read(sample)
        np.testing.assert_array_equal(batch["image"][..., 0], faces[where[sample]])
        np.testing.assert_array_equal(batch["label"], [int(rows[i]["emotion"]) for i in where[sample]])
        assert of.image_names(sample[:1]) == [f"fer2013.csv, row {where[sample[0]] + 2}"]


def test_a_split_reads_any_indices_and_pickles(sheet, write_csv, tmp_path):
    prepare(write_csv(sheet.rows()), tmp_path)
    split = open_split("fer2013", "train", tmp_path)
    indices = np.array([4, 0, 4, 5], np.int32)
    for of in (split, pickle.loads(pickle.dumps(split))):
        batch = of.read(indices)
        np.testing.assert_array_equal(batch["image"][..., 0], sheet.images[indices])
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        assert batch["image"].shape[1:] == of.image_shape == (48, 48, 1)
    assert split.read(np.array([], np.int32))["image"].shape == (0, 48, 48, 1)


def with_bom(text):
    return b"\xef\xbb\xbf" + text


def with_crlf(text):
    return text.replace(b"\n", b"\r\n")


def with_empty_last_lines(text):
    return text + b"\n\n"


def without_last_newline(text):
    return text.rstrip(b"\n")


@pytest.mark.parametrize("change", [with_bom, with_crlf, with_empty_last_lines, without_last_newline])
def test_changes_made_by_spreadsheets_have_no_effect(sheet, write_csv, tmp_path, change):
    path = write_csv(sheet.rows())
    path.write_bytes(change(path.read_bytes()))
    prepare(path, tmp_path)
    assert_is_sheet(tmp_path, sheet)


def test_the_later_format_with_spaces_in_its_header_gives_the_same_data(sheet, write_csv, tmp_path):
    rows = [[emotion, usage, pixels] for emotion, pixels, usage in sheet.rows()]
    prepare(write_csv(rows, "emotion, Usage, pixels", "icml_face_data.csv"), tmp_path)
    assert_is_sheet(tmp_path, sheet)


def gzipped(path):
    compressed = path.with_name("faces.gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    return compressed


def zipped(path):
    with zipfile.ZipFile(path.with_name("archive.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._fer2013.csv", b"junk")
        archive.writestr("example_submission.csv", b"emotion\n0\n")
        archive.write(path, "challenge/fer2013.csv")
    return path.with_name("archive.zip")


def tarred(path):
    (path.parent / "unpacked").mkdir()
    with tarfile.open(path.parent / "unpacked" / "fer2013.tar.gz", "w:gz") as archive:
        archive.add(path, "fer2013/fer2013.csv")
        archive.add(path, "fer2013/README")
    path.unlink()
    return path.parent


def tarred_alone(path):
    with tarfile.open(path.with_name("fer2013.tar"), "w") as archive:
        archive.add(path, "fer2013.csv")
    return path.with_name("fer2013.tar")


def only_the_folder(path):
    return path.parent


@pytest.mark.parametrize("change", [gzipped, zipped, tarred, tarred_alone, only_the_folder])
def test_compressed_files_and_their_folder_give_the_same_data(sheet, write_csv, tmp_path, change):
    prepare(change(write_csv(sheet.rows())), tmp_path / "data")
    assert_is_sheet(tmp_path / "data", sheet)


@pytest.mark.parametrize("change", [gzipped, zipped])
def test_a_damaged_compressed_file_is_an_error_that_names_it(sheet, write_csv, tmp_path, change):
    path = change(write_csv(sheet.rows()))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadInput, match=f"{path}: cannot be decompressed .*; download it again"):
        prepare(path, tmp_path / "data")


def test_an_archive_of_other_files_is_an_error_that_lists_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(BadInput, match=r"the archive has a.csv, b.csv, not fer2013.csv or icml_face_data.csv; unpack"):
        prepare(tmp_path / "other.zip", tmp_path / "data")


def folder_source(root, sheet):
    for index, (image, emotion, usage) in enumerate(zip(*sheet, strict=True)):
        split = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}[usage]
        path = root / split / labels.FER2013[emotion] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    return root


def test_a_folder_of_faces_gives_the_same_examples_and_names_their_files(sheet, tmp_path):
    prepare(folder_source(tmp_path / "faces", sheet), tmp_path)
    for split, batch in read_all(tmp_path).items():
        names = open_split("fer2013", split, tmp_path).image_names(np.arange(len(batch["label"])))
        indices = [int(name.split("/")[-1].removesuffix(".png")) for name in names]
        assert sorted(indices) == sheet.indices(USAGES[split])
        np.testing.assert_array_equal(batch["image"][..., 0], sheet.images[indices])
        np.testing.assert_array_equal(batch["label"], [sheet.emotions[i] for i in indices])


def test_hidden_and_system_files_of_a_folder_are_ignored_and_other_files_are_named(sheet, tmp_path):
    root = folder_source(tmp_path / "faces", sheet)
    for folder in (root, root / "train", root / "train" / "angry"):
        (folder / ".DS_Store").write_bytes(b"junk")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (folder / name).mkdir()
            (folder / name / "0.png").write_bytes(b"junk")
    (root / "train" / "angry" / "._0.png").write_bytes(b"junk")
    (root / "train" / "angry" / "list.txt").write_text("0.png")
    done = prepare(root, tmp_path / "data")
    assert sum(sum(counts.values()) for counts in done.counts.values()) == len(sheet.images)
    assert any("files left out: 1 (train/angry/list.txt" in remark for remark in done.remarks)


def test_images_of_a_folder_of_which_only_a_part_is_used_are_counted(sheet, tmp_path):
    root = folder_source(tmp_path / "faces", sheet)
    frames = [Image.new("L", (48, 48), gray) for gray in (0, 99)]
    for name in ("one", "two"):
        frames[0].save(root / "train" / "angry" / f"{name}.gif", save_all=True, append_images=frames[1:])
    remark = f"remark on 2 images, for example {root}/train/angry/one.gif: it has several images; the first is used"
    assert remark in prepare(root, tmp_path / "data").remarks


def merge_val_and_test(root):
    (root / "validation").rename(root / "merged")
    return "faces: no folder validation; .*train|validation|test"


def add_an_unknown_class(root):
    (root / "test" / "bored").mkdir()
    return "test/bored: not a class of FER2013; classes are angry, "


def truncate_an_image(root):
    path = root / "train" / "angry" / "0.png"
    path.write_bytes(path.read_bytes()[:500])
    return "train/angry/0.png: not a readable image "


def empty_an_image(root):
    (root / "train" / "angry" / "0.png").write_bytes(b"")
    return "train/angry/0.png: an empty file; "


def enlarge_an_image(root):
    cv2.imwrite(str(root / "train" / "angry" / "0.png"), np.zeros((48, 50), np.uint8))
    return "train/angry/0.png: 48x50 pixels instead of 48x48; "


@pytest.mark.parametrize(
    "spoil", [merge_val_and_test, add_an_unknown_class, truncate_an_image, empty_an_image, enlarge_an_image]
)
def test_an_unusable_folder_is_an_error_that_names_the_file(sheet, tmp_path, spoil):
    reason = spoil(folder_source(tmp_path / "faces", sheet))
    with pytest.raises(BadInput, match=reason):
        prepare(tmp_path / "faces", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def replace(column, value):
    def change(fields):
        return [*fields[:column], value, *fields[column + 1 :]]

    return change


def change_pixels(change):
    def of_row(fields):
        return [fields[0], " ".join(change(fields[1].split())), fields[2]]

    return of_row


BAD_ROWS = {
    "a missing column": (lambda fields: fields[:2], "2 columns, the header has 3"),
    "an extra column": (lambda fields: [*fields, "x"], "4 columns, the header has 3"),
    "a missing pixel": (change_pixels(lambda values: values[1:]), "2,303 pixels instead of 2,304"),
    "an extra pixel": (change_pixels(lambda values: [*values, "0"]), "2,305 pixels instead of 2,304"),
    "no pixels": (replace(1, ""), "0 pixels instead of 2,304"),
    "a pixel of 256": (change_pixels(lambda values: [*values[:99], "256", *values[100:]]), "pixel 100 is '256'"),
    "a negative pixel": (change_pixels(lambda values: ["-1", *values[1:]]), "pixel 1 is '-1'"),
    "a pixel that is not a number": (change_pixels(lambda values: ["nan", *values[1:]]), "pixel 1 is 'nan'"),
    "label 7": (replace(0, "7"), "emotion is '7', not 0 to 6"),
    "label -1": (replace(0, "-1"), "emotion is '-1', not 0 to 6"),
    "no label": (replace(0, ""), "emotion is '', not 0 to 6"),
    "an unknown Usage": (replace(2, "Test"), "Usage is 'Test', not one of Training, PublicTest, PrivateTest"),
}


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_an_error_with_file_row_and_reason_and_nothing_is_written(
    sheet, write_csv, tmp_path, change, reason
):
    rows = sheet.rows()
    rows[3] = change(rows[3])
    path = write_csv(rows)
    with pytest.raises(BadInput) as error:
        prepare(path, tmp_path / "data")
    assert str(error.value).startswith(f"{path}, row 5: {reason}")
    assert "--on_bad_row=skip" in str(error.value)
    assert not (tmp_path / "data").exists()


def test_skipping_removes_only_the_bad_rows_and_counts_them(sheet, write_csv, tmp_path):
    rows, bad = sheet.rows(), (1, 7, 10)
    for index, (change, _) in zip(bad, list(BAD_ROWS.values())[::4], strict=True):
        rows[index] = change(rows[index])
    done = prepare(write_csv(rows), tmp_path, on_bad_row="skip")
    assert [error.row for error in done.skipped] == [index + 2 for index in bad]
    for split, batch in read_all(tmp_path).items():
        kept = [index for index in sheet.indices(USAGES[split]) if index not in bad]
        np.testing.assert_array_equal(batch["image"][..., 0], sheet.images[kept])


@pytest.mark.parametrize("cut", [1, 14, 3000, 8000])
def test_a_file_truncated_in_its_last_row_is_an_error_with_that_row(sheet, write_csv, tmp_path, cut):
    path = write_csv(sheet.rows())
    text = path.read_bytes().rstrip(b"\n")
    path.write_bytes(text[:-cut])
    with pytest.raises(BadInput, match=r"fer2013.csv, row 13: "):
        prepare(path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "row 1: the file is empty; the first line must name the columns emotion, pixels, Usage"),
        (b"0,1 2 3,Training\n", "row 1: the header is '0, 1 2 3, Training'; the first line must name the columns"),
        ("emotion,pixels,Usage\n".encode("utf-16"), "row 1: the text is UTF-16; save it as UTF-8"),
        (
            gzip.compress("\ufeffemotion,pixels,Usage\n".encode("utf-16-be"), mtime=0),
            "row 1: the text is UTF-16; save it",
        ),
        (bz2.compress(b"emotion,pixels,Usage\n"), "row 1: the first line is not text; unpack it, then give the file"),
    ],
)
def test_an_empty_file_and_a_file_without_header_are_errors(tmp_path, content, reason):
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=reason):
        prepare(path, tmp_path / "data", on_bad_row="skip")
    assert not (tmp_path / "data").exists()


def test_counts_that_differ_from_the_published_counts_need_permission(sheet, write_csv, tmp_path):
    path = write_csv(sheet.rows())
    refusal = r"train has 6 faces, the published set has 28,709 \(angry 1 instead of 3,995.*--allow_other_counts"
    with pytest.raises(BadInput, match=refusal):
        Fer2013.prepare(tmp_path / "data", source=path)
    assert not (tmp_path / "data").exists()
    assert len(Fer2013.prepare(tmp_path / "data", source=path, allow_other_counts=True).remarks) == 6


def test_a_split_without_faces_is_an_error(sheet, write_csv, tmp_path):
    with pytest.raises(BadInput, match="no faces for val, test;"):
        prepare(write_csv(sheet.rows()[:6]), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_swapped_splits_are_an_error_even_if_other_counts_are_allowed():
    for published in (CLASS_COUNTS, FERPLUS_COUNTS):
        counts = {"train": Counter(), "val": Counter(published["test"]), "test": Counter(published["val"])}
        for missing in range(3):
            counts["val"]["angry"] -= missing
            counts["test"]["happy"] -= missing
            with pytest.raises(BadInput, match="the halves are swapped"):
                count_differences("fer2013.csv", counts, published)
    small = {"train": Counter(), "val": Counter(angry=467), "test": Counter(happy=8)}  # of val and test, or swapped
    assert count_differences("fer2013.csv", small, CLASS_COUNTS)


def test_skipped_rows_excuse_only_as_many_missing_faces():
    counts = {split: Counter(classes) for split, classes in CLASS_COUNTS.items()}
    assert count_differences("f", counts, CLASS_COUNTS) == []
    counts["train"]["happy"] -= 2
    assert count_differences("f", counts, CLASS_COUNTS, skipped=2) == []
    (difference,) = count_differences("f", counts, CLASS_COUNTS, skipped=1)
    assert "happy 7,213 instead of 7,215" in difference
    counts["train"]["sad"] += 2
    (difference,) = count_differences("f", counts, CLASS_COUNTS, skipped=2)
    assert "sad 4,832 instead of 4,830" in difference
