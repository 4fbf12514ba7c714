"""Detection metrics, each by the protocol of those who report it.

P pictures, N true boxes of a picture, D detections of a picture, M detections of all pictures. `truths` holds for each
picture a dict of boxes float32 [N, 4], label int [N] and ignore bool [N]; `detections` one of boxes [D, 4], scores [D]
and label [D]. Pictures have the same place in both, boxes are [x1, y1, x2, y2] in pixels of the picture.
"""

import contextlib
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

IOU_THRESH = 0.5
SCORE_THRESH = 0.5
HEIGHT_EDGES = (0, 8, 16, 32, 64, 128, np.inf)
"""Of the groups of faces that recall is told for, pixels."""
TOOL_THRESHOLDS = 1000
RESAMPLES = 500
CURVE_POINTS = 101
MAX_DETECTIONS = 1000  # of a picture, in COCO's figures: its own 100 would clip crowds

Truths = Sequence[Mapping[str, np.ndarray]]
Detections = Sequence[Mapping[str, np.ndarray]]


class Votes(NamedTuple):
    """What became of the detections of one class, by descending score; those given to an ignored box are left out."""

    scores: np.ndarray  # float [M]
    right: np.ndarray  # bool [M], the first to find its true box
    boxes: np.ndarray  # float [M, 4]
    picture: np.ndarray  # int [M]
    num_true: np.ndarray  # int [P]
    found_score: np.ndarray  # float, one a true box that counts: the score that found it, -1 where none did
    heights: np.ndarray  # float, of the same boxes


def box_iou(a: np.ndarray, b: np.ndarray, border: float = 0.0) -> np.ndarray:
    """IoU of boxes [D, 4] and [N, 4]: [D, N]. `border` is added to every side: 1 for tools that count last pixels."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.maximum(bottom_right - top_left + border, 0), axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2] + border, axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b - intersection
    return intersection / np.where(union > 0, union, 1)


def vote(truths: Truths, detections: Detections, label: int, border: float = 0.0) -> Votes:
    """Each detection of class `label` speaks for the true box that it overlaps most, if by IOU_THRESH.

    The first to do so is right, later ones are wrong, as are those that overlap none; those whose box is ignored are
    neither. This is how PASCAL VOC's, WIDER FACE's and DARK FACE's tools match.
    """
    scores, right, voting, pictures, num_true, found_score, heights = [], [], [], [], [], [], []
    for picture, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        true, mine = truth["label"] == label, found["label"] == label
        boxes, ignore = truth["boxes"][true].astype(np.float64), truth["ignore"][true]
        order = np.argsort(-found["scores"][mine], kind="stable")
        strength, mine = found["scores"][mine][order], found["boxes"][mine][order]
        best = np.full(len(order), -1)
        if len(boxes) and len(order):
            iou = box_iou(mine.astype(np.float64), boxes, border)
            best = np.where(iou.max(axis=1) >= IOU_THRESH, iou.argmax(axis=1), -1)
        neither = (best >= 0) & ignore[best] if len(boxes) else np.zeros(len(order), bool)
        best, strength, mine = best[~neither], strength[~neither], mine[~neither]
        first = np.zeros(len(best), bool)
        first[np.unique(best, return_index=True)[1]] = True
        first &= best >= 0
        reached = np.full(len(boxes), -1.0)
        reached[best[first]] = strength[first]
        scores.append(strength)
        right.append(first)
        voting.append(mine)
        pictures.append(np.full(len(best), picture))
        num_true.append(np.sum(~ignore))
        found_score.append(reached[~ignore])
        heights.append((boxes[:, 3] - boxes[:, 1])[~ignore])
    strength = np.concatenate(scores)
    order = np.argsort(-strength, kind="stable")
    return Votes(
        strength[order],
        np.concatenate(right)[order],
        np.concatenate(voting)[order],
        np.concatenate(pictures)[order],
        np.array(num_true, int),
        np.concatenate(found_score),
        np.concatenate(heights),
    )


def precision_recall(votes: Votes, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall [M] of the best 1, 2, ... detections; `weights` [P] counts pictures more than once."""
    weights = np.ones(len(votes.num_true)) if weights is None else weights
    weight = weights[votes.picture]
    taken, right = np.cumsum(weight), np.cumsum(weight * votes.right)
    return right / np.maximum(taken, 1), right / max(np.sum(weights * votes.num_true), 1)


