"""Run the parts of a GPU session: bounded commands in lanes, the state of each part, and the results to bring back."""

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MOST_BYTES, MOST_ARCHIVES = (16 << 20) - 10_240, 4
"""Limits of the way back, 64 MiB in all; the end of an archive takes up to 10,240 bytes."""
GRACE_S = 15
"""Seconds in which a stopped part saves its checkpoint."""
XLA_PLACES = "=== Source Location Trace"
"""Line after the message of an error of XLA."""
POLL_S = 0.2
LEAST_S = 10
"""Seconds under which no part is started."""


class Command(NamedTuple):
    """A command of a part; it is skipped if the file that it creates exists."""

    words: Sequence[str]
    creates: str = ""
    lane: str = ""
    """Commands of one lane run in order, those of different lanes at the same time; "" if the part has one lane."""
    waits_for: Sequence[str] = ()
    """Files that commands of other lanes create; the command starts when all exist."""


class Part(NamedTuple):
    """A part of the session."""

    name: str
    bound_s: float
    commands: Sequence[Command]
    needs: Sequence[str] = ()
    """Files or folders without which the part is not started."""
    results: Sequence[str] = ()
    """Patterns of the files to bring back, below the folder of the session; logs are brought back in any case."""


def run_parts(
    parts: Sequence[Part], work: Path, out: Path, budget_s: float, environment: dict[str, str]
) -> dict[str, dict]:
    """Run the parts within the budget, in order; return the state of each: "status", "seconds" and "note".

    Further rounds resume the stopped parts, each with its bound again. The states are kept in parts.json in `work`, the
    folder of the session.
    """
    end = time.monotonic() + budget_s
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    file = work / "parts.json"
    states = json.loads(file.read_text()) if file.exists() else {}
    for part in parts:
        states.setdefault(part.name, {"status": "not started", "seconds": 0.0, "note": ""})
    waiting, has_run = list(parts), True
    while has_run:
        waiting, has_run = [part for part in waiting if states[part.name]["status"] != "done"], False
        for part in list(waiting):
            start, state = time.monotonic(), states[part.name]
            left = end - start - GRACE_S
            if left < LEAST_S:
                return states
            status, note = run_part(part, work / f"{part.name}.log", min(part.bound_s, left), environment)
            state.update(status=status, note=note, seconds=round(state["seconds"] + time.monotonic() - start, 1))
            print(describe(part.name, state), flush=True)
            file.write_text(json.dumps(states, indent=1))
            results = [pattern for part in parts for pattern in part.results]
            bring_back(out, "session", work, ["parts.json", "*.log", *results])
            has_run |= status in ("done", "stopped")
            if status == "failed":
                waiting.remove(part)
    return states


def run_part(part: Part, log: Path, bound_s: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run the commands of a part for at most `bound_s` seconds; return its status and a note.

    The status is "done", "stopped", "failed" with the exit status and the last line of the output, or "absent" with
    what is missing. Each lane of the part has a log; that of LANE is NAME_LANE.log instead of NAME.log.
    """
    if missing := [name for name in part.needs if not Path(name).exists()]:
        return "absent", f"no {', '.join(missing)}"
    lanes: dict[str, list[Command]] = {}
    for command in part.commands:
        lanes.setdefault(command.lane, []).append(command)
    if len(lanes) > 1:  # they share the memory of the GPU
        environment = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    running: set[subprocess.Popen] = set()

    def run(lane: str) -> tuple[str, str]:
        file = log.with_stem(f"{log.stem}_{lane}") if lane else log
        status, note = run_lane(lanes[lane], file, bound_s, environment, running)
        return status, f"{lane}: {note}" if lane and note else note

    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            ended = list(pool.map(run, lanes))
        except BaseException:  # a signal ends the session: without their processes the threads end too
            for process in running.copy():
                os.killpg(process.pid, signal.SIGKILL)
            raise
    status = next(status for status in ("failed", "stopped", "done") if status in dict(ended))
    return status, "; ".join(note for _, note in ended if note)


def run_lane(
    commands: Sequence[Command],
    log: Path,
    bound_s: float,
    environment: dict[str, str],
    running: set[subprocess.Popen],
) -> tuple[str, str]:
    """Run commands in order for at most `bound_s` seconds; return the status and a note, as run_part does.

    The process that runs is in the set `running`.
    """
    end = time.monotonic() + bound_s
    with log.open("a") as output:
        for command in commands:
            if command.creates and Path(command.creates).exists():
                continue
            while not all(Path(file).exists() for file in command.waits_for):
                if time.monotonic() > end:
                    return "stopped", f"after {bound_s:.0f} s"
                time.sleep(POLL_S)
            print(f"$ {' '.join(command.words)}", file=output, flush=True)
            code = run_bounded(command.words, output, end - time.monotonic(), environment, running)
            if code is None:
                return "stopped", f"after {bound_s:.0f} s"
            if code:
                return "failed", f"exit status {code}: {last_line(log)}"
    return "done", ""


def run_bounded(
    words: Sequence[str], output, bound_s: float, environment: dict[str, str], running: set[subprocess.Popen]
) -> int | None:
    """Run a command and its children; return its exit status, or None if it was stopped at the bound.

    A stopped command gets SIGTERM, and SIGKILL GRACE_S seconds later.
    """
    try:
        process = subprocess.Popen(
            words, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        print(error, file=output, flush=True)
        return 127
    running.add(process)
    try:
        return process.wait(max(bound_s, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return None
    finally:
        with suppress(ProcessLookupError):  # also children that outlive the command
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        running.remove(process)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, without progress bars and places in XLA's source."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    end = text.rfind(XLA_PLACES)
    lines = [line.strip() for line in text[: end if end >= 0 else None].splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def describe(name: str, state: dict) -> str:
    """Return the line of a part in the table."""
    return f"{name:18} {state['status']:12} {state['seconds']:7.1f} s  {state['note']}".rstrip()


def bring_back(out: Path, name: str, work: Path, patterns: Sequence[str]) -> None:
    """Write the files that match to archives NAME_0.tar.gz, NAME_1.tar.gz and so on of at most MOST_BYTES.

    Small files come first. Files that are too large, or for which MOST_ARCHIVES are too few, are named.
    """
    files = {file for pattern in patterns for file in work.glob(pattern) if file.is_file()}
    archives, size = [[]], 0
    for file in sorted(files, key=lambda file: (file.stat().st_size, file)):
        bytes_of_file = file.stat().st_size + 1024  # before compression, which hardly shrinks weights
        is_full = size + bytes_of_file > MOST_BYTES
        if bytes_of_file > MOST_BYTES or (is_full and len(archives) == MOST_ARCHIVES):
            print(f"{name} lacks {file.relative_to(work)}: too large for the way back", flush=True)
            continue
        if is_full:
            archives.append([])
            size = 0
        archives[-1].append(file)
        size += bytes_of_file
    for number, files in enumerate(archives):
        temporary = work / f"{name}_{number}.tar.gz"
        with tarfile.open(temporary, "w:gz") as tar:
            for file in files:
                tar.add(file, file.relative_to(work))
        shutil.move(temporary, out / temporary.name)
