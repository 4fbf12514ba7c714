"""report.html: one page that stands alone, figures and pictures inside, the protocol beside the numbers."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from affect_jax.evaluate import figures
from affect_jax.evaluate.detection import mistakes_of
from affect_jax.files import write_atomically

PICTURE_SIDE = 900
STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.headline { font-size: 1.5rem; margin: .6rem 0 0; } .quiet { color: var(--quiet); font-size: .85rem; }
.protocol { border-left: 4px solid var(--line); padding-left: 1rem; margin: 1rem 0; }
.figure { background: white; border-radius: 6px; padding: .3rem; display: inline-block; vertical-align: top; }
.figure svg { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.faces figure { margin: 0; font-size: .8rem; line-height: 1.3; }
.faces img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block; }
.scenes { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: .8rem; }
.scenes figure { margin: 0; font-size: .8rem; } .scenes img { width: 100%; border-radius: 4px; display: block; }
pre { overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
"""


def write_report(
    path: str | Path,
    *,
    title: str,
    protocol: Mapping[str, str],
    history: Sequence[dict],
    evaluations: Mapping[str, dict],
    mistakes: Sequence[dict],
    class_names: Sequence[str],
    config: Mapping,
    environment: Mapping[str, str],
    samples: np.ndarray,
) -> None:
    """Write the page of a run.

    history: the records of metrics.jsonl. evaluations: name -> classification_metrics with "tta" and "checkpoint_step".
    mistakes: {image uint8 [H, W, C], true, predicted, confidence, id} each. samples: uint8 [rows, columns, H, W, C],
    a picture a row, first as it is and then as the network sees it.
    """
    selected = next((metrics["checkpoint_step"] for metrics in evaluations.values()), None)
    parts = [f"<h1>{escape(title)}</h1>", *(_headline(name, metrics) for name, metrics in evaluations.items())]
    parts.append(_protocol(protocol))
    if history:
        parts += ["<h2>Learning curves</h2>", _svg(figures.learning_curves(history, selected))]
    for name, metrics in evaluations.items():
        parts += [
            f"<h2>{escape(name)}</h2>",
            '<p class="quiet">Rows are the truth; colours are shares of a row.</p><div class="wide">',
            _svg(figures.confusion_matrix(metrics["confusion_matrix"], class_names)),
            _svg(figures.calibration(metrics["calibration"], metrics["ece"])),
            _class_table(metrics["per_class"]),
            "</div>",
        ]
    if mistakes:
        parts += ["<h2>Most confident mistakes</h2>", _mistakes(mistakes)]
    parts += ["<h2>What the network sees</h2>", _samples(samples)]
    _write_page(path, title, [*parts, _details("Config", config), _details("Environment", environment)])


def write_detection_report(
    path: str | Path,
    *,
    title: str,
    protocol: Mapping[str, str],
    history: Sequence[dict],
    evaluations: Mapping[str, dict],
    pictures: Sequence[dict],
    config: Mapping,
    environment: Mapping[str, str],
) -> None:
    """Write the page of a detector's run.

    history: the records of metrics.jsonl. evaluations: name -> detection_metrics with "split" and "checkpoint_step".
    pictures: {image uint8 [H, W, 3], truth and found as detection_metrics takes them, id} each.
    """
    selected = next((metrics["checkpoint_step"] for metrics in evaluations.values()), None)
    parts = [f"<h1>{escape(title)}</h1>", *(_detection_headline(name, one) for name, one in evaluations.items())]
    parts.append(_protocol(protocol))
    if history:
        parts += ["<h2>Learning curves</h2>", _svg(figures.learning_curves(history, selected, "ap50"))]
    parts += ["<h2>Precision and recall</h2>", _svg(figures.precision_recall_curves(evaluations))]
    for name, metrics in evaluations.items():
        parts += [f"<h2>Recall by height: {escape(name)}</h2>", _height_table(metrics["recall_by_height"])]
    if pictures:
        parts += ["<h2>Pictures with most mistakes</h2>", _boxed_pictures(pictures)]
    _write_page(path, title, [*parts, _details("Config", config), _details("Environment", environment)])


def _write_page(path: str | Path, title: str, parts: Sequence[str]) -> None:
    write_atomically(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>",
    )


def _headline(name: str, metrics: dict) -> str:
    low, high = metrics["accuracy_ci95"]
    return (
        f'<p class="headline"><b>{escape(name)}</b> accuracy {metrics["accuracy"]:.2%}'
        f' <span class="quiet">95 % interval {low:.2%} to {high:.2%} of {metrics["num_examples"]} images,'
        f" checkpoint {metrics['checkpoint_step']}, test-time augmentation: {escape(metrics['tta'])}</span></p>"
        f'<p class="quiet">macro-F1 {metrics["macro_f1"]:.4f}, NLL {metrics["nll"]:.4f}, ECE {metrics["ece"]:.4f}'
        f"{_places(metrics)}</p>"
    )


