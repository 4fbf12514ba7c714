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


Rectangle = tuple[int, int, int, int]
"""[x1, y1, x2, y2] in whole pixels."""


def draw_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A copy of the picture RGB uint8 [H, W, 3] with a box round each face, its expression and probability above it.

    In a crowd the larger faces have labels: one that would cover another, or the middle of a face, is left out.
    """
    drawn = np.ascontiguousarray(image).copy()
    widest = round(max(drawn.shape[:2]) / 400)
    for face in faces:
        x1, y1, x2, y2 = (round(side) for side in face.box)
        thickness = max(1, min(widest, min(x2 - x1, y2 - y1) // 10))
        cv2.rectangle(drawn, (x1, y1), (x2, y2), COLORS.get(face.expression, OTHER_COLOR), thickness)
    middles, labels = [middle(face) for face in faces], []
    for number in sorted(range(len(faces)), key=lambda number: area(faces[number]), reverse=True):
        face = faces[number]
        scale, place = label_place(label(face), face.box, drawn.shape[:2])
        if not any(overlap(place, other) for other in middles[:number] + middles[number + 1 :] + labels):
            draw_label(drawn, label(face), scale, place, COLORS.get(face.expression, OTHER_COLOR))
            labels.append(place)
    return drawn


def label(face: Face) -> str:
    """Expression and probability; a question mark where none is named."""
    return f"{face.expression} {face.probabilities[face.expression]:.0%}" if face.expression else "?"


def label_place(
    text: str, box: tuple[float, float, float, float], image_size: tuple[int, int]
) -> tuple[float, Rectangle]:
    """The text's scale and its ground: above the box or, at the picture's upper border, inside it; never outside."""
    height, width = image_size
    scale = float(np.clip((box[2] - box[0]) / 110, 0.4, max(0.45, max(height, width) / 900)))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke(scale))
    tall, wide = text_height + below + 2 * PADDING, text_width + 2 * PADDING
    top = round(box[1]) - tall
    top = min(max(0, top if top >= 0 else round(box[1])), max(0, height - tall))
    left = min(max(0, round(box[0])), max(0, width - wide))
    return scale, (left, top, left + wide, top + tall)


def draw_label(image: np.ndarray, text: str, scale: float, place: Rectangle, color: tuple[int, ...]) -> None:
    """The text, dark on `color`, at its label_place."""
    left, top, right, bottom = place
    (_, text_height), _ = cv2.getTextSize(text, FONT, scale, stroke(scale))
    cv2.rectangle(image, (left, top), (right, bottom), color, cv2.FILLED)
    start = left + PADDING, top + PADDING + text_height
    cv2.putText(image, text, start, FONT, scale, DARK, stroke(scale), cv2.LINE_AA)


def stroke(scale: float) -> int:
    """Thickness of a text's lines."""
    return max(1, round(1.6 * scale))


def area(face: Face) -> float:
    """Of its box."""
    x1, y1, x2, y2 = face.box
    return (x2 - x1) * (y2 - y1)


def middle(face: Face) -> Rectangle:
    """The middle half of its box, each way."""
    x1, y1, x2, y2 = face.box
    return round((3 * x1 + x2) / 4), round((3 * y1 + y2) / 4), round((x1 + 3 * x2) / 4), round((y1 + 3 * y2) / 4)


def overlap(a: Rectangle, b: Rectangle) -> bool:
    """Whether two rectangles share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
