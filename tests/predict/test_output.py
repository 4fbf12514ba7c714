import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image
from written_video import gray_frames, write_video

from affect_jax.predict import output as output_module
from affect_jax.predict.media import Frame, Source, read_frames
from affect_jax.predict.networks import Classifier
from affect_jax.predict.output import Output
from affect_jax.predict.reader import Face, FaceReader
from affect_jax.predict.video import read_video
from affect_jax.runs.model_file import save_trained

ROOT = Path(__file__).parents[2]
HAPPY = Face((10.0, 30.0, 60.5, 90.25), 0.9, "happy", {"happy": 0.75, "sad": 0.25})


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_module_writes_lines_and_drawings_of_a_photo_a_video_and_a_broken_file(classifier, tmp_path):
    """python -m affect_jax.predict, from a folder other than the checkout."""
    save_trained(classifier, tmp_path / "model.safetensors", "")
    photograph = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "talk.avi", gray_frames(range(0, 220, 20)), "mjpeg", rate=5)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"not an image")
    command = [sys.executable, "-m", "affect_jax.predict", photograph, "in", "--faces=whole", "--out=out"]
    command += ["--classifier=model.safetensors", "--batch_size=4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1  # for the broken file
    assert "broken.jpg: not a readable" in done.stderr and "Traceback" not in done.stderr
    assert "12 faces in 12 frames" in done.stdout and "drawn/\n" in done.stdout
    assert "3 files: 2 read, 1 skipped (not a readable image or video)" in done.stdout
    records = lines(tmp_path / "out")
    faces, broken = [record for record in records if record["box"]], [record for record in records if not record["box"]]
    assert len(broken) == 1 and broken[0]["reason"].startswith("not a readable")
    assert [(record["frame"], record["time"]) for record in faces] == [(0, None)] + [
        (n, pytest.approx(n / 5)) for n in range(11)
    ]
    assert faces[0]["file"] == photograph and faces[0]["box"] == [0, 0, 512, 600]
    for record in faces:
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["expression"] == max(record["probabilities"], key=record["probabilities"].get)
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["frame"], row["expression"]) for row in rows] == [
        (record["file"], str(record["frame"]), record["expression"] or "") for record in records
    ]
    assert {path.name for path in (tmp_path / "out" / "drawn").iterdir()} == {"grace_hopper.jpg", "talk.mp4"}
    assert [record["drawing"] for record in records] == [row["drawing"] or None for row in rows]
    assert [record["drawing"] for record in faces] == ["drawn/grace_hopper.jpg"] + ["drawn/talk.mp4"] * 11
    with av.open(tmp_path / "out" / "drawn" / "talk.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.codec_context.name) == (11, 5, "h264")


def gray_video(path, num_frames, size):
    """Write a video of uniform frames whose gray level counts up."""
    return str(write_video(path, gray_frames([number % 250 for number in range(num_frames)], size), "mjpeg"))


def test_ctrl_c_keeps_the_results_so_far(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    video = gray_video(tmp_path / "long.avi", 30_000, (32, 32))
    command = [sys.executable, str(ROOT / "scripts" / "predict.py"), video, "--faces=whole", "--batch_size=4"]
    command += [f"--classifier={tmp_path / 'model.safetensors'}", f"--out={tmp_path / 'out'}"]
    # A test run in the background of a shell ignores SIGINT, and its children inherit that.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=restore
    )
    started, unfinished = time.monotonic(), tmp_path / "out" / "predictions.jsonl.partial"
    while not (unfinished.exists() and unfinished.stat().st_size) and time.monotonic() < started + 300:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr
    assert "interrupted; the results so far are kept" in stdout
    frames = [line["frame"] for line in lines(tmp_path / "out")]
    assert frames == list(range(len(frames))) and 0 < len(frames) < 30_000
    drawn = list(read_video(tmp_path / "out" / "drawn" / "long.mp4", print))
    assert len(drawn) == pytest.approx(len(frames), abs=1)


INTERRUPTED = """
import runpy, sys
from affect_jax.predict.reader import FaceReader

def stream(self, *given, original=FaceReader.stream, last=int(sys.argv.pop())):
    for number, result in enumerate(original(self, *given)):
        if number == last:
            raise KeyboardInterrupt
        yield result

FaceReader.stream = stream
runpy.run_module("affect_jax.predict", run_name="__main__")
"""
"""Program with the arguments of a prediction and the number of results after which Ctrl-C is pressed."""


def test_ctrl_c_counts_what_was_written_and_not_what_was_read_ahead(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    command = [sys.executable, "-c", INTERRUPTED, "--faces=whole", "--classifier=model.safetensors", "--batch_size=4"]
    for name in "abdef":
        Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").touch()

    def predict(*arguments):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout.replace(compiles, "").splitlines(), done.stderr

    compiles = "compiling the networks; each new size of image takes this time once, then a cache has them\n"
    none = ["0 files: 0 read", "1 of 1 files were not read"]
    first = "0 faces in 0 frames: out/predictions.jsonl, predictions.csv"
    assert predict("a.png", "--out=out", "0") == (130, [first, *none], "interrupted\n")
    kept = "no frame was read; the results of an earlier call in out are kept"
    assert predict("a.png", "--out=out", "0") == (130, [kept, *none], "interrupted\n")
    files = [f"{name}.png" for name in "abcdef"]
    status, printed, _ = predict(*files, "--out=out", "2")
    assert (status, printed[1:]) == (
        130,
        [
            "3 files: 2 read, 1 skipped (an empty file)",
            "interrupted; the results so far are kept",
            "3 of 6 files were not read",
        ],
    )
    assert sorted(line["file"] for line in lines(tmp_path / "out")) == files[:3]


def resident_megabytes():
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")
def test_memory_stays_flat_over_a_video(classifier, tmp_path):
    """600 frames, 550 MB, are read, classified and drawn within 110 MB."""
    video = gray_video(tmp_path / "long.avi", 600, (480, 640))
    read_faces, memory = FaceReader(Classifier(classifier, 8), None, 8, 0.1, 0.0, 1.0), []
    with Output(tmp_path / "out", classifier.data.class_names, True, 0.5) as output:
        read_faces([np.zeros((480, 640, 3), np.uint8)])  # compile
        before = resident_megabytes()
        for frame, faces in read_faces.stream(read_frames([Source(video)], output.report)):
            output.write(frame, faces)
            memory.append(resident_megabytes())
    assert len(memory) == 600
    assert max(memory) - before < 110
    assert memory[-1] - memory[100] < 15


def photo(level=90, size=(100, 100)):
    return np.full((*size, 3), level, np.uint8)


class Full:
    """Stands for a Pillow image or a video that is written to a full disk, or that no codec accepts."""

    def __init__(self, error):
        self.error = error

    def fail(self, *arguments, **options):
        raise self.error

    save = write = close = fail


@pytest.mark.parametrize("time_", [None, 0.0])
def test_drawing_that_cannot_be_written_is_named_and_the_rest_is_processed(tmp_path, monkeypatch, time_):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        with monkeypatch.context() as patch:
            patch.setattr(output_module.Image, "fromarray", lambda *_: Full(OSError(22, "Invalid argument")))
            patch.setattr(output_module, "VideoWriter", lambda *_: Full(ValueError("no such size")))
            for number in range(3):
                output.write(Frame("bad", number, time_ if time_ is None else number / 10, photo()), [HAPPY])
        output.write(Frame("good", 0, time_, photo()), [HAPPY])
    (reason,) = output.report.incomplete.values()
    assert reason == f"its drawing cannot be written ({'Invalid argument' if time_ is None else 'no such size'})"
    assert list(output.report.incomplete) == ["bad"]
    drawn = f"drawn/good.{'jpg' if time_ is None else 'mp4'}"
    assert [line["drawing"] for line in lines(tmp_path) if line["box"]] == [None, None, None, drawn]
    assert [line["reason"] for line in lines(tmp_path) if not line["box"]] == [reason]
    assert (tmp_path / drawn).stat().st_size


def test_full_disk_ends_the_call_with_this_error(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(output_module.Image, "fromarray", lambda *_: Full(full))
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*drawn.partial'"),
        Output(tmp_path, ("happy", "sad"), True, 0.5) as output,
    ):
        output.write(Frame("x.png", 0, None, photo()), [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("num_frames", "named"), [(0, "predictions.csv.partial"), (1, "predictions.jsonl.partial")])
def test_error_of_a_full_disk_names_the_file_with_lines(tmp_path, num_frames, named):
    for name in ("jsonl", "csv"):
        (tmp_path / f"predictions.{name}.partial").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=f"No space left on device: '.*{named}'"),
        Output(tmp_path, ("happy", "sad"), False, 0.5) as output,
    ):
        for number in range(num_frames):
            output.write(Frame("x.png", number, None, None), [HAPPY])


@pytest.mark.parametrize("draw", [True, False])
def test_sound_that_is_lost_is_noted_where_a_video_is_drawn(tmp_path, draw):
    loud = write_video(tmp_path / "loud.mp4", gray_frames(range(0, 200, 40)), times=[0, 1, 2, 3, 4], sound=True)
    silent = write_video(tmp_path / "silent.mp4", gray_frames([90, 90]))
    with Output(tmp_path / "out", ("happy", "sad"), draw, 0.5) as output:
        for frame in read_frames([Source(str(loud)), Source(str(silent))], output.report):
            output.write(frame, [])
    assert output.report.notes == ({"its sound is not kept": [str(loud)]} if draw else {})


def test_drawing_that_is_too_large_for_jpeg_is_reduced_with_a_note(tmp_path):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        output.write(Frame("wide.png", 0, None, photo(size=(20, 70_000))), [HAPPY])
    assert Image.open(tmp_path / "drawn" / "wide.jpg").size == (65_500, 18)
    assert output.report.summary().endswith(
        "note: wide.png: its drawing is reduced to 65500x18 pixels, the largest JPEG"
    )
    assert not output.report.problems()


def test_lines_are_on_disk_before_the_next_frame(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        for number in range(3):
            output.write(Frame("a.mp4", number, number / 10, None), [HAPPY])
            for name, expected in (("jsonl", number + 1), ("csv", number + 2)):
                assert len((tmp_path / f"predictions.{name}.partial").read_text().splitlines()) == expected


def test_second_call_replaces_the_drawings_of_the_first_and_no_other_files(tmp_path):
    for files in (("a/x.png", "b/x.png", "c/y.png"), ("d/x.png", "z.png")):
        with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
            for level, file in enumerate(files):
                output.write(Frame(file, 0, None, photo(100 * level)), [])
            if "z.png" not in files:
                assert not (tmp_path / "drawn").exists()
        assert {f"{tmp_path}/{line['drawing']}" for line in lines(tmp_path)} <= set(
            map(str, (tmp_path / "drawn").iterdir())
        )
        (tmp_path / "drawn" / "own.jpg").write_text("a file of the user")
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"x.jpg", "z.jpg", "own.jpg"}
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        output.write(Frame("own.png", 0, None, photo()), [])
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"own.jpg", "own_2.jpg"}
    assert (tmp_path / "drawn" / "own.jpg").read_text() == "a file of the user"


