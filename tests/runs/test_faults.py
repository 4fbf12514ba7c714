"""Faults in a run: nothing that was saved is lost, no wrong result is given, and the message says what to do."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from linear_model import get_config
from run_records import history, saved_state
from run_script import ROOT, fork

from affect_jax.config import classification_config
from affect_jax.data import find_dataset, open_split
from affect_jax.data.drawn_faces import DrawnFaces
from affect_jax.runs.evaluation import evaluate_run
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, locked
from affect_jax.train import checkpoint, loop
from affect_jax.train.checkpoint import step_folders
from affect_jax.train.checksums import find_damage
from affect_jax.train.signals import Interrupted
from affect_jax.train.writers import JsonlWriter

ARGUMENTS = [
    "--config=tests/linear_model.py",
    "--config.data.options.num_examples.train=160",
    "--config.log_every_steps=5",
    "--config.total_epochs=2.0",
    "--config.eval_every_epochs=0.5",
    "--config.optim.warmup_epochs=0.0",
    "--deterministic",
]
SAVE_10_NEVER_ENDS = """
import runpy, sys, time
from affect_jax.train import checkpoint
write_checksums = checkpoint.write_checksums
def hang(folder):
    if folder.name.startswith("10."):
        print("saving", folder.name, flush=True)
        time.sleep(3600)
    write_checksums(folder)
