import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affect_jax.data.pipeline import BatchIndices, index_iterator
from affect_jax.train import checkpoint
from affect_jax.train.checkpoint import Checkpoints, set_aside_damaged
from affect_jax.train.checksums import CHECKSUMS, ITEMS, find_damage
from affect_jax.train.mesh import data_mesh, replicated
from affect_jax.train.state import create_state

TX = optax.adam(0.1)


def state_with(**shapes):
    """A state on the device with parameters of these shapes, numbered values."""
    params = {name: jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) for name, shape in shapes.items()}
    state = create_state({"params": params, "batch_stats": {"mean": jnp.ones(2)}}, TX, with_ema=True)
    return jax.device_put(state, replicated(data_mesh()))


def iterator_at(position):
    iterator = index_iterator(BatchIndices(num_examples=20, batch_size=4, num_steps=50, seed=0))
    for _ in range(position):
        next(iterator)
    return iterator


def open_checkpoints(path, metric="val/accuracy", mode="max"):
    return Checkpoints(path, metric, mode, keep=2)


def save_all(path, scores, **options):
    checkpoints = open_checkpoints(path, **options)
    for step, score in scores.items():
        metrics = None if score is None else {"val/accuracy": score, "val/loss": score}
        checkpoints.save(step, state_with(w=(2, 3)), iterator_at(step), {"seconds": float(step)}, metrics)
    checkpoints.close()


def test_state_iterator_and_clock_are_restored_as_saved(tmp_path):
    saved = state_with(w=(2, 3))
    save_all(tmp_path, {3: 0.5})
    checkpoints = open_checkpoints(tmp_path)
    iterator = iterator_at(0)
    blank = jax.tree.map(jnp.zeros_like, saved)
    restored, seconds = checkpoints.restore(3, jax.device_put(blank, replicated(data_mesh())), iterator)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(next(iterator)["index"], next(iterator_at(3))["index"])
    assert seconds == {"seconds": 3.0}


@pytest.mark.parametrize(
    ("metric", "mode", "best"), [("val/accuracy", "max", 2), ("val/loss", "min", 4)], ids=["largest", "smallest"]
)
def test_newest_two_and_the_best_are_kept(tmp_path, metric, mode, best):
    save_all(tmp_path, {1: 0.3, 2: 0.9, 3: 0.4, 4: 0.2, 5: 0.5, 6: None, 7: 0.6}, metric=metric, mode=mode)
    checkpoints = open_checkpoints(tmp_path, metric, mode)
    assert (checkpoints.newest, checkpoints.best) == (7, best)
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == {6, 7, best}


def test_the_later_of_two_equal_checkpoints_is_the_best(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.9, 3: 0.9})
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.best == 3
    assert checkpoints.is_best({"val/accuracy": 0.9}) and not checkpoints.is_best({"val/accuracy": 0.89})


def test_nan_is_worse_than_every_metric(tmp_path):
    save_all(tmp_path, {1: 0.3, 2: float("nan"), 3: 0.5, 4: 0.6}, metric="val/loss", mode="min")
    assert open_checkpoints(tmp_path, "val/loss", "min").best == 1


def test_folders_of_the_user_do_not_disturb_a_save_and_are_kept(tmp_path, monkeypatch):
    save_all(tmp_path, {1: 0.3})
    (tmp_path / "2.before").mkdir()
    save_all(tmp_path, {2: 0.4})
    assert find_damage(tmp_path / "2") is None and (tmp_path / "2" / CHECKSUMS).exists()
    (tmp_path / "3.before").mkdir()
    monkeypatch.setattr(checkpoint, "write_checksums", lambda folder: 1 / 0)
    with pytest.raises(OSError, match="checkpoint 3 was not saved"):
        save_all(tmp_path, {3: 0.5})
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "2.before", "3.before"}


def test_saving_a_step_that_is_not_newer_is_an_error(tmp_path):
    save_all(tmp_path, {5: 0.1})
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="checkpoint 5 is not newer than 5"):
        checkpoints.save(5, state_with(w=(2, 3)), iterator_at(5), 0.0, None)


