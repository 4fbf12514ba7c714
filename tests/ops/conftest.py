import cv2
import numpy as np
import pytest


def real_faces(shared_data):
    """The first 16 faces of FER2013, from a sheet of 40 faces of 48x48 a row."""
    sheet = shared_data / "fer2013" / "sheets" / "00.png"
    if not sheet.exists():
        pytest.skip(f"no FER2013 faces at {sheet}")
    row = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)[:48, : 16 * 48]
    return row.reshape(48, 16, 48).swapaxes(0, 1)


def drawn_faces():
    """16 drawn faces on grainy grounds, each with its own place, size and shades."""
    rng = np.random.default_rng(0)
    faces = []
    for _ in range(16):
        face = np.full((48, 48), rng.integers(0, 120), np.uint8)
        center, radius = rng.integers(20, 28, size=2), int(rng.integers(14, 22))
        x, y, third = *(int(c) for c in center), radius // 3
        cv2.ellipse(face, (x, y), (radius * 3 // 4, radius), 0, 0, 360, int(rng.integers(140, 255)), -1)
        for side in (-1, 1):
            cv2.circle(face, (x + side * third, y - third), 2, int(rng.integers(0, 80)), -1)
        cv2.ellipse(face, (x, y + third), (third, third // 2), 0, 0, 180, int(rng.integers(0, 80)), 1)
        faces.append(np.clip(face + rng.normal(0, 6, face.shape), 0, 255).astype(np.uint8))
    return np.stack(faces)


@pytest.fixture(params=["real", "drawn"])
def faces(request):
    """Faces uint8 [16, 48, 48, 1]."""
    chosen = real_faces(request.getfixturevalue("shared_data")) if request.param == "real" else drawn_faces()
    return chosen[..., None]
