import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.boxes_pipeline import (
    MAX_IGNORED,
    BucketBatches,
    boxes_stream_iterator,
    choose_buckets,
    describe_surplus,
    find_limited,
    merge_boxes,
    pad_boxes,
    padded_box_batches,
)

BUCKETS = [(48, 64), (64, 48), (32, 96)]
SETTINGS = {"scale_range": (0.7, 2.0), "horizontal_flip": True, "brightness": 0.2, "low_light_probability": 0.5}


class NoiseImages:
    """A split of noise images of several sizes; image i has i % 5 boxes, each larger than the previous box."""

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

    def annotations(self, index):
        number = np.arange(index % 5)
        boxes = np.stack([number, number, number * 2 + 5, number * 2 + 6], axis=1).astype(np.float32)
        return {"boxes": boxes, "label": (number % 2).astype(np.int32), "ignore": number == 1}

    def read_image(self, index):
        image = np.random.default_rng(index).integers(1, 255, (*self._sizes[index], 3), np.uint8)
        return {"image": image, **self.annotations(index)}


def plan(steps: int = 40, batch_size: int = 4, seed: int = 3) -> BucketBatches:
    return BucketBatches(NoiseImages().sizes(), BUCKETS, batch_size, steps, seed)


def stream(num_workers: int = 0, **options):
    source, split = plan(steps=12), NoiseImages()
    return boxes_stream_iterator(source, split, max_boxes=3, settings=SETTINGS, num_workers=num_workers, **options)


def assert_same(first: dict, second: dict):
    assert set(first) == set(second)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
        assert array.dtype == second[name].dtype


def test_an_image_goes_to_the_bucket_that_shrinks_it_least_and_a_small_image_to_a_small_bucket():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, (100, 2))
    chosen = choose_buckets(sizes, BUCKETS)
    for (height, width), place in zip(sizes, chosen, strict=True):
        scales = [min(h / height, w / width) for h, w in BUCKETS]
        assert scales[place] == max(scales)  # these buckets have the same area
    large_and_small = [(60, 80), (80, 60), (30, 40), (40, 30)]
    for size, place in (((90, 120), 0), ((60, 80), 0), ((31, 40), 0), ((30, 40), 2), ((12, 10), 3), ((10, 12), 2)):
        assert choose_buckets(np.array([size]), large_and_small).tolist() == [place]
    # among equals the bucket with less padding
    assert choose_buckets(np.array([[10, 10]]), [(50, 90), (50, 60)]).tolist() == [1]
    assert choose_buckets(np.zeros((0, 2), int), BUCKETS).shape == (0,)


def test_a_batch_has_one_bucket_and_an_epoch_visits_every_image():
    source, chosen = plan(), choose_buckets(NoiseImages().sizes(), BUCKETS)
    epochs = len(source) // source.steps_per_epoch
    assert epochs >= 4
    orders = []
    for epoch in range(epochs):
        plans = [source[step] for step in range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)]
        for one in plans:
            assert {BUCKETS[place] for place in chosen[one.indices]} == {one.bucket} and len(one.indices) == 4
        visits = np.concatenate([one.indices for one in plans])
        assert set(visits) == set(range(23)) and len(visits) < 23 + 4 * len(BUCKETS)
        orders.append(tuple(visits))
    assert len(set(orders)) == epochs


def test_the_plan_of_a_step_depends_only_on_seed_and_step():
    late, forward = plan(), plan()
    for step in range(37):
        forward[step]
    assert late[37].indices.tolist() == forward[37].indices.tolist() and late[37].step == 37
    other = plan(seed=4)
    assert any(other[step].indices.tolist() != late[step].indices.tolist() for step in range(6))


def test_limited_images_are_drawn_again_for_each_epoch_and_all_others_are_visited():
    places = [
        f"images/{event}/{n}.jpg" for event, count in (("march", 30), ("talk", 20), ("zoo", 7)) for n in range(count)
    ]
    limits = find_limited(places, [("/march/", 9), ("talk", 4), ("images/.*", 100)])
    assert [len(images) for images, _ in limits] == [30, 20, 7]
    with pytest.raises(ValueError, match="'talk/1' matches no further"):
        find_limited(places, [("talk", 4), ("talk/1", 3)])

    def source(seed: int) -> BucketBatches:
        return BucketBatches(
            np.array([[40, 60]] * 57), [(48, 64)], batch_size=4, num_steps=40, seed=seed, limits=limits
        )

    batches, drawn = source(0), []
    assert batches.steps_per_epoch == 5  # 9 + 4 + 7 images
    for epoch in range(8):
        plans = [batches[5 * epoch + step].indices for step in range(5)]
        visits = set(np.concatenate(plans).tolist())
        events = [places[index].split("/")[1] for index in visits]
        assert [events.count(event) for event in ("march", "talk", "zoo")] == [9, 4, 7]
        drawn.append(frozenset(visits))
    assert len(set(drawn)) == 8 and len(frozenset().union(*drawn)) > 45
    assert [source(0)[step].indices.tolist() for step in (37, 2)] == [batches[s].indices.tolist() for s in (37, 2)]
    assert source(1)[0].indices.tolist() != batches[0].indices.tolist()


