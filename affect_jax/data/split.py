"""Splits of data sets: what they provide to pipelines and tasks.

N images of a split, B images that are read at once, K classes, H W C image. Images are RGB uint8.
"""

from typing import Protocol, runtime_checkable

import numpy as np


class Split(Protocol):
    """A split of a data set: a FacesSplit or a BoxesSplit. It can be pickled."""

    class_names: tuple[str, ...]
    fingerprint: str = ""
    """Hash of all images and labels; "" if unknown, and for generated images."""

    def __len__(self) -> int:
        """Return the number of images."""

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the name of each image in the source, such as "fer2013.csv, row 17"."""
        return [f"image {index}" for index in indices]


class FacesSplit(Split, Protocol):
    """A split for classification: images of one size, each with a label."""

    image_shape: tuple[int, int, int]
    """(H, W, C) of all images."""
    cache_name: str = ""
    """Name under which InMemorySplit stores generated images in the cache folder; "" to store nothing."""

    def labels(self) -> np.ndarray:
        """Return the label of every image, a position in class_names, int32 [N]."""

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return image uint8 [B, H, W, C] and label int32 [B].

        Some data sets add votes float32 [B, K] (sum 1) or valence_arousal float32 [B, 2] in [-1, 1].
        """


@runtime_checkable
class BoxesSplit(Split, Protocol):
    """A split for detection: images of any size, each with boxes."""

    def sizes(self) -> np.ndarray:
        """Return (height, width) of every image, int32 [N, 2]."""

    def box_counts(self) -> np.ndarray:
        """Return the number of boxes of every image, int32 [N]."""

    def boxes(self, index: int) -> np.ndarray:
        """Return the boxes of an image, float32 [boxes, 4], without reading the image."""
        return self.annotations(index)["boxes"]

    def annotations(self, index: int) -> dict[str, np.ndarray]:
        """Return boxes float32 [boxes, 4], label int32 [boxes] (positions in class_names) and ignore bool [boxes].

        Evaluation counts an ignored box neither as found nor as missed.
        """

    def read_image(self, index: int) -> dict[str, np.ndarray]:
        """Return image uint8 [H, W, 3], in its original size, and the arrays of `annotations`."""
