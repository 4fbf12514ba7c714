"""Pieces of pages that stand alone: one HTML file each, figures and pictures inside, nothing fetched or run."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from affect_jax.files import write_atomically

STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.quiet { color: var(--quiet); font-size: .85rem; }
dl { border-left: 4px solid var(--line); padding-left: 1rem; margin: 1rem 0; font-size: .85rem;
  display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .1rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; } dt, dd { overflow-wrap: anywhere; }
.figure { background: white; border-radius: 6px; padding: .3rem; display: inline-block; vertical-align: top;
  max-width: 100%; box-sizing: border-box; overflow-x: auto; }
.figure svg { max-width: 100%; min-width: calc(.65 * var(--natural)); height: auto; display: block; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: Canvas; }
table.words th, table.words td { text-align: left; vertical-align: top; }
table.words td:not(:first-child) { white-space: normal; overflow-wrap: break-word; max-width: 16rem; }
.faces { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.faces figure { margin: 0; font-size: .8rem; line-height: 1.3; }
.faces img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block; }
.scenes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: .8rem; }
.scenes figure { margin: 0; font-size: .8rem; } .scenes img { width: 100%; border-radius: 4px; display: block; }
pre { overflow-x: auto; font-size: .85rem; } summary { cursor: pointer; }
"""


def write_page(path: str | Path, title: str, parts: Sequence[str]) -> None:
    """Write the parts, HTML, as one page."""
    write_atomically(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>",
    )


def quiet(text: str) -> str:
    """A remark."""
    return f'<p class="quiet">{escape(text)}</p>'


def pairs(content: Mapping[str, str]) -> str:
    """Names and what is said of each."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in content.items())}</dl>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Cells are HTML, the first column names the row; `kind` is "numbers", set right, or "words"."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def svg(figure) -> str:
    """A matplotlib Figure, which shrinks with the page as far as its text stays readable."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    width = round(96 * figure.get_figwidth())  # CSS has 96 pixels an inch
    return f'<div class="figure" style="--natural: {width}px">{text[text.index("<svg") :]}</div>'


def png(image: np.ndarray, style: str = "") -> str:
    """A picture uint8 [H, W, 1 or 3], RGB, without loss."""
    encoded = cv2.imencode(".png", image if image.shape[-1] == 1 else image[..., ::-1])[1]
    style = f' style="{style}; image-rendering: pixelated"' if style else ""
    return f'<img alt=""{style} src="data:image/png;base64,{base64.b64encode(encoded).decode()}">'


def jpeg(image: np.ndarray) -> str:
    """A picture uint8 [H, W, 3], RGB, in few bytes."""
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encoded).decode()}">'


def details(title: str, content: Mapping) -> str:
    """What is shown on demand."""
    text = escape(json.dumps(content, indent=2))
    return f"<h2>{escape(title)}</h2><details><summary>show</summary><pre>{text}</pre></details>"
