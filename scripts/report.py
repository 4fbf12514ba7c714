"""Compare runs on one page: python scripts/report.py RUN [RUN ...] [--out=runs/comparison.html]

    python scripts/report.py runs/fer_vgg runs/fer_mobilenet
    python scripts/report.py runs/smoothing/*/seed0 --out=smoothing.html

Each RUN is the folder of a run: finished, unfinished, or only its records (metrics.jsonl and metrics.json). The page
shows learning curves, every evaluation with 95 % intervals, and the differences between the configs. Each run is tested
against the first run on the same images, from the predictions that scripts/evaluate.py wrote: classifiers by McNemar's
exact test, detectors by a bootstrap over images.
"""

from affect_jax import command_line

command_line.exit_on_interrupt()  # before the slow imports

import sys

from absl import app, flags

OUT = flags.DEFINE_string("out", "runs/comparison.html", "Path of the page.")


def print_evaluation(evaluation, columns) -> None:
    from affect_jax.tasks.sections import score_text

    print(f"{evaluation.name}, {evaluation.images}")
    first = next(iter(evaluation.metrics))
    for name, metrics in evaluation.metrics.items():
        print(f"  {name}: {score_text(metrics, columns)}")
    for name, found in evaluation.against_first.items():
        if isinstance(found, str):
            print(f"  {name} and {first} cannot be compared: {found}")
            continue
        low, high = found["difference_ci95"]
        p = f"; p = {found['p_value']:.2g}" if "p_value" in found else ""
        print(f"  {name} minus {first}: {found['difference']:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}{p}")


def main(argv):
    if len(argv) < 2:
        raise app.UsageError("give the folders of runs, for example runs/fer_vgg runs/fer_mobilenet")
    if not OUT.value.endswith(".html"):
        raise ValueError(f"--out={OUT.value}; the name of the page ends in .html")
    from affect_jax.runs.comparison import write_runs

    comparisons, problems = write_runs(OUT.value, argv[1:])
    for comparison in comparisons:
        for evaluation in comparison.evaluations:
            print_evaluation(evaluation, comparison.presentation.columns)
    print(f"report: {OUT.value}")
    if problems:
        sys.exit("not on the page:\n" + "\n".join(f"  {problem}" for problem in problems))


if __name__ == "__main__":
    command_line.run(main)
