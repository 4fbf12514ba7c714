import os
import shutil
import tempfile

import cv2
import numpy as np
import pytest
from PIL import Image
from run_script import fork

from affect_jax.data import open_split, open_splits
from affect_jax.data.drawn_faces import DrawnFaces
from affect_jax.data.folder import Folder, split_by_person
from affect_jax.data.source import BadInput

PERSONS, EACH = 20, 3


@pytest.fixture
def faces() -> DrawnFaces:
    return DrawnFaces("train", num_examples=PERSONS * EACH * 2)


@pytest.fixture
def folder(tmp_path, faces):
    """Write DIR/<class>/personNN_K.png: twenty persons, three images of each in both classes."""
    root = tmp_path / "faces"
    for index in range(len(faces)):
        name = ("calm", "excited")[index % 2]
        (root / name).mkdir(parents=True, exist_ok=True)
        image = faces.read(np.array([index]))["image"][0]
        cv2.imwrite(str(root / name / f"person{index // (2 * EACH):02}_{index}.png"), image)
    return root


def read_all(data_dir, split):
    opened = open_split("folder", split, data_dir)
    return opened, opened.read(np.arange(len(opened))), opened.image_names(np.arange(len(opened)))


def test_images_are_read_back_unchanged_with_their_class(tmp_path, folder, faces):
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert sum(sum(counts.values()) for counts in done.counts.values()) == len(faces)
    for split in ("train", "val", "test"):
        opened, batch, names = read_all(tmp_path / "data", split)
        assert opened.class_names == ("calm", "excited") and opened.image_shape == (48, 48, 1)
        np.testing.assert_array_equal(opened.labels(), batch["label"])
        for image, label, name in zip(batch["image"], batch["label"], names, strict=True):
            assert name.startswith(opened.class_names[label])
            index = int(name.removesuffix(".png").split("_")[-1])
            np.testing.assert_array_equal(image, faces.read(np.array([index]))["image"][0])


WITH_DAMAGED_HEADER = b"\x93NUMPY\x01\x00v\x00{(" + b" " * 115 + b"\n"


@pytest.mark.parametrize("content", [None, b"", b"damaged", WITH_DAMAGED_HEADER])
def test_labels_are_read_from_the_records_if_their_own_file_is_lost_or_damaged(tmp_path, folder, content):
    Folder.prepare(tmp_path / "data", source=folder)
    intact = open_split("folder", "train", tmp_path / "data").labels()
    file = tmp_path / "data" / "folder" / "1.0.0" / "labels_train.npy"
    np.testing.assert_array_equal(np.load(file), intact)
    file.unlink() if content is None else file.write_bytes(content)
    labels = open_split("folder", "train", tmp_path / "data").labels()
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, intact)


