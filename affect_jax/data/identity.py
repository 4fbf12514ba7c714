"""Identity of a split, which ties a run and its predictions to the images that they were made from."""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from affect_jax.data.split import Split


class SplitIdentity(NamedTuple):
    """Class names, size and fingerprint of a split, to tell whether two splits are the same."""

    class_names: tuple[str, ...]
    num_images: int
    """0 if unknown."""
    fingerprint: str
    """Hash of all images and labels; "" if unknown, and for generated images."""


def identify(split: Split) -> SplitIdentity:
    """Return the identity of a split."""
    return SplitIdentity(tuple(split.class_names), len(split), split.fingerprint)


def difference(first: SplitIdentity, second: SplitIdentity) -> str:
    """Return the first difference, as "the classes a, b and the classes b, c"; "" if the known facts are equal."""
    if first.class_names != second.class_names:
        return " and ".join(f"the classes {', '.join(each.class_names)}" for each in (first, second))
    if first.num_images != second.num_images and first.num_images and second.num_images:
        return f"{first.num_images:,} and {second.num_images:,} images"
    if first.fingerprint != second.fingerprint and first.fingerprint and second.fingerprint:
        return f"images or labels with the fingerprints {first.fingerprint} and {second.fingerprint}"
    return ""


def to_text(identity: SplitIdentity) -> str:
    """Return the identity as text for a file of predictions."""
    return json.dumps(identity._asdict())


def from_text(text: str) -> SplitIdentity:
    """Return the identity that to_text wrote."""
    fields = json.loads(text)
    return SplitIdentity(**{**fields, "class_names": tuple(fields["class_names"])})


class Fingerprint:
    """Hash of arrays by name, such as the examples of a split in their order."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, example: Mapping[str, object]) -> None:
        """Add the values of an example, arrays, numbers or bytes, without its origin."""
        for name in sorted(example.keys() - {"file", "row"}):
            value = example[name]
            array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value)
            self._hash.update(f"{name} {array.dtype} {array.shape}".encode())
            self._hash.update(array)

    def text(self) -> str:
        """Return the hash as 16 hexadecimal digits."""
        return self._hash.hexdigest()
