"""Charts as vector drawings: for the PDF, and as SVG files. Pure: the same chart gives the same bytes."""

from __future__ import annotations

import math
from typing import Final

from reportlab.graphics.renderSVG import drawToString
from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String
from reportlab.lib.colors import Color, HexColor

from apps.packs.report import Chart, IntervalChart, LineChart

WIDTH: Final = 470.0  # points
_ROW: Final = 26.0
_LABELS: Final = 190.0
_PLOT_HEIGHT: Final = 190.0
_INK, _MUTED, _GRID = HexColor("#14171c"), HexColor("#545c6a"), HexColor("#e1e4ea")
_FIRST, _SECOND = HexColor("#3363d2"), HexColor("#d0750a")
_COLOURS: Final = (_FIRST, _SECOND, HexColor("#1e9dc8"), HexColor("#41337d"))
_FONT: Final = "Helvetica"  # of the 14 that every reader has; labels beyond Latin-1 are in the tables
_MAX_LABEL: Final = 40


def draw(chart: Chart) -> Drawing:
    """The chart as a drawing of ``WIDTH`` points."""
    return _intervals(chart) if isinstance(chart, IntervalChart) else _lines(chart)


def as_svg(chart: Chart) -> bytes:
    """The chart as an SVG file."""
    return str(drawToString(draw(chart))).encode()


def _intervals(chart: IntervalChart) -> Drawing:
    height = _ROW * len(chart.rows) + 44
    drawing = Drawing(WIDTH, height)
    known = [end for _, value, low, high, _ in chart.rows for end in (value, low, high) if end is not None]
    ticks = nice_ticks(min(known), max(known))
    left, right, bottom = _LABELS, WIDTH - 12, 30.0

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    for tick in ticks:
        drawing.add(Line(x(tick), bottom, x(tick), height - 8, strokeColor=_GRID, strokeWidth=0.5))
        _label(drawing, x(tick), bottom - 11, tick_text(tick, ticks), anchor="middle")
    for place, (label, value, low, high, is_candidate) in enumerate(chart.rows):
        y = height - 8 - _ROW * (place + 0.5)
        colour = _SECOND if is_candidate else _FIRST
        _label(drawing, left - 8, y - 3, label[:_MAX_LABEL], anchor="end", colour=_INK)
        if low is not None and high is not None:
            drawing.add(Line(x(low), y, x(high), y, strokeColor=colour, strokeWidth=1.4))
            for end in (low, high):
                drawing.add(Line(x(end), y - 3, x(end), y + 3, strokeColor=colour, strokeWidth=1.4))
        drawing.add(_mark(x(value), y, colour, is_candidate))
    _label(drawing, (left + right) / 2, 4, chart.axis, anchor="middle")
    return drawing


def _mark(x: float, y: float, colour: Color, is_candidate: bool) -> Circle | Rect:
    """Told apart by shape as well as by colour, for readers in black and white."""
    if is_candidate:
        return Rect(x - 3, y - 3, 6, 6, fillColor=colour, strokeColor=None)
    return Circle(x, y, 3.2, fillColor=colour, strokeColor=None)


def _lines(chart: LineChart) -> Drawing:
    drawing = Drawing(WIDTH, _PLOT_HEIGHT + 56)
    points = [point for _, series in chart.series for point in series]
    x_ticks = nice_ticks(min(px for px, _ in points), max(px for px, _ in points))
    y_ticks = nice_ticks(min(py for _, py in points), max(py for _, py in points))
    left, right, bottom, top = 52.0, WIDTH - 12, 44.0, _PLOT_HEIGHT + 44

    def x(value: float) -> float:
        return left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def y(value: float) -> float:
        return bottom + (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (top - bottom)

    for tick in y_ticks:
        drawing.add(Line(left, y(tick), right, y(tick), strokeColor=_GRID, strokeWidth=0.5))
        _label(drawing, left - 6, y(tick) - 3, tick_text(tick, y_ticks), anchor="end")
    for tick in x_ticks:
        _label(drawing, x(tick), bottom - 12, tick_text(tick, x_ticks), anchor="middle")
    for place, (name, series) in enumerate(chart.series):
        colour = _COLOURS[place % len(_COLOURS)]
        path = [coordinate for px, py in series for coordinate in (x(px), y(py))]
        dashes = None if place == 0 else [4, 3]
        drawing.add(PolyLine(path, strokeColor=colour, strokeWidth=1.6, strokeDashArray=dashes))
        _label(drawing, left + 110 * place, 2, f"— {name}"[:_MAX_LABEL], colour=colour)
    _label(drawing, (left + right) / 2, 18, chart.x_axis, anchor="middle")
    _label(drawing, left, top + 6, chart.y_axis)
    return drawing


def _label(drawing: Drawing, x: float, y: float, text: str, *, anchor: str = "start", colour: Color = _MUTED) -> None:
    drawing.add(String(x, y, text, fontName=_FONT, fontSize=8, fillColor=colour, textAnchor=anchor))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about ``count`` of them, from at most ``low`` to at least ``high``."""
    if not low < high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, ticks: list[float]) -> str:
    """A tick's number with as many decimals as its distance to the next one takes."""
    step = ticks[1] - ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{min(decimals, 6)}f}"
