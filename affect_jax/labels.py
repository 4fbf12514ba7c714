"""Class names of every data set, in the order of their integer labels, and remaps between them by name."""

import numpy as np

FER2013 = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The challenge's order: `emotion` 0 to 6 of fer2013.csv."""

FERPLUS = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
"""The order of the first eight vote columns of fer2013new.csv."""

AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
"""The publishers' order: `expression` 0 to 7; what they call anger is angry here, as everywhere."""


def remap(source: tuple[str, ...], target: tuple[str, ...]) -> np.ndarray:
    """Lookup table [len(source)] int32 from labels of `source` to labels of `target`; -1 where a name is absent."""
    return np.array([target.index(name) if name in target else -1 for name in source], np.int32)
