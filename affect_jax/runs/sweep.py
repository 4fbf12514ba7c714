"""A sweep: several runs with several seeds each, one after another, and a table of their results."""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from affect_jax.command_line import INTERRUPTED, handling_interrupts
from affect_jax.files import write_atomically
from affect_jax.runs.workdir import Workdir, load_history, load_metrics


def run_sweep(
    runs: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    folder: str | Path,
    split: str,
    scripts: Path,
    marks: Sequence[float] = (),
) -> str:
    """Train every run with every seed, evaluate on `split`, write the table to FOLDER/sweep.md and return it.

    `runs` maps names to the arguments of train.py, which is in the folder `scripts`. Finished runs are skipped and
    stopped runs resumed. The table also has the training time until val's accuracy reached each of `marks`.
    ChildProcessError if a run fails; the runs before it are kept.
    """
    folder = Path(folder)
    results = {}
    for name, arguments in runs.items():
        for seed in seeds:
            run = Workdir(folder / name / f"seed{seed}")
            print(f"== {name}, seed {seed}: {run.path}", flush=True)
            # Also for a finished run: train.py then checks that the config is that of the folder.
            start(scripts / "train.py", *arguments, f"--config.seed={seed}", f"--workdir={run.path}")
            if split not in load_metrics(run):
                start(scripts / "evaluate.py", f"--workdir={run.path}", f"--split={split}")
            history = load_history(run)
            times = {
                "minutes": history[-1]["seconds"] / 60,
                "compile_seconds": history[-1].get("compile_seconds"),
                "seconds_to": {mark: seconds_to(mark, history) for mark in marks},
            }
            results.setdefault(name, []).append({**load_metrics(run)[split], **times})
        write_atomically(folder / "sweep.md", sweep_table(results, split, marks))
    return sweep_table(results, split, marks)


def start(script: Path, *arguments: str) -> None:
    """Run a script; ChildProcessError if it fails. Ctrl-C is left to the script, which saves its work."""
    with handling_interrupts(lambda number, frame: None):
        status = subprocess.run([sys.executable, str(script), *arguments]).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        command = " ".join([script.name, *arguments])
        raise ChildProcessError(f"{command} failed; fix the cause, then rerun the sweep to resume")


def seconds_to(mark: float, history: Sequence[dict]) -> float | None:
    """Return the seconds of training until val's accuracy reached `mark`, or None.

    Compilation and evaluation are not counted.
    """
    evaluations = (record for record in history if "val/accuracy" in record)
    return next((record["train_seconds"] for record in evaluations if record["val/accuracy"] >= mark), None)


def sweep_table(results: Mapping[str, Sequence[dict]], split: str, marks: Sequence[float] = ()) -> str:
    """Return a Markdown table with a row per run: mean and sample standard deviation over its seeds.

    With `marks` it also has the seconds of training to each, over the seeds that reached it, and the longest
    compilation time, because later runs find the compiled step in the cache.
    """
    headings = ["run", "seeds", f"{split} accuracy, %", "macro-F1, %", "NLL", "minutes"]
    headings += [f"s to {100 * mark:g} % on val" for mark in marks] + ["compilation, s"] * bool(marks)
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for name, metrics in results.items():
        cells = [
            mean_and_spread([100 * one["accuracy"] for one in metrics], 2),
            mean_and_spread([100 * one["macro_f1"] for one in metrics], 2),
            mean_and_spread([one["nll"] for one in metrics], 3),
            mean_and_spread([one["minutes"] for one in metrics], 1),
        ]
        for mark in marks:
            seconds = [one["seconds_to"][mark] for one in metrics if one["seconds_to"][mark] is not None]
            reached = f"{len(seconds)} of {len(metrics)}"
            cells.append(f"{mean_and_spread(seconds, 1)} ({reached})" if seconds else reached)
        if marks:
            cells.append(f"{max(one['compile_seconds'] for one in metrics):.0f}")
        lines.append(f"| {name} | {len(metrics)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Format `mean ± sample standard deviation`, or a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
