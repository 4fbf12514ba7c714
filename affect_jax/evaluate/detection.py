"""Detection metrics by the protocols of PASCAL VOC, WIDER FACE, DARK FACE and COCO.

P images, N ground-truth boxes, D detections. `truths` and `detections` have a dict of arrays for each image: see
affect_jax.evaluate.boxes.
"""

import contextlib
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from affect_jax.evaluate.boxes import Detections, Truths, box_iou
from affect_jax.evaluate.single_boxes import count_repeated

IOU_THRESH = 0.5
SCORE_THRESH = 0.5
HEIGHT_EDGES = (0, 8, 16, 32, 64, 128, np.inf)
"""Edges of the height groups of recall_by_height, in pixels."""
PRECISIONS = (0.8, 0.9)
"""Precisions of recall_at_precision_80 and recall_at_precision_90."""
TOOL_THRESHOLDS = 1000
RESAMPLES = 500
CURVE_POINTS = 101
MAX_DETECTIONS = 1000  # per image for COCO's metrics; COCO's default of 100 would cut off crowds


class Matches(NamedTuple):
    """Matched detections of images by descending score, without those that match an ignored box."""

    boxes: np.ndarray  # float [D, 4]
    scores: np.ndarray  # float [D]
    true_positive: np.ndarray  # bool [D], True for the first detection of a ground-truth box
    image: np.ndarray  # int [D], index of the image
    gt_boxes: np.ndarray  # float [N, 4], ground-truth boxes that are not ignored
    gt_scores: np.ndarray  # float [N], the score of the detection of each of these boxes, -1 if it has none
    num_true: np.ndarray  # int [P], ground-truth boxes that are not ignored


def match_detections(truths: Truths, detections: Detections, label: int, border: float = 0.0) -> Matches:
    """Return the matches of class `label` in all images: see match_image."""
    images = [match_image(truth, found, label, border) for truth, found in zip(truths, detections, strict=True)]
    numbered = [one._replace(image=one.image + index) for index, one in enumerate(images)]
    return _join(numbered, np.concatenate([one.num_true for one in images]))


def match_image(
    truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], label: int, border: float = 0.0
) -> Matches:
    """Match each detection of class `label` to the ground-truth box with the highest IoU, if it is at least IOU_THRESH.

    The detection with the highest score of a box is a true positive. Later detections of the same box and detections
    without a box are false positives. Detections of an ignored box are left out. The tools of PASCAL VOC, WIDER FACE
    and DARK FACE match in this way. The image has index 0 in the result.
    """
    boxes_of_class = truth["label"] == label
    gt_boxes, ignore = truth["boxes"][boxes_of_class], truth["ignore"][boxes_of_class]
    detections_of_class = np.flatnonzero(found["label"] == label)
    by_score = detections_of_class[np.argsort(-found["scores"][detections_of_class], kind="stable")]
    boxes, scores = found["boxes"][by_score], found["scores"][by_score]
    best = np.full(len(boxes), -1)  # the ground-truth box of each detection, -1 if it has none
    on_ignored = np.zeros(len(boxes), bool)
    if len(gt_boxes) and len(boxes):
        iou = box_iou(boxes.astype(np.float64), gt_boxes.astype(np.float64), border)
        best = np.where(iou.max(axis=1) >= IOU_THRESH, iou.argmax(axis=1), -1)
        on_ignored = (best >= 0) & ignore[best]
    boxes, scores, best = boxes[~on_ignored], scores[~on_ignored], best[~on_ignored]
    true_positive = np.zeros(len(best), bool)
    true_positive[np.unique(best, return_index=True)[1]] = True
    true_positive &= best >= 0
    gt_scores = np.full(len(gt_boxes), -1.0)
    gt_scores[best[true_positive]] = scores[true_positive]
    true_boxes, image = gt_boxes[~ignore], np.zeros(len(boxes), int)
    return Matches(boxes, scores, true_positive, image, true_boxes, gt_scores[~ignore], np.array([len(true_boxes)]))


def merge_matches(matches: Sequence[Matches]) -> Matches:
    """Return the matches of several classes as those of one class."""
    return _join(matches, np.sum([one.num_true for one in matches], axis=0))


def _join(parts: Sequence[Matches], num_true: np.ndarray) -> Matches:
    """Return the matches of all parts by descending score; `num_true` [P] is that of all of them."""
    of_detections, of_truths = ("boxes", "scores", "true_positive", "image"), ("gt_boxes", "gt_scores")
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in of_detections + of_truths}
    order = np.argsort(-fields["scores"], kind="stable")
    return Matches(**fields | {name: fields[name][order] for name in of_detections}, num_true=num_true)


