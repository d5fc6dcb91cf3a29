"""Facts about a published version for a registry, read from its folder alone.

folder of a published version -> name, version, address, and properties with their types: digests, run, base model,
licence, data sets, and every number of every gate
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from posttrain import storage
from posttrain.pages import front_matter
from posttrain.step import published
from posttrain.step.provenance import Provenance
from posttrain.step.published import MANIFEST, PROVENANCE, Manifest
from posttrain.verdict import Verdict

DIGEST = "manifest_sha256"  # the property that says whether two versions are the same: it binds every file and verdict
VERSION = "published_version"
UNSAFE = re.compile(r"[^\w./-]+", re.ASCII)  # in a property's name: registries take these only

Value = str | float | bool


@dataclass(frozen=True)
class Entry:
    """A published version as a registry has it."""

    name: str
    version: str
    uri: str  # address of its folder
    run_id: str
    published_at: datetime
    properties: dict[str, Value]

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest."""
        return str(self.properties[DIGEST])

    @property
    def numbers(self) -> dict[str, float]:
        """Numbers that gates measured, by `<gate>.<name>`."""
        return {
            name: float(value)
            for name, value in self.properties.items()
            if isinstance(value, float) and not isinstance(value, bool)
        }

    @property
    def description(self) -> str:
        """One sentence for people."""
        return f"{self.name} {self.version}, published at {self.uri} by run {self.run_id}; every required gate passed"


def read_entry(folder: str) -> Entry:
    """Reads a published version: its manifest, and the chain that the manifest names.

    The model's own files are not read: whoever published or verified them has done that.

    Raises:
        ValueError: it is not published, or manifest and chain do not agree.
        OSError: the storage does not answer.
    """
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        raise ValueError(f"{folder}: has no {MANIFEST}, so it is not a published version; give the folder of one")
    content = storage.read_bytes(uri)
    manifest = published.parse(uri, content, Manifest)
    chain = _read_chain(folder, manifest)
    if faults := published.chain_faults(manifest, chain):
        raise ValueError(f"{folder}: is not registered: {' | '.join(faults)}")
    return Entry(
        name=manifest.model_name,
        version=manifest.version,
        uri=address_of(folder),
        run_id=manifest.run_id,
        published_at=datetime.fromisoformat(manifest.published_at),
        properties=_properties(manifest, chain, sha256=hashlib.sha256(content).hexdigest()),
    )


def _read_chain(folder: str, manifest: Manifest) -> Provenance:
    uri = storage.join(folder, PROVENANCE)
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != manifest.files.get(PROVENANCE):
        raise ValueError(f"{uri}: was changed: its SHA-256 is not the one in {MANIFEST}; restore it")
    return published.parse(uri, content, Provenance)


def address_of(folder: str) -> str:
    """Returns the address of a folder as others read it: a local one as file:///..."""
    return folder if storage.is_remote(folder) else storage.local_path(folder).resolve().as_uri()


def _properties(manifest: Manifest, chain: Provenance, *, sha256: str) -> dict[str, Value]:
    named = {
        DIGEST: sha256,
        VERSION: manifest.version,
        "model_sha256": manifest.sha256,
        "run_id": manifest.run_id,
        "published_at": manifest.published_at,
    }
    signed = {"signed_with": manifest.signed_with} if manifest.signed_with else {}
    exported = {"exported_files": ", ".join(sorted(manifest.exported_files))} if manifest.exported_files else {}
    numbers: dict[str, Value] = {}
    for gate, verdict in chain.gates.items():
        numbers |= _of_gate(gate, verdict)
    return named | signed | exported | _sources(chain) | numbers


def _sources(chain: Provenance) -> dict[str, Value]:
    """Returns the base model with its licence, and each data set, judge and file of prompts, with their digests."""
    base = front_matter.base_of(chain)
    properties: dict[str, Any] = {}
    if base:
        properties = {"base_model": str(base), "base_model_sha256": base.sha256, "license": base.licence or "unknown"}
    for name, source in chain.sources.items():
        if source == base:
            continue
        key = f"dataset.{_key(name.replace(': ', '.'))}"
        properties |= {key: str(source), f"{key}.sha256": source.sha256}
    return properties


def _of_gate(gate: str, verdict: Verdict) -> dict[str, Value]:
    """Returns whether a gate passed, what it measured, and the limit of each check that has one."""
    checks = [check for check in verdict.checks if check.value is not None]
    values = verdict.numbers | {check.name: check.value for check in checks}
    limits = {f"{check.name}.limit": check.limit for check in checks if check.limit is not None}
    return {f"{gate}.passed": verdict.passed} | {
        f"{gate}.{_key(name)}": float(value) for name, value in (values | limits).items()
    }


def _key(name: str) -> str:
    return UNSAFE.sub("_", name).strip("_")
