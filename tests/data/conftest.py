import csv
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest


class Sheet(NamedTuple):
    """The contents of a small fer2013.csv: images uint8 [N, 48, 48], emotions 0 to 6, usages."""

    images: np.ndarray
    emotions: list[int]
    usages: list[str]

    def rows(self) -> list[list[str]]:
        """The challenge's columns: emotion, pixels, Usage."""
        pixels = (" ".join(map(str, image.ravel().tolist())) for image in self.images)
        return [
            [str(emotion), text, usage] for emotion, text, usage in zip(self.emotions, pixels, self.usages, strict=True)
        ]

    def indices(self, usage: str) -> list[int]:
        return [index for index, of in enumerate(self.usages) if of == usage]


@pytest.fixture
def sheet() -> Sheet:
    """Twelve faces of noise: six of Training, three of PublicTest, three of PrivateTest."""
    images = np.random.default_rng(0).integers(0, 256, (12, 48, 48), np.uint8)
    usages = ["Training"] * 6 + ["PublicTest"] * 3 + ["PrivateTest"] * 3
    return Sheet(images, [0, 1, 2, 3, 4, 5, 6, 3, 3, 0, 6, 2], usages)


@pytest.fixture
def write_csv(tmp_path):
    """write(rows, header, name) -> path of a CSV file."""

    def write(rows: list[list[str]], header: str = "emotion,pixels,Usage", name: str = "fer2013.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def real_fer2013(shared_data, tmp_path_factory):
    """(fer2013.csv of the whole challenge, its faces uint8 [N, 48, 48], its rows as dicts); skips without it."""
    folder = shared_data / "fer2013"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    spec = importlib.util.spec_from_file_location("make_csv", folder / "make_csv.py")
    make_csv = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_csv)
    with open(folder / "rows.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    faces = make_csv.faces()[: len(rows)]
    path = tmp_path_factory.mktemp("fer2013") / "fer2013.csv"
    texts = [str(value) for value in range(256)]
    with open(path, "w", newline="") as out:
        out.write("emotion,pixels,Usage\n")
        for row, face in zip(rows, faces, strict=True):
            pixels = " ".join(map(texts.__getitem__, face.tobytes()))
            out.write(f"{row['emotion']},{pixels},{row['Usage']}\n")
    return path, faces, rows
