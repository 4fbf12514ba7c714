"""Measure a detector: step, detection and loop, and the two operators that XLA does not provide, NMS and RoIAlign.

The operators are measured for one image, with NMS_BOXES boxes in clusters or ROIS regions on four feature maps of an
image of the largest bucket, and with the sizes that a training step has.
"""

from collections.abc import Callable
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from affect_jax.benchmark import torch_twin
from affect_jax.benchmark.flop import program_flop
from affect_jax.benchmark.steps import loop_work, random_network, step_work
from affect_jax.benchmark.timing import Work, interleaved_rows, peak_memory, rows_of, seconds_one_by_one
from affect_jax.config import detection_config, differing_fields, evaluation_buckets
from affect_jax.models import yunet
from affect_jax.models.faster_rcnn import BACKBONES, ROI_STRIDES
from affect_jax.ops.nms import nms
from affect_jax.ops.roi_align import roi_align, roi_levels
from affect_jax.packages import require
from affect_jax.tasks import build_task
from affect_jax.train.mesh import data_mesh, replicated, split_over_devices, to_devices
from affect_jax.train.prediction import compile_predict
from affect_jax.train.state import make_apply

LOOP_WINDOW = 5
"""Steps of the loop that are timed together."""
NMS_BOXES, NMS_THRESH = 2000, 0.5
ROIS = 512


def detector_measurements(config: ConfigDict, compare_torch: bool, rounds: int) -> dict[str, Callable[[], list[dict]]]:
    """Return the measurements of a detector by name; see benchmark.training."""
    batch, images, maps_and_rois = first_batch(config), config.batch_size, roi_align_inputs(config)
    if compare_torch:
        check_comparable(config)

    def step() -> list[dict]:
        ours, costs = step_work(config, batch, 1)
        works = {"affect_jax": ours}
        if compare_torch:
            works["torch_eager"] = torchvision_detector(config, batch, train=True)
        rows = interleaved_rows("step", works, images, costs["flop_per_image"], rounds)
        rows[0] |= costs | {"peak_bytes": peak_memory()}
        return rows

    def forward() -> list[dict]:
        ours, flop = forward_work(config, batch)
        works = {"affect_jax": ours}
        if compare_torch:
            works["torch_eager"] = torchvision_detector(config, batch, train=False)
        return interleaved_rows("forward", works, images, flop, rounds)

    def loop() -> list[dict]:
        alone, costs = step_work(config, batch, LOOP_WINDOW)
        with loop_work(config, rounds + 1, LOOP_WINDOW) as ours:
            seconds = seconds_one_by_one({"affect_jax": ours, "step": alone}, rounds)
        return rows_of("loop_stream", LOOP_WINDOW * images, costs["flop_per_image"], seconds)

    def part_of_step(name: str) -> list[dict]:
        return interleaved_rows(f"{name}_of_step", {"affect_jax": PARTS_OF_STEP[name](config)}, images, 0.0, rounds)

    def roi_align_alone(backward: bool) -> list[dict]:
        name = "forward_backward" if backward else "forward"
        works = {"affect_jax": roi_align_work(config, *maps_and_rois, backward)}
        if compare_torch:
            box, finest_stride = config.model.box, ROI_STRIDES[config.model.neck][0]
            align = (*maps_and_rois, finest_stride, box.canonical_size, box.canonical_level, backward)
            works["torchvision"] = torch_twin.start("RoIAlign", torch_twin.roi_align_work, *align)
        return interleaved_rows(f"roi_align_{name}", works, 1, 0.0, rounds)

    return {
        "step": step,
        "forward": forward,
        "loop_stream": loop,
        **{f"{name}_of_step": partial(part_of_step, name) for name in PARTS_OF_STEP},
        f"nms_{NMS_BOXES}": lambda: interleaved_rows(f"nms_{NMS_BOXES}", nms_works(), 1, 0.0, rounds),
        "roi_align_forward": partial(roi_align_alone, False),
        "roi_align_forward_backward": partial(roi_align_alone, True),
    }


def check_comparable(config: ConfigDict) -> None:
    """Raise an error if torchvision cannot be measured: ImportError without it, ValueError for another network."""
    require("torch", "torchvision", purpose="--compare=torch of a detector")
    if not BACKBONES.get(config.model.backbone_name):
        raise ValueError(
            f"--compare=torch has no detector on {config.model.backbone_name}: set --config.model.backbone_name to"
            f" one of {', '.join(name for name, depth in BACKBONES.items() if depth)}"
        )
    fields = differing_fields(detection_config().model.to_dict(), config.model.to_dict())
    if others := [f"--config.model.{name}={same!r}" for name, same, _ in fields if name not in torch_twin.PASSED_ON]:
        raise ValueError(f"--compare=torch: torchvision's detector needs {' '.join(others)}")


def torchvision_detector(config: ConfigDict, batch: dict[str, np.ndarray], train: bool) -> Work:
    """Return torchvision's training step or detection, in its own process."""
    num_classes = len(build_task(config).open_split("train").class_names)
    arguments = num_classes, config.model.to_dict(), config.dtype, torch_twin.optimizer_of(config), batch, train
    return torch_twin.start("the detector's step" if train else "the detector", torch_twin.detector_work, *arguments)


