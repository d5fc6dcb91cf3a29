"""The frame of every step: fingerprint, reuse, record.

The fingerprint covers the inputs' digests, the configuration and the code. A finished result with the same fingerprint
is reused instead of being computed again. Every attempt is recorded, also when its work raises.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain import storage
from posttrain.config import masking
from posttrain.config.line import loads_model
from posttrain.step import kfp_io, usage
from posttrain.step.code import code_of, fingerprint
from posttrain.step.digests import digest, file_digests, files_of, folder_digest
from posttrain.step.progress import Progress, beating
from posttrain.step.records import Status, StepRecord, replace_record, write_record
from posttrain.step.results import Result, keep, read_outputs, reuse
from posttrain.step.run import Unfinished, configure_logging, is_fresh, run_id
from posttrain.step.running import Running

Work = Callable[[Running], dict[str, Any]]


def run_step(
    args: argparse.Namespace,
    *,
    inputs: dict[str, str | None],
    outputs: dict[str, str],
    config: BaseModel,
    work: Work,
    reusable: bool = True,
) -> Result:
    """Runs `work`, or reuses its finished result, and records the attempt.

    Args:
        args: the parsed command line, with the flags of `kfp_io.parser`.
        inputs: input name -> local path, or None for an input that is absent.
        outputs: output name -> local path that `work` writes.
        config: the part of the configuration that decides the result; it goes into the fingerprint.
        work: writes the outputs and returns what it measured, by name.
        reusable: False if the step is run for a side effect (publish), or reads an address whose content may change.

    Raises:
        ValueError: the storage root is none of those that the configuration allows, or an input changed while the
            step was reading it.
        Exception: `work` raised it; it has been recorded.
    """
    configure_logging()
    check_storage_root(args)
    with _recorded(args, outputs=outputs, config=config) as attempt:
        stamps = _stamps(inputs)
        attempt.running = running = _running(args, inputs, attempt.config)
        attempt.write()
        for path in outputs.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        attempt.result = reuse(running, outputs) if reusable and not is_fresh() else None
        attempt.status = "reused" if attempt.result else "succeeded"
        if attempt.result is None:
            begun = time.monotonic()
            measured = work(running)
            attempt.work_seconds = time.monotonic() - begun
            _check_untouched(stamps, _stamps(inputs))
            is_judged = "passed" in measured  # people read a verdict, even one that no later run may take over
            if reusable or is_judged:
                attempt.result = keep(running, outputs, measured, reusable=reusable)
            else:
                attempt.result = read_outputs(running, outputs, measured)
    _emit(args, attempt.result)
    return attempt.result


def check_storage_root(args: argparse.Namespace) -> None:
    """Refuses a storage root whose records and results nobody vouches for, or that would take them elsewhere."""
    config = json.loads(args.config)
    if (roots := config.get("allowed_storage_roots")) is not None:
        storage.check_storage_root(args.storage_root, roots, name="storage_root")
    if (prefixes := config.get("allowed_prefixes")) is not None:
        storage.check_allowed(args.storage_root, prefixes, name="storage_root")


def _running(args: argparse.Namespace, inputs: dict[str, str | None], config: dict[str, Any]) -> Running:
    """Hashes the inputs and computes the fingerprint."""
    paths = {name: path for name, path in inputs.items() if path}
    files = {name: file_digests(path) for name, path in paths.items() if Path(path).is_dir()}
    digests = {name: folder_digest(files[name]) if name in files else digest(paths[name]) for name in paths}
    return Running(
        step=args.step,
        storage_root=args.storage_root,
        fingerprint=fingerprint(args.step, config=config, inputs=digests, code=code_of(args.module, config=config)),
        inputs=digests,
        files=files,
    )


def _stamps(inputs: dict[str, str | None]) -> dict[Path, tuple[int, ...]]:
    """Returns a stamp per input file that changes when somebody writes to it."""
    paths = [Path(path) for path in inputs.values() if path]
    files = [file for path in paths for file in (files_of(path) if path.is_dir() else [path])]
    stats = {file: file.stat() for file in files}
    return {file: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats.items()}


def _check_untouched(before: dict[Path, tuple[int, ...]], after: dict[Path, tuple[int, ...]]) -> None:
    """Raises ValueError if an input was written to while `work` read it: its digest would be of other bytes."""
    changed = sorted({file for file, _ in before.items() ^ after.items()})
    if changed:
        raise ValueError(
            f"{changed[0]}: changed while the step was reading it; stop whatever writes there, and run it again"
        )


@dataclass
class Attempt:
    """One attempt of a step while it runs."""

    args: argparse.Namespace
    config: dict[str, Any]  # the part that decides the result
    status: Status = "running"
    running: Running | None = None  # None until the inputs have been read
    result: Result | None = None
    verdict: dict[str, Any] | None = None
    error: str | None = None
    work_seconds: float = 0.0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    cpu_clock: float = field(default_factory=lambda: usage.cpu_seconds_of(*usage.here()))
    number: int | None = None  # in the run record
    progress: Progress | None = None

    def note(self, progress: Progress | None) -> None:
        self.progress = progress

    def renew(self) -> None:
        """Writes that the attempt still runs, if its record is begun."""
        if self.number is not None:
            self.write("running")

    def write(self, status: Status | None = None) -> None:
        """Writes the record of the attempt, or overwrites it; `status` instead of its own."""
        record = StepRecord(
            step=self.args.step,
            attempt=self.number or 1,
            run_id=run_id(),
            status=status or self.status,
            started_at=self.started.isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - self.clock, 3),
            work_seconds=round(self.work_seconds, 3),
            cpu_seconds=round(usage.cpu_seconds_of(*usage.here()) - self.cpu_clock, 3),
            peak_memory=usage.peak_memory_of(*usage.here()),
            num_gpus=usage.num_gpus() if loads_model(self.args.step) else 0,
            fingerprint=self.running.fingerprint if self.running else "",
            code=code_of(self.args.module, config=self.config),
            config=self.config,
            inputs=self.running.inputs if self.running else {},
            outputs=self.result.outputs if self.result else {},
            measured=self.result.measured if self.result else {},
            kept=self.result.kept if self.result else "",
            verdict=self.verdict,
            error=self.error,
            progress=self.progress,
        )
        if self.number is None:
            self.number = write_record(self.args.storage_root, record).attempt
        else:
            replace_record(self.args.storage_root, record)


@contextmanager
def _recorded(args: argparse.Namespace, *, outputs: dict[str, str], config: BaseModel) -> Iterator[Attempt]:
    """Records the attempt, however it ends. If the process is killed, the last record stays as it is: `running`."""
    attempt = Attempt(args, config.model_dump(mode="json"))
    try:
        with beating(attempt.note, attempt.renew):
            yield attempt
        attempt.verdict = _verdict(outputs)
    except BaseException as caught:
        attempt.result = None
        attempt.status = "unfinished" if isinstance(caught, Unfinished) else "failed"
        attempt.error = str(caught) if isinstance(caught, Unfinished) else f"{type(caught).__name__}: {caught}"
        attempt.error = masking.mask(attempt.error)
        raise
    finally:
        attempt.write()


def _verdict(outputs: dict[str, str]) -> dict[str, Any] | None:
    path = outputs.get("verdict")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path and Path(path).is_file() else None


def _emit(args: argparse.Namespace, result: Result) -> None:
    """Reports to Kubeflow: digest of each output artifact, metrics, confusion matrix, and whether a gate passed."""
    metadata_ = {name: {"sha256": sha256} for name, sha256 in result.outputs.items()}
    metadata_["metrics"] = result.measured
    if "confusion" in metadata_:
        confusion = json.loads(Path(args.confusion).read_text(encoding="utf-8"))
        metadata_["confusion"] |= kfp_io.confusion_matrix(confusion["categories"], confusion["matrix"])
    outputs = json.loads(args.executor_input).get("outputs", {}).get("parameters", {})
    kfp_io.write_outputs(
        args.executor_input, parameters={name: result.measured[name] for name in outputs}, metadata=metadata_
    )
