"""Iterations of a loop on this machine: one first, then as many as fit, and none after one that fails."""

import os
import threading
import time

import pytest
from kfp.local.status import Status

from runner import loops


class Watched:
    """Iterations that say when they run and how many do at once."""

    def __init__(self, failing=()):
        self.failing, self.order, self.running, self.most = failing, [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, name):
        def iteration():
            with self.lock:
                self.order.append(name)
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.05)
            with self.lock:
                self.running -= 1
            return {"row": name}, Status.FAILURE if name in self.failing else Status.SUCCESS

        return iteration

    def run(self, names, num=1):
        return loops.run_iterations(
            {name: self(name) for name in names}, num_at_once=lambda: num, end_running=lambda: None
        )


def test_one_after_the_other_in_their_order():
    watched = Watched()
    outputs, status = watched.run("abc")
    assert (watched.order, watched.most, status) == (["a", "b", "c"], 1, Status.SUCCESS)
    assert outputs == {name: {"row": name} for name in "abc"}


def test_side_by_side_when_the_first_has_shown_what_it_needs():
    watched = Watched()
    outputs, _ = watched.run("abcde", num=2)
    assert watched.order[0] == "a" and watched.most == 2
    assert sorted(outputs) == list("abcde")


@pytest.mark.parametrize("num", [1, 2])
def test_after_a_failure_nothing_new_is_begun(num):
    watched = Watched(failing="b")
    outputs, status = watched.run("abcdefgh", num=num)
    assert status == Status.FAILURE and outputs == {}
    assert len(watched.order) < 6


def test_an_interrupt_ends_what_runs_and_begins_nothing_more():
    ended, begun = threading.Event(), []

    def waits():
        begun.append(1)
        ended.wait(10)
        return {}, Status.FAILURE

    def raises():
        raise KeyboardInterrupt

    iterations = {"first": lambda: ({}, Status.SUCCESS), "raises": raises} | {f"waits {at}": waits for at in range(5)}
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loops.run_iterations(iterations, num_at_once=lambda: 2, end_running=ended.set)
    assert time.monotonic() - started < 5 and len(begun) <= 2


def test_an_interrupt_while_the_calls_are_begun_ends_those_that_run(monkeypatch):
    has_ended = threading.Event()
    begin = loops.ThreadPoolExecutor.submit

    def interrupted(pool, call):
        begin(pool, call)
        raise KeyboardInterrupt

    monkeypatch.setattr(loops.ThreadPoolExecutor, "submit", interrupted)
    running = {name: lambda: ({}, Status.SUCCESS if has_ended.wait(20) else Status.FAILURE) for name in "ab"}
    with pytest.raises(KeyboardInterrupt):
        loops.side_by_side(running, 2, has_ended.set)
    assert has_ended.is_set()


def test_what_fits_is_what_the_memory_holds(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable:    10000000 kB\n")
    monkeypatch.setattr(loops, "MEMINFO", meminfo)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert loops.num_that_fit(8, peak=2 * 10**9) == 4  # of 10.24 GB, with room for a larger one
    assert loops.num_that_fit(2, peak=2 * 10**9) == 2
    assert loops.num_that_fit(8, peak=20 * 10**9) == 1
    assert loops.num_that_fit(8, peak=0) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert loops.num_that_fit(8, peak=1000) == 2
    monkeypatch.setattr(loops, "MEMINFO", tmp_path / "none")
    assert loops.num_that_fit(8, peak=1000) == 1
