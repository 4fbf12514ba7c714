from affect_jax.train import progress


def test_clock_keeps_compilation_and_pauses_out_of_training_and_goes_on_behind_a_resume(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    clock = progress.Clock()
    now += 2
    with clock.compiling():
        now += 30
    now += 5
    with clock.paused():
        now += 4
    assert clock.lap() == 7
    assert clock.seconds == {"seconds": 41, "train_seconds": 7, "compile_seconds": 30}
    clock = progress.Clock(clock.seconds)
    now += 3
    assert clock.lap() == 3
    assert clock.seconds == {"seconds": 44, "train_seconds": 10, "compile_seconds": 30}


def test_a_lap_is_the_training_since_the_one_before(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    clock = progress.Clock()
    now += 1000
    assert clock.lap() == 1000
    with clock.paused():
        now += 50
    now += 2
    assert clock.lap() == 2


def test_seconds_of_a_checkpoint_that_knows_no_others_count_as_training():
    assert progress.Clock({"seconds": 50.0}).seconds["train_seconds"] >= 50
