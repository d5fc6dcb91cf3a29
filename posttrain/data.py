"""Prepare a data set: read it, convert it, split it so that training and evaluation never share a prompt.

URI (path, gs://, s3://, Hub id) -> train and eval JSONL, statistics.json, manifest.json (hashes of each side's prompts)

Rows are read, converted and written one by one: of any number of them the memory holds their hashes and ids alone.

Which side a row is on depends on its normalised prompt and the fraction alone. So the SFT and the preference data agree
when split with the same fraction: no training row of one shares its prompt with an evaluation row of the other.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from posttrain import config, storage
from posttrain.rows.chat import load_tokenizer, num_answer_tokens, num_trainable_tokens, render
from posttrain.rows.formats import (
    ANSWER_KEYS,
    check_row,
    content_key,
    convert,
    convert_rows,
    empty_key,
    open_jsonl,
    prompt_key,
    read_jsonl,
    user_text,
    write_jsonl,
    write_row,
)
from posttrain.rows.sources import open_data_set, read_rows
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running

__all__ = [
    "ANSWER_KEYS",
    "check_row",
    "content_key",
    "convert",
    "empty_key",
    "load_tokenizer",
    "num_answer_tokens",
    "num_trainable_tokens",
    "prepare",
    "prompt_key",
    "read_jsonl",
    "read_rows",
    "render",
    "split",
    "user_text",
    "write_jsonl",
]

SIDES = ("train", "eval")
SALT = "posttrain-split-1"  # another salt deals all prompts out anew


def side_of(key: str, eval_fraction: float) -> str:
    """The side to which the prompt with this key belongs."""
    dealt = hashlib.sha256(f"{SALT}:{key}".encode()).digest()
    return "eval" if int.from_bytes(dealt[:8]) < eval_fraction * 2**64 else "train"


def split(rows: list[dict], eval_fraction: float) -> tuple[list[dict], list[dict]]:
    """Training and evaluation rows, each in the order of `rows`. Rows with the same normalised prompt stay together.

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
                f"({num_prompts} prompts): {change} data.eval_fraction or give more different prompts"
            )


@dataclass
class Side:
    """What is counted of the rows of one side, one after the other. Of a row it keeps no more than a hash."""

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
            num_chars = sum(len(message["content"]) for message in row[key])
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
    """What is known of a data set whose rows have been gone through."""

    statistics: dict
    manifest: dict  # without the prompts' hashes
    prompts: dict[str, set[bytes]]  # SHA-256, by side
    source: dict[str, str]


def prepare(
    dataset: str, *, kind: str, settings: config.DataConfig, write: Callable[[str, dict], object] = lambda *_: None
) -> Prepared:
    """Reads, converts and splits row by row; each goes to `write` with the name of its side.

    Raises:
        ValueError: on one line, naming place, row, key, value and remedy.
    """
    sides = {name: Side(("prompt", *ANSWER_KEYS[kind])) for name in SIDES}
    seen, different, formats = _Seen(), set(), set()
    with open_data_set(dataset, hub_subset=settings.hub_subset, hub_split=settings.hub_split) as found:
        for format_name, rows in convert_rows(seen.each(found.rows), kind=kind, source=dataset):
            formats.add(format_name)
            for row in rows:
                key = prompt_key(row)
                name = side_of(key, settings.eval_fraction)
                sides[name].add(row, bytes.fromhex(key))
                different.add(bytes.fromhex(content_key(row)))
                write(name, row)
    num_rows = {name: side.num_rows for name, side in sides.items()}
    num_prompts = sum(len(side.prompts) for side in sides.values())
    try:
        _check_sides(num_rows, settings.eval_fraction, num_prompts=num_prompts)
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from None
    statistics = {
        "kind": kind,
        "format": formats.pop(),  # of all rows the same
        "num_input_rows": seen.num_rows,
        "num_rows": sum(num_rows.values()),
        "num_duplicate_rows": sum(num_rows.values()) - len(different),  # word by word, whatever their ids
        "dropped_keys": sorted(seen.keys - {"id", "messages", "prompt", *ANSWER_KEYS[kind]}),
        **{name: side.statistics for name, side in sides.items()},
    }
    return Prepared(
        statistics,
        manifest={"kind": kind, "salt": SALT, "eval_fraction": settings.eval_fraction},
        prompts={name: side.prompts for name, side in sides.items()},
        source={"source": dataset, "commit": found.commit, "digest": found.digest},
    )


class _Seen:
    """Counts rows as they pass, and their keys."""

    def __init__(self):
        self.num_rows, self.keys = 0, set()

    def each(self, rows: Iterable[dict]) -> Iterator[dict]:
        for row in rows:
            self.num_rows += 1
            if isinstance(row, dict):
                self.keys |= row.keys()
            yield row


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--dataset", required=True, help="path, gs://, s3:// or Hub id owner/name[@revision]")
    parser.add_argument("--kind", required=True, choices=sorted(ANSWER_KEYS))
    parser.add_argument("--train", required=True, help="output: training rows, JSONL")
    parser.add_argument("--eval", required=True, help="output: evaluation rows, JSONL")
    parser.add_argument("--statistics", required=True, help="output: statistics, JSON")
    parser.add_argument("--manifest", required=True, help="output: hashes of the prompts of each side, JSON")
    return parser


@contextmanager
def whole_or_not(paths: dict[str, str]) -> Iterator[Callable[[str, dict], None]]:
    """Writes rows to JSON Lines files, by their names; the files are there once all rows are."""
    partial = {name: Path(f"{path}.partial") for name, path in paths.items()}
    try:
        with ExitStack() as stack:
            opened = {name: stack.enter_context(open_jsonl(path)) for name, path in partial.items()}
            yield lambda name, row: write_row(opened[name], row)
        for name, path in partial.items():
            path.replace(paths[name])
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def write_manifest(path: str, prepared: Prepared) -> None:
    """Line by line: a text of all hashes would be as large as the data of short rows."""
    with open(path, "w", encoding="utf-8") as file:
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

    def work(_: Running) -> dict:
        storage.check_allowed(args.dataset, step.allowed_prefixes, name="dataset")
        with whole_or_not({name: outputs[name] for name in SIDES}) as write:
            prepared = prepare(args.dataset, kind=args.kind, settings=step.data, write=write)
        write_manifest(outputs["manifest"], prepared)
        statistics = prepared.statistics
        Path(outputs["statistics"]).write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
        return {
            **prepared.source,
            "format": statistics["format"],
            "num_train_rows": statistics["train"]["num_rows"],
            "num_eval_rows": statistics["eval"]["num_rows"],
            "num_duplicate_rows": statistics["num_duplicate_rows"],
        }

    # What lies at an address may change: it is read each time, and the same rows give the same outputs.
    frame.run_step(args, inputs={}, outputs=outputs, config=step, work=work, reusable=False)


if __name__ == "__main__":
    main()
