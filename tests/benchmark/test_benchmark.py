import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_script import ROOT, fork

from affect_jax.benchmark import detector as detector_benchmark
from affect_jax.benchmark import scaling, timing, torch_twin, training
from affect_jax.benchmark.classifier import noise_batch
from affect_jax.benchmark.flop import program_flop
from affect_jax.benchmark.profile import format_profile, profile_rows
from affect_jax.benchmark.steps import predict_work, step_work
from affect_jax.benchmark.timing import format_row
from affect_jax.benchmark.training import benchmark
from affect_jax.config import detection_config
from affect_jax.data.drawn_faces import DrawnFaces
from affect_jax.models import build_model
from affect_jax.models.layers import Conv
from affect_jax.ops.nms import nms
from affect_jax.predict.networks import Classifier, Detector
from affect_jax.predict.reader import FaceReader
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import variable_shapes


@pytest.mark.parametrize(("freeze", "first_trained"), [(".*_bn/.*", 0), ("block1.*|.*_bn/.*", 2), ("block.*", 4)])
def test_flop_of_a_step_are_those_of_the_products_it_needs(tiny_config, plain_convolutions, freeze, first_trained):
    """Trained layers have a gradient by the kernel, and all of these but the first one by the input."""
    tiny_config.model = {"name": "vgg_fer", "widths": (4, 8), "convs_per_block": 2, "dense": (16,), "dropout": 0.5}
    tiny_config.optim.freeze, tiny_config.accumulate_steps = (freeze,), 2
    convolutions = [9 * 48 * 48 * 1 * 4, 9 * 48 * 48 * 4 * 4, 9 * 24 * 24 * 4 * 8, 9 * 24 * 24 * 8 * 8]
    products = [*convolutions, 12 * 12 * 8 * 16, 16 * 7]
    batch = noise_batch(tiny_config.batch_size, (48, 48, 1), 7)
    _, costs = step_work(tiny_config, batch, 1)
    gradients = products[first_trained:] + products[first_trained + 1 :]
    assert costs["flop_per_image"] == 2 * sum(products + gradients)
    assert predict_work(tiny_config, batch["image"], 1)[1] == 2 * sum(products)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (64, 1), (64, 2)])
def test_flop_of_a_convolution_and_of_each_gradient_are_those_of_its_products(groups, stride):
    layer = Conv(64, groups=groups, strides=(stride, stride), use_bias=False)
    x = jnp.zeros((2, 48, 48, 64))
    variables = layer.init(jax.random.key(0), x)
    products = 9 * x.size * (64 // groups) / stride**2
    assert program_flop(layer.apply, variables, x) == 2 * products
    for argument in (0, 1):
        gradient = jax.grad(lambda variables, x: jnp.sum(layer.apply(variables, x) ** 2), argument)
        assert program_flop(gradient, variables, x) == 2 * (2 * products)


def test_a_config_with_teachers_is_not_measured_without_them(tiny_config):
    tiny_config.distillation.teachers = ("runs/teacher",)
    with pytest.raises(ValueError, match=r"set --config.distillation.teachers='\(\)'"):
        next(benchmark(tiny_config, False, 1, ["step"]))


def test_rates_of_a_work_worked_by_hand(tiny_config, monkeypatch):
    row = timing.result_row("step", "affect_jax", images=64, seconds=[0.25, 2.0, 0.5], flop=3e9)
    rates = {"images_per_second": 128, "images_per_second_best": 256, "ms": 500, "flop_per_second": 384e9}
    assert row == {"work": "step", "implementation": "affect_jax", **rates}
    assert format_row(row | {"share_of_peak": 0.25}).split()[2:] == ["128.0", "256.0", "500.0", "384", "25.0%"]
    # a product of two matrices of side n has n^3 multiplications and as many additions
    monkeypatch.setattr(timing, "interleaved_seconds", lambda works, rounds: {"product": [0.5, 0.25]})
    assert timing.matmul_peak(jnp.float32) == 2 * 2048**3 / 0.25
    # a step uses all devices, a prediction one
    works = {name: lambda: [row] for name in ("step", "predict_64")}
    monkeypatch.setitem(training.MEASUREMENTS, "classification", lambda *arguments: works)
    monkeypatch.setattr(training, "matmul_peak", lambda dtype: 192e9)
    monkeypatch.setattr(training.jax, "device_count", lambda: 4)
    assert [row["share_of_peak"] for row in benchmark(tiny_config, False, 1)] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("name", "image_shape", "options"),
    [
        ("vgg_fer", (50, 35, 1), {"widths": (4, 8), "convs_per_block": 2, "dense": (16, 8)}),
        ("mobilenet_v2", (48, 48, 1), {"dropout": 0.4, "input_size": (64, 64)}),
    ],
)
def test_torch_twin_has_our_parameters(name, image_shape, options):
    pytest.importorskip("torch")
    ours = jax.eval_shape(
        lambda: build_model(name, num_classes=7, **options).init(
            jax.random.key(0), jax.numpy.zeros((1, *image_shape)), False
        )
    )["params"]
    theirs = torch_twin.NETWORKS[name](image_shape, 7, **options)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(ours))
    assert sizes == sorted(parameter.numel() for parameter in theirs.parameters())


