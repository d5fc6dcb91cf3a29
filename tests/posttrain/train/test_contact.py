import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.train import contact
from posttrain.train.contact import Contact
from posttrain.train.order import PROGRESS, Order


@pytest.fixture
def order(tmp_path) -> Order:
    fields = {"run_id": "run-1", "step": "train_sft", "attempt": 1, "fingerprint": "f" * 64, "inputs": {}, "config": {}}
    fields |= {"num_nodes": 2, "num_processes_per_node": 2, "limit_seconds": 60, "lapse_seconds": 0.1}
    return Order(storage_root=str(tmp_path), **fields)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_the_lease_is_read_beside_the_training(order, monkeypatch):
    answers, is_read = [False, False, True], []

    def read(lease) -> bool:
        is_read.append(lease.order)
        return answers[min(len(is_read), len(answers)) - 1]

    monkeypatch.setattr(contact.LeaseReader, "has_lapsed", read)
    kept = Contact(order)
    with kept.kept("joined"):
        wait_for(kept.has_lapsed)
    assert len(is_read) >= 3 and is_read[0] == order


def test_the_newest_line_of_progress_is_written_and_no_other(order, monkeypatch):
    monkeypatch.setattr(contact, "PROGRESS_SECONDS", 0.01)
    progress, logger = Path(order.uri(PROGRESS)), logging.getLogger("posttrain")
    logging.root.setLevel(logging.INFO)
    with Contact(order).kept("joined: 4 ranks on 2 nodes"):
        assert progress.read_text() == "joined: 4 ranks on 2 nodes\n"
        logger.info("resuming from checkpoint gs://bucket/checkpoints/train_sft/f/step-00000002/run-1-01234567")
        wait_for(lambda: progress.read_text().startswith("resuming from checkpoint"))
        logger.info("step %d/%d loss %.4f", 3, 4, 0.5)
        logger.info("adapters on all layers")
        wait_for(lambda: progress.read_text() == "step 3/4 loss 0.5000\n")
    assert not any(isinstance(handler, Contact) for handler in logging.root.handlers)


def test_a_storage_that_is_away_costs_the_training_nothing(order, monkeypatch, caplog):
    def away(*_) -> None:
        raise OSError("gs://bucket: ServiceUnavailable")

    monkeypatch.setattr(storage, "write_bytes", away)
    with Contact(order).kept("joined"):
        assert not Contact(order).has_lapsed()
    assert "the progress could not be written: gs://bucket: ServiceUnavailable" in caplog.text
