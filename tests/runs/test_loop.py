"""Runs of train_and_evaluate, the function that scripts/train.py calls, on a linear model."""

import json
import os
import shutil

import numpy as np
import pytest
from linear_model import get_config
from run_records import assert_same_bits, history, saved_state, stop_after

from affect_jax.config import classification_config
from affect_jax.data.drawn_faces import DrawnFaces
from affect_jax.runs.evaluation import evaluate_run
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, claim
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train import loop
from affect_jax.train.signals import Interrupted


@pytest.fixture
def config():
    """The config of the finished run with the data on the device."""
    config = get_config()
    config.data.input = "resident"
    return config


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """Folder and returned metrics of a run with the data on the device and of a run that streams them. Read only."""
    runs = {}
    for source in ("resident", "stream"):
        config, path = get_config(), tmp_path_factory.mktemp("finished") / source
        config.data.input = source
        runs[source] = path, train_and_evaluate(config, path)
    return runs


@pytest.fixture
def run(finished_runs, tmp_path):
    """The folder of a copy of the finished run with the data on the device."""
    return shutil.copytree(finished_runs["resident"][0], tmp_path / "run")


@pytest.mark.parametrize("source", ["resident", "stream"])
def test_resumed_run_equals_an_uninterrupted_run_bit_for_bit(finished_runs, config, tmp_path, monkeypatch, source):
    straight, metrics = finished_runs[source]
    config.data.input = source
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted, match="stopped after step 5 of 12"):
            train_and_evaluate(config, tmp_path)
    assert train_and_evaluate(config, tmp_path) == metrics
    assert_same_bits(saved_state(straight, 12), saved_state(tmp_path, 12))
    # A stop logs early, so the training records around it differ.
    evaluations = [[record for record in history(path) if "val/loss" in record] for path in (straight, tmp_path)]
    assert evaluations[0] == evaluations[1]
    assert [record["step"] for record in evaluations[0]] == [6, 12]


