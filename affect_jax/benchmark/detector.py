"""How fast the parts of a detector are: its step, its forward, and the two operations that no library brings.

One picture's NMS is of NMS_BOXES boxes in clusters, one picture's RoIAlign of ROIS regions over four maps of a picture
of a config's largest size; a step has as many of both as its config says.
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from affect_jax.benchmark.steps import Work
from affect_jax.models.faster_rcnn import ANCHOR_STRIDES
from affect_jax.ops.nms import nms
from affect_jax.ops.roi_align import roi_align, roi_levels
from affect_jax.tasks import build_task
from affect_jax.train.mesh import data_mesh, replicated, split_over_devices, to_devices
from affect_jax.train.prediction import compile_predict
from affect_jax.train.state import init_variables, make_apply

NMS_BOXES, NMS_THRESH = 2000, 0.5
ROIS, POOLED_SIDE, SAMPLING_RATIO = 512, 7, 2
ROI_STRIDES = ANCHOR_STRIDES["fpn"][:4]


def first_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """The first batch of a run with this config."""
    task = build_task(config)
    batches = task.training_data(task.open_split("train"), 1, process_index=0, process_count=1).batches
    return next(batches)


def forward_work(config: ConfigDict, batch: dict[str, np.ndarray]) -> Work:
    """Detections of a batch that lies on the devices, from random weights."""
    mesh, task = data_mesh(), build_task(config)
    data = task.data_facts(task.open_split("train"))
    model = task.build_network(data)
    variables = init_variables(model, jax.random.key(0), task.network_inputs(data))
    variables = jax.device_put(variables, replicated(mesh))
    detect = compile_predict(task.predict_fn(make_apply(model), data), mesh)
    batch = to_devices(batch, split_over_devices(mesh))
    return lambda: jax.block_until_ready(detect(variables, batch))


def clustered_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 [count, 4], five or so about each of count / 5 places, as a detector gives them, and scores."""
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 800, (-(-count // 5), 2))
    centres = np.repeat(places, 5, axis=0)[:count] + rng.normal(0, 4, (count, 2))
    half = np.exp(rng.uniform(np.log(6), np.log(60), (len(places), 1))).repeat(5, 0)[:count] / 2
    half = half * rng.uniform(0.8, 1.25, (count, 2))
    return np.concatenate([centres - half, centres + half], axis=1).astype(np.float32), rng.random(count, np.float32)


def nms_works() -> dict[str, Work]:
    """NMS of clustered_boxes, by implementation."""
    boxes, scores = clustered_boxes(NMS_BOXES)
    suppress = jax.jit(lambda boxes, scores: nms(boxes, scores, jnp.ones(len(boxes), bool), NMS_THRESH))
    on_device = jax.device_put((boxes, scores))
    corners_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return {
        "affect_jax": lambda: jax.block_until_ready(suppress(*on_device)),
        "opencv": lambda: cv2.dnn.NMSBoxes(corners_and_sides, scores, 0.0, NMS_THRESH),
    }


def roi_align_inputs(config: ConfigDict) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps [1, H, W, C] of noise of a picture of the largest bucket, and ROIS regions [1, R, 4] of all sizes in it."""
    buckets = config.data.eval_buckets or config.data.buckets
    return regions_and_maps(max(buckets, key=lambda size: size[0] * size[1]), 1, ROIS, config.model.fpn_channels)


def regions_and_maps(
    size: tuple[int, int], batch: int, rois: int, channels: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps [B, H, W, C] of noise of pictures of this size, and regions [B, R, 4] of all sizes in them."""
    rng = np.random.default_rng(0)
    shapes = [(batch, size[0] // stride, size[1] // stride, channels) for stride in ROI_STRIDES]
    maps = [rng.standard_normal(shape, np.float32) for shape in shapes]
    longest = np.exp(rng.uniform(np.log(8), np.log(min(size) * 0.9), (batch, rois, 1)))
    sides = longest * rng.uniform(0.7, 1, (batch, rois, 2))
    corners = rng.uniform(0, 1, (batch, rois, 2)) * (np.array(size[::-1]) - sides)
    return maps, np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def roi_align_works(config: ConfigDict, maps: list[np.ndarray], rois: np.ndarray) -> dict[str, Work]:
    """RoIAlign of the regions: "forward", and "forward_backward" to the maps."""
    maps, rois = jax.device_put((maps, rois))
    size, level = config.model.box.canonical_size, config.model.box.canonical_level

    def align(maps):
        return roi_align(maps, ROI_STRIDES, rois, roi_levels(rois, 4, 2, size, level), POOLED_SIDE, SAMPLING_RATIO)

    forward, backward = jax.jit(align), jax.jit(jax.grad(lambda maps: jnp.sum(align(maps) ** 2)))
    return {
        "forward": lambda: jax.block_until_ready(forward(maps)),
        "forward_backward": lambda: jax.block_until_ready(backward(maps)),
    }


def parts_of_step(config: ConfigDict) -> dict[str, Work]:
    """What of an update are "roi_align", forward and backward, and "nms", of every level of every picture."""
    model, size = config.model, config.data.buckets[0]
    rois = regions_and_maps(size, config.batch_size, model.box.batch_size_per_image, model.fpn_channels)
    boxes, scores = jax.device_put(clustered_boxes(model.rpn.pre_nms_top_n_train))
    times = config.batch_size * len(model.anchor_sizes)
    many = [jnp.broadcast_to(x, (times, *x.shape)) for x in (boxes, scores)]
    valid = jnp.ones(len(boxes), bool)
    suppress = jax.jit(jax.vmap(lambda boxes, scores: nms(boxes, scores, valid, model.rpn.nms_thresh)))
    return {
        "roi_align": roi_align_works(config, *rois)["forward_backward"],
        "nms": lambda: jax.block_until_ready(suppress(*many)),
    }
