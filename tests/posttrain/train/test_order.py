"""Tests what a launch step and its workers read of each other."""

from collections.abc import Callable

import pytest

from posttrain import storage
from posttrain.train.order import (
    LEASE,
    Ending,
    LeaseReader,
    Order,
    folder,
    read_ending,
    read_order,
    read_orders,
    write_ending,
    write_order,
)


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


@pytest.mark.parametrize(("content", "problem"), [(b"", "it is empty"), (b"{}", "1 validation error.*|[0-9]+ .*")])
def test_a_damaged_message_is_named_with_its_remedy(order, content, problem):
    """Every later attempt of the run reads it."""
    of_training = folder(order.storage_root, order.run_id, order.step, 1).rpartition("/")[0]
    write_order(order)
    second = order.model_copy(update={"attempt": 2})
    storage.write_bytes(second.uri("order.json"), content)
    storage.write_bytes(second.uri("ending.json"), content)
    for file, read in (("order", lambda: read_orders(of_training)), ("ending", lambda: read_ending(second))):
        with pytest.raises(ValueError, match=f"2/{file}.json: is damaged and .*: ({problem}); remove it and run again"):
            read()


def test_orders_are_read_in_their_order_and_strange_files_left_out(order):
    later = [order.model_copy(update={"attempt": number}) for number in (10, 2)]
    for one in (order, *later):
        write_order(one)
    of_training = order.folder.rpartition("/")[0]
    storage.write_bytes(storage.join(of_training, "old", "order.json"), b"")
    assert [one.attempt for one in read_orders(of_training)] == [1, 2, 10]


class Reader:
    """A reader of a lease of ten minutes that reads it every minute, until it has lapsed."""

    def __init__(self, order: Order, monkeypatch):
        self.order, self.minute, self.patch = order, 0, monkeypatch
        self.lease = LeaseReader(order, clock=lambda: self.minute * 60.0)

    def has_lapsed(self, *, minutes: int, is_away: Callable[[int], bool] = lambda minute: False) -> bool:
        """Reads it for some minutes, in some of which the storage may be away."""
        for _ in range(minutes):
            self.minute += 1
            with self.patch.context() as patch:
                if is_away(self.minute):
                    patch.setattr(storage, "read_bytes", lambda _: raise_away())
                if self.lease.has_lapsed():
                    return True
        return False

    def renew(self) -> None:
        storage.write_bytes(self.order.uri(LEASE), str(self.minute).encode())


def raise_away() -> None:
    raise ConnectionError("away")


@pytest.fixture
def reader(order, monkeypatch) -> Reader:
    reader = Reader(order, monkeypatch)
    reader.renew()
    assert not reader.has_lapsed(minutes=1)
    return reader


def test_a_lease_lapses_when_nobody_renews_it(reader):
    assert not reader.has_lapsed(minutes=9)
    reader.renew()
    assert not reader.has_lapsed(minutes=10)
    assert reader.has_lapsed(minutes=1)


@pytest.mark.parametrize("minutes", [1, 5, 9])
def test_an_outage_of_the_storage_shorter_than_the_lease_lapses_none_that_is_renewed_after_it(reader, minutes):
    assert not reader.has_lapsed(minutes=1)  # the one that holds it could renew it last a minute ago
    assert not reader.has_lapsed(minutes=minutes, is_away=lambda minute: True)
    assert not reader.has_lapsed(minutes=6)  # the writer's requests, in which it still waits for the storage
    reader.renew()
    assert not reader.has_lapsed(minutes=10)


@pytest.mark.parametrize(
    "is_away",
    [lambda minute: True, lambda minute: minute % 2 == 0, lambda minute: minute % 10 != 0],
    ids=["away", "every other minute", "for nine of ten minutes"],
)
def test_no_outage_keeps_workers_for_more_than_twice_the_lease(reader, is_away):
    assert not reader.has_lapsed(minutes=18, is_away=is_away)
    assert reader.has_lapsed(minutes=2, is_away=is_away)


def test_a_lease_that_was_never_written_lapses_too(order):
    times = iter((0, 599, 600))
    lease = LeaseReader(order, clock=lambda: next(times))
    assert [lease.has_lapsed(), lease.has_lapsed()] == [False, True]
