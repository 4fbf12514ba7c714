import numpy as np
import pytest

from affect_jax.evaluate.classification import classification_metrics
from affect_jax.evaluate.detection import detection_metrics
from affect_jax.export.model_card import BLOCK, figures, tables, update_card, with_figures
from affect_jax.predict import reader
from affect_jax.runs.model_file import Trained, load_trained, save_trained, summary
from affect_jax.tasks import TASKS
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


def table_of(text, heading):
    """Return the rows of the only table whose first heading is `heading`, its headings first, by their first cell."""
    (table,) = (block for block in text.split("\n\n") if block.startswith(f"| {heading} |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {name: cells for name, *cells in rows if name != "---"}


def test_card_of_a_classifier_has_the_figures_of_its_file(classifier, evaluations, tmp_path):
    save_trained(with_about(classifier, evaluations), tmp_path / "model.safetensors", "for research")
    found = figures(load_trained(tmp_path / "model.safetensors"))
    assert "for research" in found and "of a_run on" in found and "- Commit: abc123" in found and "step 12" not in found
    test = evaluations["test"]
    low, high = (f"{side:.2%}" for side in test["accuracy_ci95"])
    rows = table_of(found, "Evaluation")
    assert list(rows) == ["Evaluation", "val", "test", "test_tta_flip"]
    assert rows["test"][:2] == [f"{test['accuracy']:.2%}", f"{low} to {high}"]
    assert rows["test"][rows["Evaluation"].index("ECE")] == f"{test['ece']:.4f}" and "ECE: expected" in found
    of_classes = test["per_class"].values()
    assert table_of(found, "Recall")["test"] == [f"{metrics['recall']:.1%}" for metrics in of_classes]
    assert table_of(found, "Images")["test"] == [str(metrics["support"]) for metrics in of_classes]
    row = test["coverage"]["confidence"].index(0.7)
    for name in ("coverage", "accuracy"):
        rows = table_of(found, name.capitalize())
        assert rows["test"][rows[name.capitalize()].index("70%")] == f"{test['coverage'][name][row]:.1%}"


def test_card_of_a_detector_has_the_figures_of_its_file(tiny_detector_config):
    boxes = np.array([[10, 10, 20, 22], [40, 10, 90, 80]], np.float32)
    truth = {"boxes": boxes, "label": np.zeros(2, np.int32), "ignore": np.zeros(2, bool)}
    found = {"boxes": boxes[:1], "scores": np.array([0.9], np.float32), "label": np.zeros(1, np.int32)}
    metrics = {**detection_metrics([truth] * 3, [found] * 3, ("face",)), "split": "widerface, val"}
    variables = {"params": {"kernel": np.zeros((30, 50))}, "batch_stats": {}}
    trained = Trained(tiny_detector_config, DataFacts(("face",), ()), variables, {"licence": "for research"})
    text = figures(with_about(trained, {"val": metrics}))
    assert "1,500 values" in text and "input size 96x128\n- Classes: face\n" in text
    rows = table_of(text, "Evaluation")
    found = dict(zip(rows["Evaluation"], rows["val"], strict=True))
    assert (found["Boxes"], found["Recall"], found["Precision"]) == ("6", "50.00%", "100.00%")
    assert table_of(text, "Boxes") == {"Boxes": ["8 to 16 px", "64 to 128 px"], "val": ["3", "3"]}
    assert table_of(text, "Recall at score 0.5")["val"] == ["100.0%", "0.0%"]


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


def test_tables_leave_out_metrics_and_parts_that_no_evaluation_has_and_mark_those_that_one_lacks():
    new = {"accuracy": 0.5, "per_class": {"happy": {"recall": 0.5}, "sad": {"recall": 0.25}}}
    old = {"accuracy": 0.75, "per_class": {"happy": {"recall": 1.0}}}
    presentation = TASKS["classification"].presentation
    assert [block for block in tables({"val": new, "test": old}, presentation) if block] == [
        "| Evaluation | Accuracy |\n| --- | --- |\n| val | 50.00% |\n| test | 75.00% |",
        "| Recall | happy | sad |\n| --- | --- | --- |\n| val | 50.0% | 25.0% |\n| test | 100.0% | – |",
    ]
