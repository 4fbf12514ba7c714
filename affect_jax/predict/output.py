"""What prediction leaves in its folder: a line a face as JSON and as CSV, and the pictures and videos drawn."""

import csv
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import cv2

from affect_jax.predict.drawing import draw_faces
from affect_jax.predict.media import CAMERA, Frame, frame_rate
from affect_jax.predict.reader import Face

FIELDS = ("file", "frame", "time", "x1", "y1", "x2", "y2", "score", "expression")


class Output:
    """A context: predictions.jsonl and predictions.csv have their names once all is written, ".partial" before.

    A frame without a face, and a file that could not be read, have a line whose "reason" says so.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], draw: bool, min_score: float):
        self.folder, self.class_names, self.draw = Path(folder), class_names, draw
        self.no_face = f"no face of score {min_score:g} or more"
        self._files, self._video, self._names = ExitStack(), None, set()

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
            (self._draw_picture if frame.time is None else self._draw_frame)(frame.file, drawn)

    def write_unreadable(self, file: str, reason: str) -> None:
        """A file that could not be read, or not to its end."""
        self._write_line(Frame(file, 0, None, None), reason=reason)

    def _write_line(self, frame: Frame, face: Face | None = None, reason: str | None = None) -> None:
        place = {"file": frame.file, "frame": frame.frame, "time": frame.time}
        found = {"box": None, "score": None, "expression": None, "probabilities": {}}
        row = {**place, "reason": reason}
        if face:
            found = {**face._asdict(), "box": [round(side, 2) for side in face.box]}
            row |= dict(zip(("x1", "y1", "x2", "y2"), found["box"], strict=True))
            row |= {"score": face.score, "expression": face.expression}
            row |= {f"p_{name}": value for name, value in face.probabilities.items()}
        self._jsonl.write(json.dumps({**place, **found, **({"reason": reason} if reason else {})}) + "\n")
        self._csv.writerow(row)

    def _draw_picture(self, file: str, drawn) -> None:
        cv2.imwrite(str(self._free_name(file, ".jpg")), drawn)

    def _draw_frame(self, file: str, drawn) -> None:
        if not self._video or self._video[0] != file:
            self._end_video()
            rate = 25.0 if CAMERA.fullmatch(file) else frame_rate(file)
            name, size = str(self._free_name(file, ".mp4")), drawn.shape[1::-1]
            self._video = file, cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        self._video[1].write(drawn)

    def _end_video(self) -> None:
        if self._video:
            self._video[1].release()
        self._video = None

    def _free_name(self, file: str, suffix: str) -> Path:
        """DIR/drawn/NAME, with a number where another input of the same name has taken it."""
        (self.folder / "drawn").mkdir(exist_ok=True)
        stem = name = Path(file).stem if not CAMERA.fullmatch(file) else file.replace(":", "")
        number = 1
        while name + suffix in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name + suffix)
        return self.folder / "drawn" / (name + suffix)

    def _partial(self, suffix: str) -> Path:
        return self.folder / f"predictions.{suffix}.partial"
