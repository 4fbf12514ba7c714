import json

import numpy as np
import pytest
from sklearn import metrics as sk

from affect_jax.evaluate.classification import (
    calibration_bins,
    classification_metrics,
    coverage_accuracy,
    expected_calibration_error,
    most_confident_mistakes,
    paired_test,
    valence_arousal_metrics,
    wilson_interval,
)
from affect_jax.labels import FER2013


def random_predictions(count=500, classes=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 2.0 * (rng.random(count) < 0.6)[:, None] * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), labels


def certain(predicted, classes=7):
    """Nearly certain predictions of these labels."""
    return np.full((len(predicted), classes), 0.01) + (1 - 0.01 * classes) * np.eye(classes)[predicted]


PREDICTIONS = {
    "random": random_predictions(),
    "a class is absent": (random_predictions()[0], np.minimum(random_predictions()[1], 5)),
    "everything is one class": (certain([3] * 50), np.arange(50) % 7),
    "perfect": (certain(np.arange(50) % 7), np.arange(50) % 7),
    "one image": (certain([2]), np.array([4])),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_metrics_equal_those_of_scikit_learn(case):
    probs, labels = PREDICTIONS[case]
    found, predicted, every = classification_metrics(probs, labels, FER2013), probs.argmax(1), list(range(7))
    assert found["num_examples"] == len(labels)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    macro_f1 = sk.f1_score(labels, predicted, labels=every, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro_f1)
    assert found["nll"] == pytest.approx(sk.log_loss(labels, probs, labels=every))
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=every).tolist()
    table = sk.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    for i, name in enumerate(FER2013):
        row = found["per_class"][name]
        assert [row[key] for key in ("precision", "recall", "f1", "support")] == pytest.approx([c[i] for c in table])
    assert json.loads(json.dumps(found)) == found


def test_nll_of_a_class_with_probability_0_is_that_of_the_smallest_normal_float32():
    probs = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert classification_metrics(probs, np.array([0, 0]), ("a", "b"))["nll"] == pytest.approx(126 * np.log(2) / 2)


def test_calibration_error_equals_a_loop_over_the_bins():
    probs, labels = random_predictions()
    confidence, correct = probs.max(1), probs.argmax(1) == labels
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert expected_calibration_error(probs, labels) == pytest.approx(expected)


def test_calibration_of_an_example_worked_by_hand():
    # two images at 0.9, one right; two at 0.6, both right: (2 * |0.9 - 0.5| + 2 * |0.6 - 1|) / 4
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    assert expected_calibration_error(probs, labels) == pytest.approx(0.4)
    confidence, accuracy, count = calibration_bins(probs, labels)
    assert (count[8], count[13], count.sum()) == (2, 2, 4)  # 0.6 is the upper edge of bin 8
    assert (confidence[13], accuracy[13]) == (pytest.approx(0.9), 0.5)


def test_coverage_of_an_example_worked_by_hand():
    # largest probabilities 0.9 (wrong), 0.6 and 0.5 (right), 0.7 (wrong)
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.7, 0.3]])
    found = coverage_accuracy(probs, np.array([1, 1, 0, 1]), (0.0, 0.6, 0.65, 0.95))
    assert found["confidence"] == [0.0, 0.6, 0.65, 0.95]
    assert found["coverage"] == [1.0, 0.75, 0.5, 0.0]
    assert found["accuracy"] == pytest.approx([1 / 2, 1 / 3, 0, 0])


def test_accuracy_at_threshold_zero_is_the_accuracy_and_coverage_decreases():
    probs, labels = random_predictions()
    found = classification_metrics(probs, labels, FER2013)
    assert (found["coverage"]["coverage"][0], found["coverage"]["accuracy"][0]) == (1.0, found["accuracy"])
    assert np.all(np.diff(found["coverage"]["coverage"]) <= 0) and found["coverage"]["coverage"][-1] < 0.9


def test_interval_of_2630_of_3589_equals_the_formula():
    # p = .732795, z^2 / n = .00107037: center .732545, half width .014471
    low, high = wilson_interval(2630, 3589)
    assert (low, high) == (pytest.approx(0.718071, abs=2e-5), pytest.approx(0.747018, abs=2e-5))


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (20, 20), (1, 1)])
def test_interval_is_within_zero_and_one_and_contains_the_share(successes, trials):
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high - low > 0.1


