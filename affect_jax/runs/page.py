"""Render sections as one HTML file that contains its figures and images: nothing is fetched, no script runs."""

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from affect_jax.files import write_atomically
from affect_jax.tasks import sections

PIXELS_PER_INCH = 96  # of CSS


def write_page(path: str | Path, title: str, content: Sequence[sections.Section]) -> None:
    """Write the sections as one page; templates/page.html shows how each block is rendered."""
    write_atomically(path, templates().get_template("page.html").render(title=title, sections=content))


@functools.cache
def templates():
    """Return the jinja2 environment of the templates, in which all texts are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("affect_jax.runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": svg, "png": png, "jpeg": jpeg}
    environment.globals["PIXELS_PER_INCH"] = PIXELS_PER_INCH
    for block in (sections.Note, sections.Table, sections.Definitions, sections.Figure, sections.Images):
        environment.tests[block.__name__.lower()] = functools.partial(_is_instance, block)
    return environment


def _is_instance(kind: type, value: object) -> bool:
    return isinstance(value, kind)


def svg(figure):
    """Return a matplotlib figure as an SVG element."""
    from markupsafe import Markup

    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return Markup(text[text.index("<svg") :])


def png(image: np.ndarray) -> str:
    """Return an image, uint8 [H, W, 1 or 3] RGB, as a data URL without loss."""
    return _data_url(image, ".png", "image/png")


def jpeg(image: np.ndarray) -> str:
    """Return an image, uint8 [H, W, 1 or 3] RGB, as a small data URL."""
    return _data_url(image, ".jpg", "image/jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])


def _data_url(image: np.ndarray, extension: str, kind: str, options: Sequence[int] = ()) -> str:
    encoded = cv2.imencode(extension, image if image.shape[-1] == 1 else image[..., ::-1], options)[1]
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
