import logging

import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.boxes_pipeline import (
    BucketBatches,
    boxes_stream_iterator,
    choose_buckets,
    pad_boxes,
    padded_box_batches,
)

BUCKETS = [(48, 64), (64, 48), (32, 96)]
SETTINGS = {"scale_range": (0.7, 2.0), "horizontal_flip": True, "brightness": 0.2, "low_light_probability": 0.5}


class Pictures:
    """A split of noise in many sizes, in whose picture i there are i % 5 boxes, each larger than the one before."""

    class_names = ("face", "hat")

    def __init__(self, number: int = 23):
        self.number = number
        shapes = [(40, 60), (61, 40), (30, 99), (50, 50)]
        self._sizes = np.array([shapes[index % 4] for index in range(number)], np.int32)

    def __len__(self):
        return self.number

    def sizes(self):
        return self._sizes

    def box_counts(self):
        return np.arange(self.number, dtype=np.int32) % 5

    def read_image(self, index):
        image = np.random.default_rng(index).integers(1, 255, (*self._sizes[index], 3), np.uint8)
        number = np.arange(index % 5)
        boxes = np.stack([number, number, number * 2 + 5, number * 2 + 6], axis=1).astype(np.float32)
        return {"image": image, "boxes": boxes, "label": (number % 2).astype(np.int32), "ignore": number == 1}


def plan(steps: int = 40, batch_size: int = 4, seed: int = 3) -> BucketBatches:
    return BucketBatches(Pictures().sizes(), BUCKETS, batch_size, steps, seed)


def stream(num_workers: int = 0, **options):
    source = plan(steps=12)
    return boxes_stream_iterator(source, Pictures(), max_boxes=3, settings=SETTINGS, num_workers=num_workers, **options)


def assert_same(first: dict, second: dict):
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
        assert array.dtype == second[name].dtype


def test_a_picture_goes_where_it_is_shrunk_least_and_a_small_one_where_least_is_computed():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, (100, 2))
    chosen = choose_buckets(sizes, BUCKETS)
    for (height, width), place in zip(sizes, chosen, strict=True):
        scales = [min(h / height, w / width) for h, w in BUCKETS]
        assert scales[place] == max(scales)  # these buckets have one area
    large_and_small = [(60, 80), (80, 60), (30, 40), (40, 30)]
    for size, place in (((90, 120), 0), ((60, 80), 0), ((31, 40), 0), ((30, 40), 2), ((12, 10), 3), ((10, 12), 2)):
        assert choose_buckets(np.array([size]), large_and_small).tolist() == [place]
    # of two that serve a picture alike, the one with less padding
    assert choose_buckets(np.array([[10, 10]]), [(50, 90), (50, 60)]).tolist() == [1]
    assert choose_buckets(np.zeros((0, 2), int), BUCKETS).shape == (0,)


def test_a_batch_is_of_one_bucket_and_a_pass_visits_every_picture():
    source, chosen = plan(), choose_buckets(Pictures().sizes(), BUCKETS)
    passes = len(source) // source.steps_per_pass
    assert passes >= 4
    orders = []
    for number in range(passes):
        plans = [source[step] for step in range(number * source.steps_per_pass, (number + 1) * source.steps_per_pass)]
        for one in plans:
            assert {BUCKETS[place] for place in chosen[one.indices]} == {one.bucket} and len(one.indices) == 4
        visits = np.concatenate([one.indices for one in plans])
        assert set(visits) == set(range(23)) and len(visits) < 23 + 4 * len(BUCKETS)
        orders.append(tuple(visits))
    assert len(set(orders)) == passes


def test_the_plan_of_a_step_depends_on_seed_and_step_alone():
    late, forward = plan(), plan()
    for step in range(37):
        forward[step]
    assert late[37].indices.tolist() == forward[37].indices.tolist() and late[37].step == 37
    other = plan(seed=4)
    assert any(other[step].indices.tolist() != late[step].indices.tolist() for step in range(6))


def test_a_bucket_with_fewer_pictures_than_a_batch_repeats_them():
    source = BucketBatches(np.array([[40, 60]] * 5 + [[60, 40]]), BUCKETS[:2], batch_size=4, num_steps=3, seed=0)
    assert source.steps_per_pass == 3
    assert [5, 5, 5, 5] in [source[step].indices.tolist() for step in range(3)]


def test_batches_are_the_same_whatever_the_workers():
    alone, workers = stream(), stream(num_workers=2)
    for _ in range(12):
        assert_same(next(alone), next(workers))
    workers.close()


