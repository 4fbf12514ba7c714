import numpy as np
import pytest

from affect_jax.data.faces import crop_box, fit


def test_crop_of_a_box_is_a_square_around_it_and_repeats_the_border():
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30, 1).repeat(3, -1)
    np.testing.assert_array_equal(crop_box(image, (10, 5, 16, 11), 0.0), image[5:11, 10:16])
    np.testing.assert_array_equal(crop_box(image, (10, 5, 14, 9), 0.5), image[3:11, 8:16])
    wide = crop_box(image, (10, 8, 18, 12), 0.0)  # a square of its longer side
    np.testing.assert_array_equal(wide, image[6:14, 10:18])
    corner = crop_box(image, (0, 0, 4, 4), 0.5)
    assert corner.shape[:2] == (8, 8)
    assert (corner[:3, :3] == image[0, 0]).all()
    padded = np.pad(image, ((40, 40), (40, 40), (0, 0)), "edge")
    rng = np.random.default_rng(0)
    for x1, y1, width, height in rng.uniform((-9, -9, 0.1, 0.1), (29, 19, 40, 40), (300, 4)):
        if x1 + width > 0 and y1 + height > 0:
            crop = crop_box(image, (x1, y1, x1 + width, y1 + height), 0.0)
            side = max(1, round(max(width, height)))
            left, top = (round(start + (size - side) / 2) + 40 for start, size in ((x1, width), (y1, height)))
            np.testing.assert_array_equal(crop, padded[top : top + side, left : left + side])


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (40, 0, 50, 9), (-9, 0, 0, 5)])
def test_box_without_area_or_outside_the_image_is_an_error(box):
    with pytest.raises(ValueError, match="is not in the 30x20 image"):
        crop_box(np.zeros((20, 30, 3), np.uint8), box, 0.1)


def test_fit_keeps_the_aspect_and_crops_both_sides_equally():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200
    assert (fit(image, (20, 20)) == 200).all()
    assert fit(image, (48, 48)).shape == (48, 48, 3)
