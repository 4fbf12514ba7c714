"""Read images, videos and cameras as one stream of frames, one frame at a time."""

import glob
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from affect_jax.data.images import SUFFIXES, read_image

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
CAMERA = re.compile(r"camera:(\d+)")
MIN_FRACTION_READ = 0.98
"""Minimum fraction of the frames in a video's header; headers are slightly off, truncated files far off."""

Report = Callable[[str, str], None]
"""Called with (file, reason) for each file that cannot be read."""


class Frame(NamedTuple):
    """An image, or a frame of a video."""

    file: str
    frame: int
    """Index in the video, from 0; 0 for an image."""
    time: float | None
    """Seconds from the start of the video, or from the first frame of a camera; None for an image."""
    image: np.ndarray
    """RGB uint8 [H, W, 3]."""


class Source(NamedTuple):
    """A source of frames: an image, a video or a camera."""

    file: str
    is_video: bool
    num_frames: int | None
    """None for a camera."""


def find_sources(inputs: Iterable[str], left_out: Path | None = None) -> list[Source]:
    """Return the sources that files, folders (searched recursively), globs and "camera:0" name.

    Files below the folder `left_out` are skipped. Raises ValueError if an input names no source.
    """
    sources = []
    for given in inputs:
        if CAMERA.fullmatch(given):
            sources.append(Source(given, True, None))
            continue
        paths = [Path(given)] if Path(given).exists() else [Path(path) for path in sorted(glob.glob(given))]
        found = [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
        files = [file for file in found if not (left_out and is_below(file, left_out))]
        if found and not files:
            raise ValueError(f"{given}: is in {left_out}, where the results are written; choose another --out")
        if not files:
            raise ValueError(f"{given}: no such file, and no image or video in a folder or glob of that name")
        sources += [source_of(file) for file in files]
    return sources


def files_below(folder: Path) -> list[Path]:
    """Return the images and videos of a folder, found by their suffixes."""
    wanted = SUFFIXES + VIDEO_SUFFIXES
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in wanted and file.name[0] != ".")


def is_below(file: Path, folder: Path) -> bool:
    """Return True if the file is in the folder or below it, links resolved."""
    return folder.resolve() in file.resolve().parents


def source_of(file: Path) -> Source:
    """Return the source of a file; the number of frames of a video is that of its header."""
    if file.suffix.lower() not in VIDEO_SUFFIXES:
        return Source(str(file), False, 1)
    capture = cv2.VideoCapture(str(file))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return Source(str(file), True, max(0, count))


def read_frames(sources: Iterable[Source], report: Report) -> Iterator[Frame]:
    """Yield the frames of the sources in order; files that cannot be read are reported and skipped."""
    for source in sources:
        if source.is_video:
            yield from read_video(source, report)
            continue
        try:
            image = read_image(source.file)
        except ValueError as error:
            report(source.file, str(error))
            continue
        yield Frame(source.file, 0, None, image)


def read_video(source: Source, report: Report) -> Iterator[Frame]:
    """Yield the frames of a video or camera, rotated as the file's metadata says."""
    camera = CAMERA.fullmatch(source.file)
    capture = cv2.VideoCapture(int(camera.group(1)) if camera else source.file)
    try:
        if not capture.isOpened():
            report(source.file, "no such camera" if camera else "not a readable video")
            return
        number, reached, started = 0, 0.0, None
        while True:
            more, image = capture.read()
            if not more:
                break
            if camera:  # its own clock may start anywhere or stand still
                started = started or time.monotonic()
                seconds = time.monotonic() - started
            else:
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # of the frame just read
            # with a variable frame rate, the header counts the frames of a constant rate, and so does PTS
            reached = max(number, capture.get(cv2.CAP_PROP_PTS)) + 1
            yield Frame(source.file, number, round(seconds, 3), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            number += 1
        if number == 0:
            report(source.file, "no readable frame")
        elif source.num_frames and reached < MIN_FRACTION_READ * source.num_frames:
            report(source.file, f"the video ends after frame {number} of {source.num_frames}")
    finally:
        capture.release()


def frame_rate(file: str) -> float:
    """Return the frames per second of a video; 30 for a camera or if the file does not say."""
    if CAMERA.fullmatch(file):
        return 30.0
    capture = cv2.VideoCapture(file)
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return rate if 0 < rate < 1000 else 30.0
