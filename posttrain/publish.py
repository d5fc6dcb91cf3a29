"""Publish the model that was judged, if every required gate of this run passed on exactly these files.

model folder (and that of its exported files), run record -> <publish_root>/<model_name>/<version>/ with the model's
files, export/, README.md (model card), provenance.json, SHA256SUMS, optionally bom.cdx.json, attestations.jsonl and
model.sig, and last manifest.json; receipt; optionally a Hub repository

The default version is the start of the model's digest, and of that of its exported files. Publishing the same model
again is fine; another model under the same version is refused. The first publisher claims the version by writing
PUBLISHING.json, which fixes every byte of the other files: two publishers at once write the same, and one that
follows a killed one finishes its work.
"""

import argparse
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain import config, storage
from posttrain.config import PublishStep, check_name, line
from posttrain.pages import card, wording
from posttrain.pages.answers import AnsweredPrompt
from posttrain.signing import bill, signature
from posttrain.step import digests, frame, gate_answers, kfp_io, provenance, published, records, run
from posttrain.step.code import code_of, fingerprint
from posttrain.step.provenance import Link, Provenance
from posttrain.step.published import (
    BILL,
    CARD,
    CLAIM,
    EXPORT,
    MANIFEST,
    PROVENANCE,
    SIGNED,
    SUMS,
    WRITTEN,
    Manifest,
    read_manifest,
)
from posttrain.step.running import Running
from posttrain.storage import hub, layout
from posttrain.train import checkpoints

STEP = "publish_model"  # name in the graph
METRICS = "metrics"  # output of a step
GIT_ATTRIBUTES = ".gitattributes"  # of a repository on the Hub: which of its files git keeps elsewhere

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folders:
    """Sources of a published version: folders, and the SHA-256 of each of their files by its name."""

    model: Path
    files: dict[str, str]
    export: Path | None = None  # of the files in which the model is served
    exported: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of each folder, as a step that takes them records it."""
        model = {"model": digests.folder_digest(self.files)}
        return model | ({"export": digests.folder_digest(self.exported)} if self.export else {})

    @property
    def names(self) -> dict[str, str]:
        """SHA-256 of all files by their names in the published folder."""
        return self.files | {f"{EXPORT}/{name}": sha256 for name, sha256 in self.exported.items()}

    @property
    def version(self) -> str:
        """The version under which it is published unless another one is given."""
        model, *export = self.inputs.values()
        return "-".join([model[:12], *(sha256[:6] for sha256 in export)])


class Claim(BaseModel):
    """PUBLISHING.json: the manifest and the files beside the model's own, before they are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Manifest
    written: dict[str, str]  # name -> text


def publish(
    folders: Folders, *, model_name: str, storage_root: str, settings: PublishStep, version: str | None = None
) -> dict:
    """Publishes the model and returns the receipt.

    Raises:
        ValueError: a gate has no verdict, did not pass or judged something else; the chain from the sources to the
            model is broken; a name is invalid; the version is taken; a file is not the one that was judged.
    """
    run_id, version = run.run_id(), version or folders.version
    _check_names(model_name, version, settings)
    signer = signature.signer_of(settings.signing) if settings.signing else None
    _check_files(folders, is_signed=signer is not None)
    chain = read_chain(storage_root, run_id, folders.inputs, settings)
    target = storage.join(layout.versions(storage_root, settings.publish_root, model_name), version)
    written = {}
    if read_manifest(target) is None:
        evidence = card.Evidence(read_answers(chain, storage_root), read_metrics(chain, storage_root))
        named = {"model_name": model_name, "version": version}
        hub_id = settings.hub_repo_id if settings.upload_to_hub else None
        claim = _claim_of(chain, evidence, folders, signer=signer, hub_repo_id=hub_id, **named)
        written = _publish(folders, target, claim)
    storage.remove(storage.join(target, CLAIM))  # or that of a publisher that was killed at its end
    manifest = read_manifest(target)
    _check_same(target, manifest, folders)
    _check_published(target, manifest, model_name=model_name, version=version, written=written)
    if signer:
        _check_signed(target, manifest, signer)
    uploaded = _upload(target, manifest, folders, settings) if settings.upload_to_hub else None
    num_bytes = sum(file.stat().st_size for file in digests.files_of(folders.model))
    receipt = _receipt(target, manifest, num_bytes=num_bytes)
    return receipt | {"run_id": run_id, "gates": sorted(settings.required_gates), "hub": uploaded}


