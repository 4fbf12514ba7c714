"""Videos for tests, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: str | Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    rate: Fraction | int = 10,
    sound: bool = False,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames RGB uint8 [H, W, 3] at their times in seconds, or at a constant rate; return the path."""
    path = Path(path)
    with av.open(f"file:{path}", "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000) if times else Fraction(1) / rate
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if sound:
            write_silence(container, times[-1] if times else len(frames) / rate)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = round(times[number] * 90_000) if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_silence(container: av.container.OutputContainer, seconds: float) -> None:
    """Add a sound stream without sound."""
    stream = container.add_stream("aac", rate=8000)
    for start in range(0, round(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def gray_frames(levels: Sequence[int], size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Return a uniform frame for each gray level."""
    return [np.full((*size, 3), level, np.uint8) for level in levels]


def noise_frames(number: int, size: tuple[int, int] = (96, 128)) -> list[np.ndarray]:
    """Return frames of moving noise, which no codec reduces to a few bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    return [np.roll(noise, 5 * index, axis=1) for index in range(number)]
