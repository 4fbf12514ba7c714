import cv2
import jax
import numpy as np
import pytest

from affect_jax.ops.photometric import adjust_brightness_contrast, equalize_histogram, erase, gaussian_blur


def test_brightness_and_contrast_equal_opencv_on_faces(faces):
    brightness = np.linspace(-60, 60, len(faces), dtype=np.float32)
    contrast = np.linspace(0.4, 1.9, len(faces), dtype=np.float32)[::-1]
    found = jax.jit(adjust_brightness_contrast)(faces.astype(np.float32), brightness, contrast)
    expected = [
        cv2.addWeighted(face, gain, face, 0, face.mean() * (1 - gain) + offset)[..., None]
        for face, offset, gain in zip(faces, brightness.tolist(), contrast.tolist(), strict=True)
    ]
    # OpenCV rounds to whole levels
    assert np.abs(found - np.stack(expected).astype(np.float32)).max() < 0.501


@pytest.mark.parametrize("radius", [1, 3, 6])
def test_blur_equals_opencv_on_faces(faces, radius):
    images = np.concatenate([faces, faces[::-1], faces // 2], axis=-1).astype(np.float32)[:, :40]
    sigma = np.linspace(0.2, 3.0, len(images), dtype=np.float32)
    found = jax.jit(gaussian_blur, static_argnums=2)(images, sigma, radius)
    size = (2 * radius + 1, 2 * radius + 1)
    expected = [
        cv2.GaussianBlur(image, size, s, borderType=cv2.BORDER_REFLECT_101)
        for image, s in zip(images, sigma.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_blur_of_sigma_zero_changes_no_bit(faces):
    images = faces.astype(np.float32)
    np.testing.assert_array_equal(jax.jit(gaussian_blur, static_argnums=2)(images, np.zeros(len(images)), 3), images)


def equalized_by_opencv(images):
    channels = [[cv2.equalizeHist(np.ascontiguousarray(c)) for c in np.moveaxis(image, -1, 0)] for image in images]
    return np.moveaxis(np.asarray(channels), 1, -1)


def test_equalized_faces_equal_opencv_to_the_bit(faces):
    # three channels, not square, with fractions that round to the original level
    images = np.concatenate([faces, faces // 3, 255 - faces[::-1]], axis=-1)[:, :40]
    offset = np.random.default_rng(0).uniform(-0.49, 0.49, images.shape)
    found = jax.jit(equalize_histogram)((images + offset).astype(np.float32))
    np.testing.assert_array_equal(found, equalized_by_opencv(images))


def test_equalized_images_of_few_levels_equal_opencv_to_the_bit():
    rng = np.random.default_rng(0)
    constant = np.stack([np.full((20, 30, 1), level, np.uint8) for level in (0, 1, 128, 255)])
    few = np.stack([rng.choice(rng.integers(0, 256, n), (20, 30, 1)).astype(np.uint8) for n in (2, 3, 5, 200)])
    for images in (constant, few):
        found = jax.jit(equalize_histogram)(images.astype(np.float32))
        np.testing.assert_array_equal(found, equalized_by_opencv(images))


def test_erase_fills_only_the_pixels_of_the_box():
    rng = np.random.default_rng(0)
    images, fill = rng.uniform(0, 255, (2, 4, 20, 30, 3)).astype(np.float32)
    boxes = np.array([[3, 4, 10, 19], [0, 0, 30, 20], [29, 19, 30, 20], [0, 0, 0, 0]])
    expected = images.copy()
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        expected[i, y1:y2, x1:x2] = fill[i, y1:y2, x1:x2]
    np.testing.assert_array_equal(jax.jit(erase)(images, boxes, fill), expected)
