"""Draws the training curve as one self-contained HTML file: losses, DPO's rewards, learning rate, as inline SVG.

log history of a trainer -> HTML, for light and dark screens
"""

import html
from pathlib import Path

from posttrain import storage
from posttrain.pages import drawing
from posttrain.pages.drawing import GRID, INK, MUTED, style_axes

LOSS, EVAL = "#040404", "#050505"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", LOSS: "loss", EVAL: "eval"}
# Panels of a preference training: key of the trainer's log -> what it is.
REWARDS = {"rewards/margins": "reward margin", "rewards/accuracies": "reward accuracy"}

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
    """Draws a trainer's log history: entries with `step`, and either `loss` and `learning_rate` or `eval_loss`.

    Those of a preference training have rewards too, `rewards/margins` and `eval_rewards/margins` for example.
    """
    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    summary = html.escape("; ".join([*_summary(steps, evaluations), *_kept(history)]))
    page = PAGE.format(title=html.escape(title), summary=summary, svg=_svg(steps, evaluations))
    storage.write_text(path, page)


def _kept(history: list[dict]) -> list[str]:
    """Says which checkpoint was kept, where several were judged."""
    judged = {entry["step"]: entry["checkpoint_accuracy"] for entry in history if "checkpoint_accuracy" in entry}
    if not judged:
        return []
    best = max(judged, key=lambda step: (judged[step], -step))
    others = ", ".join(f"{accuracy:.3g} at {step}" for step, accuracy in judged.items() if step != best)
    return [f"kept step {best}, {judged[best]:.3g} right on rows set aside" + (f" ({others})" if others else "")]


def _summary(steps: list[dict], evaluations: list[dict]) -> list[str]:
    parts = [f"{len(steps)} optimizer steps"]
    if steps:
        parts.append(f"training loss {steps[0]['loss']:.4g} at the first step, {steps[-1]['loss']:.4g} at the last")
    if evaluations:
        parts.append(f"held-out loss {evaluations[-1]['eval_loss']:.4g} at the end")
    return parts


def _svg(steps: list[dict], evaluations: list[dict]) -> str:
    rewards = {key: words for key, words in REWARDS.items() if any(key in entry for entry in steps)}
    heights = (3, *[2] * len(rewards), 1)

    def draw(figure) -> None:
        loss_axes, *others, rate_axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
        _draw_pair(loss_axes, steps, evaluations, "loss")
        loss_axes.set_ylabel("loss (nats)")
        for axes, (key, words) in zip(others, rewards.items(), strict=True):
            _draw_pair(axes, steps, evaluations, key)
            axes.set_ylabel(words)
        _draw_rate(rate_axes, steps)

    return drawing.svg(draw, size=(8, 1 + sum(heights)), label="Training curve", variables=VARIABLES)


def _draw_pair(axes, steps: list[dict], evaluations: list[dict], key: str) -> None:
    """Draws a number by step as measured on the training rows and, with dots, on the held-out rows."""
    what = " loss" if key == "loss" else ""
    trained = [entry for entry in steps if key in entry]
    held_out = [entry for entry in evaluations if f"eval_{key}" in entry]
    axes.plot(*_points(trained, key), color=LOSS, linewidth=1.6, label=f"training{what}")
    if len(trained) == 1:
        axes.plot(*_points(trained, key), "o", color=LOSS)
    if held_out:
        points = _points(held_out, f"eval_{key}")
        axes.plot(*points, "o-", color=EVAL, linewidth=1, markersize=6, label=f"held-out{what}", clip_on=False)
    if trained or held_out:
        axes.legend(frameon=False, labelcolor=INK)
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
