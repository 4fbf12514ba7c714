"""The folders of docs/architecture.md, checked by reading every import statement."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "affect_jax"
BASE = {
    "command_line",
    "config",
    "config_checks",
    "files",
    "labels",
    "losses",
    "names",
    "packages",
    "process",
    "recipes",
}
LAYERS = (
    {"ops"},
    {"models", "evaluate", "data"},
    {"tasks"},
    {"train"},
    {"runs"},
    {"predict"},
    {"export"},
    {"benchmark"},
)
"""Packages from the lowest layer to the highest; a package imports itself and lower layers."""
MAY_IMPORT = {"__init__": set(), **dict.fromkeys(BASE, BASE)}
for height, layer in enumerate(LAYERS):
    for package in layer:
        MAY_IMPORT[package] = {package} | BASE | set().union(*LAYERS[:height])
MAY_IMPORT["ops"] = {"ops"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {node.module} if node.module != "affect_jax" else {f"affect_jax.{a.name}" for a in node.names}
    return names


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("affect_jax.")}
    assert ours <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_stay_in_their_layer(path):
    layer = path.relative_to(PACKAGE).parts[0]
    roots = {name.split(".")[0] for name in imports(path)}
    assert "flax" not in roots or layer == "models" or path == PACKAGE / "train" / "state.py"
    assert "tensorflow" not in roots
    if layer == "ops":
        assert roots <= {"jax", "numpy", "scipy", "affect_jax", *sys.stdlib_module_names}  # SciPy for constants
    if layer == "data":
        assert "jax" not in roots


def test_importing_everything_starts_no_device_and_no_tensorflow():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if path.stem != "__init__"]
    program = "\n".join(
        [
            "import importlib, sys",
            f"for name in {modules}: importlib.import_module(name)",
            "from jax._src import xla_bridge",
            "assert not xla_bridge.backends_are_initialized(), 'a device was started'",
            "assert 'tensorflow' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_configs_import_only_fields_and_recipes():
    for path in (ROOT / "configs").glob("*.py"):
        assert imports(path) <= {"ml_collections", "affect_jax.config", "affect_jax.recipes"}
