"""What a person sees of a run while it goes: the first screen, and lines with an honest clock."""

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from types import MappingProxyType


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Clock:
    """Where the seconds of a run go: training is what is left without compilation, evaluation and saving.

    Evaluation and saving are done within `paused`, compilation within `compiling`. `before` are the `seconds` of the
    run's clock when it was stopped.
    """

    def __init__(self, before: Mapping[str, float] = MappingProxyType({})):
        # a checkpoint of an older version knows all seconds alone
        self._before = {"train_seconds": before.get("seconds", 0.0), **before}
        self._started = time.perf_counter()
        self._paused = self._compiling = self._last_lap = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of the run, those before a resume included: all, those of training, those of compilation."""
        total = time.perf_counter() - self._started
        now = {"seconds": total, "train_seconds": total - self._paused, "compile_seconds": self._compiling}
        return {name: value + self._before.get(name, 0.0) for name, value in now.items()}

    def lap(self) -> float:
        """Seconds of training since the call before, or the start."""
        training = time.perf_counter() - self._started - self._paused
        lap, self._last_lap = training - self._last_lap, training
        return lap

    @contextmanager
    def paused(self):
        """Leave the block's time out of training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextmanager
    def compiling(self):
        """Count the block's time as compilation, and leave it out of training."""
        start = time.perf_counter()
        with self.paused():
            yield
        self._compiling += time.perf_counter() - start


class Progress:
    """Prints a line for each record of metrics: where the run is, how fast, how long still, how well.

    `shown` names the figures, beside the loss, that lines tell, by their metric's name.
    """

    def __init__(self, total_steps: int, steps_per_epoch: float, shown: Mapping[str, str], say: Callable[[str], None]):
        self._total_steps, self._steps_per_epoch, self._shown, self._say = total_steps, steps_per_epoch, shown, say

    def train_line(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        """Report on training up to `step`."""
        self._say(
            f"step {step}/{self._total_steps}  epoch {step / self._steps_per_epoch:.2f}"
            f"  loss {metrics['train/loss']:.4f}{self._percentages('train', metrics, 1)}"
            f"  {metrics['train/images_per_second']:.1f} img/s  {duration(seconds_left)} left"
        )

    def eval_line(self, step: int, metrics: Mapping[str, float], best: bool) -> None:
        """Report on an evaluation at `step`."""
        self._say(
            f"step {step}/{self._total_steps}  val loss {metrics['val/loss']:.4f}"
            + self._percentages("val", metrics, 2)
            + ("  best so far" if best else "")
        )

    def _percentages(self, split: str, metrics: Mapping[str, float], digits: int) -> str:
        return "".join(
            f"  {name} {100 * metrics[f'{split}/{metric}']:.{digits}f} %"
            for metric, name in self._shown.items()
            if f"{split}/{metric}" in metrics
        )
