"""Prune a trained VGG-FER to fewer channels: python scripts/prune.py --model=MODEL --out=FILE

MODEL is a run's folder or a model file. FILE gets its most important channels and can be given as config.init_from. The
pruned network needs training: configs/ferplus_vgg.py:narrow distills the wide one into it.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

from pathlib import Path

import jax
import numpy as np
from absl import flags, logging

from affect_jax.models.pruning import prune_vgg
from affect_jax.runs.model_file import Trained, load_trained, save_trained

MODEL = flags.DEFINE_string("model", None, "A run's folder or a model file of VGG-FER.", required=True)
OUT = flags.DEFINE_string("out", None, "The new model file.", required=True)
WIDTHS = flags.DEFINE_list("widths", ["48", "96", "160", "256"], "Channels of each block.")
DENSE = flags.DEFINE_list("dense", ["256"], "Units of each dense layer.")


def main(argv):
    command_line.reject_arguments(argv)
    logging.set_verbosity(logging.ERROR)  # orbax logs each step of reading a checkpoint
    jax.config.update("jax_platforms", "cpu")
    if not OUT.value.endswith(".safetensors"):
        raise ValueError(f"--out={OUT.value}; the name of a model file ends in .safetensors")
    if Path(OUT.value).exists():
        raise FileExistsError(f"{OUT.value} exists; remove it, or choose another --out")
    widths, dense = map(command_line.positive_numbers, (WIDTHS, DENSE))
    config, data, variables, about = load_trained(MODEL.value)
    if config.model.name != "vgg_fer":
        raise ValueError(f"{MODEL.value} is a {config.model.name}; only vgg_fer can be pruned")
    pruned = prune_vgg(jax.tree.map(lambda x: np.asarray(x, np.float32), variables), widths, dense)
    config.model.widths, config.model.dense = widths, dense
    source = f"{about.get('source', MODEL.value)}, pruned"
    save_trained(
        Trained(config, data, pruned, {**about, "source": source, "evaluations": {}}),
        OUT.value,
        about.get("licence", ""),
    )
    before, after = (sum(x.size for x in jax.tree.leaves(tree["params"])) for tree in (variables, pruned))
    print(f"{OUT.value}: {after:,} of {before:,} parameters")


if __name__ == "__main__":
    command_line.run(main)
