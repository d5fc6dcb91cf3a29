"""Make the published model the current version, if check_champion of this run passed on exactly this model.

receipt of publish_model, run record -> one more promotion of the model's name, and CURRENT

The promotion follows the one that check_champion compared with. If another version became current in between, this step
fails, and another run compares again.
"""

import argparse
import hashlib
import json
from pathlib import Path

from posttrain import config, storage
from posttrain.config import PromoteStep
from posttrain.config.line import CHAMPION
from posttrain.promote import Promotion, promote
from posttrain.step import frame, kfp_io, records, run
from posttrain.step.published import MANIFEST
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.train import checkpoints

FOLLOWS = "follows_promotion"  # the gate's number of the promotion that it compared with; 0: none


def make_current(receipt: dict, *, storage_root: str, settings: PromoteStep) -> Promotion:
    """Promotes the version of a receipt.

    Raises:
        ValueError: the gate did not pass on this model, another version became current since, or the published one is
            not what this run published.
    """
    name, run_id = receipt["model_name"], run.run_id()
    follows = compared_with(storage_root, run_id, receipt["sha256"])
    target = storage.join(layout.versions(storage_root, settings.publish_root, name), receipt["version"])
    check_receipt(target, receipt)
    return promote(
        layout.versions(storage_root, settings.publish_root, name),
        receipt["version"],
        model_name=name,
        follows=follows,
        by=run_id,
        reason=f"{CHAMPION} passed",
    )


def check_receipt(target: str, receipt: dict) -> None:
    """Refuses a version that is no longer what this run has published, though it may agree with itself.

    Raises:
        ValueError: its manifest, which binds all its files and verdicts, is not that of the receipt.
    """
    uri = storage.join(target, MANIFEST)
    actual = hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    if actual != receipt["manifest_sha256"]:
        raise ValueError(
            f"{uri}: its SHA-256 is {actual}, not {receipt['manifest_sha256']} as when this run published it: find "
            "out who has changed it, restore it, and run again"
        )


def compared_with(storage_root: str, run_id: str, sha256: str) -> int:
    """Returns the number of the promotion that the gate of this run compared the model with.

    Raises:
        ValueError: the gate has no verdict, did not pass, or judged another model.
    """
    judged = [one for one in records.read_records(storage_root, run_id) if one.step == CHAMPION and one.verdict]
    if not judged:
        raise ValueError(f"{CHAMPION}: has no verdict in run {run_id}; nothing is made current without one")
    verdict = judged[-1].judged
    if not verdict.passed:
        raise ValueError(
            f"{CHAMPION}: did not pass in run {run_id}; the version stays published, and is not made current"
        )
    if verdict.subject.get("model") != sha256:
        raise ValueError(f"{CHAMPION}: judged model {verdict.subject.get('model')}, but {sha256} was published")
    if FOLLOWS not in verdict.numbers:
        raise ValueError(f"{CHAMPION}: its verdict does not say which promotion it compared with; run again")
    return int(verdict.numbers[FOLLOWS])


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--receipt", required=True, help="receipt of publish_model, JSON")
    parser.add_argument("--promotion", required=True, help="output: the promotion, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(PromoteStep, args.config)

    def work(running: Running) -> dict:
        receipt = json.loads(Path(args.receipt).read_text(encoding="utf-8"))
        promotion = make_current(receipt, storage_root=running.storage_root, settings=settings)
        Path(args.promotion).write_bytes(promotion.json_bytes)
        if not settings.save_intermediate:
            checkpoints.remove_run(running.storage_root, run.run_id())
        return promotion.model_dump(mode="json")

    inputs, outputs = {"receipt": args.receipt}, {"promotion": args.promotion}
    frame.run_step(args, inputs=inputs, outputs=outputs, config=settings, work=work, reusable=False)


if __name__ == "__main__":
    main()
