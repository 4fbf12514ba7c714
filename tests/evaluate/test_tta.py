import numpy as np

from affect_jax.evaluate.tta import views


def test_shifted_views_repeat_the_border_and_all_views_are_mirrored():
    images = np.random.default_rng(0).uniform(0, 255, (2, 6, 5, 1)).astype(np.float32)
    rows, columns = np.arange(6), np.arange(5)
    shifted = [
        images[:, np.clip(rows + y, 0, 5)][:, :, np.clip(columns + x, 0, 4)]
        for y, x in ((0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2))
    ]
    mirrored = [view[:, :, ::-1] for view in shifted]
    np.testing.assert_array_equal(views(images, "flip_shift"), [*shifted, *mirrored])
    np.testing.assert_array_equal(views(images, "flip"), [images, images[:, :, ::-1]])
