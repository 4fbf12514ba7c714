"""Data sets by name, and the pipelines that feed them to a device."""

import importlib
from pathlib import Path

# A name is imported when it is asked for, so that a set's own needs burden nobody else. An entry is a builder, prepared
# once by scripts/prepare_data.py, or a class made when asked for, as `attribute(split, **options)`.
DATASETS = {
    "affectnet": "affect_jax.data.affectnet:Affectnet",
    "coco_json": "affect_jax.data.coco_json:CocoJson",
    "darkface": "affect_jax.data.darkface:Darkface",
    "drawn_faces": "affect_jax.data.drawn_faces:DrawnFaces",
    "drawn_scenes": "affect_jax.data.drawn_scenes:DrawnScenes",
    "fer2013": "affect_jax.data.fer2013:Fer2013",
    "ferplus": "affect_jax.data.ferplus:Ferplus",
    "folder": "affect_jax.data.folder:Folder",
    "widerface": "affect_jax.data.widerface:Widerface",
}

SPLITS = ("train", "val", "test")


def find_dataset(name: str) -> type:
    """The class behind `name`; ValueError on an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(sorted(DATASETS))}")
    module, attribute = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def open_split(name: str, split: str, data_dir: str | Path = "data", **options):
    """The split "train", "val" or "test" of the set called `name`.

    A set of faces in classes has `class_names`, `image_shape` (H, W, C), `len`, `labels()` int32 [N], and
    `read(indices)` -> dict of arrays: image uint8 [B, H, W, C] (RGB), label int32 [B], and where the set has them votes
    float32 [B, K] (sum 1) and valence_arousal float32 [B, 2].

    A set of P pictures with boxes has `class_names`, `len`, `sizes()` int32 [P, 2] (height, width), `box_counts()`
    int32 [P], `places(indices)` -> names, `boxes(index)` float32 [N, 4], `annotations(index)` -> dict of boxes, label
    int32 [N] (places in class_names) and ignore bool [N] (evaluation neither counts nor punishes such a box), and
    `read_image(index)` -> these and image uint8 [H, W, 3] (RGB, of its own size). It pickles.

    An option given as a mapping from splits holds a value for each. ValueError on an
    unknown name, FileNotFoundError, with the command to run, on a set not prepared.
    """
    dataset = find_dataset(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    options = {key: value[split] if hasattr(value, "keys") else value for key, value in options.items()}
    if hasattr(dataset, "prepare"):
        return dataset.open_split(split, data_dir, **options)
    return dataset(split, **options)
