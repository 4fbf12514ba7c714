"""Commands, flags, configs, paths, links and images in the documentation exist; its results equal the records."""

import ast
import importlib
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from absl import flags

from affect_jax.config import DEFAULTS
from affect_jax.data import DATASETS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "make", "pip", "bash", "sbatch", "scripts/launch/")
FOLDERS = ("configs", "scripts", "docs", "results", "affect_jax", "notebooks", "tests")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def code_spans(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page, without the variables that are set before it."""
    lines = [line for fence in fences(page, "bash") for line in fence.splitlines()]
    spans = [span for span in code_spans(page) if " " in span and span.startswith(PROGRAMS)]
    for line in lines + spans:
        if words := shlex.split(line, comments=True):
            while re.match(r"[A-Z0-9_]+=", words[0]):
                words = words[1:]
            yield words


def check_command(words: list[str]) -> None:
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", Path("Makefile").read_text(), re.MULTILINE)
        assert {argument for argument in arguments if "=" not in argument} <= {*targets, ".venv/.installed"}
    elif program == "pip":
        extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert arguments[-1] in {".", *(f".[{extra}]" for extra in extras)}
    elif program in ("bash", "sbatch") or program.startswith("scripts/launch/"):
        script, *rest = words if program.startswith("scripts/") else arguments
        assert Path(script).is_file()
        start = next((number for number, word in enumerate(rest) if word.startswith("--")), len(rest))
        if rest:  # launchers end in the arguments of a script, that of training by default
            named = [word for word in rest[:start] if word.endswith(".py")]
            check_script(Path(named[0] if named else "scripts/train.py"), rest[start:])
    elif arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[0] == "-m":
        check_script(Path(*arguments[1].split("."), "__main__.py"), arguments[2:])
    else:
        check_script(Path(arguments[0]), arguments[1:])


def check_script(script: Path, arguments: list[str]) -> None:
    """Parse the arguments with the script's own flags; a config is loaded, and fields set on it have to exist."""
    assert script.is_file()
    if script.parts[0] == "docs":
        return
    before = set(flags.FLAGS)
    for name in [name for name in sys.modules if name.startswith("affect_jax.") and name.endswith(".__main__")]:
        del sys.modules[name]  # which defines its flags when it is imported
    try:
        runpy.run_path(str(script), run_name="documentation")
        argv = [script.name, *(argument for argument in arguments if argument.startswith("-"))]
        with mock.patch.object(sys, "argv", argv):  # where config_flags looks for the fields that are set
            flags.FLAGS(argv)
        for run in flags.FLAGS["run"].value if script.name == "sweep.py" else ():
            name, _, config = run.partition("=")
            assert name.strip()
            nested = [f"--config={shlex.split(config)[0]}", *shlex.split(config)[1:]]
            pending.append((Path("scripts/train.py"), nested))
    finally:
        flags.FLAGS.unparse_flags()
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
        flags.FLAGS.mark_as_parsed()  # as conftest.py does, for grain
    positional = [argument for argument in arguments if not argument.startswith("-")]
    if script.name in ("prepare_data.py", "audit_data.py"):
        assert positional[0] in DATASETS
    for path in positional:
        assert not path.startswith("results/") or Path(path).is_dir()
    while pending:
        check_script(*pending.pop())


pending: list[tuple[Path, list[str]]] = []


@each_page
def test_commands_have_scripts_flags_and_configs_that_exist(page):
    for words in commands(page):
        try:
            check_command(words)
        except Exception as error:
            raise AssertionError(f"{page.name}: {shlex.join(words)}: {error}") from error


@each_page
def test_python_examples_import_names_that_exist(page):
    for code in fences(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


@each_page
def test_paths_and_config_fields_in_the_text_exist(page):
    configs = [make() for make in DEFAULTS.values()]
    configs += [runpy.run_path(str(path))["get_config"]() for path in Path("configs").glob("*.py")]
    fields = {path for config in configs for path in field_paths(config)}
    for span in code_spans(page):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w/.-]*\w(:\w+)?", span):
            path, _, variant = span.partition(":")
            assert Path(path).exists() or "NAME" in path, span
            assert not variant or runpy.run_path(path)["get_config"](variant)
        elif match := re.fullmatch(r"(\w+\.py):(\w+)", span):
            assert runpy.run_path(f"configs/{match[1]}")["get_config"](match[2])
        elif match := re.fullmatch(r"(?:--)?config\.([\w.]+)(=.*)?", span):
            assert match[1] in fields or match[1] == "json", span


def field_paths(config, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield prefix + name
        if hasattr(value, "items"):
            yield from field_paths(value, f"{prefix}{name}.")


@each_page
def test_every_table_begins_with_a_header(page):
    lines = ["", *page.read_text().splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"[| -]+", after), line


@each_page
def test_links_and_images_exist(page):
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert text and path.exists(), target
        assert not anchor or anchor in {slug(line) for line in path.read_text().splitlines() if line.startswith("#")}


def slug(heading: str) -> str:
    """The anchor of a heading: lower case, hyphens for spaces, no punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def test_readme_is_short_and_links_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in text


def test_every_config_and_script_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    for path in [*(ROOT / "configs").glob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert str(path.relative_to(ROOT)) in text


def test_images_are_small_and_all_shown():
    text = "\n".join(page.read_text() for page in PAGES)
    images = list((ROOT / "docs" / "images").iterdir())
    assert sum(image.stat().st_size for image in images) < 1.5e6
    assert all(f"images/{image.name})" in text for image in images)


def results_pages() -> str:
    return "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "results_details.md"))


def test_results_of_classifiers_are_those_of_their_records():
    rows = [line for line in results_pages().splitlines() if line.startswith("|")]
    records = {match[1]: row for row in rows if (match := re.search(r"\| `(\w+)` \|$", row))}
    assert len(records) == 24
    for name, row in records.items():
        metrics = json.loads((ROOT / "results" / name / "metrics.json").read_text())
        for split in ("val", "test"):
            shares = metrics[split]["accuracy"], *metrics[split]["accuracy_ci95"]
            accuracy, low, high = (f"{100 * share:.1f}" for share in shares)
            assert f"{accuracy} ({low} to {high})" in row
        assert f"`--tta=flip` {metrics['test_tta_flip']['accuracy']:.1%}".removesuffix("%") in row


@pytest.mark.parametrize("record", ["widerface_mobilenet", "widerface_yunet", "darkface_simulated"])
def test_results_of_a_detector_are_those_of_its_record(record):
    text = results_pages()
    for name, metrics in json.loads((ROOT / "results" / record / "metrics.json").read_text()).items():
        if "large_faces" in name:
            assert re.search(rf"large face.*\| {metrics['repeated']['repeated']} \|.* 4 \| 0 \|", text)
            continue
        ap50, low, high = (f"{100 * share:.1f}" for share in (metrics["ap50"], *metrics["ap50_ci95"]))
        assert (f"| {ap50} |" if name.startswith("darkface") else f"| {ap50} ({low} to {high}) |") in text
