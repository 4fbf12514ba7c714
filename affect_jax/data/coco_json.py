"""Your own boxes in COCO's JSON format (Lin et al. 2014, arXiv:1405.0312), any classes.

The source has `train.json`, `val.json` and optionally `test.json`; `file_name` of an image is relative to that folder.
A box is `[x, y, width, height]`. Boxes with `iscrowd` are ignored in evaluation; masks are not read. Numbers may be
strings, as some tools write them.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path

from affect_jax.data import SPLITS
from affect_jax.data.prepared_boxes import BoxesBuilder, Entry
from affect_jax.data.source import BadInput, BadRows
from affect_jax.files import printable

LAYOUT = "give a folder with train.json, val.json and the images that they name"


class CocoJson(BoxesBuilder):
    """Images with boxes in COCO's JSON format; the classes are its categories, ordered by id."""

    REQUIRED_SPLITS = ("train", "val")
    DESCRIPTION = "Images with boxes in COCO's JSON format."
    CONFIG = "widerface_rcnn:two_cores"

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

    def read_source(self) -> Iterator[dict]:
        """Read every image, in the order of the files."""
        label_of = {category: label for label, category in enumerate(self.categories)}
        for split, content in self.contents.items():
            path = Path(self.source) / f"{split}.json"
            entries, seen, files = read_annotations(path, content, label_of, self.bad_rows), set(), set()
            for image in content["images"]:
                if (key := identity(image["id"])) in seen:
                    reason = f"{image['file_name']}: another image has the same id {image['id']!r}"
                    self.bad_rows.report(path, None, reason)
                    continue
                seen.add(key)
                file = find_image(Path(self.source), image["file_name"])
                if self._full_path(file) in files:
                    self.bad_rows.report(path, None, f"{image['file_name']}: another image has the same file")
                    continue
                files.add(self._full_path(file))
                example = self.make_example(split, file, path, None, entries[key])
                if example and self._has_size(example, image, path):
                    yield example

    def _full_path(self, file: str) -> str:
        """Return the same path for all names of a file below the source, as a.png and ./a.png."""
        return os.path.abspath(Path(self.source) / file)

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Return the remarks of BoxesBuilder, and one on images in several splits."""
        remarks = super().review(examples, counts)
        splits = Counter(self._full_path(example["file"]) for some in examples.values() for example in some)
        if repeated := [path for path, number in splits.items() if number > 1]:
            remarks.append(
                f"images in two or more splits: {len(repeated):,}, for example {printable(repeated[0])};"
                " results will be too high"
            )
        return remarks

    def _has_size(self, example: dict, image: dict, path: Path) -> bool:
        """Return True if the image has the size in the file, or the file states none; report it otherwise."""
        height, width = example["size"].tolist()
        try:
            stated = (stated_length(image.get("height")) or height, stated_length(image.get("width")) or width)
        except ValueError as reason:
            self.bad_rows.report(path, None, f"{image['file_name']}: {reason}")
            return False
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


def find_image(source: Path, file_name: str) -> str:
    """Return the path below the source; tools on Windows write backslashes."""
    is_file = os.path.isfile(source / file_name)  # False, unlike that of Path, also for a name that is too long
    return file_name if is_file else file_name.replace("\\", "/")


def read_json(path: Path) -> dict:
    """Read the file; BadInput if its three lists do not have COCO's format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as reason:  # ValueError also for the encoding
        raise BadInput(path, None, f"not valid JSON ({reason})", "write the file again") from None
    for name, fields in (
        ("images", {"id": (int, str), "file_name": str}),
        ("annotations", {"image_id": (int, str)}),
        ("categories", {"id": (int, str), "name": str}),
    ):
        objects = content.get(name) if isinstance(content, dict) else None
        if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
            remedy = f"{name} must be a list of objects, each with {' and '.join(fields)}"
            raise BadInput(path, None, f"{name} does not have COCO's format", remedy)
        for number, found in enumerate(objects, start=1):
            for field, kinds in fields.items():
                if not isinstance(found.get(field), kinds):
                    problem = f"{name}, object number {number}: {field} is {found.get(field)!r:.100}"
                    kind = "a text" if kinds is str else "an integer"
                    raise BadInput(path, None, problem, f"each object of {name} needs {field}, {kind}")
    for number, category in enumerate(content["categories"], start=1):
        if not is_line(category["name"]):
            problem = f"categories, object number {number}: name is {category['name']!r:.100}"
            raise BadInput(path, None, problem, "a name must be one line of text")
    return content


