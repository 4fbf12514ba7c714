"""Files from strangers run no code, write only where they were told to, and cannot fill the memory."""

import ast
import io
import json
import pickle
import struct
import sys
import types
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from linear_model import get_config
from PIL import Image
from run_script import ROOT

from affect_jax.data import open_split
from affect_jax.data.affectnet import _read_number
from affect_jax.data.coco_json import CocoJson
from affect_jax.data.fer2013 import Fer2013
from affect_jax.data.folder import Folder
from affect_jax.data.images import read_image, read_image_size
from affect_jax.data.prepared_boxes import index_file
from affect_jax.models.pretrained import load_pretrained
from affect_jax.runs.comparison import compare_runs
from affect_jax.runs.model_file import check_weights, load_trained
from affect_jax.runs.training import train_and_evaluate
from affect_jax.tasks import build_task

MARKER = "code_of_a_stranger_was_run"


class Payload:
    """An object whose pickle runs code."""

    def __reduce__(self):
        return exec, (f"import sys; sys.{MARKER} = True",)


@pytest.fixture(autouse=True)
def nothing_is_run():
    yield
    assert not hasattr(sys, MARKER)


def with_payload() -> bytes:
    """Return a NumPy file of an object array, whose pickle runs code."""
    file = io.BytesIO()
    np.save(file, np.array([Payload()], object), allow_pickle=True)
    return file.getvalue()


