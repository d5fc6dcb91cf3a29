"""What a run looks like while it goes on."""

import io

from rich.console import Console

from pipelines.view import LiveView, PlainView, view_of


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
        "fetch_model  done         1.2 s",
        "train_sft    started",
        "train_sft    step 40/40 loss 0.40",
        "train_sft    reused       0.5 s  loss 0.4",
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


def test_a_step_that_was_not_announced_gets_its_row():
    view = LiveView(["fetch_model"], io.StringIO())
    view.started("reject_data")
    view.ended("reject_data", "failed", 0.1, "rejected")
    assert "✗ reject_data" in shown(view)


def test_the_output_decides():
    assert isinstance(view_of([], io.StringIO()), PlainView)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(view_of([], Terminal()), LiveView)
