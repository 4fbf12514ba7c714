import math
import os
import shutil
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from written_video import gray_frames, noise_frames, write_video

from affect_jax.predict import media
from affect_jax.predict.media import Report, Source, find_sources, read_frames
from affect_jax.predict.output import Output, result_filter


def write_image(path, level=90):
    Image.new("RGB", (64, 48), (level,) * 3).save(path, "PNG")
    return str(path)


def read(*inputs):
    """Return the frames of the inputs and the report on them."""
    found, report = find_sources(map(str, inputs)), Report()
    for given, reason in found.problems.items():
        report.skip(given, reason)
    return list(read_frames(found.sources, report)), report


def names(frames):
    """Return the names of the files that the frames are from, in order."""
    return list(dict.fromkeys(Path(frame.file).name for frame in frames))


def test_images_videos_and_animations_of_any_name_are_read_by_their_content(tmp_path):
    write_image(tmp_path / "picture.mp4")
    write_video(tmp_path / "talk.mp4", gray_frames(range(0, 200, 20))).rename(tmp_path / "talk.png")
    blank, face = (Image.fromarray(frame) for frame in gray_frames([255, 60]))
    blank.save(tmp_path / "animation.gif", save_all=True, append_images=[face], duration=200)
    (tmp_path / "animation.gif").rename(tmp_path / "animation")
    frames, report = read(tmp_path)
    assert names(frames) == ["animation", "picture.mp4", "talk.png"]
    by_file = {Path(name).name: [f for f in frames if f.file == name] for name in {frame.file for frame in frames}}
    assert [(frame.frame, frame.time) for frame in by_file["picture.mp4"]] == [(0, None)]
    assert [(frame.frame, frame.time) for frame in by_file["animation"]] == [(0, 0.0), (1, 0.2)]
    assert by_file["animation"][1].image.mean() == pytest.approx(60, abs=2)
    assert [frame.frame for frame in by_file["talk.png"]] == list(range(10))
    np.testing.assert_allclose([frame.time for frame in by_file["talk.png"]], np.arange(10) / 10, atol=0.001)
    assert report.summary() == "3 files: 3 read" and not report.problems()


def test_every_file_is_read_or_named_and_counted(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "e.mp4").write_text("no video")
    (tmp_path / "f.txt").write_text("notes")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:  # FFmpeg finds the images in it
        for name in ("1.jpg", "2.jpg"):
            archive.writestr(name, cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes())
    (tmp_path / "g.jpg").symlink_to(tmp_path / "absent.jpg")
    os.mkfifo(tmp_path / "h.jpg")
    (tmp_path / "i.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    frames, report = read(tmp_path, "camera:77", "rtsp://host/stream", 300 * "x", tmp_path / "none.jpg", "no*.jpg", "")
    assert names(frames) == ["a.png"] and report.read == 1
    reasons = {Path(file).name: reason for file, reason in report.skipped.items()}
    expected = {
        "b.jpg": "an empty file",
        "c.jpg": "an empty file",
        "d.png": "not a readable image",
        "no*.jpg": "no file",
    }
    expected |= {"e.mp4": "not a readable image or video", "g.jpg": "a link to a missing file", "h.jpg": "a device"}
    expected |= {
        "i.heic": "damaged or not complete",
        "camera:77": "no such camera",
        "stream": "addresses are not read; download the file",
    }
    expected |= {"": "an empty name", 300 * "x": "File name too long", "none.jpg": "no such file", "no*.jpg": "no file"}
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items())
    assert [Path(file).name for file in report.others] == ["f.txt", "faces.zip"]
    assert report.summary().startswith("16 files: 1 read, 15 skipped (3 times not a readable image or video; ")
    assert f"neither images nor videos: {tmp_path}/f.txt, {tmp_path}/faces.zip" in report.summary()
    assert len(report.problems()) == 13


