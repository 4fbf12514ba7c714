"""Pictures as people have them: any file that OpenCV or Pillow reads, upright, eight bits, three channels.

H W C picture.
"""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused before they are decoded: a face needs none of it, and one file could fill the memory."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Header(NamedTuple):
    """What a picture's first bytes tell."""

    size: tuple[int, int]
    """(height, width) as read_image gives it: turned as EXIF says."""
    transparent: bool


def read_image(path: str | Path) -> np.ndarray:
    """RGB uint8 [H, W, 3]: turned as EXIF says, sixteen bits cut to eight, transparent pixels over white.

    ValueError, with the reason alone, on a file that is absent, empty, truncated, too large or no picture.
    """
    return decode_image(read_encoded(path))


def read_encoded(path: str | Path) -> bytes:
    """The picture's file as it is; ValueError, with the reason alone, on one absent, empty, truncated or too large."""
    path = Path(path)
    if not path.is_file():
        raise ValueError("no such file")
    encoded = path.read_bytes()
    if not encoded:
        raise ValueError("an empty file")
    _read_header(io.BytesIO(encoded), whole=True)  # OpenCV would not tell of a truncated file
    return encoded


def decode_image(encoded: bytes) -> np.ndarray:
    """The picture of a file's bytes, as read_image gives it; ValueError, with the reason alone, on no picture."""
    header = _read_header(io.BytesIO(encoded))
    flags = cv2.IMREAD_UNCHANGED if header and header.transparent else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"not a readable picture ({error.err})") from None
    if image is None:
        raise ValueError("not a readable picture")
    if image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"pixels are {image.dtype}, not of eight or sixteen bits")
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        alpha = image[..., 3:].astype(np.float32) / 255
        image = np.round(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of what read_image gives, mostly without decoding; ValueError, with the reason alone."""
    path = Path(path)
    if not path.is_file():
        raise ValueError("no such file")
    header = _read_header(path)
    return header.size if header else read_image(path).shape[:2]


def _read_header(file: Path | BinaryIO, whole: bool = False) -> Header | None:
    """None where OpenCV alone may know the format; ValueError where it is too large, or broken as far as it is read."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width:,}x{height:,} pixels are more than {MAX_PIXELS // 10**6} million")
            transparent = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
            exif = Image.Image.getexif(picture)  # PNG's own would decode the picture in search of it
            on_its_side = exif.get(ExifTags.Base.Orientation, 1) >= 5 and not transparent
            if whole:
                picture.load()
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except (OSError, SyntaxError) as error:  # SyntaxError is what Pillow raises on a broken PNG
        raise ValueError(f"not a readable picture ({error})") from None
    return Header((width, height) if on_its_side else (height, width), transparent)


def crop_box(image: np.ndarray, box: tuple[float, float, float, float], margin: float) -> np.ndarray:
    """The square round a box [x1, y1, x2, y2], its longer side grown by `margin` of itself on each side.

    What lies outside the picture repeats its edge. ValueError on a box of no area or outside the picture.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[:2]
    if not (x2 > x1 and y2 > y1 and x2 > 0 and y2 > 0 and x1 < width and y1 < height):
        raise ValueError(f"the face box {[float(v) for v in box]} is not in the {width}x{height} picture")
    side = max(1, round(max(x2 - x1, y2 - y1) * (1 + 2 * margin)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    border = [max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width)]
    padded = cv2.copyMakeBorder(image, *border, cv2.BORDER_REPLICATE)
    top, left = top + border[0], left + border[2]
    return padded[top : top + side, left : left + side]


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of the picture at `size` (height, width): scaled until the tighter side fits, the other cut evenly."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    cut = [min(length, max(1, round(wanted / scale))) for length, wanted in zip((height, width), size, strict=True)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    middle = image[top : top + cut[0], left : left + cut[1]]
    return cv2.resize(middle, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """RGB [H, W, 3] as it is, or as gray [H, W] where `channels` is 1."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 1 else image
