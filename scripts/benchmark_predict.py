"""Time prediction: python scripts/benchmark_predict.py --pictures=FOLDER [--peers=PYTHON] [--out=FILE]

Makes a video of the folder's first pictures, and prints frames a second from the file to the faces, drawing left out:
`find` is the detector alone, `read` finds and names, with --batch_sizes at once. --peers is the interpreter of an
environment that has PyPI's `deface` (CenterFace: finds) and `fer` (a cascade and a network: finds and names); they go
over the same video, all in turn. Then the memory over --memory_frames frames that are read, named and drawn, every one
a face. FILE gets the rows as JSON.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags, logging

PICTURES = flags.DEFINE_string("pictures", None, "A folder of pictures.", required=True)
CLASSIFIER = flags.DEFINE_string("classifier", "", "A model file or a run's folder. Default: the one that comes along.")
DETECTOR = flags.DEFINE_string("detector", "", "The same; `whole` to leave finding out.")
NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Of the video: one a picture.", 1)
FRAME_SIZE = flags.DEFINE_list("frame_size", ["480", "640"], "Height and width of its frames.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "16"], "Frames, and faces, that go through a network at once.")
PEERS = flags.DEFINE_string("peers", "", "Python of an environment with deface and fer. Default: these are left out.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed passes over the video; the table shows their median.", 1)
MEMORY_FRAMES = flags.DEFINE_integer("memory_frames", 10_000, "Frames over which the memory is looked at.", 10)
OUT = flags.DEFINE_string("out", None, "Write the rows to this file as JSON.")


def write_video(path: Path, frames) -> str:
    import cv2

    writer = None
    for frame in frames:
        writer = writer or cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, frame.shape[1::-1])
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return str(path)


def video_of_pictures(path: Path) -> str:
    """The folder's pictures, each a frame with nothing cut off."""
    import numpy as np

    from affect_jax.data.images import SUFFIXES, read_image
    from affect_jax.data.transforms import resize_to_fit
    from affect_jax.predict.media import files_below

    size = tuple(map(int, FRAME_SIZE.value))
    files = [file for file in files_below(Path(PICTURES.value)) if file.suffix.lower() in SUFFIXES]
    if len(files) < NUM_FRAMES.value:
        raise ValueError(f"{PICTURES.value} has {len(files)} pictures; --num_frames={NUM_FRAMES.value} are wanted")
    chosen = files[: NUM_FRAMES.value]
    return write_video(path, (resize_to_fit(read_image(file), np.zeros((0, 4)), size)[0] for file in chosen))


def our_works(video: str) -> dict:
    """Passes over the video by name."""
    from affect_jax.predict import reader
    from affect_jax.predict.media import find_sources, read_frames

    works = {}

    def frames():
        return read_frames(find_sources([video]), print)

    for size in map(int, BATCH_SIZES.value):
        read_faces = load(size)
        if read_faces.detector:
            find = read_faces.detector
            works["find", f"affect_jax, batch {size}"] = lambda find=find, size=size: [
                find([frame.image for frame in batch]) for batch in reader.batched(frames(), size)
            ]
        works["read", f"affect_jax, batch {size}"] = lambda read_faces=read_faces: list(read_faces.stream(frames()))
    return works


def peer_works(video: str) -> dict:
    """Passes over the video by the packages in another environment."""
    from affect_jax.benchmark import peers

    def work(package: str):
        process = subprocess.Popen(
            [PEERS.value, peers.__file__, package, video],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def wait_for(word: str) -> None:
            for line in process.stdout:
                if line.strip() == word:
                    return
            raise RuntimeError(f"{package} cannot be run: see {PEERS.value} {peers.__file__} {package} {video}")

        def once() -> None:
            process.stdin.write("\n")
            process.stdin.flush()
            wait_for("done")

        wait_for("ready")
        return once

    return {("find", "deface"): work("deface"), ("read", "fer"): work("fer")} if PEERS.value else {}


def load(batch_size: int, whole: bool = False):
    from affect_jax.predict import reader

    detector = reader.WHOLE if whole else DETECTOR.value or reader.DETECTOR
    return reader.load(CLASSIFIER.value or reader.CLASSIFIER, detector, batch_size=batch_size)


def time_rows(video: str) -> list[dict]:
    import statistics

    from affect_jax.benchmark.steps import seconds_in_turn

    works = our_works(video) | peer_works(video)
    return [
        {
            "work": work,
            "implementation": implementation,
            "frames": NUM_FRAMES.value,
            "frames_per_second": NUM_FRAMES.value / statistics.median(seconds),
            "frames_per_second_best": NUM_FRAMES.value / min(seconds),
        }
        for (work, implementation), seconds in sorted(seconds_in_turn(works, ROUNDS.value).items())
    ]


def memory_rows(folder: Path) -> list[dict]:
    """Resident memory behind ten counts of frames."""
    import numpy as np

    from affect_jax.predict.media import find_sources, read_frames
    from affect_jax.predict.output import Output

    rng, count, rows = np.random.default_rng(0), MEMORY_FRAMES.value, []
    frames = (rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(count))
    video = write_video(folder / "long.avi", frames)
    read_faces = load(16, whole=True)
    with Output(folder / "out", read_faces.classifier.class_names, True, 0.5) as output:
        stream = read_faces.stream(read_frames(find_sources([video]), print))
        for number, (frame, faces) in enumerate(stream, start=1):
            output.write(frame, faces)
            if number % (count // 10) == 0:
                rows.append({"work": "memory", "frames": number, "megabytes": resident_megabytes()})
    return rows


def resident_megabytes() -> float:
    import os

    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? The folder is --pictures=FOLDER")
    from affect_jax.process import prepare_process

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    try:
        with tempfile.TemporaryDirectory() as folder:
            timed = time_rows(video_of_pictures(Path(folder) / "pictures.avi"))
            print(f"{'work':6} {'implementation':22} {'frames/s':>9} {'best':>9}")
            for row in timed:
                rates = f"{row['frames_per_second']:9.2f} {row['frames_per_second_best']:9.2f}"
                print(f"{row['work']:6} {row['implementation']:22} {rates}")
            memory = memory_rows(Path(folder))
            print("memory, MB:", ", ".join(f"{row['megabytes']:.0f} behind frame {row['frames']}" for row in memory))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(timed + memory, indent=2))


if __name__ == "__main__":
    app.run(main)
