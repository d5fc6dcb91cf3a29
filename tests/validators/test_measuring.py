import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from posttrain.verdict import Check
from validators import measuring
from validators.measuring import Measured, Timeouts, in_order, not_run, side_by_side

SOON = Timeouts(20)
LATE = Timeouts(0.5)


@dataclass(frozen=True)
class Row:
    """Something that a measurement gives."""

    text: str
    loss: float


@dataclass(frozen=True)
class Example:
    """Numbers of a gate."""

    model: dict
    missing: int | None = None


def raises() -> dict:
    raise RuntimeError("out of memory\nin line two")


def killed() -> dict:
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> dict:
    sys.exit(3)


def hangs() -> dict:
    time.sleep(60)


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def is_gone(pid: int, seconds: float = 5) -> bool:
    """Tells whether the process ends within this time; one that nobody has waited for yet has ended too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def wait_for(path: Path) -> int:
    """The number that a measurement writes there."""
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def tell_pid(path: Path, pid: int) -> None:
    path.write_text(f"{pid}\n")


@pytest.mark.parametrize("measure", [side_by_side, in_order])
def test_numbers_come_back_with_how_long_they_took(measure):
    measured = measure(
        {"loss": lambda: {"loss": 1.5}, "rows": lambda: {"rows": [Row("a", 0.5)]}, "none": lambda: None}, SOON
    )
    assert measured.numbers == {"loss": 1.5, "rows": [{"text": "a", "loss": 0.5}]}
    assert measured.failures == []
    assert measured.seconds.keys() == {"loss", "rows", "none"} and max(measured.seconds.values()) < 5


def test_nan_and_infinity_come_back_as_they_are():
    measured = side_by_side({"loss": lambda: {"nan": float("nan"), "inf": float("-inf")}}, SOON)
    assert str(measured.numbers) == "{'nan': nan, 'inf': -inf}"


def test_a_large_result_comes_back_whole():
    measured = side_by_side({"rows": lambda: {"rows": ["x" * 1000] * 2000}}, SOON)
    assert measured.numbers == {"rows": ["x" * 1000] * 2000}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (raises, "could not be measured, RuntimeError: out of memory in line two"),
        (killed, "its process ended without a result, killed by SIGKILL"),
        (exits, "its process ended without a result, exit code 3"),
        (lambda: {"thing": object()}, "could not be measured, PydanticSerializationError: Unable to serialize"),
    ],
)
def test_one_that_breaks_hides_no_other(broken, words):
    measured = side_by_side({"first": lambda: {"a": 1}, "broken": broken, "last": lambda: {"b": 2}}, SOON)
    assert measured.numbers == {"a": 1, "b": 2}
    [check] = measured.failures
    assert (check.name, check.status) == ("broken", "failed")
    assert check.detail.startswith(words)
    assert measured.seconds["broken"] < 20


@pytest.mark.parametrize(
    ("broken", "status"), [(raises, "failed"), (killed, "failed"), (exits, "failed"), (hangs, "timed out")]
)
def test_what_follows_a_failure_in_order_is_not_run(broken, status):
    timeouts = Timeouts(20, {"broken": 0.3})
    parts = {"load": lambda: {"a": 1}, "broken": broken, "loss": lambda: {"b": 2}, "answers": lambda: {"c": 3}}
    measured = in_order(parts, timeouts)
    assert measured.numbers == {"a": 1}
    assert statuses(measured.failures) == {"broken": status, "loss": "not run", "answers": "not run"}
    assert measured.failures[1].detail == "needs broken, which failed"
    assert measured.seconds.keys() == {"load", "broken"}


def test_parts_in_order_share_one_process_and_its_memory():
    held = {}

    def load():
        held["model"] = "weights"
        return {"first": os.getpid()}

    measured = in_order({"load": load, "use": lambda: {"second": os.getpid(), "model": held["model"]}}, SOON)
    assert measured.numbers["first"] == measured.numbers["second"] != os.getpid()
    assert measured.numbers["model"] == "weights" and held == {}


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    def hangs_with_a_child():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        tell_pid(tmp_path / "child", child.pid)
        tell_pid(tmp_path / "own", os.getpid())
        child.wait()

    measured = side_by_side({"hangs": hangs_with_a_child, "quick": lambda: {"a": 1}}, Timeouts(20, {"hangs": 1}))
    assert measured.numbers == {"a": 1}
    [check] = measured.failures
    assert (check.name, check.status) == ("hangs", "timed out")
    assert check.detail.startswith("killed after 1.") and check.detail.endswith("its time limit is 1 s")
    assert 1 <= measured.seconds["hangs"] < 5
    assert is_gone(wait_for(tmp_path / "own")) and is_gone(wait_for(tmp_path / "child"))


def test_one_that_ignores_signals_is_ended():
    def stubborn():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)

    assert statuses(side_by_side({"stubborn": stubborn}, LATE).failures) == {"stubborn": "timed out"}


@pytest.mark.parametrize("end", [killed, exits, raises, dict])
def test_what_a_measurement_leaves_behind_is_ended_however_it_ends(tmp_path, end):
    def leaves_a_child():
        tell_pid(tmp_path / "child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
        return end()

    side_by_side({"leaves": leaves_a_child}, SOON)
    assert is_gone(wait_for(tmp_path / "child"))


def exits_with_a_thread() -> dict:
    threading.Thread(target=time.sleep, args=(60,)).start()
    sys.exit(3)


def closes_its_pipe() -> dict:
    os.closerange(3, 100)
    time.sleep(60)


@pytest.mark.parametrize(("stuck", "status"), [(exits_with_a_thread, "timed out"), (closes_its_pipe, "failed")])
def test_one_that_says_no_more_and_goes_on_does_not_hold_the_gate(stuck, status):
    assert statuses(side_by_side({"stuck": stuck}, Timeouts(1.5)).failures) == {"stuck": status}


def test_a_measurement_may_start_processes_of_its_own():
    def counts():
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return {"found": pool.map(len, ["ab"])}

    assert side_by_side({"counts": counts}, SOON).numbers == {"found": [2]}


def test_one_at_a_time_and_each_has_its_own_time(monkeypatch):
    monkeypatch.setattr(measuring, "_num_at_once", lambda: 1)

    def sleeps() -> dict:
        started = time.monotonic()
        time.sleep(0.3)
        return {"spans": {f"{started}": time.monotonic()}}

    measured = side_by_side(dict.fromkeys("abc", sleeps), LATE)
    assert measured.failures == []  # 0.9 s in all
    (_, first), (start, second), (last, _) = ((float(one), end) for one, end in measured.numbers["spans"].items())
    assert first <= start and second <= last


def test_it_waits_until_the_next_time_limit_and_no_longer(monkeypatch):
    patience, wait = [], measuring.wait
    monkeypatch.setattr(measuring, "wait", lambda ready, timeout: patience.append(timeout) or wait(ready, timeout))
    measured = side_by_side({"hangs": hangs, "waits": lambda: time.sleep(0.6)}, Timeouts(20, {"hangs": 0.3}))
    assert statuses(measured.failures) == {"hangs": "timed out"}
    assert min(patience) >= 0 and patience[0] <= 0.3 < max(patience)


def test_a_process_that_has_no_group_yet_is_ended_too(monkeypatch):
    def refuse(*_):
        raise ProcessLookupError

    monkeypatch.setattr(measuring.os, "killpg", refuse)
    assert statuses(side_by_side({"hangs": hangs}, Timeouts(0.2)).failures) == {"hangs": "timed out"}


def test_nothing_is_left_of_a_process_that_has_ended():
    pid = side_by_side({"own": lambda: {"pid": os.getpid()}}, SOON).numbers["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # one that nobody has waited for would still be there


def test_a_measurement_ends_at_a_signal_that_the_gate_handles():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        measured = side_by_side({"own": lambda: {"is_own": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL}}, SOON)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert measured.numbers == {"is_own": True}


def test_as_many_processes_as_cores_and_at_least_two(monkeypatch):
    for cores, number in ((range(8), 8), (range(1), 2)):
        affinity = {0: set(cores)}
        monkeypatch.setattr(measuring.os, "sched_getaffinity", lambda pid, of=affinity: of.get(pid, {0}), raising=False)
        assert measuring._num_at_once() == number
    monkeypatch.delattr(measuring.os, "sched_getaffinity")
    for counted, number in ((5, 5), (None, 2)):
        monkeypatch.setattr(measuring.os, "cpu_count", lambda counted=counted: counted)
        assert measuring._num_at_once() == number


@pytest.mark.parametrize(
    ("exit_code", "words"), [(None, "but it is still running"), (0, "exit code 0"), (-9, "killed by SIGKILL")]
)
def test_how_a_process_ended(exit_code, words):
    assert measuring._ending(exit_code) == words


def test_failures_stand_in_the_order_of_their_measurements(monkeypatch):
    monkeypatch.setattr(measuring, "_num_at_once", lambda: 3)
    late = {"hangs": hangs, "raises": raises, "killed": killed}
    assert list(statuses(side_by_side(late, LATE).failures)) == ["hangs", "raises", "killed"]


def test_nothing_to_measure_is_no_failure():
    assert side_by_side({}, SOON) == in_order({}, SOON) == measuring.Measured()


def test_not_run_says_why():
    found = not_run(["loss", "answers"], "the adapter holds NaN")
    assert statuses(found.failures) == {"loss": "not run", "answers": "not run"}
    assert found.failures[0].detail == "the adapter holds NaN"


def test_measured_adds_up():
    both = side_by_side({"a": lambda: {"x": 1}}, SOON) | side_by_side({"b": raises}, SOON)
    assert both.numbers == {"x": 1} and statuses(both.failures) == {"b": "failed"} and both.seconds.keys() == {"a", "b"}


def test_an_interrupted_gate_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        wait_for(tmp_path / "own")
        raise KeyboardInterrupt

    def hangs_and_tells():
        tell_pid(tmp_path / "own", os.getpid())
        time.sleep(60)

    monkeypatch.setattr(measuring, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        side_by_side({"hangs": hangs_and_tells}, SOON)
    assert is_gone(wait_for(tmp_path / "own"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone tells a process that its parent died")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_gate_that_is_killed_takes_its_measurements_with_it(tmp_path, number):
    program = (
        "import os, pathlib, time\n"
        "from validators.measuring import Timeouts, in_order\n"
        "def hangs():\n"
        f"    pathlib.Path({str(tmp_path / 'own')!r}).write_text(f'{{os.getpid()}}\\n')\n"
        "    time.sleep(60)\n"
        "in_order({'hangs': hangs}, Timeouts(60))\n"
    )
    gate = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
    measurement = wait_for(tmp_path / "own")
    gate.send_signal(number)
    assert gate.wait(timeout=10) == -number
    assert is_gone(measurement)


def test_a_measurement_sees_what_the_gate_has_read_and_cannot_change_it():
    rows = [1]

    def appends():
        rows.append(2)
        return {"rows": rows}

    assert side_by_side({"appends": appends}, SOON).numbers == {"rows": [1, 2]}
    assert json.dumps(rows) == "[1]"


def test_parts_may_measure_one_model_together_and_are_read_as_the_numbers_of_a_gate():
    parts = {"one": lambda: {"model": {"loss": 1.0}}, "other": lambda: {"model": {"answers": {"a": ["x"]}}}}
    for way in (in_order, side_by_side):
        measured = Measured({"model": {"size": None}, "other": None}) | way(parts, Timeouts(10))
        assert measured.numbers == {"model": {"size": None, "loss": 1.0, "answers": {"a": ["x"]}}, "other": None}
        assert measured.read(Example) == Example({"size": None, "loss": 1.0, "answers": {"a": ["x"]}}, missing=None)


def test_of_a_number_and_a_mapping_of_one_name_the_later_counts():
    assert measuring.merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert measuring.merged({"a": {"b": 2}}, {"a": 1}) == {"a": 1}


def pipes() -> dict[int, str]:
    """Returns which pipe each descriptor of this process leads to."""
    descriptors = {}
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # the descriptor by which the folder is listed
            if link.readlink().name.startswith("pipe:"):
                descriptors[int(link.name)] = link.readlink().name
    return descriptors


def to_every_pipe(data: bytes, *, but: dict[int, str]) -> None:
    """Writes where a check finds a pipe to write to, as a hostile one might; pytest's own workers have some too."""
    for descriptor, pipe in pipes().items():
        if pipe not in but.values():
            with suppress(OSError):
                os.write(descriptor, data)


