"""Train the run that is best on val again with other seeds, one after another in one process:

    python scripts/launch/gpu_seeds.py --runs="runs/gpu/speedrun/*" --out=runs/gpu/speedrun_seeds --seeds=0,1,2

The runs are in OUT/NAME/seedN, where NAME is that of the best run, and their weights in model.safetensors. Rerun the
command to resume.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

from pathlib import Path

from absl import flags, logging

from affect_jax.data import find_dataset
from affect_jax.process import prepare_process
from affect_jax.runs.model_file import load_trained, save_trained
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, load_config, load_metrics

RUNS = flags.DEFINE_string("runs", None, "Pattern of the folders of the runs to choose from.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the new runs.", required=True)
SEEDS = flags.DEFINE_list("seeds", None, "Seeds, separated by commas.", required=True)


def main(argv):
    command_line.reject_arguments(argv)
    logging.set_verbosity(logging.ERROR)
    prepare_process()
    best = best_run(RUNS.value)
    for seed in map(int, SEEDS.value):
        run = Path(OUT.value) / best.path.name / f"seed{seed}"
        weights = run / "model.safetensors"
        if not weights.exists():
            config = load_config(best)
            config.seed = seed
            train_and_evaluate(config, run)
            save_trained(load_trained(run), weights, find_dataset(config.data.name).LICENCE)


def best_run(pattern: str) -> Workdir:
    """Return the finished run with the highest accuracy on val; ValueError if none is finished."""
    accuracies = {path: load_metrics(Workdir(path)).get("val", {}).get("accuracy") for path in Path().glob(pattern)}
    finished = {path: accuracy for path, accuracy in accuracies.items() if accuracy is not None}
    if not finished:
        raise ValueError(f"no run in {pattern} has an evaluation on val yet")
    best = max(sorted(finished), key=finished.get)
    print(f"best on val: {best}, {finished[best]:.4f}", flush=True)
    return Workdir(best)


if __name__ == "__main__":
    command_line.run(main)
