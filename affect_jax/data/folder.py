"""Your own faces: folders of images, one folder for each class, any number of classes.

The layout is `DIR/<split>/<class>/*` with splits train, val and test, or `DIR/<class>/*`, which is split by person.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from affect_jax.data import SPLITS
from affect_jax.data.faces import fit, to_channels
from affect_jax.data.images import read_image
from affect_jax.data.prepared import Option
from affect_jax.data.prepared_faces import FacesBuilder
from affect_jax.data.source import BadInput
from affect_jax.data.source_files import describe_others, list_images, subfolders
from affect_jax.files import is_hidden, printable

SPLIT_FOLDERS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}

LAYOUT = "the layout is DIR/<split>/<class>/* with splits train, val, test, or DIR/<class>/*"


def split_by_person(persons: list[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Return the split of each person: in random order, each goes to the split that is furthest below its share.

    `persons` has the person of every image; `shares` are fractions of the images, by split.
    """
    images = Counter(persons)
    order = np.random.default_rng(seed).permutation(sorted(images))
    wanted = {split: share * len(persons) for split, share in shares.items()}
    split_of = {}
    for person in map(str, order):
        split = max(wanted, key=wanted.get)
        wanted[split] -= images[person]
        split_of[person] = split
    return split_of


class Folder(FacesBuilder):
    """Faces in folders. The sorted folder names are the classes; images become squares of `image_size` pixels.

    `channels` 1 is gray. `identity` is a regular expression whose first group, searched in the path of an image below
    `source`, is the person; without it every image is a person. `val_share` and `test_share` are fractions of the
    images, drawn with `split_seed` if the folders do not name the splits. If they name train and not val, val is drawn
    from train.
    """

    OPTIONS = (
        Option("image_size", int, "side of the prepared images in pixels"),
        Option("channels", int, "1 for gray, 3 for color"),
        Option("identity", str, "regular expression whose first group is the person, found in the path of an image"),
        Option("val_share", float, "fraction of the images in val"),
        Option("test_share", float, "fraction of the images in test"),
        Option("split_seed", int, "seed of the random split"),
    )
    REQUIRED_SPLITS = ("train", "val")
    DESCRIPTION = "Faces from folders, one folder for each class."

    def __init__(
        self,
        *,
        image_size: int = 48,
        channels: int = 1,
        identity: str | None = None,
        val_share: float = 0.15,
        test_share: float = 0.15,
        split_seed: int = 0,
        **kwargs,
    ):
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; it can be 1 (gray) or 3 (color)")
        if image_size < 8:
            raise ValueError(f"image_size is {image_size}; a face needs at least 8 pixels")
        if split_seed < 0:
            raise ValueError(f"split_seed is {split_seed}; must be at least 0")
        if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
            raise ValueError(f"val_share {val_share} and test_share {test_share} leave no images for training")
        try:
            self.identity = re.compile(identity) if identity else None
        except re.error as error:
            raise ValueError(f"identity {identity!r} is not a valid regular expression: {error}") from None
        if self.identity and not self.identity.groups:
            raise ValueError(f"identity {identity!r} has no group; put the part that names the person in parentheses")
        self.size, self.channels, self.split_seed = image_size, channels, split_seed
        self.shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
        source = Path(kwargs.get("source") or "")
        if not source.is_dir():
            raise FileNotFoundError(f"{source}: no such folder; {LAYOUT}")
        self.split_of_folder, self.names = find_classes(source)
        super().__init__(**kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Sorted names of the class folders."""
        return tuple(map(printable, self.names))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the prepared images, square."""
        return (self.size, self.size, self.channels)

    @property
    def first_config(self) -> str:
        """The config that starts from the bundled classifier, if the images have its shape."""
        return "fer_vgg_best:narrow" if self.image_shape == Folder.IMAGE_SHAPE else self.CONFIG

    def read_source(self) -> Iterator[dict]:
        """Read every image, by split folder, class and name."""
        self.others = {
            path: "not in a class folder"
            for folder in sorted({Path(self.source), *self.split_of_folder})
            for path in sorted(folder.iterdir())
            if path.is_file() and not is_hidden(path.name)
        }
        self.splits_of_person = defaultdict(set)
        found = self._with_person(list(self._images()))
        drawn = self._draw_splits(found)
        for folder_split, label, path, person in found:
            split = drawn.get(person, folder_split) if folder_split in (None, "train") else folder_split
            self.splits_of_person[person].add(split)
            yield {
                "split": split,
                "image": partial(read_face, path, self.size, self.channels, self.note),
                "label": label,
                "file": path.relative_to(self.source).as_posix(),
                "row": 0,
            }

    def _images(self) -> Iterator[tuple[str | None, int, Path, str | None]]:
        """Return split, label, path and person of every image; None for a split or person that the path lacks."""
        for folder, split in self.split_of_folder.items():
            for label, name in enumerate(self.names):
                if not (folder / name).is_dir():
                    continue
                listing = list_images(folder / name)
                self.others.update(listing.others)
                for path in listing.images:
                    relative = path.relative_to(self.source).as_posix()
                    match = self.identity.search(relative) if self.identity else None
                    yield split, label, path, (match and match.group(1)) if self.identity else relative

    def _with_person(self, found: list[tuple[str | None, int, Path, str | None]]) -> list:
        """Return the images with a person; report the others, and raise BadInput if no image has one."""
        unmatched = [path for *_, path, person in found if not person]
        if unmatched and len(unmatched) == len(found):
            example = printable(unmatched[0].relative_to(self.source))
            reason = f"no path matches identity {self.identity.pattern!r}, for example {example}"
            raise BadInput(self.source, None, reason, "its first group must match the part that names the person")
        for path in unmatched:
            self.bad_rows.report(path, None, f"its path does not match identity {self.identity.pattern!r}")
        return [image for image in found if image[-1]]

    def _draw_splits(self, found: list[tuple[str | None, int, Path, str]]) -> dict[str, str]:
        """Return the split of each person whose folder does not name it."""
        given = {split for split, *_ in found}
        if None in given:
            shares, undecided = self.shares, found
        elif "val" not in given:
            val = self.shares["val"]
            shares, undecided = {"train": 1 - val, "val": val}, [image for image in found if image[0] == "train"]
        else:
            return {}
        if self.identity:
            return split_by_person([person for *_, person in undecided], shares, self.split_seed)
        by_class = defaultdict(list)  # every image is a person, so every class can have its share in every split
        for _, label, _, person in undecided:
            by_class[label].append(person)
        drawn = {}
        for persons in by_class.values():
            drawn.update(split_by_person(persons, shares, self.split_seed))
        return drawn

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Return remarks on files that are not images, linked files, a missing test split and persons in two splits."""
        remarks = describe_others(Path(self.source), self.others)
        names = defaultdict(list)
        for file in (example["file"] for some in examples.values() for example in some):
            with suppress(OSError):  # reading the image will report it
                status = os.stat(os.path.join(self.source, file))
                names[status.st_dev, status.st_ino].append(file)
        if repeated := [" and ".join(files) for files in names.values() if len(files) > 1]:
            remarks.append(
                f"files that are two or more images, through links: {len(repeated):,}, for example"
                f" {printable(repeated[0])}; results will be too high if they are in two splits"
            )
        if not counts["test"]:
            remarks.append("no test split: no folder has this name")
        if not self.identity:
            remarks.append(
                "no --identity given: images of one person may be in two splits, and results will be too high"
            )
            return remarks
        persons = Counter(split for splits in self.splits_of_person.values() for split in splits)
        remarks.append("persons: " + ", ".join(f"{persons[split]:,} in {split}" for split in SPLITS))
        if repeated := sorted(person for person, splits in self.splits_of_person.items() if len(splits) > 1):
            remarks.append(
                f"persons in two or more splits, because the folders name the splits: {len(repeated)}, for example"
                f" {printable(repeated[0])}; results will be too high"
            )
        return remarks


def find_classes(source: Path) -> tuple[dict[Path, str | None], tuple[str, ...]]:
    """Return the folders of class folders with their split (None: to be drawn), and the class names."""
    folders = {path.name: path for path in subfolders(source)}
    splits = {path: SPLIT_FOLDERS[name.lower()] for name, path in folders.items() if name.lower() in SPLIT_FOLDERS}
    if splits and len(splits) < len(folders):
        others = ", ".join(name for name in folders if name.lower() not in SPLIT_FOLDERS)
        raise BadInput(source, None, f"there are other folders next to the split folders: {others}", LAYOUT)
    if len(set(splits.values())) < len(splits):
        raise BadInput(source, None, f"two folders for the same split among {', '.join(folders)}", LAYOUT)
    if splits and "train" not in splits.values():
        raise BadInput(source, None, "no folder train", LAYOUT)
    parents = splits or {source: None}
    names = sorted({path.name for parent in parents for path in subfolders(parent)})
    if len(names) < 2:
        found = f"only one class folder, {names[0]}" if names else "no class folder"
        raise BadInput(source, None, f"{found}; at least two are needed", LAYOUT)
    for class_folder in (path for parent in parents for path in subfolders(parent)):
        if inside := [path.name for path in subfolders(class_folder) if path.name.lower() in SPLIT_FOLDERS]:
            raise BadInput(class_folder, None, f"split folders in a class folder: {', '.join(inside)}", LAYOUT)
    return parents, tuple(names)


def read_face(path: Path, size: int, channels: int, note: Callable[[Path, str], None]) -> np.ndarray:
    """Read an image as a square of `size` pixels, [H, W] or RGB [H, W, 3]; ValueError if it cannot be read.

    `note` is called with the path and a remark on an unusual file.
    """
    return to_channels(fit(read_image(path, partial(note, path)), (size, size)), channels)
