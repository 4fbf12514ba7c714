"""The checks of affect_jax/config_checks.py: what they refuse, and what they say."""

import pytest
from ml_collections import ConfigDict

from affect_jax.config import DEFAULTS, classification_config, default_config, detection_config
from affect_jax.config_checks import checks_of, validate, validate_for_use


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
        ({"total_epochs": 1e8}, "total_epochs is 100000000.0; must be above 0 and at most 100,000"),
        ({"eval_every_epochs": 1e-9}, "eval_every_epochs is 1e-09; must be at least 0.001"),
        ({"select_on": "test/accuracy"}, "select_on is 'test/accuracy'; must be one of val/accuracy"),
        ({"optim__learning_rate": float("inf")}, "optim.learning_rate is inf"),
        ({"optim__momentum": 7.0}, "optim.momentum is 7.0; must be between 0 and 0.9999"),
        ({"optim__weight_decay": 0.1}, "adam has none; use adamw"),
        ({"optim__nesterov": True}, "adam has none; use sgd"),
        ({"optim__schedule": "one_cycle"}, "must be one of constant, cosine, linear, step"),
        ({"optim__schedule": "step"}, "optim.step_epochs is empty"),
        ({"optim__schedule": "step", "optim__step_epochs": (3.0, 3.0)}, "the epochs must increase"),
        (
            {"optim__schedule": "step", "optim__step_epochs": (3.0,), "optim__warmup_epochs": 4.0},
            "the first must not be below optim.warmup_epochs 4.0",
        ),
        ({"optim__warmup_epochs": 500.0}, "must be below total_epochs"),
        (
            {"optim__freeze": ("a",), "optim__freeze_epochs": 200.0},
            "optim.freeze_epochs 200.0 must be below total_epochs",
        ),
        ({"optim__final_fraction": 0.1}, "optim.final_fraction is set but the schedule constant has none"),
        ({"optim__step_epochs": (3.0,)}, "optim.step_epochs is set but the schedule constant has none"),
        ({"model": {"name": "vgg_fer", "widths": (4, 8.5)}}, "each must be a whole number of at least 1"),
        ({"task": "detection"}, "detection needs the fields transform; choose a config of this task"),
        ({"model__convs_per_block": 0}, "model.convs_per_block is 0; must be at least 1"),
        ({"optim__freeze": (5,)}, "optim.freeze: 5 is not a valid regular expression"),
        ({"optim__freeze": ("(a",)}, "optim.freeze: '(a' is not a valid regular expression"),
        ({"optim__multipliers": (("a)", 0.1),)}, "optim.multipliers: 'a)' is not a valid regular expression"),
        ({"optim__multipliers": ("a",)}, "must be (regex, factor)"),
        ({"init_from": "w", "init_excuse": ("*",)}, "init_excuse: '*' is not a valid regular expression"),
        ({"augment__rotation": -5.0}, "augment.rotation is -5.0; must be between 0 and 180 degrees"),
        ({"augment__shear": 95.0}, "augment.shear is 95.0; must be between 0 and 60 degrees"),
        ({"augment__zoom": 1.5}, "augment.zoom is 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"loss": "hinge"}, "loss is 'hinge'; must be one of cross_entropy, focal"),
        ({"data__sampling": "fair"}, "data.sampling is 'fair'; must be one of shuffled, balanced"),
        ({"valence_arousal_weight": -1.0}, "valence_arousal_weight is -1.0; must be at least 0 (0 is no head"),
        ({"preprocess__std": (0.0,)}, "each must be above 0"),
        ({"preprocess__std": (0.5, 0.5)}, "one value per channel"),
        ({"model": {"name": "vgg_fer", "dropout": 1.5}}, "model.dropout is 1.5; must be between 0 and 0.99"),
        ({"model": {"name": "vgg_fer", "widths": (8, 0)}}, "model.widths is (8, 0); needs 1 or more values; each must"),
        ({"optim__multipliers": (("a", "b"),)}, "optim.multipliers is (('a', 'b'),); each must be (regex, factor)"),
        ({"model": {"name": "resnet18", "stride_in_1x1": True}}, "model.stride_in_1x1 is True but resnet18 has no"),
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
        ({"transform__scale_range": (1.0, 2.0), "transform__side_range": (0.3, 2.0)}, "are both set"),
        ({"transform__reference_boxes": "no/boxes.json"}, "'no/boxes.json'; must be empty or a file that exists"),
        ({"data__epoch_limits": (("/march/", 0),)}, "must be (regex, number), the number at least 1"),
        ({"data__epoch_limits": (("march)", 9),)}, "data.epoch_limits: 'march)' is not a valid regular expression"),
        ({"transform__clahe_limit": -2.0}, "transform.clahe_limit is -2.0; must be above 0"),
        ({"model__neck": "c4"}, "model.neck is 'c4'; must be one of fpn, fpn_c4, yunet"),
        ({"model__neck": "fpn_c4"}, "model.anchor_sizes has 5 levels but the neck fpn_c4 has 4"),
        (
            {"model__anchor_sizes": ((8, 16), (32,), (64,), (128,), (256,))},
            "every level needs the same number of sizes",
        ),
        ({"model__neck": "yunet", "model__anchor_sizes": ((8,), (16,), (32,))}, "the neck yunet has one anchor per"),
        ({"transform__anywhere_probability": 0.2}, "but transform.side_range is empty"),
        (
            {"model__backbone_name": "resnet18", "model__stride_in_1x1": True},
            "model.stride_in_1x1 is True but model.backbone_name resnet18 has no ResNet bottlenecks; set it to False",
        ),
        (
            {"accumulate_steps": 2, "model__rpn__objectness_loss": "yunet"},
            "model.rpn.objectness_loss yunet needs accumulate_steps = 1",
        ),
        ({"model__neck": "yunet", "model__fpn_channels": 64}, "model.fpn_channels is 64 but model.neck yunet has its"),
        (
            {"model__rpn__assigner": "simota", "model__rpn__fg_iou_thresh": 0.5},
            "model.rpn.fg_iou_thresh is 0.5 but model.rpn.assigner simota assigns without this threshold",
        ),
        (
            {"model__rpn__objectness_loss": "yunet", "model__rpn__positive_fraction": 0.3},
            "model.rpn.positive_fraction is 0.3 but model.rpn.objectness_loss yunet takes all anchors",
        ),
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

    assert numbers(config.to_dict()) <= checks_of(config).keys()


def test_fields_of_faster_rcnn_are_not_checked_for_another_detector():
    config = set_fields(detection_config(), model={"name": "retinanet", "neck": "bifpn"})
    validate(config)
    validate_for_use(config)
    config.task = "segmentation"
    for check in (validate, validate_for_use):
        with pytest.raises(ValueError, match="task is 'segmentation'"):
            check(config)
