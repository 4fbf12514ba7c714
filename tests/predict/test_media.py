import itertools
import shutil

import cv2
import numpy as np
import pytest

from affect_jax.predict import media


@pytest.fixture
def video(tmp_path):
    """Forty frames of 64x48 pixels, ten a second, each of one gray level: six times its number."""
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


def test_video_gives_its_frames_in_order_with_their_times(video, problems, report):
    frames = list(media.read_frames(media.find_sources([str(video)]), report))
    assert [frame.frame for frame in frames] == list(range(40))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(40) / 10, atol=0.002)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], 6 * np.arange(40), atol=2)
    assert frames[0].image.shape == (48, 64, 3)
    assert media.frame_rate(str(video)) == pytest.approx(10)
    assert not problems


def test_no_frame_is_read_before_it_is_asked_for(video, report, monkeypatch):
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


def test_video_that_is_cut_gives_what_it_has_and_is_reported(video, problems, report):
    whole = media.find_sources([str(video)])
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    frames = list(media.read_frames(whole, report))
    assert 0 < len(frames) < 40
    assert problems == [(str(video), f"the video breaks off behind frame {len(frames)} of 40")]


def test_what_cannot_be_read_is_reported_and_the_rest_is_read(tmp_path, problems, report):
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((5, 6, 3), np.uint8))
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    (tmp_path / "d.mp4").write_text("no video")
    frames = list(media.read_frames(media.find_sources([str(tmp_path), "camera:77"]), report))
    assert [frame.file for frame in frames] == [str(tmp_path / "b.png")]
    assert [file for file, _ in problems] == [str(tmp_path / name) for name in ("a.jpg", "c.png", "d.mp4")] + [
        "camera:77"
    ]
    assert [reason for _, reason in problems][::3] == ["an empty file", "no such camera"]


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


def test_a_picture_whose_name_has_the_signs_of_a_glob_is_itself(tmp_path):
    name = tmp_path / "party [1].png"
    cv2.imwrite(str(name), np.zeros((5, 6, 3), np.uint8))
    assert [source.file for source in media.find_sources([str(name)])] == [str(name)]
    assert len(list(itertools.islice(media.read_frames(media.find_sources([str(name)]), print), 2))) == 1
