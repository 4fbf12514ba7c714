"""Batches of one size from a split of images with boxes: buckets, streaming, padded batches for evaluation.

B batch, N boxes padded, P images of a split, (H, W) a bucket: the size of a batch's images.

A batch is a dict: image uint8 [B, H, W, 3], boxes float32 [B, N, 4] (pixels of `image`), label int32 [B, N], box_mask
bool [B, N] (False: padding, zeros), ignore bool [B, N], image_size int32 [B, 2] (height and width without padding),
scale float32 [B] (pixels of `image` per pixel of the original), index int32 [B] (position in the split). The boxes of
an image begin with at most max_boxes true boxes; the remaining places are for ignored regions, MAX_IGNORED of them in
training.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from affect_jax.data.pipeline import BatchIterator, HostBatch, process_rows, read_ahead
from affect_jax.data.transforms import transform
from affect_jax.data.windows import fitting_scale, pad, resize

Size = tuple[int, int]
MAX_IGNORED = 32
"""Ignored regions of an image in a batch. More are merged, so that no known object becomes background."""


class BatchPlan(NamedTuple):
    """The images of training batch number `step`."""

    step: int
    bucket: Size
    indices: np.ndarray  # int32 [B]


def choose_buckets(sizes: np.ndarray, buckets: Sequence[Size]) -> np.ndarray:
    """Return the bucket of each image: int32 [P], positions in `buckets`; `sizes` are heights and widths [P, 2].

    The bucket that reduces the image least is chosen; of several, the one with the smallest area, then the one with the
    largest scale.
    """
    scales = np.array([[fitting_scale(size, bucket) for bucket in buckets] for size in sizes]).reshape(-1, len(buckets))
    areas = np.broadcast_to([height * width for height, width in buckets], scales.shape)
    best_first = np.lexsort((-scales, areas, -np.minimum(scales, 1)), axis=-1)
    return best_first[:, 0].astype(np.int32)


Limits = Sequence[tuple[np.ndarray, int]]
"""Pairs (indices of images, int32; largest number of these images in an epoch). An image is in one pair at most."""


def find_limited(image_names: Sequence[str], limits: Sequence[tuple[str, int]]) -> Limits:
    """Return the images of each limit (regex, number): those whose name the regex matches, and no earlier regex.

    ValueError if a regex matches no image.
    """
    first = np.array(
        [next((n for n, (regex, _) in enumerate(limits) if re.search(regex, name)), -1) for name in image_names]
    )
    found = [(np.flatnonzero(first == n).astype(np.int32), number) for n, (_, number) in enumerate(limits)]
    if empty := [regex for (regex, _), (images, _) in zip(limits, found, strict=True) if not len(images)]:
        raise ValueError(f"config.data.epoch_limits: {empty[0]!r} matches no further training image")
    return found


def apply_limits(order: np.ndarray, limits: Limits) -> np.ndarray:
    """Return the images [P] in the same order, without those of a limit beyond its first `number`."""
    surplus = [order[np.isin(order, images)][number:] for images, number in limits]
    return order[~np.isin(order, np.concatenate([order[:0], *surplus]))]


class BucketBatches:
    """Random-access source for grain: the plan of training batch number `step`, whose images share a bucket.

    An epoch visits every image at least once: the last batch of each bucket is filled with images of the same bucket.
    Images of `limits` are an exception: each epoch draws some of them. Buckets share the number of a limit in
    proportion to its images. The order depends only on the seed and the epoch.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        buckets: Sequence[Size],
        batch_size: int,
        num_steps: int,
        seed: int,
        limits: Limits = (),
    ):
        self.buckets = [(int(height), int(width)) for height, width in buckets]
        chosen = choose_buckets(sizes, self.buckets)
        self.members = [np.flatnonzero(chosen == index).astype(np.int32) for index in range(len(self.buckets))]
        self.limits = [[] for _ in self.members]
        for images, number in limits:
            ends = np.cumsum([0, *(np.isin(images, members).sum() for members in self.members)])
            for own_limits, share in zip(self.limits, np.diff(number * ends // len(images)), strict=True):
                own_limits.append((images, int(share)))  # integers whose sum is the number of the limit
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.steps_per_epoch = sum(
            -(-len(apply_limits(*some)) // batch_size) for some in zip(self.members, self.limits, strict=True)
        )
        self._epochs: dict[int, list[tuple[int, np.ndarray]]] = {}  # the epoch that was last asked for

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> BatchPlan:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs = {epoch: self._plan_epoch(epoch)}
        bucket, indices = self._epochs[epoch][position]
        return BatchPlan(step, self.buckets[bucket], indices)

    def _plan_epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for bucket, (members, limits) in enumerate(zip(self.members, self.limits, strict=True)):
            visits = apply_limits(rng.permutation(members), limits)
            order = np.resize(visits, -(-len(visits) // self.batch_size) * self.batch_size)
            batches += [(bucket, batch) for batch in order.reshape(-1, self.batch_size)]
        return [batches[index] for index in rng.permutation(len(batches))]


class ReadImages:
    """Callable that reads this process's rows of a plan.

    Each image is transformed by a generator seeded with (seed, step, row).
    """

    def __init__(
        self, split, seed: int, max_boxes: int, settings: Mapping, process_index: int = 0, process_count: int = 1
    ):
        self.split, self.seed, self.max_boxes, self.settings = split, seed, max_boxes, dict(settings)
        self.process_index, self.process_count = process_index, process_count

    def __call__(self, plan: BatchPlan) -> HostBatch:
        """Read and transform."""
        rows = process_rows(len(plan.indices), self.process_index, self.process_count)
        rngs = [np.random.default_rng((self.seed, plan.step, row)) for row in range(len(plan.indices))[rows]]
        return read_batch(self.split, plan.indices[rows], plan.bucket, rngs, self.max_boxes, MAX_IGNORED, self.settings)


def read_batch(
    split,
    indices: np.ndarray,
    bucket: Size,
    rngs: Sequence[np.random.Generator],
    max_boxes: int,
    max_ignored: int,
    settings: Mapping,
) -> HostBatch:
    """Return the batch of the images at `indices`, each transformed with `settings` by its generator of `rngs`."""
    examples = []
    for index, rng in zip(indices, rngs, strict=True):
        example = transform(**split.read_image(int(index)), bucket=bucket, rng=rng, **settings)
        padded = pad_boxes(example["boxes"], example["label"], example["ignore"], max_boxes, max_ignored)
        examples.append({**example, **padded})
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {**batch, "index": np.asarray(indices, np.int32)}


def pad_boxes(
    boxes: np.ndarray, label: np.ndarray, ignore: np.ndarray, max_boxes: int, max_ignored: int = MAX_IGNORED
) -> dict[str, np.ndarray]:
    """Return boxes, label, ignore and box_mask of length max_boxes + max_ignored, the ignored boxes last.

    The largest max_boxes true boxes stay true. The others become ignored, so that a network does not learn them as
    background. Where there are more than max_ignored ignored boxes, neighbours are merged into one region.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.sort(np.lexsort((-areas, ignore))[: min(max_boxes, int(np.sum(~ignore)))])
    regions = merge_boxes(np.delete(boxes, kept, axis=0), max_ignored)
    counts = np.array([len(kept), len(regions)])
    missing_true, missing_ignored = (max_boxes, max_ignored) - counts
    return {
        "boxes": np.concatenate(
            [np.pad(boxes[kept], ((0, missing_true), (0, 0))), np.pad(regions, ((0, missing_ignored), (0, 0)))]
        ),
        "label": np.pad(label[kept], (0, missing_true + max_ignored)),
        "ignore": np.pad(np.ones(len(regions), bool), (max_boxes, missing_ignored)),
        "box_mask": np.concatenate([np.arange(max_boxes) < counts[0], np.arange(max_ignored) < counts[1]]),
    }


def merge_boxes(boxes: np.ndarray, count: int) -> np.ndarray:
    """Return boxes [N, 4] as at most `count` boxes that cover them: bounding boxes of groups of neighbours.

    Groups are made like the leaves of a k-d tree: the largest group is split at the median of its centers, along the
    axis on which they are spread most.
    """
    groups = [boxes] if len(boxes) > count else [boxes[row : row + 1] for row in range(len(boxes))]
    while len(groups) < min(count, len(boxes)):
        group = groups.pop(int(np.argmax([len(group) for group in groups])))
        centers = (group[:, :2] + group[:, 2:]) / 2
        order = np.argsort(centers[:, np.ptp(centers, axis=0).argmax()], kind="stable")
        groups += [group[half] for half in np.array_split(order, 2)]
    merged = [np.concatenate([group[:, :2].min(axis=0), group[:, 2:].max(axis=0)]) for group in groups]
    return np.array(merged, boxes.dtype).reshape(-1, 4)


def describe_surplus(split, max_boxes: int) -> str:
    """Return a line on images with more than max_boxes true boxes, some of which training ignores; "" without any."""
    crowded = np.flatnonzero(split.box_counts() > max_boxes)
    counts = np.array([np.sum(~split.annotations(int(index))["ignore"]) for index in crowded])
    counts = counts[counts > max_boxes]
    if not len(counts):
        return ""
    return (
        f"{len(counts):,} of {len(split):,} training images have more than config.data.max_boxes = {max_boxes} boxes"
        f" (at most {counts.max():,}); their smallest {np.sum(counts - max_boxes):,} boxes are ignored in training,"
        " neither learned as objects nor as background"
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
) -> BatchIterator:
    """Return an iterator over this process's rows of the training batches, the same for any number of workers.

    `settings` are keyword arguments of `transform`. The state of the iterator goes into the checkpoint.
    """
    read = ReadImages(split, source.seed, max_boxes, settings, process_index, process_count)
    return read_ahead(source, (read,), num_workers)


def enlarge(batch: HostBatch, factor: float) -> HostBatch:
    """Return a batch whose images are `factor` times as large; ValueError if a side would not be a multiple of 32."""
    if factor == 1:
        return batch
    sides = [side * factor for side in batch["image"].shape[1:3]]
    if any(side % 32 for side in sides):
        raise ValueError(
            f"images enlarged {factor:g} times are {sides[0]:g}x{sides[1]:g}; both sides must be multiples of 32:"
            " choose another factor, for example 1.5"
        )
    size = int(sides[0]), int(sides[1])
    shown = [image[:height, :width] for image, (height, width) in zip(batch["image"], batch["image_size"], strict=True)]
    enlarged = [resize(image, factor) for image in shown]
    return {
        **batch,
        "image": np.stack([pad(image, size) for image in enlarged]),
        "image_size": np.array([image.shape[:2] for image in enlarged], np.int32),
        "boxes": batch["boxes"] * np.float32(factor),
        "scale": batch["scale"] * np.float32(factor),
    }


class EvaluationPlan(NamedTuple):
    """The images of an evaluation batch."""

    bucket: Size
    indices: np.ndarray  # int32 [B]
    mask: np.ndarray  # float32 [B], 0 where an image is repeated to fill the batch


class ReadEvaluationBatch:
    """Callable that reads `rows` of a plan; each image is transformed by a generator seeded with (seed, index)."""

    def __init__(self, split, max_boxes: int, max_ignored: int, settings: Mapping, seed: int, rows: slice):
        self.split, self.max_boxes, self.max_ignored = split, max_boxes, max_ignored
        self.settings, self.seed, self.rows = dict(settings), seed, rows

    def __call__(self, plan: EvaluationPlan) -> HostBatch:
        """Read each image once, and repeat the rows that fill the batch."""
        wanted, copies = np.unique(plan.indices[self.rows], return_inverse=True)
        rngs = [np.random.default_rng((self.seed, int(index))) for index in wanted]
        batch = read_batch(self.split, wanted, plan.bucket, rngs, self.max_boxes, self.max_ignored, self.settings)
        return {**{name: array[copies] for name, array in batch.items()}, "mask": plan.mask[self.rows]}


def padded_box_batches(
    split,
    batch_size: int,
    buckets: Sequence[Size],
    max_boxes: int | None = None,
    settings: Mapping = MappingProxyType({}),
    seed: int = 0,
    rows: slice = slice(None),
    num_workers: int = 0,
) -> Iterator[HostBatch]:
    """Return an iterator over every image once, bucket by bucket, with `mask` float32 [B] added to each batch.

    The last batch of each bucket repeats images where `mask` is 0. Only `rows` of every batch are read and returned.
    `max_boxes` None has room for all boxes of the split. `settings` are keyword arguments of `transform`, to evaluate
    on changed images; the draws depend only on `seed` and the image. Images are read in a thread, or in `num_workers`
    processes that start with this call; the batches are the same for any number.
    """
    max_ignored = MAX_IGNORED
    if max_boxes is None:
        max_boxes = max_ignored = max(1, int(split.box_counts().max(initial=0)))
    chosen = choose_buckets(split.sizes(), buckets)
    plans = []
    for index, bucket in enumerate(buckets):
        members = np.flatnonzero(chosen == index).astype(np.int32)
        for start in range(0, len(members), batch_size):
            indices = members[start : start + batch_size]
            mask = (np.arange(batch_size) < len(indices)).astype(np.float32)
            plans.append(EvaluationPlan(tuple(bucket), np.resize(indices, batch_size), mask))
    read = ReadEvaluationBatch(split, max_boxes, max_ignored, settings, seed, rows)
    return read_ahead(plans, (read,), num_workers)
