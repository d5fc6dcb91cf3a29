"""Messages between the launch step of a training on several nodes and its workers, as files in the storage.

`runs/<run id>/nodes/<step>/<attempt>/` has, of one attempt:

    order.json       what is to be trained: an `Order`; its address and SHA-256 are the workers' command line
    lease.json       rewritten by the launch step every `RENEW_SECONDS`, each time with other content
    progress.txt     the newest progress line of the first rank's log, such as `step 12/40 loss 0.52`
    outputs/<name>   what the stage gives, from the first rank: adapter, metrics, curve, logs
    ending.json      how the attempt ended: an `Ending`; written last, once, by whichever rank is first to end it

Workers have no launcher of Kubeflow: they bring what they read from these addresses, and check it.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain import storage
from posttrain.storage import layout

ORDER, LEASE, PROGRESS, ENDING, OUTPUTS = "order.json", "lease.json", "progress.txt", "ending.json", "outputs"
RENEW_SECONDS = 60.0
LAPSE_SECONDS = 600.0  # a lease that has not changed for so long, by the clock of who reads it, has lapsed

# unfinished: saved and left in time. bad_input: a ValueError, which would be the same again. failed: anything else.
Outcome = Literal["finished", "unfinished", "diverged", "out_of_memory", "bad_input", "failed"]


T = TypeVar("T", bound=BaseModel)


class Kept(BaseModel):
    """A file or folder in the storage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    sha256: str  # as `posttrain.step.digests.digest` computes it of the local copy


class Order(BaseModel):
    """One attempt of a training, with all that its workers need to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    step: str  # name in the graph: train_sft or train_dpo; `posttrain.config.line` has its module and section
    attempt: int = Field(ge=1)  # in this run
    fingerprint: str  # names the checkpoints, in `storage_root`
    storage_root: str
    inputs: dict[str, Kept]  # by the flags of the stage: base or model, train, eval
    config: dict[str, Any]  # the settings of the step, the run's overrides among them
    num_nodes: int = Field(ge=1)
    num_processes_per_node: int = Field(ge=1)
    limit_seconds: float = Field(gt=0)  # from when all ranks have joined to when they save and leave
    lapse_seconds: float = Field(gt=0)  # of the lease
    num_halvings: int = Field(0, ge=0)  # of the micro-batch, because earlier attempts ran out of memory
    is_fresh: bool = False  # the run reuses nothing of earlier ones: it resumes from its own checkpoints only

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.num_processes_per_node

    @property
    def folder(self) -> str:
        return folder(self.storage_root, self.run_id, self.step, self.attempt)

    def uri(self, *names: str) -> str:
        """Returns the URI of one of the attempt's files."""
        return storage.join(self.folder, *names)


class Ending(BaseModel):
    """How an attempt ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    reason: str = ""  # the message of the error, for people
    rank: int = 0  # that ended it
    num_ranks: int
    num_nodes: int
    outputs: dict[str, str] = {}  # of a finished one: name -> SHA-256
    measured: dict[str, Any] = {}  # of a finished one: the stage's metrics


def folder(storage_root: str, run_id: str, step: str, attempt: int) -> str:
    """Returns the URI of the folder of an attempt."""
    return layout.runs(storage_root, run_id, "nodes", step, str(attempt))


def write_order(order: Order) -> Kept:
    """Writes an order, and returns what its workers are called with."""
    data = order.model_dump_json(indent=2).encode()
    storage.write_bytes(order.uri(ORDER), data)
    return Kept(uri=order.uri(ORDER), sha256=hashlib.sha256(data).hexdigest())


def read_order(uri: str, sha256: str) -> Order:
    """Reads an order.

    Raises:
        ValueError: it is not the one that the launch step has written.
    """
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{uri}: is not the order that this worker was started for; find out who changed it")
    return _parse(uri, data, Order)


def read_orders(folder: str) -> list[Order]:
    """Reads the orders of all attempts of a training, from the folder that has theirs; the newest last.

    Raises:
        ValueError: one is damaged.
    """
    parts = [name.split("/") for name in storage.list_files(folder)]
    numbers = sorted(int(part[0]) for part in parts if len(part) == 2 and part[1] == ORDER and part[0].isdecimal())
    uris = [storage.join(folder, str(number), ORDER) for number in numbers]
    return [_parse(uri, storage.read_bytes(uri), Order) for uri in uris]


def write_ending(order: Order, ending: Ending) -> bool:
    """Writes how the attempt ended, and returns whether this was the first to say so; later ones do not count."""
    try:
        storage.write_bytes(order.uri(ENDING), ending.model_dump_json(indent=2).encode(), if_absent=True)
    except FileExistsError:
        return False
    return True


def read_ending(order: Order) -> Ending | None:
    """Returns how the attempt ended; None as long as no rank has said so.

    Raises:
        ValueError: what says so is damaged.
    """
    uri = order.uri(ENDING)
    try:
        return _parse(uri, storage.read_bytes(uri), Ending)
    except FileNotFoundError:
        return None


def _parse(uri: str, data: bytes, kind: type[T]) -> T:
    """Parses a message; an error names its file, and how to go on."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = " ".join(str(error).split()) if data else "it is empty"
        what = "the order of an attempt" if kind is Order else "how an attempt ended"
        raise ValueError(f"{uri}: is damaged and does not say {what}: {problem}; remove it and run again") from None


class LeaseReader:
    """Tells whether anybody still wants the result of an attempt.

    No clocks of two machines are compared: the lease lapses when its content has been the same for long enough. While
    the storage is away nobody can renew it, so that time does not count, up to the time of a lease. However long the
    storage is away, and however often, nobody's workers leave after twice that time.
    """

    def __init__(self, order: Order, *, clock: Callable[[], float]):
        self.order, self.clock = order, clock
        self._changed_at = self._read_at = clock()
        self._away_seconds, self._was_away = 0.0, False  # since the change
        self._content = b""

    def has_lapsed(self) -> bool:
        """Reads the lease, and returns whether it has lapsed."""
        content, now = self._read(), self.clock()
        if content is not None and content != self._content:
            self._content, self._changed_at, self._away_seconds = content, now, 0.0
        elif content is None or self._was_away:
            self._away_seconds += now - self._read_at
        self._was_away, self._read_at = content is None, now
        limit = self.order.lapse_seconds
        return now - self._changed_at - min(self._away_seconds, limit) >= limit

    def _read(self) -> bytes | None:
        """Returns the content of the lease, which is empty if it was never written; None while it cannot be read."""
        try:
            return storage.read_bytes(self.order.uri(LEASE))
        except FileNotFoundError:
            return b""
        except OSError:
            return None
