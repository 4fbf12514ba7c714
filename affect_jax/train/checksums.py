"""Checksums of a checkpoint's files: orbax reads an array with a flipped bit back without a word."""

import hashlib
from pathlib import Path

from affect_jax.files import write_atomically

CHECKSUMS = "sha256sums.txt"
"""In a checkpoint's folder; `sha256sum --check` reads it too."""


def write_checksums(folder: Path) -> None:
    """Write down what lies in the folders below `folder`, which is all of a checkpoint but orbax's own notes."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_files(folder))]
    write_atomically(folder / CHECKSUMS, "".join(lines))


def find_damage(folder: Path, item: str = "") -> str | None:
    """What below `folder` is not as it was when its checksums were written, or None; of one `item` where it is named.

    None also of a folder without checksums, which is of an older version.
    """
    if not (folder / CHECKSUMS).exists():
        return None
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
