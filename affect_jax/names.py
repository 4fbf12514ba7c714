"""Parameters by name: "backbone/block3/expand/conv/kernel" is a parameter's, or a statistic's, path in the network."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

Selects = Callable[[str], bool]


def selects(patterns: Sequence[str]) -> Selects:
    """Whether a name is matched whole by one of the regexes."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.fullmatch(name) for pattern in compiled)


def path_name(path: Sequence) -> str:
    """The name behind a path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def check_patterns(patterns: Sequence[str], names: Iterable[str], field: str) -> None:
    """Raise ValueError if a regular expression of a config field matches none of the names; list near names."""
    names = list(names)
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"{field}: {pattern!r} matches no parameter; names look like {', '.join(near)}")