def test_failure_of_pytorch_is_an_error_with_its_message():
    twin = torch_twin.Twin("vgg_fer", (48, 48, 1), 7, {"widths": "nonsense"}, "float32", compiled=False)
    with pytest.raises(ChildProcessError, match=r"PyTorch cannot run vgg_fer: (TypeError|ModuleNotFoundError)"):
        torch_twin.start("vgg_fer", torch_twin.predict_work, twin, {}, 1)()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_twin_trains_and_predicts_in_each_dtype(dtype):
    pytest.importorskip("torch")
    twin = torch_twin.Twin("vgg_fer", (16, 16, 1), 7, {"widths": (4, 8), "dense": (16,)}, dtype, compiled=False)
    batch = noise_batch(4, (16, 16, 1), 7)
    for name in ("adam", "adamw", "sgd"):
        torch_twin.step_work(twin, torch_twin.Optimizer(name, 0.01, 0.9, 0.0), batch, num_steps=2)()
    torch_twin.predict_work(twin, batch["image"], calls=2)()


def test_benchmark_has_a_row_for_each_work(tiny_config, plain_convolutions):
    tiny_config.model.widths, tiny_config.model.dense = (4, 4), (8,)
    tiny_config.augment.rotation = tiny_config.augment.erase_probability = tiny_config.mixup_alpha = 0.0
    rows = list(benchmark(tiny_config, compare_torch=False, rounds=1))
    works = [(row["work"], row["implementation"]) for row in rows]
    alone = {"evaluate": "predict_64", "loop_resident": "step", "loop_stream": "step"}
    expected = ("step", "predict_1", "predict_64", *alone)
    assert works == [(work, name) for work in expected for name in ("affect_jax", alone.get(work)) if name]
    assert all(0 < row["images_per_second"] <= row["images_per_second_best"] for row in rows)
    assert all(row["flop_per_second"] > 0 and 0 < row["share_of_peak"] < 1 for row in rows)
    assert [format_row(row).split()[0] for row in rows] == [work for work, _ in works]
    assert "compiled" in format_row(rows[0])
    (row,) = benchmark(tiny_config, compare_torch=False, rounds=1, works=["predict_1"])
    assert row["work"] == "predict_1"
    with pytest.raises(ValueError, match="unknown works walk; choose from step, predict_1, "):
        next(benchmark(tiny_config, compare_torch=False, rounds=1, works=["walk"]))


def test_profile_has_each_layer_and_its_parts_add_up_to_the_step(tiny_config, plain_convolutions):
    tiny_config.model = {"name": "vgg_fer", "widths": (4, 4), "convs_per_block": 2, "dense": (8,)}
    rows, peak = profile_rows(tiny_config, rounds=1)
    calls = {row["part"]: row["calls"] for row in rows}
    assert calls["Conv 3x3 24x24x4 -> 24x24x4"] == 2 and calls["BatchNorm 48x48x4 -> 24x24x4"] == 1
    assert sum(calls[part] for part in calls if part.startswith(("Conv", "BatchNorm", "Dense"))) == 4 + 4 + 2
    assert {"optimizer", "augment", "rest", "step"} < calls.keys()
    *parts, step = rows
    assert step["ms"] == pytest.approx(sum(row["ms"] for row in parts))
    assert all(row["floor_ms"] > 0 for row in rows if row["part"] != "rest")
    assert len(format_profile(rows, peak).splitlines()) == len(rows) + 2


def test_exponent_of_a_curve_is_that_of_its_power_law():
    assert scaling.Curve("step", "side", (1, 2, 4), (3.0, 12.0, 48.0)).exponent == pytest.approx(2.0)


