import numpy as np

from affect_jax.ops.anchors import cell_anchors, grid_anchors


def test_anchors_of_a_cell_equal_a_hand_computed_example():
    square, wide_then_tall = cell_anchors((8, 16), (1.0,)), cell_anchors((16,), (0.25, 4.0))
    np.testing.assert_array_equal(square, [[-4, -4, 4, 4], [-8, -8, 8, 8]])
    np.testing.assert_array_equal(wide_then_tall, [[-16, -4, 16, 4], [-4, -16, 4, 16]])


def test_grid_repeats_the_anchors_of_a_cell_row_by_row():
    sizes, ratios, stride = (8, 13), (0.5, 1.0, 2.0), (4, 6)
    anchors = grid_anchors((3, 5), stride, sizes, ratios)
    cell = np.asarray(cell_anchors(sizes, ratios))
    expected = [box + np.tile((x * stride[1], y * stride[0]), 2) for y in range(3) for x in range(5) for box in cell]
    np.testing.assert_array_equal(anchors, expected)
