"""Your own boxes: COCO's json (Lin et al. 2014, arXiv:1405.0312), any classes.

`DIR/train.json`, `DIR/val.json` and perhaps `DIR/test.json`, with the pictures at their `file_name` below DIR. A box is
`[x, y, width, height]`; what is `iscrowd` is ignored in evaluation.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from affect_jax.data.prepared_boxes import BoxesBuilder, Entry
from affect_jax.data.source import BadInput, BadRows

SPLITS = ("train", "val", "test")
LAYOUT = "it holds train.json and val.json, and the pictures that they name"


class CocoJson(BoxesBuilder):
    """Pictures with boxes as COCO's json describes them; classes are its categories, by their ids."""

    REQUIRED_SPLITS = ("train", "val")
    DESCRIPTION = "Pictures with boxes, from COCO's json."

    def __init__(self, **kwargs):
        source = Path(kwargs.get("source") or "")
        if not source.is_dir():
            raise FileNotFoundError(f"{source}: no such folder; {LAYOUT}")
        self.contents = {split: read_json(source / f"{split}.json") for split in SPLITS if find(source, split)}
        self.categories = same_categories(self.contents, source)
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The categories' names, by id."""
        return tuple(self.categories.values())

    def read_source(self, bad_rows: BadRows) -> Iterator[dict]:
        """Every picture, in the order of the files."""
        label_of = {category: label for label, category in enumerate(self.categories)}
        for split, content in self.contents.items():
            path = Path(self.source) / f"{split}.json"
            entries = read_annotations(path, content, label_of, bad_rows)
            for image in content["images"]:
                example = self.make_example(split, image["file_name"], path, None, entries[image["id"]])
                if example and self._has_size(example, image, path):
                    yield example

    def _has_size(self, example: dict, image: dict, path: Path) -> bool:
        """Whether the picture is of the size for which its boxes were drawn; else reported."""
        height, width = example["size"].tolist()
        told = (image.get("height", height), image.get("width", width))
        if told == (height, width):
            return True
        reason = f"{image['file_name']} is {width}x{height} as EXIF turns it, the file says {told[1]}x{told[0]}"
        self.bad_rows.report(path, None, reason)
        return False


def find(source: Path, split: str) -> bool:
    """Whether the split has a file; BadInput where it needs one."""
    exists = (source / f"{split}.json").is_file()
    if not exists and split in CocoJson.REQUIRED_SPLITS:
        raise BadInput(source, None, f"no {split}.json", LAYOUT)
    return exists


def read_json(path: Path) -> dict:
    """The file's contents; BadInput where its three lists are not what COCO's are."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:  # of the encoding too
        raise BadInput(path, None, f"no json ({reason})", "write it anew") from None
    for name, fields in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id",)),
        ("categories", ("id", "name")),
    ):
        some = content.get(name) if isinstance(content, dict) else None
        if not isinstance(some, list) or not all(isinstance(one, dict) and set(fields) <= set(one) for one in some):
            remedy = f"{name} is a list of objects, with {' and '.join(fields)} each"
            raise BadInput(path, None, f"{name} is not as in COCO's json", remedy)
    return content


def same_categories(contents: dict[str, dict], source: Path) -> dict[int, str]:
    """Name by id, in order of ids; BadInput where the splits differ, or have none."""
    found = {split: {one["id"]: one["name"] for one in content["categories"]} for split, content in contents.items()}
    for split, categories in found.items():
        if categories != found["train"]:
            reason = f"its categories are {categories}, those of train.json {found['train']}"
            raise BadInput(source / f"{split}.json", None, reason, "give all files the same")
    if not found["train"]:
        raise BadInput(source / "train.json", None, "no categories", "a detector needs one class at least")
    if len(set(found["train"].values())) < len(found["train"]):
        raise BadInput(source / "train.json", None, "two categories of one name", "name them differently")
    return dict(sorted(found["train"].items()))


def read_annotations(path: Path, content: dict, label_of: dict, bad_rows: BadRows) -> dict[int, list[Entry]]:
    """The boxes of every picture, by its id; bad ones are reported by their number in the list, from 1."""
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
