"""Your own boxes in COCO's JSON format (Lin et al. 2014, arXiv:1405.0312), any classes.

The source has `train.json`, `val.json` and optionally `test.json`; `file_name` of an image is relative to that folder.
A box is `[x, y, width, height]`. Boxes with `iscrowd` are ignored in evaluation.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from affect_jax.data.prepared_boxes import BoxesBuilder, Entry
from affect_jax.data.source import BadInput, BadRows

SPLITS = ("train", "val", "test")
LAYOUT = "give a folder with train.json, val.json and the images that they name"


class CocoJson(BoxesBuilder):
    """Images with boxes in COCO's JSON format; the classes are its categories, ordered by id."""

    REQUIRED_SPLITS = ("train", "val")
    DESCRIPTION = "Images with boxes in COCO's JSON format."

    def __init__(self, **kwargs):
        source = Path(kwargs.get("source") or "")
        if not source.is_dir():
            raise FileNotFoundError(f"{source}: no such folder; {LAYOUT}")
        self.contents = {split: read_json(source / f"{split}.json") for split in SPLITS if find(source, split)}
        self.categories = same_categories(self.contents, source)
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories, ordered by id."""
        return tuple(self.categories.values())

    def read_source(self, bad_rows: BadRows) -> Iterator[dict]:
        """Read every image, in the order of the files."""
        label_of = {category: label for label, category in enumerate(self.categories)}
        for split, content in self.contents.items():
            path = Path(self.source) / f"{split}.json"
            entries = read_annotations(path, content, label_of, bad_rows)
            for image in content["images"]:
                example = self.make_example(split, image["file_name"], path, None, entries[image["id"]])
                if example and self._has_size(example, image, path):
                    yield example

    def _has_size(self, example: dict, image: dict, path: Path) -> bool:
        """Return True if the image has the size in the file; report it otherwise."""
        height, width = example["size"].tolist()
        stated = (image.get("height", height), image.get("width", width))
        if stated == (height, width):
            return True
        reason = f"{image['file_name']} has {width}x{height} pixels upright, the file states {stated[1]}x{stated[0]}"
        self.bad_rows.report(path, None, reason)
        return False


def find(source: Path, split: str) -> bool:
    """Return True if the split has a file; BadInput if a required file is missing."""
    exists = (source / f"{split}.json").is_file()
    if not exists and split in CocoJson.REQUIRED_SPLITS:
        raise BadInput(source, None, f"no {split}.json", LAYOUT)
    return exists


def read_json(path: Path) -> dict:
    """Read the file; BadInput if its three lists do not have COCO's format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:  # also raised by the encoding
        raise BadInput(path, None, f"not valid JSON ({reason})", "write the file again") from None
    for name, fields in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id",)),
        ("categories", ("id", "name")),
    ):
        objects = content.get(name) if isinstance(content, dict) else None
        if not isinstance(objects, list) or not all(isinstance(o, dict) and set(fields) <= set(o) for o in objects):
            remedy = f"{name} must be a list of objects, each with {' and '.join(fields)}"
            raise BadInput(path, None, f"{name} does not have COCO's format", remedy)
    return content


def same_categories(contents: dict[str, dict], source: Path) -> dict[int, str]:
    """Return the names by id, ordered by id; BadInput if the splits differ or have none."""
    found = {
        split: {category["id"]: category["name"] for category in content["categories"]}
        for split, content in contents.items()
    }
    for split, categories in found.items():
        if categories != found["train"]:
            reason = f"its categories are {categories}, those of train.json {found['train']}"
            raise BadInput(source / f"{split}.json", None, reason, "use the same categories in all files")
    if not found["train"]:
        raise BadInput(source / "train.json", None, "no categories", "a detector needs at least one class")
    if len(set(found["train"].values())) < len(found["train"]):
        raise BadInput(source / "train.json", None, "two categories have the same name", "name them differently")
    return dict(sorted(found["train"].items()))


def read_annotations(path: Path, content: dict, label_of: dict, bad_rows: BadRows) -> dict[int, list[Entry]]:
    """Return the boxes of every image by its id; bad boxes are reported with their id or position, from 1."""
    images = {image["id"] for image in content["images"]}
    entries = defaultdict(list)
    for number, annotation in enumerate(content["annotations"], start=1):
        name = f"annotation {annotation.get('id', f'number {number}')}"
        try:
            x, y, width, height = map(float, annotation["bbox"])
        except (KeyError, TypeError, ValueError):
            bad_rows.report(path, None, f"{name}: bbox is {annotation.get('bbox')}, not [x, y, width, height]")
            continue
        if annotation["image_id"] not in images:
            bad_rows.report(path, None, f"{name}: no image has the id {annotation['image_id']!r}")
        elif annotation.get("category_id") not in label_of:
            bad_rows.report(path, None, f"{name}: no category has the id {annotation.get('category_id')!r}")
        else:
            label = label_of[annotation["category_id"]]
            box = (x, y, x + width, y + height)
            entries[annotation["image_id"]].append(Entry(box, label, bool(annotation.get("iscrowd")), None, name))
    return entries
