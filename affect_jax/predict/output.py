"""Write predictions to a folder: one line per face as JSON and as CSV, and the images and videos with faces drawn."""

import csv
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from affect_jax.predict.drawing import draw_faces
from affect_jax.predict.media import CAMERA, Frame, frame_rate
from affect_jax.predict.reader import Face

DRAWN = "drawn"
"""Name of the folder of drawn images and videos, inside the folder of the results."""
LONGEST_GAP = 10.0
"""Largest gap between two frames in seconds; larger ones come from broken files and are not filled."""
DECIMALS = 6
"""Decimals of scores and probabilities: the precision of float32."""
FIELDS = ("file", "frame", "time", "x1", "y1", "x2", "y2", "score", "expression")


class Output:
    """Context manager that writes predictions.jsonl, predictions.csv and the drawn images and videos.

    The two files have the suffix ".partial" until the context ends without an error. A frame without a face, and a file
    that cannot be read, get a line with a "reason".
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], draw: bool, min_score: float):
        self.folder, self.class_names, self.draw = Path(folder), class_names, draw
        self.drawn, self.no_face = self.folder / DRAWN, f"no face with a score of at least {min_score:g}"
        self._files, self._video, self._video_file, self._names = ExitStack(), None, "", set()

    def __enter__(self) -> "Output":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._jsonl, csv_file = (
            self._files.enter_context(self._partial(suffix).open("w", encoding="utf-8", newline=""))
            for suffix in ("jsonl", "csv")
        )
        self._csv = csv.DictWriter(csv_file, [*FIELDS, *(f"p_{name}" for name in self.class_names), "reason"])
        self._csv.writeheader()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._end_video()
        self._files.close()
        if kind is None:
            for suffix in ("jsonl", "csv"):
                self._partial(suffix).replace(self.folder / f"predictions.{suffix}")

    def write(self, frame: Frame, faces: Sequence[Face]) -> None:
        """Write a frame and its faces."""
        for face in faces:
            self._write_line(frame, face)
        if not faces:
            self._write_line(frame, reason=self.no_face)
        if self.draw:
            drawn = cv2.cvtColor(draw_faces(frame.image, faces), cv2.COLOR_RGB2BGR)
            if frame.time is None:
                self._draw_image(frame.file, drawn)
            else:
                self._draw_frame(frame, drawn)

    def write_unreadable(self, file: str, reason: str) -> None:
        """Write the line of a file that cannot be read, or not to its end."""
        self._write_line(Frame(file, 0, None, None), reason=reason)

    def _write_line(self, frame: Frame, face: Face | None = None, reason: str | None = None) -> None:
        place = {"file": frame.file, "frame": frame.frame, "time": frame.time}
        found = {"box": None, "score": None, "expression": None, "probabilities": {}}
        row = {**place, "reason": reason}
        if face:
            found = {
                "box": [round(side, 2) for side in face.box],
                "score": round(face.score, DECIMALS),
                "expression": face.expression,
                "probabilities": {name: round(value, DECIMALS) for name, value in face.probabilities.items()},
            }
            row |= dict(zip(("x1", "y1", "x2", "y2"), found["box"], strict=True))
            row |= {"score": found["score"], "expression": face.expression}
            row |= {f"p_{name}": value for name, value in found["probabilities"].items()}
        self._jsonl.write(json.dumps({**place, **found, **({"reason": reason} if reason else {})}) + "\n")
        self._csv.writerow(row)

    def _draw_image(self, file: str, drawn: np.ndarray) -> None:
        path = self._free_name(file, ".jpg")
        if not cv2.imwrite(str(path), drawn):
            raise OSError(f"cannot write {path}; is the disk full?")

    def _draw_frame(self, frame: Frame, drawn: np.ndarray) -> None:
        if self._video_file != frame.file:
            self._end_video()
            path = self._free_name(frame.file, ".mp4")
            self._video, self._video_file = DrawnVideo(path, frame_rate(frame.file), drawn.shape[1::-1]), frame.file
        self._video.write(frame.time, drawn)

    def _end_video(self) -> None:
        if self._video:
            self._video.close()
        self._video, self._video_file = None, ""

    def _free_name(self, file: str, suffix: str) -> Path:
        """Return DIR/drawn/NAME, with a number appended if another input has the same name."""
        self.drawn.mkdir(exist_ok=True)
        stem = name = Path(file).stem if not CAMERA.fullmatch(file) else file.replace(":", "")
        number = 1
        while name + suffix in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name + suffix)
        return self.drawn / (name + suffix)

    def _partial(self, suffix: str) -> Path:
        return self.folder / f"predictions.{suffix}.partial"


class DrawnVideo:
    """A video file of constant frame rate in which each frame is repeated until the time of the next one.

    A video of variable frame rate, or a camera slowed by the network, keeps its duration. Each frame appears at
    least once.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError(f"cannot write {path}; is the disk full?")
        self._rate, self._size, self._written, self._skipped, self._shown = rate, size, 0, 0, None

    def write(self, time: float, image: np.ndarray) -> None:
        """Write a frame BGR uint8 at its time in seconds from the start."""
        missing = round(time * self._rate) - self._skipped - self._written
        if missing > LONGEST_GAP * self._rate:
            self._skipped, missing = self._skipped + missing, 0
        for _ in range(missing if self._written else 0):
            self._write(self._shown)
        self._shown = cv2.resize(image, self._size) if image.shape[1::-1] != self._size else image
        self._write(self._shown)

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()

    def _write(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1
