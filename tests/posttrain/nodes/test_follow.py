"""A TrainJob is followed to its end, or deleted; here against an API and a clock that a test holds in its hands."""

import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from posttrain.nodes import follow
from posttrain.nodes.follow import Stopped
from posttrain.train.order import LEASE, PROGRESS, Ending, Order, write_ending

NAME = "train-sft-1"


def job(*conditions: str, **words: str) -> dict[str, Any]:
    """A TrainJob with these conditions."""
    return {"status": {"conditions": [{"type": name, "status": "True", **words} for name in conditions]}}


@dataclass
class Api:
    """Answers each look with the next of `looks`, and with the last of them for ever. Waits take no time."""

    looks: list[Any]
    now: float = 100.0
    num_looks: int = 0
    calls: list[str] = field(default_factory=list)
    at_delete: Any = None  # is called
    at_wait: Any = None

    def get(self, name: str) -> dict | None:
        self.num_looks += 1
        assert name == NAME and self.num_looks < 50, "it looks for ever"
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def pods_of(self, name: str) -> list[dict]:
        return []

    def wait_for_change(self, job: dict, *, seconds: int) -> None:
        self.calls.append(f"wait {seconds}")
        self.now += seconds
        if self.at_wait:
            self.at_wait()

    def delete(self, name: str, *, seconds: float = 30.0) -> None:
        self.calls.append(f"delete {name} {seconds:g}")
        if self.at_delete:
            self.at_delete()

    def sleep(self, seconds: float) -> None:
        self.calls.append(f"sleep {seconds:g}")
        self.now += seconds


@pytest.fixture
def api(monkeypatch) -> Api:
    api = Api([job()])
    monkeypatch.setattr(follow.time, "monotonic", lambda: api.now)
    monkeypatch.setattr(follow.time, "sleep", api.sleep)
    return api


@pytest.fixture
def order(tmp_path) -> Order:
    return Order(
        run_id="run-1", step="train_sft", attempt=1, fingerprint="f", storage_root=str(tmp_path), inputs={}, config={},
        num_nodes=2, num_processes_per_node=1, limit_seconds=60, lapse_seconds=600,
    )  # fmt: skip


def end(order: Order, outcome: str = "finished") -> Ending:
    ending = Ending(outcome=outcome, num_ranks=2, num_nodes=2)
    write_ending(order, ending)
    return ending


def test_the_ending_that_a_rank_has_left_is_returned_at_once(api, order):
    ending = end(order)
    assert follow.follow(api, NAME, order, start_seconds=60, limit_seconds=60) == ending
    assert api.calls == []


def test_what_is_new_is_logged_once(api, order, caplog):
    caplog.set_level("INFO")
    api.looks = [job("Suspended"), job("Suspended"), job(), job(), job("Complete")]

    def progress() -> None:
        follow.storage.write_bytes(order.uri(PROGRESS), b"step 1/9\n")
        if "".join(api.calls) == "wait 15" * 4:
            end(order)

    api.at_wait = progress
    assert follow.follow(api, NAME, order, start_seconds=600, limit_seconds=600).outcome == "finished"
    waits, admitted = f"TrainJob {NAME} waits in its queue", f"TrainJob {NAME} is admitted, or needs no queue"
    assert [record.getMessage() for record in caplog.records] == [waits, "step 1/9", admitted]


def test_an_ending_that_came_between_two_looks_counts(api, order):
    """The pods are gone, and the rank had said how it ended."""
    api.looks = [job("Complete")]
    get, api.get = api.get, lambda name: (end(order), get(name))[1]
    assert follow.follow(api, NAME, order, start_seconds=60, limit_seconds=60).outcome == "finished"


def test_after_its_time_the_train_job_is_deleted(api, order):
    with pytest.raises(TimeoutError, match=f"TrainJob {NAME}: its processes had not met after 0.5 min"):
        follow.follow(api, NAME, order, start_seconds=30, limit_seconds=30)
    assert api.calls == ["wait 15", "wait 15", f"delete {NAME} 30"]


def test_an_api_that_is_away_is_asked_again_until_the_time_is_up(api, order, caplog):
    api.looks = [OSError("away:\nfor long")]
    with pytest.raises(TimeoutError):
        follow.follow(api, NAME, order, start_seconds=20, limit_seconds=20)
    assert api.calls == ["sleep 15", "sleep 5", f"delete {NAME} 30"]
    assert f"TrainJob {NAME} goes on, but cannot be looked at: away: for long" in caplog.text


