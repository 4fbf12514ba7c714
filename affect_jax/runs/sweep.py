"""A sweep: several runs with several seeds each, one after another, and a table of their results."""

import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from affect_jax.command_line import INTERRUPTED, handling
from affect_jax.files import write_atomically
from affect_jax.runs.text import markdown_table
from affect_jax.runs.workdir import Workdir, load_config, load_history, load_metrics
from affect_jax.tasks import TASKS
from affect_jax.tasks.interface import Task

CAPTION = "\nMean ± sample standard deviation over the seeds.\n"


def run_sweep(
    runs: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    folder: str | Path,
    split: str,
    scripts: Path,
    marks: Sequence[float] = (),
) -> str:
    """Train every run with every seed, evaluate on `split`, write the table to FOLDER/sweep.md and return it.

    `runs` maps names to the arguments of train.py, which is in the folder `scripts`; all have the same task. Finished
    runs are skipped and stopped runs resumed. The table also has the training time until val's accuracy (a detector's
    AP50) reached each of `marks`. A run that fails does not stop the others; after the last one, ChildProcessError
    names those that failed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results, task, failed = {}, None, []
    for name, arguments in runs.items():
        for seed in seeds:
            run = Workdir(folder / name / f"seed{seed}")
            print(f"== {name}, seed {seed}: {run.path}", flush=True)
            try:
                # Also for a finished run: train.py then checks that the config is that of the folder.
                start(scripts / "train.py", *arguments, f"--config.seed={seed}", f"--workdir={run.path}")
                if not is_evaluated(run, split):
                    start(scripts / "evaluate.py", f"--workdir={run.path}", f"--split={split}")
            except ChildProcessError as error:
                print(f"== {name}, seed {seed} failed: {error}", flush=True)
                failed.append(f"{name}, seed {seed}")
                continue
            task = TASKS[load_config(run).task]
            results.setdefault(name, []).append(run_result(run, task, split, marks))
        table = sweep_table(results, task, split, marks) + CAPTION if results else ""
        if failed:
            table += f"\nFailed: {'; '.join(failed)}.\n"
        write_atomically(folder / "sweep.md", table)
    if failed:
        print(table, end="", flush=True)
        raise ChildProcessError(f"{'; '.join(failed)} failed; fix the cause, then rerun the sweep to resume")
    return table


def is_evaluated(run: Workdir, split: str) -> bool:
    """Return True if the best checkpoint of a finished run was evaluated on the split, not only an earlier one."""
    metrics = load_metrics(run)
    return split in metrics and metrics[split]["checkpoint_step"] == metrics["val"]["checkpoint_step"]


def run_result(run: Workdir, task: type[Task], split: str, marks: Sequence[float]) -> dict:
    """Return the metrics of a finished run on `split`, and its times."""
    history = load_history(run)
    return {
        **load_metrics(run)[split],
        "minutes": history[-1]["seconds"] / 60,
        "compile_seconds": history[-1].get("compile_seconds"),
        "seconds_to": {mark: seconds_to(mark, history, task.presentation.score) for mark in marks},
    }


def start(script: Path, *arguments: str) -> None:
    """Run a script; ChildProcessError if it fails. Ctrl-C and SIGTERM are left to the script, which saves its work."""
    child = subprocess.Popen([sys.executable, str(script), *arguments])
    received = []

    def pass_on(number: int, frame) -> None:
        received.append(number)
        child.send_signal(number)

    def note(number: int, frame) -> None:  # a terminal sends Ctrl-C to both processes
        received.append(number)

    with handling(signal.SIGTERM, pass_on), handling(signal.SIGINT, note):
        status = child.wait()
    if received or status == INTERRUPTED:
        sys.exit(128 + received[0] if received else status)
    if status:
        raise ChildProcessError(f"{script.name} ended with status {status}")


def seconds_to(mark: float, history: Sequence[dict], score: str) -> float | None:
    """Return the seconds of training until the metric `score` of val reached `mark`, or None.

    Set-up, compilation and evaluation are not counted. Runs of early versions did not record these seconds.
    """
    evaluations = (record for record in history if f"val/{score}" in record)
    return next((record.get("train_seconds") for record in evaluations if record[f"val/{score}"] >= mark), None)


def sweep_table(
    results: Mapping[str, Sequence[dict]], task: type[Task], split: str, marks: Sequence[float] = ()
) -> str:
    """Return a Markdown table with a row per run: mean and sample standard deviation over its seeds.

    With `marks` it also has the seconds of training to each, over the seeds that reached it, and the longest
    compilation time, because later runs find the compiled step in the cache.
    """
    headings = ["run", "seeds", *(f"{split} {label}, %" for label in task.progress_metrics.values()), "minutes"]
    headings += [f"s to {100 * mark:g} % on val" for mark in marks] + ["compilation, s"] * bool(marks)
    rows = []
    for name, metrics in results.items():
        row = [
            name,
            len(metrics),
            *(mean_and_spread([100 * one[name] for one in metrics], 2) for name in task.progress_metrics),
            mean_and_spread([one["minutes"] for one in metrics], 1),
        ]
        for mark in marks:
            seconds = [one["seconds_to"][mark] for one in metrics if one["seconds_to"][mark] is not None]
            reached = f"{len(seconds)} of {len(metrics)}"
            row.append(f"{mean_and_spread(seconds, 1)} ({reached})" if seconds else reached)
        if marks:
            compilations = [one["compile_seconds"] for one in metrics if one["compile_seconds"] is not None]
            row.append(f"{max(compilations):.0f}" if compilations else "unknown")
        rows.append(row)
    return markdown_table(headings, rows) + "\n"


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Format `mean ± sample standard deviation`, or a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
