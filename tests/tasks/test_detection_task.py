import numpy as np

from affect_jax.tasks.detection import prepare_batch


def test_pixels_are_normalized_and_padding_is_zero():
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.25, 0.2, 0.1])
    batch = {"image": np.full((2, 64, 96, 3), 200, np.uint8), "image_size": np.array([[64, 96], [32, 64]])}
    prepared = prepare_batch(batch | {"scale": np.ones(2)}, mean, std)
    expected = np.broadcast_to((200 / 255 - mean) / std, (2, 64, 96, 3)).copy()
    expected[1, 32:], expected[1, :, 64:] = 0, 0
    np.testing.assert_allclose(prepared["image"], expected, atol=1e-5)
    assert prepared.keys() == {"image", "image_size"}  # the network does not read the scale