def test_a_watch_that_breaks_is_begun_again(api, order):
    def broken() -> None:
        end(order)
        raise OSError("reset")

    api.at_wait = broken
    assert follow.follow(api, NAME, order, start_seconds=60, limit_seconds=60).outcome == "finished"


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (None, RuntimeError, "somebody has deleted it"),
        (job("Complete"), RuntimeError, "ended; a worker died without an error"),
        (job("Failed", reason="JobsFailed", message="pods failed"), RuntimeError, "pods failed; a worker died"),
        (job("Failed", reason="DeadlineExceeded", message="late"), TimeoutError, "late; its workers were ended before"),
    ],
)
def test_an_attempt_that_left_no_word_is_an_error(api, order, last, error, words):
    api.looks = [last]
    with pytest.raises(error, match=f"TrainJob {NAME}: {words}"):
        follow.follow(api, NAME, order, start_seconds=60, limit_seconds=60)


def test_a_train_job_that_ends_is_waited_for_and_left_alone(api):
    api.looks = [job(), job(), job("Failed")]
    follow.wait_until_ended(api, NAME, patience_seconds=60)
    assert api.calls == ["sleep 1", "sleep 1"]


def test_one_that_does_not_end_is_deleted_once_and_waited_for_again(api):
    with pytest.raises(TimeoutError, match="was deleted, but its pods do not end; look at their nodes"):
        follow.wait_until_ended(api, NAME, patience_seconds=16)
    assert api.calls == [*["sleep 1"] * 16, f"delete {NAME} 30", *["sleep 1"] * 16]


def test_at_a_signal_the_train_job_is_deleted_and_another_signal_changes_nothing(api, caplog):
    handlers = [signal.getsignal(number) for number in follow.SIGNALS]
    api.at_delete = lambda: [signal.raise_signal(number) for number in follow.SIGNALS]
    with pytest.raises(Stopped, match=f"TrainJob {NAME} is deleted"), follow.deleting_when_stopped(api, NAME):
        signal.raise_signal(signal.SIGTERM)
    assert api.calls == [f"delete {NAME} 1.5"]
    assert "stopped on SIGTERM" in caplog.text
    assert [signal.getsignal(number) for number in follow.SIGNALS] == handlers


@pytest.mark.parametrize("error", [OSError("away"), ValueError("refused")])
def test_a_train_job_that_cannot_be_deleted_ends_the_step_all_the_same(api, error):
    def refuse() -> None:
        raise error

    api.at_delete = refuse
    with pytest.raises(Stopped), follow.deleting_when_stopped(api, NAME):
        signal.raise_signal(signal.SIGINT)


def test_a_block_without_a_signal_deletes_nothing(api):
    handlers = [signal.getsignal(number) for number in follow.SIGNALS]
    with follow.deleting_when_stopped(api, NAME):
        assert signal.getsignal(signal.SIGTERM) not in handlers
    assert api.calls == [] and [signal.getsignal(number) for number in follow.SIGNALS] == handlers


def test_a_signal_waits_until_the_block_has_ended():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("stopped"))
    with follow.signals_blocked():
        signal.raise_signal(signal.SIGTERM)
        seen.append("created")
    assert seen == ["created", "stopped"]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_lease_is_there_at_once_and_another_whenever_it_is_renewed(order, monkeypatch, caplog):
    """One renewal that fails costs only itself."""
    contents, renewals = [], iter([False, False, True])

    def write(uri: str, content: bytes) -> None:
        assert uri == order.uri(LEASE)
        contents.append(content)
        if len(contents) == 2:
            raise OSError("away")

    @follow.contextmanager
    def beside(keep, *, name: str):
        class Over:
            def wait(self, seconds: float) -> bool:
                assert seconds == follow.RENEW_SECONDS
                return next(renewals)

        keep(Over())
        yield

    monkeypatch.setattr(follow.storage, "write_bytes", write)
    monkeypatch.setattr(follow, "beside", beside)
    with follow.keeping_lease(order):
        assert len(set(contents)) == 3
    assert "the lease of the workers could not be renewed: away" in caplog.text
