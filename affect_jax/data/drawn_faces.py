"""Drawn faces: an unlimited, deterministic source of labelled images of any size, for demos and tests.

The parameters of a face are the person (Identity), the facial movements (Actions, after the action units of Ekman and
Friesen), and pose, light and camera (View). The unit of length is half the height of the head: x to the right, y down,
the center of the head at 0, its top at -1 and its chin at 1. Tones are gray values from 0 to 255.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from affect_jax import labels
from affect_jax.data import SPLITS
from affect_jax.data.split import FacesSplit

SUPERSAMPLING = 3
SUBPIXEL_BITS = 4
CACHED_BYTES = 2**20, 2**27
"""Smallest and largest size of the images of a set that may be stored in the cache folder."""


@dataclass(frozen=True)
class Actions:
    """Strength of each movement, from 0 at rest to about 1; the comment is the number of the action unit."""

    inner_brow_raise: float = 0.0  # 1
    outer_brow_raise: float = 0.0  # 2
    brow_lower: float = 0.0  # 4
    lid_raise: float = 0.0  # 5
    lid_tighten: float = 0.0  # 7
    lid_droop: float = 0.0  # 43
    nose_wrinkle: float = 0.0  # 9
    upper_lip_raise: float = 0.0  # 10
    corner_pull: float = 0.0  # 12
    corner_depress: float = 0.0  # 15
    lip_stretch: float = 0.0  # 20
    lip_press: float = 0.0  # 24
    jaw_drop: float = 0.0  # 26


EXPRESSIONS = {
    "angry": Actions(brow_lower=1.0, lid_tighten=0.7, lip_press=1.0, corner_depress=0.15),
    "disgust": Actions(nose_wrinkle=1.0, upper_lip_raise=1.0, brow_lower=0.5, lid_tighten=0.6, corner_depress=0.3),
    "fear": Actions(inner_brow_raise=1.0, outer_brow_raise=0.3, lid_raise=1.0, lip_stretch=1.0, jaw_drop=0.3),
    "happy": Actions(corner_pull=1.0, lid_tighten=0.4, jaw_drop=0.15),
    "sad": Actions(inner_brow_raise=0.9, brow_lower=0.2, lid_droop=0.6, corner_depress=1.0),
    "surprise": Actions(inner_brow_raise=1.0, outer_brow_raise=1.0, lid_raise=0.9, jaw_drop=1.0),
    "neutral": Actions(),
}
"""Prototype of each expression."""

VALENCE_AROUSAL = {
    "angry": (-0.6, 0.7),
    "disgust": (-0.7, 0.4),
    "fear": (-0.6, 0.8),
    "happy": (0.8, 0.4),
    "sad": (-0.7, -0.4),
    "surprise": (0.2, 0.8),
    "neutral": (0.0, 0.0),
}
"""Approximate position of each on the circumplex of affect, Russell (1980), figure 2."""


@dataclass(frozen=True)
class Identity:
    """Properties of a person that are independent of the expression."""

    head_width: float
    jaw_width: float
    skin: float
    hair: float
    hair_style: int  # 0 bald, 1 short, 2 long
    hairline: float
    eye_distance: float
    eye_size: float
    brow_thickness: float
    brow_height: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_thickness: float
    lip_tone: float
    glasses: bool
    beard: float


@dataclass(frozen=True)
class View:
    """Pose, background, light, occlusion and camera."""

    center: tuple[float, float]  # of the head, in fractions of the image
    scale: float  # half the head's height, in fractions of the image
    roll: float  # radians
    yaw: float  # -1 to 1: shift of the features relative to the outline of the head
    pitch: float
    background: tuple[float, float]  # tones of its gradient
    clutter: tuple[tuple[float, ...], ...]  # x, y, size and tone of each ellipse in the background
    light: tuple[float, float]  # change of the light across the image, along x and y
    gain: float
    offset: float
    cover: tuple[float, ...]  # x, y, half width, half height and tone of an occluding patch, or ()
    blur: float  # sigma in fractions of the image
    noise: float  # tones
    noise_seed: int


@dataclass(frozen=True)
class FaceParameters:
    """All parameters of a drawn face."""

    identity: Identity
    actions: Actions
    view: View


def face_parameters(rng: np.random.Generator, expression: str) -> FaceParameters:
    """Draw a random person in a random view, with the expression at a random strength."""
    return FaceParameters(random_identity(rng), random_actions(rng, expression), random_view(rng))


def random_actions(rng: np.random.Generator, expression: str) -> Actions:
    """Draw the expression's prototype at 75 to 120 %, with noise on each movement."""
    strength = rng.uniform(0.75, 1.2)
    wanted = {field.name: getattr(EXPRESSIONS[expression], field.name) for field in fields(Actions)}
    return Actions(
        **{
            name: max(0.0, strength * goal * rng.uniform(0.8, 1.2) + rng.normal(0, 0.02))
            for name, goal in wanted.items()
        }
    )


