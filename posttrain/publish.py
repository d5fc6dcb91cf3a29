"""Publish the model that was judged: if every required gate of this run passed, and on exactly these files.

model folder, verdicts in the run record -> <publish_root>/<model_name>/<version>/ with the model's files, README.md
(model card), SHA256SUMS and, last, manifest.json; receipt; optionally a Hub repository

The version is the start of the model's digest unless one is given. The same model again is fine, another one under the
same version is refused.
"""

import argparse
import hashlib
import json
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from posttrain import checkpoints, config, kfp_io, record, storage, wording
from posttrain.config import PublishStep
from posttrain.verdict import Verdict

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
WEIGHTS = {"base", "before", "adapter", "model"}  # as inputs of gates; prompts may come from outside the run
MANIFEST, CARD, SUMS = "manifest.json", "README.md", "SHA256SUMS"

CARD_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

logger = logging.getLogger(__name__)


def publish(
    model: Path | str,
    *,
    model_name: str,
    storage_root: str,
    run_id: str,
    settings: PublishStep,
    version: str | None = None,
) -> dict:
    """Publishes and gives the receipt.

    Raises:
        ValueError: a gate has no verdict, did not pass or judged something else; a name is not valid; the version is
            taken.
    """
    model = Path(model)
    sha256 = record.digest(model)
    version = version or sha256[:12]
    _check_names(model_name, version, settings)
    gates = read_gates(storage_root, run_id, settings)
    check_gates(gates, sha256, settings, made=read_made(storage_root, run_id))
    root = settings.publish_root or storage.join(storage_root, "published")
    target = storage.join(root, model_name, version)
    manifest = read_manifest(target)
    if manifest is None:
        facts = {"model_name": model_name, "version": version, "sha256": sha256, "run_id": run_id}
        manifest = _upload(model, target, facts=facts | _provenance(storage_root, run_id), gates=gates)
    _check_same(target, manifest, sha256)
    hub = _upload_to_hub(target, manifest, model, settings) if settings.upload_to_hub else None
    receipt = {key: manifest[key] for key in ("model_name", "version", "sha256")}
    size = sum(file.stat().st_size for file in record.files_of(model))
    receipt |= {"uri": target, "manifest_uri": storage.join(target, MANIFEST), "run_id": run_id, "gates": sorted(gates)}
    return receipt | {"size_gb": round(size / 1e9, 6), "published_at": manifest["published_at"], "hub": hub}


def read_gates(storage_root: str, run_id: str, settings: PublishStep) -> dict[str, Verdict | None]:
    """Verdicts of the required gates in this run, by step name; None for a gate without one."""
    return {gate: record.read_verdict(storage_root, run_id, gate) for gate in settings.required_gates}


def read_made(storage_root: str, run_id: str) -> set[str]:
    """SHA-256 of everything that the steps of this run gave."""
    return {sha256 for step in record.read_records(storage_root, run_id) for sha256 in step.outputs.values()}


def check_gates(gates: dict[str, Verdict | None], sha256: str, settings: PublishStep, *, made: set[str]) -> None:
    """Refuses gates that do not speak for the model of this SHA-256.

    Raises:
        ValueError: a gate has no verdict or did not pass, the weights it judged were not made in this run (`made`), or
            one of the judged gates judged another model.
    """
    if not settings.judged_gates or not set(settings.judged_gates) <= gates.keys():
        required = sorted(gates)
        raise ValueError(f"judged_gates: {settings.judged_gates} must name some of {required}; compile the graph again")
    for gate, verdict in gates.items():
        _check_passed(gate, verdict)
        _check_subject(gate, verdict, made)
    for gate in settings.judged_gates:
        subject = gates[gate].subject
        judged = subject.get("model") or subject.get("adapter")  # an adapter where nothing is merged
        if judged != sha256:
            raise ValueError(
                f"gate {gate}: judged model {judged}, not {sha256}; publish the model that it judged, or run it again"
            )


def read_manifest(target: str) -> dict | None:
    """The manifest of a version that is already published; None if there is none."""
    uri = storage.join(target, MANIFEST)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def model_card(facts: dict, gates: dict[str, Verdict]) -> str:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"number": _number, "interval": _interval, "cell": wording.markdown}
    return environment.from_string(CARD_TEMPLATE.read_text(encoding="utf-8")).render(facts, gates=gates)


def _check_passed(gate: str, verdict: Verdict | None) -> None:
    if verdict is None:
        raise ValueError(f"gate {gate}: no verdict in this run; publishing needs it, run the graph with this gate")
    if verdict.gate != gate:
        raise ValueError(f"gate {gate}: its record holds the verdict of {verdict.gate}; run the gate again")
    if not verdict.passed:
        reasons = "; ".join(wording.line(check.sentence) for check in verdict.failed_checks)
        found = "is undecided" if verdict.outcome == "undecided" else "did not pass"
        raise ValueError(f"gate {gate}: {found}: {reasons}")


