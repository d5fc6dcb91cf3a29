"""The run record: what each step took, gave and measured, at `<storage_root>/runs/<run id>/<step>.<attempt>.json`.

`run_step` is the frame of every stage: digests of the inputs and the configuration make a fingerprint; a finished
result under the same fingerprint is emitted again instead of being made again; what happened is recorded, also when the
work raises.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from posttrain import kfp_io, masking, storage, usage
from posttrain.config import FRESH_ENV, RUN_ID_ENV
from posttrain.ends import Unfinished
from posttrain.stores import hashing
from posttrain.verdict import Verdict

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "unsloth")  # another release may train otherwise
RECORD = re.compile(r"(?P<step>[^/]+)\.\d+\.json")  # name of a record's file

logger = logging.getLogger(__name__)

Work = Callable[[], dict[str, Any]]
# running: of a step that was killed its record says so for ever. unfinished: it left to go on in the next attempt.
Status = Literal["running", "succeeded", "reused", "failed", "unfinished"]


class Code(BaseModel):
    """What ran: other source, or another release of a library that trains, may give another result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    posttrain: str  # release of this package
    source: str  # SHA-256 of `posttrain` and `validators`, templates included
    libraries: dict[str, str]  # name -> release; `absent` where it is not installed

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class StepRecord(BaseModel):
    """One attempt of one step, as written to the run record. Paths are left out: they mean nothing elsewhere."""

    step: str
    attempt: int
    run_id: str
    status: Status
    started_at: str  # UTC, ISO 8601
    seconds: float
    work_seconds: float = 0.0  # of these in the step's work itself: the rest went into digests, copies and records
    cpu_seconds: float = 0.0  # with those of all processes that it has started
    peak_memory: int = 0  # bytes, of the largest of its processes
    fingerprint: str
    code: Code | None = None
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> SHA-256
    outputs: dict[str, str]  # name -> SHA-256
    measured: dict[str, Any]
    kept: str = ""  # where the outputs are kept, below the storage root
    verdict: dict[str, Any] | None = None
    error: str | None = None


class Result(BaseModel):
    """A finished step: the digests of what it gave, what it measured, and where that is kept."""

    outputs: dict[str, str]
    measured: dict[str, Any]
    kept: str = ""  # folder below the storage root; each attempt has its own, so two runs never mix files


def run_step(
    args: argparse.Namespace,
    *,
    inputs: dict[str, str | None],
    outputs: dict[str, str],
    config: BaseModel,
    work: Work,
    reusable: bool = True,
) -> Result:
    """Runs `work`, or emits its finished result again, and records what happened.

    Args:
        args: the parsed command line, with the flags of `kfp_io.parser`. Here `work` finds `inputs` and `fingerprint`,
            the digests of the inputs and that of all that the result depends on, and `files`, those of an input's
            files; it may leave in `written` the digest of an output that it computed while writing.
        inputs: input name -> local path; a None is left out.
        outputs: output name -> local path that `work` writes.
        config: what of the configuration changes the result; it is part of the fingerprint.
        work: does the thing and returns what it measured, by name.
        reusable: off where a side effect is the point (publish) or an input is an address whose content may change.

    Raises:
        ValueError: the storage root lies outside the prefixes that the configuration allows; an input changed while
            the step worked on it.
        whatever `work` raises, after it has been recorded.
    """
    configure_logging()
    prefixes = json.loads(args.config).get("allowed_prefixes")
    if (
        prefixes is not None
    ):  # a run may choose its storage root, but not send records, checkpoints and models elsewhere
        storage.check_allowed(args.storage_root, prefixes, name="storage_root")
    with _recorded(args, outputs=outputs, config=config) as attempt:
        stamps = _stamps(inputs)
        attempt.inputs = _read_inputs(args, inputs)
        attempt.fingerprint = fingerprint(args.step, config=config, inputs=attempt.inputs)
        args.inputs, args.fingerprint, args.written = attempt.inputs, attempt.fingerprint, {}
        attempt.write()
        for path in outputs.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        attempt.result = _reuse(args, attempt.fingerprint, outputs) if reusable and not is_fresh() else None
        attempt.status = "reused" if attempt.result else "succeeded"
        if attempt.result is None:
            begun = time.monotonic()
            measured = work()
            attempt.work_seconds = time.monotonic() - begun
            _check_untouched(stamps, _stamps(inputs))
            attempt.result = (_keep if reusable else _read_outputs)(args, outputs, measured)
    _emit(args, attempt.result)
    return attempt.result


def _read_inputs(args: argparse.Namespace, inputs: dict[str, str | None]) -> dict[str, str]:
    """The digests of what this step takes, from the bytes that are here; in `args.files` those of a folder's files."""
    given = {name: path for name, path in inputs.items() if path}
    args.files = {name: file_digests(path) for name, path in given.items() if Path(path).is_dir()}
    return {name: folder_digest(args.files[name]) if name in args.files else digest(given[name]) for name in given}