def random_identity(rng: np.random.Generator) -> Identity:
    """Draw a random person."""
    skin = rng.uniform(80, 225)
    hair = rng.uniform(10, 200) if rng.random() < 0.4 else rng.uniform(10, 70)
    return Identity(
        head_width=rng.uniform(0.66, 0.86),
        jaw_width=rng.uniform(0.55, 0.9),
        skin=skin,
        hair=hair,
        hair_style=int(rng.choice(3, p=(0.15, 0.5, 0.35))),
        hairline=rng.uniform(-0.8, -0.5),
        eye_distance=rng.uniform(0.27, 0.36),
        eye_size=rng.uniform(0.12, 0.165),
        brow_thickness=rng.uniform(0.045, 0.09),
        brow_height=rng.uniform(0.2, 0.27),
        nose_length=rng.uniform(0.3, 0.42),
        nose_width=rng.uniform(0.1, 0.18),
        mouth_width=rng.uniform(0.23, 0.32),
        lip_thickness=rng.uniform(0.03, 0.07),
        lip_tone=skin * rng.uniform(0.5, 0.75),
        glasses=bool(rng.random() < 0.15),
        beard=float(rng.uniform(0.1, 0.4) * (rng.random() < 0.2)),
    )


def random_view(rng: np.random.Generator) -> View:
    """Draw a random pose, background, light, occlusion and camera."""
    clutter = tuple(
        (*rng.uniform(0, 1, 2), rng.uniform(0.05, 0.35), rng.uniform(0, 255)) for _ in range(rng.integers(0, 5))
    )
    cover = ()
    if rng.random() < 0.2:  # a hand, hair, a frame: at the side, so that the expression remains recognizable
        side = rng.choice((-1.0, 1.0))
        cover = (side * rng.uniform(0.55, 0.8), *(rng.uniform(low, high) for low, high in COVER_RANGES))
    return View(
        center=(0.5 + rng.normal(0, 0.04), 0.5 + rng.normal(0, 0.04)),
        scale=rng.uniform(0.4, 0.52),
        roll=rng.normal(0, 0.13),
        yaw=rng.uniform(-0.8, 0.8),
        pitch=rng.uniform(-0.7, 0.7),
        background=tuple(rng.uniform(0, 255, 2)),
        clutter=clutter,
        light=tuple(rng.uniform(-0.35, 0.35, 2)),
        gain=rng.uniform(0.65, 1.15),
        offset=rng.uniform(-20, 30),
        cover=cover,
        blur=rng.uniform(0.0, 0.01),
        noise=rng.uniform(1.0, 5.0),
        noise_seed=int(rng.integers(2**31)),
    )


COVER_RANGES = ((-0.8, 0.8), (0.1, 0.3), (0.1, 0.45), (0, 255))
"""Ranges of y, half width, half height and tone of an occluding patch."""


def render_face(parameters: FaceParameters, size: int) -> np.ndarray:
    """Draw the face as gray values uint8 [size, size]."""
    identity, actions, view = parameters.identity, parameters.actions, parameters.view
    canvas = Canvas(size * SUPERSAMPLING, view)
    draw_background(canvas, view)
    draw_head(canvas, identity)
    draw_eyes(canvas, identity, actions)
    draw_brows(canvas, identity, actions)
    draw_nose(canvas, identity, actions)
    draw_mouth(canvas, identity, actions)
    draw_hair_and_glasses(canvas, identity)
    if view.cover:
        x, y, width, height, tone = view.cover
        canvas.ellipse((x, y), (width, height), tone)
    image = cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    return photograph(image, view)


def head_mask(parameters: FaceParameters, size: int) -> np.ndarray:
    """Return the mask of the head, 0 to 255: uint8 [size, size]."""
    canvas = Canvas(size * SUPERSAMPLING, parameters.view)
    canvas.polygon(head_outline(parameters.identity), 255)
    return cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA)


