import pytest

from affect_jax.train import progress


@pytest.fixture
def time(monkeypatch):
    """A clock that a test sets: `time.now`."""

    class Time:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Time.now)
    return Time


def test_training_time_excludes_compilation_and_pauses_and_continues_after_a_resume(time):
    clock = progress.Clock({})
    time.now += 2
    with clock.compiling():
        time.now += 30
    time.now += 5
    with clock.paused():
        time.now += 4
        assert clock.seconds == {"seconds": 41, "train_seconds": 7, "compile_seconds": 30}  # also in the pause
        with clock.paused():
            time.now += 6
        time.now += 1
        assert clock.seconds["train_seconds"] == 7
    assert clock.lap() == 7
    assert clock.seconds == {"seconds": 48, "train_seconds": 7, "compile_seconds": 30}
    clock = progress.Clock(clock.seconds)
    time.now += 3
    assert clock.lap() == 3
    assert clock.seconds == {"seconds": 51, "train_seconds": 10, "compile_seconds": 30}


def test_lap_is_the_training_time_since_the_previous_lap(time):
    clock = progress.Clock({})
    time.now += 1000
    assert clock.lap() == 1000
    with clock.paused():
        time.now += 50
    time.now += 2
    assert clock.lap() == 2


def test_total_seconds_of_an_older_checkpoint_count_as_training():
    assert progress.Clock({"seconds": 50.0}).seconds["train_seconds"] >= 50


def test_log_prints_lines_and_writes_records_with_the_epoch():
    lines, records = [], []

    class Writer:
        def write_scalars(self, step, scalars):
            records.append((step, scalars))

        def flush(self):
            records.append("flushed")

    log = progress.RunLog(20, 5.0, {"accuracy": "accuracy"}, lines.append, [Writer()])
    metrics = {"train/loss": 1.25, "train/accuracy": 0.5, "train/images_per_second": 12.34}
    log.training(10, metrics, seconds_left=3700)
    log.evaluation(20, {"val/loss": 0.5, "val/accuracy": 0.625}, best=True)
    assert lines == [
        "step 10/20  epoch 2.00  loss 1.2500  accuracy 50.0 %  12.3 img/s  1:01:40 left",
        "step 20/20  val loss 0.5000  accuracy 62.50 %  best so far",
    ]
    assert records[:2] == [(10, {"epoch": 2.0, **metrics}), "flushed"]
    assert records[2][1]["epoch"] == 4.0
