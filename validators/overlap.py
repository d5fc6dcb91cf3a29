"""Finds what rows repeat: within a file, and of what is trained on in what is evaluated.

rows by file, prompts that gates ask -> ids of the rows that repeat others, exactly or nearly; hashes of all prompts
"""

import json
from itertools import filterfalse, product
from pathlib import Path

from posttrain.rows import ANSWER_KEYS, content_key, prompt_key, user_text
from validators import duplicates

Rows = dict[str, list[dict]]  # by file: sft_train and so on, or the key of prompts that a gate asks

MANIFEST_VERSION = 1
HASHED = (
    "SHA-256 of the user turns before the first answer, joined by line feeds: NFKC and case folded, without "
    "Default_Ignorable_Code_Point, words joined by one space, punctuation around a word taken away"
)


def alike(rows: Rows, asked: Rows, similarity: float) -> dict[str, dict[str, list[str]]]:
    """What nearly repeats something, within a file and between training and evaluation files."""
    return {
        "near_duplicates": {name: near_duplicates(found, kind_of(name), similarity) for name, found in rows.items()},
        "near_shared_prompts": near_shared_prompts(rows | asked, similarity),
    }


def near_duplicates(rows: list[dict], kind: str, similarity: float) -> list[str]:
    """Rows whose turns, answers and system text are each nearly those of an earlier row. Exact repeats are not here."""
    exact = {id(row) for row in repeated(rows)}
    rows = [row for row in rows if id(row) not in exact]
    found = duplicates.near_earlier([_texts(row, kind) for row in rows], similarity)
    return [f"{rows[number]['id']} like {rows[earlier]['id']}" for number, earlier in found.items()]


def compare_prompts(rows: Rows) -> dict[str, dict]:
    """Hashes of all prompts, and which prompts an evaluation file shares with a training file."""
    hashes = {
        name: [{"id": row["id"], "prompt_sha256": prompt_key(row)} for row in found] for name, found in rows.items()
    }
    trained = {name: {one["prompt_sha256"] for one in hashes[name]} for name in filter(_is_trained_on, rows)}
    shared = {
        f"{held_out} with {train}": [one["id"] for one in hashes[held_out] if one["prompt_sha256"] in trained[train]]
        for held_out, train in product(filterfalse(_is_trained_on, rows), trained)
    }
    return {"prompts": hashes, "shared_prompts": shared}


def near_shared_prompts(rows: Rows, similarity: float) -> dict[str, list[str]]:
    """Evaluation prompts that are nearly, but not exactly, a training prompt. Only what the user says counts."""
    first = {name: {prompt_key(row): row for row in reversed(found)} for name, found in rows.items()}
    trained = {key: (name, row) for name in filter(_is_trained_on, rows) for key, row in first[name].items()}
    found = {name: [] for name in filterfalse(_is_trained_on, rows)}
    held_out = [(name, row) for name in found for key, row in first[name].items() if key not in trained]
    others = [*trained.values()]
    texts, other_texts = ([user_text(row["prompt"]) for _, row in some] for some in (held_out, others))
    for number, other in duplicates.near_others(texts, other_texts, similarity).items():
        (name, row), (train, like) = held_out[number], others[other]
        found[name].append(f"{row['id']} like {like['id']} of {train}")
    return found


def repeated(rows: list[dict]) -> list[dict]:
    """Rows that are, but for the id, an earlier one."""
    seen, found = set(), []
    for row in rows:
        key = content_key(row)
        if key in seen:
            found.append(row)
        seen.add(key)
    return found


def write_manifest(path: str, hashes: dict[str, list[dict]] | None) -> None:
    """With which anybody can see later whether other rows were part of this data."""
    manifest = {"schema_version": MANIFEST_VERSION, "hashed": HASHED, "files": hashes or {}}
    Path(path).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


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