def test_restore_lists_what_is_missing_extra_or_of_another_shape(tmp_path):
    save_all(tmp_path, {1: 0.1})
    other = state_with(w=(3, 3), extra_layer=(4,))
    with pytest.raises(ValueError, match="checkpoint 1 does not fit the model") as error:
        open_checkpoints(tmp_path).restore(1, other, iterator_at(0))
    assert "missing: params/extra_layer (4,)" in str(error.value)
    assert "wrong shape: params/w is (2, 3), the network's is (3, 3)" in str(error.value)
    with pytest.raises(ValueError, match=r"extra: params/w \(2, 3\)"):
        open_checkpoints(tmp_path).restore(1, state_with(v=(2, 3)), iterator_at(0))


def test_restored_variables_are_the_moving_average(tmp_path):
    state = state_with(w=(2, 3))
    checkpoints = open_checkpoints(tmp_path)
    averaged = state.replace(ema=jax.tree.map(lambda x: x + 100, state.ema))
    checkpoints.save(1, averaged, iterator_at(1), 0.0, {"val/accuracy": 1.0})
    checkpoints.close()
    variables = open_checkpoints(tmp_path).restore_variables(1, replicated(data_mesh()))
    np.testing.assert_array_equal(variables["params"]["w"], state.params["w"] + 100)


def damaged_copies(content: bytes, rng: random.Random):
    """The content with one bit flipped, cut, and None for a missing file."""
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(flipped), content[: rng.randrange(len(content))], None


def test_any_damage_to_any_file_is_detected_and_named(tmp_path):
    save_all(tmp_path, {1: 0.1})
    folder, rng = tmp_path / "1", random.Random(0)
    assert find_damage(folder) is None
    files = [file for file in folder.glob("*/**/*") if file.is_file()]
    assert {file.relative_to(folder).parts[0] for file in files} == {*ITEMS, "metrics"}
    for file in files:
        content = file.read_bytes()
        for damaged in damaged_copies(content, rng):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            assert find_damage(folder).startswith(file.relative_to(folder).as_posix())
            file.write_bytes(content)
    flipped, cut, _ = damaged_copies((folder / CHECKSUMS).read_bytes(), rng)
    for damaged in (flipped, cut):
        (folder / CHECKSUMS).write_bytes(damaged)
        assert find_damage(folder)


def test_checkpoint_without_checksums_is_damaged_if_a_folder_is_missing(tmp_path):
    assert find_damage(tmp_path) == f"clock is missing, and so is {CHECKSUMS}"
    for name in ("clock", "data"):
        (tmp_path / name).mkdir()
    assert find_damage(tmp_path) == f"state is missing, and so is {CHECKSUMS}"
    (tmp_path / "state").mkdir()
    assert find_damage(tmp_path) is None


def test_sha256sum_verifies_the_checksums(tmp_path):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum here")
    save_all(tmp_path, {1: 0.1})
    done = subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=tmp_path / "1", capture_output=True, text=True)
    assert done.returncode == 0 and "state/manifest.ocdbt: OK" in done.stdout


def test_damaged_checkpoints_are_renamed_and_checkpoints_without_checksums_reported(tmp_path):
    save_all(tmp_path, {1: 0.1, 2: 0.2})
    (tmp_path / "damaged_2").mkdir()
    (tmp_path / "2" / "metrics" / "metrics").write_text("{}")
    (tmp_path / "1" / CHECKSUMS).unlink()
    assert set_aside_damaged(tmp_path) == [
        f"checkpoint 2 is damaged: metrics/metrics is not what was saved; renamed to {tmp_path}/damaged_2_2",
        f"checkpoint 1 was not verified: it is from an older version, without {CHECKSUMS}",
    ]
    checkpoints = open_checkpoints(tmp_path)
    assert (checkpoints.newest, checkpoints.best) == (1, 1)


def test_reading_does_not_disturb_a_save_in_progress(tmp_path):
    save_all(tmp_path, {1: 0.1})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    Checkpoints(tmp_path, "val/accuracy", "max", keep=2, read_only=True).close()
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
    save_all(tmp_path, {3: 0.3})  # as a resumed run does
    assert not (tmp_path / "2.orbax-checkpoint-tmp").exists()