def _check_subject(gate: str, verdict: Verdict, made: set[str]) -> None:
    """A verdict that says nothing of what it judged, or judged weights from elsewhere, speaks for no model here."""
    if not verdict.subject:
        raise ValueError(f"gate {gate}: its verdict does not say what it judged; run the gate again")
    for name in sorted(WEIGHTS & verdict.subject.keys()):
        sha256 = verdict.subject[name]
        if sha256 not in made:
            raise ValueError(f"gate {gate}: judged {name} {sha256}, which no step of this run made; run the gate again")


def _check_names(model_name: str, version: str, settings: PublishStep) -> None:
    for key, value in (("model_name", model_name), ("version", version)):
        if not NAME.fullmatch(value):
            raise ValueError(f"{key}: {value!r} is not a name; use letters, digits, '.', '_' and '-'")
    if settings.upload_to_hub and not (settings.hub_repo_id and os.environ.get("HF_TOKEN")):
        raise ValueError(
            "upload_to_hub: needs hub_repo_id and a token with write access in HF_TOKEN; give both or switch it off"
        )


def _check_same(target: str, manifest: dict, sha256: str) -> None:
    if manifest["sha256"] != sha256:
        raise ValueError(
            f"{target}: holds another model ({manifest['sha256']}, this one is {sha256}); publish under another version"
        )


def _provenance(storage_root: str, run_id: str) -> dict:
    """What each finished step of the run gave, and where the base model came from."""
    done = [step for step in record.read_records(storage_root, run_id) if step.outputs]
    source = next((step.measured for step in done if "commit" in step.measured), {})
    return {
        "source": "@".join(filter(None, (source.get("source"), source.get("commit")))),
        "provenance": {step.step: step.outputs for step in done},
    }


def _upload(model: Path, target: str, *, facts: dict, gates: dict[str, Verdict]) -> dict:
    """Files first, the manifest last and only if there is none."""
    digests = {file.relative_to(model).as_posix(): record.digest(file) for file in record.files_of(model)}
    written = {CARD: model_card(facts, gates).encode()}
    digests |= {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    written[SUMS] = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()
    strangers = sorted(set(storage.list_files(target)) - digests.keys() - {SUMS})
    if strangers:
        found = f"holds {strangers[0]} of an unfinished upload of another model"
        raise ValueError(f"{target}: {found}; remove the folder or give another version")
    storage.upload_folder(model, target)
    for name, data in written.items():
        storage.write_bytes(storage.join(target, name), data)
    verdicts = {gate: verdict.model_dump(mode="json") for gate, verdict in gates.items()}
    manifest = facts | {
        "files": digests,
        "gates": verdicts,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        storage.write_bytes(storage.join(target, MANIFEST), json.dumps(manifest, indent=2).encode(), if_absent=True)
    except FileExistsError:
        logger.info("%s: another run has published it meanwhile", target)
    return read_manifest(target)


def _upload_to_hub(target: str, manifest: dict, model: Path, settings: PublishStep) -> dict:
    """One commit to a repository that is private unless somebody has made it public."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"])
    api.create_repo(settings.hub_repo_id, private=True, exist_ok=True)
    sources = {file.relative_to(model).as_posix(): str(file) for file in record.files_of(model)}
    sources |= {name: storage.read_bytes(storage.join(target, name)) for name in (CARD, SUMS, MANIFEST)}
    operations = [CommitOperationAdd(name, source) for name, source in sources.items()]
    title = f"{manifest['model_name']} {manifest['version']}"
    commit = api.create_commit(settings.hub_repo_id, operations, commit_message=title)
    return {"repo_id": settings.hub_repo_id, "commit": commit.oid}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--model-name", required=True, help="name to publish under")
    parser.add_argument("--version", help="version to publish under (default: start of the model's digest)")
    parser.add_argument("--receipt", required=True, help="file for the receipt")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(PublishStep, args.config)

    def work() -> dict:
        receipt = publish(
            args.model, model_name=args.model_name, storage_root=args.storage_root, run_id=record.run_id(),
            settings=settings, version=args.version,
        )  # fmt: skip
        Path(args.receipt).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
        if not settings.save_intermediate:
            checkpoints.remove_run(args.storage_root, record.run_id())
        return receipt

    inputs, outputs = {"model": args.model}, {"receipt": args.receipt}
    record.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work, reusable=False)


if __name__ == "__main__":
    main()