def area_under(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the curve, precision being the best at this recall or a higher one (PASCAL VOC since 2010)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def resampled_areas(votes: Votes, resamples: int) -> np.ndarray:
    """Areas under the curve [resamples] over pictures drawn anew with replacement, the same draws for equally many."""
    rng = np.random.default_rng(0)
    count = len(votes.num_true)
    draws = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(resamples))
    return np.array([area_under(*precision_recall(votes, draw)) for draw in draws])


def bootstrap_interval(votes: Votes, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the area under the curve, over pictures drawn anew with replacement."""
    low, high = np.percentile(resampled_areas(votes, resamples), [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    truths: Truths, detections_a: Detections, detections_b: Detections, resamples: int = RESAMPLES
) -> dict[str, object]:
    """Do two detectors of one class differ on the same pictures?

    difference is the area under the curve of a less that of b, difference_ci95 its bootstrap interval: pictures are
    drawn anew with replacement, the same for both.
    """
    if len(labels := {int(label) for truth in truths for label in truth["label"][~truth["ignore"]]}) != 1:
        raise ValueError(f"boxes of {len(labels)} classes; detectors are compared on one")
    votes = [vote(truths, detections, *labels) for detections in (detections_a, detections_b)]
    a, b = (area_under(*precision_recall(one)) for one in votes)
    areas_a, areas_b = (resampled_areas(one, resamples) for one in votes)
    low, high = np.percentile(areas_a - areas_b, [2.5, 97.5])
    return {"difference": a - b, "difference_ci95": [float(low), float(high)]}


def tool_average_precision(truths: Truths, detections: Detections, label: int) -> float:
    """Average precision as WIDER FACE's and DARK FACE's own tools compute it.

    Boxes count their last pixels, scores are stretched to 0 to 1 over all pictures and cut at 1,000 thresholds. DARK
    FACE ignores no box, and WIDER FACE those outside the subset.
    """
    votes = vote(truths, detections, label, border=1.0)
    if not len(votes.scores):
        return 0.0
    of_all = np.concatenate([found["scores"] for found in detections])
    low, high = of_all.min(), of_all.max()
    stretched = (votes.scores - low) / (high - low if high > low else 1.0)
    thresholds = 1 - np.arange(1, TOOL_THRESHOLDS + 1) / TOOL_THRESHOLDS
    taken = np.searchsorted(-stretched, -thresholds, side="right")
    right = np.concatenate([[0], np.cumsum(votes.right)])[taken]
    return area_under(right / np.maximum(taken, 1), right / max(votes.num_true.sum(), 1))


def coco_metrics(truths: Truths, detections: Detections, class_names: Sequence[str]) -> dict[str, float]:
    """COCO's figures by pycocotools, up to MAX_DETECTIONS a picture; ignored boxes are its crowds.

    Means over the classes; a figure that no true box counts for is left out.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(pictures, extra) -> list[dict]:
        rows = []
        for picture, one in enumerate(pictures):
            for place, (box, label) in enumerate(zip(one["boxes"].astype(np.float64), one["label"], strict=True)):
                width, height = box[2:] - box[:2]
                row = {"id": len(rows) + 1, "image_id": picture, "category_id": int(label)}
                rows.append({**row, "bbox": [*box[:2], width, height], "area": width * height, **extra(one, place)})
        return rows

    def dataset(rows: list[dict]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": picture} for picture in range(len(truths))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        true = dataset(annotations(truths, lambda one, place: {"iscrowd": int(one["ignore"][place])}))
        found = dataset(
            annotations(detections, lambda one, place: {"iscrowd": 0, "score": float(one["scores"][place])})
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
        **{f"coco_ap_{name}": precision[..., place] for place, name in enumerate(areas) if place},
    }
    # pycocotools writes -1 where there is nothing to find
    return {name: float(values[values > -1].mean()) for name, values in figures.items() if (values > -1).any()}


def recall_by_height(votes: Votes) -> dict[str, dict[str, float]]:
    """Of the true boxes of each group of heights: how many, and the shares found at all and at SCORE_THRESH."""
    groups = {}
    for low, high in itertools.pairwise(HEIGHT_EDGES):
        score = votes.found_score[(votes.heights >= low) & (votes.heights < high)]
        if len(score):
            found, sure = (float(np.mean(shares)) for shares in (score >= 0, score >= SCORE_THRESH))
            groups[height_group(low, high)] = {"boxes": len(score), "recall": found, "recall_at_score_50": sure}
    return groups


def height_group(low: float, high: float) -> str:
    """What faces of at least `low` and less than `high` pixels are called."""
    return f"{low} px and more" if np.isinf(high) else f"{low} to {high} px"


def detection_metrics(truths: Truths, detections: Detections, class_names: Sequence[str], with_interval=True) -> dict:
    """All figures of a split; means over the classes that have true boxes.

    "ap50" is the area under the curve at IoU 0.5 ("ap50_ci95" its interval, of the first class); "ap50_tool" that of
    WIDER FACE's and DARK FACE's tools; "coco_..." COCO's. "accuracy" is the share of true boxes found at IoU 0.5 and
    score 0.5, "precision" the share of detections of that score that are right. "recall_by_height" and "curve"
    (precision at recalls from 0 to 1) are of all classes together. ValueError where there is nothing to find.
    """
    present = sorted({int(label) for truth in truths for label in truth["label"][~truth["ignore"]]})
    if not present:
        raise ValueError("no picture has a box to find: nothing can be measured")
    votes = {label: vote(truths, detections, label) for label in present}
    ap = {class_names[label]: area_under(*precision_recall(one)) for label, one in votes.items()}
    together = merge_votes(list(votes.values()))
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
        "recall": float(np.mean(together.found_score >= SCORE_THRESH)),
        "precision": float(np.mean(together.right[sure])) if sure.any() else 0.0,
        "per_class": ap,
        "recall_by_height": recall_by_height(together),
        "curve": curve(precision, recall),
    }


def merge_votes(votes: Sequence[Votes]) -> Votes:
    """The votes of several classes as those of one."""
    order = np.argsort(-np.concatenate([one.scores for one in votes]), kind="stable")
    return Votes(
        *(
            np.concatenate([getattr(one, name) for one in votes])[order]
            for name in ("scores", "right", "boxes", "picture")
        ),
        np.sum([one.num_true for one in votes], axis=0),
        *(np.concatenate([getattr(one, name) for one in votes]) for name in ("found_score", "heights")),
    )


def curve(precision: np.ndarray, recall: np.ndarray) -> dict[str, list[float]]:
    """The best precision at each of CURVE_POINTS recalls or a higher one, 0 beyond the last."""
    points = np.linspace(0, 1, CURVE_POINTS)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return {"recall": points.tolist(), "precision": envelope[np.searchsorted(recall, points)].tolist()}


def mistakes_of(truth: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Boxes [*, 4] of a picture, of all classes: "right" and "wrong" ones at SCORE_THRESH, and "missed" true ones."""
    sure = found["scores"] >= SCORE_THRESH
    found = {name: values[sure] for name, values in found.items()}
    kinds = {"right": [], "wrong": [], "missed": []}
    for label in {*truth["label"].tolist(), *found["label"].tolist()}:
        mine = {name: values[found["label"] == label] for name, values in found.items()}
        votes = vote([truth], [mine], label)
        kinds["right"].append(votes.boxes[votes.right])
        kinds["wrong"].append(votes.boxes[~votes.right])
        kinds["missed"].append(truth["boxes"][(truth["label"] == label) & ~truth["ignore"]][votes.found_score < 0])
    return {kind: np.concatenate([np.zeros((0, 4), np.float32), *boxes]) for kind, boxes in kinds.items()}


def worst_images(truths: Truths, detections: Detections, count: int) -> list[int]:
    """The `count` pictures with most mistakes: boxes missed and wrong detections, at SCORE_THRESH."""
    boxes = [mistakes_of(truth, found) for truth, found in zip(truths, detections, strict=True)]
    mistakes = np.array([len(kinds["wrong"]) + len(kinds["missed"]) for kinds in boxes])
    return [int(picture) for picture in np.argsort(-mistakes, kind="stable")[:count] if mistakes[picture]]
