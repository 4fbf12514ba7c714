import importlib.util
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from affect_jax import config_checks, labels
from affect_jax.config import epochs_to_steps
from affect_jax.config_checks import validate
from affect_jax.data import open_split
from affect_jax.data.drawn_scenes import DrawnScenes
from affect_jax.data.split import FacesSplit
from affect_jax.models import MODELS
from affect_jax.models.pretrained import named_weights
from affect_jax.names import selects
from affect_jax.runs.sweep import seconds_to
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, claim, load_history
from affect_jax.tasks import build_task
from affect_jax.tasks.classification import is_resident
from affect_jax.tasks.interface import DataFacts, Task
from affect_jax.train import loop
from affect_jax.train.builders import build_frozen, build_optimizer, build_schedule, build_train_step
from affect_jax.train.state import create_state, make_apply, variable_shapes

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = [
    "fer_vgg.py",
    "fer_vgg.py:demo",
    "fer_vgg_best.py",
    "fer_vgg_best.py:two_cores",
    "fer_vgg_best.py:narrow",
    "fer_vgg_best.py:distilled",
    "fer_mobilenet.py",
    "fer_mobilenet.py:literal",
    "fer_mobilenet.py:two_cores",
    "fer_finetune.py",
    "fer_finetune.py:ferplus",
    "fer_finetune.py:long",
    "fer_finetune.py:distilled",
    "fer_mobilefacenet.py",
    "fer_mobilefacenet.py:ms1m",
    "fer_mobilefacenet.py:ferplus",
    "fer_mobilefacenet.py:ms1m_ferplus",
    "fer_mobilenet_v1.py",
    "fer_mobilenet_v1.py:ferplus",
    "fer_mobilenet_v1.py:long",
    "fer_mobilenet_v1.py:long_ferplus",
    "fer_speedrun.py",
    "fer_speedrun.py:68",
    "fer_speedrun.py:70",
    "fer_speedrun.py:72",
    "ferplus_vgg.py:majority",
    "ferplus_vgg.py",
    "ferplus_vgg.py:narrow",
    "ferplus_mobilenet.py",
    "ferplus_mobilenet.py:two_cores",
    "affectnet_mobilenet.py",
    "affectnet_resnet.py",
    "widerface_rcnn.py",
    "widerface_rcnn.py:two_cores",
    "widerface_rcnn.py:mobilenet",
    "widerface_rcnn.py:demo",
    "widerface_yunet.py",
    "widerface_yunet.py:whole",
    "widerface_yunet.py:scratch",
    "darkface_rcnn.py",
    "darkface_rcnn.py:two_cores",
    "darkface_rcnn.py:simulated",
]
FILES = sorted({variant.partition(":")[0] for variant in VARIANTS})


