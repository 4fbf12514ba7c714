"""Image files of any common format, decoded by Pillow as upright RGB images of eight bits.

H W C image.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from absl import logging
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from affect_jax.files import open_regular

MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
"""Larger images are rejected before they are decoded, because one file could fill the memory. Pillow checks this."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # begins at half of MAX_PIXELS

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, recognized by the content of a file; HEIC too if the package pillow-heif is installed."""
SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg")
SUFFIXES += (".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
ANIMATED = ("AVIF", "GIF", "PNG", "WEBP")
"""Formats whose files can have frames with times; a TIFF can have pages."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
BROWSER_DURATION = 0.1
"""Seconds that browsers show a frame whose duration is at most 0.01 s."""
SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, DNG_VERSION = 254, 258, 262, 339, 50706
"""Tags of a TIFF; the first bit of SUBFILE_TYPE marks a preview, PHOTOMETRIC 0 a gray image whose white is 0."""

Note = Callable[[str], None]
"""Called with a remark on a file that can be read."""


class UnknownFormat(ValueError):
    """The content of a file has none of the known image formats."""


def read_image(path: str | Path, note: Note | None = None) -> np.ndarray:
    """Read an image as RGB uint8 [H, W, 3]: upright by EXIF, more bits reduced to eight, transparency over white.

    The first image of a file with several is read. `note` is called with a remark on an unusual file; by default the
    remark is logged. ValueError with only the reason if the file is missing, empty, truncated, too large or not an
    image.
    """
    with open_regular(path) as file:
        return _decode_first(file, note or (lambda remark: logging.warning("%s: %s", path, remark)))


def decode_image(encoded: bytes, note: Note = lambda remark: None) -> np.ndarray:
    """Decode the bytes of an image file as read_image does; ValueError with only the reason if not an image."""
    return _decode_first(io.BytesIO(encoded), note)


def read_images(path: str | Path, note: Note) -> Iterator[tuple[float | None, np.ndarray]]:
    """Yield (time, image) for all images of a file, decoded as by read_image: frames of an animation, pages of a TIFF.

    The time is in seconds from the start of an animation, and None for an image that is not part of one. ValueError
    with only the reason if the file cannot be read, or not to its end; UnknownFormat if it is not an image.
    """
    with open_regular(path) as file, open_image(file) as image:
        if not has_more(image):
            yield None, _decode_first(file, note)
            return
        time, number, animated = 0.0, 0, image.format in ANIMATED
        while seek(image, number):
            if animated or not is_preview(image):
                yield (time if animated else None), to_rgb(image)
            duration = image.info.get("duration", 0) / 1000
            time, number = time + (duration if duration > 0.01 else BROWSER_DURATION), number + 1


def read_encoded(path: str | Path) -> bytes:
    """Return the bytes of an image file; ValueError with only the reason if it is missing or empty."""
    with open_regular(path) as file:
        return file.read()


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the image that read_image returns, without decoding most images.

    ValueError with only the reason if the file cannot be read.
    """
    with open_regular(path) as file, open_image(file) as image:
        if image.format == "PNG" and b"exif" in Path(path).read_bytes().lower():
            load(image)  # the orientation may follow the pixels
        width, height = image.size
        return (width, height) if orientation(image) >= 5 else (height, width)


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image without decoding it.

    UnknownFormat if it has none of FORMATS; ValueError with only the reason if it is too large, broken, a camera's raw
    file, or HEIC without pillow-heif.
    """
    file.seek(0)
    formats = formats_of(file.read(64))
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise unidentified(file) from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:  # each format has other errors for a broken header
        raise unreadable(error) from None
    if image.format == "TIFF" and (is_preview(image) or DNG_VERSION in image.tag_v2):
        raise ValueError("a camera's raw file; convert it to JPEG or TIFF")
    return image


def unidentified(file: BinaryIO) -> ValueError:
    """Return the error of a file that Pillow does not open; it names the pixels of a TIFF."""
    file.seek(0)
    start = file.read(8)
    if start[:4] not in TiffImagePlugin.PREFIXES:
        return UnknownFormat(f"not a readable image (known formats: {', '.join(FORMATS)})")
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        kind = {1: "uint", 2: "int", 3: "float"}[tags.get(SAMPLE_FORMAT, (1,))[0]]
        return ValueError(f"pixels are {kind}{tags[BITS_PER_SAMPLE][0]}, not eight or sixteen bits")
    except Exception:  # each broken file has another error
        return ValueError("not a readable image (a broken TIFF)")


