import json

import numpy as np
import pytest

from affect_jax.data.pipeline import (
    BatchIndices,
    InMemorySplit,
    index_iterator,
    padded_batches,
    size_in_bytes,
    stream_iterator,
)
from affect_jax.data.split import FacesSplit


class Numbers(FacesSplit):
    """A split whose example i is an image of the value i."""

    class_names, image_shape = ("even", "odd"), (2, 3, 1)

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def read(self, indices):
        indices = np.asarray(indices)
        image = np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 3, 1)).astype(np.uint8)
        return {"image": image, "label": (indices % 2).astype(np.int32)}


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (64, 16), (5, 12), (7, 7)])
def test_every_epoch_visits_every_example_once_in_a_different_order(num_examples, batch_size):
    passes = 6
    source = BatchIndices(num_examples, batch_size, passes * num_examples // batch_size + 1, seed=3)
    visits = np.concatenate([source[step] for step in range(len(source))])[: passes * num_examples]
    orders = visits.reshape(passes, num_examples)
    assert all(set(order) == set(range(num_examples)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_the_order_depends_on_the_seed():
    first, second, other = (BatchIndices(100, 16, 20, seed)[7].tolist() for seed in (0, 0, 1))
    assert first == second != other


def test_balanced_order_has_equal_classes_and_repeats_no_example_before_all_of_its_class():
    labels = np.array([0] * 70 + [1] * 20 + [4] * 10)
    source = BatchIndices(100, 25, 12, seed=3, labels=labels)
    passes = np.concatenate([source[step] for step in range(12)]).reshape(3, 100)
    for visits in passes:
        assert sorted(np.bincount(labels[visits], minlength=5)[[0, 1, 4]]) == [33, 33, 34]
        for label, least, most in ((0, 0, 1), (1, 1, 2), (4, 3, 4)):
            times = np.bincount(visits, minlength=100)[labels == label]
            assert least <= times.min() and times.max() <= most
    assert passes[0].tolist() != passes[1].tolist()
    again = BatchIndices(100, 25, 12, seed=3, labels=labels)
    assert again[7].tolist() == source[7].tolist()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stream_has_the_order_of_the_indices_for_any_number_of_workers(num_workers):
    split = Numbers(50)
    source = BatchIndices(50, 8, num_steps=14, seed=5)
    indices = [batch["index"] for batch in index_iterator(source)]
    batches = list(stream_iterator(source, split, num_workers))
    assert len(batches) == len(indices) == 14
    for batch, expected in zip(batches, indices, strict=True):
        np.testing.assert_array_equal(batch["index"], expected)
        np.testing.assert_array_equal(batch["image"], split.read(expected)["image"])
        np.testing.assert_array_equal(batch["label"], split.read(expected)["label"])


def test_rows_of_all_processes_form_the_batch():
    source = BatchIndices(50, 8, 10, 5)
    whole = list(stream_iterator(source, Numbers(50), 0))
    parts = [list(stream_iterator(source, Numbers(50), 0, process, 4)) for process in range(4)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iterator_resumes_from_a_saved_state_with_any_number_of_processes_and_workers(num_workers):
    def start(*processes):
        return stream_iterator(BatchIndices(50, 8, 12, 5), Numbers(50), num_workers, *processes)

    iterator = start()
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [batch["index"].tolist() for batch in iterator]
    assert len(rest) == 7
    for place, number in ((0, 1), (1, 2)):
        resumed = start(place, number)
        resumed.set_state(state)
        rows = slice(place * 8 // number, (place + 1) * 8 // number)
        assert [batch["index"].tolist() for batch in resumed] == [batch[rows] for batch in rest]


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_padded_batches_have_one_size_and_every_example_once_in_order(num_examples, batch_size):
    batches = list(padded_batches(Numbers(num_examples), batch_size))
    assert {len(batch["image"]) for batch in batches} == {batch_size}
    kept = np.concatenate([batch["index"][batch["mask"] > 0] for batch in batches])
    np.testing.assert_array_equal(kept, np.arange(num_examples))


def test_split_in_memory_equals_the_split():
    split = Numbers(5000)
    loaded = InMemorySplit(split, "numbers")
    indices = np.array([4999, 0, 17, 17])
    for key, array in split.read(indices).items():
        np.testing.assert_array_equal(loaded.read(indices)[key], array)
    assert len(loaded) == 5000
    assert size_in_bytes(split) == 5000 * 6


def test_split_with_a_cache_name_is_generated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    split = Numbers(100)
    split.cache_name = "numbers_100"
    first = InMemorySplit(split, "numbers").arrays
    monkeypatch.setattr(split, "read", lambda indices: pytest.fail("the examples are generated again"))
    second = InMemorySplit(split, "numbers").arrays
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    split = Numbers(100)
    split.cache_name = "numbers_100"
    np.testing.assert_array_equal(InMemorySplit(split, "numbers").arrays["image"], first["image"])  # nothing is stored


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_damaged_cache_file_of_a_split_is_written_again(tmp_path, monkeypatch, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    split = Numbers(100)
    split.cache_name = "numbers_100"
    first = InMemorySplit(split, "numbers").arrays
    (file,) = tmp_path.rglob("numbers_100.npz")
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    second = InMemorySplit(split, "numbers").arrays
    assert all(np.array_equal(first[key], second[key]) for key in first)
    with np.load(file) as stored:
        assert set(stored) == set(first)


def test_altered_cache_file_of_a_split_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    split = Numbers(100)
    split.cache_name = "numbers_100"
    first = InMemorySplit(split, "numbers").arrays
    (file,) = tmp_path.rglob("numbers_100.npz")
    content = bytearray(file.read_bytes())
    content[400] ^= 255  # in the first array
    file.write_bytes(content)
    second = InMemorySplit(split, "numbers").arrays
    assert all(np.array_equal(first[key], second[key]) for key in first)
