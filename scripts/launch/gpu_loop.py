"""Run the parts of a GPU session: bounded commands in lanes, the state of each part, and the results to bring back."""

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PIECE_BYTES, MAX_PIECES = 16 << 20, 4
"""Limits of the way back."""
GRACE_S = 15
"""Seconds in which a stopped part saves its checkpoint."""
XLA_PLACES = "=== Source Location Trace"
"""Line after the message of an error of XLA."""
POLL_S = 0.2
"""Seconds between two looks for the files that a command waits for."""
STATES, BROUGHT_BACK = "states", "brought_back.txt"
"""Folder of the states of the parts, and list of the files that were brought back, in the folder of the session."""
HEADER_BYTES = 2048
"""Bytes of a file in an archive besides its own, at most."""
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
    may_fail: bool = False
    """True if the next command of the lane runs also if this one fails."""


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
    parts: Sequence[Part],
    work: Path,
    budget_s: float,
    environment: dict[str, str],
    out: Path | None = None,
    results: Sequence[str] = (),
) -> dict[str, dict]:
    """Run the parts within the budget, in order; return the state of each: "status", "seconds" and "note".

    Further rounds resume the stopped parts, each with its bound again. The states are kept in `work`, the folder of the
    session, so that other sessions may run other parts there. After each part the files of `work` that match `results`
    are brought back to `out`, unless it is None, without those that an earlier session brought back and that have not
    changed since.
    """
    end = time.monotonic() + budget_s
    (work / STATES).mkdir(parents=True, exist_ok=True)
    states = {part.name: read_state(work, part.name) for part in parts}
    earlier = read_lines(work / BROUGHT_BACK)
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
            (work / STATES / f"{part.name}.json").write_text(json.dumps(state))
            if out:
                bring_back(out, work, [f"{STATES}/*.json", "*.log", *results], earlier)
            has_run |= status in ("done", "stopped")
            if status == "failed":
                waiting.remove(part)
    return states


def read_state(work: Path, name: str) -> dict:
    """Return the state of a part."""
    file = work / STATES / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {"status": "not started", "seconds": 0.0, "note": ""}


def read_lines(file: Path) -> set[str]:
    """Return the lines of a file; none if it does not exist."""
    return set(file.read_text().splitlines()) if file.exists() else set()


