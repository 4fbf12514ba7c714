"""Damaged inputs: every reader gives a result or one error of ours with a message, in a few seconds.

Each valid input is changed at random: bytes are cut off, flipped, removed or repeated, and the values of JSON get other
types. FUZZ_COUNT=2000 tries more changes of each input than a run of all tests does.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from linear_model import get_config
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from affect_jax.data.affectnet import COLUMNS, Affectnet
from affect_jax.data.coco_json import CocoJson
from affect_jax.data.darkface import Darkface
from affect_jax.data.fer2013 import Fer2013
from affect_jax.data.ferplus import VOTE_COLUMNS, Ferplus
from affect_jax.data.images import read_image, read_image_size
from affect_jax.data.widerface import Widerface
from affect_jax.models.pretrained import OWN_RECORD, load_pretrained
from affect_jax.predict.media import Report, find_sources, read_frames
from affect_jax.runs import model_file
from affect_jax.runs.comparison import load_run
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, check_data, load_config, load_data_facts

COUNT = int(os.environ.get("FUZZ_COUNT", 12))
LONGEST = 10
"""Seconds within which a reader must end."""
OTHER_VALUES = (None, True, False, 0, -1, 10**400, 1.5, float("nan"), "", "x", "7", "\udce9", [], [None], {}, {"a": 1})


def damaged_bytes(valid: bytes, count: int) -> Iterator[bytes]:
    """Yield `count` random changes of `valid`, the same in every run."""
    rng = np.random.default_rng(len(valid))
    for number in range(count):
        content = bytearray(valid)
        start, end = sorted(rng.integers(0, len(valid) + 1, 2))
        end = min(end, start + 64)
        if number % 4 == 0:
            del content[start:]
        elif number % 4 == 1:
            for place in rng.integers(0, len(valid), rng.choice([1, 4, 32])):
                content[place] ^= 1 << rng.integers(8)
        elif number % 4 == 2:
            del content[start:end]
        else:
            content[start:start] = rng.choice([bytes(content[start:end]), rng.bytes(8), bytes(8), b"-9e999", b'"'])
        yield bytes(content)


def damaged_json(valid, count: int) -> Iterator[str]:
    """Yield JSON in which one to three values, chosen at random, are of another type or absent."""
    rng = np.random.default_rng(count)
    for _ in range(count):
        content = [copy.deepcopy(valid)]
        for _ in range(rng.integers(1, 4)):
            parent, key = content, 0
            while (
                isinstance(parent[key], dict | list) and len(parent[key]) and (parent is content or rng.random() < 0.9)
            ):
                parent = parent[key]
                keys = list(parent) if isinstance(parent, dict) else range(len(parent))
                key = keys[rng.integers(len(keys))]
            if rng.random() < 0.2 and parent is not content:
                del parent[key]
            else:
                parent[key] = OTHER_VALUES[rng.integers(len(OTHER_VALUES))]
        yield json.dumps(content[0])


def check(read: Callable[[], object], what: object) -> bool:
    """Call a reader; return False if it raises a ValueError or an OSError with a message."""
    start = time.monotonic()
    try:
        read()
        return True
    except (ValueError, OSError) as error:
        assert str(error).strip(), f"{type(error).__name__} without a message"
        assert not isinstance(error, UnicodeError), error
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} for {what!r:.300}") from error
    finally:
        assert time.monotonic() - start < LONGEST


def check_file(path: Path, read: Callable[[], object], count: int = COUNT, at_json: bool = False) -> None:
    """Check a reader on changes of the file at `path`, and restore the file."""
    valid = path.read_bytes()
    read()
    try:
        for content in damaged_bytes(valid, count):
            path.write_bytes(content)
            check(read, content)
        for text in damaged_json(json.loads(valid), count) if at_json else ():
            path.write_text(text)
            check(read, text)
    finally:
        path.write_bytes(valid)
    read()


def examples_of(builder: type, source: Path, **options) -> Callable[[], object]:
    """Return the function that reads and loads all examples of a source, without writing them."""

    def read():
        for policy in ("skip", "fail"):
            found = builder(source=source, data_dir=source.parent / "data", on_bad_row=policy, **options)
            found.read()
            for examples in found.examples.values():
                for example in examples[:3]:
                    found.load(example)

    return read


def faces(rows: int = 9) -> list[str]:
    usages = ("Training", "PublicTest", "PrivateTest")
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 48 * 48)).astype(str)
    return [f"{row % 7},{' '.join(pixels[row])},{usages[row % 3]}" for row in range(rows)]


def test_damaged_fer2013_and_its_votes_are_read_or_refused(tmp_path):
    source, votes = tmp_path / "fer2013.csv", tmp_path / "fer2013new.csv"
    source.write_text("\n".join(["emotion,pixels,Usage", *faces()]) + "\n")
    check_file(source, examples_of(Fer2013, source, allow_other_counts=True))
    rows = [f"{face.rsplit(',', 1)[1]},fer{row:07}.png,{','.join('9' + '0' * 9)}" for row, face in enumerate(faces())]
    votes.write_text("\n".join([f"Usage,Image name,{','.join(VOTE_COLUMNS)}", *rows]) + "\n")
    check_file(votes, examples_of(Ferplus, source, votes=votes, allow_other_counts=True))


@pytest.mark.parametrize("kind", ["gz", "zip", "tar.gz"])
def test_damaged_archive_of_a_csv_is_read_or_refused(tmp_path, kind):
    source = tmp_path / "folder" / "fer2013.csv"
    source.parent.mkdir()
    source.write_text("\n".join(["emotion,pixels,Usage", *faces()]) + "\n")
    if kind == "gz":
        import gzip

        archive = tmp_path / "fer2013.csv.gz"
        archive.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    else:
        name = {"zip": "zip", "tar.gz": "gztar"}[kind]
        archive = Path(shutil.make_archive(str(tmp_path / "fer2013"), name, source.parent))
    check_file(archive, examples_of(Fer2013, archive, allow_other_counts=True))


def write_image(path: Path, size: tuple[int, int] = (40, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def test_damaged_lists_and_arrays_of_affectnet_are_read_or_refused(tmp_path):
    root = tmp_path / "csv"
    for name in ("training", "validation"):
        write_image(root / "Manually_Annotated_Images" / name / "1.png")
        rows = [f"{name}/1.png,5,5,20,20,{expression},0.5,-0.5" for expression in range(8)]
        (root / f"{name}.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    options = {"val_per_class": 0, "allow_other_counts": True, "image_size": 32}
    rows = [f"training/1.png,5,5,20,20,{expression},0.5,-0.5" for expression in range(8) for _ in range(2)]
    (root / "training.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    check_file(root / "training.csv", examples_of(Affectnet, root, **{**options, "val_per_class": 1}))

    root = tmp_path / "npy"
    for folder in ("train_set", "val_set"):
        for index in range(16):
            write_image(root / folder / "images" / f"{index}.jpg")
            stem = root / folder / "annotations" / str(index)
            stem.parent.mkdir(exist_ok=True)
            for name, value in (("exp", index % 8), ("val", 0.5), ("aro", -0.5)):
                np.save(f"{stem}_{name}.npy", np.array(str(value)))
    read = examples_of(Affectnet, root, **{**options, "val_per_class": 1})
    check_file(root / "train_set" / "annotations" / "0_exp.npy", read)


def test_damaged_coco_json_is_read_or_refused(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [3, 4, 10.5, 16], "iscrowd": 0, "area": 168},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [3, 4, 10.5, 16], "segmentation": [[1, 2, 3, 4]]},
        ],
        "categories": [{"id": 3, "name": "face", "supercategory": "person"}],
    }
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "own" / name)
    for split in ("train", "val"):
        (tmp_path / "own" / f"{split}.json").write_text(json.dumps(content))
    check_file(tmp_path / "own" / "val.json", examples_of(CocoJson, tmp_path / "own"), at_json=True)


def test_damaged_labels_of_wider_face_and_dark_face_are_read_or_refused(tmp_path):
    wider = tmp_path / "wider"
    write_image(wider / "WIDER_train" / "images" / "0--Parade" / "a.jpg")
    listing = wider / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    listing.parent.mkdir()
    listing.write_text("0--Parade/a.jpg\n2\n3 4 10 16 0 0 0 0 0 0 \n30 10 8 12 2 0 1 0 2 0 \n")
    check_file(listing, examples_of(Widerface, wider))
    dark = tmp_path / "dark"
    write_image(dark / "image" / "1.png")
    (dark / "label").mkdir()
    (dark / "label" / "1.txt").write_text("2\n3 4 13 20\n30 10 40 22\n")
    check_file(dark / "label" / "1.txt", examples_of(Darkface, dark))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif", "avif", "jp2", "ppm"])
def test_damaged_image_is_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)

    def read():
        size = read_image_size(path)
        assert read_image(path).shape == (*size, 3)

    check_file(path, read)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    train_and_evaluate(get_config(), path)
    return path


def test_damaged_config_of_a_run_is_read_or_refused(run):
    trained, folder = model_file.load_trained_run(run), Workdir(run)

    def read():
        load_run(run, "run")
        check_data(folder, {})
        model_file.check_weights(trained._replace(config=load_config(folder), data=load_data_facts(folder)))

    check_file(run / "config.json", read, at_json=True)


@pytest.mark.parametrize("with_checksums", [True, False])
def test_damaged_checkpoint_is_read_or_refused(run, tmp_path, with_checksums):
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for file in path.rglob("sha256sums.txt") if not with_checksums else ():
        file.unlink()
    files = [file for file in sorted(path.glob("checkpoints/[0-9]*/**/*")) if file.is_file()]
    rng = np.random.default_rng(0)
    for _ in range(COUNT // 3):
        file = files[rng.integers(len(files))]
        valid = file.read_bytes()
        *_, content = damaged_bytes(valid, rng.integers(1, 5))
        file.write_bytes(content)
        check(lambda: model_file.load_trained_run(path), (file, content))
        file.write_bytes(valid)
    model_file.load_trained_run(path)


def test_damaged_model_file_is_read_or_refused(run, tmp_path):
    path = tmp_path / "model.safetensors"
    model_file.save_trained(model_file.load_trained(run), path, "licence")

    def read():
        model_file.load_trained(path)
        load_pretrained(path)

    check_file(path, read)
    weights = load_file(path)
    with safe_open(path, "numpy") as file:
        record = json.loads(file.metadata()[OWN_RECORD])
    for text in damaged_json(record, COUNT):
        save_file(weights, path, {OWN_RECORD: text})
        check(read, text)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm", "ts", "gif"])
def test_damaged_video_is_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"video.{suffix}"
    codec = {"webm": "libvpx", "gif": "gif", "avi": "mpeg4"}.get(suffix, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 10)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for level in range(0, 250, 25):
            image = np.full((32, 48, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())

    def read():
        report = Report()
        frames = list(read_frames(find_sources([str(path)]).sources, report))
        if not frames:
            raise ValueError("\n".join(report.problems()))

    check_file(path, read)
