"""Prepare a data set: read it, convert it, split it so that training and evaluation never share a prompt.

URI (path, gs://, s3://, Hub id) -> train and eval JSONL, statistics.json, manifest.json (hashes of each side's prompts)

Rows are read, converted and written one by one: only their hashes and ids stay in memory, so that files may be large.

The side of a row depends only on its normalised prompt and the fraction. So SFT and preference data that are split with
the same fraction agree: no training row of one shares its prompt with an evaluation row of the other.

Several data sets, each with a weight, become one. Ids then begin with the data set's number, and a row that a weight
repeats names the row that it `repeats`.

Evaluation rows keep their `references`, by which gates judge answers; training rows have none. Where answers to their
prompts are judged too, the references of training rows are a file of their own, by the rows' ids.
"""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import config, storage
from posttrain.config.mixture import Part, parts_of, uris_of
from posttrain.rows import foreign
from posttrain.rows.formats import (
    ANSWER_KEYS,
    content_key,
    convert_rows,
    message_text,
    open_jsonl,
    prompt_key,
    write_row,
)
from posttrain.rows.held_out import SALT, side_of
from posttrain.rows.sources import open_data_set
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running
from posttrain.storage.local import naming

SIDES = ("train", "eval")
REFERENCES = "references"  # of the training rows

logger = logging.getLogger(__name__)


def split(rows: list[dict], eval_fraction: float) -> tuple[list[dict], list[dict]]:
    """Splits rows into training and evaluation rows; those with the same normalised prompt stay together, in order.

    Raises:
        ValueError: one side would be empty.
    """
    sides: dict[str, list[dict]] = {name: [] for name in SIDES}
    for row in rows:
        sides[side_of(prompt_key(row), eval_fraction)].append(row)
    num_prompts = len({prompt_key(row) for row in rows})
    _check_sides({name: len(side) for name, side in sides.items()}, eval_fraction, num_prompts=num_prompts)
    return sides["train"], sides["eval"]


def _check_sides(num_rows: dict[str, int], eval_fraction: float, *, num_prompts: int) -> None:
    for side, name, change in (("train", "training", "lower"), ("eval", "evaluation", "raise")):
        if not num_rows[side]:
            raise ValueError(
                f"eval_fraction {eval_fraction} leaves no {name} rows of {sum(num_rows.values())} "
                f"({num_prompts} prompts): {change} data.eval_fraction, or add rows with other prompts"
            )


@dataclass
class Side:
    """Counts the rows of one side as they pass, and keeps the hashes of their prompts."""

    keys: tuple[str, ...]  # prompt and answers
    num_rows: int = 0
    prompts: set[bytes] = field(default_factory=set)  # SHA-256
    roles: Counter[str] = field(default_factory=Counter)
    total_chars: Counter[str] = field(default_factory=Counter)
    max_chars: dict[str, int] = field(default_factory=dict)

    def add(self, row: dict, prompt: bytes) -> None:
        self.num_rows += 1
        self.prompts.add(prompt)
        for key in self.keys:
            self.roles.update(message["role"] for message in row[key])
            num_chars = sum(len(message_text(message)) for message in row[key])
            self.total_chars[key] += num_chars
            self.max_chars[key] = max(num_chars, self.max_chars.get(key, 0))

    @property
    def statistics(self) -> dict:
        return {
            "num_rows": self.num_rows,
            "num_prompts": len(self.prompts),
            "roles": dict(sorted(self.roles.items())),
            "chars": {
                key: {"mean": round(self.total_chars[key] / self.num_rows, 1), "max": self.max_chars[key]}
                for key in self.keys
            },
        }


@dataclass(frozen=True)
class Prepared:
    """The results of reading a data set, or several, once."""

    statistics: dict
    manifest: dict  # without the prompts' hashes
    prompts: dict[str, set[bytes]]  # SHA-256, by side
    held_out: list[bytes]  # that of the prompt of each held-out row
    source: dict[str, Any]


Write = Callable[[str, dict], object]  # side, row


