"""Several processes, started through the script, give the run of one process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from linear_model import get_config
from processes import config_of, ended, start_processes
from run_records import history, saved_state

from affect_jax import process
from affect_jax.process import join_processes
from affect_jax.runs.training import train_and_evaluate
from affect_jax.train import signals

STEPS = 150  # several seconds, so that a signal arrives before the last step


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """The folder of a run of one process, and the argument that gives another run its config."""
    config = get_config()
    config.total_epochs = STEPS * config.batch_size / 100
    config.eval_every_epochs = config.total_epochs / 5
    config.log_every_steps = 10
    config.augment.rotation = config.augment.erase_probability = 0.0  # slow to compile
    folder = tmp_path_factory.mktemp("processes")
    train_and_evaluate(config, folder / "straight")
    return folder / "straight", config_of(folder / "straight", folder)


@pytest.fixture(scope="module")
def shared_run(straight_run, tmp_path_factory):
    """The folder of a run that two processes began and four finished, their exit codes and outputs, and the stop step.

    They stream the images that the single process had on its device.
    """
    path = tmp_path_factory.mktemp("shared") / "run"
    arguments = (straight_run[1], f"--workdir={path}", "--config.data.input=stream", "--config.data.num_workers=0")
    two = start_processes(2, "scripts/train.py", *arguments)
    for line in two[0].output:
        if f"{STEPS} steps, " in line:  # the last line before the first step; JAX receives the signal within a second
            two[1].terminate()
            break
    stopped = ended(two)
    saved = sorted(int(folder.name) for folder in (path / "checkpoints").iterdir())
    return path, stopped, saved[-1], ended(start_processes(4, "scripts/train.py", *arguments))


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step_with_one_message(shared_run):
    _, stopped, step, _ = shared_run
    assert [code for code, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    assert 0 < step < STEPS
    assert f"stopped after step {step} of {STEPS}; rerun the command to resume" in stopped[0][1]
    assert "stopped after" not in stopped[1][1]


def test_stop_step_within_a_dispatch_is_not_missed(monkeypatch):
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", lambda number: number == 70)
    request = signals.AgreedStopRequest()
    assert [request.is_due_after(step) for step in (32, 64, 96, 128)] == [False, False, True, True]
    assert request.signal == signal.SIGTERM


@pytest.mark.slow
def test_run_of_two_and_then_four_processes_equals_that_of_one(straight_run, shared_run):
    path, _, step, finished = shared_run
    assert [code for code, _ in finished] == [0] * 4, finished
    assert f"resuming from step {step}" in finished[0][1] and "4 process(es)" in finished[0][1]
    one, several = (saved_state(folder, STEPS) for folder in (straight_run[0], path))
    assert one.keys() == several.keys()
    for name in one:
        np.testing.assert_allclose(one[name], several[name], rtol=1e-4, atol=1e-5, err_msg=name)
    logged = set(range(10, STEPS + 1, 10)) - {step - step % 10 + 10}  # the stop may have shortened the mean of this one
    for kind, steps in (("train/loss", logged), ("val/loss", range(STEPS // 5, STEPS + 1, STEPS // 5))):
        losses = [{r["step"]: r[kind] for r in history(run) if kind in r} for run in (straight_run[0], path)]
        one, several = ([found[number] for number in steps] for found in losses)
        np.testing.assert_allclose(one, several, rtol=1e-5)


@pytest.mark.slow
def test_each_image_of_val_is_evaluated_once_by_any_number_of_processes(straight_run, shared_run):
    one, four = (np.load(run / "predictions" / "val.npz") for run in (straight_run[0], shared_run[0]))
    np.testing.assert_array_equal(one["labels"], four["labels"])
    np.testing.assert_allclose(one["probs"], four["probs"], rtol=1e-4, atol=1e-5)
    assert json.loads((shared_run[0] / "metrics.json").read_text())["val"]["num_examples"] == 40


@pytest.mark.slow
def test_one_process_writes_the_record_the_report_and_the_lines(straight_run, shared_run):
    path, stopped, _, finished = shared_run
    records = [(record["step"], "val/loss" in record) for record in history(path)]
    assert records == sorted(set(records))
    assert len(list(path.glob("events*"))) == 2  # one for each start
    assert files(path) == files(straight_run[0])
    for _, output in (*stopped[1:], *finished[1:]):
        assert "step " not in output and "report.html" not in output


def files(run) -> set[str]:
    """Return the files in the folder of a run, except the checkpoints and the events, whose names contain the time."""
    return {
        str(file.relative_to(run))
        for file in run.rglob("*")
        if file.is_file() and not file.name.startswith("events") and "checkpoints" not in file.parts
    }


FAILING = """
import sys

