import numpy as np
import pytest

from affect_jax.evaluate.anchor_coverage import best_anchor_iou, coverage_by_height
from affect_jax.evaluate.boxes import box_iou
from affect_jax.ops.anchors import grid_anchors

STRIDES = 4, 8, 64
SIZES, RATIOS = ((8.0, 11.0), (16.0, 24.0), (64.0, 90.0)), (0.5, 1.0, 2.0)


@pytest.mark.parametrize("image_size", [(96, 128), (96, 160)])  # the second does not split into cells of 64 pixels
def test_best_anchor_equals_a_search_over_all_anchors(image_size):
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-5, 120, (200, 2)), np.exp(rng.uniform(np.log(2), np.log(120), (200, 2)))
    boxes = np.concatenate([corner, corner + size], 1)
    anchors = np.concatenate(
        [
            grid_anchors(
                grid, tuple(side // cells for side, cells in zip(image_size, grid, strict=True)), sizes, RATIOS
            )
            for stride, sizes in zip(STRIDES, SIZES, strict=True)
            for grid in [tuple(-(-side // stride) for side in image_size)]
        ]
    )
    expected = box_iou(boxes, anchors.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(
        best_anchor_iou(boxes, image_size, STRIDES, SIZES, RATIOS), expected, rtol=1e-5, atol=1e-6
    )


def test_shares_are_counted_by_height():
    boxes = np.array([[0, 0, 5, 7], [0, 0, 5, 7.9], [0, 0, 5, 8], [0, 0, 9, 20]])
    groups = coverage_by_height(boxes, np.array([0.4, 0.8, 0.5, 0.7]))
    assert groups["0 to 8 px"] == {"boxes": 2, "at_50": 0.5, "at_70": 0.5, "mean_best": pytest.approx(0.6)}
    assert groups["8 to 16 px"] == {"boxes": 1, "at_50": 1.0, "at_70": 0.0, "mean_best": 0.5}
    assert groups["16 to 32 px"]["at_70"] == 1.0
    assert groups["all"]["boxes"] == 4
