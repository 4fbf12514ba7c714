"""Find faces and classify their expressions: python -m affect_jax.predict INPUT [INPUT ...] [--out=DIR]

INPUT is an image, a video, a folder, a glob or camera:0. DIR gets predictions.jsonl and predictions.csv, one line per
face, and drawn/, the images and videos with the faces marked. Results of an earlier call are replaced. Ctrl-C ends a
camera or a long video and keeps the results so far. Files that cannot be read are listed, and the exit status is
then 1. An expression is what a face shows, not what a person feels.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
from absl import app, flags, logging
from tqdm import tqdm

from affect_jax.predict import reader
from affect_jax.predict.media import Source, find_sources, read_frames
from affect_jax.predict.output import DRAWN, Output
from affect_jax.process import prepare_process

CLASSIFIER = flags.DEFINE_string("classifier", str(reader.CLASSIFIER), "A model file or a run's folder.")
DETECTOR = flags.DEFINE_string("detector", str(reader.DETECTOR), "A model file or a run's folder.")
FACES = flags.DEFINE_enum("faces", "detect", ("detect", "whole"), "Detect faces, or take every image as one face.")
OUT = flags.DEFINE_string("out", "predictions", "The folder for the results.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Number of images, and of faces, in one call of a network. Default: 1 on CPU, 8 elsewhere.", 1
)
MARGIN = flags.DEFINE_float(
    "margin", 0.1, "Added to each side of a face before it is classified, as a fraction of its longer side.", 0
)
MIN_SCORE = flags.DEFINE_float("min_score", 0.7, "Drop detections with a lower score.", 0, 1)
MIN_CONFIDENCE = flags.DEFINE_float("min_confidence", 0.0, "Below this probability no expression is named.", 0, 1)
DRAW = flags.DEFINE_bool("draw", True, "Draw the faces into the images and videos.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Stop after this number of frames, for example of a camera.", 1)


def write_predictions(sources: Sequence[Source], read_faces: reader.FaceReader) -> list[str]:
    """Write the faces of the sources to --out; return a line for each source that cannot be read."""
    counts = [source.num_frames for source in sources]
    total = MAX_FRAMES.value if None in counts else min(sum(counts), MAX_FRAMES.value or sum(counts))
    print("compiling the networks for the first frame; later calls load them from a cache", flush=True)
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
            print("interrupted; the results so far are kept")
    drawn = f" and {OUT.value}/{DRAWN}/" if DRAW.value else ""
    faces, frames = plural(num_faces, "face"), plural(num_frames, "frame")
    print(f"{faces} in {frames}: {OUT.value}/predictions.jsonl, predictions.csv{drawn}")
    return unreadable


def plural(count: int, noun: str) -> str:
    """Return the count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def main(argv: Sequence[str]) -> None:
    """Read the flags and the inputs, predict, and exit with status 1 if an input cannot be read."""
    if len(argv) < 2:
        raise app.UsageError("name an input, for example photo.jpg, holiday/, 'shots/*.png', talk.mp4 or camera:0")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # unreadable files are reported below
    logging.set_verbosity(logging.ERROR)
    prepare_process()
    sources = find_sources(argv[1:], left_out=Path(OUT.value, DRAWN))
    read_faces = reader.load(
        CLASSIFIER.value,
        reader.WHOLE if FACES.value == "whole" else DETECTOR.value,
        batch_size=BATCH_SIZE.value,
        margin=MARGIN.value,
        min_score=MIN_SCORE.value,
        min_confidence=MIN_CONFIDENCE.value,
    )
    with command_line.interruptible():
        unreadable = write_predictions(sources, read_faces)
    if unreadable:
        sys.exit("cannot read:\n" + "\n".join(f"  {line}" for line in unreadable))


if __name__ == "__main__":
    command_line.run(main)