def photograph(image: np.ndarray, view: View) -> np.ndarray:
    """Return the drawing [size, size] with the view's light, blur and noise: uint8."""
    size = len(image)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + view.light[0] * ramp[None, :] + view.light[1] * ramp[:, None]
    image = image * light * np.float32(view.gain) + np.float32(view.offset)
    if view.blur * size > 0.15:
        image = cv2.GaussianBlur(image, (0, 0), view.blur * size)
    noise = np.random.default_rng(view.noise_seed).standard_normal((size, size), np.float32)
    return np.clip(image + view.noise * noise, 0, 255).astype(np.uint8)


class Canvas:
    """A square image with drawing functions in units of the face."""

    def __init__(self, size: int, view: View):
        self.pixels = np.zeros((size, size), np.uint8)
        self.size = size
        self.unit = view.scale * size
        cos, sin = np.cos(view.roll), np.sin(view.roll)
        self._turn = self.unit * np.array([[cos, sin], [-sin, cos]])
        self._center = np.array(view.center) * size
        # features are in front of the outline, so turning the head moves them across it and makes them narrower
        self._shift = np.array([0.16 * view.yaw, 0.1 * view.pitch])
        self._narrow = np.array([1 - 0.12 * abs(view.yaw), 1.0])

    def on_face(self, points: np.ndarray) -> np.ndarray:
        """Move points of the features by the turn of the head."""
        return np.asarray(points) * self._narrow + self._shift

    def polygon(self, points, tone: float) -> None:
        """Fill the shape."""
        cv2.fillPoly(self.pixels, [self._fixed(points)], tone, cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, points, width: float, tone: float) -> None:
        """Draw a line through the points."""
        thickness = max(1, round(width * self.unit))
        cv2.polylines(self.pixels, [self._fixed(points)], False, tone, thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def ellipse(self, center, radii, tone: float) -> None:
        """Fill the shape."""
        self.polygon(np.asarray(center) + CIRCLE * radii, tone)

    def _fixed(self, points) -> np.ndarray:
        pixels = np.asarray(points) @ self._turn + self._center
        return np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)


_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
TOP_HALF = np.stack([-np.cos(_ANGLES[:15]), -np.sin(_ANGLES[:15])], axis=1)
_T = np.linspace(0, 1, 9)[:, None]


def arc(start, middle, end) -> np.ndarray:
    """Return nine points of the parabola through start, middle (halfway) and end."""
    start, middle, end = np.asarray(start), np.asarray(middle), np.asarray(end)
    control = 2 * middle - (start + end) / 2
    return (1 - _T) ** 2 * start + 2 * _T * (1 - _T) * control + _T**2 * end


def draw_background(canvas: Canvas, view: View) -> None:
    """Draw a gradient and ellipses on it."""
    first, last = view.background
    canvas.pixels[:] = np.linspace(first, last, canvas.size).astype(np.uint8)[:, None]
    for x, y, size, tone in view.clutter:
        center, radii = (
            (round(along * canvas.size), round(across * canvas.size)) for along, across in ((x, y), (size, size / 2))
        )
        cv2.ellipse(canvas.pixels, center, radii, 40, 0, 360, tone, -1)


def head_outline(identity: Identity) -> np.ndarray:
    """Return the outline of the head without ears and hair: an ellipse that is narrower at the chin."""
    outline = CIRCLE * (identity.head_width, 1.0)
    below = outline[:, 1] > 0
    outline[below, 0] *= 1 - (1 - identity.jaw_width) * outline[below, 1]
    return outline


def draw_head(canvas: Canvas, identity: Identity) -> None:
    """Draw long hair, neck, ears, head and beard."""
    width, skin, outline = identity.head_width, identity.skin, head_outline(identity)
    if identity.hair_style == 2:
        canvas.ellipse((0, 0.1), (width * 1.25, 1.15), identity.hair)
    canvas.polygon([(-0.35, 0.6), (0.35, 0.6), (0.45, 1.6), (-0.45, 1.6)], skin * 0.85)
    for side in (-1, 1):
        canvas.ellipse((side * width, 0.02), (0.1, 0.18), skin * 0.9)
    canvas.polygon(outline, skin)
    if identity.beard:
        jaw = outline[outline[:, 1] > 0.3] * (0.97, 0.98)
        canvas.polygon(np.concatenate([jaw, arc(jaw[-1], (0, 0.36), jaw[0])]), skin * (1 - identity.beard))


