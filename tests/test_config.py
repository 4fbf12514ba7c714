import importlib.util
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from affect_jax.config import (
    CHECKS,
    DEFAULTS,
    classification_config,
    default_config,
    detection_config,
    epochs_to_steps,
    validate,
)
from affect_jax.data import open_split
from affect_jax.runs.sweep import seconds_to
from affect_jax.runs.training import train_and_evaluate
from affect_jax.runs.workdir import Workdir, load_history
from affect_jax.tasks.classification import is_resident
from affect_jax.train import loop

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = [
    "fer_vgg.py",
    "fer_vgg.py:demo",
    "fer_vgg_best.py",
    "fer_vgg_best.py:two_cores",
    "fer_mobilenet.py",
    "fer_mobilenet.py:literal",
    "fer_mobilenet.py:two_cores",
    "fer_finetune.py",
    "fer_finetune.py:ferplus",
    "fer_mobilenet_v1.py",
    "fer_mobilenet_v1.py:ferplus",
    "fer_speedrun.py",
    "fer_speedrun.py:68",
    "fer_speedrun.py:70",
    "fer_speedrun.py:72",
    "ferplus_vgg.py:majority",
    "ferplus_vgg.py",
    "ferplus_mobilenet.py",
    "ferplus_mobilenet.py:two_cores",
    "affectnet_mobilenet.py",
    "affectnet_resnet.py",
    "widerface_rcnn.py",
    "widerface_rcnn.py:two_cores",
    "widerface_rcnn.py:mobilenet",
    "widerface_rcnn.py:demo",
    "darkface_rcnn.py",
    "darkface_rcnn.py:two_cores",
]
FILES = sorted({variant.partition(":")[0] for variant in VARIANTS})


