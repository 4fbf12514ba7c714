"""Packages that only some functions need and that an installation may lack."""

import importlib.util
import sys


def require(*names: str, purpose: str) -> None:
    """Raise ImportError with the pip command unless all packages are installed; imports none of them."""
    if missing := [name for name in names if not is_installed(name)]:
        raise ImportError(f"{purpose} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def is_installed(name: str) -> bool:
    """Return True if the package can be found."""
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None