def run_part(part: Part, log: Path, bound_s: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run the commands of a part for at most `bound_s` seconds; return its status and a note.

    The status is "done", "stopped", "failed" with the exit status and the last line of the output, or "absent" with
    what is missing. A part is stopped if one of its lanes is, also if another lane failed. Each lane of the part has a
    log; that of LANE is NAME_LANE.log instead of NAME.log.
    """
    if missing := [name for name in part.needs if not Path(name).exists()]:
        return "absent", f"no {', '.join(missing)}"
    names = list(dict.fromkeys(command.lane for command in part.commands))
    if len(names) > 1:  # they share the memory of the GPU
        environment = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    end = time.monotonic() + bound_s
    lanes = [
        Lane(
            [command for command in part.commands if command.lane == name],
            log.with_stem(f"{log.stem}_{name}") if name else log,
            environment,
        )
        for name in names
    ]
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            ended = list(pool.map(lambda lane: lane.run(end, lanes), lanes))
        except BaseException:  # a signal ends the session: without their processes the threads end too
            for lane in lanes:
                lane.kill()
            raise
    status = next(status for status in ("stopped", "failed", "done") if status in dict(ended))
    notes = [f"{name}: {note}" if name else note for name, (_, note) in zip(names, ended, strict=True) if note]
    return status, "; ".join(notes)


class Lane:
    """Commands of a part that run in order, with one log."""

    def __init__(self, commands: Sequence[Command], log: Path, environment: dict[str, str]):
        self.commands, self.log, self.environment = commands, log, environment
        self.process: subprocess.Popen | None = None
        self.is_killed = False
        self.is_active = True
        """False while the lane waits for files of other lanes, and when it has ended."""

    def run(self, end: float, lanes: Sequence["Lane"]) -> tuple[str, str]:
        """Run the commands until the time `end`, beside the other `lanes`; return the status and a note."""
        try:
            with self.log.open("a") as output:
                for command in self.commands:
                    if command.creates and Path(command.creates).exists():
                        continue
                    if problem := self._wait_for(command.waits_for, end, lanes):
                        return problem
                    print(f"$ {' '.join(command.words)}", file=output, flush=True)
                    code = self._run_command(command.words, output, end - time.monotonic())
                    if code is None:
                        return "stopped", "at the bound"
                    if code and not command.may_fail:
                        return "failed", f"exit status {code}: {last_line(self.log)}"
            return "done", ""
        finally:
            self.is_active = False

    def kill(self) -> None:
        """End the lane and its process at once."""
        self.is_killed = True
        if self.process:
            kill_group(self.process, signal.SIGKILL)

    def _wait_for(self, files: Sequence[str], end: float, lanes: Sequence["Lane"]) -> tuple[str, str] | None:
        """Wait until all files exist; return None, or the status and a note if the wait ends without them."""
        self.is_active = False
        while True:
            others_work = any(lane.is_active for lane in lanes)  # before the look for what they have created
            if not (missing := next((file for file in files if not Path(file).exists()), "")):
                self.is_active = True
                return None
            if self.is_killed or time.monotonic() > end:
                return "stopped", f"waiting for {missing}"
            if not others_work:
                return "failed", f"no lane created {missing}"
            time.sleep(POLL_S)

    def _run_command(self, words: Sequence[str], output, bound_s: float) -> int | None:
        """Run a command and its children; return its exit status, or None if it was stopped at the bound.

        A stopped command gets SIGTERM, and SIGKILL after GRACE_S seconds or when all of its processes have ended.
        """
        try:
            self.process = subprocess.Popen(
                words, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            print(error, file=output, flush=True)
            return 127
        if self.is_killed:
            self.kill()
        try:
            return self.process.wait(max(bound_s, 0))
        except subprocess.TimeoutExpired:
            killed = time.monotonic() + GRACE_S
            kill_group(self.process, signal.SIGTERM)
            while time.monotonic() < killed and group_is_alive(self.process):
                time.sleep(POLL_S)
            return None
        finally:
            kill_group(self.process, signal.SIGKILL)  # also children that outlive the command
            self.process.wait()


def kill_group(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def group_is_alive(process: subprocess.Popen) -> bool:
    """Return True if a process or one of its children has not ended."""
    process.poll()  # a process that has ended and was not waited for would count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, without progress bars and places in XLA's source."""
    text = log.read_text(errors="replace").replace("\r", "\n")
    end = text.rfind(XLA_PLACES)
    lines = [line.strip() for line in text[: end if end >= 0 else None].splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def describe(name: str, state: dict) -> str:
    """Return the line of a part in the table."""
    return f"{name:18} {state['status']:12} {state['seconds']:7.1f} s  {state['note']}".rstrip()


def bring_back(out: Path, work: Path, patterns: Sequence[str], earlier: set[str]) -> None:
    """Write the files that match to an archive in pieces, session.tar.0, session.tar.1 and so on.

    Small files come first. Files in the list `earlier` are left out, and those for which there is no room are named.
    BROUGHT_BACK in `work` gets the list for the next session.
    """
    files = {file for pattern in patterns for file in work.glob(pattern) if file.is_file()}
    sizes = {file: file.stat().st_size for file in files if identity(file, work) not in earlier}
    chosen, size = [], tarfile.RECORDSIZE  # of the end of the archive
    for file in sorted(sizes, key=lambda file: (sizes[file], file)):
        bytes_of_file = HEADER_BYTES + sizes[file]
        if size + bytes_of_file > PIECE_BYTES * MAX_PIECES:
            print(f"no room for {file.relative_to(work)}: the next session brings it back", flush=True)
            continue
        chosen.append(file)
        size += bytes_of_file
    archive, identities = io.BytesIO(), [identity(file, work) for file in chosen]
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in chosen:
            tar.add(file, file.relative_to(work))
    archive.seek(0)
    out.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(iter(lambda: archive.read(PIECE_BYTES), b"")):
        (out / f"session.tar.{number}").write_bytes(piece)
    (work / BROUGHT_BACK).write_text("\n".join(sorted(earlier.union(identities))))


def identity(file: Path, work: Path) -> str:
    """Return name, size and time of change of a file."""
    status = file.stat()
    return f"{file.relative_to(work)} {status.st_size} {status.st_mtime_ns}"
