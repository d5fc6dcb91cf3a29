"""Draws figures as inline SVG that takes its colours from the page, so that they suit light and dark screens.

function that draws on a matplotlib figure -> SVG text

A figure is drawn in stand-in colours, one per CSS variable of the page; the SVG text then names the variables.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

# Stand-in colours, which CSS variables replace.
INK, MUTED, GRID = "#010101", "#020202", "#030303"


def svg(draw: Callable[[Any], None], *, size: tuple[float, float], label: str, variables: dict[str, str]) -> str:
    """Returns the SVG of what `draw` draws on a figure of this size (inches).

    Args:
        label: the alternative text for screen readers.
        variables: stand-in colour -> CSS variable that replaces it.
    """
    import matplotlib

    # svg.fonttype none: text stays text. svg.hashsalt: the same figure is the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "curve", "text.color": INK, "font.size": 10}
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return re.sub("|".join(variables), lambda match: f"var(--{variables[match[0]]})", drawn)


def style_axes(axes, *, grid: str = "y", hidden: Sequence[str] = ("top", "right")) -> None:
    """Gives the axes a light grid and no frame."""
    axes.spines[list(hidden)].set_visible(False)
    axes.spines[[side for side in ("left", "bottom") if side not in hidden]].set_color(GRID)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=GRID, labelcolor=MUTED)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
