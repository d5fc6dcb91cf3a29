"""Finished results are stored under their fingerprint, and later runs reuse them."""

import logging
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from posttrain import storage
from posttrain.step.digests import digest, file_digests, folder_digest
from posttrain.step.run import run_id
from posttrain.step.running import Running
from posttrain.storage import layout

logger = logging.getLogger(__name__)


class Result(BaseModel):
    """A finished step: the digests of its outputs, what it measured, and where the outputs are kept."""

    outputs: dict[str, str]
    measured: dict[str, Any]
    kept: str = ""  # folder below the storage root; each attempt has its own, so that two runs never mix files


def read_outputs(running: Running, outputs: dict[str, str], measured: dict[str, Any]) -> Result:
    """Returns the result of a step that is not kept for later runs."""
    digests = {name: running.written.get(name) or digest(path) for name, path in outputs.items()}
    return Result(outputs=digests, measured=measured)


def finished(storage_root: str, step: str, fingerprint: str) -> Result | None:
    """Returns the finished result of a step under this fingerprint, from any run, or None."""
    receipt = _receipt(storage_root, step, fingerprint)
    try:
        return Result.model_validate_json(storage.read_bytes(receipt))
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s: is damaged, so there is no finished result; the step makes it again", receipt)
        return None


def _receipt(storage_root: str, step: str, fingerprint: str) -> str:
    return layout.results(storage_root, step, fingerprint, "COMPLETE.json")


def reuse(running: Running, outputs: dict[str, str]) -> Result | None:
    """Downloads a finished result to the output paths; returns None if there is none or it is damaged."""
    key = (running.storage_root, running.step, running.fingerprint)
    result = finished(*key)
    if result is None:
        _remove_damaged(_receipt(*key))
        return None
    try:
        for name, path in outputs.items():
            if bring(storage.join(running.storage_root, result.kept, name), path) != result.outputs.get(name):
                raise OSError(f"{name!r} is damaged")
    except OSError as error:
        logger.warning(
            "%s: the finished result %s is damaged, doing the work again: %s", running.step, result.kept, error
        )
        if finished(*key) == result:  # nobody has made it again meanwhile
            storage.remove(_receipt(*key))
        for path in outputs.values():  # the step makes it in an empty place, as if nothing had been brought
            storage.remove(path)
        return None
    logger.info("%s: reused the finished result %s", running.step, result.kept)
    return result


def _remove_damaged(receipt: str) -> None:
    """Removes a receipt that cannot be read, which would keep the next result from being found."""
    try:
        Result.model_validate_json(storage.read_bytes(receipt))
    except FileNotFoundError:
        return
    except ValidationError:
        storage.remove(receipt)


def keep(running: Running, outputs: dict[str, str], measured: dict[str, Any], *, reusable: bool = True) -> Result:
    """Stores the outputs of a step, then COMPLETE.json, by which later runs find them.

    Three kinds of results get no COMPLETE.json: those of a gate that stopped the run, which are evidence while the next
    run judges again, those marked as not final, such as the result of a trial that was killed, and those of steps that
    are not reusable.
    """
    kept = storage.join(layout.RESULTS, running.step, running.fingerprint, f"{run_id()}-{secrets.token_hex(4)}")
    digests = {name: send(path, storage.join(running.storage_root, kept, name)) for name, path in outputs.items()}
    result = Result(outputs=digests, measured=measured, kept=kept)
    if reusable and result.measured.get("passed", True) and result.measured.get("is_final", True):
        receipt = _receipt(running.storage_root, running.step, running.fingerprint)
        with suppress(FileExistsError):  # another run was first; its result is as good
            storage.write_bytes(receipt, result.model_dump_json(indent=2).encode(), if_absent=True)
    return result


def send(path: str, uri: str) -> str:
    """Uploads an output and returns its digest."""
    if Path(path).is_dir():
        return folder_digest(file_digests(path, known=storage.upload_folder(path, uri)))
    return storage.upload_file(path, uri)


def bring(uri: str, path: str) -> str:
    """Downloads an output, a file or a folder, and returns the digest of the local copy."""
    if storage.exists(uri):
        return storage.download_file(uri, path)
    return folder_digest(file_digests(path, known=storage.download_folder(uri, path)))