def test_call_that_reads_no_frame_keeps_the_results_of_the_earlier_call(tmp_path):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        output.write(Frame("x.png", 0, None, photo()), [HAPPY])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("**/*") if path.is_file()}
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        output.report.skip("bad.png", "not a readable image")
    assert output.kept_earlier
    assert {path.name: path.read_bytes() for path in tmp_path.glob("**/*") if path.is_file()} == before


def test_earlier_lines_of_a_stranger_delete_nothing_outside_the_folder(tmp_path):
    (tmp_path / "mine.txt").touch()
    (tmp_path / "out" / "drawn").mkdir(parents=True)
    (tmp_path / "out" / "predictions.jsonl").write_text('{"drawing": "../../mine.txt"}\n{"drawing": "/etc"}\n')
    with Output(tmp_path / "out", ("happy", "sad"), False, 0.5):
        pass
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("out", "is_folder", "reason"),
    [
        ("photo.jpg", False, "photo.jpg is a file; give a folder"),
        ("photo.jpg/out", False, "out cannot be created (Not a directory); give a folder where you may write"),
        ("out/predictions.jsonl", True, "predictions.jsonl is a folder; remove it or choose another --out"),
        ("out/drawn", False, "drawn is a file; remove it or choose another --out"),
    ],
)
def test_unusable_folder_is_an_error_before_the_first_frame(tmp_path, out, is_folder, reason):
    used = tmp_path / out.removesuffix("/out")
    if is_folder:
        used.mkdir(parents=True)
    else:
        used.parent.mkdir(exist_ok=True)
        used.touch()
    folder = tmp_path / out if out.startswith("photo") else tmp_path / "out"
    with pytest.raises(OSError, match=re.escape(reason)), Output(folder, ("happy", "sad"), True, 0.5):
        pass


