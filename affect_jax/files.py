"""Files: those of a folder, names, locks, atomic writing, and errors that name the file."""

import errno
import fcntl
import glob
import json
import os
import platform
import re
import stat
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import BinaryIO

SYSTEM_NAMES = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "desktop.ini", "ehthumbs.db", "thumbs.db")
"""Lower-case names that operating systems, storage servers and image viewers give to their own files and folders."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, separators of lines and paragraphs, and bidirectional controls, which reorder a line."""


def cache_folder() -> Path:
    """Return the folder of this package in the user's cache folder; it need not exist.

    A user without a home folder has one in the folder of temporary files.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and no entry in the list of users
        base = _own_temporary_folder()
    return base / "affect_jax"


@cache
def _own_temporary_folder() -> Path:
    """Return a folder for temporary files that no other user can write: programs are loaded from it."""
    folder = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            return folder
    return Path(tempfile.mkdtemp())


def find_bundled(reference: str) -> str:
    """Return the path of a file of this package, "affect_jax/...", from any working directory; others unchanged."""
    bundled = Path(__file__).parents[1] / reference
    is_ours = Path(reference).parts[:1] == ("affect_jax",) and not Path(reference).exists() and bundled.is_file()
    return str(bundled) if is_ours else reference


def is_hidden(name: str) -> bool:
    """Return True for the name of a file or folder that every reader ignores.

    These are names that begin with a dot (".ipynb_checkpoints", ".DS_Store", "._photo.jpg") and SYSTEM_NAMES.
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def raise_error(error: OSError) -> None:
    """Raise the error."""
    raise error


def contains(folder: str | Path, path: str | Path) -> bool:
    """Return True if a path is a folder or below it, after links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def files_below(folder: str | Path, on_error: Callable[[OSError], None] = raise_error) -> list[Path]:
    """Return all entries below a folder that are not folders, sorted, without hidden ones (see is_hidden).

    The folders are those of folders_below; `on_error` is called with the error of a folder that cannot be listed.
    """
    listed = folders_below(folder, on_error)
    return sorted(place / entry.name for place, entries in listed for entry in entries if not is_folder(entry))


def folders_below(
    folder: str | Path, on_error: Callable[[OSError], None] = raise_error
) -> Iterator[tuple[Path, list[os.DirEntry]]]:
    """Yield a folder and its subfolders, each with its entries, without hidden ones (see is_hidden).

    Linked folders are searched too, unless they contain the folder itself. A folder that can be reached in several ways
    is searched once, if possible by a path without links. `on_error` is called with the error of a folder that cannot
    be listed.
    """
    waiting, searched = deque([Path(folder)]), set()
    while waiting:
        current = waiting.popleft()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in searched:
                continue
            searched.add((status.st_dev, status.st_ino))
            entries = [entry for entry in os.scandir(current) if not is_hidden(entry.name)]
        except OSError as error:
            on_error(error)
            continue
        yield current, entries
        links = [entry for entry in entries if entry.is_symlink() and is_folder(entry)]
        waiting.extend(current / link.name for link in links if not contains(link.path, folder))
        waiting.extendleft(current / entry.name for entry in entries if is_folder(entry) and not entry.is_symlink())


def find_matches(pattern: str) -> list[Path]:
    """Return the files and folders that match a glob, sorted; wildcards match no hidden names (see is_hidden).

    "**" stands for a folder and those below it, as folders_below finds them: links in a circle are not followed. At the
    end of the pattern it stands for the folder alone.
    """
    paths, parts = [Path()], Path(pattern).parts
    for place, part in enumerate(parts):
        if part == "**":
            paths = [path for path in paths if os.path.isdir(path)]
            if place < len(parts) - 1:
                paths = [below for path in paths for below, _ in folders_below(path, lambda error: None)]
        else:
            is_left_out = is_hidden if glob.has_magic(part) and part[0] != "." else lambda name: False
            names = [(path, name) for path in paths for name in glob.glob(part, root_dir=path)]
            paths = [path / name for path, name in names if not is_left_out(name)]
    return sorted(set(paths))


def is_folder(entry: os.DirEntry) -> bool:
    """Return True for a folder or a link to one; False if the system cannot say."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a folder that may not be entered
        return False


def printable(path: str | Path) -> str:
    """Return a path as one line of text: bytes that are not UTF-8, and UNPRINTABLE, are escaped, as in "caf\\xe9".

    Unusual spaces and the joiners of emoji are kept, so that the text is the name of the file.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading in a block.

    ValueError with only the reason if it is missing, empty, a folder or a device, or if the block cannot read it.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("a device or a pipe, not a file")
        if not status.st_size:
            raise ValueError("an empty file")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise ValueError("a link to a missing file" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


@contextmanager
def locked(lock: Path, remedy: str = "") -> Iterator[None]:
    """Lock the file `lock`, which names the process; all processes that use its folder lock the same file.

    If another process has the lock, a ValueError says so with the `remedy`; without a remedy this process waits.
    The lock is the kernel's (flock, also over NFS). It ends with the process, however the process ends. On a file
    system without locks a warning is printed.
    """
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if remedy else 0))
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{lock.parent} is in use by {file.read() or 'another process'}; {remedy}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(
                f"{lock.parent} cannot be locked ({error.strerror}): do not use it in two commands at the same time",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when it is complete.

    A reader, or a crash, finds the old content or all of the new content at `path`, never a part.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")  # others may write it too
    with errors_naming(path):
        try:
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def check_output(flag: str, path: str | Path) -> None:
    """Raise OSError if no file can be written to `path`, the value of a flag: before the work whose result it gets."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"--{flag}={path} is a folder; give a file")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise FileNotFoundError(
            f"--{flag}={path}: {path.parent} is not a folder where you may write; create it or choose another"
        )


@contextmanager
def errors_naming(path: str | Path) -> Iterator[None]:
    """Add the path to an OSError in the block: for a file that is already open, the system's error has no path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by a library, with a text alone
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def explained(file: str | Path) -> Iterator[None]:
    """Turn any error of a block that uses the content of `file` into a ValueError that names the file.

    The file may be damaged or made by others, and a wrong value can cause any error where it is used.
    """
    try:
        yield
    except (OSError, ImportError):
        raise
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{file}: {error}") from error
    except Exception as error:
        reason = str(error).strip() or "no reason given"
        raise ValueError(f"{file} cannot be used ({type(error).__name__}: {reason}); restore it") from error


def read_json(path: str | Path):
    """Return the content of a JSON file; ValueError that names the file if it is not valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:  # ValueError also for the encoding
        raise ValueError(f"{path} is not valid JSON ({reason}); restore it") from None


def write_atomically(path: str | Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())
