"""Collect in gpu_kit/ what a GPU machine without a network lacks: wheels, weights and data sets. See docs/gpu.md.

    make gpu-kit FER2013_SHEETS=PATH VOTES=PATH/fer2013new.csv WIDERFACE=PATH WEIGHTS="PATH PATH"

The kit is split into gpu_kit/call1, gpu_kit/call2 and so on, because a machine may accept only a limited size in one
transfer, repository included. Each piece is optional: the printed table names the absent pieces and the reason.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
from absl import flags

from affect_jax.data.source import BadRows
from affect_jax.data.widerface import SPLITS, images_of

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
PYTHON_VERSION = "3.12"
PLATFORMS = [f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "1")]
JPEG_QUALITY = 90

KIT = flags.DEFINE_string("kit", str(ROOT / "gpu_kit"), "The folder to fill; an older kit in it is replaced.")
MACHINE = flags.DEFINE_string(
    "machine", str(Path(__file__).with_name("gpu_machine.txt")), "Packages of the GPU machine, one a line."
)
WEIGHTS = flags.DEFINE_spaceseplist("weights", [], "Files of initial weights, separated by spaces.")
FER2013_SHEETS = flags.DEFINE_string(
    "fer2013_sheets", "", "FER2013 as sheets: a folder with make_csv.py, rows.csv and sheets/."
)
VOTES = flags.DEFINE_string("votes", "", "The fer2013new.csv of FER+.")
WIDERFACE = flags.DEFINE_string("widerface", "", "WIDER FACE in the layout of its publishers.")
WIDERFACE_MIB = flags.DEFINE_float("widerface_mib", 40, "MiB of images of WIDER FACE.", 0)
WIDERFACE_SIDE = flags.DEFINE_integer("widerface_side", 640, "Longest side of these images, in pixels.", 32)
CALL_MIB = flags.DEFINE_float("call_mib", 64, "MiB of one transfer, with the files of the repository.", 1)


def main(argv):
    command_line.reject_arguments(argv)
    kit = Path(KIT.value)
    shutil.rmtree(kit, ignore_errors=True)
    everything = kit / "all"
    pieces = {  # in the order of the transfers: the most useful first
        "wheels": lambda folder: download_wheels(Path(MACHINE.value), folder),
        "weights": lambda folder: copy_files(WEIGHTS.value, folder),
        "fer2013": lambda folder: copy_files(sheets_of(FER2013_SHEETS.value), folder),
        "ferplus": lambda folder: copy_files([VOTES.value], folder),
        "widerface": lambda folder: shrink_widerface(
            WIDERFACE.value, folder, WIDERFACE_SIDE.value, WIDERFACE_MIB.value * MIB
        ),
        "video": lambda folder: move_files(everything / "wheels", "av-*.whl", folder),  # no measurement reads videos
    }
    for name, collect in pieces.items():
        try:
            collect(everything / name)
            print(f"{name:10} {size_of(everything / name) / MIB:6.1f} MiB")
        except (ValueError, OSError) as reason:
            shutil.rmtree(everything / name, ignore_errors=True)
            print(f"{name:10} absent: {reason}")
    limit = CALL_MIB.value * MIB - size_of_tree()
    if limit < MIB:
        raise ValueError(f"the repository alone has {size_of_tree() / MIB:.1f} MiB; raise --call_mib")
    calls = split_into_calls(everything, list(pieces), kit, limit)
    print(f"\nThe repository has {size_of_tree() / MIB:.1f} MiB, which each call carries as well:")
    for folder in calls:
        parts = ", ".join(
            f"{part.name} {size_of(part) / MIB:.1f}" for part in sorted(folder.iterdir()) if part.is_dir()
        )
        print(f"{folder.name:10} {size_of(folder) / MIB:6.1f} MiB: {parts}")


# ---- Pieces ----


def download_wheels(machine: Path, folder: Path) -> None:
    """Download the wheels of all packages that affect_jax needs and that the list `machine` lacks.

    ValueError if the versions cannot be chosen or a wheel does not exist.
    """
    present = {normalized(re.split(r"[=<>~ ]", line)[0]) for line in machine.read_text().splitlines()}
    resolve = ["uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate"]
    resolve += [f"--python-version={PYTHON_VERSION}", "--python-platform=x86_64-manylinux_2_28"]
    resolve += ["--no-python-downloads", f"--constraints={machine.resolve()}"]
    for requirement in run_module(resolve).splitlines():
        if normalized(requirement.split("==")[0]) not in present:
            download_wheel(requirement, folder)


def download_wheel(requirement: str, folder: Path) -> None:
    """Download the wheel of `NAME==VERSION`, or build it if only the source of a Python package is published."""
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    download = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={folder}", requirement]
    download += [f"--python-version={PYTHON_VERSION}", "--implementation=cp", *platforms]
    try:
        run_module(download)
    except ValueError:
        run_module(["pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", requirement])
        built = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
        if not built.name.endswith("-none-any.whl"):
            raise ValueError(f"{requirement} has no wheel for Python {PYTHON_VERSION}") from None


def run_module(arguments: list[str]) -> str:
    """Return the output of `python -m ...` at the root; ValueError with its last line if it fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{' '.join(arguments[:2])} failed: {last}")
    return done.stdout


