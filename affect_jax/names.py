"""Parameters by name: "backbone/block3/expand/conv/kernel" is a parameter's, or a statistic's, path in the network."""

import re
from collections.abc import Callable, Sequence

Selects = Callable[[str], bool]


def selects(patterns: Sequence[str]) -> Selects:
    """Whether a name is matched whole by one of the regexes."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.fullmatch(name) for pattern in compiled)


def path_name(path: Sequence) -> str:
    """The name behind a path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