def _stamps(inputs: dict[str, str | None]) -> dict[Path, tuple[int, ...]]:
    """What changes when somebody writes to a file of an input."""
    paths = [Path(path) for path in inputs.values() if path]
    files = [file for path in paths for file in (files_of(path) if path.is_dir() else [path])]
    found = {file: file.stat() for file in files}
    return {file: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in found.items()}


def _check_untouched(before: dict[Path, tuple[int, ...]], after: dict[Path, tuple[int, ...]]) -> None:
    """The digests of the inputs are those of what `work` read only if nobody wrote to them meanwhile."""
    changed = sorted({file for file, _ in before.items() ^ after.items()})
    if changed:
        raise ValueError(f"{changed[0]}: changed while the step worked on it; let nobody write there, and run it again")


def _read_outputs(args: argparse.Namespace, outputs: dict[str, str], measured: dict[str, Any]) -> Result:
    return Result(
        outputs={name: args.written.get(name) or digest(path) for name, path in outputs.items()}, measured=measured
    )


@dataclass
class Attempt:
    """One attempt of a step while it runs."""

    args: argparse.Namespace
    config: BaseModel
    status: Status = "running"
    fingerprint: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    result: Result | None = None
    verdict: dict[str, Any] | None = None
    error: str | None = None
    work_seconds: float = 0.0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    cpu_clock: float = field(default_factory=lambda: usage.cpu_seconds_of(*usage.here()))
    number: int | None = None  # in the run record

    def write(self) -> None:
        """Writes the record of the attempt, or writes it anew."""
        record = StepRecord(
            step=self.args.step,
            attempt=self.number or 1,
            run_id=run_id(),
            status=self.status,
            started_at=self.started.isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - self.clock, 3),
            work_seconds=round(self.work_seconds, 3),
            cpu_seconds=round(usage.cpu_seconds_of(*usage.here()) - self.cpu_clock, 3),
            peak_memory=usage.peak_memory_of(*usage.here()),
            fingerprint=self.fingerprint,
            code=code_version(),
            config=self.config.model_dump(mode="json"),
            inputs=self.inputs,
            outputs=self.result.outputs if self.result else {},
            measured=self.result.measured if self.result else {},
            kept=self.result.kept if self.result else "",
            verdict=self.verdict,
            error=self.error,
        )
        if self.number is None:
            self.number = write_record(self.args.storage_root, record).attempt
        else:
            replace_record(self.args.storage_root, record)


@contextmanager
def _recorded(args: argparse.Namespace, *, outputs: dict[str, str], config: BaseModel) -> Iterator[Attempt]:
    """Writes the record of what happens inside, however it ends; of a process that is killed the last one stays."""
    attempt = Attempt(args, config)
    try:
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


def configure_logging() -> None:
    """One log format for every step: plain lines on stderr, without secrets."""
    masking.mask_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "google", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run_id() -> str:
    """The id of the run that this process belongs to; `manual` when a step is started by hand."""
    return os.environ.get(RUN_ID_ENV) or "manual"


def is_fresh() -> bool:
    """Whether this run is to take nothing over from earlier ones."""
    return os.environ.get(FRESH_ENV) == "1"


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a folder the SHA-256 of its sorted `<relative name> <SHA-256>` lines."""
    path = Path(path)
    if path.is_dir():
        return folder_digest(file_digests(path))
    return hashing.sha256(path)


def file_digests(folder: str | Path, *, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Relative name -> SHA-256 of each file below a folder; those that are `known` are not read."""
    names = [file.relative_to(folder).as_posix() for file in files_of(folder)]
    return {name: known.get(name) or hashing.sha256(Path(folder, name)) for name in names}


