"""Check a published model again: every file, and the chain from the sources through the gates to it.

published model (path, gs://, s3://) -> the chain, a line per link, then `verified` and exit 0, or everything that is
wrong, each on a line, and exit 1

Files, SHA256SUMS, manifest.json and provenance.json must agree with one another. Who can rewrite all of them can make
another whole: against that the run record (`--storage-root`) and the sources (`--base`, `--data`) are compared.
"""

import argparse
import hashlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from posttrain import storage
from posttrain.pages import wording
from posttrain.publish import CLAIM, MANIFEST, PROVENANCE, SUMS, Manifest
from posttrain.step import digests, provenance, run
from posttrain.step.provenance import Link, Provenance
from posttrain.step.records import RECORD, StepRecord, read_records
from posttrain.storage import layout
from posttrain.weights.folder import source_digest

OF_THE_HUB = {".gitattributes"}  # it adds this file to every repository

logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """What stands in a published folder, as far as it reads, and everything that is wrong with it."""

    manifest: Manifest | None = None
    chain: Provenance | None = None
    faults: list[str] = field(default_factory=list)


def verify(
    published: str, *, storage_root: str | None = None, base: str | None = None, data: tuple[str, ...] = ()
) -> Findings:
    """Reads and hashes everything again.

    Args:
        storage_root: where the run record lies that the chain was written from.
        base: a folder that should be the base model.
        data: files that should be data sets of the run.

    Raises:
        OSError: the storage does not answer.
        ValueError: `base` is no model.
    """
    found = Findings()
    found.manifest = _read(published, MANIFEST, Manifest, found.faults)
    if found.manifest is None:
        return found
    found.faults += file_faults(found.manifest, published) + sums_faults(found.manifest, published)
    found.chain = _read(published, PROVENANCE, Provenance, found.faults)
    if found.chain is None:
        return found
    found.faults += chain_faults(found.manifest, found.chain)
    if storage_root:
        sha256 = hashlib.sha256(storage.read_bytes(storage.join(published, MANIFEST))).hexdigest()
        found.faults += record_faults(found.chain, storage_root, manifest_sha256=sha256)
    found.faults += source_faults(found.chain, base=base, data=data)
    return found


def file_faults(manifest: Manifest, published: str) -> list[str]:
    """Whether exactly the files of the manifest are there, with these digests, and make up the model that it names."""
    there, faults = set(storage.list_files(published)), []
    for name, sha256 in manifest.files.items():
        found = _digest(storage.join(published, name)) if name in there else None
        if found is None:
            faults.append(f"{name}: is not there, but in {MANIFEST}")
        elif found != sha256:
            faults.append(f"{name}: was changed: its SHA-256 is {found}, not {sha256}")
    for name in sorted(there - manifest.files.keys() - {SUMS, MANIFEST} - OF_THE_HUB):
        killed = " (left by a publisher that was killed right at the end: publish again, or remove it)"
        faults.append(f"{name}: was added: it is not in {MANIFEST}{killed if name == CLAIM else ''}")
    sha256 = digests.folder_digest(manifest.model_files)
    if sha256 != manifest.sha256:
        faults.append(f"{MANIFEST}: was changed: the model's files make SHA-256 {sha256}, not {manifest.sha256}")
    return faults


def sums_faults(manifest: Manifest, published: str) -> list[str]:
    """Whether SHA256SUMS says what the manifest says."""
    try:
        lines = storage.read_bytes(storage.join(published, SUMS)).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return [f"{SUMS}: is not there"]
    wanted = manifest.sums.splitlines()
    faults = [f"{SUMS}: lacks the line {line!r}" for line in wanted if line not in lines]
    return faults + [f"{SUMS}: holds the line {line!r}, unlike {MANIFEST}" for line in lines if line not in wanted]


def chain_faults(manifest: Manifest, chain: Provenance) -> list[str]:
    """Whether the chain is whole, every gate in it passed, and it leads to the model of the manifest."""
    faults = [
        f"{PROVENANCE}: {name} is {getattr(chain, name)}, in {MANIFEST} {getattr(manifest, name)}"
        for name in ("run_id", "sha256")
        if getattr(chain, name) != getattr(manifest, name)
    ]
    return faults + provenance.faults(chain)


def record_faults(chain: Provenance, storage_root: str, *, manifest_sha256: str) -> list[str]:
    """Whether the run record tells the same of every link, and a receipt names exactly this manifest."""
    faults, records = [], read_records(storage_root, chain.run_id)
    *links, end = chain.links
    for link in links:
        attempts = [Link.of(done) for done in records if done.step == link.step and done.status in provenance.DONE]
        if not attempts:
            faults.append(f"{link.step}: run {chain.run_id} has no record of it in {storage_root}")
        elif link not in attempts:
            differs = [name for name in Link.model_fields if getattr(link, name) != getattr(attempts[-1], name)]
            faults.append(f"{link.step}: {', '.join(differs)} in {PROVENANCE} differs from the run record")
    if manifest_sha256 not in _receipts(storage_root, chain.run_id, end.step):
        faults.append(f"{MANIFEST}: no receipt in {storage_root} names its SHA-256, {manifest_sha256}")
    return faults


