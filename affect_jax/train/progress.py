"""What a person sees of a run while it goes: the first screen, and lines with an honest clock."""

import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager


def duration(seconds: float) -> str:
    """Seconds as "1:02:03" or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Clock:
    """Seconds spent in training: compilation, evaluation and saving, done within `paused`, are kept out of the rate."""

    def __init__(self, seconds_before: float = 0.0):
        self._before = seconds_before
        self._started = time.perf_counter()
        self._paused = 0.0

    @property
    def total(self) -> float:
        """Wall seconds of the run, those before a resume included."""
        return self._before + time.perf_counter() - self._started

    @property
    def training(self) -> float:
        """Wall seconds of this process without the pauses."""
        return time.perf_counter() - self._started - self._paused

    @contextmanager
    def paused(self):
        """Leave the block's time out of `training`."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start


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