def draw_eyes(canvas: Canvas, identity: Identity, actions: Actions) -> None:
    """Draw the whites, iris, pupil and lids of the eyes."""
    size = identity.eye_size
    up = size * (0.55 + 0.45 * actions.lid_raise - 0.3 * actions.lid_tighten - 0.4 * actions.lid_droop)
    down = size * (0.45 + 0.15 * actions.lid_raise - 0.25 * actions.lid_tighten - 0.25 * actions.corner_pull)
    up, down = max(up, 0.1 * size), max(down, 0.08 * size)
    dark = identity.skin * 0.3
    for side in (-1, 1):
        x = side * identity.eye_distance
        # a drooping lid is lower at its outer end
        inner, outer = (x - side * size, -0.12), (x + side * size, -0.12 + 0.05 * actions.lid_droop)
        upper = canvas.on_face(arc(inner, (x, -0.12 - up), outer))
        lower = canvas.on_face(arc(outer, (x, -0.12 + down), inner))
        canvas.polygon(np.concatenate([upper, lower]), min(255, identity.skin * 0.5 + 150))
        radius = min(0.62 * size, 1.15 * (up + down) / 2)
        middle = -0.12 + (down - up) / 2
        canvas.polygon(canvas.on_face(CIRCLE * (0.55 * size, radius) + (x, middle)), dark * 0.6)
        canvas.line(upper, 0.035, dark)
        canvas.line(lower, 0.015, identity.skin * 0.6)


def draw_brows(canvas: Canvas, identity: Identity, actions: Actions) -> None:
    """Draw each brow as a curved line whose ends move with the actions."""
    tone = min(identity.hair, identity.skin * 0.55)
    base = -0.12 - identity.brow_height
    inner_y = base - 0.17 * actions.inner_brow_raise + 0.19 * actions.brow_lower + 0.08 * actions.nose_wrinkle
    outer_y = base - 0.16 * actions.outer_brow_raise - 0.02 * actions.brow_lower + 0.03 * actions.inner_brow_raise
    middle_y = (inner_y + outer_y) / 2 - 0.05 * (1 - actions.brow_lower)
    for side in (-1, 1):
        inner = side * (identity.eye_distance - 0.19 - 0.05 * actions.brow_lower)
        outer = side * (identity.eye_distance + 0.2)
        points = arc((inner, inner_y), ((inner + outer) / 2, middle_y), (outer, outer_y))
        canvas.line(canvas.on_face(points), identity.brow_thickness, tone)
        if actions.brow_lower > 0.3:
            frown = canvas.on_face([(side * 0.05, base + 0.02), (side * 0.04, base + 0.16)])
            canvas.line(frown, 0.02, identity.skin * 0.6)


def draw_nose(canvas: Canvas, identity: Identity, actions: Actions) -> None:
    """Draw side and base of the nose, wrinkles across its root and the folds to the mouth."""
    shade = identity.skin * 0.62
    tip = -0.05 + identity.nose_length - 0.05 * actions.nose_wrinkle
    width = identity.nose_width * (1 + 0.25 * actions.nose_wrinkle)
    canvas.line(canvas.on_face([(0.04, -0.1), (0.09, tip - 0.05)]), 0.02, shade)
    canvas.line(canvas.on_face(arc((-width, tip - 0.03), (0, tip + 0.03), (width, tip - 0.03))), 0.035, shade)
    for side in (-1, 1):
        if actions.nose_wrinkle > 0.3:
            for y in (-0.12, -0.04):
                canvas.line(canvas.on_face([(side * 0.02, y), (side * 0.12, y - 0.06)]), 0.025, shade)
        fold = max(actions.nose_wrinkle, 0.8 * actions.corner_pull)
        if fold > 0.3:
            ends = (side * width, tip - 0.06), (side * (width + 0.12), tip + 0.05), (side * (width + 0.17), tip + 0.24)
            canvas.line(canvas.on_face(arc(*ends)), 0.02 + 0.01 * fold, identity.skin * 0.7)