def is_line(text: str) -> bool:
    """Return True if a text is one line, not blank, that UTF-8 can represent."""
    return text.encode("utf-8", "ignore").decode().splitlines() == [text] and not text.isspace()


def identity(value: int | str) -> Hashable:
    """Return the id as an integer if it is the text of one, so that "7" and 7 are the same id."""
    return int(value) if str(value).isdecimal() and len(str(value)) < 20 else value


def stated_length(value) -> int | None:
    """Return a height or width in pixels; None for null, "", 0 and -1, which tools write for an unknown size."""
    if value is None or value == "":
        return None
    try:
        length = int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"its size in the file is {value!r:.100}, not a number of pixels") from None
    return length if length > 0 else None


def is_crowd(value) -> bool:
    """Return the value of `iscrowd`, which is 0 or 1, a truth value or the text of either; ValueError otherwise."""
    text = str(value).strip().lower()
    if text in ("", "none", "0", "0.0", "false"):
        return False
    if text in ("1", "1.0", "true"):
        return True
    raise ValueError(f"iscrowd is {value!r:.100}, not 0 or 1")


def same_categories(contents: dict[str, dict], source: Path) -> dict[Hashable, str]:
    """Return the names by id, ordered by id; BadInput if the splits differ, have none or repeat an id."""
    found = {
        split: {identity(category["id"]): category["name"] for category in content["categories"]}
        for split, content in contents.items()
    }
    for split, categories in found.items():
        if len(categories) < len(contents[split]["categories"]):
            raise BadInput(source / f"{split}.json", None, "two categories have the same id", "give each its own id")
        if categories != found["train"]:
            reason = f"its categories are {categories}, those of train.json {found['train']}"
            raise BadInput(source / f"{split}.json", None, reason, "use the same categories in all files")
    if not found["train"]:
        raise BadInput(source / "train.json", None, "no categories", "a detector needs at least one class")
    if len(set(found["train"].values())) < len(found["train"]):
        raise BadInput(source / "train.json", None, "two categories have the same name", "name them differently")
    return dict(sorted(found["train"].items(), key=lambda category: (isinstance(category[0], str), category[0])))


def read_annotations(path: Path, content: dict, label_of: dict, bad_rows: BadRows) -> dict[Hashable, list[Entry]]:
    """Return the boxes of every image by its id; bad boxes are reported with their id or position, from 1."""
    images = {identity(image["id"]) for image in content["images"]}
    entries = defaultdict(list)
    for number, annotation in enumerate(content["annotations"], start=1):
        name = f"annotation {annotation.get('id', f'number {number}')}"
        image, category, box = annotation["image_id"], annotation.get("category_id"), annotation.get("bbox")
        try:
            x, y, width, height = map(float, box)
        except (TypeError, ValueError, OverflowError):
            note = "; masks are not read" if annotation.get("segmentation") and not box else ""
            bad_rows.report(path, None, f"{name}: bbox is {box!r:.100}, not [x, y, width, height]{note}")
            continue
        try:
            ignore = is_crowd(annotation.get("iscrowd"))
        except ValueError as reason:
            bad_rows.report(path, None, f"{name}: {reason}")
            continue
        if identity(image) not in images:
            bad_rows.report(path, None, f"{name}: no image has the id {image!r}")
        elif not isinstance(category, int | str) or identity(category) not in label_of:
            bad_rows.report(path, None, f"{name}: no category has the id {category!r:.100}")
        else:
            corners = (x, y, x + width, y + height)
            entries[identity(image)].append(Entry(corners, label_of[identity(category)], ignore, None, name))
    return entries
