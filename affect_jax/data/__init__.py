"""Data sets by name, and the pipelines that feed them to a device."""

import importlib
from contextlib import suppress
from inspect import signature
from pathlib import Path

from affect_jax.data.source import MissingSplit
from affect_jax.data.split import BoxesSplit, FacesSplit

# A module is imported when its data set is used. An entry is a builder, prepared once by scripts/prepare_data.py, or a
# class `attribute(split, **options)` whose examples are generated.
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
    """Return the class of the data set `name`; ValueError on an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(sorted(DATASETS))}")
    module, attribute = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def open_split(name: str, split: str, data_dir: str | Path = "data", **options) -> FacesSplit | BoxesSplit:
    """Return the split "train", "val" or "test" of the data set `name`.

    An option may be a mapping from split to value. ValueError on an unknown name, MissingSplit if the data set or an
    option lacks the split; FileNotFoundError, with the command to run, if the data set is not prepared.
    """
    dataset = find_dataset(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known are {', '.join(SPLITS)}")
    for key, value in options.items():
        if hasattr(value, "keys") and split not in value:
            raise MissingSplit(f"{name} has no split {split}: the option {key} has no value for it")
    options = {key: value[split] if hasattr(value, "keys") else value for key, value in options.items()}
    is_prepared = hasattr(dataset, "prepare")
    parameters = dict(signature(dataset.open_split if is_prepared else dataset).parameters)
    known = {key: value for key, value in parameters.items() if key not in ("split", "data_dir")}
    if wrong := sorted(options.keys() - known):
        raise ValueError(f"{name} has no option {', '.join(wrong)}; its options are: {', '.join(known) or 'none'}")
    if missing := [key for key, value in known.items() if value.default is value.empty and key not in options]:
        raise ValueError(f"{name} needs the option {', '.join(missing)}")
    return dataset.open_split(split, data_dir, **options) if is_prepared else dataset(split, **options)


def open_splits(name: str, data_dir: str | Path = "data", **options) -> dict[str, FacesSplit | BoxesSplit]:
    """Return all splits of the data set `name` that exist, by name; errors and options as in open_split."""
    splits = {}
    for split in SPLITS:
        with suppress(MissingSplit):
            splits[split] = open_split(name, split, data_dir, **options)
    return splits
