import numpy as np
import pytest
from image_boxes import found, truth

from affect_jax.evaluate.boxes import box_iou
from affect_jax.evaluate.detection import (
    area_under,
    bootstrap_interval,
    coco_metrics,
    detection_metrics,
    match_detections,
    paired_bootstrap,
    precision_recall,
    recall_at_precision,
    recall_by_height,
    tool_average_precision,
    worst_images,
)


def random_images(rng, images=12, crowd=False, ties=False, many=False, classes=1):
    """Detections near ground-truth boxes; image 0 has no ground truth, image 1 no detections."""
    truths, detections = [], []
    for image in range(images):
        count = 0 if image == 0 else rng.integers(1, 9)
        corner, size = rng.uniform(0, 150, (count, 2)), rng.uniform(4, 60, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        copies = 0 if image == 1 else (40 if many else 3)
        near = np.repeat(boxes, copies, 0) + rng.normal(0, 4, (count * copies, 4))
        stray = rng.uniform(0, 150, (5, 2))
        moved = np.concatenate([near, np.concatenate([stray, stray + 20], 1)])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        moved = np.zeros((0, 4)) if image == 1 else moved
        scores = rng.uniform(0.05, 1, len(moved))
        scores = np.round(scores * 4) / 4 if ties else scores
        ignore = rng.random(count) < 0.3 if crowd else None
        truths.append(truth(boxes, rng.integers(0, classes, count), ignore))
        detections.append(found(moved, scores, rng.integers(0, classes, len(moved))))
    return truths, detections


CASES = {
    "plain": {},
    "ignored boxes": {"crowd": True},
    "equal scores": {"ties": True},
    "more than 100 detections per image": {"many": True},
    "three classes": {"classes": 3},
}


def coco_twin(truths, detections, label, iou_thresh):
    """COCO's average precision of a class by plain loops: greedy matching, crowds by the detection's own area."""
    rows, total = [], 0
    for one, mine in zip(truths, detections, strict=True):
        boxes = [
            (box, ignore)
            for box, la, ignore in zip(one["boxes"], one["label"], one["ignore"], strict=True)
            if la == label
        ]
        boxes.sort(key=lambda pair: pair[1])  # crowds are tried last
        total += sum(not ignore for _, ignore in boxes)
        taken = [False] * len(boxes)
        chosen = [n for n in np.argsort(-mine["scores"], kind="mergesort") if mine["label"][n] == label][:1000]
        for n in chosen:
            box, match, best = mine["boxes"][n].astype(float), None, iou_thresh
            for place, (other, crowd) in enumerate(boxes):
                if taken[place] and not crowd:
                    continue
                if match is not None and not boxes[match][1] and crowd:
                    break
                other = other.astype(float)
                inter = max(0, min(box[2], other[2]) - max(box[0], other[0])) * max(
                    0, min(box[3], other[3]) - max(box[1], other[1])
                )
                area, true_area = (box[2] - box[0]) * (box[3] - box[1]), (other[2] - other[0]) * (other[3] - other[1])
                overlap = inter / (area if crowd else area + true_area - inter)
                if overlap >= best:
                    match, best = place, overlap
            if match is not None:
                taken[match] = True
            if match is None or not boxes[match][1]:
                rows.append((mine["scores"][n], match is not None))
    order = sorted(range(len(rows)), key=lambda n: -rows[n][0])
    right, points = 0, []
    for rank, n in enumerate(order, start=1):
        right += rows[n][1]
        points.append((right / total, right / rank))
    best_at = [max([p for r, p in points if r >= level], default=0.0) for level in np.linspace(0.0, 1.0, 101)]
    return np.mean(best_at)


def tool_twin(truths, detections, one_match=True):
    """WIDER FACE's and DARK FACE's tool by plain loops over images and thresholds."""
    scores = np.concatenate([mine["scores"] for mine in detections]).astype(np.float64)
    low, high = scores.min(), scores.max()
    totals, count = np.zeros((1000, 2)), 0
    for one, mine in zip(truths, detections, strict=True):
        count += int((~one["ignore"]).sum())
        order = np.argsort(-mine["scores"], kind="stable")
        recalled, states = [0] * len(one["boxes"]), []
        for n in order:
            x1, y1, x2, y2 = mine["boxes"][n].astype(float)
            best, place = -1.0, None
            for k, (a1, b1, a2, b2) in enumerate(one["boxes"].astype(float)):
                w, h = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
                inter = w * h if w > 0 and h > 0 else 0.0
                iou = inter / ((x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - inter)
                if iou > best:
                    best, place = iou, k
            proposal = 1
            if best >= 0.5:
                if one["ignore"][place]:
                    recalled[place], proposal = -1, -1
                elif recalled[place] == 0:
                    recalled[place] = 1
            states.append(((mine["scores"][n] - low) / (high - low), proposal, recalled.count(1)))
        for t in range(1000):
            reached = [state for state in states if state[0] >= 1 - (t + 1) / 1000]
            totals[t] += (sum(state[1] == 1 for state in reached), reached[-1][2] if reached else 0)
    precision = np.divide(totals[:, 1], totals[:, 0], out=np.zeros(1000), where=totals[:, 0] > 0)
    recall = np.concatenate([[0], totals[:, 1] / count, [1]])
    precision = np.concatenate([[0], precision, [0]])
    for t in range(len(precision) - 1, 0, -1):
        precision[t - 1] = max(precision[t - 1], precision[t])
    return sum((recall[t + 1] - recall[t]) * precision[t + 1] for t in range(len(recall) - 1))


@pytest.mark.parametrize("case", CASES)
def test_coco_metrics_equal_plain_loops(case):
    truths, detections = random_images(np.random.default_rng(3), **CASES[case])
    classes = CASES[case].get("classes", 1)
    metrics = coco_metrics(truths, detections, [f"class {label}" for label in range(classes)])
    at = {
        thresh: np.mean([coco_twin(truths, detections, label, thresh) for label in range(classes)])
        for thresh in np.linspace(0.5, 0.95, 10)
    }
    assert 0.05 < at[0.5] < 1
    np.testing.assert_allclose(metrics["coco_ap50"], at[0.5], atol=1e-6)
    np.testing.assert_allclose(metrics["coco_ap75"], at[0.75], atol=1e-6)
    np.testing.assert_allclose(metrics["coco_ap"], np.mean(list(at.values())), atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "ignored boxes", "more than 100 detections per image"])
def test_average_precision_of_the_tools_equals_plain_loops(case):
    truths, detections = random_images(np.random.default_rng(4), **CASES[case])
    expected = tool_twin(truths, detections)
    assert 0.05 < expected < 1
    np.testing.assert_allclose(tool_average_precision(truths, detections, 0), expected, atol=1e-9)


def test_area_under_the_curve_of_an_example_worked_by_hand():
    """Two true boxes; right at 0.9, wrong at 0.8 (a second detection of the first box), right at 0.7, wrong at 0.6."""
    truths = [truth([[0, 0, 10, 10], [20, 0, 30, 10]])]
    detections = [
        found([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 9], [50, 50, 60, 60]], [0.9, 0.8, 0.7, 0.6]),
    ]
    matches = match_detections(truths, detections, 0)
    assert matches.true_positive.tolist() == [True, False, True, False]
    np.testing.assert_allclose(area_under(*precision_recall(matches)), 0.5 * 1 + 0.5 * 2 / 3)
    metrics = detection_metrics(truths, detections, ("face",))
    assert (metrics["recall"], metrics["precision"]) == (1.0, 0.5)
    assert metrics["recall_by_height"] == {"8 to 16 px": {"boxes": 2, "recall": 1.0, "recall_at_score_50": 1.0}}
    assert metrics["curve"]["precision"][0] == 1.0 and metrics["curve"]["precision"][-1] == pytest.approx(2 / 3)