checkpoint.write_checksums = hang
sys.argv[0] = "scripts/train.py"
runpy.run_path("scripts/train.py", run_name="__main__")
"""


def kill_in_a_save(workdir, meanwhile) -> None:
    """Start the run, call `meanwhile` with its pid while checkpoint 10 is written, and kill the run."""
    command = [sys.executable, "-c", SAVE_10_NEVER_ENDS, f"--workdir={workdir}", *ARGUMENTS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert any(line.startswith("saving 10.") for line in process.stdout), "the run ended before its save"
            meanwhile(process.pid)
        finally:
            process.kill()


@contextlib.contextmanager
def small_disk(path: Path):
    """Mount a small file system at `path`; yield a function that remounts it with other options, or None."""
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        yield None
        return
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)
    finally:
        subprocess.run(["umount", path], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """One run that meets several faults; by fault, the finished process and the state of the folder after it."""
    disk = tmp_path_factory.mktemp("troubled") / "disk"
    done, left = {}, {}
    with small_disk(disk) as remount:
        run = disk / "run"

        def attempt(fault: str, *arguments) -> None:
            done[fault] = fork("train", f"--workdir={run}", *ARGUMENTS, *arguments)
            print(f"== {fault}: exit {done[fault].returncode}\n{done[fault].stderr}")
            left[fault] = names(run / "checkpoints")

        def second_run(pid: int) -> None:
            attempt("second run")
            left["first run"] = pid

        kill_in_a_save(run, second_run)
        left["killed"] = names(run / "checkpoints")
        if remount:
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while shutil.disk_usage(disk).free > 40_000:
                    file.write(bytes(4096))
            attempt("full disk")
            left["record on the full disk"] = (run / "metrics.jsonl").read_text()
            filler.unlink()
            remount("ro")
            attempt("read-only disk")
            remount("rw")
        attempt("other config", "--config.optim.learning_rate=0.5")
        attempt("none")
        left["record"] = history(run)
        left["config"] = json.loads((run / "config.json").read_text())
        left["partial files"] = [path.name for path in run.rglob("*.partial")]
    return done, left


def test_second_run_in_a_workdir_is_refused_and_names_the_first(troubled):
    done, left = troubled
    assert done["second run"].returncode == 1
    first = f"process {left['first run']} on {platform.node()} since 20"
    assert f"is in use by {first}" in done["second run"].stderr
    assert "Traceback" not in done["second run"].stderr


def test_run_killed_in_a_save_resumes_from_the_previous_checkpoint(troubled):
    done, left = troubled
    assert left["killed"] == ["10.orbax-checkpoint-tmp", "5"]
    assert done["none"].returncode == 0, done["none"].stderr
    assert "resuming from step 5\n" in done.get("full disk", done["none"]).stdout
    assert {"15", "20"} <= set(left["none"]) < {"5", "10", "15", "20"}  # the newest two, and the best
    assert [record["step"] for record in left["record"]] == [5, 5, 10, 10, 15, 15, 20, 20]
    assert left["partial files"] == []


def test_full_disk_ends_the_run_with_an_error_and_keeps_what_was_saved(troubled):
    done, left = troubled
    if "full disk" not in done:
        pytest.skip("no file system can be mounted here")
    assert done["full disk"].returncode == 1
    # tensorstore's threads may print errors of other writes before the last line
    assert 'scripts/train.py", line' not in done["full disk"].stderr
    last = done["full disk"].stderr.splitlines()[-1]
    assert last.startswith("OSError: ") and "No space left on device" in last and "rerun the command to resume" in last
    assert left["full disk"] in (["5"], ["10", "5"])  # those that fit, and no part of another
    assert all(json.loads(line)["step"] for line in left["record on the full disk"].splitlines())


def test_read_only_disk_is_an_error_of_one_line(troubled):
    done, left = troubled
    if "read-only disk" not in done:
        pytest.skip("no file system can be mounted here")
    assert done["read-only disk"].returncode == 1
    assert "Read-only file system: " in done["read-only disk"].stderr
    assert "make the folder writable, then rerun the command to resume" in done["read-only disk"].stderr
    assert "Traceback" not in done["read-only disk"].stderr
    assert left["read-only disk"] == left["full disk"]


def test_changed_config_in_an_old_workdir_is_refused_by_the_script(troubled):
    done, _ = troubled
    assert done["other config"].returncode == 1
    assert "optim.learning_rate: 0.01 in the folder, 0.5 now" in done["other config"].stderr
    assert "Traceback" not in done["other config"].stderr


def test_deterministic_sets_the_flag_for_gpus_before_a_device_is_used_and_records_it(troubled):
    _, left = troubled
    assert "--xla_gpu_deterministic_ops=true" in left["config"]["environment"]["xla_flags"]


@pytest.fixture
def config():
    return get_config()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with checkpoints 6 and 12, and the metrics that it returned. Read only."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, train_and_evaluate(get_config(), path)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGES = {
    "truncated": (lambda file: os.truncate(file, file.stat().st_size // 2), "is not what was saved"),
    "flipped bit": (flip_bit, "is not what was saved"),
    "missing": (Path.unlink, "is missing"),
}


def test_run_whose_newest_checkpoint_is_damaged_reports_it_and_resumes_from_the_previous(
    finished, config, tmp_path, capsys
):
    path, metrics = finished
    run = shutil.copytree(path, tmp_path / "run")
    file = largest_file(run / "checkpoints" / "12" / "state")
    flip_bit(file)
    assert train_and_evaluate(config, run) == metrics
    output = capsys.readouterr().out
    name = file.relative_to(run / "checkpoints" / "12").as_posix()
    assert f"checkpoint 12 is damaged: {name} is not what was saved; renamed to {run}/checkpoints/damaged_12" in output
    assert "resuming from step 6\n" in output
    assert names(run / "checkpoints") == ["12", "6", "damaged_12"]
    assert history(run) == history(path)


def test_run_whose_checkpoints_are_all_damaged_is_an_error_that_changes_nothing(finished, config, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    for step, (damage, _) in zip((6, 12), (DAMAGES["truncated"], DAMAGES["missing"]), strict=True):
        damage(largest_file(run / "checkpoints" / str(step)))
    before = history(run)
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged; restore one from a backup") as error:
        train_and_evaluate(config, run)
    assert "6: state/" in str(error.value) and "12: state/" in str(error.value)
    with pytest.raises(ValueError, match=r"checkpoint .*/(6|12) is damaged: state/.* is .*\. Restore it from a backup"):
        evaluate_run(run, "val")
    assert names(run / "checkpoints") == ["12", "6"]
    assert history(run) == before


def test_run_without_its_checkpoints_reports_that_it_starts_again(finished, config, tmp_path, capsys):
    run = shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert train_and_evaluate(config, run) == finished[1]
    assert "no checkpoint yet: starting again from step 0" in capsys.readouterr().out
    assert history(run) == history(finished[0])


@pytest.mark.parametrize("where", ["in a step", "in a save"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_signal_stops_the_run_with_everything_saved(config, tmp_path, monkeypatch, where, number):
    if where == "in a step":
        send_after(monkeypatch, loop, "take_batches", calls=7, numbers=[number])
    else:
        # save() returns while a thread still writes
        send_after(monkeypatch, checkpoint.Checkpoints, "save", calls=1, numbers=[number])
    with pytest.raises(Interrupted, match=r"stopped after step (\d+) of 12; rerun the command to resume") as stopped:
        train_and_evaluate(config, tmp_path)
    assert stopped.value.signal == number
    step = int(str(stopped.value).split()[3])
    assert step == 7
    folders = step_folders(tmp_path / "checkpoints")
    assert list(folders) == sorted({6, step})
    assert [find_damage(folder) for folder in folders.values()] == [None] * len(folders)
    assert saved_state(tmp_path, step)["['step']"] == step


def test_second_signal_ends_the_run_at_once(config, tmp_path, monkeypatch):
    send_after(monkeypatch, loop, "take_batches", calls=8, numbers=[signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(config, tmp_path)
    assert list(step_folders(tmp_path / "checkpoints")) == [6]
    assert find_damage(tmp_path / "checkpoints" / "6") is None


def send_after(monkeypatch, module, function: str, calls: int, numbers) -> None:
    """Send this process the signals after the `calls`-th call of a function."""
    called, made = getattr(module, function), []

    def call(*arguments):
        result = called(*arguments)
        made.append(1)
        if len(made) == calls:
            for number in numbers:
                signal.raise_signal(number)  # at once: two signals of os.kill may arrive as one
        return result

    monkeypatch.setattr(module, function, call)


def test_save_that_fails_stops_the_run_and_the_same_call_resumes_from_the_previous_checkpoint(
    finished, config, tmp_path, monkeypatch
):
    """The error occurs in orbax's thread, which writes all files but the last."""
    written = checkpoint.write_checksums

    def full_disk(folder):
        if folder.name.startswith("12"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", full_disk)
        with pytest.raises(OSError, match=r"checkpoint 12 was not saved in .*No space left on device") as error:
            train_and_evaluate(config, tmp_path / "run")
    assert "rerun the command to resume" in str(error.value)
    assert names(tmp_path / "run" / "checkpoints") == ["6"]
    assert train_and_evaluate(config, tmp_path / "run") == finished[1]
    assert history(tmp_path / "run") == history(finished[0])


def test_record_that_does_not_fit_on_the_disk_is_not_written_in_part(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl", first_step=0)
    writer.write_scalars(1, {"loss": 0.5})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))  # like a disk with room for half of the next record
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            writer.write_scalars(2, {"loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.write_scalars(3, {"loss": 0.125})
    assert history(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.125}]


def test_folder_that_cannot_be_locked_gives_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(Workdir(tmp_path)):
        assert "cannot be locked (No locks available): do not use it in two commands" in capsys.readouterr().err


@pytest.fixture(scope="module")
def prepared_faces(tmp_path_factory):
    """The folder of a prepared set of drawn faces."""
    folder = tmp_path_factory.mktemp("faces")
    faces = open_split("drawn_faces", "train", num_examples=210)
    for index, image in enumerate(faces.read(range(210))["image"]):
        place = folder / "source" / faces.class_names[index % 7]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{index}.png"), image)
    find_dataset("folder").prepare(folder / "data", source=folder / "source")
    return folder / "data"


@pytest.fixture
def streaming_config(config):
    """A config that reads the faces during the run and does not change them."""
    config.data.input = "stream"
    config.mixup_alpha = config.ema_decay = 0.0
    config.augment = classification_config().augment  # off
    return config


@pytest.mark.parametrize("fault", ["deleted", "cut"])
def test_data_file_that_is_deleted_or_cut_during_a_run_is_named(
    streaming_config, prepared_faces, tmp_path, monkeypatch, fault
):
    shutil.copytree(prepared_faces, tmp_path / "data")
    (file,) = (tmp_path / "data").rglob("folder-train.array_record*")
    config = streaming_config
    config.data.name, config.data.data_dir, config.data.options = "folder", str(tmp_path / "data"), {}
    take_batches, taken = loop.take_batches, []

    def take(*arguments):
        if not taken:
            # an open file that was deleted can still be read; the run opens it again, as a worker does
            file.unlink() if fault == "deleted" else os.truncate(file, file.stat().st_size // 2)
        taken.append(1)
        return take_batches(*arguments)

    monkeypatch.setattr(loop, "take_batches", take)
    reason = "open.. failed: No such file" if fault == "deleted" else "it ends before example|Invalid Riegeli"
    with pytest.raises(OSError, match=rf"{file} cannot be read: .*({reason}).*prepare the data set again"):
        train_and_evaluate(config, tmp_path / "run")


def test_worker_that_is_killed_ends_the_run_soon_with_an_error(streaming_config, tmp_path, monkeypatch):
    config = streaming_config
    config.data.num_workers = 1
    config.total_epochs = config.eval_every_epochs = 100.0
    take_batches, taken, killed = loop.take_batches, [], []

    def take(*arguments):
        batches = take_batches(*arguments)
        taken.append(1)
        if len(taken) == 2:  # the step is compiled
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGINT)  # Ctrl-C, which a terminal sends to all: the run handles it
            os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.2)
            assert worker.is_alive()
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(time.monotonic())
        return batches

    monkeypatch.setattr(loop, "take_batches", take)
    with pytest.raises(ChildProcessError, match=r"exit code -9.*fewer data\.num_workers"):
        train_and_evaluate(config, tmp_path / "run")
    assert time.monotonic() - killed[0] < 120
    assert not multiprocessing.active_children()