@pytest.mark.parametrize(("refused", "problem"), [("mkdir", "created"), ("touch", "written to")])
def test_folder_without_permission_is_an_error_with_a_remedy(tmp_path, monkeypatch, refused, problem):
    def refuse(*arguments, **options):  # root may write to every folder
        raise PermissionError(13, "Permission denied")

    folder = tmp_path if refused == "touch" else tmp_path / "out"
    monkeypatch.setattr(Path, refused, refuse)
    reason = rf"^--out={folder} cannot be {problem} \(Permission denied\); give a folder where you may write$"
    with pytest.raises(PermissionError, match=reason):
        Output(folder, ("happy", "sad"), True, 0.5).__enter__()


def test_folder_of_drawings_without_permission_is_an_error_before_the_first_frame(tmp_path, monkeypatch):
    (tmp_path / "drawn").mkdir()
    may_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "drawn" and may_write(path, mode))
    with pytest.raises(PermissionError, match=f"^{tmp_path}/drawn cannot be written to; allow it or choose another"):
        Output(tmp_path, ("happy", "sad"), True, 0.5).__enter__()


def test_call_names_only_what_was_written(classifier, tmp_path):
    """A second call compiles nothing."""
    save_trained(classifier, tmp_path / "model.safetensors", "")
    command = [sys.executable, "-m", "affect_jax.predict", "--faces=whole", "--classifier=model.safetensors"]
    Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / "a.png")
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    done = [
        subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
        for arguments in (("camera:77", "--out=none"), ("a.png", "--out=one"), ("a.png", "--out=two"))
    ]
    assert done[0].stdout.startswith("0 faces in 0 frames: none/predictions.jsonl, predictions.csv\n")
    assert done[1].stdout.startswith("compiling the networks; each new size of image takes this time once")
    assert done[2].stdout.startswith("1 face in 1 frame: two/predictions.jsonl, predictions.csv and two/drawn/\n")


