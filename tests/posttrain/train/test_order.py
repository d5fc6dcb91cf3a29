"""Tests what a launch step and its workers read of each other."""

from types import SimpleNamespace

import pytest

from posttrain import storage
from posttrain.train.order import LEASE, Ending, LeaseReader, Order, read_ending, read_order, write_ending, write_order


@pytest.fixture
def order(tmp_path) -> Order:
    return Order(
        run_id="run-1", step="train_sft", attempt=1, fingerprint="f", storage_root=str(tmp_path), inputs={}, config={},
        num_nodes=2, num_processes_per_node=4, limit_seconds=60, lapse_seconds=600,
    )  # fmt: skip


def test_an_order_is_read_only_as_it_was_written(order):
    written = write_order(order)
    assert read_order(written.uri, written.sha256) == order and order.num_ranks == 8
    storage.write_bytes(written.uri, order.model_copy(update={"storage_root": "/elsewhere"}).model_dump_json().encode())
    with pytest.raises(ValueError, match="is not the order that this worker was started for"):
        read_order(written.uri, written.sha256)


def test_the_first_rank_that_ends_an_attempt_says_how(order):
    first = Ending(outcome="diverged", reason="loss nan", rank=3, num_ranks=8, num_nodes=2)
    assert read_ending(order) is None
    assert write_ending(order, first)
    assert not write_ending(order, first.model_copy(update={"outcome": "failed", "rank": 0}))
    assert read_ending(order) == first


def test_a_lease_lapses_when_nobody_renews_it_and_not_while_the_storage_is_away(order, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    lease, seen = LeaseReader(order, clock=lambda: clock.now), []
    storage.write_bytes(order.uri(LEASE), b"1")

    def read_at(now: float) -> None:
        clock.now = now
        seen.append(lease.has_lapsed())

    read_at(500)
    storage.write_bytes(order.uri(LEASE), b"2")
    read_at(1000)
    read_at(1599)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", lambda _: (_ for _ in ()).throw(ConnectionError("away")))
        read_at(1700)
    read_at(2200)
    read_at(2799)
    read_at(2800)
    assert seen == [False] * 6 + [True]


def test_a_lease_that_was_never_written_lapses_too(order):
    times = iter((0, 599, 600))
    lease = LeaseReader(order, clock=lambda: next(times))
    assert [lease.has_lapsed(), lease.has_lapsed()] == [False, True]
