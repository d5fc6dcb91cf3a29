"""Finds rows that repeat others: within a file, and evaluation rows that repeat training rows.

rows by file, prompts that gates ask -> ids of the rows that repeat others, exactly or nearly; hashes of all prompts
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import filterfalse, product
from pathlib import Path
from typing import Any, NamedTuple

from posttrain import storage
from posttrain.config.evidence import Evidence
from posttrain.rows.formats import (
    ANSWER_KEYS,
    content_key,
    message_text,
    prompt_key,
    text_key,
    tools_of,
    user_text,
)
from posttrain.rows.held_out import Prompts, Supply, supplies
from validators import duplicates, leaks

# By file, such as sft_train, or by the key of prompts that a gate asks. They are read several times; of training rows
# only hashes stay in memory.
Rows = dict[str, Iterable[dict]]

MANIFEST_VERSION = 1
HASHED = (
    "SHA-256 of the user turns before the first answer, joined by line feeds, as skeleton: NFKC, case folded, without "
    "invisible characters, look-alikes of ASCII letters as these, hyphens and slashes as blanks, words joined by one "
    "space, punctuation and symbols around a word taken away"
)


class Hashed(NamedTuple):
    row_id: str
    key: bytes  # SHA-256 of the prompt


def alike(rows: Rows, asked: Rows, similarity: float) -> dict[str, dict[str, list[str]]]:
    """Near-duplicates within each file, and between training and evaluation files."""
    return {
        "near_duplicates": {name: near_duplicates(one, kind_of(name), similarity) for name, one in rows.items()},
        "near_shared_prompts": near_shared_prompts(rows | asked, similarity),
    }


def answered_elsewhere(rows: Rows, asked: Rows) -> dict[str, dict[str, list[str]]]:
    """Prompts of evaluation files, and of those that a gate asks, that a training row answers not in its opening."""
    trained = {name: one for name, one in rows.items() if _is_trained_on(name)}
    held_out = {name: one for name, one in (rows | asked).items() if not _is_trained_on(name)}
    return {"answered_elsewhere": leaks.answered_elsewhere(trained, held_out)}


def near_duplicates(rows: Iterable[dict], kind: str, similarity: float) -> list[str]:
    """Rows whose turns, answers and system prompt are each nearly those of an earlier row, without exact repeats."""
    distinct = _first_of_each(rows, content_key)
    near = duplicates.near_earlier(TextsOf(distinct, partial(_texts, kind=kind)), similarity)
    ids = {number: row["id"] for number, row in distinct.at({*near, *near.values()})}
    return [f"{ids[number]} like {ids[earlier]}" for number, earlier in near.items()]


def compare_prompts(rows: Rows, manifest: str | Path, evidence: Evidence) -> dict[str, Any]:
    """Prompts that an evaluation file shares with a training file, and how many there are for what the gates need.

    Writes the hashes of all prompts to the manifest.
    """
    trained: dict[str, set[bytes]] = {name: set() for name in filter(_is_trained_on, rows)}
    held_out: dict[str, list[Hashed]] = {name: [] for name in filterfalse(_is_trained_on, rows)}
    keep = {name: lambda one, keys=keys: keys.add(one.key) for name, keys in trained.items()}
    keep |= {name: hashed.append for name, hashed in held_out.items()}
    write_manifest(manifest, {name: _hashed(one, keep[name]) for name, one in rows.items()})
    shared = {
        f"{name} with {train}": [one.row_id for one in held_out[name] if one.key in trained[train]]
        for name, train in product(held_out, trained)
    }
    keys = {name: [one.key for one in hashed] for name, hashed in held_out.items()}
    return {"shared_prompts": shared, "supplies": _supplies(evidence, keys, trained)}


def _supplies(evidence: Evidence, held_out: dict[str, list[bytes]], trained: dict[str, set[bytes]]) -> list[Supply]:
    """How many rows there are for what the gates need, by the keys of the prompts of each file."""
    data_sets = {
        kind_of(name): Prompts(keys, trained.get(f"{kind_of(name)}_train", set()).union(keys))
        for name, keys in held_out.items()
        if name.endswith("_eval")
    }
    return supplies(evidence, data_sets, {name: len(set(keys)) for name, keys in held_out.items()})


def _hashed(rows: Iterable[dict], keep: Callable[[Hashed], object]) -> Iterator[Hashed]:
    for row in rows:
        one = Hashed(row["id"], bytes.fromhex(prompt_key(row)))
        keep(one)
        yield one


def near_shared_prompts(rows: Rows, similarity: float) -> dict[str, list[str]]:
    """Evaluation prompts that are nearly, but not exactly, what a user says in a training row, first or later."""
    trained = _first_of_each(InFiles({name: rows[name] for name in filter(_is_trained_on, rows)}), _said_key)
    shared = {name: [] for name in filterfalse(_is_trained_on, rows)}
    held_out = [
        (name, row["id"], user_text(row["prompt"]))
        for name in shared
        for row in _first_of_each(rows[name], prompt_key, leave_out=trained.keys)
    ]
    texts = [text for _, _, text in held_out]
    near = duplicates.near_others(texts, TextsOf(trained, lambda item: item.text), similarity)
    like = {number: f"{said.row_id} of {said.file}" for number, said in trained.at({*near.values()})}
    for number, other in near.items():
        name, row_id, _ = held_out[number]
        shared[name].append(f"{row_id} like {like[other]}")
    return shared


class Said(NamedTuple):
    file: str
    row_id: str
    text: str


@dataclass(frozen=True)
class InFiles:
    """The user's words in the rows of several files: the opening of each row, and every later turn."""

    rows: Rows

    def __iter__(self) -> Iterator["Said"]:
        for name, rows in self.rows.items():
            for row in rows:
                later = (turn for turn, _ in leaks.exchanges(row))
                for text in dict.fromkeys((user_text(row["prompt"]), *later)):
                    yield Said(name, row["id"], text)


