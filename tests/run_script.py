"""Start the scripts: each in a new process as a user does, or in a fork of a process that has done the slow imports.

Run as a program, this file is that process. It reads jobs from stdin, one JSON object a line: a job with "argv" is
forked and its pid printed; a job with "wait" is waited for and its exit code printed.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
AS_USERS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}
"""Environment variables with which a new process compiles as for users, not as conftest.py sets it."""


def command(name: str, *arguments) -> list[str]:
    """Return the command of a script, to be run in ROOT."""
    return [sys.executable, f"scripts/{name}.py", *map(str, arguments)]


def load_script(name: str) -> ModuleType:
    """Return a script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(name: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a new process, with further environment variables."""
    environment = {**os.environ, **environment}
    return subprocess.run(command(name, *arguments), cwd=ROOT, capture_output=True, text=True, env=environment)


def fork(name: str, *arguments) -> subprocess.CompletedProcess:
    """Run a script in a fork, which saves the seconds of its imports. It can use the networks of the tests."""
    _, *argv = command(name, *arguments)
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        process = Forked(argv, stdout.name, stderr.name)
        return subprocess.CompletedProcess(argv, process.wait(), stdout.read(), stderr.read())


class Forked:
    """A running fork: the script argv[0] in ROOT with these arguments, outputs and settings of JAX."""

    def __init__(self, argv: list[str], stdout: str, stderr: str, **settings):
        self.pid = ask_server({"argv": argv, "outputs": [stdout, stderr], "settings": settings})

    def wait(self) -> int:
        """Return the exit code, negative for a signal, once the script has ended."""
        return ask_server({"wait": self.pid})


def ask_server(job: dict) -> int:
    """Send a job to the process to fork and return its answer."""
    server = fork_server()
    print(json.dumps(job), file=server.stdin, flush=True)
    return int(server.stdout.readline())


@functools.cache
def fork_server() -> subprocess.Popen:
    """Start the process to fork; it ends with the tests, which hold its stdin."""
    return subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    import runpy

    import jax
    import linear_model  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import tiny_detector  # noqa: F401

    import affect_jax.runs.comparison_report
    import affect_jax.runs.evaluation
    import affect_jax.runs.training  # noqa: F401

    while line := sys.stdin.readline():
        job = json.loads(line)
        if "wait" in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            break
    else:
        sys.exit()
    for number, file in enumerate(job["outputs"], start=1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in job["settings"].items():
        jax.config.update(name, value)
    sys.argv = job["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")