def test_buckets_share_a_limit_in_proportion_to_its_images():
    sizes = np.array([[40, 60], [40, 60], [60, 40], [60, 40], [60, 40], [60, 40]] * 3)
    limits = [(np.arange(12), 6)]  # 4 wide and 8 high images
    source = BucketBatches(sizes, BUCKETS[:2], batch_size=1, num_steps=60, seed=0, limits=limits)
    assert source.steps_per_epoch == 2 + 2 + 4 + 4
    visits = [source[step].indices[0] for step in range(12)]
    assert sum(index < 12 for index in visits) == 6 and len(set(visits)) == 12


@pytest.mark.parametrize("counts", [(7, 93, 0), (33, 33, 34), (1, 0, 2), (0, 5, 0)])
@pytest.mark.parametrize("number", [1, 2, 50, 100, 101])
def test_buckets_together_visit_as_many_images_of_a_limit_as_it_allows(counts, number):
    sizes = np.repeat([[40, 60], [60, 40], [30, 99]], counts, axis=0)
    limits = [(np.arange(len(sizes)), number)]
    visited = min(number, len(sizes))
    source = BucketBatches(sizes, [(48, 64), (64, 48), (32, 96)], 1, num_steps=visited, seed=0, limits=limits)
    assert source.steps_per_epoch == len({int(source[step].indices[0]) for step in range(visited)}) == visited


def test_a_bucket_with_fewer_images_than_a_batch_repeats_them():
    source = BucketBatches(np.array([[40, 60]] * 5 + [[60, 40]]), BUCKETS[:2], batch_size=4, num_steps=3, seed=0)
    assert source.steps_per_epoch == 3
    assert [5, 5, 5, 5] in [source[step].indices.tolist() for step in range(3)]


def test_batches_are_the_same_for_any_number_of_workers():
    alone, workers = stream(), stream(num_workers=2)
    for _ in range(12):
        assert_same(next(alone), next(workers))
    workers.close()


def test_an_image_is_changed_anew_in_every_step_and_row():
    source = BucketBatches(np.array([[40, 60]]), [(48, 64)], batch_size=2, num_steps=10, seed=0)
    settings = {"low_light_probability": 1.0}
    batches = boxes_stream_iterator(source, NoiseImages(1), max_boxes=3, settings=settings, num_workers=0)
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) == 20


def test_rows_of_all_processes_form_the_batch():
    parts = [stream(process_index=process, process_count=2) for process in range(2)]
    for batch in stream():
        halves = [next(part) for part in parts]
        assert_same(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})


def test_iterator_resumes_from_a_saved_state():
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


def test_a_batch_has_the_documented_shapes_and_types():
    places = 3 + MAX_IGNORED
    for batch in stream():
        shape = batch["image"].shape[1:3]
        assert shape in BUCKETS
        expected = {
            "image": (np.uint8, (4, *shape, 3)),
            "boxes": (np.float32, (4, places, 4)),
            "label": (np.int32, (4, places)),
            "box_mask": (np.bool_, (4, places)),
            "ignore": (np.bool_, (4, places)),
            "image_size": (np.int32, (4, 2)),
            "scale": (np.float32, (4,)),
            "index": (np.int32, (4,)),
        }
        assert {name: (array.dtype, array.shape) for name, array in batch.items()} == expected
        assert not batch["boxes"][~batch["box_mask"]].any() and not batch["ignore"][~batch["box_mask"]].any()
        for image, (height, width) in zip(batch["image"], batch["image_size"], strict=True):
            assert not image[height:].any() and not image[:, width:].any()


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 500, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(2, 60, (count, 2))], axis=1).astype(np.float32)


def inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return which boxes [N, 4] are inside a region [M, 4]: bool [N]."""
    fits = (boxes[:, None, :2] >= regions[None, :, :2]) & (boxes[:, None, 2:] <= regions[None, :, 2:])
    return fits.all(axis=2).any(axis=1)


def test_the_largest_boxes_stay_and_surplus_boxes_are_ignored():
    boxes = np.array([[0, 0, side, side] for side in (3, 9, 5, 7)], np.float32)
    padded = pad_boxes(boxes, np.arange(4), np.array([False, True, False, False]), 2, 3)
    np.testing.assert_array_equal(padded["boxes"], np.concatenate([boxes[[2, 3, 0, 1]], np.zeros((1, 4))]))
    assert padded["label"].tolist() == [2, 3, 0, 0, 0]
    assert padded["ignore"].tolist() == [False, False, True, True, False]
    assert padded["box_mask"].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(("count", "max_boxes", "max_ignored"), [(0, 4, 2), (3, 4, 2), (40, 10, 8), (900, 100, 32)])
def test_every_box_is_a_target_or_inside_an_ignored_region(count, max_boxes, max_ignored):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        boxes, label, ignore = random_boxes(rng, count), rng.integers(0, 3, count), rng.random(count) < 0.2
        padded = pad_boxes(boxes, label, ignore, max_boxes, max_ignored)
        assert {len(array) for array in padded.values()} == {max_boxes + max_ignored}
        targets = padded["boxes"][padded["box_mask"] & ~padded["ignore"]]
        regions = padded["boxes"][padded["box_mask"] & padded["ignore"]]
        assert len(targets) == min(max_boxes, np.sum(~ignore))
        is_target = (boxes[:, None] == targets).all(axis=2).any(axis=1)
        assert (is_target | inside(boxes, regions)).all()
        assert not is_target[ignore].any()
        assert not padded["boxes"][~padded["box_mask"]].any()


def test_merged_regions_are_of_neighbours():
    corners = np.array([[x + dx, y] for x in (0, 300) for y in (0, 300) for dx in range(25)], np.float32)
    boxes = np.concatenate([corners, corners + 8], axis=1)
    merged = merge_boxes(np.random.default_rng(0).permutation(boxes), 4)
    assert sorted(merged.tolist()) == [[x, y, x + 32, y + 8] for x in (0, 300) for y in (0, 300)]


def test_surplus_boxes_are_described_with_counts():
    text = describe_surplus(NoiseImages(), 2)
    # images with 4 boxes have 3 true boxes
    assert "4 of 23 training images have more than config.data.max_boxes = 2 boxes (at most 3)" in text
    assert "smallest 4 boxes are ignored" in text
    assert describe_surplus(NoiseImages(), 3) == ""


def test_evaluation_batches_are_the_same_for_any_number_of_workers():
    options = {"max_boxes": 2, "settings": SETTINGS, "seed": 5, "rows": slice(1, 3)}
    alone = list(padded_box_batches(NoiseImages(), 4, BUCKETS, **options))
    for batch, expected in zip(
        padded_box_batches(NoiseImages(), 4, BUCKETS, **options, num_workers=2), alone, strict=True
    ):
        assert_same(batch, expected)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_evaluation_sees_every_image_once_with_all_its_boxes(batch_size):
    split, seen = NoiseImages(), []
    for batch in padded_box_batches(split, batch_size, BUCKETS):
        assert len({len(array) for array in batch.values()} | {batch_size}) == 1
        assert batch["image"].shape[1:3] in BUCKETS and batch["boxes"].shape[1] == 4 + 4
        for row in np.flatnonzero(batch["mask"]):
            index = batch["index"][row]
            seen.append(index)
            expected = split.annotations(int(index))
            height, width = batch["image_size"][row]
            scale = min(np.array(batch["image"].shape[1:3]) / split.sizes()[index])
            assert batch["scale"][row] == np.float32(scale)
            mask = batch["box_mask"][row]
            limits = np.array([width, height, width, height])
            ignored_last = np.argsort(expected["ignore"], kind="stable")
            boxes = np.clip(expected["boxes"][ignored_last] * np.float32(scale), 0, limits)
            np.testing.assert_allclose(batch["boxes"][row][mask], boxes, rtol=1e-6)
            np.testing.assert_array_equal(batch["ignore"][row][mask], expected["ignore"][ignored_last])
    assert sorted(seen) == list(range(23))


def test_evaluation_of_changed_images_does_not_depend_on_the_batch_size():
    settings = {"low_light_probability": 1.0}
    found = []
    for batch_size in (1, 7):
        images = {}
        for batch in padded_box_batches(NoiseImages(), batch_size, BUCKETS, settings=settings, seed=5):
            images.update({int(i): image.tobytes() for i, image in zip(batch["index"], batch["image"], strict=True)})
        found.append(images)
    assert found[0] == found[1] and len(found[0]) == 23


def test_evaluation_reads_only_the_requested_rows_of_the_same_batches():
    whole = list(padded_box_batches(NoiseImages(), 6, BUCKETS))
    parts = [list(padded_box_batches(NoiseImages(), 6, BUCKETS, rows=slice(start, start + 2))) for start in (0, 2, 4)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), array, err_msg=name)


def test_drawn_scenes_are_streamed():
    split = open_split("drawn_scenes", "train", num_examples=6, image_size=(80, 112))
    source = BucketBatches(split.sizes(), [(80, 112)], batch_size=3, num_steps=2, seed=0)
    batches = list(boxes_stream_iterator(source, split, max_boxes=8, settings={}, num_workers=0))
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == list(range(6))
    for batch in batches:
        for index, image, boxes, mask in zip(
            batch["index"], batch["image"], batch["boxes"], batch["box_mask"], strict=True
        ):
            expected = split.read_image(int(index))
            np.testing.assert_array_equal(image, expected["image"])
            np.testing.assert_array_equal(boxes[mask], expected["boxes"])
