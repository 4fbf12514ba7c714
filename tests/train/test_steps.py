import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affect_jax.train.mesh import data_mesh, replicated, split_over_devices, to_devices
from affect_jax.train.state import TrainState, create_state
from affect_jax.train.steps import make_train_step, make_train_steps

TX = optax.sgd(0.1, momentum=0.9)
KEY = jax.random.key(0)


def linear_loss(params, batch_stats, batch, key):
    """Squared error of a linear model; the statistics count the calls."""
    error = batch["x"] @ params["w"] - batch["y"] + 0.0 * jax.random.normal(key)
    return jnp.sum(error**2), (jax.tree.map(lambda n: n + 1, batch_stats), {"count": jnp.float32(len(error))})


def linear_problem(rows=24):
    rng = np.random.default_rng(0)
    examples = {"x": jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32)}
    examples["y"] = examples["x"] @ jnp.array([1.0, -2.0, 0.5])
    variables = {"params": {"w": jnp.zeros(3)}, "batch_stats": {"calls": jnp.zeros(())}}
    return examples, variables


def start(variables, with_ema=False) -> TrainState:
    return create_state(jax.tree.map(jnp.copy, variables), TX, with_ema)


def test_accumulated_gradient_equals_that_of_the_whole_batch():
    examples, variables = linear_problem()
    whole, sums = make_train_step(linear_loss, TX)(start(variables), examples, KEY)
    parts, sums_of_parts = make_train_step(linear_loss, TX, accumulate_steps=4)(start(variables), examples, KEY)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)
    assert sums_of_parts["count"] == sums["count"] == 24
    assert parts.batch_stats["calls"] == 4


@pytest.mark.parametrize("parts", [1, 2])
def test_every_step_and_every_part_of_a_batch_has_its_own_key(parts):
    def draw(params, batch_stats, batch, key):
        drawn = jax.random.uniform(key)
        return 0.0 * params["w"].sum(), (batch_stats, {"count": jnp.float32(1), "sum": drawn, "squares": drawn**2})

    examples, variables = linear_problem()
    train_step, state, totals = make_train_step(draw, TX, accumulate_steps=parts), start(variables), []
    for _ in range(3):
        state, sums = train_step(state, examples, KEY)
        totals.append(float(sums["sum"]))
        if parts == 2:
            assert 2 * sums["squares"] - sums["sum"] ** 2 > 1e-3  # the squared difference of the two draws
    assert len(set(totals)) == 3


def test_step_that_overflows_a_weight_is_not_finite_although_its_gradient_is():
    examples, variables = linear_problem()
    tx = optax.sgd(3e38)
    state, sums = make_train_step(linear_loss, tx)(create_state(variables, tx, False), examples, KEY)
    assert np.isfinite(sums["loss"]) and np.isfinite(sums["grad_norm"])
    assert not np.isfinite(state.params["w"]).all() and sums["finite"] == 0


def test_moving_average_of_weights_and_statistics_follows_its_recurrence():
    examples, variables = linear_problem()
    train_step = make_train_step(linear_loss, TX, ema_decay=0.6)
    state, average, calls = start(variables, with_ema=True), np.zeros(3), 0.0
    for step in range(20):
        state, _ = train_step(state, examples, KEY)
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"])
        calls = decay * calls + (1 - decay) * (step + 1)
    np.testing.assert_allclose(state.ema["params"]["w"], average, rtol=1e-5)
    np.testing.assert_allclose(state.ema["batch_stats"]["calls"], calls, rtol=1e-5)
    assert state.eval_variables is state.ema


def indexed(examples, steps, batch_size=8):
    return {"index": np.random.default_rng(1).integers(0, len(examples["y"]), (steps, batch_size))}


def test_several_steps_in_one_call_equal_single_steps():
    examples, variables = linear_problem()
    train_step = make_train_step(linear_loss, TX)
    batches = indexed(examples, 6)
    many, sums = jax.jit(make_train_steps(train_step))(start(variables), examples, batches, jnp.int32(4), KEY)
    state, losses = start(variables), []
    for index in batches["index"][:4]:
        state, one = train_step(state, {name: value[index] for name, value in examples.items()}, KEY)
        losses.append(one["loss"])
    np.testing.assert_allclose(many.params["w"], state.params["w"], rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], sum(losses), rtol=1e-5)
    assert (int(many.step), int(sums["steps"]), int(sums["count"])) == (4, 4, 32)


