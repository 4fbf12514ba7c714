"""Checksums of a checkpoint's files. Without them, orbax would restore an array with a flipped bit silently."""

import hashlib
from pathlib import Path

from affect_jax.files import write_atomically

CHECKSUMS = "sha256sums.txt"
"""File in a checkpoint's folder, in the format of `sha256sum --check`."""
ITEMS = ("clock", "data", "state")
"""Parts of a checkpoint, each in a folder of this name."""


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in the subfolders of `folder`: the whole checkpoint except orbax's notes."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    write_atomically(folder / CHECKSUMS, "".join(lines))


def find_damage(folder: Path, item: str = "") -> str | None:
    """Return a description of the first damage in `folder`, or in one `item` of it, or None.

    Of a folder without checksums, which an older version wrote, only the folders of the items are checked.
    """
    if not (folder / CHECKSUMS).exists():
        missing = [name for name in ITEMS if name.startswith(item) and not (folder / name).is_dir()]
        return f"{missing[0]} is missing, and so is {CHECKSUMS}" if missing else None
    try:
        lines = (folder / CHECKSUMS).read_text(errors="replace").splitlines()
        wanted = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
        for name in sorted(wanted.keys() | _files(folder)):
            if not name.startswith(item):
                continue
            if name not in wanted:
                return f"{name} is not in {CHECKSUMS}"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != wanted[name]:
                return f"{name} is not what was saved"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.glob("*/**/*") if file.is_file()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