def precision_recall(matches: Matches, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall [D] of the best 1, 2, ... detections; `weights` [P] repeats images."""
    weights = np.ones(len(matches.num_true)) if weights is None else weights
    weight = weights[matches.image]
    taken, correct = np.cumsum(weight), np.cumsum(weight * matches.true_positive)
    return correct / np.maximum(taken, 1), correct / max(np.sum(weights * matches.num_true), 1)


def area_under(precision: np.ndarray, recall: np.ndarray) -> float:
    """Return the area under the precision envelope: the best precision at this or a higher recall (VOC since 2010)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def resampled_areas(matches: Matches, resamples: int) -> np.ndarray:
    """Return areas under the curve [resamples] of images drawn with replacement; the draws depend on P only."""
    rng = np.random.default_rng(0)
    count = len(matches.num_true)
    draws = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(resamples))
    return np.array([area_under(*precision_recall(matches, draw)) for draw in draws])


def bootstrap_interval(matches: Matches, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the area under the curve, over images."""
    low, high = np.percentile(resampled_areas(matches, resamples), [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    truths: Truths, detections_a: Detections, detections_b: Detections, resamples: int = RESAMPLES
) -> dict[str, object]:
    """Compare two detectors of one class on the same images.

    difference is the area under the curve of a minus that of b, and difference_ci95 its bootstrap interval over images,
    with the same draws for both. ValueError if the ground truth has several classes.
    """
    if len(labels := {int(label) for truth in truths for label in truth["label"][~truth["ignore"]]}) != 1:
        raise ValueError(f"ground truth of {len(labels)} classes; detectors can be compared on one class only")
    matches = [match_detections(truths, detections, *labels) for detections in (detections_a, detections_b)]
    a, b = (area_under(*precision_recall(one)) for one in matches)
    areas_a, areas_b = (resampled_areas(one, resamples) for one in matches)
    low, high = np.percentile(areas_a - areas_b, [2.5, 97.5])
    return {"difference": a - b, "difference_ci95": [float(low), float(high)]}


def tool_average_precision(truths: Truths, detections: Detections, label: int) -> float:
    """Return the average precision as computed by the tools of WIDER FACE and DARK FACE.

    Boxes include their last pixels. Scores are rescaled to [0, 1] over all images and cut at 1,000 thresholds. DARK
    FACE ignores no boxes, WIDER FACE ignores those outside the evaluated subset.
    """
    matches = match_detections(truths, detections, label, border=1.0)
    if not len(matches.scores):
        return 0.0
    of_all = np.concatenate([found["scores"] for found in detections])
    low, high = of_all.min(), of_all.max()
    stretched = (matches.scores - low) / (high - low if high > low else 1.0)
    thresholds = 1 - np.arange(1, TOOL_THRESHOLDS + 1) / TOOL_THRESHOLDS
    taken = np.searchsorted(-stretched, -thresholds, side="right")
    correct = np.concatenate([[0], np.cumsum(matches.true_positive)])[taken]
    return area_under(correct / np.maximum(taken, 1), correct / max(matches.num_true.sum(), 1))


def coco_metrics(truths: Truths, detections: Detections, class_names: Sequence[str]) -> dict[str, float]:
    """Return COCO's metrics from pycocotools, with up to MAX_DETECTIONS per image; ignored boxes are its crowds.

    Values are means over the classes. A metric without ground-truth boxes, such as coco_ap_large, is left out.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(images, extra) -> list[dict]:
        rows = []
        for image, one in enumerate(images):
            for index, (box, label) in enumerate(zip(one["boxes"].astype(np.float64), one["label"], strict=True)):
                width, height = box[2:] - box[:2]
                row = {"id": len(rows) + 1, "image_id": image, "category_id": int(label)}
                rows.append({**row, "bbox": [*box[:2], width, height], "area": width * height, **extra(one, index)})
        return rows

    def dataset(rows: list[dict]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        true = dataset(annotations(truths, lambda one, index: {"iscrowd": int(one["ignore"][index])}))
        found = dataset(
            annotations(detections, lambda one, index: {"iscrowd": 0, "score": float(one["scores"][index])})
        )
        evaluation = COCOeval(true, found, "bbox")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]
    areas = evaluation.params.areaRngLbl  # all, small, medium, large
    figures = {
        "coco_ap": precision[..., 0],
        "coco_ap50": precision[0, ..., 0],
        "coco_ap75": precision[5, ..., 0],
        "coco_ar": recall[..., 0],
        **{f"coco_ap_{name}": precision[..., index] for index, name in enumerate(areas) if index},
    }
    # pycocotools writes -1 if there is no ground truth
    return {name: float(values[values > -1].mean()) for name, values in figures.items() if (values > -1).any()}


def recall_by_height(matches: Matches) -> dict[str, dict[str, float]]:
    """Return for each height group the number of ground-truth boxes and the recall at any score and at SCORE_THRESH."""
    groups, heights = {}, matches.gt_boxes[:, 3].astype(np.float64) - matches.gt_boxes[:, 1]
    for low, high in itertools.pairwise(HEIGHT_EDGES):
        scores = matches.gt_scores[(heights >= low) & (heights < high)]
        if len(scores):
            found, sure = (float(np.mean(shares)) for shares in (scores >= 0, scores >= SCORE_THRESH))
            groups[height_group(low, high)] = {"boxes": len(scores), "recall": found, "recall_at_score_50": sure}
    return groups


def recall_at_precision(precision: np.ndarray, recall: np.ndarray, least: float) -> float:
    """Return the highest recall at which the precision is at least `least`, 0 if there is none."""
    return float(recall[precision >= least].max(initial=0.0))


def height_group(low: float, high: float) -> str:
    """Return the name of the group of heights from `low` to less than `high` pixels."""
    return f"{low} px and more" if np.isinf(high) else f"{low} to {high} px"


def detection_metrics(truths: Truths, detections: Detections, class_names: Sequence[str], with_interval=True) -> dict:
    """Return all metrics of a split, JSON-able. Means are over the classes that have ground-truth boxes.

    "ap50" is the area under the precision-recall curve at IoU 0.5, "ap50_ci95" its interval (one class only),
    "ap50_tool" that of the tools of WIDER FACE and DARK FACE, and "coco_..." are COCO's metrics. At score 0.5 and IoU
    0.5, "recall" is the share of ground-truth boxes that are detected, and "precision" the share of detections of
    these classes that are right. A published "accuracy" of a face detector is often this recall, which ignores false
    detections: read it together with the precision. "recall_at_precision_90" is the highest recall at a precision of
    0.9 or more.
    "recall_by_height", "repeated" (see count_repeated) and "curve" (precision at recalls from 0 to 1) are of all
    classes together. ValueError if no image has a ground-truth box.
    """
    present = sorted({int(label) for truth in truths for label in truth["label"][~truth["ignore"]]})
    if not present:
        raise ValueError("no image has a ground-truth box that is not ignored: metrics are undefined")
    matches = {label: match_detections(truths, detections, label) for label in present}
    ap = {class_names[label]: area_under(*precision_recall(one)) for label, one in matches.items()}
    together = merge_matches(list(matches.values()))
    sure = together.scores >= SCORE_THRESH
    interval = {"ap50_ci95": bootstrap_interval(together)} if with_interval and len(present) == 1 else {}
    precision, recall = precision_recall(together)
    return {
        "num_pictures": len(truths),
        "num_boxes": int(together.num_true.sum()),
        "num_ignored": int(sum(truth["ignore"].sum() for truth in truths)),
        "ap50": float(np.mean(list(ap.values()))),
        **interval,
        "ap50_tool": float(np.mean([tool_average_precision(truths, detections, label) for label in present])),
        **coco_metrics(truths, detections, class_names),
        "recall": float(np.mean(together.gt_scores >= SCORE_THRESH)),
        "precision": float(np.mean(together.true_positive[sure])) if sure.any() else 0.0,
        **{
            f"recall_at_precision_{round(100 * least)}": recall_at_precision(precision, recall, least)
            for least in PRECISIONS
        },
        "repeated": count_repeated(truths, detections, SCORE_THRESH),
        "per_class": ap,
        "recall_by_height": recall_by_height(together),
        "curve": curve(precision, recall),
    }


def curve(precision: np.ndarray, recall: np.ndarray) -> dict[str, list[float]]:
    """Return the best precision at each of CURVE_POINTS recalls or a higher recall, 0 above the highest recall."""
    points = np.linspace(0, 1, CURVE_POINTS)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return {"recall": points.tolist(), "precision": envelope[np.searchsorted(recall, points)].tolist()}


def mistakes_of(truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the boxes [*, 4] of an image: "right" and "wrong" detections at SCORE_THRESH, "missed" ground truth."""
    sure = found["scores"] >= SCORE_THRESH
    found = {name: values[sure] for name, values in found.items()}
    kinds = {"right": [], "wrong": [], "missed": []}
    for label in {*truth["label"].tolist(), *found["label"].tolist()}:
        matches = match_image(truth, found, label)
        kinds["right"].append(matches.boxes[matches.true_positive])
        kinds["wrong"].append(matches.boxes[~matches.true_positive])
        kinds["missed"].append(matches.gt_boxes[matches.gt_scores < 0])
    return {kind: np.concatenate([np.zeros((0, 4), np.float32), *boxes]) for kind, boxes in kinds.items()}


def worst_images(truths: Truths, detections: Detections, count: int) -> list[int]:
    """Return the indices of the `count` images with the most missed boxes and wrong detections at SCORE_THRESH."""
    boxes = [mistakes_of(truth, found) for truth, found in zip(truths, detections, strict=True)]
    mistakes = np.array([len(kinds["wrong"]) + len(kinds["missed"]) for kinds in boxes])
    return [int(image) for image in np.argsort(-mistakes, kind="stable")[:count] if mistakes[image]]