def draw_mouth(canvas: Canvas, identity: Identity, actions: Actions) -> None:
    """Draw the lips between the two corners of the mouth, and an opening where the jaw drops or the lip rises."""
    width = identity.mouth_width * (
        1 + 0.35 * actions.corner_pull + 0.4 * actions.lip_stretch - 0.12 * actions.lip_press - 0.25 * actions.jaw_drop
    )
    y = 0.5
    corner = y - 0.14 * actions.corner_pull + 0.13 * actions.corner_depress + 0.06 * actions.jaw_drop
    upper = y + 0.05 * actions.corner_pull - 0.05 * actions.corner_depress - 0.1 * actions.upper_lip_raise
    upper -= 0.02 * actions.lip_stretch
    opening = 0.42 * actions.jaw_drop + 0.07 * actions.corner_pull + 0.1 * actions.upper_lip_raise
    lower = upper + opening * (1 - min(1.0, actions.lip_press))
    left, right = (-width, corner), (width, corner)
    top, bottom = arc(left, (0, upper), right), arc(right, (0, lower), left)
    lip = identity.lip_thickness * (1 - 0.6 * min(1.0, actions.lip_press))
    if lower - upper > 0.03:
        canvas.polygon(canvas.on_face(np.concatenate([top, bottom])), 20)
        if actions.corner_pull + actions.upper_lip_raise + actions.lip_stretch > 0.5:
            teeth = arc(right, (0, upper + 0.55 * (lower - upper)), left)
            canvas.polygon(canvas.on_face(np.concatenate([top, teeth]) * (0.9, 1)), min(255, identity.skin * 0.4 + 150))
    canvas.line(canvas.on_face(top), lip, identity.lip_tone)
    canvas.line(canvas.on_face(bottom), lip * 1.2, identity.lip_tone)
    if lower - upper <= 0.03:
        canvas.line(canvas.on_face(top), 0.02, identity.lip_tone * 0.5)


def draw_hair_and_glasses(canvas: Canvas, identity: Identity) -> None:
    """Draw hair over the forehead, and round glasses."""
    width = identity.head_width
    if identity.hair_style:
        skull = TOP_HALF * (width * 1.06, 1.08)
        hairline = arc(skull[0], (0.1, identity.hairline), skull[-1])
        canvas.polygon(np.concatenate([skull, hairline[::-1]]), identity.hair)
    if identity.glasses:
        for side in (-1, 1):
            frame = CIRCLE * (0.22, 0.2) + (side * identity.eye_distance, -0.1)
            canvas.line(canvas.on_face(np.concatenate([frame, frame[:1]])), 0.03, 25)
        canvas.line(canvas.on_face([(-0.12, -0.12), (0.12, -0.12)]), 0.03, 25)


class DrawnFaces(FacesSplit):
    """A split of drawn faces. Example i of a split and seed is always the same image; splits have no common images."""

    class_names = labels.FER2013
    LICENCE = "drawn by affect_jax: no data of other people"

    def __init__(self, split: str, num_examples: int, seed: int = 0, image_size: tuple[int, int] = (48, 48)):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
        if image_size[0] != image_size[1]:
            raise ValueError(f"image_size is {image_size}; drawn faces are square")
        self.split, self.num_examples, self.seed = split, num_examples, seed
        self.image_shape = (*image_size, 1)

    def __len__(self) -> int:
        return self.num_examples

    @property
    def cache_name(self) -> str:
        """Name under which all examples may be stored; "" for a set that is too small or too large to be stored."""
        if not CACHED_BYTES[0] < self.num_examples * np.prod(self.image_shape) < CACHED_BYTES[1]:
            return ""
        code = Path(__file__).read_bytes() + Path(labels.__file__).read_bytes()
        facts = cv2.__version__, np.__version__, self.split, self.num_examples, self.seed, self.image_shape
        return f"drawn_faces_{hashlib.sha256(code + str(facts).encode()).hexdigest()}"

    def labels(self) -> np.ndarray:
        """Return all labels; the classes alternate."""
        return np.arange(self.num_examples, dtype=np.int32) % len(self.class_names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return image uint8 [B, H, W, 1], label int32 [B] and valence_arousal float32 [B, 2]."""
        indices = np.asarray(indices)
        outside = (indices < 0) | (indices >= self.num_examples)
        if outside.any():
            raise IndexError(f"index {indices[outside][0]} of {self.num_examples} drawn faces")
        chosen = (indices % len(self.class_names)).astype(np.int32)  # not of all labels: an epoch would cost N * N
        images = [self._draw(int(index), label) for index, label in zip(indices, chosen, strict=True)]
        places = np.array([VALENCE_AROUSAL[name] for name in self.class_names], np.float32)
        return {"image": np.stack(images)[..., None], "label": chosen, "valence_arousal": places[chosen]}

    def _draw(self, index: int, label: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        return render_face(face_parameters(rng, self.class_names[label]), self.image_shape[0])
