import jax
import numpy as np
import pytest
from run_script import fork
from untrained import untrained

from affect_jax.models.pruning import prune_vgg
from affect_jax.runs.model_file import check_weights, load_trained, save_trained
from affect_jax.tasks.interface import DataFacts

RNG = np.random.default_rng(0)


@pytest.fixture
def narrow(tiny_config):
    """A VGG-FER of two convolutions per block and one dense layer, with float16 values."""
    tiny_config.model.update(widths=(4, 8), convs_per_block=2, dense=(16,))
    trained = untrained(tiny_config, DataFacts(("happy", "sad", "neutral"), (48, 48, 1)))
    return trained._replace(variables=jax.tree.map(lambda x: np.float16(x).astype(np.float32), trained.variables))


def with_channels_of_no_effect(variables: dict) -> dict:
    """Return the variables of a VGG-FER with as many more channels, at random places, that no layer reads."""
    params, statistics = variables["params"], variables["batch_stats"]
    layers = [*sorted(name.removesuffix("_bn") for name in statistics), "dense1", "logits"]
    wide = {"params": {}, "batch_stats": {}}
    places, channels = np.arange(1), 1  # of the inputs that are read, and their number
    for layer in layers:
        kernel = params[layer]["kernel"]
        features = kernel.shape[-1]
        of_outputs, outputs = np.arange(features), features
        if layer != "logits":
            of_outputs, outputs = np.sort(RNG.permutation(2 * features)[:features]), 2 * features
        by_input = RNG.normal(size=(kernel.size // len(places) // features, channels, outputs))
        by_input[:, np.setdiff1d(np.arange(channels), places)] = 0
        by_input[:, places[:, None], of_outputs] = kernel.reshape(-1, len(places), features)

        def spread(value, places=of_outputs, size=outputs):
            wider = RNG.uniform(1, 2, size).astype(np.float32)
            wider[places] = value
            return wider

        wide["params"][layer] = {name: spread(value) for name, value in params[layer].items() if name != "kernel"}
        wide["params"][layer]["kernel"] = by_input.reshape(*kernel.shape[:-2], -1, outputs).astype(np.float32)
        for part in wide:
            if f"{layer}_bn" in variables[part]:
                wide[part][f"{layer}_bn"] = {name: spread(x) for name, x in variables[part][f"{layer}_bn"].items()}
        places, channels = of_outputs, outputs
    return wide


def test_pruning_removes_the_channels_of_no_effect(narrow):
    pruned = prune_vgg(with_channels_of_no_effect(narrow.variables), (4, 8), (16,))
    jax.tree.map(np.testing.assert_array_equal, pruned, narrow.variables)


def test_pruning_to_all_channels_changes_nothing(narrow):
    jax.tree.map(np.testing.assert_array_equal, prune_vgg(narrow.variables, (4, 8), (16,)), narrow.variables)


@pytest.mark.parametrize(
    ("widths", "dense", "message"),
    [
        ((4, 9), (16,), "block2_conv1 has 8 channels, so it cannot be pruned to 9"),
        ((4,), (16,), "the network has 2 blocks and 1 dense layers, not 1 and 1"),
        ((4, 8), (), "not 2 and 0"),
    ],
)
def test_sizes_that_do_not_fit_the_network_are_an_error(narrow, widths, dense, message):
    with pytest.raises(ValueError, match=message):
        prune_vgg(narrow.variables, widths, dense)


def test_script_writes_a_model_file_of_the_pruned_network(narrow, tmp_path):
    narrow.config.model.update(widths=(8, 16), dense=(32,))
    wide = narrow._replace(variables=with_channels_of_no_effect(narrow.variables))
    save_trained(wide, tmp_path / "wide.safetensors", "CC0")
    out = tmp_path / "narrow.safetensors"
    done = fork("prune", f"--model={tmp_path / 'wide.safetensors'}", "--widths=4,8", "--dense=16", f"--out={out}")
    assert done.returncode == 0, done.stderr
    pruned = load_trained(out)
    assert (pruned.config.model.widths, pruned.config.model.dense) == ((4, 8), (16,))
    assert pruned.about["licence"] == "CC0"
    check_weights(pruned)
    jax.tree.map(np.testing.assert_array_equal, pruned.variables, narrow.variables)
    again = fork("prune", f"--model={out}", "--widths=4,8", "--dense=8", f"--out={out}")
    assert again.returncode == 1 and f"{out} exists; remove it, or choose another --out" in again.stderr