def test_preparing_leaves_no_temporary_files(tmp_path, folder, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Folder.prepare(tmp_path / "data", source=folder)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["folder"]


def test_no_person_is_in_two_splits_if_a_regular_expression_names_the_person(tmp_path, folder):
    done = Folder.prepare(tmp_path / "data", source=folder, identity=r"(person\d+)", val_share=0.2, test_share=0.2)
    persons = {}
    for split in ("train", "val", "test"):
        _, _, names = read_all(tmp_path / "data", split)
        persons[split] = {name.split("/")[1].split("_")[0] for name in names}
    assert {split: len(some) for split, some in persons.items()} == {"train": 12, "val": 4, "test": 4}
    assert not (
        persons["train"] & persons["val"] | persons["train"] & persons["test"] | persons["val"] & persons["test"]
    )
    assert not any("identity" in remark for remark in done.remarks)
    assert "persons: 12 in train, 4 in val, 4 in test" in done.remarks


def test_the_random_split_depends_on_its_seed():
    persons = [f"p{i % 30}" for i in range(300)]
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    first = split_by_person(persons, shares, 0)
    assert first == split_by_person(persons[::-1], shares, 0) != split_by_person(persons, shares, 1)
    counts = {split: sum(first[person] == split for person in persons) for split in shares}
    assert all(abs(counts[split] - 300 * share) <= 10 for split, share in shares.items())


def test_without_persons_every_class_has_its_share_and_a_remark_warns(tmp_path, folder):
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert done.counts == {
        "train": {"calm": 42, "excited": 42},
        "val": {"calm": 9, "excited": 9},
        "test": {"calm": 9, "excited": 9},
    }
    assert any("no --identity given" in remark for remark in done.remarks)


def test_named_splits_are_kept_and_a_missing_val_is_drawn_from_train(tmp_path, folder):
    named = tmp_path / "named"
    (named / "training").mkdir(parents=True)
    (named / "testing").mkdir()
    for name in ("calm", "excited"):
        (folder / name).rename(named / "training" / name)
        (named / "testing" / name).mkdir()
        for path in sorted((named / "training" / name).iterdir())[:5]:
            path.rename(named / "testing" / name / path.name)
    done = Folder.prepare(tmp_path / "data", source=named)
    assert sum(done.counts["test"].values()) == 10
    assert sum(done.counts["val"].values()) == pytest.approx(0.15 * 110, abs=1)
    _, _, names = read_all(tmp_path / "data", "test")
    assert all(name.startswith("testing/") for name in names)


def test_split_folders_in_a_class_folder_are_an_error(tmp_path, folder):
    (folder / "excited" / "indoors").mkdir()
    Folder.prepare(tmp_path / "data", source=folder)
    (folder / "excited" / "Test").mkdir()
    with pytest.raises(BadInput, match=r"excited: split folders in a class folder: Test; the layout is DIR/<split>/<"):
        Folder.prepare(tmp_path / "others", source=folder)


def test_images_beside_the_class_folders_are_reported(tmp_path, folder):
    shutil.copy(next((folder / "calm").iterdir()), folder / "loose.png")
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert "files left out: 1 (loose.png: not in a class folder)" in done.remarks


@pytest.mark.parametrize("data_dir", [".", "folder"])
def test_a_data_set_that_is_prepared_in_its_source_is_no_class(tmp_path, folder, data_dir):
    source = folder.rename(tmp_path / "folder")
    for overwrite in (False, True):
        done = Folder.prepare(tmp_path / data_dir, overwrite=overwrite, source=source)
        assert done.directory.is_relative_to(source) and list(done.counts["train"]) == ["calm", "excited"]
    assert len(list(source.glob("*/*.png"))) == PERSONS * EACH * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["calm "], "the class names 'calm' and 'calm ' look the same"),
        (["f\u00e2ch\u00e9", "fa\u0302che\u0301"], "look the same"),
        ([" "], "the class name ' ' is blank"),
        (["caf\\xe9", os.fsdecode(b"caf\xe9")], r"the class names 'caf\\\\xe9' and 'caf\\\\xe9' look the same"),
    ],
    ids=["blank at the end", "composed and decomposed", "only a blank", "bytes and their escaped form"],
)
def test_class_names_that_are_blank_or_look_the_same_are_refused(tmp_path, folder, names, message):
    for name in names:
        shutil.copytree(folder / "calm", folder / name)
    with pytest.raises(ValueError, match=message):
        Folder.prepare(tmp_path / "data", source=folder)


def test_images_of_which_only_a_part_is_used_are_counted(tmp_path, folder):
    for name in ("one", "two"):
        frames = [Image.new("L", (48, 48), gray) for gray in (0, 99)]
        frames[0].save(folder / "calm" / f"{name}.gif", save_all=True, append_images=frames[1:])
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert sum(counts["calm"] for counts in done.counts.values()) == PERSONS * EACH + 2
    (remark,) = [remark for remark in done.remarks if "several images" in remark]
    assert remark.startswith(f"remark on 2 images, for example {folder}/calm/")
    assert remark.endswith(".gif: it has several images; the first is used")


def test_links_to_the_source_are_not_followed(tmp_path, folder):
    (folder / "calm" / "loop").symlink_to("..")
    (folder / "again").symlink_to(".")
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert done.counts["train"] == {"calm": 42, "excited": 42}