def read_chain(storage_root: str, run_id: str, inputs: dict[str, str], settings: PublishStep) -> Provenance:
    """Builds the chain from the sources to the model, and its exported files, from the record of this run.

    Args:
        inputs: SHA-256 of `model` and, where there are exported files, of `export`.

    Raises:
        ValueError: the chain has faults; all of them are in the message.
    """
    values = settings.model_dump(mode="json")
    bound = {"config": values, "inputs": inputs, "code": code_of(__spec__.name, config=values)}
    end = Link(step=STEP, fingerprint=fingerprint(STEP, **bound), outputs={}, **bound)
    chain = provenance.trace(records.read_records(storage_root, run_id, is_proof=True), run_id=run_id, end=end)
    if faults := provenance.faults(chain):
        raise ValueError(" | ".join(faults))
    return chain


def read_answers(chain: Provenance, storage_root: str) -> list[AnsweredPrompt]:
    """The answers to held-out prompts by which the model of a chain was judged; none if their file was changed."""
    try:
        rows = gate_answers.of_chain(chain, records.read_records(storage_root, chain.run_id), storage_root)
    except (OSError, ValueError) as error:
        logger.warning("the model card shows no answers: %s", wording.line(str(error)))
        return []
    return [row for row in rows if row.source == "held-out prompt"]


def read_metrics(chain: Provenance, storage_root: str) -> dict[str, dict[str, Any]]:
    """The metrics of the samplings and trainings of a chain, by step, without those whose file was changed."""
    metrics = {}
    for record in records.read_records(storage_root, chain.run_id, of={line.SAMPLING, *line.TRAININGS}):
        sha256 = next((link.outputs.get(METRICS) for link in chain.links if link.step == record.step), None)
        try:
            if record.kept and sha256:
                metrics[record.step] = _read_metrics(storage.join(storage_root, record.kept, METRICS), sha256)
        except (OSError, ValueError) as error:
            logger.warning("the model card shows nothing of %s: %s", record.step, wording.line(str(error)))
    return metrics


def _read_metrics(uri: str, sha256: str) -> dict[str, Any]:
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{uri}: is not the file that the step recorded: it was changed")
    return json.loads(content)


def _receipt(target: str, manifest: Manifest, *, num_bytes: int) -> dict:
    """Builds the receipt: what was published, where, and the SHA-256 of its manifest."""
    uri = storage.join(target, MANIFEST)
    return {
        **manifest.model_dump(include={"model_name", "version", "sha256", "published_at"}),
        "uri": target,
        "manifest_uri": uri,
        "manifest_sha256": hashlib.sha256(storage.read_bytes(uri)).hexdigest(),
        "size_gb": round(num_bytes / 1e9, 6),
    }


def _check_names(model_name: str, version: str, settings: PublishStep) -> None:
    for key, value in (("model_name", model_name), ("version", version)):
        check_name(value, key=key)
    if version in (layout.CURRENT, layout.PROMOTIONS):
        raise ValueError(f"version: {version!r} is the name of a file beside the versions; publish under another one")
    if settings.upload_to_hub and not (settings.hub_repo_id and os.environ.get("HF_TOKEN")):
        raise ValueError(
            "upload_to_hub: needs hub_repo_id and a token with write access in HF_TOKEN; give both or switch it off"
        )


def _check_files(folders: Folders, *, is_signed: bool) -> None:
    written = {*WRITTEN, *(SIGNED if is_signed else ())}
    taken = [name for name in sorted(folders.files) if name in written or name.startswith(f"{EXPORT}/")]
    if taken:
        file = folders.model / taken[0]
        raise ValueError(f"{file}: publishing writes a file of this name itself; leave it out of the model")