def load(variant: str) -> ConfigDict:
    file, _, argument = variant.partition(":")
    spec = importlib.util.spec_from_file_location("config_under_test", CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def cut_to_two_updates(config: ConfigDict) -> None:
    """Same fields, but few drawn faces of the same size, and a narrow network where the config's takes long."""
    if config.task == "detection":
        return cut_detector_to_two_updates(config)
    config.data.name, config.data.targets, config.data.num_workers = "drawn_faces", "label", 0  # no votes there
    config.data.options = {"num_examples": {"train": 8, "val": 8, "test": 8}}
    config.batch_size = config.eval_batch_size = 4
    config.total_epochs, config.optim.warmup_epochs = 1.0, 0.0
    config.init_from, config.init_excuse = "", ()  # weights are not at hand everywhere
    if "widths" in config.model:
        config.model.widths = tuple(width // 8 for width in config.model.widths)
    if config.model.name.startswith("mobilenet"):
        config.model.width_multiplier = 0.25


def cut_detector_to_two_updates(config: ConfigDict) -> None:
    """Same fields, but few drawn scenes, small, and few proposals."""
    config.data.name, config.data.num_workers, config.data.max_boxes = "drawn_scenes", 0, 8
    config.data.options = {"num_examples": {"train": 4, "val": 4, "test": 4}, "image_size": (96, 128)}
    config.data.buckets, config.data.eval_buckets = ((96, 128),), ()
    config.batch_size = config.eval_batch_size = 2
    config.total_epochs, config.optim.warmup_epochs = 1.0, 0.0
    config.init_from, config.init_excuse, config.dtype = "", (), "float32"
    config.model.fpn_channels = config.model.box.representation_size = 16
    if config.model.backbone_name.startswith("resnet"):
        config.model.backbone_name = "resnet18"
    for part in (config.model.rpn, config.model.box):
        part.update({name: 64 for name in part if "nms_top_n" in name or name.endswith("per_image")})


def test_every_config_file_is_among_the_variants():
    assert {path.name for path in CONFIGS.glob("*.py")} == {variant.partition(":")[0] for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_is_valid(variant):
    validate(load(variant))


@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("file", FILES)
def test_config_trains_for_two_updates(file, tmp_path):
    config = load(file)
    cut_to_two_updates(config)
    metrics = train_and_evaluate(config, tmp_path)
    assert 0 <= metrics[config.select_on] <= 1


def test_speedrun_makes_one_dispatch_a_pass(tmp_path, monkeypatch):
    config = load("fer_speedrun.py")
    cut_to_two_updates(config)
    config.data.options = {"num_examples": {"train": 18, "val": 8, "test": 8}}
    config.total_epochs, config.dtype, config.model.convs_per_block = 3.0, "float32", 1
    dispatched, take_batches = [], loop.take_batches
    monkeypatch.setattr(
        loop,
        "take_batches",
        lambda batches, count, *rest: dispatched.append(count) or take_batches(batches, count, *rest),
    )
    train_and_evaluate(config, tmp_path)
    assert dispatched == [4, 5, 5]  # of four pictures each
    records = [record for record in load_history(Workdir(tmp_path)) if "val/accuracy" in record]
    assert [record["step"] for record in records] == [4, 9, 14]
    assert seconds_to(0.0, load_history(Workdir(tmp_path))) == records[0]["train_seconds"]


@pytest.mark.parametrize("file", FILES)
def test_unknown_variant_is_refused_with_the_known_ones(file):
    with pytest.raises(ValueError, match="unknown variant 'nonsense'") as error:
        load(f"{file}:nonsense")
    known = {variant.partition(":")[2] for variant in VARIANTS if variant.startswith(f"{file}:")}
    assert all(name in str(error.value) for name in known)


def leaves(config: ConfigDict, prefix: str = "") -> set[str]:
    """Dotted names of a config's fields; what stands in "options" and "model" is its reader's own."""
    names = set()
    for name, value in config.items():
        nested = isinstance(value, ConfigDict) and name not in ("options", "model")
        names |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name}
    return names


def test_every_field_is_read_by_code_that_runs(tiny_config, tmp_path, monkeypatch):
    """A field that nothing reads is a knob that does nothing. A fresh run and a streamed one from its weights."""
    streamed = tiny_config.copy_and_resolve_references()
    streamed.data.input, streamed.data.num_workers = "stream", 1
    streamed.init_from = str(tmp_path / "fresh")
    assert_all_read({"fresh": tiny_config, "streamed": streamed}, tmp_path, monkeypatch)


@pytest.mark.usefixtures("plain_convolutions")
def test_every_field_of_a_detector_is_read_by_code_that_runs(tiny_detector_config, tmp_path, monkeypatch):
    onwards = tiny_detector_config.copy_and_resolve_references()
    onwards.init_from = str(tmp_path / "fresh")
    assert_all_read({"fresh": tiny_detector_config, "onwards": onwards}, tmp_path, monkeypatch)


def assert_all_read(configs: dict[str, ConfigDict], tmp_path, monkeypatch) -> None:
    """Runs of the configs read every field that the first has."""
    fields, read, getitem = leaves(next(iter(configs.values()))), set(), ConfigDict.__getitem__

    def recorder(names: dict[int, str]):
        def record(self, key):
            frame = sys._getframe(1)
            while "ml_collections" in frame.f_code.co_filename:
                frame = frame.f_back
            # validate reads fields to check them, claim to write them down: neither acts on them
            if id(self) in names and frame.f_code.co_name not in ("validate", "claim", "first_screen"):
                read.add(names[id(self)] + key)
            return getitem(self, key)

        return record

    for folder, config in configs.items():
        names = {id(config): ""} | {id(v): f"{k}." for k, v in config.items() if isinstance(v, ConfigDict)}
        with monkeypatch.context() as patch:
            patch.setattr(ConfigDict, "__getitem__", recorder(names))
            train_and_evaluate(config, tmp_path / folder)
    assert fields - read == set()


def test_input_is_resident_where_the_config_says_so_or_the_split_fits(tiny_config):
    split = open_split("drawn_faces", "train", "", num_examples=500_000)  # 1.07 GiB
    assert is_resident(tiny_config, split)
    tiny_config.data.resident_limit_gib = 1.0
    assert not is_resident(tiny_config, split)
    tiny_config.data.input = "resident"
    assert is_resident(tiny_config, split)
    tiny_config.data.input = "stream"
    assert not is_resident(tiny_config, split)


def set_fields(config: ConfigDict, **fields) -> ConfigDict:
    """Set fields by their dotted names, "__" for each dot."""
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float61"}, "dtype is 'float61'; must be one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size is 0; must be at least 1"),
        ({"accumulate_steps": 3}, "does not split into accumulate_steps 3"),
        ({"accumulate_steps": 0}, "accumulate_steps is 0; must be at least 1"),
        ({"total_epochs": float("nan")}, "total_epochs is nan"),
        ({"select_on": "test/accuracy"}, "select_on is 'test/accuracy'; must be one of val/accuracy"),
        ({"optim__learning_rate": float("inf")}, "optim.learning_rate is inf"),
        ({"optim__momentum": 7.0}, "optim.momentum is 7.0; must be between 0 and 0.9999"),
        ({"optim__weight_decay": 0.1}, "adam has none; use adamw"),
        ({"optim__schedule": "one_cycle"}, "must be one of constant, cosine, linear, step"),
        ({"optim__schedule": "step"}, "optim.step_epochs is empty"),
        ({"optim__schedule": "step", "optim__step_epochs": (3.0, 3.0)}, "the epochs must increase"),
        (
            {"optim__schedule": "step", "optim__step_epochs": (3.0,), "optim__warmup_epochs": 4.0},
            "the first must not be below optim.warmup_epochs 4.0",
        ),
        ({"optim__warmup_epochs": 500.0}, "must be below total_epochs"),
        ({"optim__freeze": ("(a",)}, "optim.freeze: '(a' is not a valid regular expression"),
        ({"optim__multipliers": (("a)", 0.1),)}, "optim.multipliers: 'a)' is not a valid regular expression"),
        ({"optim__multipliers": ("a",)}, "must be (regex, factor)"),
        ({"init_from": "w", "init_excuse": ("*",)}, "init_excuse: '*' is not a valid regular expression"),
        ({"augment__rotation": -5.0}, "augment.rotation is -5.0; must be between 0 and 180 degrees"),
        ({"augment__shear": 95.0}, "augment.shear is 95.0; must be between 0 and 60 degrees"),
        ({"augment__zoom": 1.5}, "augment.zoom is 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"data__sampling": "fair"}, "data.sampling is 'fair'; must be one of shuffled, balanced"),
        ({"valence_arousal_weight": -1.0}, "valence_arousal_weight is -1.0; must be at least 0 (0 is no head"),
        ({"preprocess__std": (0.0,)}, "each must be above 0"),
        ({"preprocess__std": (0.5, 0.5)}, "one value per channel"),
    ],
)
def test_invalid_field_of_a_classifier_is_named_with_its_limits(fields, message):
    with pytest.raises(ValueError, match="the config is not valid") as error:
        validate(set_fields(classification_config(), **fields))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__buckets": ()}, "data.buckets is (); needs 1 or more values"),
        ({"data__buckets": ((640, 650),)}, "each must be (height, width), multiples of 32"),
        ({"steps_per_dispatch": 8}, "steps_per_dispatch is 8; must be between 0 and 1"),
        ({"transform__scale_range": (2.0, 1.0)}, "must be () or (smallest, largest)"),
        ({"transform__low_light_exposure": (0.1, 3.0)}, "both above 0 and at most 1"),
        ({"transform__clahe_limit": -2.0}, "transform.clahe_limit is -2.0; must be above 0"),
        ({"model__neck": "bifpn"}, "model.neck is 'bifpn'; must be one of fpn, fpn_c4, c4"),
        ({"model__neck": "c4"}, "model.anchor_sizes has 5 levels but the neck c4 has 1"),
    ],
)
def test_invalid_field_of_a_detector_is_named_with_its_limits(fields, message):
    with pytest.raises(ValueError, match="the config is not valid") as error:
        validate(set_fields(detection_config(), **fields))
    assert message in str(error.value)


def test_all_invalid_fields_are_listed_at_once():
    with pytest.raises(ValueError, match=r"batch_size is 0.*\n.*dtype is 'float61'"):
        validate(set_fields(classification_config(), batch_size=0, dtype="float61"))


def test_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="task is 'segmentation'; must be one of classification, detection"):
        validate(set_fields(classification_config(), task="segmentation"))
    with pytest.raises(ValueError, match="task is 'segmentation'; must be one of classification, detection"):
        default_config("segmentation")


@pytest.mark.parametrize("task", DEFAULTS)
def test_defaults_are_valid_and_every_number_has_a_check(task):
    config = default_config(task)
    validate(config)

    def numbers(section: dict, prefix: str = "") -> set[str]:
        names = set()
        for name, value in section.items():
            if isinstance(value, dict):
                names |= numbers(value, f"{prefix}{name}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                names.add(prefix + name)
        return names

    assert numbers(config.to_dict()) <= set(CHECKS[task])


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 449), (120.0, 53829), (0.0001, 1), (0.0, 0), (2 * 64 / 28709, 2)])
def test_epochs_of_fer2013_at_batch_64_are_the_nearest_number_of_updates(epochs, steps):
    assert epochs_to_steps(epochs, 28709, 64) == steps
