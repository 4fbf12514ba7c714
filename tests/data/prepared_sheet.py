"""A small FER2013 as a prepared data set: prepare it, read it again, compare it with its source."""

import numpy as np

from affect_jax.data import open_split
from affect_jax.data.fer2013 import Fer2013

USAGES = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}


def prepare(source, data_dir, **options):
    return Fer2013.prepare(data_dir, source=source, allow_other_counts=True, **options)


def read_all(data_dir, name="fer2013"):
    splits = {split: open_split(name, split, data_dir) for split in USAGES}
    return {split: of.read(np.arange(len(of))) for split, of in splits.items()}


def assert_is_sheet(data_dir, sheet):
    for split, batch in read_all(data_dir).items():
        indices = sheet.indices(USAGES[split])
        np.testing.assert_array_equal(batch["image"][..., 0], sheet.images[indices])
        np.testing.assert_array_equal(batch["label"], [sheet.emotions[i] for i in indices])
