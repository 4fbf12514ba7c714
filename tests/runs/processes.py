"""Helpers of the tests in this folder: a script as several processes on this machine."""

import os
import signal
import socket
import tempfile
from pathlib import Path

from run_script import Forked

CONFIG = """
from affect_jax.runs.workdir import Workdir, load_config

def get_config():
    return load_config(Workdir({path!r}))
"""


def config_of(run: Path, folder: Path) -> str:
    """Write a config file that loads the config of a run, and return the argument of the scripts."""
    file = folder / "config.py"
    file.write_text(CONFIG.format(path=str(run)))
    return f"--config={file}"


class Process:
    """A script in a fork, whose output can be read while it runs."""

    def __init__(self, argv: list[str]):
        with tempfile.TemporaryDirectory() as folder:
            pipe = f"{folder}/output"
            os.mkfifo(pipe)
            self._fork = Forked(argv, pipe, "/dev/stdout", jax_platforms="cpu")
            self.output = open(pipe)  # noqa: SIM115

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self._fork.pid, signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit status and the rest of the output."""
        with self.output:
            rest = self.output.read()
        return self._fork.wait(), rest


def start_processes(number: int, script: str | Path, *arguments: str) -> list[Process]:
    """Start the script as `number` processes that join each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    others = [f"--coordinator_address={address}", f"--num_processes={number}"]
    return [Process([str(script), *map(str, arguments), *others, f"--process_id={place}"]) for place in range(number)]


def ended(processes: list[Process]) -> list[tuple[int, str]]:
    """Wait for the processes; return exit status and output of each."""
    return [process.end() for process in processes]
