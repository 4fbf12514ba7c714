"""Files of a source: the images of a folder, and CSV files, plain or compressed."""

import codecs
import csv
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, TextIO

from affect_jax.data.images import SUFFIXES, read_image_size
from affect_jax.data.source import BadInput, BadRows
from affect_jax.files import UNPRINTABLE, contains, files_below, is_hidden, printable

COMPRESSED = ("", ".gz", ".zip")
MAX_LINE = 1 << 20
"""Longest piece of a text file that is read at once: a compressed file can expand to a line that fills the memory."""
DAMAGES = (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
"""Errors of Python's readers of compressed files."""
INFO = "dataset_info.json"
"""Name of the file in which tfds describes a prepared data set."""


class Listing(NamedTuple):
    """The files of a folder: images, and other files with the reason why they are not read."""

    images: list[Path]
    others: dict[Path, str]


def list_images(folder: Path) -> Listing:
    """Sort the files below a folder, without hidden files, into images and others.

    A file with a suffix of an image is an image, readable or not; a file with another suffix is one if its content is.
    """
    images, others = [], {}
    for path in files_below(folder):
        if path.suffix.lower() not in SUFFIXES:
            try:
                read_image_size(path)
            except ValueError as reason:
                others[path] = str(reason)
                continue
        images.append(path)
    return Listing(images, others)


def describe_others(source: Path, others: dict[Path, str]) -> list[str]:
    """Return a remark that counts the files that were left out and names the first three; none without files."""
    if not others:
        return []
    named = "; ".join(f"{printable(path.relative_to(source))}: {reason}" for path, reason in list(others.items())[:3])
    return [f"files left out: {len(others):,} ({named})"]


def is_prepared(folder: Path) -> bool:
    """Return True for the folder of a prepared data set, "1.0.0", and the one that it is in."""
    return (folder / INFO).is_file() or any(folder.glob(f"[0-9]*.[0-9]*.[0-9]*/{INFO}"))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted.

    Hidden folders, prepared data sets, and links to the folder or one that contains it are left out.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not is_hidden(path.name) and not is_prepared(path) and not contains(path, folder)
    )


def find_csv(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the file with one of the names in a folder or in a folder of it, also as NAME.gz or NAME.zip, or None."""
    for place in (folder, *subfolders(folder)):
        for name in names:
            for suffix in COMPRESSED:
                if (place / f"{name}{suffix}").is_file():
                    return place / f"{name}{suffix}"
    return None


@contextmanager
def open_text(path: Path, names: Sequence[str]) -> Iterator[TextIO]:
    """Open a UTF-8 text file that is plain or in a .gz, .zip, .tar or .tar.gz file, which its first bytes show.

    In an archive it is the only file, or the file with one of `names`. Nothing is unpacked to disk. BadInput if the
    file cannot be decompressed.
    """
    with ExitStack() as opened:
        try:
            binary = _open_content(path, names, opened)
            text = opened.enter_context(io.TextIOWrapper(binary, "utf-8-sig", errors="replace", newline=""))
            yield text
        except DAMAGES as reason:
            raise BadInput(path, None, f"cannot be decompressed ({reason})", "download it again") from None


def _open_content(path: Path, names: Sequence[str], opened: ExitStack) -> BinaryIO:
    """Open the bytes of a text file that may be compressed or in an archive."""
    file = opened.enter_context(path.open("rb"))
    start = file.read(4)
    file.seek(0)
    if start == b"PK\3\4":
        archive = opened.enter_context(zipfile.ZipFile(file))
        member = _choose(path, [name for name in archive.namelist() if not name.endswith("/")], names)
        try:
            return opened.enter_context(archive.open(member))
        except (RuntimeError, NotImplementedError) as reason:  # encrypted, or an unknown method
            raise BadInput(path, None, f"cannot be decompressed ({reason})", "unpack it, then give the file") from None
    content = opened.enter_context(gzip.GzipFile(fileobj=file)) if start[:2] == b"\x1f\x8b" else file
    is_tar = content.read(262)[257:] == b"ustar"
    content.seek(0)
    if not is_tar:
        return content
    archive = opened.enter_context(tarfile.TarFile(fileobj=content))
    members = {member.name: member for member in archive if member.isfile()}
    return opened.enter_context(archive.extractfile(members[_choose(path, list(members), names)]))


def _choose(path: Path, members: Sequence[str], names: Sequence[str]) -> str:
    """Return the only visible member of an archive, or the member with one of the names; BadInput otherwise."""
    visible = [member for member in members if not any(map(is_hidden, PurePosixPath(member).parts))]
    wanted = [member for name in names for member in visible if member.rsplit("/", 1)[-1] == name]
    if len(visible) == 1 or wanted:
        return (wanted or visible)[0]
    found = ", ".join(visible[:5]) or "no file"
    raise BadInput(path, None, f"the archive has {found}, not {' or '.join(names)}", "unpack it, then give the file")


def read_rows(
    path: Path, names: Sequence[str], columns: Sequence[str], bad_rows: BadRows
) -> Iterator[tuple[int, list[str] | None]]:
    """Read a CSV with these columns: (row, fields in the order of `columns`), fields None for a bad row.

    `names` are the usual names of the file, to find it in an archive. Further columns, a byte order mark, CRLF, blanks
    around values and empty lines are ignored. BadInput if columns are missing.
    """
    with open_text(path, names) as text:
        reader = csv.reader(iter(partial(text.readline, MAX_LINE), ""))
        remedy = f"the first line must name the columns {', '.join(columns)}"
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as reason:
            raise BadInput(path, 1, str(reason), remedy) from None
        if not header:
            raise BadInput(path, 1, "the file is empty", remedy)
        if UNPRINTABLE.search("".join(header)):
            text.seek(0)
            if text.buffer.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise BadInput(path, 1, "the text is UTF-16", "save it as UTF-8")
            remedy = "unpack it, then give the file; only .gz, .zip, .tar and .tar.gz are read as they are"
            raise BadInput(path, 1, "the first line is not text", remedy)
        if any(header.count(name) != 1 for name in columns):
            raise BadInput(path, 1, f"the header is {', '.join(header)[:200]!r}", remedy)
        places = [header.index(name) for name in columns]
        while True:
            row = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as reason:
                bad_rows.report(path, row, str(reason))
                yield row, None
                continue
            if fields is None:
                return
            if not fields:
                continue
            if len(fields) != len(header):
                bad_rows.report(path, row, f"{len(fields)} columns, the header has {len(header)}")
                yield row, None
                continue
            yield row, [fields[place].strip() for place in places]
