"""Gate check_data: are the prepared rows fit to train and to judge on? Loads a tokenizer, never a model.

tokenizer folder, SFT and preference rows (train, eval; a shorter graph has two of the four files) -> verdict, manifest
of the prompts' hashes

Each check looks at every row of every file; its value is that of the worst file, and its detail names rows to look at.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

from posttrain import chat, config, kfp_io
from posttrain.rows import ANSWER_KEYS, check_row, content_key, empty_key, prompt_key, read_jsonl, user_text
from posttrain.verdict import Check, at_least, at_most, finite, holds
from validators import checks, duplicates, measuring, personal_data

FILES = ("sft_train", "sft_eval", "preference_train", "preference_eval")
MANIFEST_VERSION = 1
HASHED = (
    "SHA-256 of the user turns before the first answer, joined by line feeds: NFKC and case folded, words joined by "
    "one space, punctuation around a word taken away"
)

# Which role may follow which; None is the start.
FOLLOWERS = {
    None: ("system", "user", "assistant"),
    "system": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

# What no row may be: attribute of FileNumbers, name of the check, remedy.
FORBIDDEN = (
    ("malformed", "malformed_rows", "Prepare the data set again: these rows were changed after it."),
    ("misordered", "role_order", "Let system come first and user and assistant take turns; tool follows assistant."),
    ("empty", "empty_turns", "Fill the turns in or remove the rows."),
    ("unrenderable", "rows_refused_by_template", "Bring the roles into the order that the chat template asks for."),
    (
        "untrainable",
        "untrainable_rows",
        "Shorten the prompts that fill max_seq_length, or see whether the chat template leaves the answer out.",
    ),
    ("endless", "rows_without_end_of_turn", "Use a chat template whose assistant turn ends with the eos_token."),
)

DISTINCT = "Remove the rows that repeat others."
UNEQUAL = "Remove the pairs that prefer nothing."
SHORT = "Shorten or remove the rows, or raise max_seq_length."
DISJOINT = "Prepare both data sets with the same data.eval_fraction, and move no rows between the sides."
APART = "Remove these rows from one side, or raise validation.near_duplicate_similarity if they ask different things."


@dataclass(frozen=True)
class RowTokens:
    """A row as the model sees it."""

    num_tokens: int  # prompt and answer; of a preference row with the longer answer
    num_trainable: int  # answer tokens within the length; of a preference row those of the shorter answer
    ends: bool  # every answer ends with the end-of-turn token


@dataclass(frozen=True)
class FileNumbers:
    """What was measured on one file. Lists hold `<id>` or `<id>: <what is wrong>`, in the file's order."""

    num_rows: int
    malformed: list[str]
    misordered: list[str]
    empty: list[str]
    unrenderable: list[str]  # refused by the chat template
    duplicates: list[str]  # repeats of an earlier row
    same_answers: list[str]  # chosen is rejected
    too_long: list[str]
    untrainable: list[str]
    endless: list[str]  # without end of turn
    max_tokens: int


Rows = dict[str, list[dict]]  # by the file's name in `FILES`
Files = dict[str, FileNumbers | None]  # None: could not be measured
Lists = dict[str, list[str] | None]


@dataclass(frozen=True)
class Numbers:
    """What was measured, by file. What is missing could not be measured."""

    files: Files
    near_duplicates: dict[str, list[str]] | None = None
    personal_data: dict[str, dict[str, list[str]]] | None = None  # by pattern: ids of the rows
    prompts: dict[str, list[dict]] | None = None  # id and hash of each row's prompt
    shared_prompts: dict[str, list[str]] | None = None  # evaluation with training file -> ids of the evaluation rows
    near_shared_prompts: dict[str, list[str]] | None = None  # by evaluation file

    @classmethod
    def of(cls, measured: dict, names: list[str]) -> "Numbers":
        """From what the measurements told."""
        files = {name: FileNumbers(**measured[name]) if name in measured else None for name in names}
        keys = ("near_duplicates", "personal_data", "prompts", "shared_prompts", "near_shared_prompts")
        return cls(files=files, **{key: measured.get(key) for key in keys})


