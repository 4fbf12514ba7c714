"""Runs of train_and_evaluate, the function that scripts/train.py calls."""

import json

import numpy as np
import pytest
from run_records import assert_same_bits, history, saved_state, stop_after

from affect_jax.config import classification_config
from affect_jax.runs.evaluation import evaluate_run
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, claim
from affect_jax.tasks.interface import DataFacts
from affect_jax.train import loop
from affect_jax.train.signals import Interrupted


@pytest.mark.parametrize("source", ["resident", "stream"])
def test_resumed_run_equals_an_uninterrupted_run_bit_for_bit(tiny_config, tmp_path, monkeypatch, source):
    tiny_config.data.input = source
    straight = train_and_evaluate(tiny_config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted, match="stopped after step 5 of 12"):
            train_and_evaluate(tiny_config, tmp_path / "parts")
    in_parts = train_and_evaluate(tiny_config, tmp_path / "parts")
    assert in_parts == straight
    assert_same_bits(saved_state(tmp_path / "straight", 12), saved_state(tmp_path / "parts", 12))
    # A stop logs early, so the training records around it differ.
    evaluations = [[r for r in history(tmp_path / run) if "val/loss" in r] for run in ("straight", "parts")]
    assert evaluations[0] == evaluations[1]
    assert [record["step"] for record in evaluations[0]] == [6, 12]


def test_streamed_run_equals_the_resident_run(tiny_config, tmp_path):
    for source in ("resident", "stream"):
        tiny_config.data.input = source
        train_and_evaluate(tiny_config, tmp_path / source)
    resident, streamed = (saved_state(tmp_path / source, 12) for source in ("resident", "stream"))
    assert resident.keys() == streamed.keys()
    for name in resident:
        np.testing.assert_allclose(resident[name], streamed[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_several_steps_per_dispatch_give_the_run_of_single_steps(tiny_config, tmp_path):
    tiny_config.log_every_steps = 4
    # A loop rounds in another order, and with few hidden units dropout amplifies that.
    tiny_config.model.dropout = 0.0
    for updates in (1, 4):
        tiny_config.steps_per_dispatch = updates
        train_and_evaluate(tiny_config, tmp_path / str(updates))
    one, four = (saved_state(tmp_path / str(updates), 12) for updates in (1, 4))
    for name in one:
        np.testing.assert_allclose(one[name], four[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for a, b in zip(history(tmp_path / "1"), history(tmp_path / "4"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_run_leaves_config_record_events_checkpoints_and_report(tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = train_and_evaluate(tiny_config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["model"]["widths"] == [4, 8]
    assert {"command", "commit", "devices", "python", "jax"} <= record["environment"].keys()
    steps = [r["step"] for r in history(tmp_path) if "train/loss" in r]
    assert steps == [2, 4, 6, 8, 10, 12]
    events = EventAccumulator(str(tmp_path)).Reload()
    written = [event.value for event in events.Scalars("val/accuracy")]
    np.testing.assert_allclose(
        written, [r["val/accuracy"] for r in history(tmp_path) if "val/accuracy" in r], rtol=1e-6
    )
    assert "<html" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "metrics.json").read_text())["val"]["accuracy"] == metrics["val/accuracy"]


def test_rate_and_time_left_are_those_since_the_previous_line(tiny_config, tmp_path, monkeypatch, capsys):
    laps = iter([4.0, 4.0, 2.0, 2.0, 8.0, 2.0])
    monkeypatch.setattr(loop.Clock, "lap", lambda clock: next(laps))
    train_and_evaluate(tiny_config, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [record["train/images_per_second"] for record in records if "train/loss" in record]
    assert rates == [8, 8, 16, 16, 4, 16]  # two steps of 16 images each
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert [line.split()[-2] for line in lines] == ["0:20", "0:16", "0:06", "0:04", "0:08", "0:00"]


def test_rerunning_a_finished_run_returns_its_metrics_and_changes_nothing(tiny_config, tmp_path):
    first = train_and_evaluate(tiny_config, tmp_path)
    before = history(tmp_path)
    assert train_and_evaluate(tiny_config, tmp_path) == first
    assert history(tmp_path) == before


def test_records_after_the_checkpoint_of_a_resume_are_dropped(tiny_config, tmp_path):
    train_and_evaluate(tiny_config, tmp_path)
    expected = history(tmp_path)
    # as after a kill: the record is ahead of the newest checkpoint, and its last line is incomplete
    import shutil

    shutil.rmtree(tmp_path / "checkpoints" / "12")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lo')
    train_and_evaluate(tiny_config, tmp_path)
    assert history(tmp_path) == expected


def test_changed_config_in_an_old_workdir_is_an_error_with_the_difference(tiny_config, tmp_path):
    (tmp_path / "run").mkdir()
    claim(Workdir(tmp_path / "run"), tiny_config, DataFacts(("happy", "sad"), (48, 48, 1)))
    tiny_config.optim.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"optim\.learning_rate: 0\.01 in the folder, 0\.5 now"):
        train_and_evaluate(tiny_config, tmp_path / "run")


def test_step_that_is_not_finite_ends_the_run_with_its_loss_and_examples(tiny_config, tmp_path):
    tiny_config.optim.learning_rate = 1e30
    tiny_config.optim.schedule = "constant"
    with pytest.raises(FloatingPointError, match=r"step \d+ is not finite: loss .* indices \[\d+, ") as error:
        train_and_evaluate(tiny_config, tmp_path)
    assert "optim.clip_norm" in str(error.value)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_batch_size_must_be_a_multiple_of_the_devices(tiny_config):
    with pytest.raises(ValueError, match="batch_size is 16, not a multiple of the 3 devices"):
        loop.check_batch_sizes(tiny_config, 3)


def test_valence_arousal_head_learns_and_is_reported(tiny_config, tmp_path):
    tiny_config.valence_arousal_weight, tiny_config.mixup_alpha, tiny_config.ema_decay = 1.0, 0.0, 0.0
    tiny_config.augment = classification_config().augment  # off
    tiny_config.data.sampling = "balanced"
    tiny_config.total_epochs = tiny_config.eval_every_epochs = 16.0
    tiny_config.optim.name, tiny_config.optim.learning_rate, tiny_config.model.dropout = "adam", 0.003, 0.0
    tiny_config.data.options = {"num_examples": {"train": 210, "val": 70, "test": 70}}
    metrics = train_and_evaluate(tiny_config, tmp_path)
    assert metrics["val/ccc_valence"] > 0.1 and metrics["val/ccc_arousal"] > 0.1  # 0 is chance
    written = json.loads((tmp_path / "metrics.json").read_text())["val"]
    assert written["ccc_valence"] == metrics["val/ccc_valence"]
    predictions = np.load(tmp_path / "predictions" / "val.npz")
    assert predictions["valence_arousal"].shape == (70, 2) and predictions["probs"].shape == (70, 7)
    report = (tmp_path / "report.html").read_text()
    assert "CCC valence" in report and f"{metrics['val/ccc_valence']:.3f}" in report


def test_missing_targets_are_named_before_anything_is_written(tiny_config, tmp_path):
    tiny_config.data.targets = "votes"
    with pytest.raises(ValueError, match="drawn_faces has no votes to train on"):
        train_and_evaluate(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_without_a_newer_config_field_is_evaluated_and_resumed(tiny_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            train_and_evaluate(tiny_config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["valence_arousal_weight"], record["config"]["data"]["sampling"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    metrics = train_and_evaluate(tiny_config, tmp_path)
    assert evaluate_run(tmp_path, "val")["accuracy"] == metrics["val/accuracy"]
