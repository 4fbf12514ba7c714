import numpy as np

from affect_jax.data import open_split
from affect_jax.data.box_crops import BoxCrops
from affect_jax.data.boxes_pipeline import padded_box_batches


def test_crops_show_their_boxes_and_only_these_count():
    split = open_split("drawn_scenes", "val", num_examples=12, image_size=(96, 128))
    chosen = [(image, box) for image in range(12) for box in range(split.box_counts()[image])]
    crops = BoxCrops(split, chosen, margin=1.5)
    assert len(crops) == len(chosen) > 20 and len(set(crops.image_names(range(len(crops))))) == len(crops)
    for index, (image, box) in enumerate(chosen):
        seen, whole = crops.read_image(index), split.read_image(image)
        assert seen["image"].shape[:2] == tuple(crops.sizes()[index])
        assert len(seen["boxes"]) == crops.box_counts()[index]
        (at,) = np.flatnonzero(~seen["ignore"])
        x1, y1, x2, y2 = seen["boxes"][at].astype(int)
        a1, b1, a2, b2 = whole["boxes"][box].astype(int)
        np.testing.assert_array_equal(seen["image"][y1:y2, x1:x2], whole["image"][b1:b2, a1:a2])
        side = max(x2 - x1, y2 - y1)
        assert max(seen["image"].shape) <= 1.5 * side + 2


def test_crops_are_evaluated_like_a_split():
    split = open_split("drawn_scenes", "val", num_examples=6, image_size=(96, 128))
    crops = BoxCrops(split, [(image, 0) for image in range(6) if split.box_counts()[image]], margin=2.0)
    batches = list(padded_box_batches(crops, 2, [(64, 64)]))
    indices = np.concatenate([batch["index"][batch["mask"] > 0] for batch in batches])
    assert sorted(indices) == list(range(len(crops)))
    for batch in batches:
        assert (np.sum(batch["box_mask"] & ~batch["ignore"], axis=1) == 1).all()