def write_images(folder: Path, count: int = 8) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), np.random.default_rng(index).integers(0, 256, (48, 48), np.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run."""
    path = tmp_path_factory.mktemp("run") / "run"
    train_and_evaluate(get_config(), path)
    return path


def test_the_payload_runs_where_pickles_are_loaded():
    pickle.loads(pickle.dumps(Payload()))
    assert getattr(sys, MARKER)
    delattr(sys, MARKER)


FORBIDDEN = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "torch.hub"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("affect_jax/**/*.py")) + sorted(ROOT.glob("scripts/*.py")), ids=str)
def test_no_code_loads_pickles_evaluates_text_or_unpacks_archives(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not FORBIDDEN & {getattr(node, "module", None), *(alias.name for alias in node.names)}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "__import__") and not called.endswith((".extractall", ".extract"))
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("allow_pickle", "False") == "False"
            assert called != "torch.load" or keywords["weights_only"] == "True"


@pytest.mark.parametrize("content", [pickle.dumps(Payload()), with_payload()], ids=["pickle", "npy"])
@pytest.mark.parametrize("read", [load_trained, load_pretrained])
def test_a_model_file_runs_no_code(tmp_path, content, read):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        read(tmp_path / "model.safetensors")


def test_torch_files_are_read_as_weights_only(tmp_path, monkeypatch):
    torch = types.ModuleType("torch")
    torch.load = lambda path, map_location, weights_only: {"weights_only": weights_only}
    torch.Tensor = type("Tensor", (), {})
    monkeypatch.setitem(sys.modules, "torch", torch)
    loads = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or {})
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"x\.pth"):
        load_pretrained(tmp_path / "x.pth")
    assert [options["weights_only"] for options in loads] == [True]


def test_a_checkpoint_runs_no_code(run):
    for file in [path for path in run.glob("checkpoints/*/**/*") if path.is_file()]:
        valid = file.read_bytes()
        checksums = list(run.rglob("sha256sums.txt"))
        kept = {path: path.read_bytes() for path in checksums}
        try:
            for path in checksums:
                path.unlink()
            file.write_bytes(pickle.dumps(Payload()))
            try:
                load_trained(run)
            except (ValueError, OSError) as error:
                assert str(error)
        finally:
            file.write_bytes(valid)
            for path, content in kept.items():
                path.write_bytes(content)


def test_stored_predictions_run_no_code(run):
    file = run / "predictions" / "val.npz"
    valid = dict(np.load(file))
    try:
        np.savez(file, **{**valid, "probs": np.array([Payload()], object)})
        with pytest.raises(ValueError, match="allow_pickle=False"):
            compare_runs(run, run, "val")
    finally:
        np.savez(file, **valid)


@pytest.mark.parametrize("name", ["os:system", "os", "../evil:Evil"])
def test_a_config_names_only_data_sets_networks_and_losses_of_the_tables(run, name):
    file = run / "config.json"
    record = file.read_text()
    try:
        for field in (("data", "name"), ("model", "name"), ("task",)):
            changed = json.loads(record)
            parent = changed["config"] if len(field) == 1 else changed["config"][field[0]]
            parent[field[-1]] = name
            file.write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                trained = load_trained(run)
                check_weights(trained)
                build_task(trained.config).open_split("val")
    finally:
        file.write_text(record)


def test_the_arrays_of_a_data_set_run_no_code(tmp_path):
    (tmp_path / "0_exp.npy").write_bytes(with_payload())
    with pytest.raises(ValueError, match=r"0_exp\.npy cannot be read"):
        _read_number(tmp_path / "0_exp.npy")


def write_boxes(tmp_path, file_name: str = "0.png") -> Path:
    """Write a data set in COCO's format that names one image."""
    write_images(tmp_path / "own", 1)
    content = {
        "images": [{"id": 1, "file_name": file_name}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 4, 10, 16]}],
        "categories": [{"id": 1, "name": "../../../face"}],
    }
    for split in ("train", "val"):
        (tmp_path / "own" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path / "own"


def test_a_prepared_data_set_runs_no_code(tmp_path):
    directory = CocoJson.prepare(tmp_path / "data", source=write_boxes(tmp_path)).directory
    index = index_file(directory, "train")
    valid = index.read_bytes()
    np.savez(index, **{**dict(np.load(index)), "boxes": np.array([Payload()], object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_split("coco_json", "train", tmp_path / "data")
    index.write_bytes(valid)

    (tmp_path / "stranger.py").write_text(f"import sys; sys.{MARKER} = True")
    features = (directory / "features.json").read_text()
    changed = features.replace("tensorflow_datasets.core.features.text_feature.Text", "stranger.Text")
    assert changed != features
    (directory / "features.json").write_text(changed)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match=r"features.json names the class 'stranger.Text', which is not a feature"):
            open_split("coco_json", "train", tmp_path / "data")
    finally:
        sys.path.remove(str(tmp_path))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_names_in_json_and_archives_write_nothing_elsewhere(tmp_path):
    (tmp_path / "inside").mkdir()
    write_images(tmp_path / "elsewhere", 1)
    source = write_boxes(tmp_path / "inside", "../../elsewhere/0.png")
    before = files_in(tmp_path)
    CocoJson.prepare(tmp_path / "inside" / "data", source=source)
    with zipfile.ZipFile(tmp_path / "inside" / "evil.zip", "w") as archive:
        archive.writestr("../../elsewhere/fer2013.csv", "emotion,pixels,Usage\n0,1 2 3,Training\n")
    with pytest.raises(ValueError, match="the archive has no file"):
        Fer2013.prepare(tmp_path / "inside" / "data", source=tmp_path / "inside" / "evil.zip")
    new = files_in(tmp_path) - before
    assert new and all(name.startswith(("inside/data", "inside/evil.zip")) for name in new)


def png_of(side: int) -> bytes:
    """Return a PNG whose header announces side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp_of(side: int) -> bytes:
    """Return a BMP whose header announces side x side pixels."""
    file = struct.pack("<IHHI", 1000, 0, 0, 54)
    return b"BM" + file + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 1, 1, 0, 0) + bytes(1000)


def tiff_of(side: int) -> bytes:
    """Return a TIFF whose header announces side x side pixels."""
    file = io.BytesIO()
    Image.new("L", (7, 7)).save(file, "TIFF")
    return (
        file.getvalue()
        .replace(struct.pack("<HHII", 256, 4, 1, 7), struct.pack("<HHII", 256, 4, 1, side))
        .replace(struct.pack("<HHII", 257, 4, 1, 7), struct.pack("<HHII", 257, 4, 1, side))
    )


def gif_of(side: int) -> bytes:
    """Return a GIF whose headers announce side x side pixels."""
    file = io.BytesIO()
    Image.new("L", (7, 9)).save(file, "GIF")
    return file.getvalue().replace(struct.pack("<HH", 7, 9), struct.pack("<HH", side, side))


HUGE = {
    "png": png_of(100_000),
    "bmp": bmp_of(100_000),
    "tif": tiff_of(100_000),
    "ppm": b"P6 100000 100000 255\n" + bytes(1000),
    "gif": gif_of(65_535),
}


@pytest.mark.parametrize("suffix", HUGE)
def test_an_image_of_100000_by_100000_pixels_is_refused_before_it_is_decoded(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("the image is decoded"))
    path = tmp_path / f"huge.{suffix}"
    path.write_bytes(HUGE[suffix])
    for read in (read_image, read_image_size):
        with pytest.raises(ValueError, match="more than 178 million pixels"):
            read(path)


def test_a_data_set_with_a_huge_image_is_refused(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "faces" / name)
    (tmp_path / "faces" / "a" / "huge.png").write_bytes(HUGE["png"])
    with pytest.raises(ValueError, match=r"a/huge\.png: more than 178 million pixels"):
        Folder.prepare(tmp_path / "data", source=tmp_path / "faces")
