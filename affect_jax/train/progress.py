"""Progress of a run: its clock, the lines on the screen and the records on disk."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress

from affect_jax.train.writers import MetricWriter


def duration(seconds: float) -> str:
    """Format seconds as "1:02:03" or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Clock:
    """Wall time of a run, with training time kept apart from set-up, compilation, evaluation and saving.

    Set-up ends with `begin`. Evaluation and saving run within `paused`, compilation within `compiling`. `before` are
    the `seconds` of the clock at the checkpoint that the run resumes from.
    """

    def __init__(self, before: Mapping[str, float]):
        # Checkpoints of older versions have the total alone.
        self._before = {"train_seconds": before.get("seconds", 0.0), **before}
        self._started = self._continued = time.perf_counter()
        self._trained = self._compiling = self._last_lap = 0.0
        self._pauses = 0  # that are open: they may be nested

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of the run, including those before it was resumed: total, training and compilation."""
        total = time.perf_counter() - self._started
        now = {"seconds": total, "train_seconds": self._training(), "compile_seconds": self._compiling}
        return {name: value + self._before.get(name, 0.0) for name, value in now.items()}

    def _training(self) -> float:
        """Return the seconds of training since the start, up to now or to the beginning of an open pause."""
        return self._trained + (0.0 if self._pauses else time.perf_counter() - self._continued)

    def begin(self) -> None:
        """Exclude all time up to now from the training time."""
        self._trained, self._continued = 0.0, time.perf_counter()

    def lap(self) -> float:
        """Return the seconds of training since the previous call, or since the start."""
        training = self._training()
        lap, self._last_lap = training - self._last_lap, training
        return lap

    @contextmanager
    def paused(self):
        """Exclude the block from the training time."""
        self._trained = self._training()
        self._pauses += 1
        yield
        self._pauses -= 1
        self._continued = time.perf_counter()

    @contextmanager
    def compiling(self):
        """Count the block as compilation, and exclude it from the training time."""
        start = time.perf_counter()
        with self.paused():
            yield
        self._compiling += time.perf_counter() - start


class RunLog:
    """Writes the metrics of a run: a line on the screen and a record to each writer.

    `progress_metrics` are the metrics of a line besides the loss, with their labels. `say` prints a line.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: float,
        progress_metrics: Mapping[str, str],
        say: Callable[[str], None],
        writers: Sequence[MetricWriter] = (),
    ):
        self.say = say
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._progress_metrics, self._writers = progress_metrics, writers

    def training(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Log the training steps up to `step`."""
        self._write(step, metrics)
        self.say(
            f"step {step}/{self._total_steps}  epoch {step / self._steps_per_epoch:.2f}"
            f"  loss {metrics['train/loss']:.4f}{self._percentages('train', metrics, 1)}"
            f"  {metrics['train/images_per_second']:.1f} img/s  {duration(seconds_left)} left"
        )

    def evaluation(self, step: int, metrics: Mapping[str, float], best: bool) -> None:
        """Log an evaluation after `step`."""
        self._write(step, metrics)
        self.say(
            f"step {step}/{self._total_steps}  val loss {metrics['val/loss']:.4f}"
            + self._percentages("val", metrics, 2)
            + ("  best so far" if best else "")
        )

    def close(self) -> None:
        """Close the writers. Everything that counts is flushed already, so an error here would only hide another."""
        for writer in self._writers:
            with suppress(OSError):
                writer.close()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, {"epoch": step / self._steps_per_epoch, **metrics})
            writer.flush()

    def _percentages(self, split: str, metrics: Mapping[str, float], digits: int) -> str:
        return "".join(
            f"  {label} {100 * metrics[f'{split}/{name}']:.{digits}f} %"
            for name, label in self._progress_metrics.items()
            if f"{split}/{name}" in metrics
        )
