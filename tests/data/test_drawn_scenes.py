import pickle

import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.drawn_scenes import MAX_COVERED, covered, random_places


def scenes(split: str = "train", **options):
    return open_split("drawn_scenes", split, num_examples=30, **options)


def test_scene_i_is_always_the_same_and_splits_and_seeds_differ():
    first, again, other = scenes(), pickle.loads(pickle.dumps(scenes())), scenes(seed=1)
    image = first.read_image(7)
    for name, array in again.read_image(7).items():
        np.testing.assert_array_equal(array, image[name])
    for different in (other.read_image(7), scenes("val").read_image(7), first.read_image(8)):
        assert (different["image"] != image["image"]).any()


def test_annotations_equal_the_drawn_scene():
    split = scenes(image_size=(160, 224))
    assert split.class_names == ("face",) and len(split) == 30
    assert split.sizes().tolist() == [[160, 224]] * 30
    for index in range(0, 30, 5):
        image = split.read_image(index)
        assert image["image"].shape == (160, 224, 3) and image["image"].dtype == np.uint8
        for name, array in split.annotations(index).items():
            np.testing.assert_array_equal(image[name], array)
        np.testing.assert_array_equal(image["boxes"], split.boxes(index))
        assert len(image["boxes"]) == split.box_counts()[index]
    assert split.image_names([3]) == ["drawn_scenes, train 3"]
    for index in (-1, 30):
        with pytest.raises(IndexError, match=f"index {index} of 30"):
            split.read_image(index)


def test_heads_have_many_sizes_are_inside_the_scene_and_rarely_overlap_and_some_scenes_are_empty():
    split = open_split("drawn_scenes", "train", num_examples=200)
    boxes = np.concatenate([split.boxes(index) for index in range(200)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (448, 320)).all()
    heights = boxes[:, 3] - boxes[:, 1]
    assert 6 <= heights.min() <= 9 and 115 <= heights.max() <= 132
    assert np.median(heights) == pytest.approx(32, rel=0.25)  # the middle of 8 to 128 on a log scale
    assert 5 <= (split.box_counts() == 0).sum() <= 40
    places = [random_places(np.random.default_rng(seed), (320, 448)) for seed in range(100)]
    shares = [covered(a, b) for some in places for n, a in enumerate(some) for b in some[:n]]
    assert max(shares) <= MAX_COVERED and np.mean(np.array(shares) > 0) < 0.3


def test_a_box_surrounds_the_pasted_head():
    split = scenes()
    places = split._places(0)
    empty = split.read_image(0)["image"].astype(int)
    split._places = lambda index: []
    changed = (split.read_image(0)["image"].astype(int) != empty).any(axis=2)
    inside = np.zeros_like(changed)
    for x1, y1, x2, y2 in scenes().boxes(0).astype(int):
        inside[y1:y2, x1:x2] = True
        assert changed[y1:y2, x1:x2].mean() > 0.6  # an ellipse fills pi / 4 of its box
    assert len(places) > 0 and changed[~inside].mean() < 0.001  # its blurred edge


def test_dark_scenes_are_the_same_scenes_with_less_light():
    light, dark = scenes(), scenes(dark=True)
    for index in range(4):
        day, night = light.read_image(index), dark.read_image(index)
        np.testing.assert_array_equal(day["boxes"], night["boxes"])
        assert night["image"].mean() < 0.6 * day["image"].mean()
        np.testing.assert_array_equal(night["image"], dark.read_image(index)["image"])


def test_impossible_scenes_have_clear_errors():
    with pytest.raises(ValueError, match=r"image_size is \(16, 64\)"):
        scenes(image_size=(16, 64))
    with pytest.raises(ValueError, match="unknown split"):
        scenes("all")