def formats_of(start: bytes) -> tuple[str, ...]:
    """Return the formats that a file with these first bytes can have; ValueError if it is HEIC without pillow-heif."""
    if start[4:8] != b"ftyp" or not any(brand in start[8:] for brand in HEIC_BRANDS):
        return FORMATS
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("HEIC: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def unreadable(error: Exception) -> ValueError:
    """Return the error of a broken image; its reason is one line."""
    return ValueError(f"not a readable image ({' '.join(str(error).split())})")


def not_enough_memory(image: Image.Image) -> ValueError:
    """Return the error of an image that is too large for the memory."""
    return ValueError(f"not enough memory for {image.width}x{image.height} pixels")


def load(image: Image.Image) -> None:
    """Decode an opened image; ValueError with only the reason if it is broken or too large for the memory."""
    try:
        image.load()
    except MemoryError:
        raise not_enough_memory(image) from None
    except Exception as error:  # each format has other errors for broken pixels
        raise unreadable(error) from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return an opened image as read_image does.

    ValueError with only the reason if it is broken or too large for the memory.
    """
    try:
        return _to_rgb(image)
    except MemoryError:
        raise not_enough_memory(image) from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    load(image)
    stored_as = orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return turn(_gray_of_eight_bits(image)[..., None].repeat(3, axis=2), stored_as)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels are {np.asarray(image).dtype}, not eight or sixteen bits")
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return turn(np.array(image if image.mode == "RGB" else image.convert("RGB")), stored_as)
    except ValueError:
        raise ValueError(f"colors are {image.mode}, which cannot be converted to RGB") from None


def _gray_of_eight_bits(image: Image.Image) -> np.ndarray:
    """Return a decoded gray image of sixteen bits, or a TIFF of twelve, as uint8 [H, W]; Pillow would clip values."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {BITS_PER_SAMPLE: (16,), PHOTOMETRIC: 1}
    gray = (values >> (tags[BITS_PER_SAMPLE][0] - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC, 0) == 0:
        gray = 255 - gray
    gray[values == image.info.get("transparency", -1)] = 255
    return gray


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 (upright) to 8.

    A TIFF is turned by Pillow, and the size in its header is that of the upright image.
    """
    if image.format == "TIFF":
        return 1
    try:
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # the PNG method would decode the image
    except Exception:  # an image with broken EXIF data is readable
        return 1
    return found if found in range(1, 9) else 1


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image [H, W, ...] that is stored with an EXIF orientation, 1 to 8, as the upright image."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def has_more(image: Image.Image) -> bool:
    """Return True if the file of an opened image has frames of an animation or pages of a TIFF after the first."""
    try:
        return (image.format in ANIMATED or image.format == "TIFF") and image.is_animated
    except Exception:  # a broken second page
        return False


def seek(image: Image.Image, number: int) -> bool:
    """Go to an image of an opened file; False after the last, ValueError with only the reason if it is broken."""
    try:
        image.seek(number)
    except EOFError:
        return False
    except Exception as error:
        raise ValueError(f"image {number} is not readable ({' '.join(str(error).split())})") from None
    return True


def is_preview(image: Image.Image) -> bool:
    """Return True if the current page of an opened TIFF is a reduced copy of another page."""
    kind = image.tag_v2.get(SUBFILE_TYPE, 0)
    return isinstance(kind, int) and bool(kind & 1)


def _decode_first(file: BinaryIO, note: Note) -> np.ndarray:
    """Decode the first image of a file; a JPEG may lack its end marker."""
    with open_image(file) as image:
        remark = "it has several images; the first is used" if has_more(image) else ""
        try:
            decoded = to_rgb(image)
        except ValueError:
            decoded = _decode_without_end_marker(file) if image.format in ("JPEG", "MPO") else None
            if decoded is None:
                raise
            remark = "its end marker is missing, its pixels are complete"
    if remark:
        note(remark)
    return decoded


def _decode_without_end_marker(file: BinaryIO) -> np.ndarray | None:
    """Decode a JPEG that has all its pixels and no end marker; None if pixels are missing.

    A decoder ignores bytes after the last pixel, but decodes them as pixels if some are missing.
    """
    file.seek(0)
    encoded = file.read()
    encoded = encoded[:-1] if encoded.endswith(b"\xff") else encoded
    fillers = (b"\x00", b"\x2a", b"\x55", b"\x93", b"\xaa", b"\xe4", b"\xfe")
    images = [to_rgb(open_image(io.BytesIO(encoded + filler * 64 + b"\xff\xd9"))) for filler in fillers]
    return images[0] if all(np.array_equal(images[0], image) for image in images) else None
