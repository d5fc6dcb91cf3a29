"""Shows how far a run has come and what stopped it: tables on a terminal, plain lines in a file or a log.

events of steps, checks that did not pass -> text
"""

import sys
import time
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

State = Literal["pending", "running", "done", "reused", "stopped", "undecided", "unfinished", "failed"]
MARKS = {
    "pending": "·",
    "running": "▸",
    "done": "✓",
    "reused": "↺",
    "stopped": "■",
    "undecided": "■",
    "unfinished": "…",
    "failed": "✗",
}
STYLES = {
    "pending": "dim",
    "running": "bold",
    "done": "green",
    "reused": "blue",
    "stopped": "red",
    "undecided": "yellow",
    "unfinished": "yellow",
    "failed": "red",
    "timed out": "red",
    "not run": "dim",
}
REDRAWS_PER_SECOND = 4
SECONDS_BETWEEN_LINES = 10.0  # for the progress of one step, in a log


@dataclass
class Row:
    """The current state of one step."""

    state: State = "pending"
    done: int = 0
    total: int = 0
    text: str = ""
    started_at: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class CheckRow:
    """A check that did not pass, in words."""

    name: str
    status: str
    value: str
    limit: str
    interval: str
    seen: str
    remedy: str


class PlainView:
    """Prints a line per event, and for a training or a gate a line every few seconds."""

    def __init__(self, steps: list[str], stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.width = max(map(len, [*steps, "report_run"]))
        self.printed_at: dict[str, float] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def started(self, step: str, text: str = "") -> None:
        self.printed_at[step] = time.monotonic()
        self._line(step, text or "started")

    def note(self, text: str) -> None:
        """Prints a line that is about the whole run."""
        print(text, file=self.stream, flush=True)

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        now, trains = time.monotonic(), not text or text.startswith(("loss", "attempt", "from"))
        # A gate has many ends, one per measurement.
        if (trains and done == total) or now - self.printed_at.get(step, 0.0) >= SECONDS_BETWEEN_LINES:
            self.printed_at[step] = now
            self._line(step, f"{'step ' if trains else ''}{done}/{total} {text}")

    def ended(self, step: str, state: State, seconds: float, text: str) -> None:
        self._line(step, f"{state:<9} {seconds:7.1f} s  {text}")

    def _line(self, step: str, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {step:<{self.width}}  {text}".rstrip()
        print(f"{line}\n", end="", file=self.stream, flush=True)  # one write: steps run side by side


class LiveView:
    """Draws a table of all steps, each with its latest progress, and keeps redrawing it."""

    def __init__(self, steps: list[str], stream: TextIO | None = None):
        self.rows = {step: Row() for step in steps}
        self.live = Live(
            console=Console(file=stream),
            get_renderable=self._table,
            refresh_per_second=REDRAWS_PER_SECOND,
            vertical_overflow="visible",
        )

    def __enter__(self):
        self.live.__enter__()
        return self

    def __exit__(self, *exception):
        return self.live.__exit__(*exception)

    def started(self, step: str, text: str = "") -> None:
        self.rows[step] = Row(state="running", started_at=time.monotonic(), text=text)

    def note(self, text: str) -> None:
        """Prints a line that is about the whole run above the table."""
        self.live.console.print(text, markup=False)

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        row = self.rows[step]
        row.done, row.total, row.text = done, total, text

    def ended(self, step: str, state: State, seconds: float, text: str) -> None:
        row = self.rows.setdefault(step, Row())
        row.state, row.seconds, row.text = state, seconds, text

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(ratio=1)
        for step, row in self.rows.items():
            seconds = time.monotonic() - row.started_at if row.state == "running" else row.seconds
            name = Text(f"{MARKS[row.state]} {step}", style=STYLES[row.state])
            table.add_row(name, "" if row.state == "pending" else f"{seconds:.1f} s", _progress(row))
        return Group(table)


def view_of(steps: list[str], stream: TextIO | None = None) -> PlainView | LiveView:
    """Returns the view that suits the output."""
    stream = stream or sys.stdout
    return LiveView(steps, stream) if stream.isatty() else PlainView(steps, stream)


def print_checks(rows: list[CheckRow], stream: TextIO | None = None) -> None:
    """Prints each check with its limit, and below its name what was seen and what to do."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(_checks(rows))
        return
    for row in rows:
        pairs = {"Check": row.name, "Status": row.status, "Value": row.value, "Limit": row.limit}
        print_pairs(pairs | {"Interval": row.interval, "Seen": row.seen, "Remedy": row.remedy}, stream)


def print_pairs(pairs: dict[str, Any], stream: TextIO | None = None) -> None:
    """Prints aligned `key: value` lines without empty values; further lines of a value go below its first."""
    indent = "\n" + " " * 20
    for key, value in pairs.items():
        if value:
            print(f"{key + ':':<20}{str(value).replace(chr(10), indent)}", file=stream or sys.stdout)


def _checks(rows: list[CheckRow]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("Status", no_wrap=True)
    table.add_column("Check", ratio=1, overflow="fold")
    for title in ("Value", "Limit", "Interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        words = [Text(row.name, style="bold"), Text(row.seen, style="dim"), Text(row.remedy)]
        name = Text("\n").join(part for part in words if part)
        table.add_row(Text(row.status, style=STYLES[row.status]), name, row.value, row.limit, row.interval)
    return table


def _progress(row: Row) -> Table | Text:
    if row.state != "running" or not row.total:
        note = row.state if row.state in ("reused", "stopped", "undecided", "unfinished", "failed") else ""
        return Text(
            ": ".join(filter(None, [note, row.text])), style=STYLES[row.state] if note else "dim", overflow="fold"
        )
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(total=row.total, completed=row.done, width=24), Text(f"{row.done}/{row.total}"), Text(row.text)
    )
    return line
