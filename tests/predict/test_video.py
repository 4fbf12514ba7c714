import os
from contextlib import contextmanager
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image
from written_video import gray_frames, noise_frames, write_silence, write_video

from affect_jax.files import open_regular
from affect_jax.predict import video
from affect_jax.predict.video import NotVideo, VideoWriter, read_video


def read(path, note=lambda remark: None):
    """Return times, frames and the reason that reading ends with, or None."""
    times, frames = [], []
    try:
        for time, frame in read_video(path, note):
            times.append(time)
            frames.append(frame)
    except ValueError as error:
        return times, frames, str(error)
    return times, frames, None


FORMATS = [("mp4", "libx264"), ("mov", "mpeg4"), ("avi", "mjpeg"), ("mkv", "libvpx-vp9"), ("ts", "libx264")]
FORMATS += [("wmv", "wmv2"), ("webm", "libsvtav1"), ("mkv", "libx265"), ("avi", "mpeg4"), ("flv", "libx264")]


@pytest.mark.parametrize(("suffix", "codec"), FORMATS)
def test_frames_of_every_format_are_read_in_order_with_their_times(tmp_path, suffix, codec):
    levels = range(20, 240, 10)
    path = write_video(tmp_path / f"a.{suffix}", gray_frames(levels), codec)
    path = path.rename(tmp_path / "without_suffix")  # the content decides
    times, frames, reason = read(path)
    assert reason is None
    np.testing.assert_allclose(times, np.arange(22) / 10, atol=0.002)
    np.testing.assert_allclose([frame.mean() for frame in frames], levels, atol=5)
    assert frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    assert video.count_frames(path) in range(20, 25)


def test_variable_and_high_frame_rates_are_read_with_their_times(tmp_path):
    for times in ([0, 0.08, 0.2, 60.0, 60.04, 120.48], [index / 211.222 for index in range(8)]):
        path = write_video(tmp_path / "a.mp4", gray_frames(range(30, 30 * len(times) + 1, 30)), times=times)
        found, frames, reason = read(path)
        assert reason is None and len(frames) == len(times)
        np.testing.assert_allclose(found, times, atol=0.001)


