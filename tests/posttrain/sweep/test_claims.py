"""Claims on trials: shared by workers, taken over from a lost one, and never of two workers while both live."""

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.sweep.claims import Claims

BEAT, LEASE = 0.05, 0.6
SLOTS = ["trial_1", "trial_2", "trial_3"]


@pytest.fixture
def worker(tmp_path):
    def worker(name: str, lease_seconds: float = LEASE) -> Claims:
        return Claims(str(tmp_path / "claims"), name, lease_seconds=lease_seconds, beat_seconds=BEAT)

    return worker


@pytest.fixture
def ended(monkeypatch) -> threading.Event:
    """Whether this process was asked to end."""
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    yield event
    signal.signal(signal.SIGTERM, before)


def work_off(claims: Claims) -> list[str]:
    slots = []
    for claim in claims.taken(SLOTS):
        with claims.renewed(claim):
            slots.append(claim.slot)
    return slots


def test_an_idle_worker_takes_over_from_one_that_is_lost(worker):
    lost = next(worker("lost").taken(SLOTS))  # and never renewed
    begun = time.monotonic()
    assert work_off(worker("idle")) == ["trial_2", "trial_3", "trial_1"]
    assert time.monotonic() - begun > LEASE
    assert worker("idle").newest(lost.slot).number == 2


def test_an_idle_worker_leaves_a_trial_to_one_that_lives_but_works_longer_than_the_lease(worker, ended):
    busy, idle = worker("busy"), worker("idle")
    claim = next(busy.taken(SLOTS))
    with busy.renewed(claim):
        assert work_off(idle) == ["trial_2", "trial_3"]
        time.sleep(LEASE)
        assert work_off(idle) == ["trial_2", "trial_3"]
    assert not ended.is_set()
    assert (idle.newest("trial_1").worker, idle.newest("trial_1").is_done) == ("busy", True)


def test_nobody_waits_for_trials_that_are_done(worker):
    work_off(worker("first"))
    begun = time.monotonic()
    assert work_off(worker("second")) == []
    assert time.monotonic() - begun < LEASE


def test_a_worker_that_starts_again_goes_on_with_its_own(worker):
    next(worker("first").taken(SLOTS))
    begun = time.monotonic()
    assert work_off(worker("first")) == SLOTS
    assert time.monotonic() - begun < LEASE


def test_one_of_two_idle_workers_takes_over(worker):
    next(worker("lost").taken(SLOTS))
    shares: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda name=name: shares.update({name: work_off(worker(name))})) for name in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shares["a"] + shares["b"]) == SLOTS


def test_a_worker_whose_trial_was_taken_over_ends(worker, ended):
    """It was stopped for longer than the lease, as when its machine was paused."""
    late = worker("late")
    claim = next(late.taken(SLOTS))
    work_off(worker("idle"))
    with late.renewed(claim):
        assert ended.wait(5)


def test_a_worker_that_cannot_renew_its_claim_ends_before_another_takes_it_over(worker, ended, monkeypatch):
    cut_off, begun = worker("cut off"), time.monotonic()
    claim = next(cut_off.taken(SLOTS))

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(storage, "write_bytes", fail)
    with pytest.raises(ConnectionError), cut_off.renewed(claim):
        assert ended.wait(5)
        assert time.monotonic() - begun < LEASE


def test_a_damaged_claim_lapses(worker, tmp_path):
    claims = Path(tmp_path, "claims")
    claims.mkdir()
    (claims / "trial_2.1.json").write_text("{")
    (claims / "trial_3.json").write_text(json.dumps({"worker": "of another version"}))
    assert work_off(worker("idle")) == ["trial_1", "trial_3", "trial_2"]
