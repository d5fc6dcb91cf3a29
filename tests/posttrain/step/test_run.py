"""The log of a step: whatever a message holds, one visible line."""

import logging
import subprocess
import sys

import pytest

from posttrain.step.run import OneLine


@pytest.mark.parametrize(
    ("row_id", "shown"),
    [
        ("a\nERROR posttrain: forged", "a\\u{a}ERROR posttrain: forged"),
        ("\x1b[2Jgone\r", "\\u{1b}[2Jgone\\u{d}"),
        ("a\u202eb\u2028c", "a\\u{202e}b\\u{2028}c"),
        ("ünïcode 🙂", "ünïcode 🙂"),
    ],
)
def test_a_log_line_is_one_line_of_visible_characters(row_id, shown):
    record = logging.LogRecord("posttrain", logging.INFO, "", 0, "row %s is empty", (row_id,), None)
    assert OneLine("%(levelname)s %(message)s").format(record) == f"INFO row {shown} is empty"


def test_the_log_of_a_step_is_written_in_such_lines():
    code = "from posttrain.step import run; run.configure_logging(); run.logging.warning('row %s', 'a\\nERROR forged')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.endswith("row a\\u{a}ERROR forged\n") and result.stderr.count("\n") == 1
