"""A trained network as files that need none of this code: python scripts/export.py --model=runs/fer_vgg --out=DIR

--model is a run's folder, or a model file of ours. DIR gets model.safetensors, which scripts/predict.py reads,
StableHLO for jax alone and, of a classifier, ONNX, with the preprocessing inside, and a README.md that shows how each
is called. It is there when each file has given, on real pictures, what the network gives.
"""

import sys

from absl import app, flags, logging

MODEL = flags.DEFINE_string("model", None, "A run's folder or a model file.", required=True)
OUT = flags.DEFINE_string("out", None, "The new folder.", required=True)
LICENCE = flags.DEFINE_string(
    "licence", "", "What the training data's allows, where its set does not say, or says less."
)
ONNX = flags.DEFINE_bool("onnx", True, "Classifiers: also as ONNX; needs the extra packages of affect_jax[export].")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")
    import jax

    from affect_jax.export.export import export_model, table
    from affect_jax.process import prepare_process
    from affect_jax.runs.model_file import read

    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")  # whose float32 is whole; what is exported runs on the others too
    prepare_process()
    try:
        record = export_model(read(MODEL.value), OUT.value, LICENCE.value, ONNX.value)
    except (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"classes: {', '.join(record['class_names'])}")
    print(f"licence of the training data: {record['licence']}")
    print(f"compared on {record['checked_on']}; largest differences from the network:")
    for name, megabytes, differences in table(record):
        print(f"  {name:24} {megabytes:>7} MB  {differences}")
    print(f"{OUT.value}/README.md shows how each is called")


if __name__ == "__main__":
    app.run(main)
