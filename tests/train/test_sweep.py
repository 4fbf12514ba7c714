import numpy as np
import pytest

from affect_jax.train.evaluation import compare_runs
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


def leave_predictions(path, labels, predicted):
    (path / "predictions").mkdir(parents=True)
    np.savez(path / "predictions" / "val.npz", labels=labels, probs=np.eye(3)[predicted])


def test_two_runs_are_compared_on_the_pictures_that_one_alone_has_right(tmp_path):
    labels = np.arange(12) % 3
    leave_predictions(tmp_path / "a", labels, labels)
    leave_predictions(tmp_path / "b", labels, np.where(np.arange(12) < 5, (labels + 1) % 3, labels))
    found = compare_runs(tmp_path / "a", tmp_path / "b", "val")
    assert (found["only_a"], found["only_b"], found["num_examples"]) == (5, 0, 12)
    assert found["accuracy_a"] == 1.0 and found["accuracy_b"] == pytest.approx(7 / 12)
    assert found["p_value"] == pytest.approx(2 * 0.5**5)


def test_runs_on_other_pictures_or_without_predictions_are_refused_in_words(tmp_path):
    leave_predictions(tmp_path / "a", np.array([0, 1]), np.array([0, 1]))
    leave_predictions(tmp_path / "b", np.array([1, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="are not the same pictures"):
        compare_runs(tmp_path / "a", tmp_path / "b", "val")
    with pytest.raises(FileNotFoundError, match=r"evaluate.py --workdir=.*/b --split=test --tta=flip"):
        compare_runs(tmp_path / "b", tmp_path / "a", "test_tta_flip")
