"""What makes figures on a data set doubtful: copies across splits, copies with different labels, pictures of nothing.

N images of a split, D bits of a hash (64), T side of a thumbnail.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

THUMBNAIL = 48
READ_BATCH = 2048
COMPARED_AT_ONCE = 1 << 22

# Looked at on FER2013: of the 28 pairs next above .9, 26 show one photograph (other crop, grain or watermark), of 42
# pairs further up all do, at .85 half show two people. Hashes over 10 bits apart bring a thousand candidates for each.
MAX_DISTANCE = 10
MIN_CORRELATION = 0.9


class Fingerprints(NamedTuple):
    """What an audit keeps of a split: 2 KB an image, whatever the images' size."""

    digests: list[bytes]
    hashes: np.ndarray  # uint64 [N], difference hash
    thumbnails: np.ndarray  # uint8 [N, T, T], gray
    labels: np.ndarray  # int32 [N]
    constant: np.ndarray  # bool [N]


def audit(splits: Mapping[str, object]) -> dict:
    """Copies, conflicting labels and constant images of the splits of one data set, as a JSON-able dict.

    Images are identical where all pixels are; nearly so, across splits only, where the 64-bit difference hashes are
    within MAX_DISTANCE and the gray thumbnails correlate by MIN_CORRELATION or more. Constant means a standard
    deviation below one gray level; such images are no copies of each other.
    """
    prints = {name: fingerprints(split, name) for name, split in splits.items()}
    exact = exact_groups(prints)
    near = {pair: near_pairs(prints[pair[0]], prints[pair[1]]) for pair in combinations(prints, 2)}
    class_names = next(iter(splits.values())).class_names

    def image(split: str, index: int) -> dict:
        """One image, for a reader."""
        places = getattr(splits[split], "places", None)
        return {
            "split": split,
            "index": int(index),
            "source": places(np.array([index]))[0] if places else f"{split}[{index}]",
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


def fingerprints(split, name: str) -> Fingerprints:
    """One pass over a split."""
    digests, hashes, thumbnails, labels, constant = [], [], [], [], []
    for start in tqdm(range(0, len(split), READ_BATCH), desc=f"reading {name}", delay=2, leave=False):
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
    """64 bits of uint8 [H, W]: in an 8x9 thumbnail, which pixels are darker than their right neighbour."""
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).view(np.uint64)[0]


def exact_groups(prints: Mapping[str, Fingerprints]) -> list[list[tuple[str, int]]]:
    """Groups of two or more identical images, each as (split, index), constant ones left out."""
    groups = defaultdict(list)
    for name, split in prints.items():
        for index, digest in enumerate(split.digests):
            if not split.constant[index]:
                groups[digest].append((name, index))
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(first: Fingerprints, second: Fingerprints) -> list[tuple[int, int, int, float]]:
    """(index in first, in second, distance in bits, correlation) of images that are nearly the same, not quite."""
    pairs = []
    rows = max(1, COMPARED_AT_ONCE // len(first.hashes))
    for start in tqdm(range(0, len(second.hashes), rows), desc="comparing", delay=2, leave=False):
        distance = np.bitwise_count(second.hashes[start : start + rows, None] ^ first.hashes)
        j, i = np.nonzero(distance <= MAX_DISTANCE)
        distance, j = distance[j, i], j + start
        correlations = correlation(first.thumbnails[i], second.thumbnails[j])
        for k in np.nonzero(correlations >= MIN_CORRELATION)[0]:
            if first.digests[i[k]] != second.digests[j[k]]:
                pairs.append((int(i[k]), int(j[k]), int(distance[k]), float(correlations[k])))
    return pairs


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the pixels, float32 [N], of uint8 [N, T, T] each; 0 where one of the two is constant."""
    first, second = (images.reshape(len(images), THUMBNAIL**2).astype(np.float32) for images in (first, second))
    first -= first.mean(1, keepdims=True)
    second -= second.mean(1, keepdims=True)
    norm = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / np.where(norm > 0, norm, 1)


def summarize(prints: Mapping[str, Fingerprints], exact: list, near: dict) -> dict[str, dict]:
    """Images of each split that are concerned; `nearly_identical_to` counts those without an identical one there."""
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