def source_faults(chain: Provenance, *, base: str | None, data: tuple[str, ...]) -> list[str]:
    """Whether what the user has is what the chain began with."""
    faults, models, data_sets = [], {}, {}
    for link in (link for link in chain.links if link.source):
        (models if "model" in link.outputs else data_sets)[link.step] = link.source.sha256
    given = [(base, source_digest, models)] if base else []
    for path, digest, known in [*given, *((file, digests.digest, data_sets) for file in data)]:
        sha256 = digest(path)
        if sha256 not in known.values():
            there = ", ".join(f"{step} read {known[step]}" for step in known)
            faults.append(f"{path}: the chain did not begin with it: its SHA-256 is {sha256}; {there}")
    return faults


def lines(chain: Provenance) -> Iterator[str]:
    """The chain for people, a line per link, with the first 8 digits of each SHA-256."""
    width = max(len(link.step) for link in chain.links)
    for link in chain.links:
        source = f"{link.source} {link.source.sha256[:8]}" if link.source else ""
        gave = _outcome(link) if link.verdict else _short(chain.passed_on(link))
        text = wording.line(f"{_short(link.inputs) or source}{' -> ' if gave else ''}{gave}")
        yield f"{wording.line(link.step).ljust(width)}  {text}"


def _read(published: str, name: str, kind: type[BaseModel], faults: list[str]) -> BaseModel | None:
    """A file of a published model; None where it is not there or does not read, which is a fault."""
    try:
        return kind.model_validate_json(storage.read_bytes(storage.join(published, name)))
    except FileNotFoundError:
        faults.append(f"{name}: is not there: {published} is no published model, or its publishing has not ended")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        faults.append(f"{name}: does not read{': ' if where else ''}{where}: {first['msg']}")
    return None


def _digest(uri: str) -> str:
    """SHA-256 of a file. One that is remote is downloaded and forgotten: there is need of room for the largest only."""
    if not storage.is_remote(uri):
        return digests.digest(storage.local_path(uri))
    logger.info("reading %s", uri)
    with tempfile.TemporaryDirectory() as folder:
        return storage.download_file(uri, Path(folder, "file"))


def _receipts(storage_root: str, run_id: str, step: str) -> Iterator[str]:
    """SHA-256 of the manifests that runs have published, of this run first.

    Where its publisher was killed another run may have finished its work, and has the receipt.
    """
    runs = layout.runs(storage_root)
    found = {name: RECORD.fullmatch(name.partition("/")[2]) for name in storage.list_files(runs)}
    names = [name for name, match in found.items() if match and match["step"] == step]
    for name in sorted(names, key=lambda name: not name.startswith(f"{run_id}/")):
        done = StepRecord.model_validate_json(storage.read_bytes(storage.join(runs, name)))
        yield done.measured.get("manifest_sha256", "")


def _short(digests: dict[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:8]}" for name, sha256 in digests.items())


def _outcome(link: Link) -> str:
    try:
        verdict = link.judged
    except ValidationError:
        return "a verdict that does not read"
    num_passed = len(verdict.checks) - len(verdict.failed_checks)
    return f"{verdict.outcome}, {num_passed} of {len(verdict.checks)} checks"


def _conclusion(found: Findings, *, storage_root: str | None) -> str:
    links = found.chain.links
    gates = sum(link.verdict is not None for link in links)
    compared = f"the run record in {storage_root} agrees" if storage_root else "not compared with a run record"
    return f"verified: {len(found.manifest.files)} files, {len(links)} links, {gates} gates passed; {compared}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", help="folder of the published model: path, gs:// or s3://")
    parser.add_argument("--storage-root", help="compare with the run record there")
    parser.add_argument("--base", metavar="DIR", help="check that the run began with this model")
    parser.add_argument("--data", metavar="FILE", action="append", default=[], help="check that it read this file")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    run.configure_logging()
    try:
        found = verify(args.published, storage_root=args.storage_root, base=args.base, data=tuple(args.data))
    except (OSError, ValueError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    if found.manifest:
        told = found.manifest
        print(wording.line(f"{told.model_name} {told.version}, SHA-256 {told.sha256}, run {told.run_id}"))
    if found.chain:
        print(*lines(found.chain), sep="\n")
    if not found.faults:
        print(_conclusion(found, storage_root=args.storage_root))
    print(*(wording.line(f"wrong: {fault}") for fault in found.faults), sep="\n", end="\n" if found.faults else "")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