def load(variant: str) -> ConfigDict:
    file, _, argument = variant.partition(":")
    spec = importlib.util.spec_from_file_location("config_under_test", CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def cut_to_few_steps(config: ConfigDict) -> None:
    """Keep the fields, but train a narrow network on few drawn faces of the same size."""
    config.data.name = "drawn_faces"
    config.data.options = {"num_examples": {"train": 18, "val": 8, "test": 8}}
    config.batch_size = config.eval_batch_size = 4
    config.total_epochs, config.optim.warmup_epochs, config.dtype = 3.0, 0.0, "float32"
    config.model.update(widths=(4, 8), convs_per_block=1, dense=(16,))


class StandInFaces(FacesSplit):
    """Random images with the classes, image size and targets of a published data set, which need not be there."""

    OF: typing.ClassVar = {
        "fer2013": (labels.FER2013, (48, 48, 1)),
        "ferplus": (labels.FERPLUS, (48, 48, 1)),
        "drawn_faces": (labels.FER2013, (48, 48, 1)),
        "affectnet": (labels.AFFECTNET, (112, 112, 3)),
    }

    def __init__(self, name: str, num_examples: int):
        self.class_names, self.image_shape = self.OF[name]
        self.num_examples = num_examples

    def __len__(self) -> int:
        return self.num_examples

    def labels(self) -> np.ndarray:
        return np.arange(self.num_examples, dtype=np.int32) % len(self.class_names)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        return {
            "image": rng.integers(0, 256, (len(indices), *self.image_shape), np.uint8),
            "label": self.labels()[indices],
            "votes": np.eye(len(self.class_names), dtype=np.float32)[self.labels()[indices]],
            "valence_arousal": rng.uniform(-1, 1, (len(indices), 2)).astype(np.float32),
        }


def first_batch(task: Task, split) -> dict[str, np.ndarray]:
    """Return the first training batch as the config's input pipeline makes it."""
    data = task.training_data(split, total_steps=1, process_index=0, process_count=1)
    batch = next(data.batches)
    data.batches.close()
    if data.examples is None:
        return batch
    return {name: rows[batch["index"]] for name, rows in data.examples.result().items()}


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_every_config_file_is_among_the_variants():
    assert {path.name for path in CONFIGS.glob("*.py")} == {variant.partition(":")[0] for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_is_valid(variant):
    validate(load(variant))


def trace_network(task: Task, model: nn.Module, data: DataFacts, batch: dict[str, np.ndarray]) -> dict:
    """Trace initialization and prediction, and return the shapes of the variables."""
    variables = variable_shapes(model, task.network_inputs(data))
    outputs = jax.eval_shape(task.predict_fn(make_apply(model), data), variables, batch)
    assert all(output.shape[0] == len(batch["image"]) for output in jax.tree.leaves(outputs))
    return variables


@pytest.fixture(scope="module")
def traced() -> dict:
    """The shapes of the variables by network: configs share networks, and tracing them takes longest."""
    return {}


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("variant", VARIANTS)
def test_first_step_and_prediction_of_config_trace(variant, traced):
    """The real config reads a batch, and its training step and prediction trace: only XLA does not run."""
    config = load(variant)
    config.data.num_workers = 0
    validate(config)
    task = build_task(config)
    if config.task == "detection":
        config.data.epoch_limits = ()  # of events of WIDER FACE, which drawn scenes do not have
        split = DrawnScenes("train", config.batch_size)
    else:
        split = StandInFaces(config.data.name, 2 * config.batch_size)
    data, batch = task.data_facts(split), first_batch(task, split)
    model = task.build_network(data)
    network = repr(model), data
    if network not in traced:
        traced[network] = trace_network(task, model, data, batch)
    variables = traced[network]
    names = named_weights(variables).keys()
    for pattern in (*config.optim.freeze, *(pattern for pattern, _ in config.optim.multipliers)):
        assert any(map(selects([pattern]), names)), f"{pattern} matches no parameter"

    optimizer = build_optimizer(config, build_schedule(config, len(split)))
    state = jax.eval_shape(lambda x: create_state(x, optimizer, config.ema_decay > 0), variables)
    train_step = build_train_step(config, task, model, data, optimizer, build_frozen(config))
    next_state, sums = jax.eval_shape(train_step, state, batch, jax.random.key(0))
    assert shapes(next_state) == shapes(state)
    assert sums["loss"].shape == ()


@pytest.mark.usefixtures("plain_convolutions")
def test_config_of_the_speedrun_trains_with_one_dispatch_per_epoch(tmp_path, monkeypatch):
    config = load("fer_speedrun.py")
    cut_to_few_steps(config)
    dispatched, take_batches = [], loop.take_batches
    monkeypatch.setattr(
        loop,
        "take_batches",
        lambda batches, count, *rest: dispatched.append(count) or take_batches(batches, count, *rest),
    )
    metrics = train_and_evaluate(config, tmp_path)
    assert 0 <= metrics[config.select_on] <= 1
    assert dispatched == [4, 5, 5]  # of four images each
    records = [record for record in load_history(Workdir(tmp_path)) if "val/accuracy" in record]
    assert [record["step"] for record in records] == [4, 9, 14]
    assert seconds_to(0.0, load_history(Workdir(tmp_path)), "accuracy") == records[0]["train_seconds"]


@pytest.mark.parametrize("file", FILES)
def test_unknown_variant_is_refused_with_the_known_ones(file):
    with pytest.raises(ValueError, match="unknown variant 'nonsense'") as error:
        load(f"{file}:nonsense")
    listed = str(error.value).partition("the variants are ")[2]
    assert set(filter(None, listed.split(", "))) == {v.partition(":")[2] for v in VARIANTS if v.startswith(f"{file}:")}


class StandInClassifier(nn.Module):
    """A linear layer on the mean color."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class StandInDetector(nn.Module):
    """One number as the loss, with the outputs of a detector."""

    bn_epsilon: float = 1e-5  # compared with that of the initial weights
    stride_in_1x1: bool = False

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], train: bool) -> dict:
        rows, number = len(inputs["image"]), self.param("number", nn.initializers.ones, ())
        losses = {"loss_number": (jnp.full(rows, number), jnp.ones(rows))}
        detections = {
            "boxes": jnp.ones((rows, 1, 4)),
            "scores": jnp.ones((rows, 1)),
            "label": jnp.zeros((rows, 1), jnp.int32),
            "valid": jnp.ones((rows, 1), bool),
        }
        return {"losses": losses, "detections": detections}


def build_stand_in_classifier(num_classes: int, dtype: jnp.dtype, **options) -> nn.Module:
    return StandInClassifier(num_classes)


def build_stand_in_detector(num_classes: int, dtype: jnp.dtype, **options) -> nn.Module:
    return StandInDetector()


def fields_of(config: ConfigDict, prefix: str = "") -> set[str]:
    """Return the dotted names of a config's fields; "data.options" and "model" are arguments of others."""
    names = set()
    for name, value in config.items():
        nested = isinstance(value, ConfigDict) and name not in ("options", "model")
        names |= fields_of(value, f"{prefix}{name}.") if nested else {prefix + name}
    return names


PRINTING = {"__str__", "__repr__", "to_json", "to_json_best_effort", "to_yaml"}
"""Methods of ConfigDict that print a config or write it down."""
CHECKS_FILE = Path(config_checks.__file__)


def acts(frame) -> bool:
    """Return True if the code of affect_jax that reads a field neither checks it nor prints it nor writes it down."""
    while frame and not Path(frame.f_code.co_filename).is_relative_to(CHECKS_FILE.parent):
        if frame.f_code.co_name in PRINTING:
            return False
        frame = frame.f_back
    return frame is not None and Path(frame.f_code.co_filename) != CHECKS_FILE


def fields_read(config: ConfigDict, workdir: Path, monkeypatch) -> set[str]:
    """Run the config and return the fields that code reads to act on them."""
    read, getitem = set(), ConfigDict.__getitem__
    prefixes = {id(config): ""} | {id(v): f"{k}." for k, v in config.items() if isinstance(v, ConfigDict)}

    def record(self, key):
        if id(self) in prefixes and acts(sys._getframe(1)):
            read.add(prefixes[id(self)] + key)
        return getitem(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ConfigDict, "__getitem__", record)
        train_and_evaluate(config, workdir)
    return read


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_every_field_is_read_by_code_that_acts_on_it(task, tiny_config, tiny_detector_config, tmp_path, monkeypatch):
    """A field that nothing reads is an option without effect. One run starts afresh, one from the weights of the first.

    The networks are stand-ins that compile fast, so this is about all fields except those of the network.
    """
    builder, config = {
        "classification": ("build_stand_in_classifier", tiny_config),
        "detection": ("build_stand_in_detector", tiny_detector_config),
    }[task]
    monkeypatch.setitem(MODELS, "stand_in", f"{__name__}:{builder}")
    fresh = config.copy_and_resolve_references()
    fresh.model = {"name": "stand_in"}
    continued = fresh.copy_and_resolve_references()
    continued.init_from = str(tmp_path / "fresh")
    if task == "classification":
        continued.data.input, continued.data.num_workers = "stream", 1
    runs = {"fresh": fresh, "continued": continued}
    read = set.union(*(fields_read(config, tmp_path / name, monkeypatch) for name, config in runs.items()))
    assert fields_of(fresh) - read == set()


def test_checking_and_writing_a_config_do_not_count_as_reading_it(tiny_config, tmp_path, monkeypatch):
    def check_and_write(config, path):
        validate(config)
        claim(Workdir(path), config, DataFacts(("face",), ()), {})
        return str(config)

    monkeypatch.setattr(sys.modules[__name__], "train_and_evaluate", check_and_write)
    assert fields_read(tiny_config, tmp_path, monkeypatch) == set()


def test_input_is_resident_where_the_config_says_so_or_the_split_fits(tiny_config):
    split = open_split("drawn_faces", "train", "", num_examples=500_000)  # 1.07 GiB
    assert is_resident(tiny_config, split)
    tiny_config.data.resident_limit_gib = 1.0
    assert not is_resident(tiny_config, split)
    tiny_config.data.input = "resident"
    assert is_resident(tiny_config, split)
    tiny_config.data.input = "stream"
    assert not is_resident(tiny_config, split)


def test_data_of_the_other_task_is_refused_by_name(tiny_config, tiny_detector_config):
    tiny_config.data.name, tiny_detector_config.data.name = "drawn_scenes", "drawn_faces"
    tiny_config.data.options = tiny_detector_config.data.options = {"num_examples": 4}
    with pytest.raises(ValueError, match="drawn_scenes, which has boxes, but the config is for classification"):
        build_task(tiny_config).open_split("train")
    with pytest.raises(ValueError, match="drawn_faces, which has no boxes, but the config is for detection"):
        build_task(tiny_detector_config).open_split("train")


def test_workers_that_a_resident_split_does_not_use_are_named_at_the_start(tiny_config):
    def first_line() -> str:
        task = build_task(tiny_config)
        return task.describe(task.open_split("train"), task.evaluation("val"))[0]

    tiny_config.data.num_workers = 2
    assert "resident on the device (read once, so data.num_workers is not used); val" in first_line()
    tiny_config.data.resident_limit_gib = 0.0
    assert "num_workers" not in first_line()


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 449), (120.0, 53829), (0.0001, 1), (0.0, 0), (2 * 64 / 28709, 2)])
def test_epochs_of_fer2013_at_batch_64_are_the_nearest_number_of_steps(epochs, steps):
    assert epochs_to_steps(epochs, 28709, 64) == steps
