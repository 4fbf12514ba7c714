"""From a split of pictures with boxes to batches of one size: buckets, streaming, padded batches for evaluation.

B batch, N boxes padded, P pictures of a split, (H, W) a bucket: the size that pictures are brought to.

A batch is a dict: image uint8 [B, H, W, 3], boxes float32 [B, N, 4] (pixels of `image`), label int32 [B, N], box_mask
bool [B, N] (False: padding, zeros), ignore bool [B, N], image_size int32 [B, 2] (height and width of what is not
padding), scale float32 [B] (pixels of `image` per pixel of the picture), index int32 [B] (the place in the split).
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import grain
import numpy as np
from absl import logging

from affect_jax.data.pipeline import Batch, read_ahead
from affect_jax.data.transforms import fitting_scale, transform

Size = tuple[int, int]


class BatchPlan(NamedTuple):
    """Which pictures make up training batch number `step`."""

    step: int
    bucket: Size
    indices: np.ndarray  # int32 [B]


def choose_buckets(sizes: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """The bucket that shrinks each picture least; of equal ones the least in area, and then the one it is largest in.

    `sizes` are heights and widths, [P, 2]; gives int32 [P], places in `buckets`.
    """
    scales = np.array([[fitting_scale(size, bucket) for bucket in buckets] for size in sizes]).reshape(-1, len(buckets))
    areas = np.broadcast_to([height * width for height, width in buckets], scales.shape)
    best_first = np.lexsort((-scales, areas, -np.minimum(scales, 1)), axis=-1)
    return best_first[:, 0].astype(np.int32)


class BucketBatches:
    """The plan of training batch number `step`, all of one bucket; a random-access source for grain.

    A pass visits every picture at least once: each bucket's last batch is filled up with pictures of the same bucket.
    The order depends on seed and pass alone.
    """

    def __init__(self, sizes: np.ndarray, buckets: Sequence[Size], batch_size: int, num_steps: int, seed: int):
        self.buckets = [(int(height), int(width)) for height, width in buckets]
        chosen = choose_buckets(sizes, self.buckets)
        self.members = [np.flatnonzero(chosen == place).astype(np.int32) for place in range(len(self.buckets))]
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.steps_per_pass = sum(-(-len(some) // batch_size) for some in self.members)
        self._passes: dict[int, list[tuple[int, np.ndarray]]] = {}  # of the last one asked for

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> BatchPlan:
        number, place = divmod(step, self.steps_per_pass)
        if number not in self._passes:
            self._passes = {number: self._plan_pass(number)}
        bucket, indices = self._passes[number][place]
        return BatchPlan(step, self.buckets[bucket], indices)

    def _plan_pass(self, number: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self.seed, number))
        batches = []
        for bucket, members in enumerate(self.members):
            order = np.resize(rng.permutation(members), -(-len(members) // self.batch_size) * self.batch_size)
            batches += [(bucket, batch) for batch in order.reshape(-1, self.batch_size)]
        return [batches[place] for place in rng.permutation(len(batches))]


class ReadImages(grain.transforms.Map):
    """A plan to this process' rows of its batch, each transformed by draws of its own: (seed, step, row)."""

    def __init__(
        self, split, seed: int, max_boxes: int, settings: Mapping, process_index: int = 0, process_count: int = 1
    ):
        self.split, self.seed, self.max_boxes, self.settings = split, seed, max_boxes, dict(settings)
        self.process_index, self.process_count = process_index, process_count

    def map(self, plan: BatchPlan) -> Batch:
        """Read and transform."""
        share = len(plan.indices) // self.process_count
        rows = range(self.process_index * share, (self.process_index + 1) * share)
        rngs = [np.random.default_rng((self.seed, plan.step, row)) for row in rows]
        indices = plan.indices[rows.start : rows.stop]
        return read_batch(self.split, indices, plan.bucket, rngs, self.max_boxes, self.settings)