def test_files_that_are_two_images_through_links_are_counted(tmp_path, folder):
    image = folder / "calm" / "person00_0.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    assert not any("links" in remark for remark in Folder.prepare(tmp_path / "one", source=folder).remarks)
    (folder / "calm" / "again.png").symlink_to(image)
    (folder / "calm" / "once_more.png").hardlink_to(tmp_path / "elsewhere.png")
    (folder / "happy").symlink_to("excited")
    (remark,) = [one for one in Folder.prepare(tmp_path / "two", source=folder).remarks if "links" in one]
    start = f"files that are two or more images, through links: {1 + PERSONS * EACH}, for example "
    assert remark.startswith(start)
    named = remark.removeprefix(start).partition(";")[0].split(" and ")
    assert len(named) > 1 and len({(folder / name).stat().st_ino for name in named}) == 1


def test_persons_in_two_named_splits_are_reported(tmp_path, folder):
    named = tmp_path / "named"
    for split, persons in (("train", (0, 1, 2)), ("val", (2, 3)), ("test", (4,))):
        for name in ("calm", "excited"):
            (named / split / name).mkdir(parents=True)
            for person in persons:
                for path in (folder / name).glob(f"person{person:02d}_*"):
                    shutil.copy(path, named / split / name / path.name)
    done = Folder.prepare(tmp_path / "data", source=named, identity=r"(person\d+)")
    assert any("the folders name the splits: 1, for example person02; results" in remark for remark in done.remarks)


def test_color_and_size_follow_the_options(tmp_path, folder):
    color = np.zeros((60, 50, 3), np.uint8)
    color[..., 2] = 250  # red, in OpenCV's order
    cv2.imwrite(str(folder / "calm" / "person99_red.png"), color)
    done = Folder.prepare(tmp_path / "data", source=folder, channels=3, image_size=32)
    assert done.config == "fer_vgg"  # the bundled weights are for other images
    found = 0
    for split in ("train", "val", "test"):
        opened, batch, names = read_all(tmp_path / "data", split)
        assert opened.image_shape == (32, 32, 3)
        for image, name in zip(batch["image"], names, strict=True):
            if "red" in name:
                found += 1
                assert (image == (250, 0, 0)).all()
    assert found == 1


def test_unreadable_images_stop_the_preparation_or_are_skipped_and_counted(tmp_path, folder):
    broken = folder / "calm" / "person01_6.png"
    broken.write_bytes(broken.read_bytes()[:500])
    (folder / "excited" / "person50_empty.jpg").touch()
    with pytest.raises(BadInput, match=r"calm/person01_6.png: not a readable image .*--on_bad_row=skip"):
        (folder / "excited" / "person50_empty.jpg").rename(folder / "excited" / "later.txt")
        Folder.prepare(tmp_path / "data", source=folder)
    assert list((tmp_path / "data").iterdir()) == []
    (folder / "excited" / "later.txt").rename(folder / "excited" / "person50_empty.jpg")
    done = Folder.prepare(tmp_path / "data", source=folder, on_bad_row="skip")
    assert sorted(error.file.rsplit("/", 1)[1] for error in done.skipped) == ["person01_6.png", "person50_empty.jpg"]
    written = {split: len(open_split("folder", split, tmp_path / "data")) for split in done.counts}
    assert written == {split: sum(counts.values()) for split, counts in done.counts.items()}
    assert sum(written.values()) == PERSONS * EACH * 2 - 1


