"""DARK FACE: faces on streets at night (Yang et al. 2020, "Advancing image understanding in poor visibility
environments", arXiv:1904.04474), in the original layout: `image/N.png`, `label/N.txt`.

The first line of a label file is the number of faces; each further line is `x1 y1 x2 y2` in pixels.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from affect_jax.data.prepared import Option
from affect_jax.data.prepared_boxes import BoxesBuilder, Entry
from affect_jax.data.source import BadInput, BadRows
from affect_jax.files import is_hidden

NUM_LABELLED = 6000
SPLIT_FILE = Path(__file__).with_name("darkface_split.txt")


@cache
def val_numbers() -> frozenset[int]:
    """Return the numbers N of the val images, from the committed list; the rest of 1 to 6000 is train."""
    lines = SPLIT_FILE.read_text(encoding="ascii").splitlines()
    return frozenset(int(number) for line in lines if not line.startswith("#") for number in line.split())


class Darkface(BoxesBuilder):
    """The labelled images of DARK FACE, 5,400 train and 600 val; a subset of them is accepted.

    The test server of the publishers is closed, so results are reported on the 600 images, and `test` opens val: a
    result on it is unbiased only if nothing was selected on val. `as_split` puts all images into the given split.
    """

    OPTIONS = (Option("as_split", str, "put all images into this split, train or val"),)
    CLASS_NAMES = ("face",)
    DESCRIPTION = "DARK FACE, faces on streets at night (Yang et al., 2020)."
    LICENCE = "DARK FACE: for academic research"
    CONFIG = "darkface_rcnn"
    TEST_IS_VAL = True

    def __init__(self, *, as_split: str | None = None, **kwargs):
        if as_split not in (None, "train", "val"):
            raise ValueError(f"as_split is {as_split!r}; it can be 'train' or 'val' (test opens val)")
        self.as_split = as_split
        super().__init__(**kwargs)

    def published(self) -> dict[str, int]:
        """Return the counts of the committed list."""
        if self.as_split:
            return {}
        return {"train": NUM_LABELLED - len(val_numbers()), "val": len(val_numbers())}

    def read_source(self) -> Iterator[dict]:
        """Read every labelled image, by number."""
        source = Path(self.source)
        if missing := [name for name in ("image", "label") if not (source / name).is_dir()]:
            remedy = "give a folder with image/N.png and label/N.txt"
            raise BadInput(source, None, f"no folder {' and '.join(missing)}", remedy)
        images = visible_stems(source / "image", ".png")
        labels = visible_stems(source / "label", ".txt")
        for stem in sorted(images | labels, key=lambda stem: (len(stem), stem)):
            image, label = source / "image" / f"{stem}.png", source / "label" / f"{stem}.txt"
            if stem not in labels:
                self.bad_rows.report(image, None, f"no label/{label.name}")
            elif stem not in images:
                self.bad_rows.report(label, None, f"no image/{image.name}")
            elif not (stem.isascii() and stem.isdigit() and 1 <= int(stem) <= NUM_LABELLED):
                self.bad_rows.report(image, None, f"its name is not a number from 1 to {NUM_LABELLED}")
            elif (entries := read_label(label, self.bad_rows)) is not None:
                split = self.as_split or ("val" if int(stem) in val_numbers() else "train")
                if example := self.make_example(split, f"image/{image.name}", label, None, entries):
                    yield example


def visible_stems(folder: Path, suffix: str) -> set[str]:
    """Return the names without suffix of the files with this suffix in a folder, without hidden files."""
    return {path.stem for path in folder.iterdir() if path.suffix == suffix and not is_hidden(path.name)}


def read_label(path: Path, bad_rows: BadRows) -> list[Entry] | None:
    """Read the faces of a label file without its bad lines; None if the header does not match the number of lines."""
    lines = path.read_text(encoding="ascii", errors="replace").rstrip().split("\n")
    if not lines[0].strip().isdigit():
        bad_rows.report(path, 1, f"the number of faces is {lines[0].strip()!r}")
        return None
    if int(lines[0]) != len(lines) - 1:
        bad_rows.report(path, 1, f"the header announces {int(lines[0])} faces, the file has {len(lines) - 1}")
        return None
    entries = []
    for row, line in enumerate(lines[1:], start=2):
        try:
            x1, y1, x2, y2 = map(float, line.split())
        except ValueError:
            bad_rows.report(path, row, f"{line.strip()!r} is not x1 y1 x2 y2")
            continue
        entries.append(Entry((x1, y1, x2, y2), 0, False, row))
    return entries
