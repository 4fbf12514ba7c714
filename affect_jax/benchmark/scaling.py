"""Measure how cost grows with the batch, the image, the data set, the frames and the number of processes.

Each curve has a few sizes and the exponent of the power law that is fitted to its times: 1 is linear.
"""

import io
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from affect_jax.benchmark.classifier import noise_batch
from affect_jax.benchmark.steps import loop_config, step_work
from affect_jax.benchmark.timing import Work, interleaved_seconds
from affect_jax.data import open_split
from affect_jax.data.pipeline import BatchIndices, end_with_parent, stream_iterator
from affect_jax.predict import reader
from affect_jax.predict.media import Frame
from affect_jax.process import join_processes, prepare_process
from affect_jax.runs import workdir
from affect_jax.runs.training import train_and_evaluate
from affect_jax.tasks import build_task

BATCH_SIZES = (8, 16, 32, 64)
IMAGE_SIDES = (24, 48, 72, 96)
IMAGE_BATCH = 16
"""Images in the batch of the curve over image sides."""
SET_SIZES = (1_000, 10_000, 100_000, 1_000_000)
DIFFERENT_FACES = 1_000
"""Drawn faces that a simulated set repeats."""
EVALUATED_FACES = 64
"""Faces of the evaluation at the end of each run; it is not timed."""
FRAMES, FRAME_SIZE = (4, 8, 16, 32), (480, 640)
PROCESSES = (1, 2, 4)
WINDOWS, WINDOW_STEPS = 3, 2
"""Timed windows of a run with several processes, and steps of a window."""


class Curve(NamedTuple):
    """Seconds of a work for each size."""

    work: str
    size: str
    """The quantity that grows."""
    sizes: Sequence[int]
    seconds: Sequence[float]

    @property
    def exponent(self) -> float:
        """Slope of the seconds over the sizes, both as logarithms."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])


def scaling_curves(config: ConfigDict, rounds: int) -> Iterator[Curve]:
    """Yield the curves of a classifier's config on drawn faces, and of the bundled networks on frames."""
    batches = {size: noise_step(config, size, 48) for size in BATCH_SIZES}
    yield median_curve("training step", "images in the batch", batches, rounds)
    pixels = {side**2: noise_step(config, IMAGE_BATCH, side) for side in IMAGE_SIDES}
    yield median_curve("training step", "pixels of an image", pixels, rounds)
    epoch_seconds(SET_SIZES[0], config.batch_size)  # imports grain
    epochs = [epoch_seconds(size, config.batch_size) for size in SET_SIZES]
    yield Curve("reading an epoch", "images in the set", SET_SIZES, epochs)
    yield median_curve("prediction", "frames", prediction_works(FRAMES), rounds)
    steps = [statistics.median(step_seconds(config, count)) for count in PROCESSES]
    yield Curve("training step", "processes on this machine", PROCESSES, steps)


def noise_step(config: ConfigDict, batch_size: int, side: int) -> Work:
    """Return a training step of the config's network on a batch of noise images of side x side pixels."""
    config = on_drawn_faces(config, side)
    config.batch_size = batch_size
    split = build_task(config).open_split("train")
    return step_work(config, noise_batch(batch_size, split.image_shape, len(split.class_names)), 1)[0]


def on_drawn_faces(config: ConfigDict, side: int) -> ConfigDict:
    """Return the config with drawn faces of side x side pixels and random initial weights."""
    config = ConfigDict(config.to_dict())
    config.data.name, config.init_from, config.init_excuse = "drawn_faces", "", ()
    num_examples = {"train": DIFFERENT_FACES, "val": EVALUATED_FACES, "test": EVALUATED_FACES}
    config.data.options = ConfigDict({"num_examples": num_examples, "image_size": (side, side)})
    return config


