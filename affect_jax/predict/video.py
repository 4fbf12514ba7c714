"""Videos of any container and codec of FFmpeg, read and written with PyAV.

H W of a frame. Frames are RGB uint8 [H, W, 3].
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from affect_jax.data.images import MAX_PIXELS, Note, turn
from affect_jax.files import open_regular

SUFFIXES = (".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf")
SUFFIXES += (".ogv", ".ts", ".vob", ".webm", ".wmv")
NOT_VIDEO = ("adf", "bin", "ffmetadata", "ico", "idf", "image2", "lrc", "mjpeg", "tty", "xbin")
"""FFmpeg's names of formats that are no videos, such as icons and drawings of letters; those of still images end in
"_pipe". "mjpeg", without a container, is found in archives and documents with JPEGs in them."""
CONTIGUOUS = ("flv", "matroska,webm")
"""FFmpeg's names of formats in which frames follow each other with few bytes between them."""
HEADER_BYTES = 4096
"""Largest number of bytes between two frames of a CONTIGUOUS file; more are a damaged part that FFmpeg skips."""
TOLERANCE, MAX_TOLERANCE = 0.02, 0.5
"""Error of the duration in a correct header: as a fraction, and in seconds. Each is added to two frames."""
MAX_READ_ERRORS = 100
"""Reading ends after this number of consecutive errors of a container."""
DEFAULT_RATE = 25.0
"""Frames per second of a video whose header does not say."""
MAX_PIXEL_ASPECT = 8
"""Pixels that are longer by a larger factor come from broken headers."""
TURNS = {(1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4}
TURNS |= {(0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8}
"""EXIF orientation for the four factors (a, b, c, d) of a display matrix (ISO 14496-12, 6.2.2)."""
UNSPECIFIED_COLORS = 2
"""Colorspace of a frame whose file does not name the matrix of its colors (ITU-T H.273)."""
HD_HEIGHT = 720
"""Lowest height of the videos that have the colors of BT.709 unless their file says otherwise; others have BT.601."""
TIME_BASE = Fraction(1, 90_000)
"""Resolution of the times in a written video."""

av.logging.set_level(None)  # decoders print every damaged block; read_video reports the damage


class NotVideo(ValueError):
    """A file has no video that can be decoded."""


def read_video(path: str | Path, note: Note) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time, frame) for each frame of a video that can be decoded, with its pixels square and upright.

    The time is in seconds from the first frame. `note` is called with a remark if the file has several video streams.
    ValueError with only the reason if frames are lost or damaged, after the last frame; NotVideo if there are none.
    """
    with open_regular(path) as file:
        joined = count_joined(file)
        yield from read_container(file, joined, note)


def read_container(file: BinaryIO, joined: int, note: Note) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the frames of an open file of `joined` videos: see read_video."""
    with open_container(file) as container:
        stream = choose_stream(container, note)
        clock, to_rgb, damage = Clock(1 / frame_rate(stream)), Converter(stream), Damage(container, stream)
        for packet in read_packets(container, damage):
            damage.check_packet(packet)
            if packet.stream is not stream:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                damage.errors += 1
                continue
            for frame in frames:
                time = clock(frame)
                damage.check_frame(frame, time)
                yield time, to_rgb(frame)
        if damage.num_frames == 0:
            raise NotVideo(f"no frame of the {stream.codec_context.name} video can be decoded")
        reasons = damage.reasons()
        if joined > 1:
            reasons.append(f"{joined} videos are joined in the file; only the first is read")
        if reasons:
            raise ValueError("; ".join(reasons))


def count_joined(file: BinaryIO) -> int:
    """Return the number of MP4 videos that follow one another in an open file, of which FFmpeg reads the first.

    0 for another format. An MP4 file is a list of boxes, each of which begins with its length and its type; every video
    begins with the type "ftyp" (ISO/IEC 14496-12).
    """
    count, start, length = 0, 0, file.seek(0, 2)
    while start + 8 <= length:
        file.seek(start)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if start == 0 and kind != b"ftyp":
            break
        count += kind == b"ftyp"
        size = int.from_bytes(file.read(8), "big") if size == 1 else size
        if size < 8:  # to the end of the file, or damaged
            break
        start += size
    file.seek(0)
    return count


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open a video; NotVideo if it has no known format. No other file or address that it names is opened.

    FFmpeg does not get the name of the file, because it would take some files for videos by their suffix alone.
    """
    unnamed = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
    try:
        container = av.open(unnamed, metadata_errors="ignore", options={"protocol_whitelist": "none"})
    except (av.FFmpegError, ValueError):
        is_mp4 = count_joined(file) > 0  # its index is at the end in most recordings
        raise NotVideo("damaged or not complete" if is_mp4 else "not a readable image or video") from None
    if container.format.name in NOT_VIDEO or container.format.name.endswith("_pipe"):
        container.close()
        raise NotVideo("not a readable image or video")
    return container


def choose_stream(container: av.container.InputContainer, note: Note) -> av.VideoStream:
    """Return the video stream that FFmpeg's player shows; NotVideo if there is none, ValueError if it is unusable."""
    pictures = av.stream.Disposition.attached_pic
    videos = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not videos:
        raise NotVideo("no video in it, only sound or other data" if container.streams else "no video in it")
    stream = container.streams.best("video")
    stream = stream if stream in videos else videos[0]
    if stream.codec_context is None:
        raise ValueError("no decoder for the codec of the video")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise ValueError(f"frames of {width:,}x{height:,} pixels are more than {MAX_PIXELS // 10**6} million")
    if len(videos) > 1:
        note(f"it has {len(videos)} video streams; the main stream is used")
    stream.thread_type = "AUTO"
    return stream


def frame_rate(stream: av.VideoStream) -> float:
    """Return the frames per second of a stream; DEFAULT_RATE if the header does not say."""
    rate = float(stream.guessed_rate or stream.average_rate or 0)
    return rate if 0 < rate < 10_000 else DEFAULT_RATE


def read_packets(container: av.container.InputContainer, damage: "Damage") -> Iterator[av.Packet]:
    """Yield the packets of all streams; errors of the container are counted and skipped."""
    errors = 0
    while errors < MAX_READ_ERRORS:
        try:
            for packet in container.demux():
                errors = 0
                yield packet
            return
        except av.FFmpegError:
            errors += 1
            damage.errors += 1


class Clock:
    """Callable that returns the time of each frame in seconds from the first frame; it never decreases.

    Times that jump back by more than a second or to those of the first frame, as in joined videos, continue after the
    last frame.
    """

    def __init__(self, interval: float):
        self._interval, self._start, self._offset, self._last = interval, 0.0, None, -interval

    def __call__(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame."""
        stamp = frame.dts if frame.pts is None else frame.pts
        next_time = self._last + self._interval
        found = next_time - (self._offset or 0) if stamp is None else float(stamp * frame.time_base)
        back = self._last - found - (self._offset or 0)
        to_start = found < self._start + self._interval / 2 and back > self._interval / 2
        if self._offset is None or back > 1 or to_start:
            self._start, self._offset = found, next_time - found
        self._last = max(found + self._offset, self._last)
        return self._last


class Converter:
    """Callable that returns a decoded frame as RGB uint8 [H, W, 3] with square pixels, upright."""

    def __init__(self, stream: av.VideoStream):
        aspect = stream.sample_aspect_ratio or 1
        self._aspect = aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame."""
        width = max(1, round(frame.width * self._aspect))
        matrix = usual_matrix(frame.height) if frame.colorspace == UNSPECIFIED_COLORS else None
        rgb = self._reformatter.reformat(frame, width=width, format="rgb24", src_colorspace=matrix).to_ndarray()
        return turn(rgb, orientation(frame))


def usual_matrix(height: int) -> Colorspace:
    """Return the matrix of the colors in videos of this height."""
    return Colorspace.ITU709 if height >= HD_HEIGHT else Colorspace.ITU601


def orientation(frame: av.VideoFrame) -> int:
    """Return the EXIF orientation of a frame, 1 (upright) to 8, from its display matrix."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), np.int32)
            return TURNS.get(tuple(np.sign(matrix[[0, 1, 3, 4]]).tolist()), 1)
    return 1


class Damage:
    """Record of the frames that a video lacks, from its packets and its decoded frames."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream):
        self.errors, self.num_frames = 0, 0
        self._container, self._stream, self._interval = container, stream, 1 / frame_rate(stream)
        self._undecoded, self._after_gap, self._gaps, self._damaged = set(), [], [], []
        self._start, self._time, self._reached = 0.0, 0.0, 0.0
        self._end, self._skipped = None, False

    def check_packet(self, packet: av.Packet) -> None:
        """Record a packet of any stream."""
        if packet.pts is not None:
            self._reached = max(self._reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.pos is not None and self._container.format.name in CONTIGUOUS:
            self._skipped |= self._end is not None and packet.pos > self._end + HEADER_BYTES
            self._end = packet.pos + packet.size
        if packet.stream is self._stream and packet.pts is not None:
            if self._skipped or packet.is_corrupt:
                self._after_gap.append(packet.pts)
            self._skipped = False
            if not packet.is_discard:
                self._undecoded.add(packet.pts)

    def check_frame(self, frame: av.VideoFrame, time: float) -> None:
        """Record a decoded frame and its time in seconds from the first frame."""
        if self.num_frames == 0 and frame.pts is not None:
            self._start = float(frame.pts * frame.time_base)
        self.num_frames += 1
        self._undecoded.discard(frame.pts)
        if frame.is_corrupt:
            self._damaged.append(time)
        if self._after_gap or frame.is_corrupt:
            if time > self._time + 3 * self._interval:
                self._gaps.append((self._time, time))
            self._after_gap = [stamp for stamp in self._after_gap if frame.pts is not None and stamp > frame.pts]
        self._time = time

    def reasons(self) -> list[str]:
        """Return what is missing, once all packets are read."""
        found = []
        if self.errors:
            stamps = sorted(float(stamp * self._stream.time_base) - self._start for stamp in self._undecoded)
            place = f", between {stamps[0]:.2f} and {stamps[-1]:.2f} s" if stamps else ""
            lost = len(stamps) or self.errors
            found.append(f"{lost} of {self.num_frames + lost} frames cannot be decoded{place}")
        for start, end in self._gaps:
            found.append(f"no frames between {start:.2f} and {end:.2f} s")
        if self._damaged:
            found.append(f"damaged frames: {len(self._damaged)}, the first at {self._damaged[0]:.2f} s")
        return found + self._missing_end()

    def _missing_end(self) -> list[str]:
        """Return a reason if the file ends before the video does, by its header."""
        duration = (self._container.duration or 0) / av.time_base
        reached = self._reached - (self._container.start_time or 0) / av.time_base
        if reached < duration - min(TOLERANCE * duration, MAX_TOLERANCE) - 2 * self._interval:
            return [f"the video ends after {reached:.2f} of {duration:.2f} s"]
        size = self._container.size
        beyond = any(entry.pos + entry.size > size for entry in self._stream.index_entries)
        return ["the file ends before the last frames"] if beyond else []


def count_frames(path: str | Path) -> int:
    """Return the approximate number of frames by the header of a video; 1 if it is not a video."""
    try:
        with open_regular(path) as file, open_container(file) as container:
            stream = choose_stream(container, lambda remark: None)
            duration = (container.duration or 0) / av.time_base
            return stream.frames or max(1, round(duration * frame_rate(stream)))
    except ValueError:
        return 1


def has_sound(path: str | Path) -> bool:
    """Return True for a video with sound; False also for a file that is not a video, and for a camera."""
    try:
        with open_regular(path) as file, open_container(file) as container:
            return bool(container.streams.audio)
    except ValueError:
        return False


class VideoWriter:
    """An MP4 file with H.264 that browsers play; every frame is shown until the time of the next frame."""

    def __init__(self, path: str | Path, size: tuple[int, int]):
        """Create the file for frames of `size` (height, width)."""
        self._size, self._last, self._interval = size, -1, round(1 / DEFAULT_RATE / TIME_BASE)
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", options={"crf": "20", "preset": "veryfast"})
        self._stream.height, self._stream.width = (side + side % 2 for side in size)  # H.264 has even sizes
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE
        self._reformatter, self._matrix = VideoReformatter(), usual_matrix(size[0])
        self._stream.codec_context.colorspace, self._stream.codec_context.color_range = self._matrix, ColorRange.MPEG

    def write(self, time: float, image: np.ndarray) -> None:
        """Write a frame RGB uint8 [H, W, 3] at its time in seconds; another size is resized to the first."""
        height, width = self._size
        if image.shape[:2] != self._size:
            image = cv2.resize(image, (width, height))
        padded = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        rgb = av.VideoFrame.from_ndarray(padded, format="rgb24")
        frame = self._reformatter.reformat(rgb, format="yuv420p", dst_colorspace=self._matrix)
        frame.pts, frame.time_base = max(round(time / TIME_BASE), self._last + 1), TIME_BASE
        if self._last >= 0:
            self._interval = frame.pts - self._last
        self._last = frame.pts
        self._mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the last frames and finish the file."""
        try:
            self._mux(self._stream.encode())
        finally:
            self._container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._interval  # only that of the last frame is used
            self._container.mux(packet)
