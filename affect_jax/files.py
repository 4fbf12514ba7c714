"""Atomic writing of files, and errors that name the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when it is complete.

    A reader, or a crash, finds the old content or all of the new content at `path`, never a part.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    with errors_naming(path):
        try:
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def errors_naming(path: str | Path) -> Iterator[None]:
    """Add the path to an OSError in the block: for a file that is already open, the system's error has no path."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())
