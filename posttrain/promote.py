"""Make a published version the current one, forward or back, or show the current one and its history.

name, version -> one more promotion in <publish_root>/<name>/promotions/, and CURRENT, which deployments read

    python -m posttrain.promote NAME --storage-root DIR
    python -m posttrain.promote NAME VERSION --storage-root DIR --reason "wrong refund amounts since 3f2a"

The history, promotions/000001.json, 000002.json, ..., is the truth: a promotion is one numbered file that only one of
several promoters can write, and it follows the promotion that its promoter has seen. CURRENT is a copy of the last one,
rewritten after it; where a promoter was killed in between, the next promotion, or `repair`, makes CURRENT agree again.
A version whose files are not those of its manifest is refused. Nothing is removed: rolling back is another promotion.
"""

import argparse
import logging
import os
import re
import sys
from datetime import UTC, datetime
from itertools import count
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain import storage
from posttrain.config import NAME
from posttrain.pages import wording
from posttrain.publish import MANIFEST, Manifest
from posttrain.step import run
from posttrain.storage import layout
from posttrain.verify import verify

ENTRY = re.compile(r"(\d{6})\.json")

logger = logging.getLogger(__name__)


class Promotion(BaseModel):
    """One entry of the history, and the content of CURRENT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    number: int = Field(ge=1)  # it follows the one before
    model_name: str
    version: str
    sha256: str  # of the model, as in its manifest
    previous: str | None = None  # the version that was current before
    promoted_at: str  # UTC, ISO 8601
    by: str = Field(min_length=1)  # a run ID, or who did it by hand
    reason: str = Field(min_length=1)

    @property
    def json_bytes(self) -> bytes:
        """The content of its file."""
        return f"{self.model_dump_json(indent=2)}\n".encode()


def read_history(model_folder: str) -> list[Promotion]:
    """Reads all promotions of a published model, the oldest first; none if it was never promoted.

    Raises:
        ValueError: a promotion is missing or invalid. So it is where CURRENT names one that is not there: without it
            the next model would be compared with an older version, or with none.
    """
    pointer = read_pointer(model_folder)  # first: it is written after its promotion
    names = storage.list_files(layout.promotions(model_folder))
    numbers = sorted(int(match[1]) for name in names if (match := ENTRY.fullmatch(name)))
    missing = next(number for number in count(1) if number not in numbers)
    if missing <= max(numbers, default=0):
        raise ValueError(f"{_entry(model_folder, missing)}: is missing, though later promotions are there; restore it")
    if pointer and missing <= pointer.number:
        raise ValueError(
            f"{_entry(model_folder, missing)}: is missing, though {layout.current(model_folder)} names promotion "
            f"{pointer.number}; restore it, or remove {layout.CURRENT} if nobody made that promotion"
        )
    return [_read_entry(model_folder, number) for number in numbers]


def current(model_folder: str) -> Promotion | None:
    """Returns the promotion of the current version, by the history; None if no version is current."""
    return next(reversed(read_history(model_folder)), None)


def read_pointer(model_folder: str) -> Promotion | None:
    """Reads CURRENT; None if it is missing or no promotion, so that `repair` is due if there is a history."""
    try:
        return Promotion.model_validate_json(storage.read_bytes(layout.current(model_folder)))
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s: is not a promotion", layout.current(model_folder))
        return None


def repair(model_folder: str) -> bool:
    """Makes CURRENT agree with the history, and tells whether it had to be rewritten.

    It looks again after each write: a slower promoter must not leave an older promotion in CURRENT.
    """
    was_stale = False
    while (last := current(model_folder)) and read_pointer(model_folder) != last:
        storage.write_bytes(layout.current(model_folder), last.json_bytes)
        was_stale = True
    return was_stale


def promote(model_folder: str, version: str, *, model_name: str, follows: int, by: str, reason: str) -> Promotion:
    """Makes a published version the current one and returns the promotion.

    Where the version is current already, whatever `follows` says, nothing is written and its promotion is returned.

    Args:
        follows: number of the promotion that the decision was made against; 0 if no version was current.

    Raises:
        ValueError: the version is not published, or its files are not those of its manifest; another version was
            promoted since `follows`.
    """
    last = current(model_folder)
    is_current = last is not None and last.version == version
    if not is_current:
        _check_follows(model_folder, last, follows)
    manifest = check_published(storage.join(model_folder, version), model_name=model_name, version=version)
    if is_current and last.sha256 == manifest.sha256:
        repair(model_folder)
        return last
    promotion = Promotion(
        number=follows + 1,
        model_name=model_name,
        version=version,
        sha256=manifest.sha256,
        previous=last.version if last else None,
        promoted_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=by,
        reason=reason,
    )
    try:
        storage.write_bytes(_entry(model_folder, promotion.number), promotion.json_bytes, if_absent=True)
    except FileExistsError:
        _check_follows(model_folder, current(model_folder), follows)
        raise
    repair(model_folder)
    return promotion


def check_published(target: str, *, model_name: str, version: str) -> Manifest:
    """Reads and hashes a published version, and returns its manifest.

    Raises:
        ValueError: it is not published, or it is not what its manifest and chain say; all faults are in the message.
    """
    findings = verify(target)
    if findings.faults:
        raise ValueError(f"{target}: cannot be made current: {' | '.join(findings.faults)}")
    manifest = findings.manifest
    for key, value in (("model_name", model_name), ("version", version)):
        if getattr(manifest, key) != value:
            raise ValueError(f"{target}: {key} in {MANIFEST} is {getattr(manifest, key)!r}, not {value!r}")
    return manifest


def _check_follows(model_folder: str, last: Promotion | None, follows: int) -> None:
    """Refuses a decision that was made against a version which is no longer current."""
    if (last.number if last else 0) != follows:
        now = f"version {last.version} by promotion {last.number} of {last.by}" if last else "no version"
        raise ValueError(
            f"{layout.promotions(model_folder)}: {now} is current, but the decision was made against promotion "
            f"{follows}; compare with the current version and promote again"
        )


def _entry(model_folder: str, number: int) -> str:
    return layout.promotions(model_folder, f"{number:06}.json")


def _read_entry(model_folder: str, number: int) -> Promotion:
    uri = _entry(model_folder, number)
    try:
        promotion = Promotion.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{uri}: {'.'.join(map(str, first['loc']))}: {first['msg']}; restore it") from error
    if promotion.number != number:
        raise ValueError(f"{uri}: number is {promotion.number}, not {number}; restore it")
    return promotion


def show(model_folder: str) -> list[str]:
    """Lists the promotions, the newest last, and the current version; repairs CURRENT where it is stale."""
    history = read_history(model_folder)
    if not history:
        return [f"{model_folder}: no version is current"]
    repaired = repair(model_folder)
    lines = [line_of(promotion) for promotion in read_history(model_folder)]
    lines += [f"{layout.current(model_folder)}: was stale, and is rewritten"] if repaired else []
    last = current(model_folder)
    return [*lines, f"current: {last.version}, SHA-256 {last.sha256}"]


def line_of(promotion: Promotion) -> str:
    """Formats a promotion on one line."""
    before = f"{promotion.previous} -> " if promotion.previous else ""
    what = f"{promotion.number} {promotion.promoted_at} {before}{promotion.version}"
    return f"{what} by {promotion.by}: {promotion.reason}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name under which the model is published")
    parser.add_argument("version", nargs="?", help="version to make current; without it the history is shown")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--storage-root", metavar="URI", help="storage root of the runs: path, gs:// or s3://")
    place.add_argument("--publish-root", metavar="URI", help="publish_root of the runs, where it is configured")
    parser.add_argument("--reason", help="why, for the record; needed with a version")
    parser.add_argument("--by", default=os.environ.get("USER"), help="who does it, for the record (default: $USER)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not NAME.fullmatch(args.name):
        parser.error(f"{args.name!r} is not the name of a model")
    if args.version and not (NAME.fullmatch(args.version) and args.reason and args.by):
        parser.error("a promotion needs the name of a version, --reason and --by, which are recorded")
    run.configure_logging()
    model_folder = layout.versions(args.storage_root, args.publish_root, args.name)
    try:
        if args.version:
            by_hand(model_folder, args)
        lines = show(model_folder)
    except (OSError, ValueError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    print(*map(wording.line, lines), sep="\n")
    return 0


def by_hand(model_folder: str, args: argparse.Namespace) -> None:
    """Promotes the version against whatever is current at the start."""
    last = current(model_folder)
    follows = last.number if last else 0
    promote(model_folder, args.version, model_name=args.name, follows=follows, by=args.by, reason=args.reason)


if __name__ == "__main__":
    sys.exit(main())
