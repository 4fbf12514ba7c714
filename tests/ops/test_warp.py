import cv2
import jax
import numpy as np
import pytest

from affect_jax.ops.warp import affine_matrices, warp_affine

NEUTRAL = {"rotation": 0.0, "shift_x": 0.0, "shift_y": 0.0, "shear": 0.0, "zoom_x": 1.0, "zoom_y": 1.0, "flip": False}
warp = jax.jit(warp_affine)


def matrices_of(image_size, count=1, **changes):
    arguments = {name: np.broadcast_to(np.asarray(value), count) for name, value in (NEUTRAL | changes).items()}
    return np.asarray(affine_matrices(image_size, **arguments))


def random_matrices(image_size, count):
    rng = np.random.default_rng(0)
    return matrices_of(
        image_size,
        count,
        rotation=rng.uniform(-30, 30, count).astype(np.float32),
        shift_x=rng.uniform(-8, 8, count).astype(np.float32),
        shift_y=rng.uniform(-8, 8, count).astype(np.float32),
        shear=rng.uniform(-20, 20, count).astype(np.float32),
        zoom_x=rng.uniform(0.7, 1.3, count).astype(np.float32),
        zoom_y=rng.uniform(0.7, 1.3, count).astype(np.float32),
        flip=rng.random(count) < 0.5,
    )


def warp_by_loops(image, matrix):
    """Interpolate by the definition, in float64, on an image whose border is repeated far outside."""
    height, width, _ = image.shape
    margin = 100
    padded = np.pad(image.astype(np.float64), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    result = np.zeros_like(image, np.float64)
    for y in range(height):
        for x in range(width):
            u, v = matrix.astype(np.float64) @ (x, y, 1) + margin
            left, top = int(np.floor(u)), int(np.floor(v))
            for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                result[y, x] += (1 - abs(v - row)) * (1 - abs(u - column)) * padded[row, column]
    return result


def test_warp_equals_opencv_on_faces(faces):
    images = faces.astype(np.float32)
    matrices = random_matrices((48, 48), len(images))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    expected = [
        cv2.warpAffine(image, matrix, (48, 48), flags=flags, borderMode=cv2.BORDER_REPLICATE)[..., None]
        for image, matrix in zip(images, matrices, strict=True)
    ]
    difference = np.abs(warp(images, matrices) - np.stack(expected))
    # OpenCV 5 interpolates at the exact point. OpenCV 4 rounds it to 1/32 pixel, an error of up to 1/64 on each axis,
    # times differences of up to 255 between neighbours.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    assert difference.max() < (0.05 if exact else 2 * 255 / 64)
    assert difference.mean() < (0.001 if exact else 0.25)


@pytest.mark.parametrize("shape", [(48, 48, 1), (31, 40, 3)])
def test_warp_equals_bilinear_interpolation_pixel_by_pixel(shape):
    images = np.random.default_rng(1).uniform(0, 255, (6, *shape)).astype(np.float32)
    matrices = random_matrices(shape[:2], 6)
    expected = np.stack([warp_by_loops(image, matrix) for image, matrix in zip(images, matrices, strict=True)])
    # float32 is exact to about 1e-5 pixel
    np.testing.assert_allclose(warp(images, matrices), expected, atol=0.02)


def test_identity_warp_changes_no_bit(faces):
    images = faces.astype(np.float32)
    np.testing.assert_array_equal(warp(images, matrices_of((48, 48), len(images))), images)


def test_matrices_undo_flip_zoom_shear_rotation_and_shift_in_that_order():
    height, width, count = 31, 40, 5
    rng = np.random.default_rng(2)
    p = {name: rng.uniform(-20, 20, count) for name in ("rotation", "shift_x", "shift_y", "shear")}
    p |= {name: rng.uniform(0.5, 2, count) for name in ("zoom_x", "zoom_y")} | {"flip": np.arange(count) % 2 == 0}
    found = matrices_of((height, width), count, **p)
    for i in range(count):
        one = {name: value[i] for name, value in p.items()}
        center = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
        flip_and_zoom = np.diag([one["zoom_x"] * (-1 if one["flip"] else 1), one["zoom_y"], 1])
        shear = np.array([[1, np.tan(np.radians(one["shear"])), 0], [0, 1, 0], [0, 0, 1]])
        rotation = np.vstack([cv2.getRotationMatrix2D((0, 0), one["rotation"], 1), [0, 0, 1]])
        shift = np.array([[1, 0, one["shift_x"]], [0, 1, one["shift_y"]], [0, 0, 1]])
        forward = shift @ center @ rotation @ shear @ flip_and_zoom @ np.linalg.inv(center)
        np.testing.assert_allclose(found[i], np.linalg.inv(forward)[:2], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"flip": True}, [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ({"rotation": 90.0}, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        ({"shift_x": 1.0}, [[1, 1, 2], [4, 4, 5], [7, 7, 8]]),
        ({"shift_y": 1.0}, [[1, 2, 3], [1, 2, 3], [4, 5, 6]]),
        ({"shear": 45.0}, [[2, 3, 3], [4, 5, 6], [7, 7, 8]]),
        ({"zoom_x": 2.0}, [[1.5, 2, 2.5], [4.5, 5, 5.5], [7.5, 8, 8.5]]),
        ({"zoom_y": 2.0}, [[2.5, 3.5, 4.5], [4, 5, 6], [5.5, 6.5, 7.5]]),
    ],
)
def test_each_parameter_moves_the_image_as_named(change, expected):
    image = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    found = warp(image, matrices_of((3, 3), **change))[0, :, :, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
