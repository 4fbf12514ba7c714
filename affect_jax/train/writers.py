"""Where metrics go: metrics.jsonl, which is the record, and TensorBoard, which is a view of it.

Writers have the methods of clu.metric_writers.MetricWriter, whose own classes cannot be imported without TensorFlow.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Scalars = Mapping[str, float]


class JsonlWriter:
    """One JSON object a line, {"step": ..., name: value, ...}; drops what an earlier try wrote past `first_step`."""

    def __init__(self, path: Path, first_step: int):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        path.write_text("".join(kept))
        self._file = path.open("a")

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Append a record."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def flush(self) -> None:
        """Bring the records to disk."""
        self._file.flush()

    def close(self) -> None:
        """End writing."""
        self._file.close()


class TensorBoardWriter:
    """TensorBoard events through tensorboardX; hides events of an earlier try past `first_step`."""

    def __init__(self, logdir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(logdir), purge_step=first_step + 1 if first_step else None)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """Write numbers by name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write batches of images [B, H, W, C] by name, uint8 or float in [0, 1]."""
        for name, batch in images.items():
            self._writer.add_images(name, batch, step, dataformats="NHWC")

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Write the distributions of arrays by name."""
        for name, array in arrays.items():
            self._writer.add_histogram(name, array, step, max_bins=(num_buckets or {}).get(name))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts, Markdown, by name."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the settings of the run, flat."""
        self._writer.add_hparams(dict(hparams), {})

    def flush(self) -> None:
        """Bring the events to disk."""
        self._writer.flush()

    def close(self) -> None:
        """End writing."""
        self._writer.close()


def tensorboard_writer(logdir: Path, first_step: int):
    """clu's own writer where TensorFlow and tensorboard are installed, else TensorBoardWriter."""
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tensorboard"):
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(logdir))
    return TensorBoardWriter(logdir, first_step)
