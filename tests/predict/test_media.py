import itertools
import math
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from affect_jax.predict import media


@pytest.fixture
def video(tmp_path):
    """Video of 40 frames of 64x48 pixels at 10 frames per second; frame i has gray level 6 * i."""
    writer = cv2.VideoWriter(str(tmp_path / "gray.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(40):
        writer.write(np.full((48, 64, 3), 6 * number, np.uint8))
    writer.release()
    return tmp_path / "gray.avi"


@pytest.fixture
def problems():
    return []


@pytest.fixture
def report(problems):
    return lambda file, reason: problems.append((file, reason))


def test_frames_of_a_video_are_read_in_order_with_their_times(video, problems, report):
    frames = list(media.read_frames(media.find_sources([str(video)]), report))
    assert [frame.frame for frame in frames] == list(range(40))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(40) / 10, atol=0.002)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], 6 * np.arange(40), atol=2)
    assert frames[0].image.shape == (48, 64, 3)
    assert media.frame_rate(str(video)) == pytest.approx(10)
    assert not problems


def test_frames_are_read_lazily(video, report, monkeypatch):
    read = []

    class Counted:
        def __init__(self, *arguments):
            self.capture = cv2_capture(*arguments)

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            read.append(1)
            return self.capture.read()

    cv2_capture = cv2.VideoCapture
    monkeypatch.setattr(media.cv2, "VideoCapture", Counted)
    frames = media.read_frames(media.find_sources([str(video)]), report)
    assert not read
    for wanted in (1, 2, 3):
        next(frames)
        assert len(read) == wanted


def test_rotation_in_the_metadata_of_a_video_is_applied(tmp_path, problems, report):
    writer = cv2.VideoWriter(str(tmp_path / "turned.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.repeat(np.uint8([40] * 24 + [200] * 24), 64 * 3).reshape(48, 64, 3))  # bright lower half
    writer.release()
    content = (tmp_path / "turned.mp4").read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40  # ISO 14496-12: nine numbers, here a clockwise quarter turn
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(content[:matrix] + quarter + content[matrix + 36 :])
    frames = list(media.read_frames(media.find_sources([str(tmp_path / "turned.mp4")]), report))
    assert [frame.image.shape for frame in frames] == [(64, 48, 3)] * 3
    for frame in frames:
        assert frame.image[:, :20].mean() > 180 and frame.image[:, 28:].mean() < 60  # the lower half is now on the left
    assert not problems


def replace_capture_properties(monkeypatch, **properties):
    """Have OpenCV's captures report other properties: a number, or a function of the count of frames read."""

    class Capture:
        def __init__(self, file):
            self.capture, self.read_frames = real(str(file)), 0

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def read(self):
            self.read_frames += 1
            return self.capture.read()

        def get(self, which):
            found = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in properties.items()}
            value = found.get(which, self.capture.get(which))
            return value(self.read_frames) if callable(value) else value

    real = cv2.VideoCapture
    monkeypatch.setattr(media.cv2, "VideoCapture", Capture)


def test_video_of_variable_frame_rate_is_complete_if_its_last_frame_has_the_right_time(
    video, problems, report, monkeypatch
):
    """As in Matroska: the header announces 415 frames for a file of 120 whose last has the time of the 415th."""
    replace_capture_properties(monkeypatch, FRAME_COUNT=140, PTS=lambda read: 3.5 * read - 1)
    assert len(list(media.read_frames(media.find_sources([str(video)]), report))) == 40
    assert not problems
    replace_capture_properties(monkeypatch, FRAME_COUNT=140, PTS=lambda read: 2 * read - 1)
    assert len(list(media.read_frames(media.find_sources([str(video)]), report))) == 40
    assert problems == [(str(video), "the video ends after frame 40 of 140")]


def test_time_of_a_camera_starts_with_its_first_frame(video, report, monkeypatch):
    """The driver may count from the start of the computer, or not at all."""
    real = cv2.VideoCapture
    monkeypatch.setattr(media.cv2, "VideoCapture", lambda number: real(str(video)))
    times = []
    for frame in media.read_frames(media.find_sources(["camera:0"]), report):
        times.append(frame.time)
        time.sleep(0.002)
    assert times[0] == 0 and len(times) == 40
    assert 0.07 < times[-1] < 3 and math.isclose(times[-1], max(times))


def test_truncated_video_gives_its_frames_and_is_reported(video, problems, report):
    whole = media.find_sources([str(video)])
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    frames = list(media.read_frames(whole, report))
    assert 0 < len(frames) < 40
    assert problems == [(str(video), f"the video ends after frame {len(frames)} of 40")]


def test_unreadable_files_are_reported_and_the_others_read(tmp_path, problems, report):
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((5, 6, 3), np.uint8))
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    (tmp_path / "d.mp4").write_text("no video")
    cv2.VideoWriter(str(tmp_path / "e.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48)).release()
    frames = list(media.read_frames(media.find_sources([str(tmp_path), "camera:77"]), report))
    assert [frame.file for frame in frames] == [str(tmp_path / "b.png")]
    assert [file for file, _ in problems] == [str(tmp_path / name) for name in ("a.jpg", "c.png", "d.mp4", "e.mp4")] + [
        "camera:77"
    ]
    assert [reason for _, reason in problems][::2] == ["an empty file", "not a readable video", "no such camera"]


def test_folders_globs_and_files_are_found_in_order(tmp_path, video):
    (tmp_path / "deep").mkdir()
    for name in ("deep/z.png", "b.jpg", "a.PNG", ".hidden.png", "notes.txt"):
        shutil.copy(video, tmp_path / name)

    def found(*inputs):
        return [source.file.removeprefix(f"{tmp_path}/") for source in media.find_sources(map(str, inputs))]

    assert found(tmp_path) == ["a.PNG", "b.jpg", "deep/z.png", "gray.avi"]
    assert found(f"{tmp_path}/*.jpg", tmp_path / "gray.avi") == ["b.jpg", "gray.avi"]
    assert media.find_sources(["camera:0"]) == [media.Source("camera:0", True, None)]
    with pytest.raises(ValueError, match="nothing: no such file"):
        found(tmp_path / "nothing")
    drawn = [source.file for source in media.find_sources([str(tmp_path)], left_out=tmp_path / "deep")]
    assert [Path(file).name for file in drawn] == ["a.PNG", "b.jpg", "gray.avi"]
    with pytest.raises(ValueError, match="where the results are written; choose another --out"):
        media.find_sources([str(tmp_path / "deep" / "z.png")], left_out=tmp_path / "deep")


def test_file_whose_name_looks_like_a_glob_is_read(tmp_path):
    name = tmp_path / "party [1].png"
    cv2.imwrite(str(name), np.zeros((5, 6, 3), np.uint8))
    assert [source.file for source in media.find_sources([str(name)])] == [str(name)]
    assert len(list(itertools.islice(media.read_frames(media.find_sources([str(name)]), print), 2))) == 1
