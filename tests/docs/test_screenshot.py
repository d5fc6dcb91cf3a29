"""The picture of a report is that of the newest run, and says nothing of the machine that made it."""

import os

import pytest

from docs import screenshot


def test_the_newest_report_is_taken(tmp_path):
    for name, seconds in (("first", 200), ("second", 300), ("third", 100)):
        report = tmp_path / "runs" / name / "report.html"
        report.parent.mkdir(parents=True)
        report.write_text(name)
        os.utime(report, (seconds, seconds))
    assert screenshot.newest_report(tmp_path).read_text() == "second"


def test_without_a_report_it_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no run has a report.html: run the pipeline first"):
        screenshot.newest_report(tmp_path)


def test_addresses_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = f"<p>{tmp_path}/runs/demo/published/model</p>"
    assert screenshot.without_folder(page, screenshot.Path("runs/demo")) == "<p>runs/demo/published/model</p>"