def test_rows_of_all_processes_make_up_the_batch():
    parts = [stream(process_index=process, process_count=2) for process in range(2)]
    for batch in stream():
        halves = [next(part) for part in parts]
        assert_same(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})


def test_iterator_set_back_to_a_state_goes_on_from_there():
    iterator = stream()
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    resumed = stream()
    resumed.set_state(state)
    for batch, expected in zip(resumed, rest, strict=True):
        assert_same(batch, expected)
    assert len(rest) == 7


def test_a_batch_has_the_shapes_and_types_of_the_contract():
    for batch in stream():
        shape = batch["image"].shape[1:3]
        assert shape in BUCKETS
        expected = {
            "image": (np.uint8, (4, *shape, 3)),
            "boxes": (np.float32, (4, 3, 4)),
            "label": (np.int32, (4, 3)),
            "box_mask": (np.bool_, (4, 3)),
            "ignore": (np.bool_, (4, 3)),
            "image_size": (np.int32, (4, 2)),
            "scale": (np.float32, (4,)),
            "index": (np.int32, (4,)),
        }
        assert {name: (array.dtype, array.shape) for name, array in batch.items()} == expected
        assert not batch["boxes"][~batch["box_mask"]].any() and not batch["ignore"][~batch["box_mask"]].any()
        for image, (height, width) in zip(batch["image"], batch["image_size"], strict=True):
            assert not image[height:].any() and not image[:, width:].any()


def test_of_too_many_boxes_the_largest_stay_ignored_ones_last_and_a_warning_tells(caplog):
    boxes = np.array([[0, 0, side, side] for side in (3, 9, 5, 7)], np.float32)
    padded = pad_boxes(boxes, np.arange(4), np.array([False, True, False, False]), 2)
    np.testing.assert_array_equal(padded["boxes"], boxes[[2, 3]])
    assert padded["label"].tolist() == [2, 3] and padded["box_mask"].all()
    with caplog.at_level(logging.WARNING, logger="absl"):
        stream()
    assert "4 of 23 pictures have more than max_boxes=3 boxes (at most 4): the smallest 4 boxes" in caplog.text


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_evaluation_sees_every_picture_once_with_all_its_boxes(batch_size):
    split, seen = Pictures(), []
    for batch in padded_box_batches(split, batch_size, BUCKETS):
        assert len({len(array) for array in batch.values()} | {batch_size}) == 1
        assert batch["image"].shape[1:3] in BUCKETS and batch["boxes"].shape[1] == 4
        for row in np.flatnonzero(batch["mask"]):
            index = batch["index"][row]
            seen.append(index)
            picture = split.read_image(int(index))
            height, width = batch["image_size"][row]
            scale = min(np.array(batch["image"].shape[1:3]) / split.sizes()[index])
            assert batch["scale"][row] == np.float32(scale)
            mask = batch["box_mask"][row]
            limits = np.array([width, height, width, height])
            np.testing.assert_allclose(
                batch["boxes"][row][mask], np.clip(picture["boxes"] * np.float32(scale), 0, limits), rtol=1e-6
            )
            np.testing.assert_array_equal(batch["ignore"][row][mask], picture["ignore"])
    assert sorted(seen) == list(range(23))


def test_evaluation_of_changed_pictures_does_not_depend_on_the_batch_size():
    settings = {"low_light_probability": 1.0}
    found = []
    for batch_size in (1, 7):
        images = {}
        for batch in padded_box_batches(Pictures(), batch_size, BUCKETS, settings=settings, seed=5):
            images.update({int(i): image.tobytes() for i, image in zip(batch["index"], batch["image"], strict=True)})
        found.append(images)
    assert found[0] == found[1] and len(found[0]) == 23


def test_evaluation_reads_the_rows_that_it_is_asked_for_of_the_same_batches():
    whole = list(padded_box_batches(Pictures(), 6, BUCKETS))
    parts = [list(padded_box_batches(Pictures(), 6, BUCKETS, rows=slice(start, start + 2))) for start in (0, 2, 4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array, err_msg=name)


def test_drawn_scenes_stream():
    split = open_split("drawn_scenes", "train", num_examples=6, image_size=(80, 112))
    source = BucketBatches(split.sizes(), [(80, 112)], batch_size=3, num_steps=2, seed=0)
    batches = list(boxes_stream_iterator(source, split, max_boxes=8, settings={}, num_workers=0))
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(6))
    for batch in batches:
        for index, image, boxes, mask in zip(
            batch["index"], batch["image"], batch["boxes"], batch["box_mask"], strict=True
        ):
            picture = split.read_image(int(index))
            np.testing.assert_array_equal(image, picture["image"])
            np.testing.assert_array_equal(boxes[mask], picture["boxes"])