def test_a_message_without_its_end_outlives_no_time_limit():
    before = pipes()

    def partial() -> dict:
        to_every_pipe(b'{"numbers"', but=before)
        time.sleep(60)

    started = time.monotonic()
    measured = in_order({"partial": partial}, LATE)
    assert statuses(measured.failures) == {"partial": "timed out"}
    assert time.monotonic() - started < 10


def test_an_empty_line_after_a_result_is_no_result_of_the_next_part():
    before = pipes()

    def forges() -> dict:
        to_every_pipe(b'{"numbers": {}}\n\n', but=before)
        return {}

    assert statuses(in_order({"first": forges, "second": lambda: {"b": 2}}, SOON).failures) == {"second": "failed"}


@pytest.mark.parametrize(
    "garbage", [b"\n", b"\xff\x00garbage\n", b"[1]\n", b'{"passed": true}\n', b"[" * 100_000 + b"\n"]
)
def test_garbage_in_the_pipe_fails_its_check_and_hides_no_other(garbage):
    before = pipes()

    def forges() -> dict:
        to_every_pipe(garbage, but=before)
        return {}

    measured = side_by_side({"forges": forges, "loss": lambda: {"loss": 1.5}}, SOON)
    assert statuses(measured.failures) == {"forges": "failed"}
    assert "sent something that is no result" in measured.failures[0].detail
    assert measured.numbers == {"loss": 1.5}


def test_a_long_result_arrives_whole():
    rows = ["x" * 1000] * 5000
    assert side_by_side({"rows": lambda: {"rows": rows}}, SOON).numbers == {"rows": rows}
