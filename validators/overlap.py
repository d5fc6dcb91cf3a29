"""Finds what rows repeat: within a file, and of what is trained on in what is evaluated.

rows by file, prompts that gates ask -> ids of the rows that repeat others, exactly or nearly; hashes of all prompts
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import filterfalse, product
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.rows.formats import ANSWER_KEYS, content_key, prompt_key, user_text
from validators import duplicates

# By file: sft_train and so on, or the key of prompts that a gate asks. One goes through them several times, and holds
# of each training row a hash.
Rows = dict[str, Iterable[dict]]

MANIFEST_VERSION = 1
HASHED = (
    "SHA-256 of the user turns before the first answer, joined by line feeds: NFKC and case folded, without "
    "Default_Ignorable_Code_Point, words joined by one space, punctuation around a word taken away"
)


class Hashed(NamedTuple):
    row_id: str
    key: bytes  # SHA-256 of the prompt


def alike(rows: Rows, asked: Rows, similarity: float) -> dict[str, dict[str, list[str]]]:
    """What nearly repeats something, within a file and between training and evaluation files."""
    return {
        "near_duplicates": {name: near_duplicates(found, kind_of(name), similarity) for name, found in rows.items()},
        "near_shared_prompts": near_shared_prompts(rows | asked, similarity),
    }


def near_duplicates(rows: Iterable[dict], kind: str, similarity: float) -> list[str]:
    """Rows whose turns, answers and system text are each nearly those of an earlier row. Exact repeats are not here."""
    different = _first_of_each(rows, content_key)
    found = duplicates.near_earlier(Said(different, partial(_texts, kind=kind)), similarity)
    ids = {number: row["id"] for number, row in different.at({*found, *found.values()})}
    return [f"{ids[number]} like {ids[earlier]}" for number, earlier in found.items()]


def compare_prompts(rows: Rows, manifest: str | Path) -> dict[str, dict[str, list[str]]]:
    """Which prompts an evaluation file shares with a training file. The hashes of all go to the manifest."""
    trained: dict[str, set[bytes]] = {name: set() for name in filter(_is_trained_on, rows)}
    held_out: dict[str, list[Hashed]] = {name: [] for name in filterfalse(_is_trained_on, rows)}
    keep = {name: lambda one, keys=keys: keys.add(one.key) for name, keys in trained.items()}
    keep |= {name: found.append for name, found in held_out.items()}
    write_manifest(manifest, {name: _hashed(found, keep[name]) for name, found in rows.items()})
    shared = {
        f"{name} with {train}": [one.row_id for one in held_out[name] if one.key in trained[train]]
        for name, train in product(held_out, trained)
    }
    return {"shared_prompts": shared}


def _hashed(rows: Iterable[dict], keep: Callable[[Hashed], object]) -> Iterator[Hashed]:
    for row in rows:
        one = Hashed(row["id"], bytes.fromhex(prompt_key(row)))
        keep(one)
        yield one


def near_shared_prompts(rows: Rows, similarity: float) -> dict[str, list[str]]:
    """Evaluation prompts that are nearly, but not exactly, a training prompt. Only what the user says counts."""
    trained = _first_of_each(InFiles({name: rows[name] for name in filter(_is_trained_on, rows)}), _prompt_key)
    found = {name: [] for name in filterfalse(_is_trained_on, rows)}
    held_out = [
        (name, row["id"], user_text(row["prompt"]))
        for name in found
        for row in _first_of_each(rows[name], prompt_key, leave_out=trained.keys)
    ]
    texts = [text for _, _, text in held_out]
    near = duplicates.near_others(texts, Said(trained, lambda item: user_text(item[1]["prompt"])), similarity)
    like = {number: f"{row['id']} of {train}" for number, (train, row) in trained.at({*near.values()})}
    for number, other in near.items():
        name, row_id, _ = held_out[number]
        found[name].append(f"{row_id} like {like[other]}")
    return found


@dataclass(frozen=True)
class InFiles:
    """Rows of several files, each with the name of its file."""

    rows: Rows

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        return ((name, row) for name, found in self.rows.items() for row in found)


@dataclass(frozen=True)
class Different:
    """The first of all items that have the same key. They are read anew each time one goes through them."""

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
class Said:
    """What items say."""

    items: Different
    text: Callable

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator:
        return map(self.text, self.items)


def _first_of_each(items: Iterable, key_of: Callable[..., str], *, leave_out: Container[bytes] = ()) -> Different:
    keys, left_out = set(), set()
    for number, item in enumerate(items):
        key = bytes.fromhex(key_of(item))
        if key in keys or key in leave_out:
            left_out.add(number)
        else:
            keys.add(key)
    return Different(items, left_out, keys)


def _prompt_key(item: tuple[str, dict]) -> str:
    return prompt_key(item[1])


def write_manifest(path: str | Path, files: dict[str, Iterable[Hashed]]) -> None:
    """With which anybody can see later whether other rows were part of this data; written row by row."""
    manifest = {"schema_version": MANIFEST_VERSION, "hashed": HASHED, "files": {}}
    head, foot = json.dumps(manifest, indent=1)[:-3], "\n }\n}\n" if files else "}\n}\n"
    with open(path, "w", encoding="utf-8") as file:
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
    """sft or preference."""
    return file.split("_")[0]


def _texts(row: dict, kind: str) -> duplicates.Text:
    """What the row says, in the parts that must each be alike. What tells rows apart soonest comes first."""
    said = "\n".join(message["content"] for message in row["prompt"] if message["role"] != "system")
    told = "\n".join(message["content"] for message in row["prompt"] if message["role"] == "system")
    answers = [row[key][0]["content"] for key in ANSWER_KEYS[kind]]
    return said, *answers, told


def _is_trained_on(file: str) -> bool:
    return file.endswith("_train")
