import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from affect_jax.data import low_light, transforms, windows
from affect_jax.data.low_light import LowLight
from affect_jax.data.source import BadRows
from affect_jax.data.transforms import transform
from affect_jax.data.widerface import images_of, read_faces
from affect_jax.data.windows import random_reference_window

BUCKET = (96, 128)


def marked(height: int, width: int, boxes: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a gray image whose boxes are filled with red, green, blue, and so on, and the boxes."""
    image = np.full((height, width, 3), 60, np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = np.eye(3)[number % 3] * 240
    return image, np.array(boxes, np.float32).reshape(-1, 4)


def found_box(image: np.ndarray, channel: int) -> np.ndarray:
    """Measure the box of the marker of that color to a fraction of a pixel: its edges at half its height."""
    image = image.astype(np.float32)
    share = np.clip((image[..., channel] - np.delete(image, channel, 2).max(axis=2)) / 240, 0, 1)
    edges = []
    for axis in (0, 1):
        profile = share.max(axis=axis)
        full = np.flatnonzero(profile > 0.95)
        edges.append((full[0] - profile[: full[0]].sum(), full[-1] + 1 + profile[full[-1] + 1 :].sum()))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


THREE = [[10, 20, 40, 50], [250, 30, 297, 60], [120, 150, 160, 199]]


@pytest.mark.parametrize("shape", [(200, 300), (683, 1024), (60, 300), (300, 60), (96, 128)])
def test_boxes_match_their_pixels_after_fitting(shape):
    height, width = shape
    boxes = [[0, 0, width // 5, height // 5], [width - width // 4, height - height // 4, width, height]]
    image, boxes = marked(height, width, boxes)
    scale = windows.fitting_scale(shape, BUCKET)
    assert scale == min(BUCKET[0] / height, BUCKET[1] / width)
    resized = windows.resize(image, scale)
    fitted, moved = windows.pad(resized, BUCKET), windows.scale_boxes(boxes, scale, resized.shape[:2])
    assert fitted.shape == (*BUCKET, 3)
    for channel in range(2):
        # sides are rounded to whole pixels, so the far edge is uncertain, but not the scale
        np.testing.assert_allclose(found_box(fitted, channel), moved[channel], atol=0.52)
    np.testing.assert_allclose(moved, boxes * scale, atol=0.51)
    content = np.rint(np.array(shape) * scale).astype(int)
    assert not fitted[content[0] :].any() and not fitted[:, content[1] :].any()
    assert (fitted[: content[0], : content[1]].max(axis=2) > 0).all()


def test_pixels_far_from_the_corner_move_by_the_exact_scale():
    image = np.zeros((501, 999, 3), np.uint8)
    image[480:490, 900:910] = 255
    scale = 0.3337
    resized = windows.resize(image, scale)
    (box,) = windows.scale_boxes(np.array([[900, 480, 910, 490]], np.float32), scale, resized.shape[:2])
    ys, xs = np.mgrid[: resized.shape[0], : resized.shape[1]] + 0.5
    weight = resized[..., 0].astype(float)
    middle = np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()
    np.testing.assert_allclose(middle, (box[:2] + box[2:]) / 2, atol=0.05)
    np.testing.assert_allclose(middle, np.array([905, 485]) * scale, atol=0.05)


def test_the_markers_are_in_their_boxes_after_any_crop_scale_and_flip():
    image, boxes = marked(200, 300, THREE)
    label, seen, kept_all = np.arange(3), [], 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        out = transform(
            image, boxes, label, label == 2, BUCKET, rng, scale_range=(0.5, 4.0), min_face=9.0, horizontal_flip=True
        )
        assert out["image"].shape == (*BUCKET, 3) and len(out["boxes"]) >= 1
        height, width = out["image_size"]
        assert not out["image"][height:].any() and not out["image"][:, width:].any()
        assert (out["boxes"] >= 0).all() and (out["boxes"] <= (width, height, width, height)).all()
        for box, channel, ignore in zip(out["boxes"], out["label"], out["ignore"], strict=True):
            side = (box[2:] - box[:2]).min()
            whole = np.allclose(box[2:] - box[:2], (boxes[channel, 2:] - boxes[channel, :2]) * out["scale"], atol=0.01)
            assert ignore or not (channel == 2 or side < 9)
            assert not ignore or not whole or channel == 2 or side < 9
            if side > 4:
                np.testing.assert_allclose(found_box(out["image"], channel), box, atol=0.6)
        kept_all += len(out["boxes"]) == 3
        seen.append(out["scale"] / windows.fitting_scale((200, 300), BUCKET))
    assert 0.5 <= min(seen) < 0.6 and 3.3 < max(seen) <= 4.0
    assert np.median(seen) == pytest.approx(np.sqrt(2), rel=0.25)
    assert 10 < kept_all < 140


def test_a_crop_clips_its_boxes_and_names_those_whose_center_is_outside():
    image, boxes = marked(200, 300, THREE)
    moved, kept, partial = windows.crop_boxes(boxes, (200, 300), (30, 20), (100, 250))
    assert kept.tolist() == [0, 1] and partial.tolist() == [False, True]  # center 273 is outside 20 + 250
    np.testing.assert_array_equal(moved, [[0, 0, 20, 20], [230, 0, 250, 30]])
    np.testing.assert_array_equal(windows.crop(image, (30, 20), (100, 250)), image[30:130, 20:270])
    beyond = (-10, 100), (400, 400)
    moved, kept, partial = windows.crop_boxes(boxes, (200, 300), *beyond)
    np.testing.assert_array_equal(windows.crop(image, *beyond), image[:, 100:])
    assert kept.tolist() == [1, 2] and not partial.any()
    assert windows.crop_boxes(boxes[:0], (200, 300), (0, 0), (9, 9))[0].shape == (0, 4)


@pytest.mark.parametrize("shape", [(200, 300), (310, 200)])
@pytest.mark.parametrize("bucket", [(128, 128), BUCKET])
def test_markers_are_in_their_boxes_in_windows_of_any_side_also_beyond_the_image(shape, bucket):
    image, boxes = marked(*shape, [[10, 20, 40, 50], [150, 30, 197, 60], [120, 120, 160, 199]])
    multiples, beyond = [], 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        settings = {"side_range": (0.3, 2.0), "anywhere_probability": 0.3, "horizontal_flip": True, "min_face": 9.0}
        out = transform(image, boxes, np.arange(3), np.zeros(3, bool), bucket, rng, **settings)
        multiples.append(min(bucket) / out["scale"] / min(shape))
        height, width = out["image_size"]
        assert (out["boxes"] >= 0).all() and (out["boxes"] <= (width, height, width, height)).all()
        assert not out["image"][height:].any() and not out["image"][:, width:].any()
        beyond += not out["image"][0].any() or not out["image"][:, 0].any()
        for box, channel, ignore in zip(out["boxes"], out["label"], out["ignore"], strict=True):
            side = boxes[channel, 2:] - boxes[channel, :2]
            share = np.prod((box[2:] - box[:2]) / (side * out["scale"]))
            # a box with its center inside keeps at least a quarter of its area
            assert ignore or (share > 0.24 and (box[2:] - box[:2]).min() >= 9)
            assert not ignore or share < 0.76 or (box[2:] - box[:2]).min() < 9
            if (box[2:] - box[:2]).min() > 4:
                np.testing.assert_allclose(found_box(out["image"], channel), box, atol=1.1)
    assert 0.3 <= min(multiples) < 0.35 and 1.9 < max(multiples) <= 2.0
    assert np.median(multiples) == pytest.approx(1.15, rel=0.15) and beyond > 30


def test_windows_have_a_face_except_those_placed_anywhere():
    image, boxes = marked(400, 600, [[20, 350, 50, 380]])

    def share_of_empty(anywhere_probability: float) -> float:
        settings = {"side_range": (0.3, 0.5), "anywhere_probability": anywhere_probability}
        arguments = image, boxes, np.zeros(1, int), np.zeros(1, bool), (64, 64)
        outs = [transform(*arguments, np.random.default_rng(seed), **settings) for seed in range(200)]
        return np.mean([not (~out["ignore"]).any() for out in outs])

    assert share_of_empty(0.0) == 0 < 0.3 < share_of_empty(0.5) < 0.6 < 0.8 < share_of_empty(1.0)


REFERENCES = np.array([[500, 300, 20, 30], [110, 400, 12, 20], [900, 300, 40, 40]])
"""Boxes [x, y, width, height] in an image of 720x1080."""


@pytest.fixture
def reference_file(tmp_path) -> Path:
    file = tmp_path / "boxes.json"
    images = {"1.png": {"boxes": REFERENCES[:2].tolist()}, "2.png": {"boxes": REFERENCES[2:].tolist()}}
    file.write_text(json.dumps(images))
    return file


def test_a_face_has_the_height_and_the_place_of_a_reference_box(reference_file):
    image, boxes = marked(200, 300, [[10, 20, 40, 60], [250, 130, 275, 165]])
    heights = boxes[:, 3] - boxes[:, 1]
    drawn = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out = transform(image, boxes, np.arange(2), np.zeros(2, bool), BUCKET, rng, reference_boxes=reference_file)
        needed = REFERENCES[:, 3] / heights[:, None]  # scales, all different
        face, reference = np.argwhere(np.isclose(needed, out["scale"], rtol=1e-4))[0]
        x, y, width, height = REFERENCES[reference]
        box = out["boxes"][out["label"] == face][0]
        place = np.array([(x + width / 2) / 1080 * BUCKET[1], (y + height / 2) / 720 * BUCKET[0]])
        # corners are whole pixels of the image and of the window
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, place, atol=0.5 * out["scale"] + 0.5)
        assert box[3] - box[1] == pytest.approx(height, abs=0.1)
        np.testing.assert_allclose(found_box(out["image"], face), box, atol=1.1)
        drawn.add((face, reference))
    assert len(drawn) == 6


def test_the_scale_of_a_reference_window_is_limited(reference_file):
    def scale(face_height: int) -> float:
        image, boxes = marked(200, 300, [[50, 5, 100, 5 + face_height]])
        arguments = image, boxes, np.zeros(1, int), np.zeros(1, bool), BUCKET, np.random.default_rng(0)
        return transform(*arguments, reference_boxes=reference_file)["scale"]

    assert scale(4) == 2.0
    assert scale(190) == pytest.approx(windows.fitting_scale((200, 300), BUCKET))


def test_without_a_face_references_change_nothing(reference_file):
    image, boxes = marked(200, 300, THREE)
    arguments = image, boxes, np.zeros(3, int), np.ones(3, bool), BUCKET
    without, with_references = (
        transform(*arguments, np.random.default_rng(0), side_range=(0.3, 1.0), **settings)
        for settings in ({}, {"reference_boxes": reference_file})
    )
    for name, array in without.items():
        np.testing.assert_array_equal(array, with_references[name])


@pytest.mark.parametrize("content", ["[1, 2]", '{"1.png": {"boxes": [[1, 2, 0, 4]]}}', '{"1.png": {"boxes": []}}'])
def test_reference_boxes_without_area_or_of_another_form_are_refused_with_the_file(tmp_path, content):
    file = tmp_path / "boxes.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"boxes\.json"):
        windows.read_reference_boxes(file)


def test_faces_in_windows_of_real_images_are_as_high_as_references(shared_data):
    file = shared_data / "dark_face" / "boxes_of_all_6000.json"
    labels = shared_data / "wider_face" / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    images = shared_data / "wider_face" / "WIDER_val" / "images"
    for path in (file, labels, images):
        if not path.exists():
            pytest.skip(f"no real data: {path} is absent")
    references, rng = windows.read_reference_boxes(file), np.random.default_rng(0)
    heights = []
    for row, name, lines in images_of(labels, BadRows("fail")):
        size = cv2.imread(str(images / name)).shape[:2]
        faces = np.array([face.box for face in read_faces(labels, row, name, lines, BadRows("fail"))], np.float32)
        for _ in range(20):
            window = random_reference_window(size, faces, (256, 384), references, rng)
            moved = (faces - np.tile(window.top_left[::-1], 2)) * window.scale
            centers = (moved[:, :2] + moved[:, 2:]) / 2
            inside = ((centers >= 0) & (centers < (384, 256))).all(axis=1)
            heights += (moved[inside, 3] - moved[inside, 1]).tolist()
    for share in (0.1, 0.25, 0.5, 0.75):  # above, images with only large faces cannot be made small enough
        ratio = np.quantile(heights, share) / np.quantile(references[:, 3], share)
        assert 0.7 < ratio < 1.4, share


def test_flipping_twice_changes_nothing():
    image, boxes = marked(200, 301, THREE)
    flipped, moved = windows.flip(image), windows.flip_boxes(boxes, 301)
    np.testing.assert_array_equal(found_box(flipped, 0), moved[0])
    np.testing.assert_array_equal(windows.flip(flipped), image)
    np.testing.assert_array_equal(windows.flip_boxes(moved, 301), boxes)


@pytest.fixture
def photo() -> np.ndarray:
    """Return an image of smooth colors with texture."""
    rng = np.random.default_rng(0)
    colors = cv2.resize(rng.uniform(20, 235, (6, 8, 3)).astype(np.float32), (160, 120), interpolation=cv2.INTER_CUBIC)
    return np.clip(colors + rng.normal(0, 5, colors.shape), 0, 255).astype(np.uint8)


def test_brightness_and_contrast_are_an_affine_change_about_the_mean(photo):
    changed = transforms.brightness_contrast(photo, 12.0, 1.3)
    mean = photo.mean(dtype=np.float64)
    expected = np.clip((photo - mean) * 1.3 + mean + 12, 0, 255)
    assert np.abs(changed - expected).max() <= 0.51
    np.testing.assert_array_equal(transforms.brightness_contrast(photo, 0.0, 1.0), photo)


def test_blur_is_a_gaussian(photo):
    taps = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    taps /= taps.sum()
    padded = np.pad(photo.astype(float), ((6, 6), (6, 6), (0, 0)), mode="reflect")
    rows = sum(tap * padded[:, k : k + photo.shape[1]] for k, tap in enumerate(taps))
    expected = sum(tap * rows[k : k + photo.shape[0]] for k, tap in enumerate(taps))
    assert np.abs(transforms.gaussian_blur(photo, 1.5) - expected).max() <= 1.1


def luminance(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])


def test_equalization_spreads_luminance_and_keeps_colors(photo):
    dark = (photo // 4).astype(np.uint8)
    for changed in (transforms.equalize_histogram(dark), transforms.clahe(dark, 4.0)):
        assert luminance(changed).std() > 1.5 * luminance(dark).std()
    even = luminance(transforms.equalize_histogram(dark))
    for share in (0.25, 0.5, 0.75):
        assert np.quantile(even, share) == pytest.approx(255 * share, abs=12)
    gray = np.repeat(dark[..., :1], 3, axis=2)
    np.testing.assert_array_equal(transforms.equalize_histogram(gray)[..., 0], cv2.equalizeHist(gray[..., 0]))


def test_low_light_has_the_mean_and_the_noise_of_its_formula():
    settings = LowLight(exposure=0.2, gamma=1.2, color_cast=(1.2, 1.0, 0.8), photons=800.0, read_noise=0.002)
    for level in (90, 180, 250):
        image = np.full((200, 300, 3), level, np.uint8)
        dark = low_light.low_light(image, settings, np.random.default_rng(0))
        value = level / 255
        linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        signal = (0.2 * linear) ** 1.2 * np.array([1.2, 1.0, 0.8])
        seen = low_light.linear_of_srgb(dark)
        np.testing.assert_allclose(seen.mean(axis=(0, 1)), signal, rtol=0.02, atol=2e-4)
        np.testing.assert_allclose(seen.std(axis=(0, 1)), np.sqrt(signal / 800 + 0.002**2), rtol=0.05)


def test_low_light_without_loss_changes_nothing(photo):
    nothing = LowLight(exposure=1.0, gamma=1.0, color_cast=(1.0, 1.0, 1.0), photons=1e12, read_noise=0.0)
    unchanged = low_light.low_light(photo, nothing, np.random.default_rng(0))
    assert np.abs(unchanged.astype(int) - photo).max() <= 1


def test_drawn_settings_of_low_light_fill_their_ranges():
    rng = np.random.default_rng(0)
    drawn = [low_light.random_low_light(rng, (0.03, 0.3)) for _ in range(2000)]
    shares = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    for values, (low, high) in (
        (np.log([one.exposure for one in drawn]), np.log((0.03, 0.3))),
        ([one.gamma for one in drawn], (1.0, 1.3)),
        ([one.color_cast[0] - 1 for one in drawn], (-0.1, 0.3)),  # warm light has more red
        ([1 - one.color_cast[2] for one in drawn], (-0.1, 0.3)),  # and less blue
        (np.log([one.photons for one in drawn]), np.log((500, 5000))),
        (np.log([one.read_noise for one in drawn]), np.log((0.0003, 0.003))),
    ):
        expected = low + (high - low) * shares
        np.testing.assert_allclose(np.quantile(values, shares), expected, atol=0.05 * (high - low))


def test_less_light_hides_more_of_an_image_in_noise(photo):
    correlations = []
    for exposure in (0.3, 0.03):
        settings = low_light.random_low_light(np.random.default_rng(0), (exposure, exposure))._replace(photons=500.0)
        dark = low_light.low_light(photo, settings, np.random.default_rng(1))
        assert dark.mean() < photo.mean() * exposure**0.3
        correlations.append(np.corrcoef(luminance(dark).ravel(), luminance(photo).ravel())[0, 1])
    assert correlations[0] > correlations[1] + 0.02


def test_the_estimate_of_noise_is_its_deviation_whatever_the_shading():
    rows, columns = np.mgrid[:300, :400]
    shading = (60 + rows / 5 + columns / 8)[..., None]
    for deviation in (2.0, 6.0, 12.0):
        gray = shading + np.random.default_rng(0).normal(0, deviation, (300, 400, 1))
        image = np.clip(np.rint(gray), 0, 255).astype(np.uint8).repeat(3, axis=2)
        assert transforms.estimate_noise(image) == pytest.approx(deviation, rel=0.05)


def test_raised_exposure_multiplies_dark_images_and_leaves_bright_ones():
    shading = np.linspace(10, 30, 160)[None, :, None] * np.ones((120, 1, 3))
    dark = np.rint(shading).astype(np.uint8)
    np.testing.assert_array_equal(transforms.raise_exposure(dark, 60.0), np.rint(dark * (60 / dark.mean())))
    for unchanged in (dark * 4, np.zeros_like(dark)):
        np.testing.assert_array_equal(transforms.raise_exposure(unchanged, 60.0), unchanged)
    black = np.ones((8, 8, 3), np.uint8)
    assert (transforms.raise_exposure(black, 60.0) == transforms.MAX_GAIN).all()


def test_raised_exposure_smooths_the_noise_of_a_dark_image(photo):
    settings = LowLight(exposure=0.05, gamma=1.0, color_cast=(1.0, 1.0, 1.0), photons=500.0, read_noise=0.003)
    clean = cv2.GaussianBlur(photo, (0, 0), 2.0)
    dark = low_light.low_light(clean, settings, np.random.default_rng(0))
    raised = transforms.raise_exposure(dark, 60.0)
    only_multiplied = dark * (60 / dark.mean())
    assert raised.mean() == pytest.approx(60, abs=1)
    assert transforms.estimate_noise(raised) < 0.4 * transforms.estimate_noise(only_multiplied.astype(np.uint8))
    similarity = [np.corrcoef(luminance(x).ravel(), luminance(clean).ravel())[0, 1] for x in (only_multiplied, raised)]
    assert similarity[1] > similarity[0] + 0.03


EVERYTHING = {
    "scale_range": (0.8, 2.0),
    "horizontal_flip": True,
    "low_light_probability": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "blur_probability": 0.5,
    "equalize_probability": 0.3,
    "clahe_probability": 0.3,
}


def test_transform_depends_only_on_its_generator_and_changes_nothing_in_place(photo, reference_file):
    arguments = [photo, np.array([[10, 10, 50, 60]], np.float32), np.zeros(1, np.int32), np.zeros(1, np.bool_)]
    copies = [array.copy() for array in arguments]
    images = set()
    for seed in range(6):
        settings = EVERYTHING | ({"reference_boxes": reference_file} if seed % 2 else {})
        first, again = (transform(*arguments, BUCKET, np.random.default_rng(seed), **settings) for _ in range(2))
        for name, array in first.items():
            np.testing.assert_array_equal(array, again[name])
        images.add(first["image"].tobytes())
    assert len(images) == 6
    for array, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_box_without_area_after_scaling_is_ignored():
    image = np.zeros((601, 397, 3), np.uint8)  # 96 x 63.4 pixels after scaling, rounded to 63
    boxes = np.array([[396.5, 10, 397, 500], [10, 10, 300, 300]], np.float32)
    out = transform(image, boxes, np.zeros(2, np.int32), np.zeros(2, bool), (96, 96), np.random.default_rng(0))
    assert out["boxes"][0, 0] == out["boxes"][0, 2] == 63
    assert out["ignore"].tolist() == [True, False]


def test_everything_is_off_by_default_and_images_without_boxes_are_accepted():
    image, boxes = marked(*BUCKET, [])
    nothing = np.zeros(0, np.int32), np.zeros(0, np.bool_)
    out = transform(image, boxes, *nothing, BUCKET, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], image)
    assert out["scale"] == 1 and out["image_size"].tolist() == list(BUCKET)
    out = transform(image, boxes, *nothing, BUCKET, np.random.default_rng(0), min_face=8.0, **EVERYTHING)
    assert out["boxes"].shape == (0, 4) and out["ignore"].shape == (0,)
    with pytest.raises(TypeError, match="sharpness"):
        transform(image, boxes, *nothing, BUCKET, np.random.default_rng(0), sharpness=1.0)


def test_faces_of_real_images_look_the_same_in_their_moved_boxes(shared_data):
    paths = sorted((shared_data / "wider_face" / "WIDER_val" / "images").rglob("*.jpg"))[::60]
    if not paths:
        pytest.skip("no real data: WIDER_val is absent")
    rng = np.random.default_rng(0)
    for path in paths:
        image = cv2.imread(str(path))[..., ::-1]
        height, width = image.shape[:2]
        corner = rng.uniform(0, 0.6, 2) * (width, height)
        box = np.concatenate([corner, corner + 0.3 * min(height, width)]).round().astype(np.float32)[None]
        settings = {"scale_range": (1.0, 2.0), "horizontal_flip": False}
        out = transform(image, box, np.zeros(1, int), np.zeros(1, bool), (256, 320), rng, **settings)
        side = box[0, 2] - box[0, 0]
        whole = np.abs((out["boxes"][0, 2:] - out["boxes"][0, :2]) - side * out["scale"]).max() < 0.01
        x1, y1, x2, y2 = np.rint(out["boxes"][0]).astype(int)
        if whole:
            was = image[int(box[0, 1]) : int(box[0, 3]), int(box[0, 0]) : int(box[0, 2])]
            was = cv2.resize(was, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA).astype(float)
            assert np.corrcoef(was.ravel(), out["image"][y1:y2, x1:x2].astype(float).ravel())[0, 1] > 0.9
