"""Reads the folder of a published version, and says everything that is wrong with it.

URI of a version -> its manifest; faults of its files, its SHA256SUMS and its chain, one line each

The manifest is written last, names every file with its SHA-256, and agrees with provenance.json in every word.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from posttrain import storage
from posttrain.step import digests, provenance
from posttrain.step.provenance import Provenance
from posttrain.storage.address import check_name

MANIFEST, CARD, SUMS, PROVENANCE = "manifest.json", "README.md", "SHA256SUMS", "provenance.json"
CLAIM = "PUBLISHING.json"
WRITTEN = (CARD, PROVENANCE, SUMS, MANIFEST, CLAIM)  # beside the model's own files
BILL, ATTESTATIONS, SIGNATURE = "bom.cdx.json", "attestations.jsonl", "model.sig"
SIGNED = (BILL, ATTESTATIONS, SIGNATURE)  # and these, if it is signed
EXPORT = "export"  # folder beside these, with the files in which the model is served
HUB_FILES = {".gitattributes"}  # the Hub adds this file to every repository
BOUND = ("run_id", "sha256", "model_name", "version", "published_at")  # in manifest and chain alike

T = TypeVar("T", bound=BaseModel)

logger = logging.getLogger(__name__)


class Manifest(BaseModel):
    """manifest.json, which is written last: a version without it is not published yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    model_name: str
    version: str
    sha256: str  # `digests.digest` of the model's own files
    run_id: str
    published_at: str  # UTC, ISO 8601
    signed_with: str | None = None  # SHA-256 of the public key in PEM, or identity and provider; None: not signed
    # name -> SHA-256, without this file, SHA256SUMS, which agrees with it, and the two files that sign it
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _are_names_of_files(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            check_name(name)
        return files

    @property
    def model_files(self) -> dict[str, str]:
        """The model's own files, which the gates judged."""
        others = {*self.written, *(f"{EXPORT}/{name}" for name in self.exported_files)}
        return {name: sha256 for name, sha256 in self.files.items() if name not in others}

    @property
    def exported_files(self) -> dict[str, str]:
        """The files in which the model is served, as check_export judged them, by their names in their folder."""
        start = f"{EXPORT}/"
        return {name.removeprefix(start): sha256 for name, sha256 in self.files.items() if name.startswith(start)}

    @property
    def written(self) -> tuple[str, ...]:
        """The names of what publishing writes beside the model's own files."""
        return (*WRITTEN, *(SIGNED if self.signed_with else ()))

    @property
    def unlisted(self) -> tuple[str, ...]:
        """The names of the files in the folder that `files` leaves out: this one, its sums, and what signs them."""
        return (MANIFEST, SUMS, *((ATTESTATIONS, SIGNATURE) if self.signed_with else ()))

    @property
    def sums(self) -> str:
        """The text of SHA256SUMS, for `sha256sum --check`."""
        return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(self.files.items()))

    @property
    def json_bytes(self) -> bytes:
        """The content of its file."""
        return self.model_dump_json(indent=2, exclude_none=True).encode()


def read_manifest(published: str) -> Manifest | None:
    """Reads the manifest of a published version; None if it is not published.

    Raises:
        ValueError: there is a file of that name which is not a manifest.
    """
    uri = storage.join(published, MANIFEST)
    return parse(uri, storage.read_bytes(uri), Manifest) if storage.exists(uri) else None


def parse(uri: str, content: bytes, kind: type[T]) -> T:
    """Parses a JSON file of a version; raises ValueError with the file, what is wrong with it and the remedy."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        remedy = "remove the folder of this version if no run writes to it, and publish again"
        raise ValueError(f"{uri}: is {'empty' if not content else _problem(error)}; {remedy}") from None


def faults(published: str, *, known: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Checks a published version against its own manifest and chain.

    Args:
        known: SHA-256 of those files that this process has just written, which are not read again.
    """
    return read(published, known=known)[2]


def read(
    published: str, *, known: Mapping[str, str] = MappingProxyType({})
) -> tuple[Manifest | None, Provenance | None, list[str]]:
    """Reads and hashes a published version; returns its manifest, its chain and its faults."""
    wrong: list[str] = []
    manifest, chain = _read(published, MANIFEST, Manifest, wrong), None
    if manifest is not None:
        wrong += file_faults(manifest, published, known=known) + sums_faults(manifest, published)
        chain = _read(published, PROVENANCE, Provenance, wrong)
    if chain is not None:
        wrong += chain_faults(manifest, chain)
    return manifest, chain, wrong


