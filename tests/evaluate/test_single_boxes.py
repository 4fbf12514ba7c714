from image_boxes import found, truth

from affect_jax.evaluate.single_boxes import count_repeated, largest_single_boxes


def test_a_box_is_repeated_if_two_sure_detections_show_it_and_no_other_box_is_near():
    alone, pair = [0, 0, 100, 100], [[200, 0, 240, 40], [210, 5, 250, 45]]
    truths = [truth([alone, *pair])]
    cases = {
        "twice": ([[0, 0, 100, 100], [5, 5, 90, 110]], [0.9, 0.6], 1),
        "an eye": ([[0, 0, 100, 100], [20, 30, 40, 40]], [0.9, 0.6], 1),
        "the whole person": ([[0, 0, 100, 100], [-50, -20, 150, 400]], [0.9, 0.6], 1),
        "one unsure": ([[0, 0, 100, 100], [5, 5, 90, 110]], [0.9, 0.4], 0),
        "one elsewhere": ([[0, 0, 100, 100], [70, 70, 190, 190]], [0.9, 0.6], 0),
        "near the pair": ([[200, 0, 240, 40], [210, 5, 250, 45], [205, 5, 245, 40]], [0.9, 0.9, 0.9], 0),
        "nothing": ([], [], 0),
    }
    for name, (boxes, scores, repeated) in cases.items():
        assert count_repeated(truths, [found(boxes, scores)], 0.5) == {"boxes": 1, "repeated": repeated}, name
    ignored = truth([alone, [300, 300, 340, 360]], ignore=[True, False])
    assert largest_single_boxes([*truths, ignored, truth([])], 5) == [(0, 0), (1, 1)]


def test_neither_of_two_boxes_is_single_if_only_one_contains_the_center_of_the_other():
    # the smaller box shares 400 of its 1444 square pixels, less than half
    assert largest_single_boxes([truth([[0, 0, 100, 100], [80, 80, 118, 118]])], 5) == []
