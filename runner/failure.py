"""Tells the terminal and CI why there is no result.

Imports what it needs when it is needed: the failure may be that a library is missing.
"""

import sys
from contextlib import suppress

from runner.exit_codes import INTERRUPTED


def report_failure(junit_file: str | None, cause: str, code: int) -> None:
    """Prints the cause of an error, and writes it for CI. An interrupt is printed already."""
    from posttrain.pages import wording

    if code != INTERRUPTED:
        print(f"error: {wording.line(cause)}", file=sys.stderr)
    if junit_file:
        from runner import junit

        with suppress(ValueError):  # the file may be what the error is about
            junit.write(junit_file, junit.of_error(wording.line(cause)))