def _check_same(target: str, manifest: Manifest, folders: Folders) -> None:
    sha256 = folders.inputs["model"]
    if manifest.sha256 != sha256:
        raise ValueError(
            f"{target}: is another model ({manifest.sha256}, this one is {sha256}); publish under another version"
        )
    if manifest.exported_files != folders.exported:
        raise ValueError(f"{target}: has other exported files than this run; publish under another version")


def _check_published(
    target: str, manifest: Manifest, *, model_name: str, version: str, written: dict[str, str]
) -> None:
    """Refuses a receipt for files that are not those of the manifest: damaged since, removed, or added by somebody.

    Args:
        written: name -> SHA-256 of the files that this process has just written; all others are read.
    """
    faults = [
        f"{MANIFEST}: {key} is {getattr(manifest, key)!r}, not {value!r}"
        for key, value in (("model_name", model_name), ("version", version))
        if getattr(manifest, key) != value
    ]
    # Another publisher of the same model may have written its claim since, and removes it at once.
    faults += [fault for fault in published.faults(target, known=written) if not fault.startswith(f"{CLAIM}: ")]
    if faults:
        remedy = "remove the folder and publish again, or give another version"
        raise ValueError(f"{target}: is not what was published there: {' | '.join(faults)}; {remedy}")


def _check_signed(target: str, manifest: Manifest, signer: signature.Signer) -> None:
    """Refuses a receipt for a version that was published before without a signature, or by another signer."""
    chain = published.parse(target, storage.read_bytes(storage.join(target, PROVENANCE)), Provenance)
    if faults := signature.faults(target, manifest, chain, signer.trust):
        remedy = "publish under another version, or remove the folder and publish again"
        raise ValueError(f"{target}: is not signed by the signer of this run: {' | '.join(faults)}; {remedy}")


def _claim_of(
    chain: Provenance,
    evidence: card.Evidence,
    folders: Folders,
    *,
    signer: signature.Signer | None,
    hub_repo_id: str | None = None,
    **named: str,
) -> Claim:
    """Builds the claim: everything that will be published beside the files of the folders."""
    named = named | {"published_at": datetime.now(UTC).isoformat(timespec="seconds")}
    chain = chain.model_copy(update=named)
    written = {
        CARD: card.model_card(
            chain, evidence, files=folders.files, exported=folders.names.keys() - folders.files.keys(),
            folder=hub_repo_id or ".", is_signed=signer is not None,
        ),
        PROVENANCE: chain.model_dump_json(indent=2) + "\n",
    }  # fmt: skip
    if signer:
        named["signed_with"] = signer.name
        written[BILL] = bill.text(folders.model, chain, folders.files)
    files = folders.names | {name: hashlib.sha256(text.encode()).hexdigest() for name, text in written.items()}
    manifest = Manifest(sha256=chain.sha256, run_id=chain.run_id, files=dict(sorted(files.items())), **named)
    signed = signature.sign(manifest, chain, signer) if signer else {}
    return Claim(manifest=manifest, written=written | {SUMS: manifest.sums} | signed)


def _publish(folders: Folders, target: str, mine: Claim) -> dict[str, str]:
    """Claims the version, then writes the files and last the manifest.

    Returns name -> SHA-256 of what it wrote: nothing if another publisher has finished meanwhile.
    """
    _check_strangers(target, mine)
    try:
        claim = _claim(target, mine)
    except FileNotFoundError:  # removed since: its publisher has finished
        return {}
    if read_manifest(target) is not None:  # by a publisher that finished before our claim
        return {}
    own = [one.manifest.model_files | one.manifest.exported_files for one in (claim, mine)]
    if claim.manifest.sha256 != mine.manifest.sha256 or own[0] != own[1]:
        other = f"another model ({claim.manifest.sha256}) is being published there, or was when its run was killed"
        raise ValueError(f"{target}: {other}; give another version, or remove the folder if no run writes to it")
    sent = storage.upload_folder(folders.model, target)
    if folders.export:
        exported = storage.upload_folder(folders.export, storage.join(target, EXPORT))
        sent |= {f"{EXPORT}/{name}": sha256 for name, sha256 in exported.items()}
    if changed := sorted(name for name, sha256 in folders.names.items() if sent.get(name) != sha256):
        raise ValueError(f"{changed[0]}: is not the file that was judged; run again, from the last merge on")
    for name, text in claim.written.items():
        storage.write_bytes(storage.join(target, name), text.encode())
    try:
        storage.write_bytes(storage.join(target, MANIFEST), claim.manifest.json_bytes, if_absent=True)
    except FileExistsError:
        logger.info("%s: another publisher of the same model was faster", target)
    return sent | {name: hashlib.sha256(text.encode()).hexdigest() for name, text in claim.written.items()}