def test_mistakes_are_sorted_by_confidence():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    labels = np.array([1, 1, 0, 1])
    assert most_confident_mistakes(probs, labels, 5).tolist() == [0, 3, 2]
    assert most_confident_mistakes(probs, labels, 1).tolist() == [0]


def test_paired_test_of_an_example_worked_by_hand():
    # a alone is correct on 8 images, b alone on 2: P(X <= 2 or X >= 8) of Binomial(10, 1/2) = 2 * 56 / 1024
    a = np.array([True] * 8 + [False] * 2 + [True] * 10)
    b = np.array([False] * 8 + [True] * 2 + [True] * 10)
    found = paired_test(a, b)
    assert (found["only_a"], found["only_b"]) == (8, 2)
    assert found["p_value"] == pytest.approx(112 / 1024)
    assert found["difference"] == pytest.approx(0.3)
    low, high = found["difference_ci95"]
    # half an image added to each outcome: the paired differences are +1 (8.5), -1 (2.5), 0 (11) of 22
    half = 1.959964 * np.std([1] * 17 + [-1] * 5 + [0] * 22) / np.sqrt(22)
    assert (low, high) == (pytest.approx(6 / 22 - half, abs=1e-6), pytest.approx(6 / 22 + half, abs=1e-6))
    same = paired_test(a, a)
    assert same["p_value"] == 1.0 and same["difference_ci95"][0] < 0 < same["difference_ci95"][1]


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        (np.empty((0, 7)), np.empty(0, int), "no predictions"),
        (certain([0, 1], 6), np.array([0, 1]), "probs are (2, 6)"),
        (np.full((2, 7), 0.2), np.array([0, 1]), "not distributions, the first is row 0"),
        (np.full((2, 7), np.nan), np.array([0, 1]), "2 rows of probs are not distributions"),
        (certain([0, 1]), np.array([0, 7]), "label 7 of row 1 is none of the 7 classes"),
        (certain([0, 1]), np.array([-1, 2]), "label -1 of row 0"),
    ],
)
def test_invalid_predictions_are_errors_that_name_the_row(probs, labels, message):
    with pytest.raises(ValueError) as error:
        classification_metrics(probs, labels, FER2013)
    assert message in str(error.value)


def test_valence_and_arousal_metrics_of_an_example_worked_by_hand():
    targets = np.array([[-1.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    assert valence_arousal_metrics(targets, targets) == {
        "ccc_valence": 1.0,
        "ccc_arousal": 1.0,
        "rmse_valence": 0.0,
        "rmse_arousal": 0.0,
    }
    # half the slope: covariance 1/3, variances 1/6 and 2/3, no shift; a shift of 0.5: covariance and variances 1/6
    predicted = np.stack([targets[:, 0] / 2, targets[:, 1] + 0.5], axis=1)
    found = valence_arousal_metrics(predicted, targets)
    assert found["ccc_valence"] == pytest.approx((2 / 3) / (1 / 6 + 2 / 3))
    assert found["ccc_arousal"] == pytest.approx((2 / 6) / (1 / 6 + 1 / 6 + 0.25))
    assert found["rmse_valence"] == pytest.approx(np.sqrt(0.5 / 3)) and found["rmse_arousal"] == pytest.approx(0.5)
    assert valence_arousal_metrics(np.zeros((3, 2)), np.zeros((3, 2)))["ccc_valence"] == 0.0


def test_macro_f1_leaves_out_classes_without_labels_and_predictions_as_scikit_learn_does():
    labels = np.array([0, 0, 2, 2, 3])
    probs = np.eye(6)[[0, 2, 2, 2, 4]]
    found = classification_metrics(probs, labels, ("a", "b", "c", "d", "e", "f"))
    expected = sk.f1_score(labels, probs.argmax(1), average="macro", zero_division=0.0)
    assert found["macro_f1"] == pytest.approx(expected)
    assert found["absent_classes"] == ["b", "f"]


def test_ccc_of_equal_constants_is_0():
    constant = np.full((100, 2), 0.1, np.float32)
    found = valence_arousal_metrics(constant, constant)
    assert found == {"ccc_valence": 0.0, "ccc_arousal": 0.0, "rmse_valence": 0.0, "rmse_arousal": 0.0}
