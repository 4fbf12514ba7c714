"""Start the scripts: each in a new process as a user does, or in a fork of a process that has done the slow imports.

Run as a program, this file is that process: it reads jobs from stdin, one JSON object a line, and prints exit codes.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(name: str, *arguments) -> list[str]:
    """Return the command of a script, to be run in ROOT."""
    return [sys.executable, f"scripts/{name}.py", *map(str, arguments)]


def start(name: str, *arguments, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a new process, with further environment variables."""
    environment = {**os.environ, **environment}
    return subprocess.run(command(name, *arguments), cwd=ROOT, capture_output=True, text=True, env=environment)


def fork(name: str, *arguments) -> subprocess.CompletedProcess:
    """Run a script in a fork, which saves the seconds of its imports."""
    _, *argv = command(name, *arguments)
    server = fork_server()
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        print(json.dumps({"argv": argv, "outputs": [stdout.name, stderr.name]}), file=server.stdin, flush=True)
        return subprocess.CompletedProcess(argv, int(server.stdout.readline()), stdout.read(), stderr.read())


@functools.cache
def fork_server() -> subprocess.Popen:
    """Start the process to fork; it ends with the tests, which hold its stdin."""
    return subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    import runpy

    import affect_jax.runs.comparison_report
    import affect_jax.runs.evaluation
    import affect_jax.runs.training  # noqa: F401

    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    else:
        sys.exit()
    job = json.loads(line)
    for number, file in enumerate(job["outputs"], start=1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = job["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")
