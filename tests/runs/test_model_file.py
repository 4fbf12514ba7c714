import jax
import numpy as np
import pytest
import safetensors.numpy

from affect_jax.models.pretrained import load_pretrained, named_weights, trained_with, variables_of
from affect_jax.predict.networks import Classifier
from affect_jax.runs.model_file import load_trained, save_trained
from affect_jax.tasks import build_task
from affect_jax.train.builders import build_variables, of_same_classes


def test_network_is_read_from_its_file_to_the_precision_of_float16(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "all rights reserved")
    again = load_trained(tmp_path / "model.safetensors")
    assert again.config.to_dict() == classifier.config.to_dict()
    assert again.data == classifier.data
    assert again.about == {"source": "untrained", "licence": "all rights reserved"}
    old, new = named_weights(classifier.variables), named_weights(again.variables)
    assert old.keys() == new.keys()
    for name, value in new.items():
        assert value.dtype == old[name].dtype
        np.testing.assert_array_equal(value, np.asarray(old[name], np.float16), err_msg=name)
    faces = list(np.random.default_rng(0).integers(0, 256, (3, 60, 50, 3), np.uint8))
    np.testing.assert_allclose(Classifier(again, 2)(faces), Classifier(classifier, 2)(faces), atol=5e-3)


def test_folder_of_an_export_is_read_and_files_of_other_formats_are_refused(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run: it has no config\.json"):
        load_trained(tmp_path)
    save_trained(classifier, tmp_path / "model.safetensors", "")
    assert load_trained(tmp_path).data == classifier.data
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12 of another program" * 20)
    with pytest.raises(
        ValueError, match=r"model.onnx is not a complete .*; models are read from .safetensors files only"
    ):
        load_trained(tmp_path / "model.onnx")


def test_weights_that_do_not_fit_the_network_are_an_error_at_its_first_use(classifier):
    variables = jax.tree.map(lambda x: x, classifier.variables)
    variables["params"]["logits"]["kernel"] = np.zeros((5, 3), np.float32)
    del variables["batch_stats"]["block1_conv1_bn"]
    changed = Classifier(classifier._replace(variables=variables), 1)
    with pytest.raises(ValueError, match="weights do not fit the network") as error:
        changed([np.zeros((48, 48, 3), np.uint8)])
    assert "missing: block1_conv1_bn/mean (4,)" in str(error.value)
    assert "wrong shape: logits/kernel is (5, 3), the network's is (16, 3)" in str(error.value)


def test_variables_are_those_of_their_names(classifier, detector):
    for trained in (classifier, detector):
        again = variables_of(named_weights(trained.variables))
        assert jax.tree.structure(again) == jax.tree.structure(trained.variables)
        jax.tree.map(np.testing.assert_array_equal, again, trained.variables)


def test_training_starts_from_a_model_file_that_saw_the_same_pixels(classifier, tmp_path):
    file = tmp_path / "model.safetensors"
    save_trained(classifier, file, "")
    config = classifier.config.copy_and_resolve_references()
    config.init_from = str(file)
    task, data = build_task(config), classifier.data
    start = config, task.build_network(data), jax.random.key(1), task.network_inputs(data), load_pretrained(file)
    started = named_weights(build_variables(*start))
    for name, value in named_weights(load_trained(file).variables).items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)
    config.preprocess.mean, config.preprocess.std = (0.25,), (0.5,)
    with pytest.raises(ValueError, match="trained on pixels of other mean and std"):
        build_variables(*start)


def test_last_layer_for_other_classes_is_refused_unless_it_is_excused(classifier, tmp_path):
    file = tmp_path / "model.safetensors"
    save_trained(classifier, file, "")
    config = classifier.config.copy_and_resolve_references()
    config.init_from = str(file)
    task, data, pretrained = build_task(config), classifier.data, load_pretrained(file)
    start = config, task.build_network(data), jax.random.key(1), task.network_inputs(data), pretrained
    other_order = data.class_names[::-1]
    with pytest.raises(ValueError, match=r"was trained for the classes .* add 'logits/\.\*' to config.init_excuse"):
        build_variables(*start, other_order)
    config.init_excuse = ("logits/.*",)
    started = named_weights(build_variables(*start, other_order))
    for name, value in pretrained.values.items():
        assert np.array_equal(started[name], value) != (name == "logits/kernel"), name


def test_weights_for_other_classes_are_refused_if_the_layer_of_the_classes_is_not_known(classifier):
    config, names = classifier.config, classifier.data.class_names
    other = trained_with(config, names, {"conv/kernel": np.ones(2), "head/kernel": np.ones(2)}, "weights")
    assert of_same_classes(config, other, names).keys() == {"conv/kernel", "head/kernel"}
    with pytest.raises(ValueError, match=r"was trained for the classes .* add 'LAST_LAYER/\.\*' to config.init_excuse"):
        of_same_classes(config, other, names[::-1])
    config = config.copy_and_resolve_references()
    config.init_excuse = ("head/.*",)
    assert of_same_classes(config, other, names[::-1]).keys() == {"conv/kernel", "head/kernel"}


def test_file_is_half_the_size_of_its_weights(classifier, tmp_path):
    save_trained(classifier, tmp_path / "model.safetensors", "")
    size = sum(leaf.size for leaf in jax.tree.leaves(classifier.variables))
    assert 2 * size < (tmp_path / "model.safetensors").stat().st_size < 2 * size + 20_000


def test_value_beyond_float16_is_refused_by_name_and_nothing_is_written(classifier, tmp_path):
    variables = jax.tree.map(np.asarray, classifier.variables)
    variables["params"]["logits"]["bias"] = np.full(3, 1e5, np.float32)
    with pytest.raises(ValueError, match="float16 cannot hold logits/bias"):
        save_trained(classifier._replace(variables=variables), tmp_path / "model.safetensors", "")
    assert not list(tmp_path.iterdir())


def test_files_without_a_model_are_refused(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a model file nor the folder of a run"):
        load_trained(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        load_trained(tmp_path)
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="has weights but no config"):
        load_trained(tmp_path / "weights.safetensors")
    save_trained(classifier, tmp_path / "model.safetensors", "")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_trained(tmp_path / "cut.safetensors")