import jax
from absl import app
from jax.experimental import multihost_utils

from affect_jax import process

process.SHUTDOWN_SECONDS = 3
FLAGS = process.define_process_flags()


def main(argv):
    process.join_processes(*(flag.value for flag in FLAGS))
    if jax.process_index() == 1:
        sys.exit("ValueError: process 1 failed")
    multihost_utils.sync_global_devices("process 1 never gets here")


app.run(main)
"""


def test_process_that_fails_reports_why_and_ends_the_processes_that_wait_for_it(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    (first, _), (second, output) = ended(start_processes(2, tmp_path / "failing.py"))
    assert first != 0 and second != 0
    assert "ValueError: process 1 failed" in output


def test_tasks_of_a_job_are_joined_and_a_single_task_or_no_job_is_one_process(monkeypatch):
    calls = []
    monkeypatch.setattr(process.jax.distributed, "initialize", lambda **options: calls.append(options))
    for name, size, joined in (("SLURM_NTASKS", 1, 0), ("OMPI_COMM_WORLD_SIZE", 1, 0), ("SLURM_NTASKS", 8, 1)):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(size))
            join_processes()
        assert len(calls) == joined

    def no_cluster(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(process.jax.distributed, "initialize", no_cluster)
    join_processes()


def test_xla_flags_are_set_only_if_jaxlib_has_them_and_the_user_has_not_set_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    process.add_xla_flag("xla_cpu_no_such_flag", "true")
    process.add_xla_flag("xla_cpu_multi_thread_eigen", "false")
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true"
    process.add_xla_flag("xla_gpu_deterministic_ops", "true")
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true --xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(("plugin", "libc", "calls"), [(True, "glibc", 0), (False, "", 0), (False, "glibc", 1)])
def test_allocator_is_tuned_only_for_cpu_and_glibc(monkeypatch, plugin, libc, calls):
    tuned = []
    for name in ("keep_freed_memory", "use_huge_pages", "run_in_calling_thread"):
        monkeypatch.setattr(process, name, lambda name=name: tuned.append(name))
    monkeypatch.setattr(process, "has_accelerator_plugin", lambda: plugin)
    monkeypatch.setattr(process.platform, "libc_ver", lambda: (libc, ""))
    process.prepare_process()
    assert tuned == ["keep_freed_memory", "use_huge_pages", "run_in_calling_thread"] * calls


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux with huge pages")
def test_large_arrays_are_in_memory_that_is_advised_to_have_huge_pages():
    code = """
        import ctypes
        from affect_jax import process
        process.keep_freed_memory()
        process.use_huge_pages()
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        inside = libc.malloc(ctypes.c_size_t(2**28)) + 2**27
        for line in open("/proc/self/smaps"):
            start, dash, end = line.split()[0].partition("-")
            if dash:  # the first line of a mapping
                found = int(start, 16) <= inside < int(end, 16)
            elif found and line.startswith("VmFlags:"):
                print("hg" in line.split())
    """
    assert subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True) == "True\n"


@pytest.mark.parametrize("chosen", ["1", None])
def test_cpu_programs_run_in_the_calling_thread_unless_the_user_chose_otherwise(chosen):
    code = """
        import jax
        from affect_jax import process
        process.has_accelerator_plugin = lambda: False
        process.prepare_process()
        print(jax.config.values["jax_cpu_enable_async_dispatch"])
    """
    environment = {**os.environ, "JAX_CPU_ENABLE_ASYNC_DISPATCH": chosen} if chosen else os.environ
    output = subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True, env=environment)
    assert output.strip() == str(chosen is not None)


def test_a_signal_that_the_process_ignores_stays_ignored():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.stop_request() as request:
            signal.raise_signal(signal.SIGINT)
            assert not request.is_due_after(1)
            signal.raise_signal(signal.SIGTERM)
            assert request.is_due_after(1)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_incomplete_flags_of_a_plain_cluster_are_refused():
    with pytest.raises(ValueError, match="give all three or none"):
        join_processes(num_processes=2, process_id=0)
