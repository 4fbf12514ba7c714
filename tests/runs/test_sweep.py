import json
import signal
import subprocess
import sys

import pytest
from run_script import fork

from affect_jax.runs.sweep import is_evaluated, mean_and_spread, run_sweep, seconds_to, sweep_table
from affect_jax.runs.workdir import Workdir
from affect_jax.tasks import TASKS


def test_sweep_goes_on_after_a_run_that_fails_and_names_it_at_the_end(tmp_path, capsys):
    (tmp_path / "train.py").write_text("raise SystemExit(1)")
    with pytest.raises(ChildProcessError, match=r"^a, seed 0; a, seed 1; b, seed 0; b, seed 1 failed; fix the cause"):
        run_sweep({"a": ["--config=a"], "b": []}, (0, 1), tmp_path / "runs", "val", tmp_path)
    assert capsys.readouterr().out.count("train.py ended with status 1") == 4


def test_sweep_passes_sigterm_to_its_training_and_ends_with_it(tmp_path):
    (tmp_path / "train.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *arguments: sys.exit('stopped'))\n"
        "print('started', flush=True)\n"
        "signal.pause()\n"
    )
    program = "import sys; from pathlib import Path; from affect_jax.runs.sweep import run_sweep;"
    program += " run_sweep({'a': [], 'b': []}, (0,), sys.argv[1], 'val', Path(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("== a, seed 0") and lines[1] == "started\n"
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr) == (128 + signal.SIGTERM, "", "stopped\n")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=", "--seeds=; give whole numbers"),
        ("--seeds=0,1,0", "--seeds=0,1,0 has a seed twice"),
        ("--marks=high", "--marks=high; give percentages, such as 68,70"),
        ("--run=b = configs/fer_vgg.py:demo --config.sed=1", "--run b: the config has no field 'sed'"),
        ("--run=b = configs/fer_vgg.py:demo --config.seed 1", "'1' is not --config.FIELD=VALUE"),
        ("--run=b = configs/fer_vgg.py:demo --config.batch_size=-1", "--run b: the config is not valid:"),
        ("--run=b = configs/fer_vgg.py:demo --config.seed=5", "give the seeds of all runs by --seeds"),
        ("--run=b = configs/widerface_rcnn.py:demo", "a sweep compares classifiers or detectors, not both"),
    ],
)
def test_wrong_flags_of_the_script_are_one_line(tmp_path, flag, message):
    done = fork("sweep", f"--workdir={tmp_path}", "--run=a = configs/fer_vgg.py:demo", flag)
    assert done.returncode == 1 and message in done.stderr and not done.stdout


def test_table_shows_mean_and_sample_deviation_over_seeds():
    results = {
        "a": [{"accuracy": accuracy, "macro_f1": 0.5, "minutes": 2.0} for accuracy in (0.61, 0.63, 0.65)],
        "b": [{"accuracy": 0.7, "macro_f1": 0.65, "minutes": 3.0}],
    }
    header, _, first, second = sweep_table(results, TASKS["classification"], "val").splitlines()
    assert header == "| run | seeds | val accuracy, % | val macro-F1, % | minutes |"
    assert first == "| a | 3 | 63.00 ± 2.00 | 50.00 ± 0.00 | 2.0 ± 0.0 |"
    assert second == "| b | 1 | 70.00 | 65.00 | 3.0 |"
    detectors = {"c": [{"ap50": 0.5, "recall": 0.25, "precision": 1.0, "minutes": 1.0}]}
    header, _, only = sweep_table(detectors, TASKS["detection"], "val").splitlines()
    assert header == "| run | seeds | val AP50, % | val recall, % | val precision, % | minutes |"
    assert only == "| c | 1 | 50.00 | 25.00 | 100.00 | 1.0 |"
    assert mean_and_spread([1.0, 2.0], 1) == "1.5 ± 0.7"


def test_time_to_an_accuracy_is_that_of_training_before_the_first_evaluation_that_has_it():
    accuracies = {1.0: 0.5, 2.0: 0.71, 3.5: 0.69, 5.0: 0.72}
    history = [
        {"val/accuracy": accuracy, "train_seconds": at, "seconds": at + 60} for at, accuracy in accuracies.items()
    ]
    history.insert(1, {"train/accuracy": 0.9, "train_seconds": 1.5, "seconds": 61.5})
    assert [seconds_to(mark, history, "accuracy") for mark in (0.4, 0.7, 0.72, 0.73)] == [1.0, 2.0, 5.0, None]
    metrics = {"accuracy": 0.7, "macro_f1": 0.6, "minutes": 1.0}
    results = {
        "a": [
            {**metrics, "compile_seconds": 30.2, "seconds_to": {0.68: 4.0, 0.7: 9.0}},
            {**metrics, "compile_seconds": 1.1, "seconds_to": {0.68: 6.0, 0.7: None}},
        ],
        "b": [{**metrics, "compile_seconds": 2.0, "seconds_to": {0.68: None, 0.7: None}}],
    }
    header, _, first, second = sweep_table(results, TASKS["classification"], "val", (0.68, 0.7)).splitlines()
    assert header.endswith("| s to 68 % on val | s to 70 % on val | compilation, s |")
    assert first.endswith("| 5.0 ± 1.4 (2 of 2) | 9.0 (1 of 2) | 30 |")
    assert second.endswith("| 0 of 1 | 0 of 1 | 2 |")
    results["b"][0]["compile_seconds"] = None  # of an early version
    assert sweep_table(results, TASKS["classification"], "val", (0.68, 0.7)).endswith("| 0 of 1 | 0 of 1 | unknown |\n")


def test_a_split_counts_as_evaluated_only_for_the_best_checkpoint(tmp_path):
    run = Workdir(tmp_path)
    assert not is_evaluated(run, "val")
    for step, is_of_best in ((6, False), (12, True)):
        run.metrics.write_text(json.dumps({"test": {"checkpoint_step": step}, "val": {"checkpoint_step": 12}}))
        assert is_evaluated(run, "test") == is_of_best and is_evaluated(run, "val")