def test_screen_recording_with_sound_is_read_whole(tmp_path):
    times, notes = [0, 0.08, 0.2, 5.0, 5.04, 9.5], []
    path = write_video(tmp_path / "a.mp4", gray_frames(range(0, 240, 40)), times=times, sound=True)
    found, _, reason = read(path, notes.append)
    np.testing.assert_allclose(found, times, atol=0.001)
    assert reason is None and not notes and video.has_sound(path)


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    frames = [np.repeat(np.repeat(np.uint8([[20, 220], [120, 70]]), 32, 0), 24, 1)[..., None].repeat(3, -1)] * 3
    for aspect, width in ((Fraction(2), 96), (Fraction(1, 2), 24), (Fraction(4, 3), 64)):
        path = write_video(tmp_path / "a.mp4", frames, aspect=aspect)
        _, (first, *_), reason = read(path)
        assert first.shape == (64, width, 3) and reason is None
        quarters = [first[4:28, 4 : width // 2 - 4], first[4:28, width // 2 + 4 : -4], first[36:60, 4 : width // 2 - 4]]
        assert [quarter.mean() for quarter in quarters] == pytest.approx([20, 220, 120], abs=6)


@pytest.mark.parametrize("factors", list(video.TURNS))
def test_display_matrix_of_the_metadata_is_applied(tmp_path, factors):
    """A pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift (ISO 14496-12)."""
    image = np.repeat(np.repeat(np.uint8([[20, 80, 140], [200, 110, 50]]), 32, 0), 32, 1)[..., None].repeat(3, -1)
    path = write_video(tmp_path / "turned.mp4", [image] * 3, options={"crf": "1"})
    content, (a, b, c, d) = path.read_bytes(), factors
    matrix = content.index(b"tkhd") + 4 + 40
    numbers = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(content[:matrix] + numbers + content[matrix + 36 :])
    y, x = np.mgrid[0:64, 0:96]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.zeros((np.ptp(shown_y) + 1, np.ptp(shown_x) + 1))
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = image[..., 0]
    _, frames, reason = read(path)
    assert len(frames) == 3 and reason is None and frames[0].shape[:2] == expected.shape
    assert np.abs(frames[0][..., 0] - expected).mean() < 4


def damage(path, start, end):
    """Overwrite a part of a file, given as fractions of its length, with zeros."""
    content = bytearray(path.read_bytes())
    part = slice(int(len(content) * start), int(len(content) * end))
    content[part] = bytes(len(content[part]))
    path.write_bytes(content)


def test_frames_around_a_damaged_part_are_read_and_the_gap_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", noise_frames(40), options={"g": "8", "bf": "0"})
    damage(path, 0.4, 0.55)
    times, frames, reason = read(path)
    assert 30 <= len(frames) < 40 and times[-1] == pytest.approx(3.9)
    lost = sorted(set(range(40)) - {round(10 * time) for time in times})
    place = f"{len(lost)} of 40 frames cannot be decoded, between {lost[0] / 10:.2f} and {lost[-1] / 10:.2f} s"
    assert lost and reason.startswith(place)


def test_frames_that_the_container_skips_silently_are_named(tmp_path):
    """The last time stamp is right, and the decoder reports no error."""
    path = write_video(tmp_path / "a.webm", noise_frames(40), "libvpx-vp9", options={"g": "8", "deadline": "realtime"})
    damage(path, 0.4, 0.6)
    times, frames, reason = read(path)
    assert len(frames) < 35 and times[-1] == pytest.approx(3.9)
    steps = np.diff(times)
    place = f"no frames between {times[steps.argmax()]:.2f} and {times[steps.argmax() + 1]:.2f} s"
    assert place in reason


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mjpeg")])
def test_truncated_video_gives_its_frames_and_the_reason(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"a.{suffix}", noise_frames(40), codec)
    whole = path.read_bytes()
    for fraction in (0.5, 0.85):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        _, frames, reason = read(path)
        assert 0 < len(frames) < 40 and reason.startswith(("the video ends after ", "the file ends before "))
    path.write_bytes(whole[:20])
    reason = "damaged or not complete" if suffix == "mp4" else "not a readable image or video"
    with pytest.raises(NotVideo, match=reason):
        next(read_video(path, print))


def test_trimmed_video_is_read_from_its_edit_list_without_a_reason(tmp_path):
    """A phone trims a video by an edit list; the frames before it stay in the file, but are not shown."""
    source = write_video(tmp_path / "whole.mp4", gray_frames(range(10, 250, 8)), options={"g": "10", "bf": "0"})
    with (
        av.open(source) as whole,
        av.open(tmp_path / "trimmed.mp4", "w", options={"avoid_negative_ts": "disabled"}) as new,
    ):
        stream = new.add_stream_from_template(whole.streams.video[0])
        cut = round(0.65 / whole.streams.video[0].time_base)
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, stream
                new.mux(packet)
    times, frames, reason = read(tmp_path / "trimmed.mp4")
    assert len(frames) == 23 and reason is None
    assert times[0] == 0 and times[-1] == pytest.approx(2.2, abs=0.06)
    assert frames[0].mean() == pytest.approx(10 + 7 * 8, abs=4)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "avi"])
@pytest.mark.parametrize("number", [5, 22])
def test_joined_videos_are_read_whole_with_increasing_times(tmp_path, suffix, number):
    """The header of the first announces fewer frames, and the times of the second start again."""
    codec = "mjpeg" if suffix == "avi" else "libx264"
    path = write_video(tmp_path / f"a.{suffix}", gray_frames(range(20, 20 + 10 * number, 10)), codec)
    path.write_bytes(path.read_bytes() * 2)
    times, frames, reason = read(path)
    assert len(frames) == 2 * number and reason is None
    np.testing.assert_allclose(times, np.arange(2 * number) / 10, atol=0.11)
    assert (np.diff(times) >= 0).all()


def test_only_the_first_of_joined_mp4_videos_is_read_and_the_others_are_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", gray_frames(range(20, 240, 10)), "libx264")
    path.write_bytes(path.read_bytes() * 3)
    _, frames, reason = read(path)
    assert len(frames) == 22 and reason == "3 videos are joined in the file; only the first is read"


