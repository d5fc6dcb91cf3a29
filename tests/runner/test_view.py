"""The view of a run while it goes on."""

import io
import re

import pytest
from rich.console import Console

from runner.view import SECONDS_BETWEEN_LINES, STYLES, CheckRow, LiveView, PlainView, print_checks, view_of


def play(view):
    view.started("fetch_model")
    view.ended("fetch_model", "done", 1.25, "")
    view.started("train_sft")
    for at in range(1, 41):
        view.progress("train_sft", at, 40, f"loss 0.{at}")


def test_plain_lines_are_few_and_whole():
    out = io.StringIO()
    with PlainView(["fetch_model", "train_sft"], out) as view:
        play(view)
        view.ended("train_sft", "reused", 0.5, "loss 0.4")
    lines = [line[10:] for line in out.getvalue().splitlines()]
    assert lines == [
        "fetch_model  started",
        "fetch_model  done          1.2 s",
        "train_sft    started",
        "train_sft    step 40/40 loss 0.40",
        "train_sft    reused        0.5 s  loss 0.4",
    ]


def shown(view) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(view._table())
    return console.file.getvalue()


def test_the_table_has_a_row_per_step_and_a_bar_for_the_one_that_trains():
    view = LiveView(["fetch_model", "train_sft", "check_sft"], io.StringIO())
    play(view)
    text = shown(view)
    assert "✓ fetch_model" in text
    assert "▸ train_sft" in text
    assert "40/40" in text
    assert "loss 0.40" in text
    assert "· check_sft" in text
    view.started("check_sft")
    view.ended("check_sft", "stopped", 3.0, "loss: 2.4, not < 2 [/bold] {x}")
    assert "■ check_sft" in shown(view)
    assert "stopped: loss: 2.4, not < 2 [/bold] {x}" in shown(view)


def test_a_gate_shows_its_progress_where_a_training_does():
    words = (16, 48, "prompts answered by base, about 20 s left")
    view = LiveView(["check_sft"], io.StringIO())
    view.started("check_sft")
    view.progress("check_sft", *words)
    assert "16/48 prompts answered by base, about 20 s left" in shown(view)
    out = io.StringIO()
    plain = PlainView(["check_sft"], out)
    plain.started("check_sft")
    plain.progress("check_sft", 48, 48, "prompts answered by model")  # within a second of the start
    plain.printed_at["check_sft"] -= SECONDS_BETWEEN_LINES
    plain.progress("check_sft", *words)
    assert [line[10:] for line in out.getvalue().splitlines()] == [
        "check_sft   started", "check_sft   16/48 prompts answered by base, about 20 s left",
    ]  # fmt: skip


def test_a_further_attempt_and_a_word_about_the_whole_run():
    out = io.StringIO()
    plain = PlainView(["train_sft"], out)
    plain.started("train_sft", "attempt 2 of 3, from step 1734")
    plain.note("Kubeflow says CANCELING")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  train_sft   attempt 2 of 3, from step 1734\nKubeflow says CANCELING\n", out.getvalue()
    )
    live = LiveView(["train_sft"], out)
    live.started("train_sft", "attempt 2 of 3, from step 1734")
    assert "attempt 2 of 3, from step 1734" in shown(live)
    live.progress("train_sft", 1800, 4000, "loss 0.5, attempt 2 of 3")
    assert "1800/4000 loss 0.5, attempt 2 of 3" in shown(live)
    live.note("Kubeflow says CANCELING [/bold]")
    assert out.getvalue().endswith("Kubeflow says CANCELING [/bold]\n")


def test_a_step_that_was_not_announced_gets_its_row():
    view = LiveView(["fetch_model"], io.StringIO())
    view.started("reject_data")
    view.ended("reject_data", "failed", 0.1, "rejected")
    assert "✗ reject_data" in shown(view)


class Terminal(io.StringIO):
    def isatty(self):
        return True


ROWS = [
    CheckRow("output_format_valid", "failed", "0.5", "≥ 0.9", "0.3 to 0.7", "5 of 10 [/bold]", "Train longer."),
    CheckRow("over_refusal", "not run", "", "", "", "", ""),
]


def test_checks_are_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    print_checks(ROWS, out)
    assert [line.split(maxsplit=1) for line in out.getvalue().splitlines()] == [
        ["Check:", "output_format_valid"], ["Status:", "failed"], ["Value:", "0.5"], ["Limit:", "≥ 0.9"],
        ["Interval:", "0.3 to 0.7"], ["Seen:", "5 of 10 [/bold]"], ["Remedy:", "Train longer."],
        ["Check:", "over_refusal"], ["Status:", "not run"],
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 120])
def test_checks_are_a_table_on_a_terminal_however_narrow(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    print_checks(ROWS, out)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert max(map(len, text.splitlines())) <= width
    assert re.search(r"failed +output_format_valid +0.5 +≥ 0.9 +0.3 to 0.7", text)
    assert "5 of 10 [/bold]" in text
    assert "Train longer." in text
    assert re.search(r"not run +over_refusal", text)


def test_an_undecided_gate_has_a_colour_of_its_own():
    view = LiveView(["check_sft"], io.StringIO())
    view.ended("check_sft", "undecided", 1.0, "too few rows")
    assert "■ check_sft" in shown(view)
    assert "undecided: too few rows" in shown(view)
    assert len({STYLES[state] for state in ("done", "stopped", "undecided")}) == 3


def test_the_output_decides():
    assert isinstance(view_of([], io.StringIO()), PlainView)
    assert isinstance(view_of([], Terminal()), LiveView)
