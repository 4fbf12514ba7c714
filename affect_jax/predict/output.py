"""What prediction leaves in its folder: a line a face as JSON and as CSV, and the pictures and videos drawn."""

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
"""The folder of drawn pictures and videos, in that of the results."""
LONGEST_STILL = 10.0
"""Seconds between two frames; times that jump further are a broken file's, and are not drawn."""
DECIMALS = 6
"""Of scores and probabilities, which are no more exact in float32."""
FIELDS = ("file", "frame", "time", "x1", "y1", "x2", "y2", "score", "expression")


class Output:
    """A context: predictions.jsonl and predictions.csv have their names once all is written, ".partial" before.

    A frame without a face, and a file that could not be read, have a line whose "reason" says so.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], draw: bool, min_score: float):
        self.folder, self.class_names, self.draw = Path(folder), class_names, draw
        self.drawn, self.no_face = self.folder / DRAWN, f"no face of score {min_score:g} or more"
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
        """A frame and its faces."""
        for face in faces:
            self._write_line(frame, face)
        if not faces:
            self._write_line(frame, reason=self.no_face)
        if self.draw:
            drawn = cv2.cvtColor(draw_faces(frame.image, faces), cv2.COLOR_RGB2BGR)
            if frame.time is None:
                self._draw_picture(frame.file, drawn)
            else:
                self._draw_frame(frame, drawn)

    def write_unreadable(self, file: str, reason: str) -> None:
        """A file that could not be read, or not to its end."""
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

    def _draw_picture(self, file: str, drawn: np.ndarray) -> None:
        path = self._free_name(file, ".jpg")
        if not cv2.imwrite(str(path), drawn):
            raise OSError(f"{path} cannot be written; is the disk full?")

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
        """DIR/drawn/NAME, with a number where another input of the same name has taken it."""
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
    """A video file of an even rate that shows each frame until the time of the next one, and none for less than once.

    So a video whose frames come unevenly, or a camera that waits for the network, is drawn as long as it was.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError(f"{path} cannot be written; is the disk full?")
        self._rate, self._size, self._written, self._skipped, self._shown = rate, size, 0, 0, None

    def write(self, time: float, image: np.ndarray) -> None:
        """A frame BGR uint8, at its seconds from the start."""
        missing = round(time * self._rate) - self._skipped - self._written
        if missing > LONGEST_STILL * self._rate:
            self._skipped, missing = self._skipped + missing, 0
        for _ in range(missing if self._written else 0):
            self._write(self._shown)
        self._shown = cv2.resize(image, self._size) if image.shape[1::-1] != self._size else image
        self._write(self._shown)

    def close(self) -> None:
        """End the file."""
        self._writer.release()

    def _write(self, image: np.ndarray) -> None:
        self._writer.write(image)
        self._written += 1