def test_scaling_has_a_curve_for_each_quantity_that_grows(
    tiny_config, classifier, detector, plain_convolutions, monkeypatch, tmp_path
):
    sizes = {"BATCH_SIZES": (2, 4), "IMAGE_SIDES": (24, 48), "SET_SIZES": (1000, 3000)}
    sizes |= {"FRAMES": (1, 3), "PROCESSES": (1, 2), "WINDOW_STEPS": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(scaling, name, value)
    read_faces = FaceReader(Classifier(classifier, 1), Detector(detector, 1, 0.5), 1, 0.1, 0.0, 1.0)
    monkeypatch.setattr(scaling.reader, "load", lambda: read_faces)
    curves = list(scaling.scaling_curves(tiny_config, rounds=1))
    assert [curve.sizes for curve in curves] == [(2, 4), (24**2, 48**2), (1000, 3000), (1, 3), (1, 2)]
    assert all(len(curve.seconds) == 2 and min(curve.seconds) > 0 for curve in curves)
    assert scaling.format_curve(curves[2]).startswith("reading an epoch, seconds by images in the set: 1,000: ")
    scaling.plot_curves(curves).savefig(tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scaling=none/a.png"], "--scaling=none/a.png: none is not a folder where you may write; create it"),
        (["--scaling=a.xyz"], "--scaling=a.xyz; the name must end in ."),
        (["--scaling=a"], "--scaling=a; the name must end in ."),
        (["--profile", "--out=none/a.json"], "--out=none/a.json: none is not a folder"),
        (["--out=tests"], "--out=tests is a folder; give a file"),
    ],
)
def test_unusable_output_is_an_error_before_the_measurement(arguments, message):
    done = fork("benchmark", "--config=configs/fer_vgg.py:demo", *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr


INTERRUPTED = """
import runpy
from affect_jax.benchmark import scaling

def curves(config, rounds):
    yield scaling.Curve("step", "images", (1, 2), (1.0, 2.0))
    raise ChildProcessError("failed")

scaling.scaling_curves = curves
runpy.run_path("scripts/benchmark.py", run_name="__main__")
"""
"""Program that measures one curve and fails."""


def test_rows_of_the_curves_before_a_failure_are_written(tmp_path):
    arguments = ["--config=configs/fer_vgg.py:demo", f"--scaling={tmp_path}/a.png", f"--out={tmp_path}/a.json"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "ChildProcessError: failed\n"
    (row,) = json.loads((tmp_path / "a.json").read_text())
    assert row == {"work": "step", "size": "images", "sizes": [1, 2], "seconds": [1.0, 2.0]}


def test_simulated_set_repeats_the_drawn_faces():
    split, faces = scaling.RepeatedFaces(5000), DrawnFaces("train", 1000)
    indices = np.array([0, 999, 1000, 4321])
    for name, rows in faces.read(indices % 1000).items():
        np.testing.assert_array_equal(split.read(indices)[name], rows)


def test_comparison_without_a_counterpart_in_pytorch_is_an_error(tiny_config, monkeypatch):
    tiny_config.model = {"name": "resnet18"}
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="--compare=torch needs torch: pip install torch"):
        next(benchmark(tiny_config, compare_torch=True, rounds=1))
    monkeypatch.setitem(sys.modules, "torch", shutil)  # any module: torch is not used before the check
    with pytest.raises(ValueError, match="--compare=torch has no resnet18; choose one of vgg_fer, mobilenet_v2"):
        next(benchmark(tiny_config, compare_torch=True, rounds=1))


def test_flop_of_a_detector_are_those_of_the_timed_batch(tiny_detector_config, plain_convolutions):
    """With twice the pixels they are less than twice as many, because the regions are as many."""

    def flop(height):
        images = np.zeros((2, height, 128, 3), np.uint8)
        batch = {"image": images, "image_size": np.full((2, 2), (height, 128), np.int32)}
        return detector_benchmark.forward_work(tiny_detector_config, batch)[1]

    assert 1.5 * flop(96) < flop(192) < 2 * flop(96)


def test_benchmark_of_a_detector_has_a_row_for_each_work(tiny_detector_config, plain_convolutions):
    rows = list(benchmark(tiny_detector_config, compare_torch=False, rounds=1))
    alone = {"loop_stream": "step", "nms_2000": "opencv"}
    works = ("step", "forward", "loop_stream", "roi_align_of_step", "nms_of_step", "nms_2000")
    expected = [*works, "roi_align_forward", "roi_align_forward_backward"]
    found = [(row["work"], row["implementation"]) for row in rows]
    assert found == [(work, name) for work in expected for name in ("affect_jax", alone.get(work)) if name]
    flop = {row["work"]: row["flop_per_second"] / row["images_per_second"] for row in rows}
    assert flop["step"] == pytest.approx(flop["loop_stream"])
    assert flop["step"] == pytest.approx(3 * flop["forward"], rel=0.5)


@pytest.mark.parametrize("config", ["tiny_config", "tiny_detector_config"])
def test_comparison_with_frozen_parameters_is_an_error(config, request, monkeypatch):
    for package in ("torch", "torchvision"):
        monkeypatch.setitem(sys.modules, package, shutil)  # any module: it is not used before the check
    config = request.getfixturevalue(config)
    config.optim.freeze = (".*",)
    with pytest.raises(ValueError, match=r"--compare=torch trains all parameters: set --config.optim.freeze='\(\)'"):
        next(benchmark(config, compare_torch=True, rounds=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.backbone_name": "mobilenet_v2"}, "has no detector on mobilenet_v2: set --config.model.backbone_name"),
        ({"model.neck": "fpn_c4"}, "detector needs --config.model.neck='fpn'"),
        ({"model.bn_epsilon": 1e-3, "model.stride_in_1x1": True}, "1e-05 --config.model.stride_in_1x1=False"),
        ({"model.rpn.box_loss": "diou"}, "detector needs --config.model.rpn.box_loss='smooth_l1'"),
        ({"model.box.units": 2, "model.box.score_thresh": 0.1}, "detector needs --config.model.box.units=0$"),
    ],
)
def test_detector_that_torchvision_does_not_have_is_refused_with_the_fields(fields, message, monkeypatch):
    monkeypatch.setattr(detector_benchmark, "require", lambda *packages, purpose: None)
    config = detection_config()
    config.update_from_flattened_dict({"model.fpn_channels": 64, "model.rpn.nms_thresh": 0.6})
    detector_benchmark.check_comparable(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        detector_benchmark.check_comparable(config)


def test_loop_that_reads_ahead_is_not_timed_between_other_works(monkeypatch):
    """Reading a batch takes 20 ms, and one batch is read ahead."""
    now, read = 0.0, 0.0  # ms; `read` is the time at which the next batch is there

    def loop() -> None:
        nonlocal now, read
        now = max(now, read)
        read = max(read, now - 20) + 20

    def step() -> None:
        nonlocal now
        now += 50

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    works = {"loop": loop, "step": step}
    assert timing.interleaved_seconds(works, 5) == {"loop": [0] * 5, "step": [50] * 5}
    assert timing.seconds_one_by_one(works, 5)["loop"][1:] == [20] * 4


def test_our_nms_and_opencvs_keep_the_same_boxes():
    boxes, scores = detector_benchmark.clustered_boxes(2000)
    ours = np.flatnonzero(jax.jit(nms, static_argnums=3)(boxes, scores, np.ones(2000, bool), 0.5))
    theirs = detector_benchmark.nms_works()["opencv"]()
    assert 400 < len(ours) < 1600
    np.testing.assert_array_equal(ours, np.sort(theirs))


def test_torchvision_detector_has_our_parameters_trains_and_detects(tiny_detector_config):
    pytest.importorskip("torch")
    try:
        torch_twin.import_torchvision()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision: {error}")
    config = tiny_detector_config.copy_and_resolve_references()
    anchor_sizes = tuple((side,) for side in (8.0, 16.0, 32.0, 64.0, 128.0))
    config.model.update(name="faster_rcnn", backbone_name="resnet18", neck="fpn", anchor_sizes=anchor_sizes)
    detector_benchmark.check_comparable(config)
    options = config.model.to_dict()
    task, data = build_task(config), DataFacts(("face",), ())
    model, inputs = task.build_network(data), task.network_inputs(data)
    ours = variable_shapes(model, inputs)["params"]
    theirs = torch_twin.faster_rcnn(1, options)
    # torchvision keeps the values of frozen BatchNorms as buffers
    values = [*theirs.parameters(), *(x for name, x in theirs.named_buffers() if name.endswith(("weight", "bias")))]
    assert sorted(leaf.size for leaf in jax.tree.leaves(ours)) == sorted(value.numel() for value in values)
    batch = detector_benchmark.first_batch(config)
    optimizer = torch_twin.Optimizer("sgd", 0.01, 0.9, 0.0)
    for train in (True, False):
        torch_twin.detector_work(1, options, "float32", optimizer, batch, train)()
