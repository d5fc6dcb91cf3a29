"""Verify a published model: every file, and the chain from its sources through the gates.

published model (path, gs://, s3://) -> the chain, one line per link, then `verified` and exit code 0, or one line for
each fault and exit code 1

Files, SHA256SUMS, manifest.json and provenance.json must agree. Someone who can rewrite all of these files can forge a
consistent set: with --public-key the signature on all of them, and on each gate's verdict, must be of that key, with
--identity and --identity-provider of whoever they name, by Sigstore. Pass --storage-root, --base and --data to compare
with independent copies.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from posttrain import storage
from posttrain.config.keyless import Keyless
from posttrain.pages import wording
from posttrain.signing import envelope, signature
from posttrain.signing.envelope import KeyTrust
from posttrain.signing.keyless import KeylessTrust, trust_config
from posttrain.step import digests, provenance, run
from posttrain.step.provenance import Link, Provenance
from posttrain.step.published import MANIFEST, PROVENANCE, Manifest, read
from posttrain.step.records import RECORD, parse_record, read_records
from posttrain.storage import layout
from posttrain.weights.folder import source_digest

logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """The contents of a published folder, as far as they can be read, and everything that is wrong with it."""

    manifest: Manifest | None = None
    chain: Provenance | None = None
    faults: list[str] = field(default_factory=list)


def verify(
    published: str,
    *,
    public_key: str | None = None,
    keyless: Keyless | None = None,
    storage_root: str | None = None,
    base: str | None = None,
    data: tuple[str, ...] = (),
) -> Findings:
    """Reads and hashes everything again.

    Args:
        public_key: the file of the key that should have signed the model; without one, signatures are not checked.
        keyless: who should have signed it without a key.
        storage_root: where the run record is that the chain was built from.
        base: the folder that should be the base model.
        data: the files that should be the data sets of the run.

    Raises:
        OSError: the storage does not answer.
        ValueError: `base` is not a model, `public_key` not a key, or `keyless` names no trust configuration.
    """
    trust = trust_of(public_key, keyless)
    findings = Findings(*read(published))
    if findings.chain is None:
        return findings
    if trust:
        findings.faults += signature.faults(published, findings.manifest, findings.chain, trust)
    if storage_root:
        sha256 = hashlib.sha256(storage.read_bytes(storage.join(published, MANIFEST))).hexdigest()
        findings.faults += record_faults(findings.chain, storage_root, manifest_sha256=sha256)
    findings.faults += source_faults(findings.chain, base=base, data=data)
    return findings


def trust_of(public_key: str | None, keyless: Keyless | None) -> signature.Trust | None:
    """Returns what opens signatures; None if they are not checked."""
    if keyless:
        trust_config(keyless, must_sign=False)  # an error of its own, not a fault of each signature
        return KeylessTrust(keyless)
    return KeyTrust(envelope.read_public_key(public_key)) if public_key else None


def record_faults(chain: Provenance, storage_root: str, *, manifest_sha256: str) -> list[str]:
    """Checks that the run record agrees with every link, and that a receipt names exactly this manifest."""
    faults, records = [], read_records(storage_root, chain.run_id, is_proof=True)
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
    """Checks that the chain began with the user's own copies of model and data."""
    faults, models, data_sets = [], {}, {}
    for link in (link for link in chain.links if link.source):
        parts = enumerate(link.source.parts, start=1) if isinstance(link.source, provenance.Mixture) else ()
        data_sets |= {f"{link.step}: {number}": part.sha256 for number, part in parts}
        (models if "model" in link.outputs else data_sets)[link.step] = link.source.sha256
    copies = [(base, source_digest, models)] if base else []
    for path, digest, known in [*copies, *((file, digests.digest, data_sets) for file in data)]:
        sha256 = digest(path)
        if sha256 not in known.values():
            there = ", ".join(f"{step} read {known[step]}" for step in known)
            faults.append(f"{path}: the chain did not begin with it: its SHA-256 is {sha256}; {there}")
    return faults


