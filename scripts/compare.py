"""Do two runs differ on the same pictures?

    python scripts/compare.py --a=runs/fer_vgg --b=runs/fer_mobilenet --split=test

McNemar's exact test on the pictures that just one of them has right, from the predictions that scripts/evaluate.py
left in the runs' folders. Without --split=test it looks at val.
"""

import sys

from absl import app, flags

A = flags.DEFINE_string("a", None, "Folder of a run.", required=True)
B = flags.DEFINE_string("b", None, "Folder of the other.", required=True)
SPLIT = flags.DEFINE_string("split", "val", "Name of the evaluation: val, test, test_tta_flip ...")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}?")
    from affect_jax.train.evaluation import compare_runs

    try:
        found = compare_runs(A.value, B.value, SPLIT.value)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    low, high = found["difference_ci95"]
    print(
        f"{SPLIT.value}, {found['num_examples']} pictures:"
        f" {A.value} {found['accuracy_a']:.2%}, {B.value} {found['accuracy_b']:.2%}"
    )
    print(f"right by the first alone {found['only_a']}, by the second alone {found['only_b']}")
    print(f"difference {found['difference']:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}; p = {found['p_value']:.2g}")


if __name__ == "__main__":
    app.run(main)
