import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import run_on_four_devices

from affect_jax.ops import augment as module
from affect_jax.ops.augment import augment, mixup, place_boxes

KEY = jax.random.key(3)
GEOMETRY = {
    "rotation": 10.0,
    "width_shift": 0.1,
    "height_shift": 0.1,
    "shear": 10.0,
    "zoom": 0.1,
    "horizontal_flip": True,
}
PHOTOMETRY = {
    "brightness": 0.2,
    "contrast": 0.3,
    "blur_probability": 0.5,
    "equalize_probability": 0.5,
    "erase_probability": 0.5,
}
EVERYTHING = GEOMETRY | PHOTOMETRY
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 24, 20, 1)).astype(np.float32)
jit_augment = jax.jit(augment, static_argnames=(*EVERYTHING, "blur_sigma", "erase_area"))
jit_mixup = jax.jit(mixup, static_argnums=3)


def augmented(images, key=KEY, **options):
    return np.asarray(jit_augment(key, images, **options))


def coordinates(count, size=48):
    """Return images [count, size, size, 2] whose channels are the x and y of each pixel, to read a warp from."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return np.broadcast_to(np.stack([x, y], axis=-1), (count, size, size, 2))


def measured_maps(warped):
    """Fit the affine maps [B, 2, 3] that warped coordinates, in the middle, which no border reaches."""
    middle = slice(20, 28)
    y, x = np.mgrid[middle, middle].reshape(2, -1) - 23.5
    points = np.stack([x, y, np.ones_like(x)], axis=-1)
    return np.stack([np.linalg.lstsq(points, w[middle, middle].reshape(-1, 2) - 23.5)[0].T for w in warped])


def assert_spread_evenly(values, low, high):
    """Assert that values fill [low, high] uniformly: range, mean and deviation, within 4 standard errors."""
    width = high - low
    assert values.min() >= low - 1e-3 * width
    assert values.max() <= high + 1e-3 * width
    assert np.ptp(values) > 0.97 * width
    assert abs(values.mean() - (low + high) / 2) < 4 * width / np.sqrt(12 * len(values))
    assert abs(values.std() * np.sqrt(12) / width - 1) < 4 * np.sqrt(0.2 / len(values))


def assert_about(share, probability, count):
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count)


def assert_same_up_to_rounding(found, expected):
    """Assert equality up to the last bits, and up to the few pixels that they move to another level in equalization."""
    difference = np.abs(np.asarray(found) - expected)
    assert difference.max() < 3
    assert (difference > 0.01).mean() < 0.01


def test_default_settings_change_no_value_and_compute_nothing(faces):
    found = augmented(faces)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, faces)
    compiled = jit_augment.lower(KEY, faces.astype(np.float32)).compile()
    assert compiled.cost_analysis().get("flops", 0) == 0


def test_all_augmentations_stay_in_range_and_change_every_image(faces):
    found = augmented(faces, **EVERYTHING)
    assert found.shape == faces.shape
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255.001  # a blur's weights add up to 1 within rounding
    assert (np.abs(found - faces).max(axis=(1, 2, 3)) > 10).all()


@pytest.mark.parametrize(
    ("option", "limit", "measure"),
    [
        # maps from the output to the input
        ({"rotation": 25.0}, 25.0, lambda m: np.degrees(np.arctan2(m[:, 1, 0], m[:, 0, 0]))),
        ({"width_shift": 0.25}, 12.0, lambda m: -m[:, 0, 2]),
        ({"height_shift": 0.25}, 12.0, lambda m: -m[:, 1, 2]),
        ({"shear": 30.0}, 30.0, lambda m: np.degrees(np.arctan(-m[:, 0, 1]))),
        ({"zoom": 0.4}, 0.4, lambda m: 1 / m[:, 0, 0] - 1),
        ({"zoom": 0.4}, 0.4, lambda m: 1 / m[:, 1, 1] - 1),
    ],
)
def test_geometric_amounts_are_uniform_over_their_symmetric_ranges(option, limit, measure):
    assert_spread_evenly(measure(measured_maps(augmented(coordinates(400), **option))), -limit, limit)


def test_draws_of_different_amounts_are_independent():
    maps = measured_maps(augmented(coordinates(400), width_shift=0.1, height_shift=0.1, zoom=0.1, horizontal_flip=True))
    flipped = maps[:, 0, 0] < 0
    amounts = np.stack([maps[:, 0, 2], maps[:, 1, 2], abs(maps[:, 0, 0]), maps[:, 1, 1], flipped])
    correlations = np.corrcoef(amounts) - np.eye(5)
    assert np.abs(correlations).max() < 4 / np.sqrt(400)


def test_flip_alone_mirrors_half_of_the_images_exactly():
    images = np.random.default_rng(0).integers(0, 256, (400, 12, 9, 1))
    found = augmented(images, horizontal_flip=True)
    kept, mirrored = ((found == x).all(axis=(1, 2, 3)) for x in (images, images[:, :, ::-1]))
    assert (kept ^ mirrored).all()
    assert_about(mirrored.mean(), 0.5, 400)


def test_brightness_and_contrast_are_uniform_over_their_ranges():
    images = np.tile(np.array([100.0, 150.0], np.float32), (400, 4, 4)).reshape(400, 4, 8, 1)
    found = augmented(images, brightness=0.1, contrast=0.4)
    assert_spread_evenly(found.mean(axis=(1, 2, 3)), 125 - 25.5, 125 + 25.5)
    assert_spread_evenly((found[:, 0, 1, 0] - found[:, 0, 0, 0]) / 50, 0.6, 1.4)


def test_blur_has_its_probability_and_stays_below_its_sigma():
    impulse = np.zeros((400, 17, 17, 1), np.float32)
    impulse[:, 8, 8] = 255
    found = augmented(impulse, blur_probability=0.3, blur_sigma=2.0)[..., 0]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 255, rtol=1e-4)
    offset = np.arange(17) - 8
    sigma = np.sqrt((found.sum(axis=1) * offset**2).sum(axis=1) / 255)
    # below about 0.3 pixels a Gaussian sampled at pixels is the impulse itself
    assert_about((sigma > 0.15).mean(), 0.3 * (1 - 0.3 / 2), 400)
    assert 1.9 < sigma.max() < 2.0


def test_equalization_has_its_probability_and_equals_opencv(faces):
    images = np.tile(faces, (20, 1, 1, 1))
    found = augmented(images, equalize_probability=0.3)
    chosen = (found != images).any(axis=(1, 2, 3))
    assert_about(chosen.mean(), 0.3, len(images))
    for face, original in zip(found[chosen], images[chosen], strict=True):
        np.testing.assert_array_equal(face[..., 0], cv2.equalizeHist(original[..., 0]))


def test_erasing_fills_one_rectangle_with_noise_and_has_its_probability():
    images = np.full((400, 48, 40, 3), -1.0, np.float32)
    found = augmented(images, erase_probability=0.6, erase_area=0.3)
    erased = (found != -1).all(axis=-1)
    chosen = erased.any(axis=(1, 2))
    assert_about(chosen.mean(), 0.6, 400)
    rows, columns = erased[chosen].any(axis=2), erased[chosen].any(axis=1)
    np.testing.assert_array_equal(erased[chosen], rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):  # one run of pixels each
        assert (np.abs(np.diff(np.pad(side, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1) == 2).all()
    # sides are rounded to whole pixels
    height, width = rows.sum(axis=1), columns.sum(axis=1)
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * 48 * 40).all()
    assert ((height - 0.5) * (width - 0.5) <= 0.3 * 48 * 40).all()
    area = erased[chosen].mean(axis=(1, 2))
    assert abs(area.mean() - 0.16) < 4 * 0.28 / np.sqrt(12 * chosen.sum())
    noise = found[chosen][erased[chosen]]
    assert_spread_evenly(noise.ravel(), 0, 255)


def test_erased_boxes_fit_into_the_image_at_every_area_and_reach_all_of_it():
    n = 4000
    area, aspect, x, y = np.random.default_rng(0).random((4, n), np.float32) * np.array([[0.98], [1], [1], [1]])
    area = (area + 0.02).astype(np.float32)
    x1, y1, x2, y2 = np.asarray(jax.jit(place_boxes, static_argnums=0)((40, 24), area, aspect, x, y)).T
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x1 < x2).all()
    assert (y1 < y2).all()
    assert x2.max() == 24
    assert y2.max() == 40
    height, width = y2 - y1, x2 - x1
    assert np.abs(height * width - area * 40 * 24).max() <= (40 + 24) / 2 + 0.25
    ratio = np.log((height / 40) / (width / 24))[area < 0.1]
    assert abs(ratio.mean()) < 0.1
    assert 1.1 < np.abs(ratio).max() < np.log(1 / 0.3) + 0.4  # above the limit by rounding to whole pixels


def test_an_image_depends_on_key_and_position_and_not_on_the_rest_of_the_batch():
    whole = augmented(IMAGES, **EVERYTHING)
    assert_same_up_to_rounding(augmented(IMAGES[:5], **EVERYTHING), whole[:5])
    others = np.where(np.arange(16)[:, None, None, None] == 2, IMAGES, 0)
    assert_same_up_to_rounding(augmented(others, **EVERYTHING)[2], whole[2])
    assert (np.abs(augmented(IMAGES, jax.random.key(4), **EVERYTHING) - whole).max(axis=(1, 2, 3)) > 10).all()
    alike = augmented(np.repeat(IMAGES[:1], 16, axis=0), **EVERYTHING)
    assert len(np.unique(alike.reshape(16, -1), axis=0)) == 16


def test_a_new_augmentation_keeps_the_draws_of_the_others(monkeypatch):
    def random_inversion(key, images, *, inversion=False):
        return 255 - images if inversion else images

    settings = {"brightness": 0.2, "erase_probability": 0.5}
    before = augmented(IMAGES, **settings)
    monkeypatch.setattr(module, "AUGMENTATIONS", {random_inversion: ["inversion"], **module.AUGMENTATIONS})
    after = jax.jit(lambda key, images: augment(key, images, **settings))(KEY, IMAGES)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(augment(KEY, jnp.asarray(IMAGES), inversion=True), 255 - IMAGES)


def test_enabling_an_augmentation_keeps_the_draws_of_the_others():
    warped = augmented(IMAGES, **GEOMETRY)
    erased = augmented(IMAGES, **GEOMETRY, erase_probability=1.0, erase_area=0.1)
    changed = (np.abs(warped - erased) > 0.01).any(axis=-1).mean(axis=(1, 2))
    assert ((changed > 0) & (changed < 0.12)).all()


def test_compiled_and_uncompiled_augmentation_agree():
    assert_same_up_to_rounding(augment(KEY, jnp.asarray(IMAGES), **EVERYTHING), augmented(IMAGES, **EVERYTHING))


ON_FOUR_DEVICES = """
from affect_jax.ops.augment import augment, mixup