def measure(tokenizer, rows: Rows, step: config.CheckDataStep) -> measuring.Measured:
    """Looks at every row, in processes of their own: one for each file, three for what is asked of all of them."""
    lengths = {"sft": step.sft.max_seq_length, "preference": step.dpo.max_seq_length}
    sound = {name: [row for row in found if _problem(row, _kind(name)) is None] for name, found in rows.items()}

    def file(name: str) -> dict[str, FileNumbers]:
        return {name: measure_file(tokenizer, rows[name], kind=_kind(name), max_length=lengths[_kind(name)])}

    parts = {name: partial(file, name) for name in rows} | {
        "prompts": lambda: prompts(sound),
        "near_duplicates": lambda: alike(sound, step.validation.near_duplicate_similarity),
        "personal_data": lambda: {
            "personal_data": {name: with_personal_data(found, _kind(name)) for name, found in rows.items()}
        },
    }
    return measuring.side_by_side(parts, checks.timeouts(step.validation))


def measure_file(tokenizer, rows: list[dict], *, kind: str, max_length: int) -> FileNumbers:
    """Every list but `malformed` is about well-formed rows; those about tokens leave out what cannot be rendered."""
    problems = {number: _problem(row, kind) for number, row in enumerate(rows, start=1)}
    sound = [row for row, problem in zip(rows, problems.values(), strict=True) if problem is None]
    tokens, unrenderable = _tokens(tokenizer, sound, kind=kind, max_length=max_length)
    return FileNumbers(
        num_rows=len(rows),
        malformed=[f"row {number}: {problem}" for number, problem in problems.items() if problem],
        misordered=[f"{row['id']}: {problem}" for row in sound if (problem := order_problem(row["prompt"]))],
        empty=[f"{row['id']}: {key!r}" for row in sound if (key := empty_key(row, kind))],
        unrenderable=unrenderable,
        duplicates=[row["id"] for row in _repeated(sound)],
        same_answers=[row["id"] for row in sound if kind == "preference" and row["chosen"] == row["rejected"]],
        too_long=[f"{row_id}: {found.num_tokens} tokens" for row_id, found in tokens if found.num_tokens > max_length],
        untrainable=[row_id for row_id, found in tokens if found.num_trainable == 0],
        endless=[row_id for row_id, found in tokens if not found.ends],
        max_tokens=max((found.num_tokens for _, found in tokens), default=0),
    )


def order_problem(prompt: list[dict]) -> str | None:
    """The first turn that may not stand where it stands. A conversation may begin with the assistant's greeting."""
    for before, role in pairwise([None, *(message["role"] for message in prompt)]):
        if role not in FOLLOWERS[before]:
            return f"{role} after {before}"
    return None


def row_tokens(tokenizer, row: dict, *, kind: str, max_length: int) -> RowTokens:
    prompt = chat.render(tokenizer, row["prompt"])
    wholes = [chat.render(tokenizer, row["prompt"], row[key]) for key in ANSWER_KEYS[kind]]
    return RowTokens(
        num_tokens=max(map(len, wholes)),
        num_trainable=min(chat.num_answer_tokens(prompt, whole, max_length) for whole in wholes),
        ends=all(_ends(tokenizer, whole[len(whole) - _num_learned(prompt, whole) :]) for whole in wholes),
    )


def alike(rows: Rows, similarity: float) -> dict[str, dict[str, list[str]]]:
    """What nearly repeats something, within a file and between training and evaluation files."""
    return {
        "near_duplicates": {name: near_duplicates(found, _kind(name), similarity) for name, found in rows.items()},
        "near_shared_prompts": near_shared_prompts(rows, similarity),
    }


def near_duplicates(rows: list[dict], kind: str, similarity: float) -> list[str]:
    """Rows whose turns, answers and system text are each nearly those of an earlier row. Exact repeats are not here."""
    repeated = {id(row) for row in _repeated(rows)}
    rows = [row for row in rows if id(row) not in repeated]
    found = duplicates.near_earlier([_texts(row, kind) for row in rows], similarity)
    return [f"{rows[number]['id']} like {rows[earlier]['id']}" for number, earlier in found.items()]


def with_personal_data(rows: list[dict], kind: str) -> dict[str, list[str]]:
    """Ids of rows by pattern. A row whose id is itself such a thing is called by its number."""
    found = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        if _problem(row, kind) is None:
            messages = [message for key in ("prompt", *ANSWER_KEYS[kind]) for message in row[key]]
            for pattern in personal_data.found_in("\n".join(message["content"] for message in messages)):
                found[pattern].append(f"row {number}" if personal_data.found_in(row["id"]) else row["id"])
    return dict(found)


def prompts(rows: Rows) -> dict[str, dict]:
    """Hashes of all prompts, and which prompts an evaluation file shares with a training file."""
    hashes = {
        name: [{"id": row["id"], "prompt_sha256": prompt_key(row)} for row in found] for name, found in rows.items()
    }
    trained = {name: {one["prompt_sha256"] for one in hashes[name]} for name in _side(rows, "train")}
    shared = {
        f"{held_out} with {train}": [one["id"] for one in hashes[held_out] if one["prompt_sha256"] in trained[train]]
        for held_out, train in product(_side(rows, "eval"), trained)
    }
    return {"prompts": hashes, "shared_prompts": shared}


