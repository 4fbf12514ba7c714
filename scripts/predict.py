"""Find faces and name their expressions: python scripts/predict.py INPUT [INPUT ...] --out=DIR

INPUT is a picture, a video, a folder, a glob or camera:0. DIR gets predictions.jsonl and predictions.csv, a line a
face, and drawn/ with the pictures and videos, faces marked; what an earlier call left there is replaced. Ctrl-C ends a
camera, or a long video, and keeps what was read. What cannot be read is named, and the exit status is then 1. An
expression is what a face shows, not what a person feels.
"""

import os
import sys

from absl import app, flags, logging

CLASSIFIER = flags.DEFINE_string("classifier", "", "A model file or a run's folder. Default: the one that comes along.")
DETECTOR = flags.DEFINE_string("detector", "", "A model file or a run's folder. Default: the one that comes along.")
FACES = flags.DEFINE_enum("faces", "detect", ("detect", "whole"), "Look for faces, or take every picture as one.")
OUT = flags.DEFINE_string("out", "predictions", "The folder for what is found.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Frames, and faces, that go through a network at once. Default: 8, and 1 on CPU.", 1
)
MARGIN = flags.DEFINE_float("margin", 0.1, "Of a face's longer side, added on each side before it is classified.", 0)
MIN_SCORE = flags.DEFINE_float("min_score", 0.7, "Of the detector: boxes under it are left out.", 0, 1)
MIN_CONFIDENCE = flags.DEFINE_float("min_confidence", 0.0, "Probability under which no expression is named.", 0, 1)
DRAW = flags.DEFINE_bool("draw", True, "Draw the faces into the pictures and videos.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Stop behind so many frames, of a camera for example.", 1)


def write_predictions(sources, read_faces) -> list[str]:
    """Read the sources into OUT; what could not be read, and why."""
    import itertools

    from tqdm import tqdm

    from affect_jax.predict.media import read_frames
    from affect_jax.predict.output import DRAWN, Output

    counts = [source.num_frames for source in sources]
    total = MAX_FRAMES.value if None in counts else min(sum(counts), MAX_FRAMES.value or sum(counts))
    print("the first frame waits for the networks to be compiled; later calls find them compiled", flush=True)
    unreadable, num_frames, num_faces = [], 0, 0
    with Output(OUT.value, read_faces.classifier.class_names, DRAW.value, MIN_SCORE.value) as output:

        def report(file: str, reason: str) -> None:
            unreadable.append(f"{file}: {reason}")
            output.write_unreadable(file, reason)

        frames = itertools.islice(read_frames(sources, report), MAX_FRAMES.value)
        try:
            for frame, faces in tqdm(read_faces.stream(frames), total=total, unit="frame", disable=None):
                output.write(frame, faces)
                num_frames, num_faces = num_frames + 1, num_faces + len(faces)
        except KeyboardInterrupt:
            print("stopped; what was read until here is kept")
    print(f"{num_faces} faces in {num_frames} frames: {OUT.value}/predictions.jsonl, predictions.csv", end="")
    print(f" and {OUT.value}/{DRAWN}/" if DRAW.value else "")
    return unreadable


def main(argv):
    if len(argv) < 2:
        raise app.UsageError("which pictures? For example photo.jpg, holiday/, 'shots/*.png', talk.mp4 or camera:0")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # before OpenCV is imported: what it cannot read, we report
    from pathlib import Path

    from affect_jax.predict import reader
    from affect_jax.predict.media import find_sources
    from affect_jax.predict.output import DRAWN
    from affect_jax.process import prepare_process

    logging.set_verbosity(logging.ERROR)
    prepare_process()
    try:
        sources = find_sources(argv[1:], left_out=Path(OUT.value, DRAWN))
        read_faces = reader.load(
            CLASSIFIER.value or reader.CLASSIFIER,
            reader.WHOLE if FACES.value == "whole" else DETECTOR.value or reader.DETECTOR,
            batch_size=BATCH_SIZE.value,
            margin=MARGIN.value,
            min_score=MIN_SCORE.value,
            min_confidence=MIN_CONFIDENCE.value,
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    try:
        unreadable = write_predictions(sources, read_faces)
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"{type(error).__name__}: {error}")
    if unreadable:
        sys.exit("could not be read:\n" + "\n".join(f"  {line}" for line in unreadable))


if __name__ == "__main__":
    app.run(main)
