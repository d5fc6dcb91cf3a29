import logging

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