def test_streamed_run_equals_the_resident_run(finished_runs):
    resident, streamed = (saved_state(path, 12) for path, _ in finished_runs.values())
    assert resident.keys() == streamed.keys()
    for name in resident:
        np.testing.assert_allclose(resident[name], streamed[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_several_steps_per_dispatch_give_the_run_of_single_steps(config, tmp_path):
    config.log_every_steps = 4
    for steps in (1, 4):
        config.steps_per_dispatch = steps
        train_and_evaluate(config, tmp_path / str(steps))
    one, four = (saved_state(tmp_path / str(steps), 12) for steps in (1, 4))
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(one[name], four[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(history(tmp_path / "1"), history(tmp_path / "4"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_at_most_one_dispatch_waits_behind_the_one_that_runs(config, tmp_path, monkeypatch):
    """Otherwise a run that is asked to stop computes all steps that were dispatched first."""
    dispatch, dispatched, most_waiting = loop.Trainer.dispatch, [], 0

    def count_waiting(trainer, log):
        nonlocal most_waiting
        most_waiting = max(most_waiting, sum(not sums["loss"].is_ready() for sums in dispatched))
        dispatched.append((last := dispatch(trainer, log)).sums)
        return last

    monkeypatch.setattr(loop.Trainer, "dispatch", count_waiting)
    config.log_every_steps = 1000
    train_and_evaluate(config, tmp_path)
    assert len(dispatched) > 3 and most_waiting <= 1


def test_runs_of_two_seeds_share_the_compiled_program_of_their_steps(config):
    programs = []
    for config.seed in (0, 1):
        trainer = loop.Trainer(config, build_task(config))
        batches, _ = loop.take_batches(trainer.batches, 1, trainer.steps_per_dispatch, trainer.mesh)
        lowered = trainer.steps_free.lower(trainer.state, trainer.examples, batches, np.int32(1), trainer.step_key)
        programs.append(lowered.as_text())
        trainer.close()
    assert programs[0] == programs[1]


def test_run_leaves_config_record_events_checkpoints_and_report(finished_runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, metrics = finished_runs["resident"]
    record = json.loads((path / "config.json").read_text())
    assert record["config"]["model"] == {"name": "linear", "dropout": 0.5}
    assert {"command", "commit", "devices", "python", "jax"} <= record["environment"].keys()
    steps = [r["step"] for r in history(path) if "train/loss" in r]
    assert steps == [2, 4, 6, 8, 10, 12]
    events = EventAccumulator(str(path)).Reload()
    written = [event.value for event in events.Scalars("val/accuracy")]
    np.testing.assert_allclose(written, [r["val/accuracy"] for r in history(path) if "val/accuracy" in r], rtol=1e-6)
    assert {"6", "12"} == {file.name for file in (path / "checkpoints").iterdir()}
    assert "<html" in (path / "report.html").read_text()
    assert json.loads((path / "metrics.json").read_text())["val"]["accuracy"] == metrics["val/accuracy"]


def test_rate_and_time_left_are_those_since_the_previous_line(config, tmp_path, monkeypatch, capsys):
    laps = iter([4.0, 4.0, 2.0, 2.0, 8.0, 2.0])
    monkeypatch.setattr(loop.Clock, "lap", lambda clock: next(laps))
    train_and_evaluate(config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [record["train/images_per_second"] for record in records if "train/loss" in record]
    assert rates == [8, 8, 16, 16, 4, 16]  # two steps of 16 images each
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert [line.split()[-2] for line in lines] == ["0:20", "0:16", "0:06", "0:04", "0:08", "0:00"]


def test_rerunning_a_finished_run_returns_its_metrics_and_changes_nothing(finished_runs, run, config):
    assert train_and_evaluate(config, run) == finished_runs["resident"][1]
    assert history(run) == history(finished_runs["resident"][0])


@pytest.mark.parametrize("content", [b"", b"no zip file"], ids=["empty", "damaged"])
def test_predictions_that_cannot_be_read_are_computed_again(finished_runs, run, config, content):
    file = run / "predictions" / "val.npz"
    with np.load(file) as stored:
        expected = dict(stored)
    file.write_bytes(content)
    assert train_and_evaluate(config, run) == finished_runs["resident"][1]
    with np.load(file) as stored:
        for name in expected:
            np.testing.assert_array_equal(stored[name], expected[name], err_msg=name)


def test_records_after_the_checkpoint_of_a_resume_are_dropped(finished_runs, run, config):
    # as after a kill: the record is ahead of the newest checkpoint, and its last line is incomplete
    shutil.rmtree(run / "checkpoints" / "12")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lo')
    train_and_evaluate(config, run)
    assert history(run) == history(finished_runs["resident"][0])


def test_changed_config_in_an_old_workdir_is_an_error_with_the_difference(config, tmp_path):
    (tmp_path / "run").mkdir()
    claim(Workdir(tmp_path / "run"), config, DataFacts(("happy", "sad"), (48, 48, 1)), {})
    config.optim.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"optim\.learning_rate: 0\.01 in the folder, 0\.5 now"):
        train_and_evaluate(config, tmp_path / "run")


def test_step_that_overflows_the_weights_ends_the_run_and_names_the_remedy(config, tmp_path):
    config.optim.learning_rate = 1e38
    config.optim.schedule, config.optim.warmup_epochs = "constant", 0.0
    with pytest.raises(FloatingPointError, match=r"the weights after step 1 are not finite") as error:
        train_and_evaluate(config, tmp_path)
    assert "optim.clip_norm" in str(error.value)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_batch_must_split_evenly_over_devices_and_parts(config):
    with pytest.raises(ValueError, match="batch_size is 16, which cannot be split evenly over 3 devices; change"):
        loop.check_batch_size(config, 3, 16)
    config.accumulate_steps = 8
    with pytest.raises(ValueError, match="over 4 devices in 8 parts"):
        loop.check_batch_size(config, 4, 16)
    loop.check_batch_size(config, 2, 16)


def test_folder_of_a_run_that_is_a_file_is_refused_before_the_data_is_read(config, tmp_path, monkeypatch):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="run is a file; a run needs a folder"):
        train_and_evaluate(config, tmp_path / "run" / "below")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="is not writable; choose another folder for the run"):
        train_and_evaluate(config, tmp_path / "new" / "run")


def test_batch_larger_than_the_training_split_is_refused(config):
    with pytest.raises(ValueError, match="batch_size is 16, but train has only 15 images"):
        loop.check_batch_size(config, 1, 15)


def test_valence_arousal_head_learns_and_is_reported(config, tmp_path, monkeypatch):
    """The targets are the brightness of the left and the right half, which the linear model can learn."""
    read = DrawnFaces.read

    def read_with_brightness(self, indices):
        batch = read(self, indices)
        halves = batch["image"].reshape(-1, 48, 2, 24).mean(axis=(1, 3))
        batch["valence_arousal"] = np.tanh(halves / 32 - 4).astype(np.float32)
        return batch

    monkeypatch.setattr(DrawnFaces, "read", read_with_brightness)
    config.valence_arousal_weight, config.mixup_alpha, config.ema_decay = 1.0, 0.0, 0.0
    config.augment = classification_config().augment  # off
    config.data.sampling = "balanced"
    config.total_epochs = config.eval_every_epochs = 16.0
    config.optim.name, config.optim.learning_rate, config.model.dropout = "adam", 0.01, 0.0
    metrics = train_and_evaluate(config, tmp_path)
    assert metrics["val/ccc_valence"] > 0.8 and metrics["val/ccc_arousal"] > 0.8
    written = json.loads((tmp_path / "metrics.json").read_text())["val"]
    assert written["ccc_valence"] == metrics["val/ccc_valence"]
    predictions = np.load(tmp_path / "predictions" / "val.npz")
    assert predictions["valence_arousal"].shape == (40, 2) and predictions["probs"].shape == (40, 7)
    report = (tmp_path / "report.html").read_text()
    assert "CCC valence" in report and f"{metrics['val/ccc_valence']:.3f}" in report


def test_missing_targets_are_named_before_anything_is_written(config, tmp_path):
    config.data.targets = "votes"
    with pytest.raises(ValueError, match="drawn_faces has no votes to train on"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_without_a_newer_config_field_is_evaluated_and_resumed(finished_runs, run, config):
    shutil.rmtree(run / "checkpoints" / "12")
    record = json.loads((run / "config.json").read_text())
    del record["config"]["valence_arousal_weight"], record["config"]["data"]["sampling"]
    (run / "config.json").write_text(json.dumps(record))
    metrics = train_and_evaluate(config, run)
    assert metrics == finished_runs["resident"][1]
    assert evaluate_run(run, "val")["accuracy"] == metrics["val/accuracy"]
