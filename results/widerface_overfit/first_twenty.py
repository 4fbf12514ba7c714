"""Write the first 20 training images of WIDER FACE with medium faces as a data set whose train and val are equal.

    python results/widerface_overfit/first_twenty.py WIDER_FACE_FOLDER OUT
    python scripts/prepare_data.py widerface --source=OUT --data_dir=data/twenty

These are the first 20 of the publishers' list with 1 to 15 faces of at least 24 pixels each. The command of the run is
in config.json in this folder, its record in metrics.jsonl.
"""

import shutil
import sys
from pathlib import Path


def main(source: Path, out: Path) -> None:
    """Copy the images and write both lists."""
    lines = iter((source / "wider_face_split" / "wider_face_train_bbx_gt.txt").read_text().splitlines())
    kept = []
    for place in lines:
        count = next(lines)
        rows = [next(lines) for _ in range(max(1, int(count)))]  # an image without faces has a row of zeros
        sides = [min(int(side) for side in row.split()[2:4]) for row in rows]
        if 1 <= int(count) <= 15 and min(sides) >= 24 and len(kept) < 20:
            kept.append("\n".join([place, count, *rows, ""]))
            for split in ("train", "val"):
                target = out / f"WIDER_{split}" / "images" / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / "WIDER_train" / "images" / place, target)
    for split in ("train", "val"):
        labels = out / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(kept))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