def test_detection_whose_iou_is_exactly_the_threshold_is_right():
    detections = [found([[0, 0, 10, 5]], [0.9])]
    assert match_detections([truth([[0, 0, 10, 10]])], detections, 0).true_positive.tolist() == [True]


def test_height_at_the_edge_of_two_groups_belongs_to_the_higher_group():
    truths, detections = [truth([[0, 0, 9, 15.5], [20, 0, 29, 16]])], [found([[20, 0, 29, 16]], [0.5])]
    missed, found_at_50 = ({"boxes": 1, "recall": share, "recall_at_score_50": share} for share in (0.0, 1.0))
    groups = recall_by_height(match_detections(truths, detections, 0))
    assert groups == {"8 to 16 px": missed, "16 to 32 px": found_at_50}


def test_tool_stretches_the_scores_of_all_detections_before_it_cuts_them_at_thresholds():
    """The right detection and two wrong ones have almost the same score; one of an ignored box follows with 0."""
    truths = [truth([[0, 0, 10, 10]]), truth([[0, 0, 10, 10]], ignore=[True])]
    near = found([[0, 0, 10, 10], [30, 0, 40, 10], [60, 0, 70, 10]], [0.9002, 0.9001, 0.9])
    assert tool_average_precision(truths, [near, found([], [])], 0) == 1.0  # stretched to 1, 0.5 and 0
    far = found([[0, 0, 10, 10]], [0.0])
    # all three are above 0.999, the first threshold
    np.testing.assert_allclose(tool_average_precision(truths, [near, far], 0), 1 / 3)