def folder_digest(digests: dict[str, str]) -> str:
    """What `digest` gives for a folder of these files."""
    lines = [f"{name} {sha256}\n" for name, sha256 in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(folder: str | Path) -> list[Path]:
    """All files below a folder, sorted by their relative names."""
    folder = Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def fingerprint(step: str, *, config: BaseModel, inputs: dict[str, str]) -> str:
    """SHA-256 of all that a result depends on: step, configuration, input digests, our source and the libraries."""
    return fingerprint_of(step, config=config.model_dump(mode="json"), inputs=inputs, code=code_version())


def fingerprint_of(step: str, *, config: dict[str, Any], inputs: dict[str, str], code: Code) -> str:
    """The same of what stands in a record."""
    parts = {"step": step, "config": config, "inputs": inputs, "code": code.sha256}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> Code:
    """The code that runs here."""
    here = Path(__file__).parent
    files = [*files_of(here), *files_of(here.parent / "validators")]
    lines = [f"{file.relative_to(here.parent)} {digest(file)}" for file in files if file.suffix != ".pyc"]
    return Code(
        posttrain=_release("posttrain"),
        source=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        libraries={name: _release(name) for name in LIBRARIES},
    )


def write_record(storage_root: str, record: StepRecord) -> StepRecord:
    """Writes a record under the next free attempt number, and gives it with that; no earlier attempt is overwritten."""
    while True:
        try:
            storage.write_bytes(_name(storage_root, record), record.model_dump_json(indent=2).encode(), if_absent=True)
            return record
        except FileExistsError:
            record = record.model_copy(update={"attempt": record.attempt + 1})


def replace_record(storage_root: str, record: StepRecord) -> None:
    """Writes the record of an attempt anew."""
    storage.write_bytes(_name(storage_root, record), record.model_dump_json(indent=2).encode())


def _name(storage_root: str, record: StepRecord) -> str:
    return storage.join(storage_root, "runs", record.run_id, f"{record.step}.{record.attempt}.json")


def read_records(storage_root: str, run: str, *, of: Container[str] | None = None) -> list[StepRecord]:
    """All records of a run, or those of these steps, in the order in which the steps started."""
    folder = storage.join(storage_root, "runs", run)
    found = {name: RECORD.fullmatch(name) for name in storage.list_files(folder)}
    names = [name for name, match in found.items() if match and (of is None or match["step"] in of)]
    records = [StepRecord.model_validate_json(storage.read_bytes(storage.join(folder, name))) for name in names]
    return sorted(records, key=lambda record: (record.started_at, record.step, record.attempt))


def read_verdict(storage_root: str, run: str, step: str) -> Verdict | None:
    """The verdict of a gate in a run: that of its last attempt which reached one; None if there is none."""
    verdicts = [record.verdict for record in read_records(storage_root, run) if record.step == step and record.verdict]
    return Verdict.read(json.dumps(verdicts[-1])) if verdicts else None


def finished(storage_root: str, step: str, fingerprint: str) -> Result | None:
    """The result that a step has left under this fingerprint, for any run; None where there is none."""
    receipt = _receipt(storage_root, step, fingerprint)
    return Result.model_validate_json(storage.read_bytes(receipt)) if storage.exists(receipt) else None


def _receipt(storage_root: str, step: str, fingerprint: str) -> str:
    return storage.join(storage_root, "results", step, fingerprint, "COMPLETE.json")


def _reuse(args: argparse.Namespace, print_: str, outputs: dict[str, str]) -> Result | None:
    """Brings a finished result to the output paths; None if there is none or it is not whole."""
    result = finished(args.storage_root, args.step, print_)
    if result is None:
        return None
    try:
        for name, path in outputs.items():
            if _bring(storage.join(args.storage_root, result.kept, name), path) != result.outputs.get(name):
                raise OSError(f"{name!r} is damaged")
    except OSError as error:
        logger.warning(
            "%s: the finished result %s is not whole, doing the work again: %s", args.step, result.kept, error
        )
        if finished(args.storage_root, args.step, print_) == result:  # nobody has made it again meanwhile
            storage.remove(_receipt(args.storage_root, args.step, print_))
        return None
    logger.info("%s: reused the finished result %s", args.step, result.kept)
    return result


def _keep(args: argparse.Namespace, outputs: dict[str, str], measured: dict[str, Any]) -> Result:
    """Keeps what a step gave: the files, then COMPLETE.json, by which later runs find it.

    Without that stays what a gate gave that stopped the run: it is evidence, and the next run judges again. And what
    says of itself that it is not final: a trial of a sweep that was killed.
    """
    kept = f"results/{args.step}/{args.fingerprint}/{run_id()}-{secrets.token_hex(4)}"
    digests = {name: _send(path, storage.join(args.storage_root, kept, name)) for name, path in outputs.items()}
    result = Result(outputs=digests, measured=measured, kept=kept)
    if result.measured.get("passed", True) and result.measured.get("is_final", True):
        receipt = _receipt(args.storage_root, args.step, args.fingerprint)
        with suppress(FileExistsError):  # another run was first; its result is as good
            storage.write_bytes(receipt, result.model_dump_json(indent=2).encode(), if_absent=True)
    return result


def _send(path: str, uri: str) -> str:
    """Uploads an output and gives its digest."""
    if Path(path).is_dir():
        return folder_digest(file_digests(path, known=storage.upload_folder(path, uri)))
    return storage.upload_file(path, uri)


def _bring(uri: str, path: str) -> str:
    """Downloads an output and gives the digest of what is there then."""
    if storage.exists(uri):
        return storage.download_file(uri, path)
    return folder_digest(file_digests(path, known=storage.download_folder(uri, path)))


def _verdict(outputs: dict[str, str]) -> dict[str, Any] | None:
    path = outputs.get("verdict")
    return json.loads(Path(path).read_text(encoding="utf-8")) if path and Path(path).is_file() else None


def _emit(args: argparse.Namespace, result: Result) -> None:
    """Tells Kubeflow the digest of each output artifact, metrics and confusion matrix, and whether a gate passed."""
    metadata_ = {name: {"sha256": sha256} for name, sha256 in result.outputs.items()}
    metadata_["metrics"] = result.measured
    if "confusion" in metadata_:
        found = json.loads(Path(args.confusion).read_text(encoding="utf-8"))
        metadata_["confusion"] |= kfp_io.confusion_matrix(found["categories"], found["matrix"])
    outputs = json.loads(args.executor_input).get("outputs", {}).get("parameters", {})
    kfp_io.write_outputs(
        args.executor_input, parameters={name: result.measured[name] for name in outputs}, metadata=metadata_
    )


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
