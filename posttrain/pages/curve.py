"""Draws the training curve as one self-contained HTML file: loss and learning rate by optimizer step, as inline SVG.

log history of a trainer -> HTML, for light and dark screens
"""

import html
from pathlib import Path

from posttrain.pages import drawing
from posttrain.pages.drawing import GRID, INK, MUTED, style_axes

LOSS, EVAL = "#040404", "#050505"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", LOSS: "loss", EVAL: "eval"}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --muted: #59636e; --grid: #d8dee4; --loss: #0969da;
  --eval: #bc4c00; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #0d1117; --ink: #e6edf3; --muted: #9198a1; --grid: #2b313a; --loss: #58a6ff; --eval: #f0883e; }}
}}
body {{ margin: 0 auto; max-width: 54rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font-family: system-ui, sans-serif; }}
h1 {{ font-size: 1.15rem; font-weight: 600; margin: 0 0 .25rem; }}
p {{ color: var(--muted); font-size: .85rem; margin: 0 0 .75rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{svg}
</body>
</html>
"""


def write_curve(history: list[dict], path: str | Path, *, title: str) -> None:
    """Draws a trainer's log history: entries with `step`, and either `loss` and `learning_rate` or `eval_loss`."""
    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    summary = html.escape(_summary(steps, evaluations))
    page = PAGE.format(title=html.escape(title), summary=summary, svg=_svg(steps, evaluations))
    Path(path).write_text(page, encoding="utf-8")


def _summary(steps: list[dict], evaluations: list[dict]) -> str:
    parts = [f"{len(steps)} optimizer steps"]
    if steps:
        parts.append(f"loss {steps[0]['loss']:.4g} at the first step, {steps[-1]['loss']:.4g} at the last")
    if evaluations:
        parts.append(f"held-out loss {evaluations[-1]['eval_loss']:.4g} at the end")
    return "; ".join(parts)


def _svg(steps: list[dict], evaluations: list[dict]) -> str:
    def draw(figure) -> None:
        loss_axes, rate_axes = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        _draw_loss(loss_axes, steps, evaluations)
        _draw_rate(rate_axes, steps)

    return drawing.svg(draw, size=(8, 5), label="Training curve", variables=VARIABLES)


def _draw_loss(axes, steps: list[dict], evaluations: list[dict]) -> None:
    axes.plot(*_points(steps, "loss"), color=LOSS, linewidth=1.6, label="training")
    if len(steps) == 1:
        axes.plot(*_points(steps, "loss"), "o", color=LOSS)
    if evaluations:
        axes.plot(*_points(evaluations, "eval_loss"), "o", color=EVAL, markersize=6, label="held-out", clip_on=False)
    if steps or evaluations:
        axes.legend(frameon=False, labelcolor=INK)
    axes.set_ylabel("loss (nats)")
    style_axes(axes)


def _draw_rate(axes, steps: list[dict]) -> None:
    axes.plot(*_points(steps, "learning_rate"), color=MUTED, linewidth=1.4)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.yaxis.get_offset_text().set_color(MUTED)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    style_axes(axes)


def _points(entries: list[dict], key: str) -> tuple[list[int], list[float]]:
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]
