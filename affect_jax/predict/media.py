"""Read images, videos and cameras as one stream of frames, one frame at a time."""

import glob
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.data import images
from affect_jax.files import files_below, find_matches, printable
from affect_jax.predict import video

CAMERA = re.compile(r"camera:(\d+)")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
MEDIA_SUFFIXES = images.SUFFIXES + video.SUFFIXES
"""Suffixes of files that should be readable; other files are read too if their content is an image or a video."""
MAX_REASONS = 4
"""Largest number of reasons in the summary; the list of files after it has all of them."""


class Frame(NamedTuple):
    """An image, or a frame of a video or an animation."""

    file: str
    frame: int
    """Index in the file, from 0."""
    time: float | None
    """Seconds from the first frame of a video, an animation or a camera; None for an image or a page."""
    image: np.ndarray
    """RGB uint8 [H, W, 3]."""


class Source(NamedTuple):
    """A source of frames: a file or a camera."""

    file: str
    named: bool = True
    """False for a file that was found in a folder."""


class Inputs(NamedTuple):
    """The sources that the inputs of a call name, and the inputs that name none, with the reason."""

    sources: list[Source]
    problems: dict[str, str]
    num_left_out: int
    """Number of files that are results of earlier calls."""


class Report:
    """Record of what was read of the inputs. `write` is called with (file, reason) for each problem as it occurs."""

    def __init__(self, write: Callable[[str, str], None] = lambda file, reason: None):
        self._write = write
        self.read = 0
        """Number of files of which at least one frame was read."""
        self.skipped: dict[str, str] = {}
        """Reason by file, for files of which nothing was read."""
        self.others: dict[str, str] = {}
        """The same, for files in a folder that are neither images nor videos."""
        self.incomplete: dict[str, str] = {}
        """Reason by file, for files of which a part was read or drawn."""
        self.notes: dict[str, list[str]] = defaultdict(list)
        """Files by remark, for files that were read."""

    def skip(self, file: str, reason: str) -> None:
        """Record a file of which nothing was read."""
        self.skipped[file] = reason
        self._write(file, reason)

    def cut(self, file: str, reason: str) -> None:
        """Record a file of which a part was not read or drawn."""
        self.incomplete[file] = f"{self.incomplete[file]}; {reason}" if file in self.incomplete else reason
        self._write(file, reason)

    def note(self, file: str, remark: str) -> None:
        """Record a remark on a file that was read."""
        if file not in self.notes[remark]:
            self.notes[remark].append(file)

    def problems(self) -> list[str]:
        """Return a line for each file that was not read, or not completely; with `others` if nothing was read."""
        found = self.skipped | self.incomplete | ({} if self.read else self.others)
        return [f"{printable(file)}: {reason}" for file, reason in found.items()]

    def summary(self) -> str:
        """Return the numbers of files that were read and skipped, with the reasons, and the remarks."""
        skipped = self.skipped | self.others
        parts = [f"{self.read} read"]
        if self.incomplete:
            parts.append(f"{len(self.incomplete)} of them incompletely")
        if skipped:
            counts = Counter(skipped.values())
            reasons = [reason if n == 1 else f"{n} times {reason}" for reason, n in counts.most_common(MAX_REASONS)]
            more = [f"{len(counts) - MAX_REASONS} other reasons"] if len(counts) > MAX_REASONS else []
            parts.append(f"{len(skipped)} skipped ({'; '.join(reasons + more)})")
        lines = [f"{plural(self.read + len(skipped), 'file')}: {', '.join(parts)}"]
        for remark, files in self.notes.items():
            lines.append(f"note: {listed(files)}: {remark}")
        if self.others:
            lines.append(f"neither images nor videos: {listed(list(self.others))}")
        return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """Return the count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(files: list[str]) -> str:
    """Return the first three names, and the number of further names."""
    shown = ", ".join(map(printable, files[:3]))
    return f"{shown} and {plural(len(files) - 3, 'other file')}" if len(files) > 3 else shown


def find_sources(inputs: Iterable[str], is_result: Callable[[Path], bool] = lambda path: False) -> Inputs:
    """Return the sources that files, folders (searched recursively), globs and "camera:0" name.

    A file that is named in several ways, also through links, is one source, with its first name. Hidden files are
    ignored (affect_jax.files.is_hidden). Files are left out if `is_result` is True for their path without links.
    """
    sources, problems, results = {}, {}, set()
    for given in inputs:
        if CAMERA.fullmatch(given):
            sources[given] = Source(given)
            continue
        try:
            found = expand(given, problems)
        except ValueError as reason:
            problems[given] = str(reason)
            continue
        paths = [os.path.realpath(source.file) for source in found]  # resolve() refuses links in a circle
        results.update(path for path in paths if is_result(Path(path)))
        if found and results.issuperset(paths):
            problems[given] = "only results of an earlier call; to read drawings, copy them to another folder"
        for path, source in zip(paths, found, strict=True):
            if path not in results:
                sources.setdefault(path, source)
    return Inputs(list(sources.values()), problems, len(results))


def expand(given: str, problems: dict[str, str]) -> list[Source]:
    """Return the files of an input; ValueError if it names none. Folders that cannot be listed go to `problems`."""
    if not given:
        raise ValueError("an empty name")
    if ADDRESS.match(given):
        raise ValueError("addresses are not read; download the file and give its name")
    paths = [Path(given)] if exists(given) else find_matches(given)
    if not paths:
        raise ValueError("no file matches" if glob.has_magic(given) else "no such file")
    sources = []
    for path in paths:
        if not os.path.isdir(path):
            sources.append(Source(str(path)))
            continue
        found = files_below(path, lambda error: problems.update({str(error.filename): error.strerror}))
        sources += [Source(str(file), named=False) for file in found]
    if not sources and not any(str(path) in problems for path in paths):
        raise ValueError("no file in this folder")
    return sources


def exists(given: str) -> bool:
    """Return True for a file, a folder or a link, also if it cannot be read; ValueError if it cannot be a name."""
    try:
        Path(given).lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ValueError(error.strerror) from None
    return True


def read_frames(sources: Iterable[Source], report: Report) -> Iterator[Frame]:
    """Yield the frames of the sources in order; files that cannot be read, or not completely, are reported."""
    for source in sources:
        number = 0
        try:
            for seconds, image in read_file(source.file, lambda remark, file=source.file: report.note(file, remark)):
                report.read += number == 0
                yield Frame(source.file, number, None if seconds is None else round(seconds, 3), image)
                number += 1
        except ValueError as reason:
            if number:
                report.cut(source.file, str(reason))
            elif isinstance(reason, video.NotVideo) and not is_wanted(source):
                report.others[source.file] = str(reason)
            else:
                report.skip(source.file, str(reason))


def is_wanted(source: Source) -> bool:
    """Return True if the user expects that the source is read: named, or found with the suffix of a known format."""
    return source.named or Path(source.file).suffix.lower() in MEDIA_SUFFIXES


def read_file(file: str, note: images.Note) -> Iterator[tuple[float | None, np.ndarray]]:
    """Yield (time, image) of a camera or of a file, whose content decides what it is.

    ValueError with only the reason if it cannot be read, or not completely; NotVideo if it has no image and no video.
    """
    if camera := CAMERA.fullmatch(file):
        yield from read_camera(int(camera.group(1)))
        return
    try:
        yield from images.read_images(file, note)
    except images.UnknownFormat:
        yield from video.read_video(file, note)


def read_camera(number: int) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds from the first frame, image) of a camera, through OpenCV; ValueError when it gives no frame."""
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise ValueError("no such camera")
        started = None
        while (frame := capture.read())[0]:
            started = started or time.monotonic()  # the camera's clock may start anywhere or stand still
            yield time.monotonic() - started, cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB)
        raise ValueError("the camera gives no more frames" if started else "the camera gives no frames")
    finally:
        capture.release()


def count_frames(source: Source) -> int | None:
    """Return the approximate number of frames of a source, without decoding it; None for a camera."""
    if CAMERA.fullmatch(source.file):
        return None
    return 1 if Path(source.file).suffix.lower() in images.SUFFIXES else video.count_frames(source.file)