def _detection_headline(name: str, metrics: dict) -> str:
    low, high = metrics.get("ap50_ci95", (None, None))
    interval = "" if low is None else f"95 % interval {low:.2%} to {high:.2%}, "
    return (
        f'<p class="headline"><b>{escape(name)}</b> AP50 {metrics["ap50"]:.2%} <span class="quiet">{interval}'
        f"{metrics['num_boxes']} boxes in {metrics['num_pictures']} pictures of {escape(metrics['split'])},"
        f" checkpoint {metrics['checkpoint_step']}</span></p>"
        f'<p class="quiet">by the tools of WIDER FACE and DARK FACE {metrics["ap50_tool"]:.2%}, COCO AP'
        f" {metrics['coco_ap']:.2%}; at score 0.5 {metrics['accuracy']:.2%} of the boxes are found, and"
        f" {metrics['precision']:.2%} of the detections are right</p>"
    )


def _height_table(groups: Mapping[str, dict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{row['boxes']}</td><td>{row['recall']:.1%}</td>"
        f"<td>{row['recall_at_score_50']:.1%}</td></tr>"
        for name, row in groups.items()
    )
    heads = "<th>Height</th><th>Boxes</th><th>Found</th><th>Found at score 0.5</th>"
    return f"<table><tr>{heads}</tr>{rows}</table>"


def _boxed_pictures(pictures: Sequence[dict]) -> str:
    shown = "".join(
        f"<figure>{_boxed_picture(one)}<figcaption>{escape(one['id'])}</figcaption></figure>" for one in pictures
    )
    legend = "At score 0.5: green boxes are right, red ones wrong; yellow ones are missed, and ignored ones not drawn."
    return f'<p class="quiet">{legend}</p><div class="scenes">{shown}</div>'


def _boxed_picture(picture: dict) -> str:
    image, boxes = picture["image"], mistakes_of(picture["truth"], picture["found"])
    scale = min(1.0, PICTURE_SIDE / max(image.shape[:2]))
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    drawn = figures.draw_boxes(image, *(boxes[kind] * scale for kind in ("right", "wrong", "missed")))
    jpeg = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _places(metrics: dict) -> str:
    """What is said of valence and arousal, where the network predicts them."""
    return "".join(
        f"; {name}: CCC {metrics[f'ccc_{name}']:.3f}, RMSE {metrics[f'rmse_{name}']:.3f}"
        for name in ("valence", "arousal")
        if f"ccc_{name}" in metrics
    )


def _protocol(protocol: Mapping[str, str]) -> str:
    items = "; ".join(f"{escape(key)}: {escape(value)}" for key, value in protocol.items())
    return f'<p class="protocol">{items}.</p>'


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return f'<div class="figure">{svg[svg.index("<svg") :]}</div>'


def _class_table(per_class: Mapping[str, dict]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{row['recall']:.1%}</td><td>{row['precision']:.1%}</td>"
        f"<td>{row['f1']:.1%}</td><td>{row['support']}</td></tr>"
        for name, row in per_class.items()
    )
    return f"<table><tr><th>Class</th><th>Recall</th><th>Precision</th><th>F1</th><th>Images</th></tr>{rows}</table>"


def _mistakes(mistakes: Sequence[dict]) -> str:
    faces = "".join(
        f"<figure>{_img(mistake['image'])}<figcaption>{escape(mistake['true'])} taken for "
        f"<b>{escape(mistake['predicted'])}</b><br>{mistake['confidence']:.1%}"
        f' <span class="quiet">{escape(mistake["id"])}</span></figcaption></figure>'
        for mistake in mistakes
    )
    return f'<div class="faces">{faces}</div>'


def _samples(samples: np.ndarray) -> str:
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in samples])
    picture = _img(sheet, "width: 100%; max-width: 40rem")
    return f'<p class="quiet">Left as it is, then as the training step changes it.</p>{picture}'


def _img(image: np.ndarray, style: str = "") -> str:
    """A picture uint8 [H, W, 1 or 3], RGB, as an inline PNG."""
    png = cv2.imencode(".png", image if image.shape[-1] == 1 else image[..., ::-1])[1]
    style = f' style="{style}; image-rendering: pixelated"' if style else ""
    return f'<img alt=""{style} src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _details(title: str, content: Mapping) -> str:
    text = escape(json.dumps(content, indent=2))
    return f"<h2>{title}</h2><details><summary>show</summary><pre>{text}</pre></details>"
