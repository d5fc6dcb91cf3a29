"""Figures as inline SVG in the colours of the page around them, which knows whether the screen is dark.

what draws on a matplotlib figure -> SVG text

A figure is drawn in stand-in colours, one for each CSS variable of the page, and these are then named in its text.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

# Drawn in these colours and then handed to the style sheet.
INK, MUTED, GRID = "#010101", "#020202", "#030303"


def svg(draw: Callable[[Any], None], *, size: tuple[float, float], label: str, variables: dict[str, str]) -> str:
    """What `draw` puts on a figure of this size (inches).

    Args:
        label: what is read out where the figure cannot be seen.
        variables: stand-in colour -> CSS variable that takes its place.
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
    """Quiet axes: a light grid, no frame."""
    axes.spines[list(hidden)].set_visible(False)
    axes.spines[[side for side in ("left", "bottom") if side not in hidden]].set_color(GRID)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=GRID, labelcolor=MUTED)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
