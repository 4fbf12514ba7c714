"""Runs of scripts/train.py with XLA's optimizations, as users run it: stopped, resumed, repeated, evaluated."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from run_records import assert_same_bits, history, saved_state
from run_script import AS_USERS, ROOT, command, fork, start

from affect_jax.runs.workdir import Workdir

STEPS = 40
ARGUMENTS = [
    "--config=configs/fer_vgg.py:demo",
    "--config.model.widths=(4,8)",
    "--config.model.dense=(8,)",
    "--config.data.options.num_examples.train=320",
    "--config.data.options.num_examples.val=70",
    "--config.data.options.num_examples.test=70",
    f"--config.total_epochs={STEPS / 10}",
    "--config.eval_every_epochs=2.0",
    "--config.optim.warmup_epochs=0.0",
    "--config.log_every_steps=1",
]


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """The folder of a run, the settings of its process, and the programs in the compilation cache after it."""
    folder = tmp_path_factory.mktemp("straight")
    settings = {**AS_USERS, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    done = start("train", *ARGUMENTS, f"--workdir={folder / 'run'}", **settings)
    assert done.returncode == 0, done.stderr
    return folder / "run", settings, programs(settings)


def programs(settings) -> set[str]:
    """Return the names of the programs in the compilation cache."""
    return {name for name in os.listdir(settings["JAX_COMPILATION_CACHE_DIR"]) if name.endswith("-cache")}


@pytest.mark.slow
def test_run_stopped_by_sigterm_and_resumed_equals_an_uninterrupted_run_bit_for_bit(straight_run, tmp_path):
    straight, settings, compiled = straight_run
    arguments = (*ARGUMENTS, f"--workdir={tmp_path}")
    with subprocess.Popen(
        command("train", *arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    ) as process:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "rerun the command to resume" in rest
    (saved,) = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert 0 < int(saved) < STEPS
    assert programs(settings) == compiled  # a second run compiles nothing

    done = start("train", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {saved}" in done.stdout
    assert {name for name in programs(settings) - compiled if "train_step" in name or "predict" in name} == set()
    assert_same_bits(saved_state(straight, STEPS), saved_state(tmp_path, STEPS))
    assert history(straight) == history(tmp_path)
    assert [record["step"] for record in history(tmp_path) if "train/loss" in record] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_signal_during_the_first_compilation_ends_the_run_at_once(tmp_path, number):
    settings = {**AS_USERS, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    arguments = ("--config=configs/fer_vgg.py:demo", f"--workdir={tmp_path / 'run'}")
    with subprocess.Popen(
        command("train", *arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    ) as process:
        for line in process.stdout:
            if line.startswith("compiling"):
                process.send_signal(number)
                break
        assert process.stdout.read() == ""
    assert process.returncode == -number


def test_checkpoint_is_evaluated_with_and_without_test_time_augmentation(straight_run):
    path, *_ = straight_run
    plain = fork("evaluate", f"--workdir={path}", "--split=test")
    augmented = fork("evaluate", f"--workdir={path}", "--split=test", "--tta=flip_shift")
    assert (plain.returncode, augmented.returncode) == (0, 0), plain.stderr + augmented.stderr
    for tta, done in {"none": plain, "flip_shift": augmented}.items():
        assert "95 % interval" in done.stdout and re.search(rf"TTA +{tta}\n", done.stdout)
    metrics = json.loads(Workdir(path).metrics.read_text())
    assert metrics.keys() == {"val", "test", "test_tta_flip_shift"}
    assert {evaluation["num_examples"] for evaluation in metrics.values()} == {70}
    assert (path / "figures" / "test_tta_flip_shift_confusion_matrix.png").exists()


@pytest.mark.parametrize(("name", "asks"), [("run/metrics.jsonl", True), ("weights.safetensors", False)])
def test_only_an_unwritable_file_of_the_run_asks_for_a_writable_folder(name, asks, tmp_path):
    program = (
        "import errno, runpy, sys; from affect_jax.runs import training\n"
        "def fail(*_): raise PermissionError(errno.EACCES, 'Permission denied', place)\n"
        "training.train_and_evaluate = fail; place = sys.argv.pop()\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["scripts/train.py", "--config=configs/fer_vgg.py:demo", f"--workdir={tmp_path / 'run'}"]
    script = f"import sys; sys.argv = {[*arguments, str(tmp_path / name)]!r}\n{program}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and str(tmp_path / name) in done.stderr
    assert ("make the folder writable" in done.stderr) == asks
