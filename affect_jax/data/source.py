"""Reading other people's files: where an input is wrong, and what becomes of its bad rows."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path


class BadInput(ValueError):
    """An input that cannot be used: `FILE, row N: reason; what to do`, rows counted as lines of the file from 1."""

    def __init__(self, file: str | Path, row: int | None, reason: str, remedy: str):
        self.file, self.row, self.reason = str(file), row, reason
        super().__init__(f"{place(file, row)}: {reason}; {remedy}")


def place(file: str | Path, row: int | None) -> str:
    """Where an example came from: `FILE, row N`, or `FILE` where it is a file of its own (row 0 or None)."""
    return f"{file}, row {row}" if row else str(file)


class BadRows:
    """What to do about rows that cannot be used: `fail` raises the first one, `skip` keeps them in `skipped`."""

    def __init__(self, policy: str = "fail"):
        if policy not in ("fail", "skip"):
            raise ValueError(f"on_bad_row is {policy!r}; it can be 'fail' or 'skip'")
        self.policy = policy
        self.skipped: list[BadInput] = []

    def report(self, file: str | Path, row: int | None, reason: str):
        """Raise BadInput, or keep it."""
        error = BadInput(file, row, reason, "mend it, or leave such rows out with --on_bad_row=skip")
        if self.policy == "fail":
            raise error
        self.skipped.append(error)


def check_counts(
    file: str | Path,
    counts: Mapping[str, Counter],
    published: Mapping[str, Mapping[str, int]],
    skipped: int = 0,
    allow_other_counts: bool = False,
) -> list[str]:
    """Hold counts by split and class against the published ones; gives the differences where they are allowed.

    With rows skipped as bad, as many examples may be missing, and none may be too many. val and test in each other's
    place are an error whatever is allowed: a model would be selected on the half that its report is about.
    """
    if counts["val"] == published["test"] and counts["test"] == published["val"]:
        raise BadInput(
            file,
            None,
            "the halves are swapped: val has PrivateTest's class counts and test has PublicTest's",
            "name PublicTest validation and PrivateTest test",
        )
    missing = {split: Counter(classes) for split, classes in published.items()}
    for split, classes in counts.items():
        missing[split].subtract(classes)
    shortfalls = [count for classes in missing.values() for count in classes.values()]
    if min(shortfalls) >= 0 and sum(shortfalls) <= skipped:
        return []
    differences = [
        f"{split} has {sum(counts[split].values()):,} faces, published are {sum(published[split].values()):,} ("
        + ", ".join(
            f"{name} {counts[split][name]:,} for {published[split][name]:,}" for name in classes if classes[name]
        )
        + ")"
        for split, classes in missing.items()
        if any(classes.values())
    ]
    if allow_other_counts:
        return differences
    remedy = "take the publishers' whole file, or accept another set with --allow_other_counts"
    raise BadInput(file, None, "; ".join(differences), remedy)
