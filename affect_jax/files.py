"""Files that are whole or absent."""

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path` such that a reader, or a crash, finds the old file or the new one, never a part."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
