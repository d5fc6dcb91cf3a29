"""Runs a step in its container, and runs it again if the failure is one that another attempt can cure.

module and command line of a step, POSTTRAIN_ATTEMPTS -> `python -m <module> ...` as a child, up to so many times

A stage whose time was up, memory that ran out, a process that crashed, storage that was away: the next attempt starts
here, in the same container, with its inputs in place. Whether a cluster would start the pod again depends on how it was
installed, so it is left to the cluster only where the whole container ends. Bad input, a divergence and a gate's no end
the step at once, and so do SIGTERM and SIGHUP, which reach the child as SIGTERM.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.config import ATTEMPTS_ENV, EXIT_AGAIN, HALVINGS_ENV, STARTED_ENV, Attempts
from posttrain.step import become, kfp_io
from posttrain.step.parent import die_with_parent
from posttrain.step.run import configure_logging, is_fresh, run_id

UNAVAILABLE, NO_MEMORY = 69, 71  # exit codes of a child, EX_UNAVAILABLE and EX_OSERR of sysexits.h; see `exit_code_of`
MENDABLE = (EXIT_AGAIN, UNAVAILABLE, NO_MEMORY)
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory")
FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError, RecursionError)
GRACE_SECONDS = 120.0  # from SIGTERM to SIGKILL when the time of an attempt is up: a training saves a checkpoint
SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup does
    SIGNALS |= {signal.SIGHUP}  # a terminal was closed
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")  # of this container, where the kernel counts what it has killed
POD_ENV = "KFP_POD_NAME"  # set in every pod by Kubeflow

logger = logging.getLogger("posttrain.step.attempts")  # this module runs as `__main__`


@dataclass(frozen=True)
class Ended:
    """The end of one attempt."""

    exit_code: int  # minus the number of the signal that ended it
    got_signal: bool = False  # somebody asked the step to end
    is_late: bool = False  # its time was up

    @property
    def is_mendable(self) -> bool:
        return not self.got_signal and (self.is_late or self.exit_code < 0 or self.exit_code in MENDABLE)

    def cause(self, limits: Attempts) -> str | None:
        """Returns why it ended, if it could not say so itself."""
        if self.is_late:
            return f"ended when its time was up, after {limits.seconds / 60:.3g} min (timeout_minutes)"
        if self.exit_code >= 0:
            return None
        memory = " (out of memory?)" if self.exit_code == -signal.SIGKILL else ""
        return f"ended by {signal.Signals(-self.exit_code).name}{memory}"


@dataclass(frozen=True)
class Account:
    """The attempts so far, as the run record has them; zeros and an empty text if it cannot be read."""

    num_attempts: int = 0  # in this run, also in earlier containers
    stored_step: int | None = None  # of the checkpoint from which a training resumes
    error: str = ""  # of the last attempt


@dataclass
class Series:
    """The attempts of one step in this container."""

    argv: list[str]
    limits: Attempts
    num_here: int = 0
    num_earlier: int = 0  # in containers of this step that were lost
    num_halvings: int = 0  # of the batch, because memory ran out

    @property
    def number(self) -> int:
        return self.num_here + self.num_earlier

    @property
    def flags(self) -> dict[str, str]:
        return dict(zip(self.argv[1::2], self.argv[2::2], strict=False))

    def attempt(self, started: float) -> tuple[Ended, Account]:
        """Makes one attempt, whose clock began at `started`."""
        self.num_here, num_killed = self.num_here + 1, num_killed_for_memory()
        environment = {STARTED_ENV: str(started), HALVINGS_ENV: str(self.num_halvings)}
        ended = wait_for(start(self.argv, environment), self.limits.seconds)
        cause = ended.cause(self.limits)
        if ended.exit_code == 0 or ended.got_signal:  # whoever has sent the signal knows why, and does not wait
            return ended, Account(error=cause or "")
        account = in_fork(account_of, self.flags, cause)
        self.num_earlier = max(self.num_earlier, account.num_attempts - self.num_here)
        self.num_halvings += ended.exit_code == NO_MEMORY or num_killed_for_memory() > num_killed
        return ended, replace(account, error=account.error or cause or "see above")

    def goes_on_after(self, ended: Ended) -> bool:
        """Tells whether there is another attempt, and waits until it is due."""
        if not ended.is_mendable or self.number >= self.limits.number:
            return False
        is_away = ended.exit_code == UNAVAILABLE
        return pause(self.limits.wait_seconds * 2 ** (self.num_here - 1) if is_away else 0)


def run(argv: list[str], limits: Attempts) -> int:
    """Runs `python -m <argv>` until it succeeds or another attempt would not help, and returns the exit code."""
    series, started = Series(argv, limits), container_start()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are waited for
    while True:
        ended, account = series.attempt(started)
        if ended.exit_code == 0:
            return 0
        if not series.goes_on_after(ended):
            return give_up(ended, series.number, account.error)
        tell(series, account)
        kfp_io.remove_outputs(series.flags.get("--executor-input", "{}"))
        started = time.monotonic()


def start(argv: list[str], environment: dict[str, str]) -> int:
    """Starts `python -m <argv>` in a process group of its own, which ends with this process; returns its pid."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)  # a signal for the group of the parent does not reach it twice
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    die_with_parent(parent)
    os.environ |= environment
    become.run(argv, exit_code_of=exit_code_of)
    raise AssertionError("become.run ends the process")


