"""Matplotlib figures as inline SVG that inherits colours and font from the page."""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

# Placeholder colours: each is replaced by var(--name), so that one chart serves light mode, dark mode and print.
INK, FAINT, GRID, GROUND = "#010101", "#020202", "#030303", "#040404"
SCRATCH, TEACHER = "#050505", "#060606"
SERIES = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d", "#0e0e0e")
GOOD, BAD = "#0f0f0f", "#101010"
VARIABLES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    GROUND: "ground",
    SCRATCH: "scratch",
    TEACHER: "teacher",
    **{colour: f"s{index}" for index, colour in enumerate(SERIES)},
    GOOD: "good",
    BAD: "bad",
}
LARGEST = 1.6  # maximum enlargement of a chart, so that its letters match the page's
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kd",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "normal",
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": GRID,
    "axes.unicode_minus": True,
}


def draw(paint: Callable[[Axes], None], width: float = 4.6, height: float = 2.9) -> str:
    """Calls ``paint`` on the axes of a figure of ``width`` x ``height`` inches and returns its SVG."""
    with mpl.rc_context():
        mpl.rcdefaults()  # ignores the user's matplotlibrc
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(text.getvalue())


def inline(svg: str) -> str:
    """An SVG document as an HTML element: without header and size, with unique ids and the page's colours and font."""
    head, _, body = svg[svg.index("<svg") :].partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r' (d|x|y|transform)="([^"]*)"', _rounded, body)
    prefix = f"p{zlib.crc32(body.encode()):x}"
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", body)
    body = re.sub(r"font: (?:\w+ )*([\d.]+px) [^;\"]+", r"font-size: \1", body)
    for colour, name in VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    size = f'style="max-width: {LARGEST * float(box[1]):.0f}px"'
    return f'<svg {box[0]} {size} xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">{body}'


def png(pixels: NDArray[np.uint8]) -> str:
    """Pixels [H, W] or [H, W, 3] as a data URI."""
    data = io.BytesIO()
    imsave(data, np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _rounded(match: re.Match[str]) -> str:
    numbers = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(match[2].split()))
    return f' {match[1]}="{numbers}"'
