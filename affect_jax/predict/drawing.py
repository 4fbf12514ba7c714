"""Faces drawn into their pictures: boxes, and labels large enough to read."""

from collections.abc import Sequence

import cv2
import numpy as np

from affect_jax.predict.reader import Face

FONT = cv2.FONT_HERSHEY_SIMPLEX
COLORS = {
    "angry": (235, 80, 70),
    "contempt": (190, 140, 90),
    "disgust": (140, 190, 70),
    "fear": (180, 120, 235),
    "happy": (250, 205, 60),
    "neutral": (200, 200, 200),
    "sad": (95, 155, 245),
    "surprise": (250, 150, 60),
}
OTHER_COLOR = (110, 225, 200)
"""Of a user's own classes, and of a face without a named expression."""
DARK, PADDING = (20, 20, 20), 3


def draw_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A copy of the picture RGB uint8 [H, W, 3] with a box round each face, its expression and probability above it."""
    drawn = np.ascontiguousarray(image).copy()
    height, width = drawn.shape[:2]
    thickness = max(1, round(max(height, width) / 400))
    for face in sorted(faces, key=lambda face: face.score):
        x1, y1, x2, y2 = (round(side) for side in face.box)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), COLORS.get(face.expression, OTHER_COLOR), thickness)
    for face in sorted(faces, key=lambda face: face.score):
        draw_label(drawn, label(face), face.box, COLORS.get(face.expression, OTHER_COLOR))
    return drawn


def label(face: Face) -> str:
    """Expression and probability; a question mark where none is named."""
    return f"{face.expression} {face.probabilities[face.expression]:.0%}" if face.expression else "?"


def draw_label(image: np.ndarray, text: str, box: tuple[float, float, float, float], color: tuple[int, ...]) -> None:
    """The text, dark on `color`, above the box or, at the picture's upper border, inside it; never outside of it."""
    height, width = image.shape[:2]
    scale = np.clip((box[2] - box[0]) / 110, 0.4, max(0.45, max(height, width) / 900))
    stroke = max(1, round(1.6 * scale))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke)
    tall = text_height + below + 2 * PADDING
    top = round(box[1]) - tall
    top = min(max(0, top if top >= 0 else round(box[1])), max(0, height - tall))
    left = min(max(0, round(box[0])), max(0, width - text_width - 2 * PADDING))
    cv2.rectangle(image, (left, top), (left + text_width + 2 * PADDING, top + tall), color, cv2.FILLED)
    cv2.putText(image, text, (left + PADDING, top + PADDING + text_height), FONT, scale, DARK, stroke, cv2.LINE_AA)
