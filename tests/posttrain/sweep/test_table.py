"""The table in its forms, with names that are hostile."""

import csv
import io
import xml.etree.ElementTree as ElementTree

import pytest

from posttrain.sweep import table
from posttrain.sweep.ranking import Candidate, Cost, Measure, ranked
from posttrain.sweep.table import Comparison

HOSTILE = "<script>alert(1)</script>|`*"


def candidate(name, rate, loss, status="qualified", reason=""):
    measures = {"check_sft.held_out_loss": Measure(value=loss, interval=(loss - 0.05, loss + 0.05))} if loss else {}
    return Candidate(
        name=name, run_id=name, status=status, reason=reason, measures=measures, objective="check_sft.held_out_loss",
        settings={"sft.learning_rate": rate, "sft.lora_r": 8, "sft.target_modules": ["q_proj"] if loss else "all"},
        cost=Cost(cpu_seconds=10 * rate, peak_memory=600_000_000),
    )  # fmt: skip


@pytest.fixture
def found():
    rows = [
        candidate("trial_1", 1.0, 0.50),
        candidate("trial_2", 2.0, 0.42),
        candidate("trial_3", 3.0, 0.90),
        candidate("trial_4", 4.0, None, "diverged", HOSTILE),
    ]
    return Comparison("Sweep", ranked(rows, 1), "check_sft.held_out_loss")


def test_only_settings_that_differ_are_shown(found):
    assert found.settings == ["sft.learning_rate", "sft.target_modules"]


def test_markdown_has_a_line_per_trial_and_marks_who_is_level(found):
    text = table.markdown(found)
    assert "**Best of 4: trial\\_2 (1 other is tied with it)**" in text
    lines = [line for line in text.splitlines() if line.startswith("| ") and "trial\\_" in line]
    assert [line.split(" | ")[1] for line in lines] == ["trial\\_2", "trial\\_1", "trial\\_3", "trial\\_4"]
    assert lines[0].split(" | ")[2:7] == ["best", "2", "\\['q\\_proj'\\]", "0.42 (0.37 to 0.47)", "20.0"]
    assert "tied with the best" in lines[1] and "tied" not in lines[2]
    assert "| diverged |" in lines[3]
    assert "- trial\\_4: &lt;script&gt;" in text


def test_the_page_is_whole_escaped_and_has_both_plots(found):
    page = table.html(found)
    assert "<script" not in page and "&lt;script&gt;" in page
    plots = page.split("<svg")[1:]
    assert len(plots) == 2
    for plot in plots:
        ElementTree.fromstring("<svg" + plot.partition("</svg>")[0] + "</svg>")
        assert "var(--good)" in plot and "#06" not in plot
    assert ">learning_rate<" in plots[0] and ">CPU-seconds<" in plots[1]


def test_csv_has_every_number_unrounded(found):
    rows = list(csv.DictReader(io.StringIO(table.to_csv(found))))
    assert [row["name"] for row in rows] == ["trial_2", "trial_1", "trial_3", "trial_4"]
    assert (rows[0]["place"], rows[0]["check_sft.held_out_loss.low"]) == ("1", "0.37")
    assert (rows[3]["check_sft.held_out_loss"], rows[3]["reason"]) == ("", HOSTILE)


def test_the_terminal_says_the_best_and_why_another_is_none(found, capsys):
    table.print_terminal(found)
    text = capsys.readouterr().out
    assert text.startswith("Best of 4: trial_2")
    assert f"trial_4: {HOSTILE}" in text


def test_without_anything_measured_there_is_a_table_alone():
    rows = ranked([candidate("trial_1", 1.0, None, "diverged", "at step 3")], 1)
    page = table.html(Comparison("Sweep", rows, "check_sft.held_out_loss"))
    assert "None of 1 qualifies" in page and "<svg" not in page
