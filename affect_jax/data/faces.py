"""Images of faces as the input of a classifier: cropped, resized, gray or RGB. Preparation and prediction share it.

H W C image. Images are uint8.
"""

import cv2
import numpy as np


def crop_box(image: np.ndarray, box: tuple[float, float, float, float], margin: float) -> np.ndarray:
    """Crop the square around a box [x1, y1, x2, y2]: its longer side, grown by the fraction `margin` at both ends.

    The border is repeated outside the image. ValueError if the box has no area or is outside the image.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[:2]
    if not (x2 > x1 and y2 > y1 and x2 > 0 and y2 > 0 and x1 < width and y1 < height):
        raise ValueError(f"the face box {[float(v) for v in box]} is not in the {width}x{height} image")
    side = max(1, round(max(x2 - x1, y2 - y1) * (1 + 2 * margin)))
    # at least one row and one column of the image, whatever the rounding
    left = min(max(round((x1 + x2 - side) / 2), 1 - side), width - 1)
    top = min(max(round((y1 + y2 - side) / 2), 1 - side), height - 1)
    border = [max(0, -top), max(0, top + side - height), max(0, -left), max(0, left + side - width)]
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    return cv2.copyMakeBorder(inside, *border, cv2.BORDER_REPLICATE)


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the center of the image to `size` (height, width): aspect kept, the longer side cropped at both ends."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    cut = [min(length, max(1, round(wanted / scale))) for length, wanted in zip((height, width), size, strict=True)]
    top, left = (height - cut[0]) // 2, (width - cut[1]) // 2
    middle = image[top : top + cut[0], left : left + cut[1]]
    return cv2.resize(middle, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return RGB [H, W, 3] unchanged, or as gray [H, W] if `channels` is 1."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 1 else image


def face_input(face: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Return an image RGB uint8 [H, W, 3] of any size as the input of a classifier, uint8 of `image_shape`."""
    height, width, channels = image_shape
    return to_channels(fit(face, (height, width)), channels).reshape(image_shape)