def first_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Return the first training batch of the config."""
    task = build_task(config)
    return next(task.training_data(task.open_split("train"), 1, process_index=0, process_count=1).batches)


def forward_work(config: ConfigDict, batch: dict[str, np.ndarray]) -> tuple[Work, float]:
    """Return a function that detects in the images of a batch on the devices, and the operations for an image.

    The weights are random.
    """
    mesh, task = data_mesh(), build_task(config)
    data = task.data_facts(task.open_split("train"))
    model, variables = random_network(task, data)
    variables = jax.device_put(variables, replicated(mesh))
    detect = compile_predict(task.predict_fn(make_apply(model), data), mesh)
    images = {name: batch[name] for name in ("image", "image_size")}  # with boxes it would compute the losses, too
    images = to_devices(images, split_over_devices(mesh))
    flop = program_flop(detect, variables, images) / config.batch_size
    return lambda: jax.block_until_ready(detect(variables, images)), flop


def clustered_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 [count, 4] in clusters of about five, as a detector gives them, and scores [count]."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 800, (-(-count // 5), 2))
    centers = np.repeat(places, 5, axis=0)[:count] + rng.normal(0, 4, (count, 2))
    half = np.exp(rng.uniform(np.log(6), np.log(60), (len(places), 1))).repeat(5, 0)[:count] / 2
    half = half * rng.uniform(0.8, 1.25, (count, 2))
    return np.concatenate([centers - half, centers + half], axis=1).astype(np.float32), rng.random(count, np.float32)


def nms_works() -> dict[str, Work]:
    """Return NMS of clustered boxes by implementation."""
    boxes, scores = clustered_boxes(NMS_BOXES)
    suppress = jax.jit(lambda boxes, scores: nms(boxes, scores, jnp.ones(len(boxes), bool), NMS_THRESH))
    on_device = jax.device_put((boxes, scores))
    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return {
        "affect_jax": lambda: jax.block_until_ready(suppress(*on_device)),
        "opencv": lambda: cv2.dnn.NMSBoxes(corners_and_sides, scores, 0.0, NMS_THRESH),
    }


def roi_align_inputs(config: ConfigDict) -> tuple[list[np.ndarray], np.ndarray]:
    """Return feature maps [1, H, W, C] of an image of the largest bucket and ROIS regions [1, R, 4] of all sizes."""
    largest = max(evaluation_buckets(config), key=lambda size: size[0] * size[1])
    return maps_and_regions(config.model, largest, 1, ROIS)


def maps_and_regions(
    model: ConfigDict, size: tuple[int, int], batch: int, rois: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return feature maps [B, H, W, C] of noise for images of a size, and regions [B, R, 4] of all sizes in them."""
    rng = np.random.default_rng(0)
    channels = yunet.CHANNELS if model.neck == "yunet" else model.fpn_channels
    shapes = [(batch, size[0] // stride, size[1] // stride, channels) for stride in ROI_STRIDES[model.neck]]
    maps = [rng.standard_normal(shape, np.float32) for shape in shapes]
    longest = np.exp(rng.uniform(np.log(8), np.log(min(size) * 0.9), (batch, rois, 1)))
    sides = longest * rng.uniform(0.7, 1, (batch, rois, 2))
    corners = rng.uniform(0, 1, (batch, rois, 2)) * (np.array(size[::-1]) - sides)
    return maps, np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def roi_align_work(config: ConfigDict, maps: list[np.ndarray], rois: np.ndarray, backward: bool) -> Work:
    """Return RoIAlign of the regions, if `backward` with the gradient by the maps."""
    maps, rois = jax.device_put((maps, rois))
    strides, box = ROI_STRIDES[config.model.neck], config.model.box
    finest = strides[0].bit_length() - 1

    def align(maps):
        levels = roi_levels(rois, len(strides), finest, box.canonical_size, box.canonical_level)
        return roi_align(maps, strides, rois, levels, box.pooled_side, aligned=box.roi_aligned)

    program = jax.jit(jax.grad(lambda maps: jnp.sum(align(maps) ** 2)) if backward else align)
    return lambda: jax.block_until_ready(program(maps))


def roi_align_of_step(config: ConfigDict) -> Work:
    """Return RoIAlign, forward and backward, with the sizes of a training step."""
    model, size = config.model, config.data.buckets[0]
    rois = maps_and_regions(model, size, config.batch_size, model.box.batch_size_per_image)
    return roi_align_work(config, *rois, backward=True)


def nms_of_step(config: ConfigDict) -> Work:
    """Return the NMS of all levels and images of a training step."""
    rpn = config.model.rpn
    boxes, scores = jax.device_put(clustered_boxes(rpn.pre_nms_top_n_train))
    times = config.batch_size * len(config.model.anchor_sizes)
    many = [jnp.broadcast_to(x, (times, *x.shape)) for x in (boxes, scores)]
    valid = jnp.ones(len(boxes), bool)
    suppress = jax.jit(jax.vmap(lambda boxes, scores: nms(boxes, scores, valid, rpn.nms_thresh)))
    return lambda: jax.block_until_ready(suppress(*many))


PARTS_OF_STEP = {"roi_align": roi_align_of_step, "nms": nms_of_step}
