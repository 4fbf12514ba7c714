"""Batches from a split: the order of examples, streaming, splits in memory, padded batches for evaluation.

B batch. A batch is a dict of arrays whose first axis is B: `image` uint8 [B, H, W, C], `label` int32 [B], `index`
int32 [B] (the position of the example in its split) and further arrays of the split.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from affect_jax.data.split import FacesSplit
from affect_jax.files import cache_folder, whole_file

HostBatch = dict[str, np.ndarray]


class BatchIterator(Protocol):
    """Iterator over the batches of a run, whose state goes into the checkpoint: grain's DatasetIterator."""

    def __next__(self) -> HostBatch: ...

    def get_state(self) -> dict[str, Any]:
        """Return the position."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue at a position."""

    def close(self) -> None:
        """Stop reading."""


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return the order of the examples in an epoch, int32 [num_examples]."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)


def balanced_epoch_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Return an order of N examples, int32 [N], in which every class of labels [N] has the same share.

    No example of a class is repeated before all others of the class were visited.
    """
    rng = np.random.default_rng((seed, epoch))
    classes = np.unique(labels)
    visits = []
    for index, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        share = (len(labels) + index) // len(classes)
        passes = [rng.permutation(members) for _ in range(-(-share // len(members)))]
        visits.append(np.concatenate(passes)[:share])
    return rng.permutation(np.concatenate(visits)).astype(np.int32)


class BatchIndices:
    """Random-access source for grain: indices int32 [B] of training batch number `step`; a batch may span two epochs.

    Whole batches are drawn because each costs one slice; drawing single examples costs more than augmenting them. With
    `labels` int [N] all classes are equally frequent, otherwise every example is visited once in an epoch.
    """

    def __init__(self, num_examples: int, batch_size: int, num_steps: int, seed: int, labels: np.ndarray | None = None):
        self.num_examples, self.batch_size, self.num_steps, self.seed = num_examples, batch_size, num_steps, seed
        self.labels = labels
        self._orders: dict[int, np.ndarray] = {}  # the epochs that were last asked for

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, start = divmod(step * self.batch_size, self.num_examples)
        pieces, missing = [], self.batch_size
        while missing:
            piece = self._order(epoch)[start : start + missing]
            pieces.append(piece)
            missing -= len(piece)
            epoch, start = epoch + 1, 0
        return np.concatenate(pieces)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {epoch - 1: self._orders[epoch - 1]} if epoch - 1 in self._orders else {}
            if self.labels is None:
                self._orders[epoch] = epoch_order(self.seed, epoch, self.num_examples)
            else:
                self._orders[epoch] = balanced_epoch_order(self.seed, epoch, self.labels)
        return self._orders[epoch]


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """Return the rows of a batch that belong to a process."""
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


class TakeRows:
    """Callable that takes this process's rows of a batch of indices."""

    def __init__(self, process_index: int, process_count: int):
        self.process_index, self.process_count = process_index, process_count

    def __call__(self, indices: np.ndarray) -> HostBatch:
        """Return {"index": int32 [B / process_count]}."""
        return {"index": indices[process_rows(len(indices), self.process_index, self.process_count)]}


class ReadExamples:
    """Callable that adds the examples of `split` at a batch's indices."""

    def __init__(self, split: FacesSplit):
        self.split = split

    def __call__(self, batch: HostBatch) -> HostBatch:
        """Read."""
        return {**self.split.read(batch["index"]), **batch}


def index_iterator(source: BatchIndices, process_index: int = 0, process_count: int = 1) -> BatchIterator:
    """Return an iterator over this process's rows of the batches, {"index": int32 [B]}, without reading examples."""
    import grain

    batches = grain.MapDataset.source(source).map(TakeRows(process_index, process_count))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def stream_iterator(
    source: BatchIndices, split: FacesSplit, num_workers: int, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """Return an iterator over this process's rows of the batches, in the order of `index_iterator`.

    The batches are the same for any number of workers.
    """
    return read_ahead(source, (TakeRows(process_index, process_count), ReadExamples(split)), num_workers)


def read_ahead(source: Sequence, transforms: Sequence[Callable], num_workers: int) -> BatchIterator:
    """Return an iterator over the items of `source`, each passed through the transforms.

    They are read in a thread, or in `num_workers` processes if that is not 0.
    """
    import grain  # here, because it takes half a second, and prediction does not need it

    batches = grain.MapDataset.source(source)
    for transform in transforms:
        batches = batches.map(transform)
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=4)
        batches = batches.mp_prefetch(options, worker_init_fn=end_with_parent)
    return iter(batches)


def end_with_parent(worker: int, num_workers: int) -> None:
    """End this worker when its parent process ends, and not before: Ctrl-C is sent to both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class InMemorySplit(FacesSplit):
    """A split in memory; `arrays` has all of its examples."""

    def __init__(self, split: FacesSplit, name: str):
        self._split = split
        self.class_names, self.image_shape = split.class_names, split.image_shape
        self.fingerprint, cached = split.fingerprint, split.cache_name
        self.arrays = read_once(split, name, cache_folder() / f"{cached}.npz") if cached else read_all(split, name)

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def labels(self) -> np.ndarray:
        """Return all labels."""
        return self.arrays["label"]

    def image_names(self, indices: np.ndarray) -> list[str]:
        """Return the names of the images in the source."""
        return self._split.image_names(indices)

    def read(self, indices: np.ndarray) -> HostBatch:
        """Return the examples at `indices`."""
        return {key: array[indices] for key, array in self.arrays.items()}


def read_once(split: FacesSplit, name: str, file: Path) -> HostBatch:
    """Return all examples of a split, from `file` if it is there and intact; otherwise write it, for the next run."""
    with suppress(OSError, EOFError, ValueError, BadZipFile), np.load(file) as stored:
        return dict(stored)
    arrays = read_all(split, name)
    with suppress(OSError):  # without the file, the next run takes longer
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as new:
            np.savez(new, **arrays)
    return arrays


def read_all(split: FacesSplit, name: str) -> HostBatch:
    """Return all examples of a split, with a progress bar on a terminal."""
    pieces = np.array_split(np.arange(len(split)), max(1, len(split) // 2048))
    batches = [split.read(piece) for piece in tqdm(pieces, f"reading {name}", delay=2, leave=False, disable=None)]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def spread_indices(length: int, count: int) -> np.ndarray:
    """Return up to `count` indices, int [N], spread evenly over `length` examples.

    Examples next to each other often have the same class.
    """
    return np.linspace(0, length - 1, min(count, length)).astype(int)


def size_in_bytes(split: FacesSplit) -> int:
    """Return the size of the split's images in memory, in bytes."""
    return len(split) * int(np.prod(split.image_shape))


def padded_batches(split: FacesSplit, batch_size: int) -> Iterator[HostBatch]:
    """Yield every example once, in order, in batches of one size.

    The last batch repeats its first row where `mask` float32 [B] is 0.
    """
    for start in range(0, len(split), batch_size):
        indices = np.arange(start, min(start + batch_size, len(split)), dtype=np.int32)
        mask = np.arange(batch_size) < len(indices)
        indices = np.concatenate([indices, np.full(batch_size - len(indices), start, np.int32)])
        yield {**split.read(indices), "index": indices, "mask": mask.astype(np.float32)}
