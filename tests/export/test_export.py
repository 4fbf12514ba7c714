import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from jax import export
from matplotlib import cbook

from affect_jax.export import export as exporting
from affect_jax.export.export import detection_differences, export_model, known_licence
from affect_jax.predict.networks import Classifier
from affect_jax.predict.reader import DETECTOR
from affect_jax.runs.model_file import load_trained, save_trained

ROOT = Path(__file__).parents[2]
WITHOUT_PACKAGE = "import sys; sys.modules.update(dict.fromkeys(['affect_jax', 'flax']))\n"
"""Makes both impossible to import."""


def programs(folder: Path) -> list[str]:
    """Return the example programs of the folder's README."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_exported_classifier_runs_without_the_package(classifier, tmp_path):
    save_trained(classifier, tmp_path / "given.safetensors", "")
    out = tmp_path / "out"
    command = [sys.executable, "scripts/export.py", f"--model={tmp_path / 'given.safetensors'}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "40 faces of drawn_faces, val" in done.stdout and "no data of other people" in done.stdout
    names = {"model.safetensors", "model.stablehlo", "model.onnx"}
    assert {path.name for path in out.iterdir()} == {*names, "README.md", "export.json"}
    record = json.loads((out / "export.json").read_text())
    assert record["files"].keys() == names and record["class_names"] == ["happy", "sad", "neutral"]
    for name, file in record["files"].items():
        assert file["bytes"] == (out / name).stat().st_size
        assert file["largest_difference"]["probabilities"] < file["tolerance"]["probabilities"]
    faces = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 1), np.uint8)
    np.save(out / "faces.npy", faces)
    trained = load_trained(tmp_path / "given.safetensors")
    expected = Classifier(trained, 5)(list(faces.repeat(3, axis=-1)))
    assert expected.std(axis=0).max() > 1e-3
    for program in programs(out):
        program = program.replace("np.zeros((2, 48, 48, 1), np.uint8)", "np.load('faces.npy')")
        program = program.replace("print(", "np.save('found.npy', ")
        subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE + program], cwd=out, check=True)
        np.testing.assert_allclose(np.load(out / "found.npy"), expected, atol=1e-5)
        (out / "found.npy").unlink()
    assert len(programs(out)) == 2
    assert load_trained(out / "model.safetensors").about["licence"] == record["licence"]
    with pytest.raises(FileExistsError, match="out exists; remove it or choose another --out"):
        export_model(trained, out)


@pytest.mark.slow
def test_exported_detector_gives_the_same_detections_at_any_batch_size(detector, tmp_path, plain_convolutions):
    detector.config.data.eval_buckets = ()
    save_trained(detector, tmp_path / "given.safetensors", "")
    detector = load_trained(tmp_path / "given.safetensors")  # weights that float16 represents exactly
    record = export_model(detector, tmp_path / "out")
    assert record["files"]["model.safetensors"]["largest_difference"] == {"scores": 0, "overlap": 0}
    names = {"model.safetensors", "model_96x128.stablehlo", "model_96x128.onnx"}
    assert record["files"].keys() == names < {path.name for path in (tmp_path / "out").iterdir()}
    for name in names - {"model.safetensors"}:
        assert max(record["files"][name]["largest_difference"].values()) < 1e-4
    assert record["checked_on"] == "4 images of drawn_scenes, val"
    model = export.deserialize(bytearray((tmp_path / "out" / "model_96x128.stablehlo").read_bytes()))
    assert model.platforms == exporting.PLATFORMS
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), np.uint8)
    sizes = np.array([[96, 128], [60, 128], [96, 50], [96, 128]], np.int32)
    expected = exporting.detector_interface(detector, (96, 128)).function(detector.variables, images, sizes)
    found = model.call(images, sizes)
    assert found.keys() == expected.keys() and np.asarray(expected["valid"]).any()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=name)
    of_onnx = exporting.run_onnx(tmp_path / "out" / "model_96x128.onnx", images, sizes)
    for name, values in expected.items():
        np.testing.assert_allclose(of_onnx[name], values, atol=1e-3, err_msg=name)
    for program, batch in zip(programs(tmp_path / "out"), (2, 1), strict=True):
        assert f"np.zeros(({batch}, 96, 128, 3), np.uint8)" in program
        assert f"np.zeros(({batch}, 2), np.int32)" in program
        subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE + program], cwd=tmp_path / "out", check=True)


def test_detector_as_onnx_gives_the_same_detections_in_a_photograph(detector, tmp_path, plain_convolutions):
    detector.config.model.box.update(roi_aligned=True, proposal_weight=0.5, context=1.4, rois_at_once=8)
    size = np.array([[120, 140]], np.int32)
    photograph = np.zeros((1, 128, 160, 3), np.uint8)
    image = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    photograph[0, :120, :140] = cv2.resize(image, (140, 120))
    interface = exporting.detector_interface(exporting.without_groups(detector), (128, 160))
    expected = interface.function(detector.variables, photograph, size)
    assert expected["valid"].sum() > 20
    exporting.write_onnx(interface, detector, tmp_path / "model.onnx", "", batch_size=1)
    found = exporting.run_onnx(tmp_path / "model.onnx", photograph, size)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, atol=1e-3, err_msg=name)


def test_bundled_detector_in_both_formats_gives_the_same_detections_in_photographs(tmp_path, plain_convolutions):
    """Only the face of the second is small enough for the finest map of the pyramid."""
    trained = exporting.in_float32(load_trained(DETECTOR))
    trained.config.model.rpn.score_thresh = 0.2  # no other proposals than the faces
    images, sizes = np.zeros((2, 192, 192, 3), np.uint8), np.array([[192, 164], [64, 55]], np.int32)
    image = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))[..., ::-1]
    for padded, (height, width) in zip(images, sizes, strict=True):
        padded[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    interface = exporting.detector_interface(trained, (192, 192))
    each = [interface.function(trained.variables, images[[i]], sizes[[i]]) for i in range(2)]
    expected = {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    assert (expected["scores"][:, 0] > 0.9).all()
    (tmp_path / "model.stablehlo").write_bytes(exporting.to_stablehlo(interface, trained.variables))
    model = exporting.read_stablehlo(tmp_path / "model.stablehlo")
    interface = exporting.detector_interface(exporting.without_groups(trained), (192, 192))
    exporting.write_onnx(interface, trained, tmp_path / "model.onnx", "", batch_size=1)
    of_onnx = exporting.run_onnx(tmp_path / "model.onnx", images, sizes)
    for found, rows in (
        (of_onnx, [0, 1]),
        (model.call(images, sizes), [0, 1]),
        (model.call(images[[0, 0]], sizes[[0, 0]]), [0, 0]),  # without the finest map
    ):
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name][rows], atol=1e-3, err_msg=name)


def test_detection_differences_compare_clear_detections_in_any_order():
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]], np.float32)
    scores, valid = np.array([[0.9, 0.8, 0.2]], np.float32), np.array([[True, True, True]])
    label = np.array([[0, 1, 0]])
    expected = {"boxes": boxes, "scores": scores, "valid": valid, "label": label}
    other = {"boxes": boxes[:, [1, 0, 2]].copy(), "scores": np.array([[0.85, 0.9, 0.2]], np.float32), "valid": valid}
    other["label"] = label[:, [1, 0, 2]]
    other["boxes"][0, 2] = 0  # score below 0.5: not compared
    assert detection_differences(expected, other) == {"scores": pytest.approx(0.05), "overlap": 0}
    other["valid"] = np.array([[False, True, True]])  # a missing detection
    assert detection_differences(expected, other)["overlap"] == 1
    assert detection_differences(other, expected)["overlap"] == 1  # a detection too many
    assert detection_differences(expected, {**expected, "label": 1 - label})["overlap"] == 1
    with pytest.raises(ValueError, match="detects nothing in the images"):
        detection_differences({**expected, "valid": np.zeros_like(valid)}, other)


def test_no_file_is_written_if_one_differs_from_the_network(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCES, "float16", {"probabilities": 1e-9})
    with pytest.raises(ValueError, match=r"model.safetensors differs from the network: probabilities by \d"):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_exports_to_one_folder_at_the_same_time_do_not_disturb_each_other(classifier, tmp_path, monkeypatch):
    """The second is exported while the first is, and the first ends with an error."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").touch()
    write_files, started = exporting.WRITERS["classification"], []

    def export_again(*arguments):
        started.append("first")
        if len(started) == 1:
            started.append(export_model(classifier, tmp_path / "out", with_onnx=False))
        return write_files(*arguments)

    monkeypatch.setitem(exporting.WRITERS, "classification", export_again)
    with pytest.raises(FileExistsError, match="out exists; remove it or choose another --out"):
        export_model(classifier, tmp_path / "out", with_onnx=False)
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == json.loads(json.dumps(started[-1]))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}
    assert (tmp_path / "out.partial" / "mine.txt").exists()


def test_licence_comes_from_the_user_the_file_or_the_data_set_and_is_never_empty(classifier, tmp_path):
    assert known_licence(classifier._replace(about={"licence": "as the file says"})) == "as the file says"
    for name, words in (
        ("fer2013", "no open licence"),
        ("affectnet", "for research only"),
        ("widerface", "not commercial"),
    ):
        classifier.config.data.name = name
        assert words in known_licence(classifier)
    classifier.config.data.name = "folder"
    with pytest.raises(ValueError, match=r"training data 'folder' is unknown; give it with --licence="):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_missing_onnx_packages_are_reported_before_anything_is_written(classifier, tmp_path, monkeypatch):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxruntime: pip install onnx onnxruntime"):
        export_model(classifier, tmp_path / "out")
    assert not list(tmp_path.iterdir())