images, path = np.load(sys.argv[1]), sys.argv[2]
key, images, targets = jax.random.key(3), jax.device_put(images, split), jax.device_put(np.eye(16), split)
step = jax.jit(lambda images: augment(key, images, **OPTIONS)).lower(images).compile()
assert_no_communication(step)
found = step(images)
assert found.sharding.is_equivalent_to(split, 4), found.sharding
mixed, mixed_targets = jax.jit(mixup, static_argnums=3)(key, images, targets, 0.4)
np.savez(path, found=found, mixed=mixed, mixed_targets=mixed_targets)
"""


def test_a_batch_sharded_over_four_devices_is_augmented_without_communication_as_on_one_device(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    program = ON_FOUR_DEVICES.replace("OPTIONS", repr(EVERYTHING))
    run_on_four_devices(program, tmp_path / "images.npy", tmp_path / "found.npz")
    on_four = np.load(tmp_path / "found.npz")
    assert_same_up_to_rounding(on_four["found"], augmented(IMAGES, **EVERYTHING))
    mixed, mixed_targets = jit_mixup(KEY, IMAGES, np.eye(16), 0.4)
    np.testing.assert_allclose(on_four["mixed"], mixed, rtol=1e-4)
    np.testing.assert_allclose(on_four["mixed_targets"], mixed_targets, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_mixes_neighbours_and_their_targets_with_beta_distributed_weights(alpha):
    count = 500
    images = np.random.default_rng(0).uniform(0, 255, (count, 4, 5, 1)).astype(np.float32)
    targets = np.eye(count, dtype=np.float32)
    mixed, mixed_targets = jit_mixup(KEY, images, targets, alpha)
    part = np.diagonal(mixed_targets)
    np.testing.assert_allclose(
        mixed_targets, part[:, None] * targets + (1 - part[:, None]) * np.roll(targets, 1, axis=0), atol=1e-6
    )
    part = part[:, None, None, None]
    np.testing.assert_allclose(mixed, part * images + (1 - part) * np.roll(images, 1, axis=0), rtol=1e-4)
    # mean and variance of Beta(alpha, alpha), within four standard errors of any distribution on [0, 1]
    assert abs(part.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    assert abs(part.var() - 1 / (4 * (2 * alpha + 1))) < 4 * 0.125 / np.sqrt(count)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((48, 48, 1), {}, r"\(48, 48, 1\).*\[B, H, W, C\]"), ((2, 8, 8, 1), {"zoom": 1.0}, "zoom is 1.0.*below 1")],
)
def test_bad_arguments_are_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        augment(KEY, jnp.zeros(shape), **options)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="sharpness"):
        augment(KEY, jnp.zeros((2, 8, 8, 1)), sharpness=1.0)
