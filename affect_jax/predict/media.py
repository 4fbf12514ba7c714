"""Pictures, videos and cameras as one stream of frames, each read when it is asked for."""

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
LEAST_SHARE_READ = 0.98
"""Of the frames that a video's header tells of; headers are a little off, cut files a lot."""

Report = Callable[[str, str], None]
"""(file, reason): told of what cannot be read."""


class Frame(NamedTuple):
    """A picture, or one of a video's."""

    file: str
    frame: int
    """Number in the video, from 0; 0 of a picture."""
    time: float | None
    """Seconds from the start of the video, or of the camera's first frame; None of a picture."""
    image: np.ndarray
    """RGB uint8 [H, W, 3]."""


class Source(NamedTuple):
    """Something that frames come from."""

    file: str
    is_video: bool
    num_frames: int | None
    """None where nobody knows: a camera."""


def find_sources(inputs: Iterable[str], left_out: Path | None = None) -> list[Source]:
    """What files, folders (searched through), globs and "camera:0" stand for; ValueError where one stands for none.

    Nothing below the folder `left_out` is taken: the one that is written to.
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
            raise ValueError(f"{given}: lies in {left_out}, where this call writes; give another --out")
        if not files:
            raise ValueError(f"{given}: no such file, and no picture or video in a folder or by a glob of that name")
        sources += [source_of(file) for file in files]
    return sources


def files_below(folder: Path) -> list[Path]:
    """The pictures and videos of a folder, by their suffixes."""
    wanted = SUFFIXES + VIDEO_SUFFIXES
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in wanted and file.name[0] != ".")


def is_below(file: Path, folder: Path) -> bool:
    """Whether the file lies in the folder or in one of its folders, links followed."""
    return folder.resolve() in file.resolve().parents


def source_of(file: Path) -> Source:
    """A file as a source; a video is asked for its number of frames."""
    if file.suffix.lower() not in VIDEO_SUFFIXES:
        return Source(str(file), False, 1)
    capture = cv2.VideoCapture(str(file))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return Source(str(file), True, max(0, count))


def read_frames(sources: Iterable[Source], report: Report) -> Iterator[Frame]:
    """The frames of the sources, in order; what cannot be read is reported and left out."""
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
    """The frames of a video or camera, one at a time, upright as the file says."""
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
            if camera:  # whose own clock starts anywhere, or stands still
                started = started or time.monotonic()
                seconds = time.monotonic() - started
            else:
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # of the frame just read
            # where frames come unevenly, the header's number is what an even rate would give: as PTS counts
            reached = max(number, capture.get(cv2.CAP_PROP_PTS)) + 1
            yield Frame(source.file, number, round(seconds, 3), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            number += 1
        if number == 0:
            report(source.file, "no frame can be read")
        elif source.num_frames and reached < LEAST_SHARE_READ * source.num_frames:
            report(source.file, f"the video breaks off behind frame {number} of {source.num_frames}")
    finally:
        capture.release()


def frame_rate(file: str) -> float:
    """Frames a second of a video; 30 of a camera, or where it does not tell."""
    if CAMERA.fullmatch(file):
        return 30.0
    capture = cv2.VideoCapture(file)
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return rate if 0 < rate < 1000 else 30.0
