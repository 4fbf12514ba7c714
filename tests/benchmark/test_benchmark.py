import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from affect_jax.benchmark import detector as detector_benchmark
from affect_jax.benchmark import torch_twin
from affect_jax.benchmark.steps import forward_flop, noise_batch, seconds_in_turn
from affect_jax.models import build_model
from affect_jax.ops.nms import nms
from affect_jax.tasks import build_task
from affect_jax.tasks.interface import DataFacts
from affect_jax.train.state import init_variables

ROOT = Path(__file__).parents[2]


def test_flop_of_vgg_are_those_counted_by_hand(tiny_config):
    tiny_config.model = {"name": "vgg_fer", "widths": (4, 8), "convs_per_block": 2, "dense": (16,), "dropout": 0.5}
    convolutions = 9 * (48 * 48 * (1 * 4 + 4 * 4) + 24 * 24 * (4 * 8 + 8 * 8))
    dense = 12 * 12 * 8 * 16 + 16 * 7
    assert forward_flop(tiny_config) == 2 * (convolutions + dense)


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


def test_torch_that_cannot_run_is_told_in_its_own_words():
    twin = torch_twin.Twin("vgg_fer", (48, 48, 1), 7, {"widths": "nonsense"}, "float32", compiled=False)
    with pytest.raises(RuntimeError, match=r"PyTorch cannot run vgg_fer: (TypeError|ModuleNotFoundError)"):
        torch_twin.start("vgg_fer", torch_twin.predict_work, twin, {}, 1)()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_twin_trains_and_predicts_in_each_dtype(dtype):
    pytest.importorskip("torch")
    twin = torch_twin.Twin("vgg_fer", (16, 16, 1), 7, {"widths": (4, 8), "dense": (16,)}, dtype, compiled=False)
    batch = noise_batch(4, (16, 16, 1), 7)
    for name in ("adam", "adamw", "sgd"):
        torch_twin.step_work(twin, torch_twin.Optimizer(name, 0.01, 0.9, 0.0), batch, updates=2)()
    torch_twin.predict_work(twin, batch["image"], calls=2)()


def benchmark_rows(tmp_path, *arguments: str) -> list[dict]:
    """What scripts/benchmark.py writes."""
    command = [sys.executable, "scripts/benchmark.py", *arguments, f"--out={tmp_path / 'rows.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(0 < row["images_per_second"] <= row["images_per_second_best"] for row in rows)
    return rows


def test_one_command_writes_a_row_for_each_work(tmp_path):
    examples = "--config.data.options.num_examples"
    small = ("--config.model.widths=(4,4,4,4)", "--config.model.dense=(8,)", "--config.batch_size=16")
    few = ("--config.eval_batch_size=16", f"{examples}.train=400", f"{examples}.val=40", f"{examples}.test=40")
    rows = benchmark_rows(tmp_path, "--config=configs/fer_vgg.py:demo", "--rounds=2", *small, *few)
    works = [(row["work"], row["implementation"]) for row in rows]
    expected = ("step", "predict_1", "predict_64", "evaluate", "loop_resident", "loop_stream")
    assert works == [(work, "affect_jax") for work in expected]
    assert all(row["flop_per_second"] > 0 and 0 < row["share_of_peak"] < 1 for row in rows)


def test_flop_of_a_detector_grow_with_its_picture_and_not_with_its_regions(tiny_detector_config):
    config = tiny_detector_config.copy_and_resolve_references()
    flop = forward_flop(config)
    config.data.buckets = ((192, 128),)
    assert 1.5 * flop < forward_flop(config) < 2 * flop


def test_detectors_works_are_timed(tiny_detector_config):
    """On small inputs; that what is timed is right is other tests' matter, but for NMS, held against OpenCV's here."""
    config = tiny_detector_config
    regions = detector_benchmark.regions_and_maps((96, 128), 2, 5, config.model.fpn_channels)
    works = {**detector_benchmark.parts_of_step(config), **detector_benchmark.roi_align_works(config, *regions)}
    seconds = seconds_in_turn(works, rounds=2)
    assert set(seconds) == {"roi_align", "nms", "forward", "forward_backward"}
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())


def test_our_nms_and_opencvs_do_the_same_work():
    boxes, scores = detector_benchmark.clustered_boxes(2000)
    ours = np.flatnonzero(nms(boxes, scores, np.ones(2000, bool), 0.5))
    theirs = detector_benchmark.nms_works()["opencv"]()
    assert 400 < len(ours) < 1600
    np.testing.assert_array_equal(ours, np.sort(theirs))


def test_torchvisions_twin_has_our_parameters_and_works(tiny_detector_config):
    pytest.importorskip("torch")
    try:
        torch_twin.import_torchvision()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision: {error}")
    options = tiny_detector_config.model.to_dict()
    task, data = build_task(tiny_detector_config), DataFacts(("face",), ())
    model, inputs = task.build_network(data), task.network_inputs(data)
    ours = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), inputs))["params"]
    theirs = torch_twin.faster_rcnn(1, options)
    # torchvision keeps the frozen BatchNorms' values as buffers
    values = [*theirs.parameters(), *(x for name, x in theirs.named_buffers() if name.endswith(("weight", "bias")))]
    assert sorted(leaf.size for leaf in jax.tree.leaves(ours)) == sorted(value.numel() for value in values)
    batch = detector_benchmark.first_batch(tiny_detector_config)
    optimizer = torch_twin.Optimizer("sgd", 0.01, 0.9, 0.0)
    for train in (True, False):
        torch_twin.detector_work(1, options, "float32", optimizer, batch, train)()