def exit_code_of(error: BaseException) -> int:
    """Tells by the exit code whether another attempt may end better than with this error, and what it needs."""
    if any(words in f"{type(error).__name__}: {error}" for words in OUT_OF_MEMORY):
        return NO_MEMORY
    is_known = any(kind.__name__ == "Diverged" for kind in type(error).__mro__) or isinstance(error, FINAL)
    return UNAVAILABLE if isinstance(error, OSError | RuntimeError | EOFError) and not is_known else 1


def wait_for(pid: int, seconds: float) -> Ended:
    """Waits for a child, passes signals on to it, and ends it when its time is up; then ends what it has started."""
    deadline, got_signal, is_late = time.monotonic() + (seconds or float("inf")), False, False
    while not (status := os.waitpid(pid, os.WNOHANG))[0]:
        arrived = _next_signal(deadline)
        if arrived is None:
            os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
            is_late, deadline = True, time.monotonic() + GRACE_SECONDS
        elif arrived != signal.SIGCHLD:
            got_signal = True
            os.kill(pid, signal.SIGTERM)
    with suppress(ProcessLookupError, PermissionError):  # it has left nothing behind
        os.killpg(pid, signal.SIGKILL)
    return Ended(os.waitstatus_to_exitcode(status[1]), got_signal, is_late)


def _next_signal(deadline: float) -> int | None:
    """Waits for a signal; returns None at the deadline."""
    if deadline == float("inf"):
        return signal.sigwait(SIGNALS)
    info = signal.sigtimedwait(SIGNALS, max(0.0, deadline - time.monotonic()))
    return info and info.si_signo


def pause(seconds: float) -> bool:
    """Waits before another attempt; returns False if this process is to end meanwhile."""
    return signal.sigtimedwait(SIGNALS - {signal.SIGCHLD}, seconds) is None


def in_fork(look: Callable[..., Account], *arguments) -> Account:
    """Calls `look` in a child: a client of the storage has threads, and could not be forked with the next attempt."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(reader)
        code = 1
        try:
            os.write(writer, json.dumps(look(*arguments).__dict__).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return Account(**json.loads(text)) if text else Account()


def account_of(flags: dict[str, str], cause: str | None) -> Account:
    """Reads the record of the step. If its last attempt was killed, writes the `cause` into it."""
    from datetime import UTC, datetime

    from posttrain.step.records import read_records, replace_record
    from posttrain.train.checkpoints import Checkpoints

    step, root = flags["--step"], flags["--storage-root"]
    records = sorted(read_records(root, run_id(), of={step}), key=lambda record: record.attempt)
    if not records:
        return Account()
    last = records[-1]
    if cause and last.status == "running":
        seconds = (datetime.now(UTC) - datetime.fromisoformat(last.started_at)).total_seconds()
        last = last.model_copy(update={"status": "failed", "error": cause, "seconds": round(seconds, 3)})
        replace_record(root, last)
    checkpoints = Checkpoints(root, step, last.fingerprint, run_id=run_id(), limit=1)
    stored_step = checkpoints.newest_step() if last.fingerprint and not is_fresh() else None
    return Account(last.attempt, stored_step, last.error or "")


def tell(series: Series, account: Account) -> None:
    """Logs that another attempt starts: where, how and why."""
    configure_logging()
    place = f", from step {account.stored_step}" if account.stored_step else ""
    halved = series.num_halvings
    batch = f", with the batch size halved {halved} time{'s' if halved > 1 else ''}" if halved else ""
    logger.warning("attempt %d of %d%s%s: %s", series.number + 1, series.limits.number, place, batch, account.error)


def give_up(ended: Ended, number: int, cause: str) -> int:
    """Says why there is no further attempt, unless the child has, and returns the exit code."""
    if ended.is_mendable and number > 1:
        print(f"{number} attempts failed; the last one: {cause}", file=sys.stderr)
    elif ended.is_late or ended.exit_code < 0:
        print(cause, file=sys.stderr)
    return EXIT_AGAIN if ended.exit_code == EXIT_AGAIN else 1


def num_killed_for_memory() -> int:
    """Returns how many processes of this container the kernel has killed because its memory was used up."""
    with suppress(OSError):
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text(encoding="ascii").splitlines())
        return int(counts.get("oom_kill", 0))
    return 0


def container_start(process: Path = Path("/proc/1/stat")) -> float:
    """Returns when this container started, by `time.monotonic()`; outside of a pod, now.

    The limit of a pod counts from its start, while its inputs are downloaded: so must the clock of a stage.
    """
    if POD_ENV not in os.environ:
        return time.monotonic()
    ticks = int(process.read_text(encoding="utf-8").rpartition(")")[2].split()[19])  # since boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    limits = os.environ.pop(ATTEMPTS_ENV, "")
    if not limits:
        become.run(argv)
    sys.exit(run(argv, Attempts.parse(limits)))


if __name__ == "__main__":
    main()
