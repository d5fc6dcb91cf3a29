"""Renders a comparison, of a sweep's trials or of any runs, as Markdown, HTML with two plots, CSV or in the terminal.

ranked candidates -> text
"""

import csv
import io
from dataclasses import dataclass
from typing import Any

from posttrain.pages import wording
from posttrain.pages.html import environment, size
from posttrain.sweep import plots
from posttrain.sweep.plots import TIED
from posttrain.sweep.ranking import Candidate, Measure, Ranked

WIDTH = 200  # columns, if the output is a file or a log
UNITS = {"gpu": "GPU-seconds", "cpu": "CPU-seconds"}


@dataclass(frozen=True)
class Comparison:
    """Ranked candidates, and the columns of their table."""

    title: str
    rows: list[Ranked]
    objective: str | None = None  # the measure that decided the order

    @property
    def settings(self) -> list[str]:
        """Settings in which candidates differ."""
        names = dict.fromkeys(name for row in self.rows for name in row.candidate.settings)
        return [name for name in names if len({repr(row.candidate.settings.get(name)) for row in self.rows}) > 1]

    @property
    def measures(self) -> list[str]:
        """The objective, then all other measures with an interval."""
        others = [
            name
            for row in self.rows
            for name, measure in row.candidate.measures.items()
            if measure.interval and name != self.objective
        ]
        return [*([self.objective] if self.objective else []), *dict.fromkeys(others)]

    @property
    def unit(self) -> str:
        return UNITS["gpu" if any(row.candidate.cost.gpu_seconds for row in self.rows) else "cpu"]

    def header(self, measures: list[str]) -> list[str]:
        return ["", "name", "status", *self.settings, *measures, self.unit, "peak memory"]

    def cells(self, row: Ranked, measures: list[str]) -> list[str]:
        """Returns the texts of one row of the table."""
        candidate = row.candidate
        return [
            str(row.place or ""),
            candidate.name,
            status(row),
            *(setting(candidate.settings.get(name)) for name in self.settings),
            *(measured(candidate.measures.get(name)) for name in measures),
            f"{candidate.cost.compute_seconds:.1f}",
            size(candidate.cost.peak_memory / 1e9) if candidate.cost.peak_memory else "",
        ]

    @property
    def reasons(self) -> dict[str, str]:
        """Why candidates do not qualify, by name."""
        candidates = [row.candidate for row in self.rows]
        return {one.name: one.reason for one in candidates if one.reason and not one.qualifies}


def status(row: Ranked) -> str:
    """Returns a candidate's status as the table shows it."""
    if row.place == 1:
        return "best"
    if row.is_level:
        return TIED
    if row.candidate.qualifies:
        return row.candidate.reason or row.candidate.status
    return row.candidate.status


def setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def measured(measure: Measure | None) -> str:
    """Returns a measure as `0.42 (0.39 to 0.45)`."""
    if measure is None:
        return ""
    low, high = measure.interval or (None, None)
    interval = f" ({wording.number(low)} to {wording.number(high)})" if measure.interval else ""
    return f"{wording.number(measure.value)}{interval}"


def headline(comparison: Comparison) -> str:
    """Says how many qualify, and which is the best."""
    qualified = [row for row in comparison.rows if row.candidate.qualifies]
    if not qualified:
        return f"None of {len(comparison.rows)} qualifies"
    if comparison.objective is None:
        return f"{len(qualified)} of {len(comparison.rows)} passed all their gates"
    num_tied = sum(row.is_level for row in comparison.rows)
    others = "other is" if num_tied == 1 else "others are"
    tied = f" ({num_tied} {others} tied with it)" if num_tied else ""
    return f"Best of {len(comparison.rows)}: {qualified[0].candidate.name}{tied}"


