import pickle

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from affect_jax.data import open_split, open_splits
from affect_jax.data.drawn_faces import DrawnFaces, face_parameters, head_mask, render_face
from affect_jax.data.source import MissingSplit
from affect_jax.labels import FER2013


def test_an_example_depends_only_on_its_index():
    faces = DrawnFaces("train", 100)
    whole = faces.read(np.arange(20))
    order = np.random.default_rng(0).permutation(20)
    for other in (faces, DrawnFaces("train", 100), DrawnFaces("train", 5000), pickle.loads(pickle.dumps(faces))):
        shuffled = other.read(order)
        np.testing.assert_array_equal(shuffled["image"], whole["image"][order])
        np.testing.assert_array_equal(shuffled["label"], whole["label"][order])


def test_splits_and_seeds_have_no_common_faces():
    sources = [DrawnFaces(split, 50, seed) for split in ("train", "val", "test") for seed in (0, 1)]
    images = np.concatenate([source.read(np.arange(50))["image"] for source in sources])
    assert len({image.tobytes() for image in images}) == len(images) == 300


def test_a_split_without_a_value_of_an_option_does_not_exist():
    sizes = {"train": 5, "val": 7}
    assert {split: len(of) for split, of in open_splits("drawn_faces", num_examples=sizes).items()} == sizes
    message = "^drawn_faces has no split test: the option num_examples has no value for it$"
    with pytest.raises(MissingSplit, match=message):
        open_split("drawn_faces", "test", num_examples=sizes)


def test_different_sets_have_different_cache_names_and_small_and_huge_sets_none():
    sets = [DrawnFaces("train", 1000), DrawnFaces("val", 1000), DrawnFaces("train", 1001), DrawnFaces("train", 1000, 1)]
    sets.append(DrawnFaces("train", 1000, image_size=(64, 64)))
    assert len({faces.cache_name for faces in sets}) == len(sets) == 5
    assert DrawnFaces("train", 1000).cache_name == sets[0].cache_name
    assert DrawnFaces("train", 100).cache_name == DrawnFaces("train", 10**6).cache_name == ""


def test_a_split_has_the_expected_arrays_and_balanced_labels():
    split = open_split("drawn_faces", "val", "unused", num_examples={"train": 5, "val": 70})
    batch = split.read(np.arange(len(split)))
    assert (batch["image"].shape, batch["image"].dtype) == ((70, 48, 48, 1), np.uint8)
    assert split.image_shape == (48, 48, 1)
    np.testing.assert_array_equal(np.bincount(batch["label"]), [10] * 7)
    assert split.class_names == FER2013


@pytest.mark.parametrize("expression", FER2013)
def test_drawing_is_the_same_at_any_size(expression):
    parameters = face_parameters(np.random.default_rng(3), expression)
    small = render_face(parameters, 48).astype(float)
    for size in (96, 192):
        large = cv2.resize(render_face(parameters, size), (48, 48), interpolation=cv2.INTER_AREA)
        # the noise of each pixel and the width of thin lines differ
        assert np.abs(large - small).mean() < 8


def test_mask_covers_the_head_and_no_distant_pixels():
    for seed in range(10):
        parameters = face_parameters(np.random.default_rng(seed), "happy")
        view, mask = parameters.view, head_mask(parameters, 100) > 127
        ys, xs = np.nonzero(mask)
        center = 100 * np.array(view.center)
        assert mask[round(center[1]), round(center[0])]
        half = 100 * view.scale
        assert np.hypot(xs - center[0], ys - center[1]).max() <= half + 1
        # an ellipse of that height, two thirds to all as wide, narrower at the chin, clipped at the border
        assert 0.5 * np.pi * 0.6 * half**2 < mask.sum() < np.pi * 0.9 * half**2


def test_logistic_regression_on_pixels_stays_under_sixty_percent():
    train, val = DrawnFaces("train", 2500).read(np.arange(2500)), DrawnFaces("val", 1000).read(np.arange(1000))
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=200))
    linear.fit(train["image"].reshape(2500, -1), train["label"])
    accuracy = linear.score(val["image"].reshape(1000, -1), val["label"])
    assert 0.2 < accuracy < 0.6  # VGG-FER reaches 95 % in the test of the demo


def test_invalid_arguments_are_errors():
    with pytest.raises(ValueError, match="unknown split 'validation'; known are train, val, test"):
        DrawnFaces("validation", 10)
    with pytest.raises(ValueError, match="drawn faces are square"):
        DrawnFaces("val", 10, image_size=(48, 64))
    for outside in (10, -1):
        with pytest.raises(IndexError, match=f"index {outside} of 10 drawn faces"):
            DrawnFaces("val", 10).read(np.array([3, outside]))
