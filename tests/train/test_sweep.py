from affect_jax.train.sweep import mean_and_spread, sweep_table


def test_table_shows_mean_and_sample_deviation_over_seeds():
    results = {
        "a": [{"accuracy": accuracy, "macro_f1": 0.5, "nll": 1.0, "minutes": 2.0} for accuracy in (0.61, 0.63, 0.65)],
        "b": [{"accuracy": 0.7, "macro_f1": 0.65, "nll": 0.9, "minutes": 3.0}],
    }
    header, _, first, second = sweep_table(results, "val").splitlines()
    assert "val accuracy" in header
    assert first == "| a | 3 | 63.00 ± 2.00 | 50.00 ± 0.00 | 1.000 ± 0.000 | 2.0 ± 0.0 |"
    assert second == "| b | 1 | 70.00 | 65.00 | 0.900 | 3.0 |"
    assert mean_and_spread([1.0, 2.0], 1) == "1.5 ± 0.7"
