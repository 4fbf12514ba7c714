import numpy as np
import pytest

from affect_jax.evaluate.classification import classification_metrics
from affect_jax.evaluate.detection import detection_metrics
from affect_jax.export.model_card import BLOCK, classifier_tables, figures, update_card, with_figures
from affect_jax.predict import reader
from affect_jax.runs.model_file import Trained, load_trained, save_trained, summary
from affect_jax.tasks.interface import DataFacts

ENVIRONMENT = {"command": "python scripts/train.py --config=x", "commit": "abc123", "devices": "1 x cpu"}


def with_about(trained, evaluations):
    about = {**trained.about, "source": "a_run", "step": 12, "environment": ENVIRONMENT}
    return trained._replace(about={**about, "evaluations": {name: summary(m) for name, m in evaluations.items()}})


@pytest.fixture
def evaluations(classifier):
    """Evaluations of a classifier on two splits and with test-time augmentation."""
    rng = np.random.default_rng(0)
    names = classifier.data.class_names
    return {
        name: {
            **classification_metrics(rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200), names),
            "tta": "flip" if name.endswith("flip") else "none",
        }
        for name in ("val", "test", "test_tta_flip")
    }


def row_of(text, start):
    """Return the cells of the only table row that starts with `start`."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_card_of_a_classifier_has_the_figures_of_its_file(classifier, evaluations, tmp_path):
    save_trained(with_about(classifier, evaluations), tmp_path / "model.safetensors", "for research")
    found = figures(load_trained(tmp_path / "model.safetensors"))
    assert "for research" in found and "of a_run on" in found and "- Commit: abc123" in found and "step 12" not in found
    test = evaluations["test"]
    low, high = (100 * side for side in test["accuracy_ci95"])
    accuracy = f"{100 * test['accuracy']:.1f} % ({low:.1f} to {high:.1f})"
    assert row_of(found, "test")[:3] == ["test", "200", accuracy]
    assert row_of(found, "test")[-1] == f"{test['ece']:.3f}"
    assert row_of(found, "test_tta_flip")
    happy = [evaluations[split]["per_class"]["happy"] for split in ("val", "test")]
    expected = [f"{100 * metrics[what]:.1f} %" for metrics in happy for what in ("recall", "precision")]
    assert row_of(found, "happy")[1:] == expected
    row = test["coverage"]["confidence"].index(0.7)
    assert row_of(found, "0.7")[3:] == [f"{100 * test['coverage'][w][row]:.1f} %" for w in ("coverage", "accuracy")]


def test_card_of_a_detector_has_the_figures_of_its_file(tiny_detector_config):
    boxes = np.array([[10, 10, 20, 22], [40, 10, 90, 80]], np.float32)
    truth = {"boxes": boxes, "label": np.zeros(2, np.int32), "ignore": np.zeros(2, bool)}
    found = {"boxes": boxes[:1], "scores": np.array([0.9], np.float32), "label": np.zeros(1, np.int32)}
    metrics = {**detection_metrics([truth] * 3, [found] * 3, ("face",)), "split": "widerface, val"}
    variables = {"params": {"kernel": np.zeros((30, 50))}, "batch_stats": {}}
    trained = Trained(tiny_detector_config, DataFacts(("face",), ()), variables, {"licence": "for research"})
    text = figures(with_about(trained, {"val": metrics}))
    assert "1,500 values" in text and "input size 96x128\n- Classes: face\n" in text
    assert row_of(text, "widerface, val")[1] == "6" and row_of(text, "widerface, val")[-2:] == ["50.0 %", "100.0 %"]
    heights = {row_of(text, group)[1] for group in metrics["recall_by_height"]}
    assert heights == {"100.0 % of 3", "0.0 % of 3"}


def test_card_is_filled_from_the_files_in_its_folder_and_corrects_a_changed_number(classifier, evaluations, tmp_path):
    save_trained(with_about(classifier, evaluations), tmp_path / "model.safetensors", "for research")
    card = tmp_path / "README.md"
    card.write_text("# Ours\n\n<!-- figures of model.safetensors -->\n<!-- end of figures -->\n\nUse with care.\n")
    update_card(card)
    filled = card.read_text()
    assert filled.startswith("# Ours\n") and filled.endswith("\n\nUse with care.\n")
    assert figures(load_trained(tmp_path / "model.safetensors")) in filled
    assert with_figures(filled, tmp_path) == filled
    assert with_figures(filled.replace("200", "300", 1), tmp_path) == filled
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors"):
        with_figures(filled, tmp_path)


BUNDLED = sorted(reader.BUNDLED_WEIGHTS.glob("*.safetensors"))


def test_card_of_the_bundled_weights_is_up_to_date():
    card = (reader.BUNDLED_WEIGHTS / "README.md").read_text()
    assert with_figures(card, reader.BUNDLED_WEIGHTS) == card
    assert {block[1] for block in BLOCK.findall(card)} == {file.name for file in BUNDLED}
    assert {reader.CLASSIFIER, reader.DETECTOR} < set(BUNDLED)


def test_tables_of_evaluations_without_thresholds_or_only_with_augmentation_leave_out_what_is_absent():
    metrics = {"tta": "none", "num_examples": 9, "accuracy": 0.5, "macro_f1": 0.4, "ece": 0.1}
    metrics["per_class"] = {"happy": {"recall": 0.5, "precision": 0.25}}
    assert [table.count("| happy |") for table in classifier_tables({"val": metrics})] == [0, 1]
    (only,) = classifier_tables({"test_tta_flip": {**metrics, "tta": "flip"}})
    assert "| test_tta_flip | 9 | 50.0 % |" in only
