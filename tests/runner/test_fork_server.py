"""Processes forked from one that has made the imports: they are what `python -m` would have started."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runner import fork_server

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not fork_server.IS_POSSIBLE, reason="forks are for Linux")

# Does what its first argument says, as a step might.
PLAY = """
import json, os, sys, time
from posttrain.train import ends
what = sys.argv[1]
if what == "tell":
    print(json.dumps({"argv": sys.argv[1:], "name": __name__, "cwd": os.getcwd(), "word": os.environ.get("WORD"),
                      "own": os.environ.get("ONLY_MINE"), "session": os.getsid(0) == os.getpid(),
                      "jinja2": "jinja2" in sys.modules, "began": ends.STARTED}))
    print("on stderr", file=sys.stderr)
elif what == "exit":
    sys.exit(int(sys.argv[2]))
elif what == "say":
    sys.exit("ValueError: not so")
elif what == "raise":
    raise KeyError("lost")
elif what == "at exit":
    import atexit, threading
    atexit.register(print, "cleared up")
    threading.Timer(0.2, print, ["from a thread"]).start()
elif what == "hang":
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forks")
    (folder / "play.py").write_text(PLAY)
    return folder


@pytest.fixture(scope="module")
def server(place):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]), "PYTHONUNBUFFERED": "1"}
    server = fork_server.ForkServer("plain", directory=place, environment=environment)
    yield server
    server.close()


@pytest.fixture
def play(server, tmp_path):
    """Runs `python -m play` to its end; exit code, stdout, stderr."""

    def run(*argv, **variables):
        with open(tmp_path / "out", "wb") as out:
            process = server.fork(
                ["play", *argv], environment=server.environment | variables, stdout=out.fileno()
            )  # fmt: skip
        code = process.wait(60)
        with process.stderr:
            return code, (tmp_path / "out").read_text(), process.stderr.read().decode()

    return run


def test_it_is_the_process_that_was_asked_for(play, place):
    code, out, err = play("tell", "a b", "", WORD="mine", ONLY_MINE="1")
    told = json.loads(out)
    assert (code, err) == (0, "on stderr\n")
    assert told.pop("began")
    assert told == {
        "argv": ["tell", "a b", ""], "name": "__main__", "cwd": str(place), "word": "mine", "own": "1", "session": True,
        "jinja2": True,
    }  # fmt: skip
    assert json.loads(play("tell", WORD="another's")[1])["own"] is None  # the first one's went with it


def test_a_deadline_counts_from_its_own_start(play):
    assert play("exit", "0")[0] == 0  # the server has made its imports
    asked = time.monotonic()
    assert json.loads(play("tell")[1])["began"] >= asked


@pytest.mark.parametrize(
    ("argv", "code", "last_line"),
    [
        (["exit", "0"], 0, ""),
        (["exit", "75"], 75, ""),
        (["say"], 1, "ValueError: not so"),
        (["raise"], 1, "KeyError: 'lost'"),
    ],
)
def test_it_ends_as_a_process_of_its_own_would(play, argv, code, last_line):
    found, out, err = play(*argv)
    assert (found, out) == (code, "")
    assert (err.splitlines() or [""])[-1] == last_line


def test_its_threads_and_exit_functions_come_to_their_end(play):
    assert play("at exit") == (0, "from a thread\ncleared up\n", "")


def test_a_module_that_is_not_there_is_an_error(server, tmp_path):
    with open(tmp_path / "out", "wb") as out:
        process = server.fork(["plya"], environment=server.environment, stdout=out.fileno())
    with process.stderr:
        assert process.wait(60) == 1
        assert b"No module named plya" in process.stderr.read()


def test_a_signal_is_told_as_a_negative_code(server):
    process = hanging(server)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == process.poll() == -signal.SIGTERM
    process.stderr.close()


def hanging(server: fork_server.ForkServer) -> fork_server.Forked:
    with open(os.devnull, "wb") as out:
        process = server.fork(["play", "hang"], environment=server.environment, stdout=out.fileno())
    assert process.stderr.readline() == b"hanging\n"
    return process


def test_a_request_that_no_datagram_holds_is_refused(server):
    with pytest.raises(OSError, match="a command and environment of 2000"):
        server.fork(["play", "x" * 200_000], environment={}, stdout=1)


@pytest.mark.parametrize("ends", ["close", "kill"])
def test_it_does_not_outlive_the_server(place, ends):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
    server = fork_server.ForkServer("plain", directory=place, environment=environment)
    process = hanging(server)
    server.close() if ends == "close" else os.kill(server._process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    with process.stderr:
        assert process.stderr.read() == b""  # the last that could write there is gone
    with pytest.raises(OSError):
        server.fork(["play", "tell"], environment=environment, stdout=1)
    server.close()
