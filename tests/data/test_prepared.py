"""Replacement, interruption, damage and declarations of prepared data sets, with a small FER2013."""

import json
import os
import platform
import re
import subprocess
from inspect import Parameter, signature
from pathlib import Path

import cv2
import pytest
from prepared_sheet import assert_is_sheet, prepare

from affect_jax import labels
from affect_jax.data import DATASETS, find_dataset, open_split
from affect_jax.data.fer2013 import Fer2013
from affect_jax.data.source import BadInput


def test_a_prepared_data_set_is_replaced_only_on_request_and_only_by_a_complete_one(sheet, write_csv, tmp_path):
    prepare(write_csv(sheet.rows()), tmp_path)
    mirrored = sheet._replace(images=sheet.images[:, :, ::-1])
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare(write_csv(mirrored.rows()), tmp_path)
    with pytest.raises(BadInput):
        prepare(write_csv([["7", "", ""]]), tmp_path, overwrite=True)
    assert_is_sheet(tmp_path, sheet)
    prepare(write_csv(mirrored.rows()), tmp_path, overwrite=True)
    assert_is_sheet(tmp_path, mirrored)


def test_a_data_set_beside_its_source_is_replaced_and_the_source_is_kept(sheet, write_csv, tmp_path):
    (tmp_path / "fer2013").mkdir()
    source = write_csv(sheet.rows(), name="fer2013/fer2013.csv")
    before = source.read_bytes()
    for overwrite in (False, True):
        prepare(source.parent, tmp_path, overwrite=overwrite)
        assert source.read_bytes() == before
        assert_is_sheet(tmp_path, sheet)
    inside = source.rename(Fer2013.directory(tmp_path) / "fer2013.csv")
    with pytest.raises(ValueError, match=r"fer2013.csv is in .*1\.0\.0, the folder of the data set; move it away"):
        prepare(inside, tmp_path, overwrite=True)
    assert inside.read_bytes() == before
    Fer2013.directory(tmp_path).joinpath("dataset_info.json").unlink()
    with pytest.raises(FileExistsError, match=r"not a prepared data set, it has no dataset_info\.json; move"):
        prepare(inside, tmp_path, overwrite=True)
    assert inside.read_bytes() == before


def test_a_stop_while_a_data_set_is_replaced_loses_neither_set(sheet, write_csv, tmp_path, monkeypatch):
    path = write_csv(sheet.rows())
    prepare(path, tmp_path / "data")
    target = Fer2013.directory(tmp_path / "data")

    def stopped(self, to, rename=Path.rename):
        if self.parent.parent.name.startswith("."):  # the new set
            raise SystemExit
        return rename(self, to)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "rename", stopped)
        prepare(path, tmp_path / "data", overwrite=True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["fer2013"]
    assert_is_sheet(tmp_path / "data", sheet)
    ended = subprocess.Popen(["true"])
    ended.wait()
    leftovers = [tmp_path / "data" / f".fer2013.{platform.node()}.{pid}" for pid in (ended.pid, os.getppid())]
    for leftover in leftovers:
        leftover.mkdir()
    target.rename(leftovers[0] / "replaced")  # as if the process had been killed between its renames
    with pytest.raises(FileExistsError, match="already prepared"):
        prepare(path, tmp_path / "data")
    assert_is_sheet(tmp_path / "data", sheet)
    assert [leftover.exists() for leftover in leftovers] == [False, True]


def test_a_failure_while_writing_leaves_no_files(sheet, write_csv, tmp_path, monkeypatch):
    path, written = write_csv(sheet.rows()), []

    def full_disk(extension, image, options, encode=cv2.imencode):
        written.append(image)
        if len(written) == 8:
            raise OSError("No space left on device")
        return encode(extension, image, options)

    monkeypatch.setattr(cv2, "imencode", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(path, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def set_value(keys, value):
    """Return a function that changes one value of a JSON text."""

    def change(text):
        content = part = json.loads(text)
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return json.dumps(content)

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("label.labels.txt", lambda text: text[:-3]),
        ("label.labels.txt", lambda text: text[:20]),
        ("label.labels.txt", lambda text: ""),
        ("dataset_info.json", set_value(["splits", 0, "filepathTemplate"], "{X}")),
        ("dataset_info.json", set_value(["splits", 0, "shardLengths"], [])),
        ("dataset_info.json", set_value(["fileFormat"], "tfrecord")),
    ],
)
def test_a_change_of_a_description_of_a_prepared_set_is_an_error_that_names_it(
    sheet, write_csv, tmp_path, name, change
):
    prepare(write_csv(sheet.rows()), tmp_path)
    file = Fer2013.directory(tmp_path) / name
    file.write_text(change(file.read_text()))
    place = file if name == "label.labels.txt" else file.parent
    with pytest.raises(ValueError, match=re.escape(str(place))):
        open_split("fer2013", "train", tmp_path)


def test_a_set_without_names_in_its_fingerprints_needs_its_number_of_class_names(sheet, write_csv, tmp_path):
    prepare(write_csv(sheet.rows()), tmp_path)
    directory = Fer2013.directory(tmp_path)
    written = json.loads((directory / "fingerprints.json").read_text())
    assert written.pop("class_names") == list(labels.FER2013)
    (directory / "fingerprints.json").write_text(json.dumps(written))
    assert_is_sheet(tmp_path, sheet)
    (directory / "label.labels.txt").write_text("angry\ndisgust\n")
    with pytest.raises(ValueError, match=r"label\.labels\.txt is missing or damaged \(it gives the 2 classes angry"):
        open_split("fer2013", "train", tmp_path)
    (directory / "label.labels.txt").unlink()
    with pytest.raises(ValueError, match=r"label\.labels\.txt is missing or damaged"):
        open_split("fer2013", "train", tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "fingerprints.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "damaged"])
def test_a_damaged_description_of_a_prepared_set_is_an_error_that_names_its_folder(
    sheet, write_csv, tmp_path, name, content
):
    prepare(write_csv(sheet.rows()), tmp_path)
    (Fer2013.directory(tmp_path) / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(Fer2013.directory(tmp_path)))):
        open_split("fer2013", "train", tmp_path)


def test_errors_on_unknown_and_unprepared_data_sets_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'fer2014'; known are .*fer2013, ferplus"):
        open_split("fer2014", "train", tmp_path)
    with pytest.raises(ValueError, match="unknown split 'valid'; known are train, val, test"):
        open_split("fer2013", "valid", tmp_path)
    command = f"python scripts/prepare_data.py fer2013 --source=PATH --data_dir={tmp_path}"
    with pytest.raises(FileNotFoundError, match=command):
        open_split("fer2013", "train", tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_declares_a_class_its_options_and_a_config(name):
    dataset = find_dataset(name)
    assert isinstance(dataset, type)
    if hasattr(dataset, "prepare"):
        assert dataset.name == name
        arguments = signature(dataset).parameters
        assert all(option.help and arguments[option.name].kind == Parameter.KEYWORD_ONLY for option in dataset.OPTIONS)
        assert (Path(__file__).parents[2] / "configs" / f"{dataset.CONFIG.split(':')[0]}.py").is_file()