def lines(chain: Provenance) -> Iterator[str]:
    """Formats the chain, one line per link, with the first 8 digits of each SHA-256."""
    width = max(len(link.step) for link in chain.links)
    for link in chain.links:
        source = f"{link.source} {link.source.sha256[:8]}" if link.source else ""
        gave = _outcome(link) if link.verdict else _short(chain.passed_on(link))
        text = wording.line(f"{_short(link.inputs) or source}{' -> ' if gave else ''}{gave}")
        yield f"{wording.line(link.step).ljust(width)}  {text}"


def _receipts(storage_root: str, run_id: str, step: str) -> Iterator[str]:
    """Yields the SHA-256 of every manifest that a run has published, those of this run first.

    If this run's publisher was killed, another run may have finished publishing and has the receipt.
    """
    runs = layout.runs(storage_root)
    matches = {name: RECORD.fullmatch(name.partition("/")[2]) for name in storage.list_files(runs)}
    names = [name for name, match in matches.items() if match and match["step"] == step]
    for name in sorted(names, key=lambda name: not name.startswith(f"{run_id}/")):
        uri = storage.join(runs, name)
        try:
            done = parse_record(uri, storage.read_bytes(uri), run=name.partition("/")[0])
        except ValueError as error:
            logger.warning("skipped: %s", error)
            continue
        yield done.measured.get("manifest_sha256", "")


def _short(digests: dict[str, str]) -> str:
    return ", ".join(f"{name} {sha256[:8]}" for name, sha256 in digests.items())


def _outcome(link: Link) -> str:
    try:
        verdict = link.judged
    except ValidationError:
        return "an invalid verdict"
    num_passed = len(verdict.checks) - len(verdict.failed_checks)
    return f"{verdict.outcome}, {num_passed} of {len(verdict.checks)} checks"


def _conclusion(findings: Findings, *, storage_root: str | None, signer: str | None) -> str:
    links = findings.chain.links
    gates = sum(link.verdict is not None for link in links)
    compared = f"the run record in {storage_root} agrees" if storage_root else "not compared with a run record"
    counts = f"{len(findings.manifest.files)} files, {len(links)} links, {gates} gates passed"
    signed = f"; signed {signer}" if signer else ""
    unchecked = "; the signature was not checked" if findings.manifest.signed_with and not signer else ""
    return f"verified: {counts}{signed}; {compared}{unchecked}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", help="folder of the published model: path, gs:// or s3://")
    parser.add_argument("--public-key", metavar="FILE", help="check that the model is signed with this key, PEM")
    parser.add_argument("--identity", help="check that this identity has signed the model without a key, by Sigstore")
    parser.add_argument("--identity-provider", metavar="URL", help="which vouches for that identity")
    parser.add_argument(
        "--trust-config",
        metavar="FILE",
        help="Sigstore's client trust configuration, or its trusted root alone (default: the public instance)",
    )
    parser.add_argument("--storage-root", help="compare with the run record in this storage root")
    parser.add_argument("--base", metavar="DIR", help="check that the run started from this model")
    parser.add_argument("--data", metavar="FILE", action="append", default=[], help="check that the run read this file")
    return parser


def keyless_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Keyless | None:
    """Returns whom the flags name as the signer without a key, if they do."""
    named = [args.identity, args.identity_provider]
    is_keyless = all(named)
    if any(named) != is_keyless or is_keyless and args.public_key or args.trust_config and not is_keyless:
        parser.error(
            "give --public-key alone, or both --identity and --identity-provider, and --trust-config with them"
        )
    if not is_keyless:
        return None
    return Keyless(identity=args.identity, issuer=args.identity_provider, trust_config=args.trust_config)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    keyless = keyless_of(parser, args)
    run.configure_logging()
    try:
        findings = verify(
            args.published, public_key=args.public_key, keyless=keyless, storage_root=args.storage_root,
            base=args.base, data=tuple(args.data),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    if manifest := findings.manifest:
        model = f"{manifest.model_name} {manifest.version}, SHA-256 {manifest.sha256}, run {manifest.run_id}"
        print(wording.line(model))
    if findings.chain:
        print(*lines(findings.chain), sep="\n")
    if not findings.faults:
        signer = f"by {args.identity}" if keyless else args.public_key and f"with {args.public_key}"
        print(wording.line(_conclusion(findings, storage_root=args.storage_root, signer=signer)))
    for fault in findings.faults:
        print(wording.line(f"wrong: {fault}"))
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
