"""Finished results: kept under their fingerprint, and emitted again in a later run."""

import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from posttrain import storage
from posttrain.step.digests import digest, file_digests, folder_digest
from posttrain.step.run import run_id
from posttrain.step.running import Running
from posttrain.storage import layout

logger = logging.getLogger(__name__)


class Result(BaseModel):
    """A finished step: the digests of what it gave, what it measured, and where that is kept."""

    outputs: dict[str, str]
    measured: dict[str, Any]
    kept: str = ""  # folder below the storage root; each attempt has its own, so two runs never mix files


def read_outputs(running: Running, outputs: dict[str, str], measured: dict[str, Any]) -> Result:
    """The result of a step that is not kept for later runs."""
    digests = {name: running.written.get(name) or digest(path) for name, path in outputs.items()}
    return Result(outputs=digests, measured=measured)


def finished(storage_root: str, step: str, fingerprint: str) -> Result | None:
    """The result that a step has left under this fingerprint, for any run; None where there is none."""
    receipt = _receipt(storage_root, step, fingerprint)
    return Result.model_validate_json(storage.read_bytes(receipt)) if storage.exists(receipt) else None


def _receipt(storage_root: str, step: str, fingerprint: str) -> str:
    return layout.results(storage_root, step, fingerprint, "COMPLETE.json")


def reuse(running: Running, outputs: dict[str, str]) -> Result | None:
    """Brings a finished result to the output paths; None if there is none or it is not whole."""
    key = (running.storage_root, running.step, running.fingerprint)
    result = finished(*key)
    if result is None:
        return None
    try:
        for name, path in outputs.items():
            if _bring(storage.join(running.storage_root, result.kept, name), path) != result.outputs.get(name):
                raise OSError(f"{name!r} is damaged")
    except OSError as error:
        logger.warning(
            "%s: the finished result %s is not whole, doing the work again: %s", running.step, result.kept, error
        )
        if finished(*key) == result:  # nobody has made it again meanwhile
            storage.remove(_receipt(*key))
        return None
    logger.info("%s: reused the finished result %s", running.step, result.kept)
    return result


def keep(running: Running, outputs: dict[str, str], measured: dict[str, Any]) -> Result:
    """Keeps what a step gave: the files, then COMPLETE.json, by which later runs find it.

    Without that stays what a gate gave that stopped the run: it is evidence, and the next run judges again. And what
    says of itself that it is not final: a trial of a sweep that was killed.
    """
    kept = storage.join(layout.RESULTS, running.step, running.fingerprint, f"{run_id()}-{secrets.token_hex(4)}")
    digests = {name: _send(path, storage.join(running.storage_root, kept, name)) for name, path in outputs.items()}
    result = Result(outputs=digests, measured=measured, kept=kept)
    if result.measured.get("passed", True) and result.measured.get("is_final", True):
        receipt = _receipt(running.storage_root, running.step, running.fingerprint)
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
