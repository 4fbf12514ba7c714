"""Helpers of the tests in this folder: a script as several processes on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = """
import linear_model  # a network of the tests
from affect_jax.runs.workdir import Workdir, load_config

def get_config():
    return load_config(Workdir({path!r}))
"""


def config_of(run: Path, folder: Path) -> str:
    """Write a config file that loads the config of a run, and return the argument of the scripts."""
    file = folder / "config.py"
    file.write_text(CONFIG.format(path=str(run)))
    return f"--config={file}"


def start_processes(number: int, script: str | Path, *arguments: str) -> list[subprocess.Popen]:
    """Start the script as `number` processes that join each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(script), *map(str, arguments)]
    others = [f"--coordinator_address={address}", f"--num_processes={number}"]
    return [
        subprocess.Popen(
            [*command, *others, f"--process_id={place}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for place in range(number)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Wait for the processes; return exit status and output of each."""
    outputs = [process.communicate()[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
