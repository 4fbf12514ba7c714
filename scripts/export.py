"""Export a trained network as files that run without this package: python scripts/export.py --model=MODEL --out=DIR

MODEL is a run's folder or a model file. DIR gets model.safetensors, which scripts/predict.py reads, StableHLO for jax
and ONNX, both with the preprocessing inside, except that dark images are not brightened for a detector, and a README.md
that shows how to call each file. A detector has a file for each input size. DIR is created only if the outputs of each
file agree with those of the network, on val images or, without the data set, on drawn images.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import jax
from absl import flags, logging

from affect_jax.export.export import export_model
from affect_jax.export.readme import file_rows
from affect_jax.process import prepare_process
from affect_jax.runs.model_file import load_trained

MODEL = flags.DEFINE_string("model", None, "A run's folder or a model file.", required=True)
OUT = flags.DEFINE_string("out", None, "The new folder.", required=True)
LICENCE = flags.DEFINE_string("licence", "", "Licence of the training data, if the data set does not state it.")
ONNX = flags.DEFINE_bool("onnx", True, "Also write ONNX; needs the packages onnx and onnxruntime.")


def main(argv):
    command_line.reject_arguments(argv)
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")  # exact float32; the exported files run on the other platforms too
    prepare_process()
    with command_line.interruptible():
        record = export_model(load_trained(MODEL.value), OUT.value, LICENCE.value, ONNX.value)
    print(f"classes: {', '.join(record['class_names'])}")
    print(f"licence of the training data: {record['licence']}")
    print(f"compared on {record['checked_on']}; largest differences from the network:")
    for name, megabytes, differences in file_rows(record):
        print(f"  {name:24} {megabytes:>7} MB  {differences}")
    print(f"{OUT.value}/README.md shows how to call each file")


if __name__ == "__main__":
    command_line.run(main)
