"""Image files of any common format, read by OpenCV as upright RGB images of eight bits.

H W C image.
"""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 80_000_000
"""Larger images are rejected before they are decoded, because one file could fill the memory."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Header(NamedTuple):
    """Facts from the first bytes of an image file."""

    size: tuple[int, int]
    """(height, width) of the upright image that read_image returns."""
    transparent: bool


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB uint8 [H, W, 3]: upright by EXIF, sixteen bits reduced to eight, transparency over white.

    ValueError with only the reason if the file is missing, empty, truncated, too large or not an image.
    """
    return decode_image(read_encoded(path))


def read_encoded(path: str | Path) -> bytes:
    """Return the bytes of an image file; ValueError with only the reason if missing, empty, truncated or too large."""
    path = Path(path)
    if not path.is_file():
        raise ValueError("no such file")
    encoded = path.read_bytes()
    if not encoded:
        raise ValueError("an empty file")
    _read_header(io.BytesIO(encoded), whole=True)  # OpenCV does not report a truncated file
    return encoded


def decode_image(encoded: bytes) -> np.ndarray:
    """Decode the bytes of an image file as read_image does; ValueError with only the reason if not an image."""
    header = _read_header(io.BytesIO(encoded))
    flags = cv2.IMREAD_UNCHANGED if header and header.transparent else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"not a readable image ({error.err})") from None
    if image is None:
        raise ValueError("not a readable image")
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"pixels are {image.dtype}, not eight or sixteen bits")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = np.round(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the image that read_image returns, without decoding most formats.

    ValueError with only the reason if the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError("no such file")
    header = _read_header(path)
    return header.size if header else read_image(path).shape[:2]


def _read_header(file: Path | BinaryIO, whole: bool = False) -> Header | None:
    """Read the header with Pillow; None if Pillow does not support the format, ValueError if too large or broken."""
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width:,}x{height:,} pixels are more than {MAX_PIXELS // 10**6} million")
            transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            exif = Image.Image.getexif(image)  # the PNG method would decode the image to find it
            on_its_side = exif.get(ExifTags.Base.Orientation, 1) >= 5 and not transparent
            if whole:
                image.load()
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise ValueError(f"not a readable image ({error})") from None
    return Header((width, height) if on_its_side else (height, width), transparent)


def crop_box(image: np.ndarray, box: tuple[float, float, float, float], margin: float) -> np.ndarray:
    """Crop the square around a box [x1, y1, x2, y2]: its longer side, grown by the fraction `margin` at both ends.

    The border is repeated outside the image. ValueError if the box has no area or is outside the image.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[:2]
    if not (x2 > x1 and y2 > y1 and x2 > 0 and y2 > 0 and x1 < width and y1 < height):
        raise ValueError(f"the face box {[float(v) for v in box]} is not in the {width}x{height} image")
    side = max(1, round(max(x2 - x1, y2 - y1) * (1 + 2 * margin)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    border = [max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width)]
    padded = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE)
    top, left = top + border[0], left + border[2]
    return padded[top : top + side, left : left + side]


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the centre of the image to `size` (height, width): aspect kept, the longer side cropped at both ends."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    cut = [min(length, max(1, round(wanted / scale))) for length, wanted in zip((height, width), size, strict=True)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    middle = image[top : top + cut[0], left : left + cut[1]]
    return cv2.resize(middle, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return RGB [H, W, 3] unchanged, or as gray [H, W] if `channels` is 1."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 1 else image