def test_second_call_at_the_same_time_is_an_error(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        with pytest.raises(ValueError, match=r"is in use by process \d+ .*; wait until it ends, or use another --out"):
            Output(tmp_path, ("happy", "sad"), False, 0.5).__enter__()
        output.write(Frame("a.png", 0, None, None), [HAPPY])
    assert len(lines(tmp_path)) == 1
    with Output(tmp_path, ("happy", "sad"), False, 0.5):
        pass


def test_names_of_drawings_are_short_enough_and_text(tmp_path):
    long, strange = 240 * "x" + ".png", os.fsdecode(b"caf\xe9.png")
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        for file in (long, f"other/{long}", strange):
            output.write(Frame(file, 0, None, photo()), [HAPPY])
    found = [(line["file"], line["drawing"]) for line in lines(tmp_path)]
    short = 200 * "x"
    assert found[0][1] == f"drawn/{short}.jpg" and found[1][1] == f"drawn/{short}_2.jpg"
    assert found[2] == ("caf\\xe9.png", "drawn/caf\\xe9.jpg")
    assert (tmp_path / "drawn" / "caf\\xe9.jpg").exists()
    (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        output.write(Frame(strange, 0, None, photo()), [HAPPY])
    assert os.listdir(tmp_path / "drawn") == ["caf\\xe9.jpg"]


def test_names_with_unusual_spaces_and_joiners_are_kept(tmp_path):
    stems = ["at 9.41\u202fAM", "a\u3000b", "a\xa0b", "\U0001f469\u200d\U0001f52c"]
    files = [str(tmp_path / f"{stem}.png") for stem in stems]
    with Output(tmp_path / "out", ("happy", "sad"), True, 0.5) as output:
        for file in files:
            output.write(Frame(file, 0, None, photo()), [HAPPY])
    assert [line["file"] for line in lines(tmp_path / "out")] == files
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == files
    assert {path.name for path in (tmp_path / "out" / "drawn").iterdir()} == {f"{stem}.jpg" for stem in stems}


def test_frame_without_a_face_has_a_line_with_the_reason(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.mp4", 7, 0.28, None), [])
        assert not (tmp_path / "predictions.jsonl").exists()
    nothing = {"box": None, "score": None, "expression": None, "probabilities": {}, "drawing": None}
    place = {"file": "a.mp4", "frame": 7, "time": 0.28}
    assert lines(tmp_path) == [{**place, **nothing, "reason": "no face with a score of at least 0.5"}]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "predictions.jsonl", "predictions.csv"}


def test_images_with_the_same_name_do_not_overwrite_each_other(tmp_path):
    with Output(tmp_path, ("happy", "sad"), True, 0.5) as output:
        for folder, level in (("a", 10), ("b", 200)):
            output.write(Frame(f"{folder}/x.png", 0, None, np.full((100, 100, 3), level, np.uint8)), [HAPPY])
    means = [cv2.imread(str(tmp_path / "drawn" / name))[95:, :5].mean() for name in ("x.jpg", "x_2.jpg")]
    assert means == pytest.approx([10, 200], abs=3)


def test_error_keeps_the_results_of_an_earlier_call(tmp_path):
    with Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("a.png", 0, None, None), [HAPPY])
    before = lines(tmp_path)
    with pytest.raises(RuntimeError), Output(tmp_path, ("happy", "sad"), False, 0.5) as output:
        output.write(Frame("b.png", 0, None, None), [])
        raise RuntimeError
    assert lines(tmp_path) == before and before[0]["box"] == [10, 30, 60.5, 90.25]