def file_faults(manifest: Manifest, published: str, *, known: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Checks that the folder has exactly the files of the manifest, unchanged, and that they are its model."""
    there, faults = set(storage.list_files(published)), []
    for name, sha256 in manifest.files.items():
        actual = (known.get(name) or _digest(storage.join(published, name))) if name in there else None
        if actual is None:
            faults.append(f"{name}: is missing, though in {MANIFEST}")
        elif actual != sha256:
            faults.append(f"{name}: was changed: its SHA-256 is {actual}, not {sha256}")
    signing = {*manifest.unlisted} - {MANIFEST, SUMS}
    faults += [f"{name}: is missing, though the model is signed" for name in sorted(signing - there)]
    for name in sorted(there - manifest.files.keys() - {*manifest.unlisted} - HUB_FILES):
        killed = " (left by a publisher that was killed at its end: publish again, or remove it)"
        faults.append(f"{name}: was added: it is not in {MANIFEST}{killed if name == CLAIM else ''}")
    faults += [
        f"{name}: was added: it leads out of the folder, so nothing of it was checked" for name in _links(published)
    ]
    sha256 = digests.folder_digest(manifest.model_files)
    if sha256 != manifest.sha256:
        faults.append(f"{MANIFEST}: was changed: the model's files make SHA-256 {sha256}, not {manifest.sha256}")
    return faults


def sums_faults(manifest: Manifest, published: str) -> list[str]:
    """Checks that SHA256SUMS and the manifest are exactly what publishing writes for these files."""
    faults = []
    if storage.read_bytes(storage.join(published, MANIFEST)) != manifest.json_bytes:
        faults.append(f"{MANIFEST}: was changed: it is not written as publishing writes it")
    try:
        text = storage.read_bytes(storage.join(published, SUMS)).decode(errors="replace")
    except FileNotFoundError:
        return [*faults, f"{SUMS}: is missing"]
    lines, wanted = text.splitlines(), manifest.sums.splitlines()
    faults += [f"{SUMS}: lacks the line {line!r}" for line in wanted if line not in lines]
    faults += [f"{SUMS}: has the line {line!r}, unlike {MANIFEST}" for line in lines if line not in wanted]
    if text != manifest.sums and set(lines) == set(wanted):
        faults.append(f"{SUMS}: was changed: its lines are in another order, or occur twice")
    return faults


def chain_faults(manifest: Manifest, chain: Provenance) -> list[str]:
    """Checks that the chain is complete, every gate in it passed, and it names the model as the manifest does."""
    faults = [
        f"{PROVENANCE}: {name} is {getattr(chain, name)}, in {MANIFEST} {getattr(manifest, name)}"
        for name in BOUND
        if getattr(chain, name) != getattr(manifest, name)
    ]
    exported, judged = manifest.exported_files, chain.links[-1].inputs.get("export")
    if (digests.folder_digest(exported) if exported else None) != judged:
        faults.append(f"{MANIFEST}: was changed: its files below {EXPORT}/ are not those of {PROVENANCE}, {judged}")
    return faults + provenance.faults(chain)


def _links(published: str) -> list[str]:
    """Lists linked folders, links to nothing and pipes: loaders may follow them, and no listing of files shows them."""
    if storage.is_remote(published):
        return []
    root = storage.local_path(published)
    paths = [Path(folder, name) for folder, folders, names in os.walk(root) for name in (*folders, *names)]
    strange = [
        path for path in paths if not path.is_file() and (path.is_symlink() or path.exists() and not path.is_dir())
    ]
    return sorted(path.relative_to(root).as_posix() for path in strange)


def _read(published: str, name: str, kind: type[T], faults: list[str]) -> T | None:
    """Reads a file of a published model; adds a fault and returns None if it is missing or invalid."""
    try:
        return kind.model_validate_json(storage.read_bytes(storage.join(published, name)))
    except FileNotFoundError:
        faults.append(f"{name}: is missing: {published} is not a published model, or its publishing is not complete")
    except ValidationError as error:
        faults.append(f"{name}: is {_problem(error)}")
    return None


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"invalid{': ' if where else ''}{where}: {first['msg']}"


def _digest(uri: str) -> str:
    """Hashes a file. Remote files are downloaded one at a time, so the disk needs room only for the largest."""
    if not storage.is_remote(uri):
        return digests.digest(storage.local_path(uri))
    logger.info("reading %s", uri)
    with tempfile.TemporaryDirectory() as folder:
        return storage.download_file(uri, Path(folder, "file"))
