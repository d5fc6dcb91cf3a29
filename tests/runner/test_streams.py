"""A process whose viewer leaves, or never was there, goes on and ends as if it were there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner.exit_codes import INTERRUPTED

ROOT = Path(__file__).parents[2]
HELP = f"{sys.executable} run_pipeline.py --help"
IMPORTS = "import os, signal; from runner.signals import handle_signals, interrupt, leave_at_once; "
PRINT = (
    "import sys; from runner import streams; streams.keep_open(); "
    "[print('x' * 999, file=stream, flush=at % 2) for at in range(999) for stream in (sys.stdout, sys.stderr)]; "
    "open('done', 'w').write(str(open('/dev/null').fileno()))"
)


@pytest.mark.parametrize("redirected", [">&-", "> /dev/full", "2>&- >&- <&-", "| true", "> /dev/full 2> /dev/full"])
def test_nobody_need_read_the_help(redirected):
    shell = ["bash", "-c", f"{HELP} {redirected}; exit ${{PIPESTATUS[0]}}"]
    ended = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("redirected", ["2>&1 | head -c 9", "> /dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_after_the_viewer_has_left_goes_nowhere(tmp_path, redirected):
    shell = ["bash", "-c", f'{sys.executable} -c "{PRINT}" {redirected}; exit ${{PIPESTATUS[0]}}']
    ended = subprocess.run(
        shell, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int((tmp_path / "done").read_text()) > 2  # no file gets the number of a stream


def test_an_interrupt_that_nobody_sees_ends_quietly(tmp_path):
    code = IMPORTS + "handle_signals(lambda n, _: leave_at_once(['a b'], n)); "
    ended = subprocess.run(
        [sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGHUP)"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (INTERRUPTED, "")
    assert ended.stdout == "Interrupted (SIGHUP). To continue, run:\n'a b'\n"
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGINT)"], cwd=ROOT, stdout=full, stderr=-1
        )
    assert (ended.returncode, ended.stderr) == (INTERRUPTED, b"")


def test_a_run_under_nohup_does_not_hear_that_its_terminal_is_closed():
    code = IMPORTS + "handle_signals(interrupt); os.kill(os.getpid(), signal.SIGHUP)"
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, **ignored).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode != 0
