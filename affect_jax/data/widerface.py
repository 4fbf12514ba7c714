"""WIDER FACE: 32,203 images of people at 61 kinds of event (Yang et al. 2016, arXiv:1511.06523).

The original layout is `WIDER_{train,val}/images/EVENT/NAME.jpg` and `wider_face_split/*_bbx_gt.txt`. There the name of
an image is followed by the number of its faces and one line for each face: `x1 y1 w h blur expression illumination
invalid occlusion pose`. If the number is 0, a line of zeros follows.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from affect_jax.data.prepared_boxes import BoxesBuilder, Entry
from affect_jax.data.source import BadInput, BadRows, place

SPLITS = ("train", "val")
INVALID, NUM_FIELDS = 7, 10


class Widerface(BoxesBuilder):
    """The training and validation images of WIDER FACE; a subset of them is accepted.

    The labels of the test images are not published, so `test` opens val. Faces marked invalid by the publishers become
    ignored regions. The publishers' lists also have boxes without area; these are left out and counted.
    """

    CLASS_NAMES = ("face",)
    DESCRIPTION = "WIDER FACE, faces at 61 kinds of event (Yang et al., 2016)."
    LICENCE = "WIDER FACE: for research, not commercial"
    TEST_IS_VAL = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.without_area: list[str] = []

    def published(self) -> dict[str, int]:
        """Return the counts of the publishers."""
        return {"train": 12_880, "val": 3_226}

    def read_source(self) -> Iterator[dict]:
        """Read every image, in the order of the lists."""
        source = Path(self.source)
        lists = {split: source / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt" for split in SPLITS}
        if not any(path.is_file() for path in lists.values()):
            remedy = "give a folder with WIDER_train/images, WIDER_val/images and wider_face_split/"
            raise BadInput(source, None, "no wider_face_split/wider_face_*_bbx_gt.txt", remedy)
        for split, path in lists.items():
            if not path.is_file():
                continue
            for row, name, lines in images_of(path, self.bad_rows):
                entries = read_faces(path, row, name, lines, self.bad_rows)
                if entries is not None:
                    self.without_area += [place(path, entry.row) for entry in entries if not has_area(entry)]
                    entries = [entry for entry in entries if has_area(entry)]
                file = f"WIDER_{split}/images/{name}"
                if entries is not None and (example := self.make_example(split, file, path, row, entries)):
                    yield example

    def review(self, examples: dict[str, list[dict]], counts: dict[str, Counter]) -> list[str]:
        """Return the remarks of BoxesBuilder, and the number of boxes without area."""
        remarks = super().review(examples, counts)
        if self.without_area:
            remarks.append(
                f"{len(self.without_area):,} boxes without area were left out; the first: {self.without_area[0]}"
            )
        return remarks


def has_area(entry: Entry) -> bool:
    """Return True if the width and the height of a box are above 0."""
    x1, y1, x2, y2 = entry.box
    return x2 > x1 and y2 > y1


def images_of(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, str, list[str]]]:
    """Return row and name of each image of a list, and the lines up to the next name."""
    row, name, lines = 0, "", []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n"), start=1):
        line = line.strip()
        if line.lower().endswith(".jpg"):
            if name:
                yield row, name, lines
            row, name, lines = number, line, []
        elif name:
            lines.append(line)
        else:
            bad_rows.report(path, number, f"{line!r} comes before the first image")
    if name:
        yield row, name, lines


def read_faces(path: Path, row: int, name: str, lines: list[str], bad_rows: BadRows) -> list[Entry] | None:
    """Read the faces of the image named at `row` without bad lines; None if their number does not match."""
    if not lines or not lines[0].isdigit():
        bad_rows.report(path, row + 1, f"no number of faces after {name}")
        return None
    number, faces = int(lines[0]), lines[1:]
    if number == 0 and [set(line.split()) for line in faces] in ([], [{"0"}]):
        return []
    if number != len(faces):
        bad_rows.report(path, row + 1, f"{name}: the list announces {number} faces, {len(faces)} lines follow")
        return None
    entries = []
    for at, line in enumerate(faces, start=row + 2):
        try:
            x, y, width, height, *attributes = map(float, line.split())
        except ValueError:
            attributes = []
        if len(attributes) != NUM_FIELDS - 4:
            bad_rows.report(path, at, f"{line!r} is not x1 y1 w h and {NUM_FIELDS - 4} attributes")
            continue
        entries.append(Entry((x, y, x + width, y + height), 0, attributes[INVALID - 4] == 1, at))
    return entries