def prepare(
    dataset: str,
    *,
    kind: str,
    settings: config.DataConfig,
    write: Write = lambda *_: None,
    keep_references: Callable[[dict], object] = lambda _: None,
) -> Prepared:
    """Reads, converts and splits data sets row by row; each row goes to `write` with the name of its side.

    Args:
        keep_references: gets id and references of each training row that has some.

    Raises:
        ValueError: on one line, naming place, row, key, value and remedy.
    """
    parts = parts_of(dataset)
    reading = Reading(kind, settings, write, keep_references)
    sources = [
        reading.read(part, prefix=f"{number}/" if len(parts) > 1 else "") for number, part in enumerate(parts, 1)
    ]
    if len(parts) == 1 and parts[0].weight == 1:
        [one] = sources
        source = {"source": dataset, "commit": one["commit"], "digest": one["sha256"]}
    else:
        digest = hashlib.sha256("".join(f"{one['sha256']} {one['weight']:g}\n" for one in sources).encode()).hexdigest()
        source = {"source": dataset, "commit": "", "digest": digest, "data_sets": sources}
    return Prepared(
        reading.statistics(),
        manifest={"kind": kind, "salt": SALT, "eval_fraction": settings.eval_fraction},
        prompts={name: side.prompts for name, side in reading.sides.items()},
        held_out=reading.held_out,
        source=source,
    )


class Reading:
    """Reads data sets, one after the other, and counts what it sees."""

    def __init__(self, kind: str, settings: config.DataConfig, write: Write, keep_references: Callable[[dict], object]):
        self.kind, self.settings, self.write, self.keep_references = kind, settings, write, keep_references
        self.sides = {name: Side(("prompt", *ANSWER_KEYS[kind])) for name in SIDES}
        self.contents: set[bytes] = set()
        self.held_out: list[bytes] = []
        self.formats: dict[str, None] = {}  # in their order
        self.left_out: Counter[str] = Counter()  # rows by key
        self.num_input_rows = self.num_repeats = 0

    def read(self, part: Part, *, prefix: str) -> dict[str, Any]:
        """Reads a data set and returns where it came from; `prefix`: of its rows' ids."""
        seen, num_rows, prompts, formats = _Counted(), Counter(dict.fromkeys(SIDES, 0)), set(), set()
        hub = {"hub_subset": self.settings.hub_subset, "hub_split": self.settings.hub_split}
        with open_data_set(part.uri, **hub) as data_set:
            raw, ignored = seen.each(data_set.rows), self.settings.ignored_keys
            for format_name, rows in convert_rows(raw, kind=self.kind, source=part.uri, ignored=ignored):
                formats.add(format_name)
                for row in rows:
                    prompts.add(key := prompt_key(row))
                    name = side_of(key, self.settings.eval_fraction)
                    num_rows[name] += self._take(row | {"id": prefix + row["id"]}, key, name, part.weight)
        try:
            _check_sides(num_rows, self.settings.eval_fraction, num_prompts=len(prompts))
        except ValueError as error:
            raise ValueError(f"{part.uri}: {error}") from None
        self._note(part, seen, *formats)  # convert_rows lets all rows have one format only
        counts = {f"num_{name}_rows": num for name, num in num_rows.items()}
        return {
            "address": part.uri, "commit": data_set.commit, "sha256": data_set.digest, "weight": part.weight, **counts
        }  # fmt: skip

    def _take(self, row: dict, key: str, name: str, weight: float) -> int:
        """Writes a row as often as its data set's weight says, and returns how often."""
        content = content_key(row)
        num_copies = copies(weight, name, drawn=f"{self.settings.seed}:{content}")
        for copy in range(num_copies):
            self.sides[name].add(row, bytes.fromhex(key))
            again = {"id": f"{row['id']}-again-{copy}", "repeats": row["id"]} if copy else {}
            self.write(name, (row if name == "eval" else _to_train_on(row)) | again)
        if num_copies and name == "train" and REFERENCES in row:
            self.keep_references({"id": row["id"], REFERENCES: row[REFERENCES]})
        self.num_repeats += max(0, num_copies - 1)
        self.left_out.update(row.get("left_out", ()))
        self.contents |= {bytes.fromhex(content)} if num_copies else set()
        self.held_out += [bytes.fromhex(key)] if num_copies and name == "eval" else []
        return num_copies

    def _note(self, part: Part, seen: "_Counted", format_name: str) -> None:
        self.num_input_rows += seen.num_rows
        self.formats[format_name] = None
        if format_name in foreign.KEYS:
            logger.info("%s: %d rows converted from %s", part.uri, seen.num_rows, format_name)

    def statistics(self) -> dict:
        num_rows = sum(side.num_rows for side in self.sides.values())
        return {
            "kind": self.kind,
            "format": "; ".join(self.formats),
            "num_input_rows": self.num_input_rows,
            "num_rows": num_rows,
            # rows that differ in nothing but the id, without those that a weight repeats
            "num_duplicate_rows": num_rows - self.num_repeats - len(self.contents),
            "left_out_keys": dict(sorted(self.left_out.items())),
            **{name: side.statistics for name, side in self.sides.items()},
        }


