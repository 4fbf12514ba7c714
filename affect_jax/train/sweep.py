"""Several runs one after another, each of several seeds, and one table of their results."""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from affect_jax.files import write_atomically
from affect_jax.train.workdir import Workdir, load_history, load_metrics


def run_sweep(
    runs: Mapping[str, Sequence[str]], seeds: Sequence[int], folder: str | Path, split: str, scripts: Path
) -> str:
    """Train every run with every seed, evaluate on `split`, write the table to FOLDER/sweep.md and give it back.

    `runs` are names and the arguments of train.py, which lies in `scripts`. A run that is done is not done again, and
    one that was stopped goes on. RuntimeError where a run fails; those before it are kept.
    """
    folder = Path(folder)
    results = {}
    for name, arguments in runs.items():
        for seed in seeds:
            run = Workdir(folder / name / f"seed{seed}")
            print(f"== {name}, seed {seed}: {run.path}", flush=True)
            # also where all is done: train.py then only checks that the config is still that of the folder
            start(scripts / "train.py", *arguments, f"--config.seed={seed}", f"--workdir={run.path}")
            if split not in load_metrics(run):
                start(scripts / "evaluate.py", f"--workdir={run.path}", f"--split={split}")
            minutes = load_history(run)[-1]["seconds"] / 60
            results.setdefault(name, []).append({**load_metrics(run)[split], "minutes": minutes})
        write_atomically(folder / "sweep.md", sweep_table(results, split))
    return sweep_table(results, split)


def start(script: Path, *arguments: str) -> None:
    """Run a script to its end; RuntimeError where it fails."""
    if subprocess.run([sys.executable, str(script), *arguments]).returncode:
        raise RuntimeError(f"failed: {script.name} {' '.join(arguments)}; the same command goes on from here")


def sweep_table(results: Mapping[str, Sequence[dict]], split: str) -> str:
    """A Markdown table, a run a row: mean and sample standard deviation over its seeds."""
    lines = [
        f"| run | seeds | {split} accuracy, % | macro-F1, % | NLL | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, metrics in results.items():
        cells = [
            mean_and_spread([100 * one["accuracy"] for one in metrics], 2),
            mean_and_spread([100 * one["macro_f1"] for one in metrics], 2),
            mean_and_spread([one["nll"] for one in metrics], 3),
            mean_and_spread([one["minutes"] for one in metrics], 1),
        ]
        lines.append(f"| {name} | {len(metrics)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """`mean ± sample standard deviation`, or the one value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