def _claim(target: str, mine: Claim) -> Claim:
    """Claims the version and returns the valid claim: mine, or that of an earlier publisher."""
    uri = storage.join(target, CLAIM)
    try:
        storage.write_bytes(uri, mine.model_dump_json(indent=2).encode(), if_absent=True)
    except FileExistsError:
        logger.info("%s: another run has begun to publish there", target)
    return published.parse(uri, storage.read_bytes(uri), Claim)


def _check_strangers(target: str, mine: Claim) -> None:
    """Refuses a folder with files that no publisher wrote: they would stay beside the model's own for ever."""
    present = set(storage.list_files(target))
    strangers = sorted(present - mine.manifest.files.keys() - set(WRITTEN))
    if strangers and not present & {CLAIM, MANIFEST}:
        raise ValueError(
            f"{target}: contains {strangers[0]}, not part of this model; remove the folder or give another version"
        )


def _upload(target: str, manifest: Manifest, folders: Folders, settings: PublishStep) -> dict:
    """Uploads to the Hub; one that is away, or refuses, costs nothing of what is published, and is said."""
    repo = settings.hub_repo_id
    try:
        with hub.errors("hub_repo_id", repo):
            return _upload_to_hub(target, manifest, folders, settings)
    except (ConnectionError, ValueError) as error:
        problem = (
            f"published in {target}, but not uploaded to the Hub: {wording.line(str(error))}; run again to repeat it"
        )
        logger.warning("%s", problem)
        return {"repo_id": repo, "error": problem}


def _upload_to_hub(target: str, manifest: Manifest, folders: Folders, settings: PublishStep) -> dict:
    """Makes the repository hold this version and nothing else, in one commit; a new repository is private.

    Weights or a tokenizer of an earlier version that stayed would be loaded in place of this one's, or beside them.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = hub.client()
    api.create_repo(settings.hub_repo_id, private=True, exist_ok=True)
    sources = {file.relative_to(folders.model).as_posix(): str(file) for file in digests.files_of(folders.model)}
    sources |= {f"{EXPORT}/{name}": str(folders.export / name) for name in folders.exported}
    names = [name for name in manifest.written if name != CLAIM]
    sources |= {name: storage.read_bytes(storage.join(target, name)) for name in names}
    operations = [CommitOperationAdd(name, source) for name, source in sources.items()]
    others = set(api.list_repo_files(settings.hub_repo_id)) - sources.keys() - {GIT_ATTRIBUTES}
    operations += [CommitOperationDelete(name) for name in sorted(others)]
    title = f"{manifest.model_name} {manifest.version}"
    commit = api.create_commit(settings.hub_repo_id, operations, commit_message=title)
    return {"repo_id": settings.hub_repo_id, "commit": commit.oid}


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--export", help="folder of its exported files")
    parser.add_argument("--model-name", required=True, help="name to publish under")
    parser.add_argument("--version", help="version to publish under (default: the start of the model's digest)")
    parser.add_argument("--receipt", required=True, help="file for the receipt")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(PublishStep, args.config)

    def work(running: Running) -> dict:
        export = Path(args.export) if args.export else None
        folders = Folders(Path(args.model), running.files["model"], export, running.files.get("export", {}))
        receipt = publish(
            folders, model_name=args.model_name, storage_root=running.storage_root, settings=settings,
            version=args.version,
        )  # fmt: skip
        storage.write_text(args.receipt, json.dumps(receipt, indent=2) + "\n")
        if not (settings.save_intermediate or settings.promote):
            checkpoints.remove_run(running.storage_root, run.run_id())
        return receipt

    inputs, outputs = {"model": args.model, "export": args.export}, {"receipt": args.receipt}
    frame.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work, reusable=False)


if __name__ == "__main__":
    main()
