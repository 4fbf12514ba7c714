"""Parameters by name: "backbone/block3/expand/conv/kernel" is the path of a parameter or a statistic in the network."""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

Selects = Callable[[str], bool]
Shape = tuple[int, ...]


def selects(patterns: Sequence[str]) -> Selects:
    """Return a function that is True for a name that one of the regexes matches as a whole."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return lambda name: any(pattern.fullmatch(name) for pattern in compiled)


def check_patterns(patterns: Sequence[str], names: Collection[str], field: str) -> None:
    """Raise ValueError if one of the regexes matches none of `names` as a whole.

    `field` is the config's field that holds the patterns, as "optim.freeze". The error lists the nearest names.
    """
    problems = []
    for pattern in patterns:
        if any(map(selects([pattern]), names)):
            continue
        literal = re.sub(r"\W", lambda match: match[0] if match[0] == "/" else "", pattern)
        near = difflib.get_close_matches(literal, sorted(names), n=3, cutoff=0.0)
        problems.append(f"  {pattern!r}; the nearest are {', '.join(near)}")
    if problems:
        heading = f"{field} has regexes that match no name; a regex must match a whole name"
        raise ValueError("\n".join([heading, *problems]))


def misfits(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> dict[str, str]:
    """Return by name a line about each array that is missing in `found`, extra, or of another shape than wanted."""
    lines = {name: f"missing: {name} {wanted[name]}" for name in wanted if name not in found}
    lines |= {name: f"extra: {name} {found[name]}" for name in found if name not in wanted}
    return lines | {
        name: f"wrong shape: {name} is {found[name]}, the network's is {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    }


def path_name(path: Sequence) -> str:
    """Return the name of a path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
