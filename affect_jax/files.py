"""Files that are whole or absent, and errors that name them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write: a reader, or a crash, finds at `path` what was there or all of the new, never a part."""
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
    """Give an OSError met meanwhile the path: of a file that is open already, the system does not say it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())