def test_files_without_video_are_named(tmp_path):
    write_video(tmp_path / "b.ts", gray_frames([0, 9]))
    (tmp_path / "text.txt").write_text("no video " * 50)
    Image.new("RGB", (64, 64)).save(tmp_path / "icon.ico")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/b.ts\n#EXT-X-ENDLIST\n"
    )
    with av.open(tmp_path / "sound.m4a", "w") as container:
        write_silence(container, 1)
    reasons = dict.fromkeys(("text.txt", "icon.ico", "list.m3u8"), "not a readable image or video")
    whole = write_video(tmp_path / "index_at_end.mov", gray_frames([0, 9])).read_bytes()
    (tmp_path / "part.mov").write_bytes(whole[:-100])
    reasons |= {"sound.m4a": "no video in it, only sound", "part.mov": "damaged or not complete"}
    for name, reason in reasons.items():
        with pytest.raises(NotVideo, match=reason):
            next(read_video(tmp_path / name, print))
        assert video.count_frames(tmp_path / name) == 1
    with pytest.raises(ValueError, match="no such file"):
        next(read_video(tmp_path / "absent.mp4", print))


def test_names_that_are_not_utf8_or_look_like_addresses_are_read_and_written(tmp_path):
    for name in (os.fsdecode(b"caf\xe9.mp4"), "http:x.mp4", "a'%d [1].mp4"):
        writer = VideoWriter(tmp_path / name, (48, 64))
        writer.write(0.0, gray_frames([90])[0])
        writer.close()
        assert len(read(tmp_path / name)[1]) == 1


def test_frames_are_read_lazily(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", noise_frames(120))
    opened = []

    @contextmanager
    def open_watched(path):
        with open_regular(path) as file:
            opened.append(file)
            yield file

    monkeypatch.setattr(video, "open_regular", open_watched)
    frames = read_video(path, print)
    assert not opened
    next(frames)
    assert opened[0].tell() < 0.5 * path.stat().st_size


def test_written_video_keeps_times_and_plays_in_browsers(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.02, 1.02, 60.0]
    writer = VideoWriter(tmp_path / "x.mp4", (47, 63))
    for number, time in enumerate(times):
        writer.write(time, gray_frames([30 * number], (47, 63) if number != 1 else (24, 32))[0])  # the size may change
    writer.close()
    found, frames, reason = read(tmp_path / "x.mp4")
    assert reason is None
    np.testing.assert_allclose(found, times, atol=0.001)
    np.testing.assert_allclose([frame.mean() for frame in frames], 30 * np.arange(7), atol=4)
    assert frames[0].shape == (48, 64, 3)  # even sides
    with av.open(tmp_path / "x.mp4") as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
    content = (tmp_path / "x.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable before it is downloaded


@pytest.mark.parametrize(
    ("height", "matrix", "tagged"),
    [
        (480, Colorspace.ITU601, False),
        (720, Colorspace.ITU709, False),
        (480, Colorspace.ITU709, True),
        (720, Colorspace.ITU601, True),
    ],
)
def test_colors_are_kept_from_the_file_to_the_drawing(tmp_path, height, matrix, tagged):
    color, path = (200, 60, 20), tmp_path / "a.mp4"
    image = np.full((height, 64, 3), color, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, ColorRange.MPEG
        rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
        container.mux(stream.encode(VideoReformatter().reformat(rgb, format="yuv420p", dst_colorspace=matrix)))
        container.mux(stream.encode())
    _, (frame,), _ = read(path)
    np.testing.assert_allclose(frame, image, atol=4)
    writer = VideoWriter(tmp_path / "drawn.mp4", image.shape[:2])
    writer.write(0.0, frame)
    writer.close()
    _, (drawn,), _ = read(tmp_path / "drawn.mp4")
    np.testing.assert_allclose(drawn, image, atol=4)
    with av.open(tmp_path / "drawn.mp4") as container:
        decoded = next(container.decode(video=0))
    usual = Colorspace.ITU709 if height == 720 else Colorspace.ITU601
    assert (decoded.colorspace, decoded.color_range) == (usual, ColorRange.MPEG)
