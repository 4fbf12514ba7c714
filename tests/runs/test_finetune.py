"""Initial weights from another run, frozen parameters, learning rates by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import get_config
from run_records import assert_same_bits, saved_state, stop_after
from safetensors.numpy import save_file

from affect_jax.models import build_model
from affect_jax.models.pretrained import named_weights
from affect_jax.names import selects
from affect_jax.runs.training import train_and_evaluate
from affect_jax.tasks.classification import make_loss_fn
from affect_jax.train.optim import make_optimizer
from affect_jax.train.signals import Interrupted
from affect_jax.train.state import create_state, init_variables, make_apply
from affect_jax.train.steps import make_train_step

OPTIONS = {"num_classes": 7, "widths": (4, 8), "convs_per_block": 1, "dense": (16,)}


def batch():
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (16, 16, 16, 1), np.uint8), "label": rng.integers(0, 7, 16).astype(np.int32)}


def updated(frozen=None, multipliers=(), steps=3):
    """Train a small network; return its variables by name before and after."""
    model = build_model("vgg_fer", **OPTIONS)
    variables = init_variables(model, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    before = {name: np.array(value) for name, value in named_weights(variables).items()}
    tx = make_optimizer("adamw", optax.constant_schedule(0.01), weight_decay=0.1, multipliers=multipliers)
    loss_fn = make_loss_fn(make_apply(model, frozen), 7, (0.5,), (0.25,))
    train_step = jax.jit(make_train_step(loss_fn, tx, frozen=frozen))
    state = create_state(variables, tx, with_ema=False)
    for _ in range(steps):
        state, _ = train_step(state, batch(), jax.random.key(1))
    return before, named_weights({"params": state.params, "batch_stats": state.batch_stats})


def test_frozen_parameters_and_statistics_stay_and_all_others_move():
    frozen = selects(["block1.*"])
    before, after = updated(frozen)
    for name in before:
        assert np.array_equal(before[name], after[name]) == frozen(name), name
    assert any(name.endswith("mean") and frozen(name) for name in before)


def test_rate_of_a_parameter_is_multiplied_by_the_first_factor_whose_regex_matches():
    before, plain = updated(steps=1)
    _, scaled = updated(multipliers=(("block1.*", 0.0), (".*", 0.5)), steps=1)
    params = [name for name in before if not name.endswith(("mean", "var"))]
    for name in params:
        factor = 0.0 if name.startswith("block1") else 0.5
        change = plain[name] - before[name]
        np.testing.assert_allclose(scaled[name] - before[name], factor * change, rtol=1e-3, atol=2e-7, err_msg=name)


def small(config):
    config.total_epochs = config.eval_every_epochs = 0.32
    config.optim.warmup_epochs = 0.0
    config.optim.learning_rate = 1e-9  # neither the weights nor the metrics change
    config.ema_decay = 0.0
    return config


def test_run_starts_from_the_weights_of_another_run_except_excused_layers_of_another_size(tmp_path):
    config = get_config()
    config.model.hidden = 16
    config.mixup_alpha = config.augment.rotation = config.augment.erase_probability = 0.0  # slow to compile
    train_and_evaluate(config, tmp_path / "first")
    start = small(config)
    start.init_from = str(tmp_path / "first")
    start.optim.freeze = (".*",)
    again = train_and_evaluate(start, tmp_path / "second")
    first = json.loads((tmp_path / "first" / "metrics.json").read_text())["val"]
    assert again["val/loss"] == pytest.approx(first["nll"], rel=1e-5)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert train_and_evaluate(start, tmp_path / "second") == again  # a resume does not read the initial weights
    (tmp_path / "moved").rename(tmp_path / "first")

    start.model.hidden = 24
    with pytest.raises(ValueError, match="wrong shape: hidden/kernel"):
        train_and_evaluate(start, tmp_path / "third")
    start.init_excuse = ("hidden/.*", "logits/.*")
    train_and_evaluate(start, tmp_path / "third")


def test_imagenet_weights_need_their_own_preprocessing(tiny_config, tmp_path, shared_data):
    config = small(tiny_config)
    config.model = {"name": "mobilenet_v2"}
    config.init_from = str(shared_data / "weights" / "mobilenet_v2_imagenet_features.safetensors")
    config.init_excuse = ("classifier/.*",)
    with pytest.raises(ValueError, match=r"config\.preprocess\.mean = \(0\.485, 0\.456, 0\.406\)"):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_file_without_weights_of_a_known_network_is_refused(tiny_config, tmp_path):
    save_file({"something.else": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    tiny_config.init_from = str(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="unknown names of weights"):
        train_and_evaluate(tiny_config, tmp_path / "run")


def test_run_that_thaws_a_layer_keeps_it_until_then_and_resumes_on_both_sides_bit_for_bit(tmp_path, monkeypatch):
    config = get_config()
    config.model.hidden = 16
    config.mixup_alpha = config.augment.rotation = config.augment.erase_probability = 0.0  # slow to compile
    config.optim.freeze, config.optim.freeze_epochs = ("hidden/.*",), 1.28  # 8 of 12 steps
    train_and_evaluate(config, tmp_path / "straight")
    layers = {}
    for step in (5, 7, 10):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted, match=f"after step {step} of 12"):
                train_and_evaluate(config, tmp_path / "run")
        layers[step] = saved_state(tmp_path / "run", step)["['params']['hidden']['kernel']"]
    train_and_evaluate(config, tmp_path / "run")
    np.testing.assert_array_equal(layers[5], layers[7])
    assert not np.array_equal(layers[7], layers[10])
    assert_same_bits(saved_state(tmp_path / "straight", 12), saved_state(tmp_path / "run", 12))
