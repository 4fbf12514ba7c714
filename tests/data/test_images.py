import errno
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from affect_jax.data.images import decode_image, read_encoded, read_image, read_image_size, read_images


@pytest.fixture
def image() -> np.ndarray:
    """Return a smooth image for lossy formats that differs along both axes and in every channel."""
    down, across = np.mgrid[0:40, 0:60]
    return np.stack([down * 6, across * 4, 255 - down * 3 - across], axis=-1).astype(np.uint8)


TURN = Image.Transpose
TURNS = {2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE}
TURNS |= {6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90}
"""Operation of Pillow that turns an image upright, by its EXIF orientation (EXIF 2.32, 4.6.4)."""


def save(path, image, mode, **options):
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


def encoded(image, form, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("a.bmp", 0),
        ("a.tif", 0),
        ("a.ppm", 0),
        ("a.jpg", 8),
        ("a.webp", 12),
        ("a.jp2", 20),
        ("a.avif", 12),
    ],
)
def test_color_images_are_read_as_rgb(tmp_path, image, name, tolerance):
    read = read_image(save(tmp_path / name, image, "RGB", quality=98))
    assert read.dtype == np.uint8 and read.shape == image.shape and read.flags.writeable
    assert np.abs(read.astype(int) - image).max() <= tolerance
    (tmp_path / name).rename(tmp_path / "without_suffix")  # the format is recognized by the content
    np.testing.assert_array_equal(read_image(tmp_path / "without_suffix"), read)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_color_modes_are_read_as_pillow_converts_them(tmp_path, image, mode):
    path = save(tmp_path / ("a.png" if mode in ("1", "L", "P") else "a.jpg"), image, mode)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))
    if mode == "L":
        np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path))[..., None].repeat(3, -1))


ORIENTED = [(form, mode) for form in ("PNG", "WEBP", "TIFF", "AVIF") for mode in ("RGB", "RGBA", "L", "P")]


@pytest.mark.parametrize(("form", "mode"), [*ORIENTED, ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_images_of_every_format_and_mode(tmp_path, image, form, mode, orientation):
    stored = Image.fromarray(image).convert(mode)
    stored.save(tmp_path / "upright", form)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a", form, exif=exif)
    upright = Image.open(tmp_path / "upright").convert("RGB")
    read = read_image(tmp_path / "a")
    np.testing.assert_array_equal(read, upright.transpose(TURNS[orientation]) if orientation > 1 else upright)
    assert read_image_size(tmp_path / "a") == read.shape[:2] == ((60, 40) if orientation >= 5 else (40, 60))


def test_orientation_that_follows_the_pixels_of_a_png_is_used(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    early = encoded(image, "PNG", exif=exif)
    start = early.index(b"eXIf") - 4
    chunk = early[start : start + 12 + int.from_bytes(early[start : start + 4], "big")]
    rest = early.replace(chunk, b"")
    (tmp_path / "a.png").write_bytes(rest[:-12] + chunk + rest[-12:])  # before IEND
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read, np.rot90(image, -1))
    assert read_image_size(tmp_path / "a.png") == read.shape[:2]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_reduced_to_eight(tmp_path, image, name):
    cv2.imwrite(str(tmp_path / name), image[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / name), image)
    cv2.imwrite(str(tmp_path / name), image[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / name), image[..., :1].repeat(3, axis=2))


def gray_tiff(pixels, bits, photometric) -> bytes:
    """Return an uncompressed TIFF of one strip, whose pixels are packed without gaps."""
    packed = np.packbits((pixels.reshape(-1, 1) >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    if bits == 16:
        packed = pixels.astype("<u2").tobytes()
    tags = {256: pixels.shape[1], 257: pixels.shape[0], 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: pixels.shape[0], 279: len(packed)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_gray_tiffs_of_all_bits_and_both_meanings_of_zero_are_read(image, bits, photometric):
    levels = image[..., 0].astype(int) << (bits - 8)
    stored = levels if photometric else 2**bits - 1 - levels
    read = decode_image(gray_tiff(stored, bits, photometric))
    np.testing.assert_array_equal(read, image[..., :1].repeat(3, axis=2))


def test_gray_of_sixteen_bits_that_a_png_marks_as_transparent_becomes_white(image):
    levels = image[..., 0].astype(np.uint16) * 257
    read = decode_image(encoded(levels, "PNG", transparency=int(levels[10, 0])))
    expected = image[..., :1].repeat(3, axis=2)
    expected[10] = 255
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_pixels_of_other_types_are_named(tmp_path, shape):
    cv2.imwrite(str(tmp_path / "a.tif"), np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="pixels are float32, not eight or sixteen bits"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(np.ones((4, 5), np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="pixels are int32"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, image, mode):
    alpha = np.zeros((*image.shape[:2], 1), np.uint8)
    alpha[:20] = 255
    save(tmp_path / "a.png", np.concatenate([image, alpha], axis=-1), mode)
    read = read_image(tmp_path / "a.png")
    opaque = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(read[:20], opaque[:20])
    assert (read[20:] == 255).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_truncated_file_is_an_error_not_half_an_image(tmp_path, form):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), form)
    for fraction in (0.02, 0.3, 2 / 3, 0.95, 0.99):
        with pytest.raises(ValueError, match="not a readable image"):
            decode_image(whole[: int(len(whole) * fraction)])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_jpeg_without_its_end_marker_is_read_with_a_note_and_one_without_pixels_is_an_error(options):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8), "JPEG", **options)
    for missing in (1, 2):
        notes = []
        read = decode_image(whole[:-missing], notes.append)
        np.testing.assert_array_equal(read, decode_image(whole))
        assert notes == ["its end marker is missing, its pixels are complete"]
    for missing in range(3, 20):  # the last bytes may encode only the border of the last block
        try:
            np.testing.assert_array_equal(decode_image(whole[:-missing]), decode_image(whole))
        except ValueError as error:
            assert str(error).startswith("not a readable image")
    for missing in (20, 50, 100, 1000, 2000):
        with pytest.raises(ValueError, match="not a readable image"):
            decode_image(whole[:-missing])


def test_errors_distinguish_empty_missing_and_other_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image " * 20)
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "none.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {"empty": "an empty file", "none": "no such file", "text": "not a readable image", "dir": "a folder"}
    reasons |= {"link": "a link to a missing file", "pipe": "a device or a pipe", 300 * "x": "File name too long"}
    for name, reason in reasons.items():
        for read in (read_image, read_image_size):
            with pytest.raises(ValueError, match=reason):
                read(tmp_path / f"{name}.jpg")


def test_file_without_permission_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8), "RGB")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read every file
    try:
        with pytest.raises(ValueError, match="Permission denied"):
            read_image(path)
    finally:
        os.seteuid(user)


UNREADABLE = Path("/sys/class/net/lo/speed")
"""A regular file of Linux that can be opened and not read."""


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file whose reading fails")
def test_file_whose_reading_fails_is_named():
    for read in (read_image, read_image_size, read_encoded, lambda path: list(read_images(path, print))):
        with pytest.raises(ValueError, match=f"^{os.strerror(errno.EINVAL)}$"):
            read(UNREADABLE)


@pytest.mark.parametrize("method", ["load", "convert"])
def test_image_that_is_too_large_for_the_memory_is_named(tmp_path, image, monkeypatch, method):
    def fail(*arguments, **options):
        raise MemoryError

    path = save(tmp_path / "a.png", image, "RGBA")
    monkeypatch.setattr(Image.Image if method == "convert" else ImageFile.ImageFile, method, fail)
    with pytest.raises(ValueError, match=r"^not enough memory for 60x40 pixels$"):
        read_image(path)


def test_reason_of_a_broken_image_is_one_line(image, monkeypatch):
    def fail(*arguments):
        raise ValueError("Invalid input:\n  no 'hdlr' box\n")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"^not a readable image \(Invalid input: no 'hdlr' box\)$"):
        decode_image(encoded(image, "PNG"))