@dataclass(frozen=True)
class Distinct:
    """The first item of each key. Items are read anew on every pass."""

    items: Iterable
    left_out: set[int]
    keys: set[bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator:
        return (item for number, item in enumerate(self.items) if number not in self.left_out)

    def at(self, numbers: set[int]) -> Iterator[tuple[int, Any]]:
        return ((number, item) for number, item in enumerate(self) if number in numbers)


@dataclass(frozen=True)
class TextsOf:
    """The texts of items, read anew on every pass."""

    items: Distinct
    text: Callable

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator:
        return map(self.text, self.items)


def _first_of_each(items: Iterable, key_of: Callable[..., str], *, leave_out: Container[bytes] = ()) -> Distinct:
    keys, left_out = set(), set()
    for number, item in enumerate(items):
        key = bytes.fromhex(key_of(item))
        if key in keys or key in leave_out:
            left_out.add(number)
        else:
            keys.add(key)
    return Distinct(items, left_out, keys)


def _said_key(said: Said) -> str:
    return text_key(said.text).hex()


def write_manifest(path: str | Path, files: dict[str, Iterable[Hashed]]) -> None:
    """Writes the prompts' hashes, by which anybody can check later whether a row was part of this data."""
    manifest = {"schema_version": MANIFEST_VERSION, "hashed": HASHED, "files": {}}
    head, foot = json.dumps(manifest, indent=1)[:-3], "\n }\n}\n" if files else "}\n}\n"
    with storage.naming(path), open(path, "w", encoding="utf-8") as file:
        file.write(head)
        for at, (name, rows) in enumerate(files.items()):
            file.write(f"{',' if at else ''}\n  {json.dumps(name)}: [")
            end = "]"
            for number, (row_id, key) in enumerate(rows):
                id_and_hash = f'"id": {json.dumps(row_id)},\n    "prompt_sha256": "{key.hex()}"'
                file.write(f"{',' if number else ''}\n   {{\n    {id_and_hash}\n   }}")
                end = "\n  ]"
            file.write(end)
        file.write(foot)


def kind_of(file: str) -> str:
    """`sft` or `preference`."""
    return file.split("_")[0]


def _texts(row: dict, kind: str) -> duplicates.Text:
    """The row in the parts that must each be alike; the part that differs most often comes first."""
    turns = "\n".join(message_text(message) for message in row["prompt"] if message["role"] != "system")
    system = [message["content"] for message in row["prompt"] if message["role"] == "system"]
    system = "\n".join([*system, *map(json.dumps, tools_of(row["prompt"]))])
    answers = [message_text(row[key][0]) for key in ANSWER_KEYS[kind]]
    return turns, *answers, system


def _is_trained_on(file: str) -> bool:
    return file.endswith("_train")
