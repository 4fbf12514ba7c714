import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export

from affect_jax.export import export as exporting
from affect_jax.export.export import detection_differences, export_model, known_licence
from affect_jax.predict.reader import Classifier
from affect_jax.runs.model_file import read, write

ROOT = Path(__file__).parents[2]
ALONE = "import sys; sys.modules.update(dict.fromkeys(['affect_jax', 'flax']))\n"
"""Neither can be imported from here on."""


def programs(folder: Path) -> list[str]:
    """Those that the folder's README shows."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_what_the_script_exports_names_expressions_without_our_code(classifier, tmp_path):
    write(classifier, tmp_path / "given.safetensors", "")
    out = tmp_path / "out"
    command = [sys.executable, "scripts/export.py", f"--model={tmp_path / 'given.safetensors'}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "40 faces of drawn_faces, val" in done.stdout and "no data of anybody's" in done.stdout
    names = {"model.safetensors", "model.stablehlo", "model.onnx"}
    assert {path.name for path in out.iterdir()} == {*names, "README.md", "export.json"}
    record = json.loads((out / "export.json").read_text())
    assert record["files"].keys() == names and record["class_names"] == ["happy", "sad", "neutral"]
    for name, file in record["files"].items():
        assert file["bytes"] == (out / name).stat().st_size
        assert file["largest_difference"]["probabilities"] < file["tolerance"]["probabilities"]
    faces = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 1), np.uint8)
    np.save(out / "faces.npy", faces)
    trained = read(tmp_path / "given.safetensors")
    expected = Classifier(trained, 5)(list(faces.repeat(3, axis=-1)))
    assert expected.std(axis=0).max() > 1e-3
    for program in programs(out):
        program = program.replace("np.zeros((2, 48, 48, 1), np.uint8)", "np.load('faces.npy')")
        program = program.replace("print(", "np.save('found.npy', ")
        subprocess.run([sys.executable, "-c", ALONE + program], cwd=out, check=True)
        np.testing.assert_allclose(np.load(out / "found.npy"), expected, atol=1e-5)
        (out / "found.npy").unlink()
    assert len(programs(out)) == 2
    assert read(out / "model.safetensors").about["licence"] == record["licence"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 1 and "is there already" in again.stderr and "Traceback" not in again.stderr


def test_detector_finds_the_same_once_exported_whatever_the_batch(detector, tmp_path):
    detector.config.data.eval_buckets = ()
    write(detector, tmp_path / "given.safetensors", "")
    detector = read(tmp_path / "given.safetensors")  # whose weights float16 holds: no box depends on their rounding
    record = export_model(detector, tmp_path / "out")
    assert record["files"]["model.safetensors"]["largest_difference"] == {"scores": 0, "overlap": 0}
    assert record["files"].keys() == {"model.safetensors", "model_96x128.stablehlo"}
    assert record["checked_on"] == "4 pictures of drawn_scenes, val"
    model = export.deserialize(bytearray((tmp_path / "out" / "model_96x128.stablehlo").read_bytes()))
    assert model.platforms == exporting.PLATFORMS
    pictures = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), np.uint8)
    sizes = np.array([[96, 128], [60, 128], [96, 50], [96, 128]], np.int32)
    expected = exporting.detector_interface(detector, (96, 128)).function(detector.variables, pictures, sizes)
    found = model.call(pictures, sizes)
    assert found.keys() == expected.keys() and np.asarray(expected["valid"]).any()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=name)
    (program,) = programs(tmp_path / "out")
    assert "np.zeros((2, 96, 128, 3), np.uint8)" in program and "np.zeros((2, 2), np.int32)" in program


def test_difference_of_detections_is_that_of_the_clear_ones_wherever_they_stand():
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]], np.float32)
    scores, valid = np.array([[0.9, 0.8, 0.2]], np.float32), np.array([[True, True, True]])
    expected = {"boxes": boxes, "scores": scores, "valid": valid}
    other = {"boxes": boxes[:, [1, 0, 2]].copy(), "scores": np.array([[0.85, 0.9, 0.2]], np.float32), "valid": valid}
    other["boxes"][0, 2] = 0  # unclear: not compared
    assert detection_differences(expected, other) == {"scores": pytest.approx(0.05), "overlap": 0}
    other["valid"] = np.array([[False, True, True]])  # one that is lost
    assert detection_differences(expected, other)["overlap"] == 1
    with pytest.raises(ValueError, match="finds nothing in the pictures"):
        detection_differences({**expected, "valid": np.zeros_like(valid)}, other)


def test_file_that_differs_is_not_written_and_neither_are_the_others(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCES, "float16", {"probabilities": 1e-9})
    with pytest.raises(ValueError, match=r"model.safetensors differs from the network: probabilities by \d"):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_licence_is_the_users_word_or_the_files_or_the_data_sets_and_never_empty(classifier, tmp_path):
    assert known_licence(classifier._replace(about={"licence": "as the file says"})) == "as the file says"
    for name, words in (
        ("fer2013", "no open licence"),
        ("affectnet", "research alone"),
        ("widerface", "not commercial"),
    ):
        classifier.config.data.name = name
        assert words in known_licence(classifier)
    classifier.config.data.name = "folder"
    with pytest.raises(ValueError, match=r"trained on 'folder'\? Say it by --licence="):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_absent_packages_are_named_before_anything_is_done(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"no package onnx and no onnxruntime: pip install 'affect_jax\[export\]'"
    ):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())