def near_shared_prompts(rows: Rows, similarity: float) -> dict[str, list[str]]:
    """Evaluation prompts that are nearly, but not exactly, a training prompt. Only what the user says counts."""
    first = {name: {prompt_key(row): row for row in reversed(found)} for name, found in rows.items()}
    trained = {key: (name, row) for name in _side(rows, "train") for key, row in first[name].items()}
    asked = [(name, row) for name in _side(rows, "eval") for key, row in first[name].items() if key not in trained]
    others = [*trained.values()]
    texts, other_texts = ([user_text(row["prompt"]) for _, row in some] for some in (asked, others))
    found = {name: [] for name in _side(rows, "eval")}
    for number, other in duplicates.near_others(texts, other_texts, similarity).items():
        (name, row), (train, like) = asked[number], others[other]
        found[name].append(f"{row['id']} like {like['id']} of {train}")
    return found


def judge(numbers: Numbers, limits: config.DataLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    files = numbers.files
    preferences = {name: file for name, file in files.items() if _kind(name) == "preference"}
    return [
        *(_none(name, _lists(files, attribute), remedy) for attribute, name, remedy in FORBIDDEN),
        *([_none("equal_answers", _lists(preferences, "same_answers"), UNEQUAL)] if preferences else []),
        _share("duplicate_share", _lists(files, "duplicates"), files, limits.max_duplicate_share, DISTINCT),
        _share("near_duplicate_share", numbers.near_duplicates, files, limits.max_near_duplicate_share, DISTINCT),
        _share("too_long_share", _lists(files, "too_long"), files, limits.max_share_too_long, SHORT),
        _none("shared_prompts", numbers.shared_prompts, DISJOINT),
        _none("near_shared_prompts", numbers.near_shared_prompts, APART, limit=limits.max_near_shared_prompts),
        _personal_data(numbers.personal_data, refuse=limits.refuse_personal_data),
        *(_size(f"{side}_rows", files, side, getattr(limits, f"min_{side}_rows")) for side in ("train", "eval")),
    ]


def numbers_of(numbers: Numbers) -> dict[str, float]:
    """What the verdict shows beside its checks."""
    files = {name: file for name, file in numbers.files.items() if file}
    found = {f"{name}_num_rows": file.num_rows for name, file in files.items()}
    found |= {f"{name}_max_tokens": file.max_tokens for name, file in files.items()}
    personal = Counter()
    for by_pattern in (numbers.personal_data or {}).values():
        personal.update({pattern: len(ids) for pattern, ids in by_pattern.items()})
    return finite(found | {f"rows_with_{re.sub('[^a-z]', '_', name.lower())}": n for name, n in personal.items()})


def _kind(file: str) -> str:
    return file.split("_")[0]


def _side(rows: Rows, side: str) -> list[str]:
    return [name for name in rows if name.endswith(f"_{side}")]


def _problem(row: dict, kind: str) -> str | None:
    try:
        check_row(row, kind)
    except ValueError as error:
        return str(error)
    return None


def _tokens(
    tokenizer, rows: list[dict], *, kind: str, max_length: int
) -> tuple[list[tuple[str, RowTokens]], list[str]]:
    from jinja2 import TemplateError

    rendered, refused = [], []
    for row in rows:
        try:
            rendered.append((row["id"], row_tokens(tokenizer, row, kind=kind, max_length=max_length)))
        except TemplateError as error:
            refused.append(f"{row['id']}: {' '.join(str(error).split())}")
    return rendered, refused


def _num_learned(prompt: list[int], whole: list[int]) -> int:
    return chat.num_answer_tokens(prompt, whole, len(whole))


def _ends(tokenizer, answer: list[int]) -> bool:
    """Whether nothing but blanks follows the last end-of-turn token: one inside the text ends nothing."""
    if tokenizer.eos_token_id not in answer:
        return False
    return not tokenizer.decode(answer[len(answer) - answer[::-1].index(tokenizer.eos_token_id) :]).strip()


def _repeated(rows: list[dict]) -> list[dict]:
    """Rows that are, but for the id, an earlier one."""
    seen, repeated = set(), []
    for row in rows:
        key = content_key(row)
        if key in seen:
            repeated.append(row)
        seen.add(key)
    return repeated


def _texts(row: dict, kind: str) -> duplicates.Text:
    """What the row says, in the parts that must each be alike. What tells rows apart soonest comes first."""
    said = "\n".join(message["content"] for message in row["prompt"] if message["role"] != "system")
    told = "\n".join(message["content"] for message in row["prompt"] if message["role"] == "system")
    answers = [row[key][0]["content"] for key in ANSWER_KEYS[kind]]
    return said, *answers, told


def _lists(files: Files, attribute: str) -> Lists:
    return {name: file and getattr(file, attribute) for name, file in files.items()}


def _examples(found: Lists | None) -> str:
    """`sft_train has 5: a, b, c` for each file that has some."""
    return "; ".join(f"{name} has {len(rows)}: {', '.join(rows[:3])}" for name, rows in (found or {}).items() if rows)


def _measured(value: float, found: Lists | None, limit: float) -> float | None:
    """None where a file could not be measured, unless what the others have is too much by itself."""
    return None if value <= limit and (not found or None in found.values()) else value


def _none(name: str, found: Lists | None, remedy: str, *, limit: int = 0) -> Check:
    count = sum(len(rows or []) for rows in (found or {}).values())
    return at_most(name, _measured(count, found, limit), limit, detail=_examples(found), remedy=remedy)


def _share(name: str, found: Lists | None, files: Files, limit: float, remedy: str) -> Check:
    """The worst file's. Where its rows could not be counted, its share cannot be told."""
    found = found and {file: rows if files[file] else None for file, rows in found.items()}
    shares = [len(rows) / max(1, files[file].num_rows) for file, rows in (found or {}).items() if rows is not None]
    worst = max(shares, default=0.0)
    return at_most(name, _measured(worst, found, limit), limit, detail=_examples(found), remedy=remedy)


def _personal_data(found: dict[str, dict[str, list[str]]] | None, *, refuse: bool) -> Check:
    """A warning, unless the limits refuse it. What was found stands nowhere, only where."""
    name, remedy = "secrets_and_personal_data", "Remove the rows, or put invented values in."
    kinds, num_rows = [], 0
    for file, by_pattern in (found or {}).items():
        num_rows += len({row_id for ids in by_pattern.values() for row_id in ids})
        kinds += [
            f"{pattern} in {len(ids)} rows of {file}: {', '.join(ids[:3])}" for pattern, ids in by_pattern.items()
        ]
    detail = "; ".join(kinds)
    if refuse:
        return at_most(name, num_rows if found else None, 0, detail=detail, remedy=remedy)
    return holds(name, True if found else None, detail=f"warning: {detail}" if detail else "", remedy=remedy)


def _size(name: str, files: Files, side: str, limit: int) -> Check:
    """The smallest file's."""
    sizes = {file: found and found.num_rows for file, found in files.items() if file.endswith(f"_{side}")}
    known = [size for size in sizes.values() if size is not None]
    least = min(known, default=None)
    value = None if None in sizes.values() and (least or 0) >= limit else least
    detail = ", ".join(f"{file} {size}" for file, size in sizes.items())
    remedy = f"Give more rows, or lower validation.min_{side}_rows."
    return at_least(name, value, limit, detail=detail, remedy=remedy)


def write_manifest(path: str, hashes: dict[str, list[dict]] | None) -> None:
    """With which anybody can see later whether other rows were part of this data."""
    manifest = {"schema_version": MANIFEST_VERSION, "hashed": HASHED, "files": hashes or {}}
    Path(path).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of the base model's tokenizer")
    for name in FILES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", help="prepared rows, JSONL; left out in a graph without them"
        )
    parser.add_argument("--manifest", required=True, help="output: hashes of all prompts with their row ids, JSON")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckDataStep, args.config, args.overrides)
    paths = {name: path for name in FILES if (path := getattr(args, name))}
    inputs = {"tokenizer": args.tokenizer, **paths}

    def work() -> checks.GateVerdict:
        rows = {name: read_jsonl(path) for name, path in paths.items()}
        measured = measure(chat.ChatTokenizer(args.tokenizer), rows, step)
        numbers = Numbers.of(measured.numbers, list(rows))
        write_manifest(args.manifest, numbers.prompts)
        return checks.GateVerdict(
            gate=args.step,
            subject=checks.subject(inputs),
            checks=(*judge(numbers, step.validation), *measured.failures),
            numbers=numbers_of(numbers),
            confidence=step.validation.confidence,
            seconds=measured.seconds,
        )

    checks.run_gate(args, inputs=inputs, config=step, work=work, outputs={"manifest": args.manifest})


if __name__ == "__main__":
    main()