ORPHANED = """
import multiprocessing, os, signal
from absl import app
from affect_jax.data import open_split
from affect_jax.data.pipeline import BatchIndices, stream_iterator
def main(argv):
    batches = stream_iterator(BatchIndices(40, 4, 1000, 0), open_split("drawn_faces", "train", num_examples=40), 1)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    app.run(main)
"""


def test_workers_of_a_killed_run_end_with_it(tmp_path):
    (tmp_path / "orphaned.py").write_text(ORPHANED)
    done = subprocess.run([sys.executable, tmp_path / "orphaned.py"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 30
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done.returncode == -signal.SIGKILL and not worker.exists()


def test_nan_in_a_target_stops_the_run_and_the_error_names_step_loss_and_examples(
    streaming_config, tmp_path, monkeypatch
):
    read = DrawnFaces.read

    def read_with_nan(self, indices):
        batch = read(self, indices)
        if self.split == "train":
            batch["valence_arousal"][np.asarray(indices) == 17] = np.nan
        return batch

    monkeypatch.setattr(DrawnFaces, "read", read_with_nan)
    streaming_config.valence_arousal_weight = 1.0
    with pytest.raises(FloatingPointError, match=r"step \d+ is not finite: loss nan .* indices \[") as error:
        train_and_evaluate(streaming_config, tmp_path)
    assert "17" in str(error.value).split("indices [")[1].split("]")[0].split(", ")
    assert list(step_folders(tmp_path / "checkpoints")) == []
