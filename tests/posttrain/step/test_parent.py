"""A process that is tied to its parent ends with it, also where the parent is killed."""

import shutil
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is for Linux")

BY_COMMAND = """
import subprocess, sys
from posttrain.step.parent import tie_to_parent
command = tie_to_parent([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"])
child = subprocess.Popen(command)
child.wait()
"""
BY_FORK = """
import os, time
from posttrain.step.parent import die_with_parent
parent = os.getpid()
if not os.fork():
    die_with_parent(parent)
    print("ready", flush=True)
    time.sleep(60)
os.wait()
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(BY_COMMAND, marks=pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv")),
        BY_FORK,
    ],
)
def test_it_ends_with_a_parent_that_is_killed(code):
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        while parent.stdout.readline() != "ready\n":
            pass
        started = time.monotonic()
        parent.kill()
        parent.stdout.read()  # to its end, which comes when the child has ended too
        assert time.monotonic() - started < 30


def test_a_parent_that_is_gone_already_is_noticed():
    code = (
        "import os; from posttrain.step.parent import die_with_parent; die_with_parent(os.getpid()); print('goes on')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