def normalized(name: str) -> str:
    """Return the name of a package in the form in which PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sheets_of(folder: str) -> list[str]:
    """Return the files and folders that FER2013 as sheets needs; none without a folder."""
    return [f"{folder}/{name}" for name in ("make_csv.py", "rows.csv", "sheets")] if folder else []


def copy_files(paths: list[str], folder: Path) -> None:
    """Copy files and folders into a folder; ValueError without paths."""
    if not any(paths):
        raise ValueError("no path was given")
    folder.mkdir(parents=True, exist_ok=True)
    for path in map(Path, paths):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copy(path, folder)


def move_files(source: Path, pattern: str, folder: Path) -> None:
    """Move the files of a folder that match the pattern; ValueError if there are none."""
    if not (found := sorted(source.glob(pattern))):
        raise ValueError(f"{source.name} has no {pattern}")
    folder.mkdir(parents=True, exist_ok=True)
    for file in found:
        file.rename(folder / file.name)


def shrink_widerface(source: str, folder: Path, side: int, limit: float) -> None:
    """Write a part of WIDER FACE of at most `limit` bytes, with images of at most `side` pixels, in the same layout.

    All of val comes first, then a random part of train. Boxes are scaled with their images.
    """
    if not source:
        raise ValueError("no path was given")
    random_order, written = random.Random(0), 0
    for split in reversed(SPLITS):
        labels = Path("wider_face_split") / f"wider_face_{split}_bbx_gt.txt"
        images = list(images_of(Path(source) / labels, BadRows("fail")))
        random_order.shuffle(images)
        lines = []
        for _, name, (number, *faces) in images:
            file = Path(f"WIDER_{split}") / "images" / name
            image = cv2.imread(str(Path(source) / file))
            if image is None:
                raise ValueError(f"{Path(source) / file} is absent or not an image")
            scale = min(1.0, side / max(image.shape[:2]))
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()
            if written + len(encoded) > limit:
                break
            written += len(encoded)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(encoded)
            lines += [name, number, *(scaled(face, scale) if int(number) else face for face in faces)]
        (folder / labels).parent.mkdir(parents=True, exist_ok=True)
        (folder / labels).write_text("\n".join(lines) + "\n")


def scaled(face: str, scale: float) -> str:
    """Return a line of a list of WIDER FACE with its box `x1 y1 w h` scaled."""
    fields = face.split()
    return " ".join([f"{float(value) * scale:.2f}" for value in fields[:4]] + fields[4:])


# ---- Transfers ----


def split_into_calls(everything: Path, names: list[str], kit: Path, limit: float) -> list[Path]:
    """Move the files of the pieces into folders call1, call2, ... of at most `limit` bytes each; return the folders.

    call1/manifest.json lists all files with their sizes and the commit, so that a machine knows what is complete.
    ValueError if a file is larger than the limit.
    """
    sizes = {file: file.stat().st_size for name in names for file in files_of(everything / name)}
    manifest = {
        "commit": git("rev-parse", "--short=12", "HEAD").strip(),
        "files": {file.relative_to(everything).as_posix(): size for file, size in sizes.items()},
    }
    text = json.dumps(manifest, indent=1)
    calls, used = [kit / "call1"], len(text)
    for file, size in sizes.items():
        if size > limit:
            raise ValueError(
                f"{file.name} has {size / MIB:.1f} MiB; {limit / MIB:.1f} fit into a call: raise --call_mib"
            )
        if used + size > limit:
            calls.append(kit / f"call{len(calls) + 1}")
            used = 0
        used += size
        target = calls[-1] / file.relative_to(everything)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    calls[0].mkdir(parents=True, exist_ok=True)
    (calls[0] / "manifest.json").write_text(text)
    shutil.rmtree(everything, ignore_errors=True)
    return calls


def files_of(folder: Path) -> Iterator[Path]:
    """Return the files of a folder and its subfolders, sorted by name."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def size_of(folder: Path) -> int:
    """Return the bytes of the files of a folder."""
    return sum(file.stat().st_size for file in files_of(folder))


def size_of_tree() -> int:
    """Return the bytes of the files of the repository that git does not ignore."""
    names = git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def git(*arguments: str) -> str:
    """Return the output of a git command in the repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    command_line.run(main)
