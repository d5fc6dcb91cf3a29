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
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain import kfp_io, storage
from posttrain.config import RUN_ID_ENV
from posttrain.verdict import Verdict

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "unsloth")  # another release may train otherwise
CHUNK_BYTES = 1 << 20

logger = logging.getLogger(__name__)

Work = Callable[[], dict[str, Any]]


class StepRecord(BaseModel):
    """One attempt of one step, as written to the run record. Paths are left out: they mean nothing elsewhere."""

    step: str
    attempt: int
    run_id: str
    status: str  # succeeded, reused, failed
    started_at: str  # UTC, ISO 8601
    seconds: float
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> SHA-256
    outputs: dict[str, str]  # name -> SHA-256
    measured: dict[str, Any]
    verdict: dict[str, Any] | None = None
    error: str | None = None


class Result(BaseModel):
    """A finished step: the digests of what it gave and what it measured."""

    outputs: dict[str, str]
    measured: dict[str, Any]


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
        args: the parsed command line, with the flags of `kfp_io.parser`.
        inputs: input name -> local path; a None is left out.
        outputs: output name -> local path that `work` writes.
        config: what of the configuration changes the result; it is part of the fingerprint.
        work: does the thing and returns what it measured, by name.
        reusable: off where a side effect is the point (publish) or an input is an address whose content may change.

    Raises:
        ValueError: the storage root lies outside the prefixes that the configuration allows.
        whatever `work` raises, after it has been recorded.
    """
    configure_logging()
    prefixes = json.loads(args.config).get("allowed_prefixes")
    if (
        prefixes is not None
    ):  # a run may choose its storage root, but not send records, checkpoints and models elsewhere
        storage.check_allowed(args.storage_root, prefixes, name="storage_root")
    with _recorded(args, outputs=outputs, config=config) as attempt:
        attempt.inputs = {name: digest(path) for name, path in inputs.items() if path}
        attempt.fingerprint = fingerprint(args.step, config=config, inputs=attempt.inputs)
        args.fingerprint = attempt.fingerprint  # `work` keeps its checkpoints under it
        for path in outputs.values():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        attempt.result = _reuse(args, attempt.fingerprint, outputs) if reusable else None
        attempt.status = "reused" if attempt.result else "succeeded"
        if attempt.result is None:
            measured = work()
            attempt.result = Result(outputs={name: digest(path) for name, path in outputs.items()}, measured=measured)
            if reusable:
                _keep(args, attempt.fingerprint, outputs, attempt.result)
    _emit(args, attempt.result)
    return attempt.result


@dataclass
class Attempt:
    """One attempt of a step while it runs."""

    status: str = "failed"
    fingerprint: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    result: Result | None = None
    error: str | None = None


@contextmanager
def _recorded(args: argparse.Namespace, *, outputs: dict[str, str], config: BaseModel) -> Iterator[Attempt]:
    """Writes the record of what happens inside, however it ends."""
    started, clock, attempt = datetime.now(UTC), time.monotonic(), Attempt()
    try:
        yield attempt
    except BaseException as caught:
        attempt.status, attempt.error = "failed", f"{type(caught).__name__}: {caught}"
        raise
    finally:
        record = StepRecord(
            step=args.step,
            attempt=1,
            run_id=run_id(),
            status=attempt.status,
            started_at=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
            fingerprint=attempt.fingerprint,
            config=config.model_dump(mode="json"),
            inputs=attempt.inputs,
            outputs=attempt.result.outputs if attempt.result else {},
            measured=attempt.result.measured if attempt.result else {},
            verdict=_verdict(outputs) if attempt.result else None,
            error=attempt.error,
        )
        write_record(args.storage_root, record)


def configure_logging() -> None:
    """One log format for every step: plain lines on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "google", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run_id() -> str:
    """The id of the run that this process belongs to; `manual` when a step is started by hand."""
    return os.environ.get(RUN_ID_ENV) or "manual"


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a folder the SHA-256 of its sorted `<relative name> <SHA-256>` lines."""
    path = Path(path)
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in files_of(path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: str | Path) -> list[Path]:
    """All files below a folder, sorted by their relative names."""
    folder = Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def fingerprint(step: str, *, config: BaseModel, inputs: dict[str, str]) -> str:
    """SHA-256 of all that a result depends on: step, configuration, input digests, our source and the libraries."""
    parts = {"step": step, "config": config.model_dump(mode="json"), "inputs": inputs, "code": code_version()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> str:
    """SHA-256 of `posttrain` and `validators`, templates included, and of the releases of the libraries that train."""
    here = Path(__file__).parent
    files = [*files_of(here), *files_of(here.parent / "validators")]
    lines = [f"{file.relative_to(here.parent)} {digest(file)}" for file in files if file.suffix != ".pyc"]
    lines += [f"{name} {_release(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_record(storage_root: str, record: StepRecord) -> None:
    """Writes the record under the next free attempt number; an earlier attempt is never overwritten."""
    while True:
        name = storage.join(storage_root, "runs", record.run_id, f"{record.step}.{record.attempt}.json")
        try:
            storage.write_bytes(name, record.model_dump_json(indent=2).encode(), if_absent=True)
            return
        except FileExistsError:
            record = record.model_copy(update={"attempt": record.attempt + 1})


def read_records(storage_root: str, run: str) -> list[StepRecord]:
    """All records of a run, in the order in which the steps started."""
    folder = storage.join(storage_root, "runs", run)
    names = [name for name in storage.list_files(folder) if name.count(".") >= 2 and name.split(".")[-2].isdigit()]
    records = [StepRecord.model_validate_json(storage.read_bytes(storage.join(folder, name))) for name in names]
    return sorted(records, key=lambda record: (record.started_at, record.step, record.attempt))


def read_verdict(storage_root: str, run: str, step: str) -> Verdict | None:
    """The verdict of a gate in a run: that of its last attempt which reached one; None if there is none."""
    verdicts = [record.verdict for record in read_records(storage_root, run) if record.step == step and record.verdict]
    return Verdict.read(json.dumps(verdicts[-1])) if verdicts else None


def _reuse(args: argparse.Namespace, print_: str, outputs: dict[str, str]) -> Result | None:
    """Brings a finished result to the output paths; None if there is none or it is not whole."""
    folder = _results(args, print_)
    receipt = storage.join(folder, "COMPLETE.json")
    if not storage.exists(receipt):
        return None
    result = Result.model_validate_json(storage.read_bytes(receipt))
    if result.measured.get("passed") is False:
        return None  # a gate that stopped a run judges again in the next
    for name, path in outputs.items():
        _bring(storage.join(folder, name), path)
        if not Path(path).exists() or digest(path) != result.outputs.get(name):
            logger.warning("%s: finished result %s is damaged at %r: doing the work again", args.step, folder, name)
            return None
    logger.info("%s: reused the finished result %s", args.step, folder)
    return result


def _keep(args: argparse.Namespace, print_: str, outputs: dict[str, str], result: Result) -> None:
    """Keeps a finished result for later runs: the files first, then COMPLETE.json."""
    folder = _results(args, print_)
    storage.remove(folder)  # of a damaged one nothing may stay
    for name, path in outputs.items():
        if Path(path).is_dir():
            storage.upload_folder(path, storage.join(folder, name))
        else:
            storage.upload_file(path, storage.join(folder, name))
    storage.write_bytes(storage.join(folder, "COMPLETE.json"), result.model_dump_json(indent=2).encode())


def _bring(uri: str, path: str) -> None:
    if storage.exists(uri):
        storage.download_file(uri, path)
    else:
        storage.download_folder(uri, path)


def _results(args: argparse.Namespace, print_: str) -> str:
    return storage.join(args.storage_root, "results", args.step, print_)


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
