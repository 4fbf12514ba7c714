"""Write predictions to a folder: one line per face as JSON and as CSV, and the images and videos with faces drawn."""

import csv
import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from affect_jax.files import errors_naming, locked, printable
from affect_jax.predict.drawing import draw_faces
from affect_jax.predict.media import CAMERA, Frame, Report
from affect_jax.predict.reader import Face
from affect_jax.predict.video import VideoWriter, has_sound

DRAWN = "drawn"
"""Name of the folder of drawn images and videos, inside the folder of the results."""
LINES = ("predictions.jsonl", "predictions.csv")
"""Names of the files with a line per face."""
PARTIAL, LOCK = ".partial", ".lock"
"""Suffix of files and folders until the results are complete, and name of the lock."""
DECIMALS = 6
"""Decimals of scores and probabilities: the precision of float32."""
FIELDS = ("file", "frame", "time", "x1", "y1", "x2", "y2", "score", "expression")
MAX_JPEG_SIDE = 65_500
MAX_NAME_BYTES = 200
"""Longest name of a drawing, without its suffix and number; file systems allow 255 bytes."""


class Output:
    """Context manager that writes predictions.jsonl, predictions.csv and the drawn images and videos.

    The lines of a frame are on disk before the next frame. The files and the folder drawn/ have the suffix ".partial"
    until the context ends without an error; then they replace the results of an earlier call, unless no frame was
    written: `kept_earlier` is then True. A frame without a face, and a file that cannot be read, have a line with a
    "reason". `report` records problems of reading and of drawing.
    Raises ValueError if another process writes to the folder, OSError if it cannot be used.
    """

    def __init__(self, folder: str | Path, class_names: Sequence[str], draw: bool, min_score: float):
        self.folder, self.class_names, self.draw = Path(folder), class_names, draw
        self.no_face = f"no face with a score of at least {min_score:g}"
        self.report = Report(self._write_problem)
        self._drawn = self.folder / (DRAWN + PARTIAL)
        self._opened, self._names, self._undrawable = ExitStack(), set(), set()
        self._video, self._video_file, self._video_name = None, "", ""
        self.num_frames, self.num_drawn, self.kept_earlier = 0, 0, False
        self.files: set[str] = set()
        """Files of which at least one frame was written."""

    def __enter__(self) -> "Output":
        make_folder(self.folder)
        self._opened.enter_context(locked(self.folder / LOCK, "wait until it ends, or use another --out"))
        shutil.rmtree(self._drawn, ignore_errors=True)
        others = {path.name for path in (self.folder / DRAWN).glob("*")} - earlier_drawings(self.folder / LINES[0])
        self._names = {name.lower() for name in others}  # files of the user
        self._jsonl, self._csv_file = (
            self._opened.enter_context((self.folder / (name + PARTIAL)).open("w", encoding="utf-8", newline=""))
            for name in LINES
        )
        fields = [*FIELDS, *(f"p_{name}" for name in self.class_names), "reason", "drawing"]
        self._csv = csv.DictWriter(self._csv_file, fields)
        self._csv.writeheader()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # on a full disk, the files fail again when they are closed, with an error that does not name them
        closing = suppress(OSError) if kind else nullcontext()
        with closing, self._opened:  # the lock is the last to be released
            self._end_video()
            if kind is None:
                for file in (self._jsonl, self._csv_file):
                    with errors_naming(file.name):
                        file.close()
                self.kept_earlier = not self.num_frames and (self.folder / LINES[0]).exists()
                if self.kept_earlier:
                    self._discard()
                else:
                    self._replace_earlier_results()

    def write(self, frame: Frame, faces: Sequence[Face]) -> None:
        """Write a frame and its faces; a drawing that cannot be written is reported, unless the disk is full."""
        drawing = self._draw(frame, faces) if self.draw and frame.file not in self._undrawable else None
        for face in faces:
            self._write_line(frame, drawing, face)
        if not faces:
            self._write_line(frame, drawing, reason=self.no_face)
        self._flush()
        self.num_frames += 1
        self.files.add(frame.file)

    def _write_problem(self, file: str, reason: str) -> None:
        """Write the line of a file that cannot be read, or not completely."""
        self._write_line(Frame(file, 0, None, None), None, reason=reason)
        self._flush()

    def _write_line(
        self, frame: Frame, drawing: str | None, face: Face | None = None, reason: str | None = None
    ) -> None:
        place = {"file": printable(frame.file), "frame": frame.frame, "time": frame.time}
        found = {"box": None, "score": None, "expression": None, "probabilities": {}}
        row = {**place, "reason": reason, "drawing": drawing}
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
        line = {**place, **found, "drawing": drawing, **({"reason": reason} if reason else {})}
        self._jsonl.write(json.dumps(line) + "\n")
        self._csv.writerow(row)

    def _flush(self) -> None:
        for file in (self._jsonl, self._csv_file):
            with errors_naming(file.name):
                file.flush()

    def _draw(self, frame: Frame, faces: Sequence[Face]) -> str | None:
        """Draw a frame; return the path of the drawing inside the folder, or None if it cannot be written."""
        try:
            self._drawn.mkdir(exist_ok=True)
            drawn = draw_faces(frame.image, faces)
            name = self._draw_image(frame.file, drawn) if frame.time is None else self._draw_frame(frame, drawn)
            self.num_drawn += 1
            return f"{DRAWN}/{name}"
        except Exception as error:  # Pillow, OpenCV and PyAV have their own errors
            self._report_undrawable(frame.file, error)
            return None

    def _report_undrawable(self, file: str, error: Exception) -> None:
        """Report a drawing that cannot be written, once; raise OSError if the disk is full."""
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, reason, str(self._drawn)) from error
        if file not in self._undrawable:
            self._undrawable.add(file)
            self.report.cut(file, f"its drawing cannot be written ({reason})")

    def _draw_image(self, file: str, drawn: np.ndarray) -> str:
        height, width = drawn.shape[:2]
        if max(height, width) > MAX_JPEG_SIDE:
            scale = MAX_JPEG_SIDE / max(height, width)
            size = max(1, int(width * scale)), max(1, int(height * scale))
            drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
            self.report.note(file, f"its drawing is reduced to {size[0]}x{size[1]} pixels, the largest JPEG")
        name = self._free_name(file, ".jpg")
        Image.fromarray(drawn).save(self._drawn / name, "JPEG", quality=95)
        return name

    def _draw_frame(self, frame: Frame, drawn: np.ndarray) -> str:
        if self._video_file != frame.file:
            self._end_video()
            self._video_file, self._video_name = frame.file, self._free_name(frame.file, ".mp4")
            self._video = VideoWriter(self._drawn / self._video_name, drawn.shape[:2])
            if has_sound(frame.file):
                self.report.note(frame.file, "its sound is not kept")
        self._video.write(frame.time, drawn)
        return self._video_name

    def _end_video(self) -> None:
        video, self._video = self._video, None
        if video:
            try:
                video.close()
            except Exception as error:  # PyAV has its own errors
                self._report_undrawable(self._video_file, error)

    def _free_name(self, file: str, suffix: str) -> str:
        """Return NAME and suffix, with a number appended if another drawing has the same name."""
        stem = printable(Path(file).stem) if not CAMERA.fullmatch(file) else file.replace(":", "")
        stem = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        name, number = stem + suffix, 1
        while name.lower() in self._names:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._names.add(name.lower())
        return name

    def _replace_earlier_results(self) -> None:
        """Remove the drawings of an earlier call, and give the new results their names."""
        drawn = self.folder / DRAWN
        for name in earlier_drawings(self.folder / LINES[0]):
            (drawn / name).unlink(missing_ok=True)
        if self._drawn.exists():
            drawn.mkdir(exist_ok=True)
            for path in self._drawn.iterdir():
                path.replace(drawn / path.name)
            self._drawn.rmdir()
        for name in LINES:
            (self.folder / (name + PARTIAL)).replace(self.folder / name)

    def _discard(self) -> None:
        """Remove the files of this call."""
        shutil.rmtree(self._drawn, ignore_errors=True)
        for name in LINES:
            (self.folder / (name + PARTIAL)).unlink()


