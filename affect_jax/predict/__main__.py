"""Find faces and classify their expressions: python -m affect_jax.predict INPUT [INPUT ...] [--out=DIR]

INPUT is an image, a video, a folder, a glob or camera:0. DIR gets predictions.jsonl and predictions.csv, one line per
face, and drawn/, the images and videos with the faces marked; each line has the path of its drawing. Results of an
earlier call with the same DIR are replaced, its drawings included. Ctrl-C ends a camera or a long video and keeps the
results so far; with several files, or before the first result, the exit status is then 130. Files that cannot be read,
or not completely, are listed with the reason, and the exit status is then 1. An expression is what a face shows, not
what a person feels.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import functools
import itertools
import sys
from collections.abc import Sequence

import cv2
import jax
from absl import app, flags, logging
from tqdm import tqdm

from affect_jax.evaluate import tta
from affect_jax.files import printable
from affect_jax.predict import programs, reader, search
from affect_jax.predict.media import Inputs, Report, Source, count_frames, find_sources, plural, read_frames
from affect_jax.predict.output import DRAWN, Output, result_filter
from affect_jax.process import prepare_process

CLASSIFIER = flags.DEFINE_string(
    "classifier", str(reader.CLASSIFIER), "A model file, or the folder of a run or an export."
)
DETECTOR = flags.DEFINE_string("detector", str(reader.DETECTOR), "A model file, or the folder of a run or an export.")
FACES = flags.DEFINE_enum("faces", "detect", ("detect", "whole"), "Detect faces, or take every image as one face.")
OUT = flags.DEFINE_string("out", "predictions", "The folder for the results.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Number of images, and of faces, in one call of a network. Default: 8; on CPU 1 for detection, 4 for faces.",
    *reader.RANGES["batch_size"],
)
MARGIN = flags.DEFINE_float(
    "margin",
    reader.MARGIN,
    "Added to each side of a face before it is classified, as a fraction of its longer side.",
    *reader.RANGES["margin"],
)
MIN_SCORE = flags.DEFINE_float(
    "min_score", reader.MIN_SCORE, "Drop detections with a lower score.", *reader.RANGES["min_score"]
)
MIN_CONFIDENCE = flags.DEFINE_float(
    "min_confidence", 0.0, "Below this probability no expression is named.", *reader.RANGES["min_confidence"]
)
ENLARGE = flags.DEFINE_float(
    "enlarge",
    search.ENLARGE,
    "Also search images, but not videos, at this many times their size, to find smaller faces.",
    *reader.RANGES["enlarge"],
)
TTA = flags.DEFINE_enum(
    "tta",
    "none",
    tta.TTA,
    "Average the probabilities of several views of a face: with its mirror image (flip), or of ten views (flip_shift).",
)
DRAW = flags.DEFINE_bool("draw", True, "Draw the faces into the images and videos.")
MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Stop after this number of frames, for example of a camera.", 1)


def write_predictions(inputs: Inputs, read_faces: reader.FaceReader) -> Report:
    """Write the faces of the inputs to --out; return the report on the files that were read and skipped."""
    num_faces, interrupted = 0, False
    jax.monitoring.register_event_listener(announce)
    with Output(OUT.value, read_faces.classifier.class_names, DRAW.value, MIN_SCORE.value) as output:
        for given, reason in inputs.problems.items():
            output.report.skip(given, reason)
        frames = itertools.islice(read_frames(inputs.sources, output.report), MAX_FRAMES.value)
        read = read_faces.stream(frames, output.report.cut)
        progress = tqdm(read, total=expected_frames(inputs.sources), unit="frame", disable=None)
        try:
            for frame, faces in progress:
                with command_line.uninterrupted():  # without its first packet, a video cannot be decoded
                    output.write(frame, faces)
                    num_faces += len(faces)
                if remark := read_faces.remark(frame.image.shape[:2]):
                    output.report.note(frame.file, remark)
        except KeyboardInterrupt:
            interrupted = True
            output.report.read = len(output.files | output.report.incomplete.keys())  # others were only read ahead
    print_summary(inputs, output, num_faces, interrupted)
    if interrupted and (len(inputs.sources) > 1 or not output.num_frames):
        raise KeyboardInterrupt
    return output.report


def announce(event: str, **details) -> None:
    """Say that networks are compiled, on an event of jax.monitoring."""
    if event == programs.COMPILES:
        say_once("compiling the networks; each new size of image takes this time once, then a cache has them")


@functools.cache
def say_once(line: str) -> None:
    """Print a line, unless it was printed before."""
    print(line, flush=True)


def print_summary(inputs: Inputs, output: Output, num_faces: int, interrupted: bool) -> None:
    """Print what was written and where, and which files were skipped or not read."""
    faces, frames = plural(num_faces, "face"), plural(output.num_frames, "frame")
    if output.kept_earlier:
        print(f"no frame was read; the results of an earlier call in {output.folder} are kept")
    else:
        drawn = f" and {output.folder / DRAWN}/" if output.num_drawn else ""
        print(f"{faces} in {frames}: {output.folder / 'predictions.jsonl'}, predictions.csv{drawn}")
    print(output.report.summary())
    if inputs.num_left_out:
        print(f"{plural(inputs.num_left_out, 'file')} left out: results of an earlier call")
    if interrupted and output.num_frames:
        print("interrupted; the results so far are kept")
    skipped = output.report.skipped | output.report.others
    if unread := sum(source.file not in skipped for source in inputs.sources) - output.report.read:
        limit = "" if interrupted else f"stopped after --max_frames={MAX_FRAMES.value}: "
        print(f"{limit}{unread} of {len(inputs.sources)} files were not read")


def expected_frames(sources: Sequence[Source]) -> int | None:
    """Return the approximate number of frames, for the progress on a terminal; None if it is not known."""
    if not sys.stderr.isatty():
        return None
    counts = [count_frames(source) for source in sources]
    return MAX_FRAMES.value if None in counts else min(sum(counts), MAX_FRAMES.value or sum(counts))


def main(argv: Sequence[str]) -> None:
    """Read the flags and the inputs, predict, and exit with status 1 if an input cannot be read."""
    if len(argv) < 2:
        raise app.UsageError("name an input, for example photo.jpg, holiday/, 'shots/*.png', talk.mp4 or camera:0")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # unreadable files are reported below
    logging.set_verbosity(logging.ERROR)
    prepare_process()
    inputs = find_sources(argv[1:], result_filter())
    if not inputs.sources:
        raise ValueError("; ".join(f"{printable(given)}: {reason}" for given, reason in inputs.problems.items()))
    read_faces = reader.load(
        CLASSIFIER.value,
        reader.WHOLE if FACES.value == "whole" else DETECTOR.value,
        batch_size=BATCH_SIZE.value,
        margin=MARGIN.value,
        min_score=MIN_SCORE.value,
        min_confidence=MIN_CONFIDENCE.value,
        enlarge=ENLARGE.value,
        tta=TTA.value,
    )
    with command_line.interruptible():
        problems = write_predictions(inputs, read_faces).problems()
    if problems:
        sys.exit("not read, or not completely:\n" + "\n".join(f"  {line}" for line in problems))


if __name__ == "__main__":
    command_line.run(main)
