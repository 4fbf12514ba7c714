"""Draw faces into their images: boxes, and labels large enough to read."""

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
PALETTE = ((245, 110, 190), (90, 205, 225), (225, 225, 120), (170, 150, 245), (90, 200, 130), (245, 170, 130))
PALETTE += ((150, 175, 200), (215, 130, 90), (190, 235, 170), (200, 110, 150))
"""Colors of classes with other names, by their number."""
OTHER_COLOR = (110, 225, 200)
"""Color of faces without an expression."""
DARK, PADDING = (20, 20, 20), 3


Rectangle = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in whole pixels."""


def draw_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """Return a copy of an image RGB uint8 [H, W, 3] with a box, expression and probability drawn for each face.

    A label that would cover another label, or the center of another face, is left out; larger faces come first.
    """
    drawn = np.ascontiguousarray(image).copy()
    widest = round(max(drawn.shape[:2]) / 400)
    for face in faces:
        x1, y1, x2, y2 = (round(side) for side in face.box)
        thickness = max(1, min(widest, min(x2 - x1, y2 - y1) // 10))
        cv2.rectangle(drawn, (x1, y1), (x2, y2), color(face), thickness)
    centers, labels = [center_part(face) for face in faces], []
    for number in sorted(range(len(faces)), key=lambda number: area(faces[number]), reverse=True):
        face = faces[number]
        scale, place = label_place(label(face), face.box, drawn.shape[:2])
        if not any(overlap(place, other) for other in centers[:number] + centers[number + 1 :] + labels):
            draw_label(drawn, label(face), scale, place, color(face))
            labels.append(place)
    return drawn


def color(face: Face) -> tuple[int, int, int]:
    """Return the color of the face's expression."""
    if face.expression is None:
        return OTHER_COLOR
    number = list(face.probabilities).index(face.expression)
    return COLORS.get(face.expression, PALETTE[number % len(PALETTE)])


def label(face: Face) -> str:
    """Return expression and probability as text; "?" without an expression."""
    return f"{face.expression} {face.probabilities[face.expression]:.0%}" if face.expression else "?"


def label_place(
    text: str, box: tuple[float, float, float, float], image_size: tuple[int, int]
) -> tuple[float, Rectangle]:
    """Return the scale and the rectangle of a label: above the box, or below it at the upper border of the image.

    The label of a box from the upper to the lower border is inside it at the bottom, where it does not cover the eyes.
    """
    height, width = image_size
    scale = float(np.clip((box[2] - box[0]) / 110, 0.4, max(0.45, max(height, width) / 900)))
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, stroke(scale))
    tall, wide = text_height + below + 2 * PADDING, text_width + 2 * PADDING
    top = round(box[1]) - tall
    top = max(0, min(top if top >= 0 else round(box[3]), height - tall))
    left = min(max(0, round(box[0])), max(0, width - wide))
    return scale, (left, top, left + wide, top + tall)


def draw_label(image: np.ndarray, text: str, scale: float, place: Rectangle, color: tuple[int, ...]) -> None:
    """Draw dark text on a rectangle of `color`; `scale` and `place` come from label_place."""
    left, top, right, bottom = place
    (_, text_height), _ = cv2.getTextSize(text, FONT, scale, stroke(scale))
    cv2.rectangle(image, (left, top), (right, bottom), color, cv2.FILLED)
    start = left + PADDING, top + PADDING + text_height
    cv2.putText(image, text, start, FONT, scale, DARK, stroke(scale), cv2.LINE_AA)


def stroke(scale: float) -> int:
    """Return the line thickness of text."""
    return max(1, round(1.6 * scale))


def area(face: Face) -> float:
    """Return the area of the face's box."""
    x1, y1, x2, y2 = face.box
    return (x2 - x1) * (y2 - y1)


def center_part(face: Face) -> Rectangle:
    """Return the central rectangle of the face's box, with half its width and height."""
    x1, y1, x2, y2 = face.box
    return round((3 * x1 + x2) / 4), round((3 * y1 + y2) / 4), round((x1 + 3 * x2) / 4), round((y1 + 3 * y2) / 4)


def overlap(a: Rectangle, b: Rectangle) -> bool:
    """Return True if two rectangles share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