def markdown(comparison: Comparison) -> str:
    """Renders a heading and a table."""
    measures = comparison.measures
    lines = [
        f"# {wording.markdown(comparison.title)}",
        "",
        f"**{wording.markdown(headline(comparison))}**",
        "",
        _line(comparison.header(measures)),
        _line(["---"] * len(comparison.header(measures))),
        *(_line(comparison.cells(row, measures)) for row in comparison.rows),
        "",
        *(f"- {wording.markdown(name)}: {wording.markdown(reason)}" for name, reason in comparison.reasons.items()),
    ]
    return "\n".join(lines) + "\n"


def one_markdown(title: str, candidate: Candidate | None) -> str:
    """Renders a single trial."""
    if candidate is None:
        return f"# {wording.markdown(title)}\n\nToo few trials qualify for this rung: nothing was run.\n"
    pairs = {"settings of": candidate.name, **{name: setting(value) for name, value in candidate.settings.items()}}
    pairs |= {name: measured(measure) for name, measure in candidate.measures.items()}
    pairs |= {"status": candidate.status, "why": candidate.reason}
    table = [_line(["", ""]), _line(["---", "---"]), *(_line([name, text]) for name, text in pairs.items())]
    return "\n".join([f"# {wording.markdown(title)}", "", *table]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Renders every number in a column of its own, unrounded."""
    measures = list(dict.fromkeys(name for row in comparison.rows for name in row.candidate.measures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.candidate.settings))
    bounds = [f"{name}{part}" for name in measures for part in ("", ".low", ".high")]
    costs = ["seconds", "cpu_seconds", "gpu_seconds", "peak_memory"]
    writer.writerow(["place", "name", "run_id", *names, *bounds, *costs, "rung", "status", "is_level", "reason"])
    for row in comparison.rows:
        candidate = row.candidate
        settings = [candidate.settings.get(name) for name in names]
        numbers = [number for name in measures for number in _numbers(candidate.measures.get(name))]
        spent = [getattr(candidate.cost, name) for name in costs]
        own = [candidate.rung, candidate.status, row.is_level, candidate.reason]
        writer.writerow([row.place, candidate.name, candidate.run_id, *settings, *numbers, *spent, *own])
    return text.getvalue()


def html(comparison: Comparison) -> str:
    """Renders the page: self-contained, without scripts, every text escaped."""
    measures = comparison.measures
    template = environment().get_template("comparison.html")
    return template.render(
        comparison=comparison,
        headline=headline(comparison),
        header=comparison.header(measures),
        lines=[(_tone(row), comparison.cells(row, measures)) for row in comparison.rows],
        plots=_plots(comparison),
    )


def print_terminal(comparison: Comparison) -> None:
    """Prints the table with its most important columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    measures = comparison.measures[: 1 if comparison.objective else 4]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in comparison.header(measures):
        table.add_column(name.replace(".", "\n", 1).replace("_", " "), overflow="fold")
    styles = {"good": "bold green", "old": "blue", "bad": "red", "none": "dim", "": ""}
    for row in comparison.rows:
        table.add_row(*map(wording.line, comparison.cells(row, measures)), style=styles[_tone(row)])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(headline(comparison), table, sep="\n", markup=False)
    for name, reason in comparison.reasons.items():
        console.print(f"{name}: {wording.line(reason)}", markup=False, soft_wrap=True)


def _plots(comparison: Comparison) -> list[tuple[str, str]]:
    if not comparison.objective or not any(row.candidate.measure for row in comparison.rows):
        return []
    drawn = []
    if comparison.settings:
        lines = plots.parallel_coordinates(comparison.rows, comparison.settings, comparison.objective)
        drawn.append(("Settings", lines))
    points = plots.metric_against_cost(comparison.rows, comparison.objective, comparison.unit)
    return [*drawn, ("Objective against cost", points)]


def _tone(row: Ranked) -> str:
    tones = {"best": "good", TIED: "old", "not promoted": "none", "qualified": ""}
    return tones.get(plots.group_of(row), "bad")


def _numbers(measure: Measure | None) -> tuple[float | None, ...]:
    return (None, None, None) if measure is None else (measure.value, *(measure.interval or (None, None)))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell if cell == "---" else wording.markdown(cell) for cell in cells) + " |"
