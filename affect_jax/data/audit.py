"""Problems of a data set: copies across splits, copies with different labels, constant images.

N images of a split, T side of a thumbnail.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from affect_jax.data.split import BoxesSplit, FacesSplit

THUMBNAIL = 48
READ_BATCH = 2048
COMPARED_AT_ONCE = 1 << 22

# Chosen by looking at FER2013. Of the 28 pairs just above a correlation of 0.9, 26 show the same photograph with a
# different crop, grain or watermark; all of 42 pairs with a higher correlation do; at 0.85 half of the pairs show two
# people. A distance above 10 bits gives a thousand candidates for each image.
MAX_DISTANCE = 10
MIN_CORRELATION = 0.9


class Fingerprints(NamedTuple):
    """Fingerprints of a split: 2 KB for each image, independent of its size."""

    digests: list[bytes]
    hashes: np.ndarray  # uint64 [N], difference hash
    thumbnails: np.ndarray  # uint8 [N, T, T], gray
    labels: np.ndarray  # int32 [N]
    constant: np.ndarray  # bool [N]


def audit(splits: Mapping[str, FacesSplit | BoxesSplit]) -> dict:
    """Find copies, conflicting labels and constant images in the splits of a data set; return a dict for JSON.

    Images are identical if all pixels are equal. Images of different splits are nearly identical if their 64-bit
    difference hashes differ by at most MAX_DISTANCE bits and their gray thumbnails have a correlation of at least
    MIN_CORRELATION. An image is constant if its standard deviation is below one gray level; constant images do not
    count as copies. ValueError for images with boxes.
    """
    if any(isinstance(split, BoxesSplit) for split in splits.values()):
        raise ValueError("only data sets of images with one label each can be audited, not images with boxes")
    prints = {name: fingerprints(split, name) for name, split in splits.items()}
    exact = exact_groups(prints)
    near = {pair: near_pairs(prints[pair[0]], prints[pair[1]]) for pair in combinations(prints, 2)}
    class_names = next(iter(splits.values())).class_names

    def image(split: str, index: int) -> dict:
        """Describe one image."""
        return {
            "split": split,
            "index": int(index),
            "source": splits[split].image_names(np.array([index]))[0],
            "label": class_names[prints[split].labels[index]],
        }

    groups = [[image(*member) for member in group] for group in exact]
    return {
        "num_images": {name: len(split) for name, split in splits.items()},
        "summary": summarize(prints, exact, near),
        "constant": [image(name, index) for name in prints for index in np.nonzero(prints[name].constant)[0]],
        "identical": groups,
        "conflicting_labels": [group for group in groups if len({member["label"] for member in group}) > 1],
        "nearly_identical": [
            {
                "images": [image(first, i), image(second, j)],
                "distance": int(distance),
                "correlation": float(correlation),
            }
            for (first, second), pairs in near.items()
            for i, j, distance, correlation in pairs
        ],
    }


def fingerprints(split: FacesSplit, name: str) -> Fingerprints:
    """Compute the fingerprints of a split in one pass."""
    digests, hashes, thumbnails, labels, constant = [], [], [], [], []
    for start in tqdm(range(0, len(split), READ_BATCH), f"reading {name}", delay=2, leave=False, disable=None):
        batch = split.read(np.arange(start, min(start + READ_BATCH, len(split))))
        for image in batch["image"]:
            gray = image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            digests.append(hashlib.blake2b(image, digest_size=16).digest())
            hashes.append(difference_hash(gray))
            thumbnails.append(cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA))
            constant.append(gray.std() < 1)
        labels.append(batch["label"])
    return Fingerprints(
        digests, np.array(hashes, np.uint64), np.stack(thumbnails), np.concatenate(labels), np.array(constant)
    )


def difference_hash(gray: np.ndarray) -> np.uint64:
    """Return the 64-bit difference hash of uint8 [H, W]: pixels of an 8x9 thumbnail darker than the next in the row."""
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).view(np.uint64)[0]


def exact_groups(prints: Mapping[str, Fingerprints]) -> list[list[tuple[str, int]]]:
    """Return groups of two or more identical images as (split, index), without constant images."""
    groups = defaultdict(list)
    for name, split in prints.items():
        for index, digest in enumerate(split.digests):
            if not split.constant[index]:
                groups[digest].append((name, index))
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(first: Fingerprints, second: Fingerprints) -> list[tuple[int, int, int, float]]:
    """Return (index in first, index in second, distance in bits, correlation) of nearly identical images.

    Constant images are left out.
    """
    pairs = []
    rows = max(1, COMPARED_AT_ONCE // len(first.hashes))
    for start in tqdm(range(0, len(second.hashes), rows), "comparing", delay=2, leave=False, disable=None):
        distance = np.bitwise_count(second.hashes[start : start + rows, None] ^ first.hashes)
        may_be_copy = ~second.constant[start : start + rows, None] & ~first.constant
        j, i = np.nonzero((distance <= MAX_DISTANCE) & may_be_copy)
        distance, j = distance[j, i], j + start
        correlations = correlation(first.thumbnails[i], second.thumbnails[j])
        for k in np.nonzero(correlations >= MIN_CORRELATION)[0]:
            if first.digests[i[k]] != second.digests[j[k]]:
                pairs.append((int(i[k]), int(j[k]), int(distance[k]), float(correlations[k])))
    return pairs


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of the pixels of two uint8 [N, T, T], float32 [N]; 0 where an image is constant."""
    first, second = (images.reshape(len(images), THUMBNAIL**2).astype(np.float32) for images in (first, second))
    first -= first.mean(1, keepdims=True)
    second -= second.mean(1, keepdims=True)
    norm = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(norm > 0, norm, 1)


def summarize(prints: Mapping[str, Fingerprints], exact: list, near: dict) -> dict[str, dict]:
    """Count affected images by split; `nearly_identical_to` excludes images with an identical image there."""
    identical = {name: defaultdict(set) for name in prints}
    similar = {name: defaultdict(set) for name in prints}
    conflicting = defaultdict(set)
    for group in exact:
        conflict = len({int(prints[name].labels[index]) for name, index in group}) > 1
        for position, (name, index) in enumerate(group):
            for other, _ in group[:position] + group[position + 1 :]:
                identical[name][other].add(index)
            if conflict:
                conflicting[name].add(index)
    for (first, second), pairs in near.items():
        for i, j, _, _ in pairs:
            similar[first][second].add(i)
            similar[second][first].add(j)
    return {
        name: {
            "constant": int(prints[name].constant.sum()),
            "conflicting_labels": len(conflicting[name]),
            "identical_to": {other: len(identical[name][other]) for other in prints},
            "nearly_identical_to": {
                other: len(similar[name][other] - identical[name][other]) for other in prints if other != name
            },
        }
        for name in prints
    }
