"""A run and its data set: another set of the same name is refused, and the run stays unchanged."""

import csv
import json

import cv2
import numpy as np
import pytest
from linear_model import get_config

from affect_jax.data.folder import Folder
from affect_jax.runs.evaluation import evaluate_model, evaluate_run
from affect_jax.runs.model_file import load_trained, save_trained
from affect_jax.runs.training import train_and_evaluate

TONES = {"dark": 40, "light": 200}


def prepare(tmp_path, names: dict[str, str], seed: int = 0, count: int = 20) -> None:
    """Prepare images of two tones in class folders; `names` maps a tone to its folder."""
    source, rng = tmp_path / f"{'_'.join(names.values())}_{seed}_{count}", np.random.default_rng(seed)
    for tone, name in names.items():
        (source / name).mkdir(parents=True)
        for index in range(count):
            image = np.clip(TONES[tone] + rng.normal(0, 10, (48, 48)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(source / name / f"{index}.png"), image)
    Folder.prepare(tmp_path / "data", overwrite=True, source=source, val_share=0.3, test_share=0.3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a finished run `run`, its config and its data."""
    tmp_path = tmp_path_factory.mktemp("trained")
    config = get_config()
    config.data.name, config.data.data_dir, config.data.options = "folder", str(tmp_path / "data"), {}
    prepare(tmp_path, {"dark": "a_dark", "light": "light"})
    train_and_evaluate(config, tmp_path / "run")
    return tmp_path, config


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"names": {"dark": "z_dark", "light": "light"}}, "the classes a_dark, light and the classes light, z_dark"),
        ({"seed": 1}, "images or labels with the fingerprints [0-9a-f]{16} and [0-9a-f]{16}"),
        ({"count": 30}, "12 and 18 images"),
    ],
    ids=["classes", "images", "counts"],
)
def test_another_data_set_is_refused_and_the_first_one_prepared_again_is_accepted(trained, change, both):
    tmp_path, config = trained
    first = {"names": {"dark": "a_dark", "light": "light"}, "seed": 0, "count": 20}
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    prepare(tmp_path / "other", **{**first, **change})
    other = config.copy_and_resolve_references()
    (tmp_path / "data").rename(tmp_path / "kept")
    (tmp_path / "other" / "data").rename(tmp_path / "data")
    try:
        with pytest.raises(
            ValueError, match=f"run was trained on another version of folder: val of the run .*have {both}"
        ):
            evaluate_run(tmp_path / "run", "val")
        with pytest.raises(
            ValueError, match=r"was trained on another version of folder: train of the run .*prepare the first"
        ):
            train_and_evaluate(other, tmp_path / "run")
        save_trained(load_trained(tmp_path / "run"), tmp_path / "model.safetensors", "")
        with pytest.raises(ValueError, match=f"model.safetensors was trained on another version .*have {both}"):
            evaluate_model(tmp_path / "model.safetensors", "val")
    finally:
        (tmp_path / "data").rename(tmp_path / "other" / "data")
        (tmp_path / "kept").rename(tmp_path / "data")
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    assert evaluate_run(tmp_path / "run", "val")["accuracy"] == json.loads(before)["val"]["accuracy"]
    assert evaluate_model(tmp_path / "model.safetensors", "val")["num_examples"] == 12


def test_table_of_predictions_names_the_images(trained):
    tmp_path, _ = trained
    with (tmp_path / "run" / "predictions" / "val.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]
    assert len(rows) == metrics["num_examples"] == 12
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(metrics["accuracy"])
    assert all(row["image"].split("/")[-2] == row["label"] for row in rows)
    assert sum(float(rows[0][name]) for name in ("a_dark", "light")) == pytest.approx(1, abs=2e-4)


def test_a_run_is_evaluated_and_reported_on_its_data_in_another_folder(trained):
    tmp_path, _ = trained
    (tmp_path / "data").rename(tmp_path / "moved")
    try:
        metrics = evaluate_run(tmp_path / "run", "test", data_dir=tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(tmp_path / "data")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] == metrics
    assert (tmp_path / "run" / "report.html").stat().st_mtime >= (tmp_path / "run" / "metrics.json").stat().st_mtime


def test_a_run_of_an_older_version_is_checked_by_its_class_names_and_says_so(trained, capsys):
    tmp_path, _ = trained
    file = tmp_path / "run" / "config.json"
    record = file.read_text()
    older = {name: value for name, value in json.loads(record).items() if name != "splits"}
    try:
        file.write_text(json.dumps(older))
        evaluate_run(tmp_path / "run", "val")
        assert "only the classes are compared" in capsys.readouterr().err
        older["data"]["class_names"] = ["light", "a_dark"]
        file.write_text(json.dumps(older))
        with pytest.raises(ValueError, match="was trained for light, a_dark; the data has a_dark, light"):
            evaluate_run(tmp_path / "run", "val")
    finally:
        file.write_text(record)


def test_the_fingerprint_does_not_depend_on_the_folder_and_the_names_of_the_images(tmp_path):
    fingerprints = []
    for root in ("a", "b"):
        prepare(tmp_path / root, {"dark": "dark", "light": "light"})
        fingerprints.append((tmp_path / root / "data" / "folder" / "1.0.0" / "fingerprints.json").read_text())
    assert fingerprints[0] == fingerprints[1]
    assert json.loads(fingerprints[0]).keys() == {"train", "val", "test", "class_names"}