def test_an_error_after_skipped_images_names_the_first(tmp_path, folder):
    for image in (folder / "calm").iterdir():
        image.write_bytes(b"")
    message = (
        rf"no readable image of class calm; .* \({PERSONS * EACH} bad rows were skipped before: .*: an empty file\)"
    )
    with pytest.raises(BadInput, match=message):
        Folder.prepare(tmp_path / "data", source=folder, on_bad_row="skip")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: (root / "train").mkdir(), {}, "there are other folders next to the split folders"),
        (lambda root: None, {"identity": r"(person0\d)"}, r"person10_60.png: its path does not match identity"),
        (
            lambda root: None,
            {"identity": r"(nobody\d+)"},
            "no path matches identity .*, for example calm/person00_0.png",
        ),
        (
            lambda root: None,
            {"identity": r"(nobody\d+)?", "on_bad_row": "skip"},
            "no path matches identity .*; its first group must match the part that names the person$",
        ),
        (lambda root: None, {"identity": "person"}, "has no group"),
        (lambda root: None, {"identity": "(person"}, "is not a valid regular expression"),
        (lambda root: None, {"channels": 2}, "channels is 2"),
        (lambda root: None, {"split_seed": -1}, "split_seed is -1; must be at least 0"),
        (lambda root: None, {"val_share": 0.6, "test_share": 0.5}, "leave no images for training"),
        (
            lambda root: (root / "calm").rename(root.parent / "calm"),
            {},
            "only one class folder, excited; at least two",
        ),
    ],
)
def test_bad_folders_and_options_have_clear_errors(tmp_path, folder, change, options, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        Folder.prepare(tmp_path / "data", source=folder, **options)


def test_hidden_and_system_files_are_ignored_in_every_folder(tmp_path, folder):
    for junk in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        for parent in (folder, folder / "calm"):
            shutil.copytree(folder / "excited", parent / junk)
    for name in ("._person00_0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        for parent in (folder, folder / "calm"):
            (parent / name).write_bytes(b"Mac OS X")
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert sum(done.counts["train"].values()) == 84 and list(done.counts["train"]) == ["calm", "excited"]
    assert not any("left out" in remark for remark in done.remarks)


def test_an_image_is_known_by_its_content_and_other_files_are_named(tmp_path, folder):
    (folder / "calm" / "person00_0.png").rename(folder / "calm" / "without_suffix")
    (folder / "calm" / "person00_2.png").rename(folder / "calm" / "person00_2.jfif")
    (folder / "calm" / "notes.txt").write_text("calm faces")
    done = Folder.prepare(tmp_path / "data", source=folder)
    assert sum(counts["calm"] for counts in done.counts.values()) == 60
    assert any("files left out: 1 (calm/notes.txt" in remark for remark in done.remarks)


def test_names_that_are_not_utf8_are_read_and_shown_escaped(tmp_path, folder):
    os.rename(folder / "calm", os.fsencode(folder) + b"/caf\xe9")
    os.rename(os.fsencode(folder) + b"/caf\xe9/person00_0.png", os.fsencode(folder) + b"/caf\xe9/\xe9.png")
    done = fork("prepare_data", "folder", f"--source={folder}", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 0 and "caf\\xe9" in done.stdout, done.stderr
    splits = open_splits("folder", tmp_path / "data").values()
    names = [name for split in splits for name in split.image_names(np.arange(len(split)))]
    assert "caf\\xe9/\\xe9.png" in names and all(split.class_names == ("caf\\xe9", "excited") for split in splits)


def test_a_class_without_images_is_an_error_and_a_split_without_a_class_is_reported(tmp_path, folder):
    (folder / "bored").mkdir()
    with pytest.raises(BadInput, match="no readable image of class bored; add images, remove the class"):
        Folder.prepare(tmp_path / "data", source=folder)
    (folder / "bored" / "a.png").write_bytes(b"broken")
    with pytest.raises(BadInput, match="no readable image of class bored"):  # known only when images are written
        Folder.prepare(tmp_path / "data", source=folder, on_bad_row="skip")
    assert not (tmp_path / "data" / "folder").exists()
    shutil.copy(folder / "calm" / "person00_0.png", folder / "bored" / "a.png")
    remarks = Folder.prepare(tmp_path / "data", source=folder).remarks
    assert "val has no bored" in remarks and "test has no bored" in remarks


def test_opening_a_missing_split_is_an_error_that_names_the_others(tmp_path, folder):
    Folder.prepare(tmp_path / "data", source=folder, test_share=0.0)
    with pytest.raises(ValueError, match="has no split test; it has train, val"):
        open_split("folder", "test", tmp_path / "data")
