"""Where metrics go: metrics.jsonl, which is the record, and TensorBoard, which is a view of it.

Writers have the methods of clu.metric_writers.MetricWriter, whose own classes cannot be imported without TensorFlow.
"""

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from affect_jax.files import errors_naming, write_atomically

Scalars = Mapping[str, float]


class JsonlWriter:
    """One JSON object a line, {"step": ..., name: value, ...}; drops what an earlier try wrote past `first_step`."""

    def __init__(self, path: Path, first_step: int):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        if kept != lines:
            write_atomically(path, "".join(kept))
        self._file = path.open("ab", buffering=0)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Append a record, whole or, with OSError, not at all."""
        line = (json.dumps({"step": step, **scalars}) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        with errors_naming(self._file.name):
            try:
                written = self._file.write(line)
                if written < len(line):  # the disk is full, and says so of the rest
                    self._file.write(line[written:])
            except OSError:
                self._file.truncate(end)
                raise

    def flush(self) -> None:
        """Nothing: a record is with the system as soon as it is written."""

    def close(self) -> None:
        """End writing."""
        self._file.close()


class TensorBoardWriter:
    """TensorBoard events in tensorboardX' format; hides events of an earlier try past `first_step`.

    Without its SummaryWriter, whose thread a full disk ends, whereupon its queue fills up and the run waits forever.
    """

    def __init__(self, logdir: Path, first_step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._logdir, self._summary, self._event = logdir, summary, event_pb2.Event
        self._events = event_file_writer.EventsWriter(str(logdir / "events"))
        if first_step:
            self._write(first_step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **content))

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Write numbers by name."""
        for name, value in scalars.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write batches of images [B, H, W, C] by name, uint8 or float in [0, 1]."""
        for name, batch in images.items():
            self._write(step, summary=self._summary.image(name, batch, dataformats="NHWC"))

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Write the distributions of arrays by name."""
        for name, array in arrays.items():
            self._write(step, summary=self._summary.histogram(name, array, (num_buckets or {}).get(name, 30)))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts, Markdown, by name."""
        for name, text in texts.items():
            self._write(step, summary=self._summary.text(name, text))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the settings of the run, flat."""
        for summary in self._summary.hparams(dict(hparams), {}):
            self._write(0, summary=summary)

    def flush(self) -> None:
        """Bring the events to disk."""
        with errors_naming(self._logdir):
            self._events.flush()

    def close(self) -> None:
        """End writing."""
        self._events.close()


def tensorboard_writer(logdir: Path, first_step: int):
    """clu's own writer where TensorFlow and tensorboard are installed, else TensorBoardWriter."""
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(logdir))
    return TensorBoardWriter(logdir, first_step)
