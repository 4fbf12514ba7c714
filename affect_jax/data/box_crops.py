"""Crops around boxes of a split: each is an image with all boxes that it shows.

P crops, N boxes of a crop, H W image.
"""

from collections.abc import Sequence

import numpy as np

from affect_jax.data.split import BoxesSplit
from affect_jax.data.windows import crop, crop_boxes


class BoxCrops(BoxesSplit):
    """A split whose image i is the square around a box of another split.

    `chosen` has pairs (image, box) of positions in `split`. The side of a square is `margin` times the longer side of
    its box; it is cut off at the border of the image. All other boxes are ignored.
    """

    def __init__(self, split: BoxesSplit, chosen: Sequence[tuple[int, int]], margin: float):
        self.split, self.chosen, self.class_names = split, list(chosen), split.class_names
        self._windows = [
            square_window(split.boxes(image)[box], tuple(split.sizes()[image]), margin) for image, box in self.chosen
        ]

    def __len__(self) -> int:
        return len(self.chosen)

    def sizes(self) -> np.ndarray:
        """Return (height, width) of every crop, int32 [P, 2]."""
        return np.array([size for _, size in self._windows], np.int32).reshape(-1, 2)

    def box_counts(self) -> np.ndarray:
        """Return the number of boxes of every crop, int32 [P]."""
        return np.array([len(self.boxes(index)) for index in range(len(self))], np.int32)

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the name of each crop: that of its image and the number of its box."""
        chosen = [self.chosen[int(index)] for index in indices]
        names = self.split.image_names(np.array([image for image, _ in chosen], int))
        return [f"{name}, box {box}" for name, (_, box) in zip(names, chosen, strict=True)]

    def annotations(self, index: int) -> dict[str, np.ndarray]:
        """Return boxes float32 [N, 4], label int32 [N] and ignore bool [N]."""
        (image, box), (top_left, size) = self.chosen[index], self._windows[index]
        whole = self.split.annotations(image)
        boxes, kept, _ = crop_boxes(whole["boxes"], self.split.sizes()[image], top_left, size)
        return {"boxes": boxes, "label": whole["label"][kept], "ignore": kept != box}

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """Return image uint8 [H, W, 3] (RGB) and the arrays of `annotations`."""
        image = self.split.read_image(self.chosen[index][0])["image"]
        return {"image": crop(image, *self._windows[index]), **self.annotations(index)}


def square_window(
    box: np.ndarray, image_size: tuple[int, int], margin: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the top left corner (y, x) and the size of the square around a box, cut off at the image's border."""
    half = margin * max(box[2:] - box[:2]) / 2
    center = (box[:2] + box[2:])[::-1] / 2
    low = np.maximum(np.floor(center - half), 0).astype(int)
    high = np.minimum(np.ceil(center + half), image_size).astype(int)
    return tuple(low.tolist()), tuple((high - low).tolist())