@pytest.mark.parametrize("reader", [media.images, media.video])
def test_file_whose_reading_fails_is_named_and_the_others_are_read(tmp_path, monkeypatch, reader):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    write_video(tmp_path / "a.avi", gray_frames([90]))
    write_image(tmp_path / "b.png")
    frames, report = read(tmp_path)
    assert names(frames) == ["a.avi", "b.png"]
    monkeypatch.setattr(reader, "open_image" if reader is media.images else "count_joined", fail)
    frames, report = read(tmp_path)
    assert names(frames) == ([] if reader is media.images else ["b.png"])
    assert f"{tmp_path}/a.avi: Input/output error" in report.problems()


@pytest.mark.parametrize("suffix", ["bin", "cdg", "idf"])
def test_file_is_no_video_by_its_suffix(tmp_path, suffix):
    path = tmp_path / f"random.{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    frames, report = read(tmp_path)
    assert not frames and report.others == {str(path): "not a readable image or video"}


def test_only_files_without_image_and_video_are_a_problem(tmp_path):
    (tmp_path / "f.txt").write_text("notes")
    assert read(tmp_path)[1].problems() == [f"{tmp_path}/f.txt: not a readable image or video"]


def test_video_with_a_damaged_end_is_read_in_part_and_named(tmp_path):
    path = write_video(tmp_path / "a.mkv", noise_frames(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, report = read(path, write_image(tmp_path / "b.png"))
    assert names(frames) == ["a.mkv", "b.png"]
    assert report.summary() == "2 files: 2 read, 1 of them incompletely"
    assert report.problems()[0].startswith(f"{path}: the video ends after ")


def test_folders_links_globs_and_files_are_found_in_order_and_once(tmp_path):
    for folder in ("deep", "dir.jpg", ".thumbs", "@eaDir", "__MACOSX"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        write_image(tmp_path / "in" / folder / "z.png")
    (tmp_path / "elsewhere").mkdir()
    write_image(tmp_path / "elsewhere" / "y.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "elsewhere.png").symlink_to(tmp_path / "in" / "deep")
    for name in ("b.jpg", "a.PNG", ".hidden.png", "._b.jpg"):
        write_image(tmp_path / "in" / name)

    def found(*inputs, **options):
        return [
            str(Path(source.file).relative_to(tmp_path)) for source in find_sources(map(str, inputs), **options).sources
        ]

    everything = ["in/a.PNG", "in/b.jpg", "in/deep/z.png", "in/dir.jpg/z.png", "in/link/y.png"]
    assert found(tmp_path / "in") == everything
    assert found(tmp_path / "in" / "b.jpg", f"{tmp_path}/in/*.PNG", tmp_path / "in" / "b.jpg") == [
        "in/b.jpg",
        "in/a.PNG",
    ]
    assert found(f"{tmp_path}/**/y.png") == ["elsewhere/y.png"]
    assert found(f"{tmp_path}/in/**/[yz].png") == ["in/deep/z.png", "in/dir.jpg/z.png", "in/link/y.png"]
    assert found(f"{tmp_path}/in/**") == everything
    assert found(f"{tmp_path}/in/d*") == ["in/deep/z.png", "in/dir.jpg/z.png"]
    assert found(tmp_path / "in", is_result=lambda path: path.parent.name == "deep") == [
        e for e in everything if "deep" not in e
    ]
    given = str(tmp_path / "in" / "b.jpg")
    problem = "only results of an earlier call; to read drawings, copy them to another folder"
    assert find_sources([given], is_result=lambda path: True) == ([], {given: problem}, 1)
    assert find_sources(["camera:0"]) == ([Source("camera:0")], {}, 0)


def test_file_that_is_named_in_several_ways_is_read_once_under_its_first_name(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for given in ([".", "a.png"], [".", path], ["a.png", "b.png", f"../{tmp_path.name}"]):
        assert [source.file for source in find_sources(given).sources] == ["a.png"]
    assert [source.file for source in find_sources(["b.png", "."]).sources] == ["b.png"]


@pytest.mark.parametrize("out", [".", "predictions"])
def test_results_of_earlier_calls_are_left_out_and_files_of_the_user_beside_them_are_read(tmp_path, out):
    out = tmp_path / out
    (out / "drawn").mkdir(parents=True)
    mine = [write_image(tmp_path / "a.png"), write_image(out / "drawn" / "b.png")]
    for num_results in (0, 4, 4):
        inputs = find_sources([str(tmp_path)], result_filter())
        assert [source.file for source in inputs.sources] == mine and inputs.num_left_out == num_results
        with Output(out, ("happy", "sad"), True, 0.5) as output:
            for frame in read_frames(inputs.sources, output.report):
                output.write(frame, [])
    drawing = str(out / "drawn" / "a.jpg")
    assert list(find_sources([drawing], result_filter()).problems) == [drawing]
    assert result_filter()(out / "drawn.partial" / "a.jpg")


@pytest.mark.parametrize("name", ["party [1].png", os.fsdecode(b"caf\xe9.png"), "two\nlines.png", "a:b.png"])
def test_file_with_an_unusual_name_is_read(tmp_path, name):
    frames, report = read(write_image(tmp_path / name), tmp_path)
    assert names(frames) == [name] and report.summary() == "1 file: 1 read"


def test_unreadable_file_with_an_unusual_name_is_one_line_of_text(tmp_path):
    for name in (os.fsdecode(b"caf\xe9.png"), "two\nlines.png"):
        (tmp_path / name).touch()
    problems = read(tmp_path)[1].problems()
    assert problems == [f"{tmp_path}/caf\\xe9.png: an empty file", f"{tmp_path}/two\\nlines.png: an empty file"]
    "".join(problems).encode()


def test_folder_without_files_or_permission_is_named(tmp_path, monkeypatch):
    for name in ("empty", "locked"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "a.png")
    scandir = os.scandir  # root may list every folder, so the system's answer is replaced

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    inputs = find_sources([str(tmp_path), str(tmp_path / "empty")])
    assert [Path(source.file).name for source in inputs.sources] == ["a.png"]
    assert inputs.problems == {
        str(tmp_path / "locked"): "Permission denied",
        str(tmp_path / "empty"): "no file in this folder",
    }
    for given in (f"{tmp_path}/locked/", f"{tmp_path}/lock*"):
        assert find_sources([given]).problems == {str(tmp_path / "locked"): "Permission denied"}


def use_camera(monkeypatch, num_frames: int) -> None:
    """Replace OpenCV's cameras by one that gives a number of frames."""

    class Camera:
        def __init__(self, number):
            self.images = gray_frames(range(num_frames))

        def isOpened(self):
            return True

        def read(self):
            return (True, self.images.pop()) if self.images else (False, None)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)


def test_time_of_a_camera_starts_with_its_first_frame(monkeypatch):
    """The driver may count from the start of the computer, or not at all."""
    use_camera(monkeypatch, 40)
    times, report = [], Report()
    for frame in read_frames([Source("camera:0")], report):
        times.append(frame.time)
        time.sleep(0.002)
    assert times[0] == 0 and len(times) == 40
    assert 0.07 < times[-1] < 3 and math.isclose(times[-1], max(times))
    assert report.problems() == ["camera:0: the camera gives no more frames"]


def test_camera_without_frames_is_a_problem(monkeypatch):
    use_camera(monkeypatch, 0)
    report = Report()
    assert not list(read_frames([Source("camera:0")], report))
    assert report.problems() == ["camera:0: the camera gives no frames"]


def test_number_of_frames_is_estimated_without_decoding(tmp_path):
    path = write_video(tmp_path / "a.mp4", gray_frames(range(0, 200, 5)))
    assert media.count_frames(Source(str(path))) == 40
    assert media.count_frames(Source(write_image(tmp_path / "a.png"))) == 1
    assert media.count_frames(Source(str(shutil.copy(path, tmp_path / "b.dat")))) == 40
    assert media.count_frames(Source("camera:0")) is None