def png_of_size(width, height):
    """Return a PNG whose header announces a size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 9) + b"IDAT" + bytes(9)


@pytest.mark.parametrize("side", [100_000, 13_400])
def test_huge_image_is_rejected_by_its_header(tmp_path, side):
    (tmp_path / "huge.png").write_bytes(png_of_size(side, side))
    for read in (read_image, read_image_size):
        with pytest.raises(ValueError, match="more than 178 million pixels"):
            read(tmp_path / "huge.png")
    (tmp_path / "large.png").write_bytes(png_of_size(13_300, 13_300))
    assert read_image_size(tmp_path / "large.png") == (13_300, 13_300)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_read_with_their_times(tmp_path, form):
    frames = [Image.fromarray(np.full((20, 30, 3), level, np.uint8)) for level in (250, 20, 120)]
    durations = [100, 250, 40]
    frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:], duration=durations)
    notes = []
    times, images = zip(*read_images(tmp_path / "a", notes.append), strict=True)
    assert times == pytest.approx((0, 0.1, 0.35)) and not notes
    assert [image.mean() for image in images] == pytest.approx([250, 20, 120], abs=2)
    assert read_image(tmp_path / "a", notes.append).mean() == pytest.approx(250, abs=2)
    assert notes == ["it has several images; the first is used"]


def test_pages_of_a_tiff_are_read_without_previews(tmp_path):
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for level, side, kind in ((10, 40, 0), (99, 10, 1), (200, 30, 0)):
            page = Image.fromarray(np.full((side, side, 3), level, np.uint8))
            page.save(file, "TIFF", tiffinfo={254: kind})
            file.newFrame()
    read = list(read_images(tmp_path / "a.tif", print))
    assert [(time, image.shape[0], image.mean()) for time, image in read] == [(None, 40, 10), (None, 30, 200)]


def test_a_file_that_is_not_read_gets_no_note(tmp_path):
    pages = [Image.fromarray(np.zeros((8, 8), np.float32)) for _ in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    notes = []
    with pytest.raises(ValueError, match="pixels are float32"):
        read_image(tmp_path / "a.tif", notes.append)
    assert notes == []


def test_camera_raw_files_are_named_and_not_read_as_their_preview(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.dng", "TIFF", tiffinfo={254: 1, 50706: b"\1\4\0\0"})
    with pytest.raises(ValueError, match="a camera's raw file; convert it"):
        read_image(tmp_path / "a.dng")


def test_heic_is_read_with_pillow_heif_and_names_it_otherwise(tmp_path, image, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ValueError, match=r"^HEIC: pip install pillow-heif$"):
            read_image(tmp_path / "a.heic")
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(image).save(tmp_path / "b.jpg", "HEIF", quality=98)
    assert read_image_size(tmp_path / "b.jpg") == (40, 60)
    assert np.abs(read_image(tmp_path / "b.jpg").astype(int) - image).mean() < 6
