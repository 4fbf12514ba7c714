import io

import cv2
import numpy as np
import pytest
from PIL import Image

from affect_jax.data.images import MAX_PIXELS, crop_box, fit, read_image


@pytest.fixture
def image() -> np.ndarray:
    """Return a smooth image for lossy formats that differs along both axes and in every channel."""
    down, across = np.mgrid[0:40, 0:60]
    return np.stack([down * 6, across * 4, 255 - down * 3 - across], axis=-1).astype(np.uint8)


def save(path, image, mode, **options):
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [("a.png", "RGB", 0), ("a.bmp", "RGB", 0), ("a.tif", "RGB", 0), ("a.jpg", "RGB", 8), ("a.webp", "RGB", 12)],
)
def test_color_images_are_read_as_rgb(tmp_path, image, name, mode, tolerance):
    read = read_image(save(tmp_path / name, image, mode, quality=98))
    assert read.dtype == np.uint8 and read.shape == image.shape
    assert np.abs(read.astype(int) - image).max() <= tolerance


def test_cmyk_jpeg_is_read_as_pillow_converts_it(tmp_path, image):
    path = save(tmp_path / "a.jpg", image, "CMYK", quality=95)
    expected = np.asarray(Image.open(path).convert("RGB"), int)
    assert np.abs(read_image(path) - expected).mean() < 6


def test_gray_is_repeated_in_three_channels(tmp_path, image):
    read = read_image(save(tmp_path / "a.png", image, "L"))
    np.testing.assert_array_equal(read, np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, -1))


def test_exif_orientation_turns_the_image(tmp_path, image):
    upright = Image.fromarray(image)
    exif = upright.getexif()
    exif[0x0112] = 6  # shown rotated by 90 degrees to the right
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.jpg", exif=exif, quality=98)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() < 12


def test_sixteen_bits_are_reduced_to_eight(tmp_path, image):
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_transparent_pixels_become_white(tmp_path, image):
    alpha = np.zeros((*image.shape[:2], 1), np.uint8)
    alpha[:20] = 255
    save(tmp_path / "a.png", np.concatenate([image, alpha], axis=-1), "RGBA")
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read[:20], image[:20])
    assert (read[20:] == 255).all()


def encoded(image, form) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, form)
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_file_is_an_error_not_half_an_image(tmp_path, image, form):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), form)
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(path)


def test_errors_distinguish_empty_missing_and_other_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image " * 20)
    for name, reason in (("empty.jpg", "an empty file"), ("none.jpg", "no such file"), ("text.jpg", "not a readable")):
        with pytest.raises(ValueError, match=reason):
            read_image(tmp_path / name)


def test_huge_image_is_rejected_by_its_header(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"8,945x8,945 pixels are more than 80 million"):
        read_image(tmp_path / "huge.png")


def test_crop_of_a_box_is_a_square_around_it_and_repeats_the_border():
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30, 1).repeat(3, -1)
    np.testing.assert_array_equal(crop_box(image, (10, 5, 16, 11), 0.0), image[5:11, 10:16])
    np.testing.assert_array_equal(crop_box(image, (10, 5, 14, 9), 0.5), image[3:11, 8:16])
    wide = crop_box(image, (10, 8, 18, 12), 0.0)  # a square of its longer side
    np.testing.assert_array_equal(wide, image[6:14, 10:18])
    corner = crop_box(image, (0, 0, 4, 4), 0.5)
    assert corner.shape[:2] == (8, 8)
    assert (corner[:3, :3] == image[0, 0]).all()


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (40, 0, 50, 9), (-9, 0, 0, 5)])
def test_box_without_area_or_outside_the_image_is_an_error(box):
    with pytest.raises(ValueError, match="is not in the 30x20 image"):
        crop_box(np.zeros((20, 30, 3), np.uint8), box, 0.1)


def test_fit_keeps_the_aspect_and_crops_both_sides_equally():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200
    assert (fit(image, (20, 20)) == 200).all()
    assert fit(image, (48, 48)).shape == (48, 48, 3)