def read_batch(
    split,
    indices: np.ndarray,
    bucket: Size,
    rngs: Sequence[np.random.Generator],
    max_boxes: int,
    settings: Mapping,
) -> Batch:
    """The batch of the pictures at `indices`, transformed as `settings` say by draws from `rngs`, one a picture."""
    examples = []
    for index, rng in zip(indices, rngs, strict=True):
        picture = split.read_image(int(index))
        example = transform(**picture, bucket=bucket, rng=rng, **settings)
        examples.append({**example, **pad_boxes(example["boxes"], example["label"], example["ignore"], max_boxes)})
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {**batch, "index": np.asarray(indices, np.int32)}


def pad_boxes(boxes: np.ndarray, label: np.ndarray, ignore: np.ndarray, max_boxes: int) -> dict[str, np.ndarray]:
    """boxes, label, ignore and box_mask of length max_boxes; of more boxes the largest stay, ignored ones last."""
    if len(boxes) > max_boxes:
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        kept = np.sort(np.lexsort((-areas, ignore))[:max_boxes])
        boxes, label, ignore = boxes[kept], label[kept], ignore[kept]
    missing = max_boxes - len(boxes)
    return {
        "boxes": np.pad(boxes, ((0, missing), (0, 0))),
        "label": np.pad(label, (0, missing)),
        "ignore": np.pad(ignore, (0, missing)),
        "box_mask": np.arange(max_boxes) < len(boxes),
    }


def warn_of_lost_boxes(split, max_boxes: int) -> None:
    """Tell how many pictures have more than max_boxes boxes, and how many of them are left out."""
    over = split.box_counts() - max_boxes
    if (over > 0).any():
        logging.warning(
            "%d of %d pictures have more than max_boxes=%d boxes (at most %d): the smallest %d boxes are left out",
            *((over > 0).sum(), len(over), max_boxes, over.max() + max_boxes, over[over > 0].sum()),
        )


def boxes_stream_iterator(
    source: BucketBatches,
    split,
    *,
    max_boxes: int,
    settings: Mapping,
    num_workers: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Iterator over this process' rows of a run's batches; the same ones whatever the number of workers.

    `settings` are those of `transform`. Its state goes into the checkpoint.
    """
    warn_of_lost_boxes(split, max_boxes)
    read = ReadImages(split, source.seed, max_boxes, settings, process_index, process_count)
    batches = grain.MapDataset.source(source).map(read)
    return read_ahead(batches, num_workers)


def padded_box_batches(
    split,
    batch_size: int,
    buckets: Sequence[Size],
    max_boxes: int | None = None,
    settings: Mapping = MappingProxyType({}),
    seed: int = 0,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """Every picture once, bucket by bucket; the last batch of each repeats some where `mask` float32 [B] is 0.

    Of every batch, `rows` are read and given.

    `max_boxes` None has room for all boxes of the split. `settings` are those of `transform`, to evaluate on pictures
    made dark or bright: draws depend on `seed` and the picture's place alone.
    """
    if max_boxes is None:
        max_boxes = max(1, int(split.box_counts().max(initial=0)))
    else:
        warn_of_lost_boxes(split, max_boxes)
    chosen = choose_buckets(split.sizes(), buckets)
    for place, bucket in enumerate(buckets):
        members = np.flatnonzero(chosen == place).astype(np.int32)
        for start in range(0, len(members), batch_size):
            indices = members[start : start + batch_size]
            mask = np.arange(batch_size) < len(indices)
            padded = np.resize(indices, batch_size)
            wanted, copies = np.unique(padded[rows], return_inverse=True)
            rngs = [np.random.default_rng((seed, int(index))) for index in wanted]
            batch = read_batch(split, wanted, tuple(bucket), rngs, max_boxes, settings)
            yield {**{name: array[copies] for name, array in batch.items()}, "mask": mask[rows].astype(np.float32)}