class RepeatedFaces:
    """A simulated split of any size: DIFFERENT_FACES drawn faces in memory, again and again."""

    def __init__(self, num_examples: int):
        faces = open_split("drawn_faces", "train", num_examples=DIFFERENT_FACES)
        self.num_examples, self._faces = num_examples, faces.read(np.arange(DIFFERENT_FACES))

    def __len__(self) -> int:
        return self.num_examples

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the faces at `indices`."""
        return {name: array[indices % DIFFERENT_FACES] for name, array in self._faces.items()}


def epoch_seconds(num_examples: int, batch_size: int) -> float:
    """Return the seconds of one pass over a streamed epoch in random order, without training."""
    split, steps = RepeatedFaces(num_examples), num_examples // batch_size
    start = time.perf_counter()
    for _ in stream_iterator(BatchIndices(num_examples, batch_size, steps, seed=0), split, num_workers=0):
        pass
    return time.perf_counter() - start


def prediction_works(counts: Sequence[int]) -> dict[int, Work]:
    """Return passes of the bundled networks over the first frames of a video of drawn scenes, by number of frames."""
    scenes = open_split("drawn_scenes", "val", num_examples=max(counts), image_size=FRAME_SIZE)
    frames = [Frame("drawn", index, index / 25, scenes.read_image(index)["image"]) for index in range(max(counts))]
    read_faces = reader.load()
    return {count: lambda count=count: list(read_faces.stream(frames[:count])) for count in counts}


def step_seconds(config: ConfigDict, num_processes: int) -> list[float]:
    """Return the seconds of a training step in a run of several processes, one value for each window of the run.

    The batch has the same number of images for any number of processes. ChildProcessError if a process fails.
    """
    config = loop_config(on_drawn_faces(config, 48), WINDOWS + 1, WINDOW_STEPS, "resident")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_train, args=(config, Path(folder) / "run", address, num_processes, index))
            for index in range(num_processes)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise ChildProcessError(f"the run with {num_processes} processes failed; its error is printed above")
        return [seconds / WINDOW_STEPS for seconds in seconds_of_windows(Path(folder) / "run")]


def seconds_of_windows(folder: Path) -> list[float]:
    """Return the seconds of the windows between the log lines of the run in a folder."""
    history = workdir.load_history(workdir.Workdir(folder))
    at = [record["seconds"] for record in history if "train/loss" in record]
    return list(np.diff(at))


def _train(config: ConfigDict, folder: Path, address: str, num_processes: int, index: int) -> None:
    end_with_parent(index, num_processes)
    prepare_process()
    join_processes(address, num_processes, index)
    with redirect_stdout(io.StringIO()):
        train_and_evaluate(config, folder)


def median_curve(work: str, size: str, works: dict[int, Work], rounds: int) -> Curve:
    """Time the works by size, interleaved, and return the curve of their medians."""
    seconds = interleaved_seconds(works, rounds)
    return Curve(work, size, tuple(works), [statistics.median(times) for times in seconds.values()])


def format_curve(curve: Curve) -> str:
    """Return the curve as a line: seconds for each size, and the exponent."""
    times = ", ".join(f"{size:,}: {seconds:.3g}" for size, seconds in zip(curve.sizes, curve.seconds, strict=True))
    return f"{curve.work}, seconds by {curve.size}: {times}; exponent {curve.exponent:.2f}"


def check_plot(path: str | Path) -> None:
    """Raise ValueError if the suffix of a file is none of an image that a plot can be written to."""
    from matplotlib.figure import Figure

    suffix, known = Path(path).suffix[1:].lower(), Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise ValueError(
            f"--scaling={path}; the name must end in .png, .svg or another of .{', .'.join(sorted(known))}"
        )


def plot_curves(curves: Sequence[Curve]):
    """Return a figure with a plot of each curve over logarithmic axes; a dashed line shows linear growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    all_axes = figure.subplots(2, -(-len(curves) // 2)).flat
    for axes, curve in zip(all_axes, curves, strict=False):
        sizes, seconds = np.array(curve.sizes), np.array(curve.seconds)
        axes.loglog(sizes, seconds[-1] * sizes / sizes[-1], "--", color="0.6", label="linear")
        axes.loglog(sizes, seconds, "o-", color="#2f6ba8", label=f"exponent {curve.exponent:.2f}")
        axes.set(title=curve.work, xlabel=curve.size, ylabel="seconds")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_yticks(seconds, [f"{value:.2g}" for value in seconds])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    for axes in all_axes[len(curves) :]:
        axes.set_axis_off()
    return figure
