"""Draws candidates: their settings as parallel coordinates, and their objective against their cost.

ranked candidates -> SVG for the page of a comparison
"""

import math
from typing import Any

from posttrain.pages import drawing, wording
from posttrain.pages.drawing import GRID, INK, MUTED, style_axes
from posttrain.sweep.ranking import NOT_PROMOTED, Ranked

TIED = "tied with the best"
MAX_TICKS = 5  # values of an axis that shows them all
SPAN_OF_LOG = 10  # ratio of largest to smallest value from which an axis is logarithmic
BEST, LEVEL, OTHER, OUT, PAGE = "#060606", "#070707", "#080808", "#090909", "#0a0a0a"
VARIABLES = {
    INK: "ink",
    MUTED: "soft",
    GRID: "line",
    BEST: "good",
    LEVEL: "old",
    OTHER: "soft",
    OUT: "bad",
    PAGE: "page",
}
LEGEND = {  # in drawing order: the best comes last, on top
    "does not qualify": OUT,
    NOT_PROMOTED: GRID,
    "qualified": OTHER,
    TIED: LEVEL,
    "best": BEST,
}


def group_of(row: Ranked) -> str:
    """Returns a candidate's entry in the legend."""
    if row.place == 1:
        return "best"
    if row.is_level:
        return TIED
    return row.candidate.status if row.candidate.status in LEGEND else "does not qualify"


def parallel_coordinates(rows: list[Ranked], settings: list[str], objective: str) -> str:
    """Draws an axis for each setting and the objective, and a line for each candidate, shorter if it has no value."""
    names = [*settings, objective]
    scales = [_Scale([_at(row, name, objective) for row in rows]) for name in names]

    def draw(figure) -> None:
        axes = figure.subplots()
        for at, (name, scale) in enumerate(zip(names, scales, strict=True)):
            _draw_scale(axes, at, scale, name, weight="bold" if name == objective else "normal")
        for row in _best_last(rows):
            values = [_at(row, name, objective) for name in names]
            positions = [scale.position(value) for scale, value in zip(scales, values, strict=True)]
            shift = _shift(rows.index(row), len(rows))  # so that lines with the same settings do not overlap
            points = [(at, y + shift * (at < len(settings))) for at, y in enumerate(positions) if y is not None]
            _draw_line(axes, points, group_of(row))
        axes.set(xlim=(-0.2, len(names) - 1 + 0.4), ylim=(-0.08, 1.2))
        axes.axis("off")
        _legend(figure, rows)

    label = "Settings and objective of each candidate as parallel coordinates"
    return drawing.svg(draw, size=(9, 4.4), label=label, variables=VARIABLES)


def metric_against_cost(rows: list[Ranked], objective: str, unit: str) -> str:
    """Draws a point for each candidate with a value, and its interval."""
    measured = [row for row in _best_last(rows) if row.candidate.measure]

    def draw(figure) -> None:
        axes = figure.subplots()
        for row in measured:
            _draw_point(axes, row)
        axes.set(xlabel=unit, ylabel=objective)
        axes.margins(x=0.08)
        style_axes(axes)
        _legend(figure, measured)

    return drawing.svg(draw, size=(9, 4.2), label=f"{objective} against cost", variables=VARIABLES)


class _Scale:
    """Positions on an axis, from 0 to 1: numbers by size, or by logarithm over a wide span; others by rank."""

    def __init__(self, values: list[Any]):
        names = {repr(value) for value in values if value is not None}
        numbers = sorted({value for value in values if isinstance(value, int | float)})
        self.places = None if len(numbers) == len(names) else _evenly(sorted(names))
        if self.places is not None:
            self.ticks = [(place, name.strip("'")) for name, place in self.places.items()]
            return
        self.warp = math.log if numbers and numbers[0] > 0 and numbers[-1] / numbers[0] >= SPAN_OF_LOG else float
        self.low, self.high = (self.warp(numbers[0]), self.warp(numbers[-1])) if numbers else (0.0, 1.0)
        shown = numbers if len(numbers) <= MAX_TICKS else [numbers[0], numbers[-1]]
        self.ticks = [(self.position(value), wording.number(value)) for value in shown]

    def position(self, value: Any) -> float | None:
        if value is None:
            return None
        if self.places is not None:
            return self.places[repr(value)]
        return (self.warp(value) - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def _shift(at: int, num: int) -> float:
    return (at - (num - 1) / 2) * min(0.012, 0.12 / num)


def _evenly(names: list[str]) -> dict[str, float]:
    return {name: at / max(1, len(names) - 1) for at, name in enumerate(names)}


def _at(row: Ranked, name: str, objective: str) -> Any:
    return row.candidate.value if name == objective else row.candidate.settings.get(name)


def _best_last(rows: list[Ranked]) -> list[Ranked]:
    order = list(LEGEND)
    return sorted(rows, key=lambda row: order.index(group_of(row)))


def _draw_scale(axes, at: int, scale: _Scale, name: str, *, weight: str) -> None:
    axes.axvline(at, ymin=0.06, ymax=0.85, color=GRID, linewidth=1, zorder=0)
    box = {"facecolor": PAGE, "edgecolor": "none", "pad": 0.8}
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": MUTED, "bbox": box, "zorder": 5}
    for position, text in scale.ticks:
        axes.annotate(text, (at, position), xytext=(6, 0), **beside)
    axes.annotate(name.replace(".", "\n", 1), (at, 1.08), ha="center", color=INK, fontweight=weight, fontsize=9.5)


def _draw_point(axes, row: Ranked) -> None:
    colour, measure, cost = LEGEND[group_of(row)], row.candidate.measure, row.candidate.cost.compute_seconds
    is_best = row.place == 1
    if measure.interval:
        axes.plot([cost, cost], measure.interval, color=colour, linewidth=1.2, solid_capstyle="round")
    axes.plot(cost, measure.value, "o", color=colour, markersize=7 if is_best else 5)
    if is_best:
        axes.annotate(row.candidate.name, (cost, measure.value), xytext=(8, 6), textcoords="offset points", color=INK)


def _draw_line(axes, points: list[tuple[float, float]], group: str) -> None:
    is_out = group == "does not qualify"
    axes.plot(
        *zip(*points, strict=True),
        color=LEGEND[group],
        linewidth=2.6 if group == "best" else 1.4,
        marker="o",
        markersize=4,
        linestyle=(0, (3, 2)) if is_out else "-",
        solid_joinstyle="round",
        clip_on=False,
    )


def _legend(figure, rows: list[Ranked]) -> None:
    from matplotlib.lines import Line2D

    shown = [group for group in reversed(LEGEND) if group in {group_of(row) for row in rows}]
    handles = [Line2D([], [], color=LEGEND[group], marker="o", markersize=5, linewidth=1.6) for group in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=len(shown), frameon=False, labelcolor=INK)
