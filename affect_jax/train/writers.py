"""Metric writers: metrics.jsonl, the record of a run, and TensorBoard, a view of it.

Writers have the methods of clu.metric_writers.MetricWriter that a run uses. clu's own classes need TensorFlow.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from affect_jax.files import errors_naming, write_atomically
from affect_jax.packages import is_installed

Scalars = Mapping[str, float]


class MetricWriter(Protocol):
    """Methods of a writer."""

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Write numbers by name."""

    def flush(self) -> None:
        """Write buffered records to disk."""

    def close(self) -> None:
        """Finish writing."""


def read_records(path: Path) -> list[dict]:
    """Return the complete records of a file of JsonlWriter; ValueError that names a damaged line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n"):  # the last one may have been cut off by the end of the process
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError(f"{path}, line {number} is damaged; restore or remove this line")
            records.append(record)
    return records


class JsonlWriter:
    """Writes one JSON object per line, {"step": ..., name: value, ...}.

    Records after `first_step`, which an earlier attempt wrote, are dropped.
    """

    def __init__(self, path: Path, first_step: int):
        kept = "".join(json.dumps(record) + "\n" for record in read_records(path) if record["step"] <= first_step)
        if path.exists() and path.read_bytes() != kept.encode():
            write_atomically(path, kept)
        self._file = path.open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Append a record completely or, with OSError, not at all."""
        line = (json.dumps({"step": step, **scalars}) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        with errors_naming(self._file.name):
            try:
                written = self._file.write(line)
                if written < len(line):  # the disk is full; writing the rest raises the error
                    self._file.write(line[written:])
            except OSError:
                self._file.truncate(end)
                raise

    def flush(self) -> None:
        """Do nothing: every record is written at once."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes TensorBoard events with tensorboardX; hides events of an earlier attempt after `first_step`.

    tensorboardX's SummaryWriter is not used: a full disk ends its thread, its queue fills up, and the run hangs.
    """

    def __init__(self, logdir: Path, first_step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._logdir, self._summary, self._event = logdir, summary, event_pb2.Event
        self._events = event_file_writer.EventsWriter(str(logdir / "events"))
        self._write(first_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **content))

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Write numbers by name."""
        for name, value in scalars.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def flush(self) -> None:
        """Write buffered events to disk."""
        with errors_naming(self._logdir):
            self._events.flush()

    def close(self) -> None:
        """Close the file."""
        self._events.close()


def tensorboard_writer(logdir: Path, first_step: int) -> MetricWriter:
    """Return clu's own writer if TensorFlow and tensorboard are installed, else TensorBoardWriter."""
    if is_installed("tensorflow") and is_installed("tensorboard"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(logdir))
    return TensorBoardWriter(logdir, first_step)
