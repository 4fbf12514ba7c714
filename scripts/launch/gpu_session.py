"""Measure on a machine with one NVIDIA GPU and no network, within a budget of seconds, the most useful parts first:

    BUDGET_S=560 python3 scripts/launch/gpu_session.py

`make gpu-kit` collects what the machine lacks. Only missing packages are installed; the JAX and PyTorch of the machine
stay. Each part stops at its bound, and the next part starts. Rerun the command to resume: finished parts are skipped,
stopped parts resume from their checkpoint, and failed parts start again. The results are in runs/gpu, and after every
part in the folder $OUT if it is set: an archive in at most 4 pieces of 16 MiB. The next session brings back what had no
room. DRY_RUN=1 runs all parts on CPU, each cut to seconds.

This file imports only Python's own modules, because it installs the other packages. See docs/gpu.md.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_loop import Part, describe, run_parts
from gpu_parts import WORK, session_parts

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "gpu_kit"
NO_PART = "none"
DRY_RUN_BOUNDS = 5.0
"""Factor on the bounds on CPU."""


def gather_kit(kit: Path, target: Path) -> list[str]:
    """Copy the pieces of the kit that have arrived completely to `target`; return a line for each piece.

    Transfers bring the folders call1, call2, ...; the manifest in call1 lists all files. What arrived earlier stays.
    """
    manifest = kit / "call1" / "manifest.json"
    if not manifest.exists():
        return [f"{kit.name} has no call1/manifest.json: only what is installed and prepared here is used"]
    found = {
        file.relative_to(call).as_posix(): file
        for call in kit.glob("call*")
        for file in call.rglob("*")
        if file.is_file()
    }
    listed = json.loads(manifest.read_text())["files"]
    lines = []
    for piece in dict.fromkeys(name.split("/")[0] for name in listed):
        names = [name for name in listed if name.startswith(f"{piece}/")]
        here = [name for name in names if name in found and found[name].stat().st_size == listed[name]]
        lines.append(f"{piece}: {len(here)} of {len(names)} files")
        if len(here) == len(names) and not (target / piece).exists():
            partial = target / f"{piece}.partial"
            for name in names:
                copy = partial / name.partition("/")[2]
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found[name], copy)
            partial.rename(target / piece)
    return lines


def install_wheels(folder: Path, site: Path) -> str:
    """Install the wheels of packages that this Python lacks into `site`, without a network; return a line."""
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not is_installed(wheel.name.split("-")[0])]
    if site.exists() or not wheels:
        return f"{site}: {'installed before' if site.exists() else 'no wheels to install'}"
    partial = site.with_name(f"{site.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    subprocess.run([sys.executable, *install, f"--target={partial}", *map(str, wheels)], check=True)
    partial.rename(site)
    return f"{site}: installed {', '.join(wheel.name.split('-')[0] for wheel in wheels)}"


def is_installed(name: str) -> bool:
    """Return True if this Python has the package, whatever its version."""
    try:
        importlib.metadata.version(re.sub(r"[-_.]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def chosen_parts(parts: Sequence[Part]) -> list[Part]:
    """Return the parts that the command line names, in order: all without names, none with NO_PART."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in parts]
    parser.add_argument("part", nargs="*", help=f"{', '.join(names)}, or {NO_PART}, which only installs; default: all")
    chosen = parser.parse_args().part or names
    if unknown := set(chosen) - {*names, NO_PART}:
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(names)}, {NO_PART}")
    return [part for part in parts if part.name in chosen]


def main() -> None:
    end = time.monotonic() + float(os.environ.get("BUDGET_S", "660"))
    dry_run = os.environ.get("DRY_RUN", "0") != "0"
    everything = session_parts(dry_run)
    parts = chosen_parts(everything)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.chdir(ROOT)
    print("\n".join(gather_kit(KIT, WORK / "kit")), flush=True)
    for piece in ("wheels", "video"):
        print(install_wheels(WORK / "kit" / piece, WORK / f"site_{piece}"), flush=True)
    paths = [ROOT, ROOT / WORK / "site_wheels", ROOT / WORK / "site_video", os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / WORK / "xla"),
        "JAX_TRACEBACK_FILTERING": "off",  # the last line of the output is then the error
        "JAX_PLATFORMS": "cuda,cpu",
    }
    if dry_run:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
        parts = [part._replace(bound_s=DRY_RUN_BOUNDS * part.bound_s) for part in parts]
    out = Path(os.environ["OUT"]) if "OUT" in os.environ else None
    results = [pattern for part in everything for pattern in part.results]
    states = run_parts(parts, WORK, end - time.monotonic(), environment, out, results)
    print("\n".join(["", *(describe(part.name, states[part.name]) for part in parts)]))
    sys.exit(any(state["status"] == "failed" for state in states.values()))


if __name__ == "__main__":
    main()