def test_streamed_batches_give_the_same_steps_as_indexed_batches():
    examples, variables = linear_problem()
    train_steps = jax.jit(make_train_steps(make_train_step(linear_loss, TX)))
    batches = indexed(examples, 4)
    stacked = {key: value[batches["index"]] for key, value in examples.items()}
    resident, _ = train_steps(start(variables), examples, batches, jnp.int32(4), KEY)
    streamed, _ = train_steps(start(variables), None, stacked, jnp.int32(4), KEY)
    np.testing.assert_array_equal(resident.params["w"], streamed.params["w"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_steps_end_after_the_first_that_is_not_finite(bad):
    examples, variables = linear_problem()
    train_steps = jax.jit(make_train_steps(make_train_step(linear_loss, TX)))
    batches = indexed(examples, 5)
    stacked = {key: np.array(value)[batches["index"]] for key, value in examples.items()}
    stacked["y"][2, 3] = bad
    _, sums = train_steps(start(variables), None, stacked, jnp.int32(5), KEY)
    assert (int(sums["steps"]), float(sums["finite"])) == (3, 0.0)


def test_all_numbers_of_steps_share_one_trace_of_arrays_on_a_mesh():
    examples, variables = linear_problem()
    mesh = data_mesh()
    examples = jax.device_put(examples, replicated(mesh))
    traces = []

    @functools.wraps(linear_loss)
    def counted(*args):
        traces.append(1)
        return linear_loss(*args)

    train_steps = jax.jit(make_train_steps(make_train_step(counted, TX)))
    for count in (5, 1, 3):
        batches = to_devices(indexed(examples, 5), split_over_devices(mesh, 1))
        train_steps(start(variables), examples, batches, jnp.int32(count), KEY)
    assert len(traces) == 1


PROGRAM = """
import functools
from unittest import mock

import jax, jax.numpy as jnp, numpy as np
from affect_jax.models import build_model, vgg
from affect_jax.tasks.classification import make_loss_fn
from affect_jax.train.mesh import data_mesh, replicated, split_over_devices
from affect_jax.train.optim import make_optimizer, make_schedule
from affect_jax.train.state import create_state, init_variables, make_apply
from affect_jax.train.steps import make_train_step

assert jax.device_count() == 8
key = jax.random.key(1)
options = dict(num_classes=7, widths=(4, 8), convs_per_block=1, dense=(16,), dropout=0.0)
variables = init_variables(build_model("vgg_fer", **options), jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
tx = make_optimizer("sgd", make_schedule("constant", 0.1, 1), weight_decay=1e-4)
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (32, 16, 16, 1), np.uint8), "label": rng.integers(0, 7, 32).astype(np.int32)}

def step(augmentation=None, axis_name=None):
    model = build_model("vgg_fer", **options)
    loss_fn = make_loss_fn(make_apply(model), 7, (0.5,), (0.25,), augmentation=augmentation)
    return make_train_step(loss_fn, tx, ema_decay=0.5, axis_name=axis_name)

def fresh():
    return create_state(jax.tree.map(jnp.copy, variables), tx, True)

def compare(name, a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6, err_msg=name + jax.tree_util.keystr(path))

mesh = data_mesh()
on_mesh = dict(in_shardings=(replicated(mesh), split_over_devices(mesh), replicated(mesh)))
augmentation = dict(rotation=10.0, horizontal_flip=True, erase_probability=0.5)
one, sums = jax.jit(step(augmentation))(fresh(), jax.device_put(batch, jax.devices()[0]), key)
eight, sums_of_eight = jax.jit(step(augmentation), **on_mesh)(fresh(), batch, key)
compare("mesh", (one, sums), (eight, sums_of_eight))

def flop(accumulate_steps):
    loss_fn = make_loss_fn(make_apply(build_model("vgg_fer", **options)), 7, (0.5,), (0.25,))
    train_step = make_train_step(loss_fn, tx, accumulate_steps, 0.5)
    return jax.jit(train_step, **on_mesh).lower(fresh(), batch, key).compile().cost_analysis()["flops"]

assert flop(4) < 1.5 * flop(1), "the parts of a step are not split over the devices"

plain, sums = jax.jit(step())(fresh(), jax.device_put(batch, jax.devices()[0]), key)
by_device = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
states = jax.tree.map(lambda x: jnp.stack([x] * 8), fresh())
# On a mesh BatchNorm sees the whole batch; under pmap it needs the axis name.
with mock.patch.object(vgg, "BatchNorm", functools.partial(vgg.BatchNorm, axis_name="data")):
    mapped_step = jax.pmap(step(axis_name="data"), axis_name="data", in_axes=(0, 0, None))
    mapped, mapped_sums = mapped_step(states, by_device, key)
compare("pmap", (plain, sums), jax.tree.map(lambda x: x[0], (mapped, mapped_sums)))
"""


@pytest.mark.slow
def test_step_is_the_same_on_one_device_on_a_mesh_of_eight_and_under_pmap_and_its_parts_are_split():
    """XLA makes all optimizations, as in the programs of users."""
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], check=True, env={**os.environ, **settings})