def make_folder(folder: Path) -> None:
    """Create a folder for results if it is absent; OSError that says what to do if results cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except FileExistsError:
        raise FileExistsError(f"--out={folder} is a file; give a folder") from None
    except OSError as error:
        problem = f"cannot be {'written to' if folder.is_dir() else 'created'} ({error.strerror})"
        raise type(error)(f"--out={folder} {problem}; give a folder where you may write") from None
    for name in LINES:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder; remove it or choose another --out")
    drawn = folder / DRAWN
    if drawn.exists() and not drawn.is_dir():
        raise NotADirectoryError(f"{drawn} is a file; remove it or choose another --out")
    if drawn.exists() and not os.access(drawn, os.W_OK):
        raise PermissionError(f"{drawn} cannot be written to; allow it or choose another --out")


def earlier_drawings(lines: Path) -> set[str]:
    """Return the names of the drawings that an earlier predictions.jsonl lists."""
    try:
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        return {Path(record["drawing"]).name for record in records if record.get("drawing")}
    except (OSError, ValueError, AttributeError, TypeError):  # none, or a file that another program wrote
        return set()


def result_filter() -> Callable[[Path], bool]:
    """Return a function that is True for the path, without links, of a file that Output wrote to any folder.

    These are the files with lines and the drawings that they list; other files of a folder drawn/ are the user's.
    """
    drawings = functools.cache(earlier_drawings)  # of each folder of results

    def is_result(path: Path) -> bool:
        if path.name.removesuffix(PARTIAL) in LINES or path.parent.name == DRAWN + PARTIAL:
            return True
        return path.parent.name == DRAWN and path.name in drawings(path.parent.parent / LINES[0])

    return is_result
