"""Register the version that this run published, in the registries of the configuration.

receipt of publish_model -> the version in each registry, with its address and what its gates measured

A registry that is away costs nothing of what is published: the step says so, and how to register later. With
`registries.required` it fails instead, after it has tried them all, and a run that resumes registers.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from posttrain import config, storage
from posttrain.config import RegisterStep
from posttrain.registries.entry import Entry, read_entry
from posttrain.registries.registration import register
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running

logger = logging.getLogger(__name__)


def entry_of(receipt: dict[str, Any]) -> Entry:
    """Reads the version of a receipt; ValueError if it is no longer what this run has published."""
    entry = read_entry(receipt["uri"])
    if entry.digest != receipt["manifest_sha256"]:
        raise ValueError(
            f"{receipt['manifest_uri']}: its SHA-256 is {entry.digest}, not {receipt['manifest_sha256']} as when this "
            "run published it; run again"
        )
    return entry


def register_published(receipt: dict[str, Any], settings: RegisterStep) -> dict[str, Any]:
    """Registers the version of a receipt; returns where it is, and an error for each registry that does not have it.

    Raises:
        ValueError: a registry does not have it, and `required` is on.
    """
    outcome = register(entry_of(receipt), settings.registries)
    later = f"to register it later: python -m posttrain.registries.register {receipt['uri']} --config FILE"
    errors = [f"published in {receipt['uri']}, but {error}; {later}" for error in outcome.errors]
    if errors and settings.registries.required:
        raise ValueError(" | ".join(errors))
    for error in errors:
        logger.warning("%s", error)
    return {"registered": outcome.registered, "errors": errors}


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--receipt", required=True, help="receipt of publish_model, JSON")
    parser.add_argument("--registration", required=True, help="output: where it is registered, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(RegisterStep, args.config)

    def work(_: Running) -> dict[str, Any]:
        measured = register_published(json.loads(Path(args.receipt).read_text(encoding="utf-8")), settings)
        storage.write_text(args.registration, json.dumps(measured, indent=2) + "\n")
        return measured

    inputs, outputs = {"receipt": args.receipt}, {"registration": args.registration}
    frame.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work, reusable=False)


if __name__ == "__main__":
    main()