def test_detections_of_an_ignored_box_are_neither_right_nor_wrong():
    truths = [truth([[0, 0, 10, 10], [20, 0, 30, 10]], ignore=[False, True])]
    detections = [found([[0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 9]], [0.5, 0.9, 0.8])]
    metrics = detection_metrics(truths, detections, ("face",))
    assert metrics["num_boxes"] == metrics["num_ignored"] == 1
    assert [metrics[name] for name in ("ap50", "ap50_tool", "coco_ap50", "precision")] == pytest.approx([1.0] * 4)


def test_images_without_detections_or_ground_truth_have_defined_metrics():
    nothing = found(np.zeros((0, 4)), [])
    metrics = detection_metrics([truth([[0, 0, 10, 10]]), truth([])], [nothing, nothing], ("face",))
    assert [metrics[name] for name in ("ap50", "ap50_tool", "coco_ap", "recall", "precision")] == [0.0] * 5
    assert metrics["ap50_ci95"] == (0.0, 0.0)
    with pytest.raises(ValueError, match="metrics are undefined"):
        detection_metrics([truth([])], [nothing], ("face",))


def test_class_without_true_boxes_does_not_enter_the_means():
    truths, detections = [truth([[0, 0, 10, 10]], [1])], [found([[0, 0, 10, 10]], [0.9], [1])]
    metrics = detection_metrics(truths, detections, ("cat", "face"))
    assert metrics["per_class"] == {"face": 1.0}
    assert (metrics["ap50"], metrics["coco_ap"]) == pytest.approx((1.0, 1.0))


def test_interval_contains_the_score_and_narrows_with_more_images():
    def width(images):
        matches = match_detections(*random_images(np.random.default_rng(0), images), 0)
        low, high = bootstrap_interval(matches, 200)
        assert low <= area_under(*precision_recall(matches)) <= high
        return high - low

    assert 1.5 < width(20) / width(180) < 6  # nine times the images: about a third of the width


def test_intervals_of_shares_of_found_boxes_are_those_of_the_normal_distribution():
    """The first detector finds the box of every second image, the other of every fourth, never more."""
    box = [[0, 0, 10, 10]]
    truths = [truth(box)] * 400
    one, other = ([found([], []) if n % period else found(box, [0.9]) for n in range(400)] for period in (2, 4))
    half = 1.96 * np.sqrt(0.5 * 0.5 / 400)
    interval = bootstrap_interval(match_detections(truths, one, 0), 2000)
    np.testing.assert_allclose(interval, [0.5 - half, 0.5 + half], atol=0.004)
    compared = paired_bootstrap(truths, one, other, 2000)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)  # of the share of images in which only the first finds the box
    assert compared["difference"] == pytest.approx(0.25)
    np.testing.assert_allclose(compared["difference_ci95"], [0.25 - half, 0.25 + half], atol=0.004)


def test_iou_of_touching_zero_area_and_equal_boxes():
    boxes = np.array([[0.0, 0, 10, 10], [10, 0, 20, 10], [5, 5, 5, 5]])
    np.testing.assert_allclose(box_iou(boxes, boxes), np.diag([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(box_iou(boxes[:1], boxes[1:2], border=1.0), 11 / (121 + 121 - 11))


def test_worst_images_have_the_most_mistakes():
    truths = [truth([[0, 0, 10, 10]]), truth([[0, 0, 10, 10], [20, 20, 40, 40]]), truth([])]
    detections = [found([[0, 0, 10, 10]], [0.9]), found([], []), found([[0, 0, 9, 9]], [0.8])]
    assert worst_images(truths, detections, 5) == [1, 2]


def test_recall_at_a_precision_is_the_best_over_all_thresholds():
    for seed in range(10):
        truths, detections = random_images(np.random.default_rng(seed))
        matches = match_detections(truths, detections, 0)
        metrics = detection_metrics(truths, detections, ("face",), with_interval=False)
        for least in (0.8, 0.9):
            best = 0.0
            for threshold in matches.scores:
                taken = matches.scores >= threshold
                if matches.true_positive[taken].mean() >= least:
                    best = max(best, matches.true_positive[taken].sum() / matches.num_true.sum())
            assert metrics[f"recall_at_precision_{100 * least:.0f}"] == pytest.approx(best)
    assert recall_at_precision(np.array([0.5, 0.4]), np.array([0.1, 0.2]), 0.9) == 0.0