def copies(weight: float, side: str, *, drawn: str) -> int:
    """Returns how often a row of a data set with this weight is taken.

    As often as the whole part of the weight, and once more with the chance of its fraction: a number between 0 and 1,
    the first 8 bytes of the SHA-256 of `drawn`, lies below it. A held-out row is asked once, whatever the weight.
    """
    number = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:8]) / 2**64
    num_copies = int(weight) + (number < weight % 1)
    return min(1, num_copies) if side == "eval" else num_copies


def _to_train_on(row: dict) -> dict:
    """Without what the gates compare answers with."""
    return {key: value for key, value in row.items() if key != REFERENCES}


class _Counted:
    """Counts rows as they pass."""

    def __init__(self):
        self.num_rows = 0

    def each(self, rows: Iterable[dict]) -> Iterator[dict]:
        for row in rows:
            self.num_rows += 1
            yield row


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument(
        "--dataset", required=True, help="path, gs://, s3:// or Hub id owner/name[@revision], or a list"
    )
    parser.add_argument("--kind", required=True, choices=sorted(ANSWER_KEYS))
    parser.add_argument("--train", required=True, help="output: training rows, JSONL")
    parser.add_argument("--eval", required=True, help="output: evaluation rows, JSONL")
    parser.add_argument("--statistics", required=True, help="output: statistics, JSON")
    parser.add_argument("--manifest", required=True, help="output: hashes of the prompts of each side, JSON")
    parser.add_argument("--references", help="output: accepted answers of the training rows by id, JSONL")
    return parser


@contextmanager
def complete_files(paths: dict[str, str]) -> Iterator[Callable[[str, dict], None]]:
    """Writes rows to JSON Lines files by name, those of no file nowhere; none of the files appears before all rows are
    written.
    """
    partial = {name: Path(f"{path}.partial") for name, path in paths.items()}
    try:
        with naming(partial["train"].parent), ExitStack() as stack:
            opened = {name: stack.enter_context(open_jsonl(path)) for name, path in partial.items()}
            yield lambda name, row: write_row(opened[name], row) if name in opened else None
        for name, path in partial.items():
            path.replace(paths[name])
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def write_manifest(path: str, prepared: Prepared) -> None:
    """Writes the manifest line by line: with short rows all hashes together may be as large as the data."""
    with naming(path), open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(prepared.manifest, indent=2).removesuffix("\n}"))
        for name, prompts in prepared.prompts.items():
            file.write(f',\n  "{name}": [')
            file.writelines(f'{"," if at else ""}\n    "{prompt.hex()}"' for at, prompt in enumerate(sorted(prompts)))
            file.write("\n  ]")
        file.write("\n}\n")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.PrepareStep, args.config, args.overrides)
    outputs = {name: getattr(args, name) for name in ("train", "eval", "statistics", "manifest")}
    outputs |= {REFERENCES: args.references} if args.references else {}

    def work(_: Running) -> dict:
        setting = f"{args.kind}_dataset"
        for uri in uris_of(args.dataset):
            storage.check_allowed(uri, step.allowed_prefixes, name=setting)
        with complete_files({name: outputs[name] for name in (*SIDES, REFERENCES) if name in outputs}) as write:
            try:
                prepared = prepare(
                    args.dataset, kind=args.kind, settings=step.data, write=write,
                    keep_references=partial(write, REFERENCES),
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"{setting}: {error}") from error
        write_manifest(outputs["manifest"], prepared)
        statistics = prepared.statistics
        storage.write_text(outputs["statistics"], json.dumps(statistics, indent=2) + "\n")
        return {
            **prepared.source,
            "format": statistics["format"],
            "num_train_rows": statistics["train"]["num_rows"],
            "num_eval_rows": statistics["eval"]["num_rows"],
            "num_duplicate_rows": statistics["num_duplicate_rows"],
        }

    # The data at an address may change, so it is read each time; equal rows give equal outputs.
    frame.run_step(args, inputs={}, outputs=outputs, config=step, work=work, reusable=False)


if __name__ == "__main__":
    main()
