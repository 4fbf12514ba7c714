"""A trained network as the teacher of others, and its model file evaluated."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import get_config

from affect_jax.losses import concordance_loss, focal_loss
from affect_jax.predict.reader import DETECTOR
from affect_jax.runs import model_file, training
from affect_jax.runs.evaluation import evaluate_model, evaluate_run
from affect_jax.runs.training import load_teacher, train_and_evaluate
from affect_jax.runs.workdir import Workdir, load_history
from affect_jax.tasks.classification import make_loss_fn


def brightness(images):
    """Return probabilities [B, 3] that depend on the image."""
    return jax.nn.softmax(images.mean((1, 2)) / 50.0 * jnp.array([1.0, -1.0, 0.5]))


def test_targets_are_the_weighted_mean_of_labels_and_teachers_on_the_augmented_images():
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 8, 8, 1), np.uint8), "label": rng.integers(0, 3, 6).astype(np.int32)}
    logits = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    seen = []

    def apply(variables, images, train, key):
        seen.append(255.0 * (images * 0.25 + 0.5))
        return logits, {}

    def uniform(images):
        return jnp.full((len(images), 3), 1 / 3)

    settings = {"augmentation": {"rotation": 20.0}, "mixup_alpha": 0.4, "label_smoothing": 0.1}
    teachers = {"teachers": [brightness, uniform], "distillation_weight": 0.3}

    def loss(**more):
        return make_loss_fn(apply, 3, (0.5,), (0.25,), **settings, **more)({}, {}, batch, jax.random.key(0))[0]

    of_labels = loss()
    taught = 0.5 * (brightness(seen[0]) + 1 / 3)
    expected = 0.7 * of_labels - 0.3 * jnp.sum(taught * jax.nn.log_softmax(logits))
    np.testing.assert_allclose(loss(**teachers), expected, rtol=1e-5)


def test_loss_equals_its_formula_on_mixed_votes_with_valence_and_arousal():
    rng = np.random.default_rng(0)
    votes = rng.dirichlet(np.ones(3), 6).astype(np.float32)
    valence_arousal = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
    batch = {"image": rng.integers(0, 256, (6, 8, 8, 1), np.uint8), "label": np.zeros(6, np.int32)}
    batch |= {"votes": votes, "valence_arousal": valence_arousal}
    outputs, seen = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), []

    def apply(variables, images, train, key):
        seen.append(255.0 * (images * 0.25 + 0.5))
        return outputs, {}

    loss_fn = make_loss_fn(
        apply,
        3,
        (0.5,),
        (0.25,),
        target_field="votes",
        mixup_alpha=0.4,
        label_smoothing=0.1,
        valence_arousal_weight=2.0,
        classification_loss=focal_loss,
    )
    loss, (_, sums) = loss_fn({}, {}, batch, jax.random.key(0))
    # the network saw own * image + (1 - own) * previous image
    images = batch["image"].astype(np.float32)
    previous = np.roll(images, 1, axis=0)
    own = np.sum((seen[0] - previous) * (images - previous), (1, 2, 3)) / np.sum((images - previous) ** 2, (1, 2, 3))
    own = own[:, None]
    mixed, mixed_va = (own * x + (1 - own) * np.roll(x, 1, axis=0) for x in (votes, valence_arousal))
    p = np.asarray(jax.nn.softmax(outputs[:, :3]))
    smooth = 0.9 * mixed + 0.1 / 3
    expected = -np.sum(smooth * (1 - p) ** 2 * np.log(p)) + 2.0 * concordance_loss(jnp.tanh(outputs[:, 3:]), mixed_va)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert sums["accuracy"] == np.sum(p.argmax(-1) == mixed.argmax(-1)) and sums["count"] == 6


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train_and_evaluate(get_config(), folder)
    return folder


def test_run_learns_the_predictions_of_a_run_and_of_its_model_file(teacher, tmp_path):
    file = tmp_path / "teacher.safetensors"
    model_file.save_trained(model_file.load_trained(teacher), file, "drawn")
    config = get_config()
    config.total_epochs, config.optim.learning_rate, config.model.dropout = 12.0, 0.05, 0.0
    config.distillation.update(teachers=(str(teacher), str(file)), weight=1.0)
    train_and_evaluate(config, tmp_path / "student")
    probs = {run: np.load(run / "predictions" / "val.npz")["probs"] for run in (teacher, tmp_path / "student")}
    taught, learned = probs.values()
    assert np.abs(learned - taught).mean() < 0.25 * np.abs(taught - taught.mean(0)).mean()


def test_run_resumes_only_with_the_weights_of_its_teacher(teacher, tmp_path, monkeypatch):
    file, run, config = tmp_path / "teacher.safetensors", tmp_path / "run", get_config()
    trained = model_file.load_trained(teacher)
    config.distillation.teachers = (str(file),)

    def stop(*arguments):
        raise KeyboardInterrupt

    model_file.save_trained(trained, file, "drawn")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "write_best", stop)
        train_and_evaluate(config, run)
    first = file.read_bytes()
    other = jax.tree.map(lambda x: x * 1.5, trained.variables)
    model_file.save_trained(trained._replace(variables=other), file, "drawn")
    with pytest.raises(
        ValueError, match=r"run learns from the teacher .*teacher.safetensors, whose weights have changed"
    ):
        train_and_evaluate(config, run)
    record = json.loads((run / "config.json").read_text())
    assert list(record["teachers"]) == [str(file)]

    file.write_bytes(first)
    train_and_evaluate(config, run)
    assert load_history(Workdir(run))[-1]["step"] == 12
    del record["teachers"]  # as in runs of older versions, which resume with any weights
    (run / "config.json").write_text(json.dumps(record))
    model_file.save_trained(trained._replace(variables=other), file, "drawn")
    train_and_evaluate(config, run)


def test_teacher_of_other_images_and_a_detector_are_refused_before_anything_is_written(teacher, tmp_path):
    config = get_config()
    config.data.options = {"num_examples": {"train": 100, "val": 40, "test": 40}, "image_size": (32, 32)}
    config.distillation.teachers = (str(teacher),)
    with pytest.raises(ValueError, match="on images of shape"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="is not a classifier"):
        load_teacher(str(DETECTOR), "float32")


def test_model_file_is_evaluated_like_its_run_but_not_on_other_classes(teacher, tmp_path):
    file = tmp_path / "model.safetensors"
    trained = model_file.load_trained(teacher)
    model_file.save_trained(trained, file, "drawn")
    expected, metrics = evaluate_run(teacher, "test", tta="flip"), evaluate_model(file, "test", tta="flip")
    assert metrics["nll"] == pytest.approx(expected["nll"], rel=1e-3)
    assert metrics["split"] == expected["split"] and metrics["num_examples"] == 40
    names = tuple(name.upper() for name in trained.data.class_names)
    model_file.save_trained(trained._replace(data=trained.data._replace(class_names=names)), file, "drawn")
    with pytest.raises(ValueError, match=r"was trained for ANGRY.*; the data has angry"):
        evaluate_model(file, "test")
