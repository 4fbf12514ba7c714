"""Errors in input files: where an input is wrong, and what to do with bad rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affect_jax.files import printable


class BadInput(ValueError):
    """An unusable input: `FILE, row N: reason; what to do`. Rows are lines of the file, counted from 1."""

    def __init__(self, file: str | Path, row: int | None, reason: str, remedy: str):
        self.file, self.row, self.reason, self.remedy = str(file), row, reason, remedy
        super().__init__(f"{place(file, row)}: {reason}; {remedy}")


class MissingSplit(ValueError):
    """A data set has no such split."""


def place(file: str | Path, row: int | None) -> str:
    """Return the origin of an example: `FILE, row N`, or `FILE` if it is a whole file (row 0 or None)."""
    return f"{printable(file)}, row {row}" if row else printable(file)


class BadRows:
    """Policy for unusable rows: "fail" raises an error at the first row, "skip" collects the errors in `skipped`."""

    def __init__(self, policy: str = "fail"):
        if policy not in ("fail", "skip"):
            raise ValueError(f"on_bad_row is {policy!r}; it can be 'fail' or 'skip'")
        self.policy = policy
        self.skipped: list[BadInput] = []

    def report(self, file: str | Path, row: int | None, reason: str):
        """Raise BadInput, or collect it."""
        error = BadInput(file, row, reason, "fix it, or skip bad rows with --on_bad_row=skip")
        if self.policy == "fail":
            raise error
        self.skipped.append(error)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Add the first skipped row to a BadInput of the block, which may be caused by skipped rows."""
        try:
            yield
        except BadInput as error:
            if not self.skipped:
                raise
            first = self.skipped[0]
            count = f"{len(self.skipped):,} bad rows were skipped" if len(self.skipped) > 1 else "a bad row was skipped"
            remedy = f"{error.remedy} ({count} before: {place(first.file, first.row)}: {first.reason})"
            raise BadInput(error.file, error.row, error.reason, remedy) from None
