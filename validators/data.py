"""Gate check_data: are the prepared rows fit to train and to judge on? Loads a tokenizer, never a model.

tokenizer folder, SFT and preference rows (train, eval; a shorter graph has two of the four files), the prompts that
later gates ask -> verdict, manifest of the prompts' hashes

Each check covers every row of every file; its value is the worst file's, and its detail names rows to look at.
"""

import argparse
import logging
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain import config
from posttrain.config.evidence import Evidence, fewest_rows
from posttrain.pages.answers import RIGHT
from posttrain.rows import chat, prompts
from posttrain.rows.formats import (
    ANSWER_KEYS,
    JsonLines,
    as_seen,
    check_row,
    content_key,
    empty_key,
    message_text,
    references_of,
)
from posttrain.rows.held_out import Supply, supplies
from posttrain.rows.keys import FOR_TEMPLATE
from posttrain.rows.skeleton import looks
from posttrain.rows.thoughts import said
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Check, at_least, at_most, finite, holds
from validators import answers, calls, checks, matching, measuring, overlap, personal_data
from validators.overlap import Rows, kind_of

FILES = ("sft_train", "sft_eval", "preference_train", "preference_eval")

logger = logging.getLogger(__name__)

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
    ("malformed", "malformed_rows", "Prepare the data set again: these rows were changed afterwards."),
    ("misordered", "role_order", "Put system first and let user and assistant take turns; tool follows assistant."),
    ("empty", "empty_turns", "Fill in these turns or remove the rows."),
    (
        "unrenderable",
        "rows_refused_by_template",
        "Put the roles in the order that the chat template requires; to call tools, use a model that knows them.",
    ),
    (
        "unread",
        "keys_not_in_template",
        "Use a model whose chat template reads these keys of messages, rename them to what it reads, or list them in "
        "data.ignored_keys.",
    ),
    (
        "untrainable",
        "untrainable_rows",
        "Check that the chat template renders the answer.",
    ),
    (
        "endless",
        "rows_without_end_of_turn",
        "Use a chat template whose assistant turn ends with the eos_token, or add the id of the token that ends it to "
        "eos_token_id in the model's generation_config.json.",
    ),
)

DISTINCT = "Remove the rows that repeat others."
UNEQUAL = "Remove these pairs: chosen and rejected are the same answer."
SHORT = "Too many rows are left out: shorten or remove them, or raise max_seq_length of the stage that trains on them."
DISJOINT = (
    "Split both data sets with the same data.eval_fraction; remove prompts that a gate asks from the training rows."
)
UNANSWERED = "Remove the training rows that answer these prompts, or hold out other prompts."
SWAPPED = "Swap chosen and rejected: the labels are reversed. Or correct the references or output_format."
MATCHED = "Correct the references of these rows, or set validation.answer_match and match_options to fit them."
APART = "Remove these rows from one side, or raise validation.near_duplicate_similarity if they ask different things."


@dataclass(frozen=True)
class RowTokens:
    """A row as the model sees it."""

    num_tokens: int  # prompt and answer, in a preference row the longer one
    num_trainable: int  # tokens of the answer, in a preference row of the shorter one
    last: str | None  # what ends an answer instead of an end token; None: every answer ends with one


@dataclass(frozen=True)
class FileNumbers:
    """Numbers of one file. Its lists contain `<id>` or `<id>: <what is wrong>`, in the file's order."""

    num_rows: int
    malformed: list[str]
    misordered: list[str]
    empty: list[str]
    unrenderable: list[str]  # refused by the chat template
    unread: list[str]  # with keys of messages that the chat template does not read
    duplicates: list[str]  # repeats of an earlier row
    same_answers: list[str]  # chosen and rejected differ in nothing that the eye sees
    too_long: list[str]
    untrainable: list[str]
    endless: list[str]  # without end of turn
    max_tokens: int
    left_out: dict[str, int]  # rows by the key that was left out of them

    @property
    def num_fitting(self) -> int:
        """Rows that are not left out for their length."""
        return self.num_rows - len(self.too_long)


Files = dict[str, FileNumbers | None]  # None: could not be measured
Lists = dict[str, list[str] | None]


@dataclass(frozen=True)
class Compared:
    """The pairs of a file whose answers are told apart by their form or by references."""

    num_pairs: int
    reversed: list[str]  # ids of those whose rejected answer is the better one


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers that judge() needs; None where one could not be measured."""

    files: Files
    near_duplicates: Lists | None = None
    personal_data: dict[str, dict[str, list[str]]] | None = None  # by file and pattern: ids of the rows
    shared_prompts: Lists | None = None  # evaluation with training file -> ids of the evaluation rows
    near_shared_prompts: Lists | None = None  # by evaluation file
    answered_elsewhere: Lists | None = None  # by evaluation file
    unmatched: Lists | None = None  # by evaluation file: rows whose own answer is wrong by their references
    compared: dict[str, "Compared | None"] | None = None  # by file of preferences
    supplies: list[Supply] | None = None  # rows of each kind, and what the later gates need of them


@dataclass(frozen=True)
class Sound:
    """The well-formed rows of a file."""

    rows: Iterable[dict]
    kind: str

    def __iter__(self) -> Iterator[dict]:
        return (row for row in self.rows if _problem(row, self.kind) is None)


def measure(
    load_tokenizer: Callable[[], Any], rows: Rows, asked: Rows, step: config.CheckDataStep, *, manifest: str
) -> measuring.Measured:
    """Looks at every row, in separate processes: four that compare all files, and one for each file.

    Args:
        load_tokenizer: called while the measurements that need no tokenizer are running.
        asked: prompts that a later gate asks; no training row may hold one of them.
        manifest: output file for the hashes of all prompts.
    """
    lengths = {"sft": step.sft.max_seq_length, "preference": step.dpo.max_seq_length}
    sound = {name: Sound(file_rows, kind_of(name)) for name, file_rows in rows.items()}
    written = Written(load_tokenizer)

    def file(tokenizer, name: str) -> dict[str, dict[str, FileNumbers]]:
        numbers = measure_file(tokenizer, rows[name], kind=kind_of(name), max_length=lengths[kind_of(name)])
        return {"files": {name: numbers}}

    def files() -> measuring.Parts:
        tokenizer = load_tokenizer()
        return {name: partial(file, tokenizer, name) for name in rows}

    parts = {
        "prompts": lambda: overlap.compare_prompts(sound | asked, manifest, step.evidence),
        "personal_data": lambda: {
            "personal_data": {name: with_personal_data(one, kind_of(name)) for name, one in rows.items()}
        },
        "answered_elsewhere": lambda: overlap.answered_elsewhere(sound, asked),
        "near_duplicates": lambda: overlap.alike(sound, asked, step.validation.near_duplicate_similarity),
    }
    if pairs := {name: one for name, one in sound.items() if kind_of(name) == "preference"}:
        parts["compared"] = lambda: {
            "compared": {name: compare(one, step.validation, written) for name, one in pairs.items()}
        }
    if step.validation.matcher in config.MATCHERS:
        held_out = {name: one for name, one in sound.items() if name.endswith("_eval")}
        parts["references"] = lambda: {
            "unmatched": {name: unmatched(one, step.validation, written) for name, one in held_out.items()}
        }
    unmeasured = measuring.Measured({"files": dict.fromkeys(rows)})
    return unmeasured | measuring.side_by_side(parts, checks.timeouts(step.validation), more=files)


def measure_file(tokenizer, rows: Iterable[dict], *, kind: str, max_length: int) -> FileNumbers:
    """Every list but `malformed` covers well-formed rows only; the lists about tokens skip rows that do not render."""
    lists: dict[str, list[str]] = {one.name: [] for one in fields(FileNumbers) if one.type == list[str]}
    num_rows, max_tokens, contents, left_out = 0, 0, set(), Counter()
    for num_rows, row in enumerate(rows, start=1):
        if problem := _problem(row, kind):
            lists["malformed"].append(f"row {num_rows}: {problem}")
            continue
        if (content := bytes.fromhex(content_key(row))) in contents and "repeats" not in row:
            lists["duplicates"].append(row["id"])
        contents.add(content)
        left_out.update(row.get("left_out", ()))
        num_tokens, faults = _token_faults(tokenizer, row, kind=kind, max_length=max_length)
        max_tokens = max(max_tokens, num_tokens)
        for name, fault in (*_faults(row, kind), *faults):
            lists[name].append(f"{row['id']}: {fault}" if fault else row["id"])
    return FileNumbers(num_rows=num_rows, max_tokens=max_tokens, left_out=dict(left_out), **lists)


def _faults(row: dict, kind: str) -> Iterator[tuple[str, str]]:
    """Yields a list of FileNumbers and what to say in it about this row."""
    if problem := order_problem(row["prompt"]):
        yield "misordered", problem
    if key := empty_key(row, kind):
        yield "empty", repr(key)
    if kind == "preference" and _prefers_nothing(row):
        yield "same_answers", ""


def _token_faults(tokenizer, row: dict, *, kind: str, max_length: int) -> tuple[int, list[tuple[str, str]]]:
    """Number of tokens, and what is wrong with them."""
    try:
        tokens = row_tokens(tokenizer, row, kind=kind)
    except chat.refusals() as error:
        return 0, [("unrenderable", " ".join(str(error).split()))]
    unread = chat.unread_keys(tokenizer, [message for key in ("prompt", *ANSWER_KEYS[kind]) for message in row[key]])
    is_long = tokens.num_tokens > max_length  # and left out: what is trained on is judged
    faults = {
        "too_long": is_long and f"{tokens.num_tokens} tokens",
        "unread": bool(unread) and ", ".join(unread),
        "untrainable": not is_long and tokens.num_trainable == 0 and "",
        "endless": tokens.last is not None and (tokens.last and f"ends with {tokens.last!r}"),
    }
    return tokens.num_tokens, [(name, detail) for name, detail in faults.items() if detail is not False]


def order_problem(prompt: list[dict]) -> str | None:
    """The first turn that is out of order, or None. A conversation may begin with the assistant's greeting."""
    for before, role in pairwise([None, *(message["role"] for message in prompt)]):
        if role not in FOLLOWERS[before]:
            return f"{role} after {before}"
    return None


def row_tokens(tokenizer, row: dict, *, kind: str) -> RowTokens:
    parts = [chat.split(tokenizer, row["prompt"], row[key]) for key in ANSWER_KEYS[kind]]
    ends = [_unended(tokenizer, answer) for _, answer in parts]
    return RowTokens(
        num_tokens=max(len(prompt) + len(answer) for prompt, answer in parts),
        num_trainable=min(len(answer) for _, answer in parts),
        last=next((last for last in ends if last is not None), None),
    )


def with_personal_data(rows: Iterable[dict], kind: str) -> dict[str, list[str]]:
    """Ids of rows by pattern. Where an id matches a pattern itself, the number of the row takes its place."""
    ids = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        if _problem(row, kind) is None:
            messages = [message for key in ("prompt", *ANSWER_KEYS[kind]) for message in row[key]]
            for pattern in personal_data.found_in("\n".join(map(_words, messages))):
                ids[pattern].append(f"row {number}" if personal_data.found_in(row["id"]) else row["id"])
    return dict(ids)


class Written:
    """Tells what a model writes that has learned a row by heart; loads the tokenizer for rows that call tools."""

    def __init__(self, load_tokenizer: Callable[[], Any]):
        self._tokenizer = cache(load_tokenizer)

    def __call__(self, row: dict, key: str) -> str:
        """Returns the answer under `key`, calls as `answer_match` compares them."""
        [answer] = row[key]
        if not answer.get("tool_calls"):
            return calls.as_json(said(answer["content"]), row["prompt"])
        try:
            return calls.as_json(chat.answer_text(self._tokenizer(), row, key), row["prompt"])
        except chat.refusals():  # `rows_refused_by_template` names it
            return message_text(answer)


def unmatched(rows: Iterable[dict], rule: config.Matching, written: Written) -> list[str]:
    """Rows with a reference that the matcher cannot use, or whose own answer it calls wrong: a model that has learned
    such a row by heart would be wrong.
    """
    entries = []
    for row in rows:
        try:
            own = written(row, "chosen" if "chosen" in row else "completion")
            scorers = [matching.scorer_of(rule, reference) for reference in references_of(row)]
        except ValueError as error:
            entries.append(f"{row['id']}: {error}")
            continue
        if max(score(own) for score in scorers) < RIGHT:
            entries.append(row["id"])
    return entries


def compare(rows: Iterable[dict], rule: config.Matching, written: Written) -> Compared:
    """Compares chosen with rejected answers by what can be told without a model: references of the row, then form."""
    find_fault = answers.fault_finder(rule.output_format)
    num_pairs, reversed_ = 0, []
    for row in rows:
        chosen, rejected = (written(row, key) for key in ANSWER_KEYS["preference"])
        better = is_right(row, chosen, rule) - is_right(row, rejected, rule)
        if not better:
            better = (find_fault(chosen, row["prompt"]) is None) - (find_fault(rejected, row["prompt"]) is None)
        num_pairs += bool(better)
        reversed_ += [row["id"]] if better < 0 else []
    return Compared(num_pairs, reversed_)


def is_right(row: dict, answer: str, rule: config.Matching) -> bool:
    """Tells whether an answer is right by the row's own references; False without any, or if a model judges."""
    if not row.get("references") or rule.matcher not in config.MATCHERS:
        return False
    try:
        return max(matching.scorer_of(rule, reference)(answer) for reference in row["references"]) >= RIGHT
    except ValueError:  # `unmatched_answers` names it
        return False


def judge(numbers: Numbers, limits: config.DataLimits, evidence: Evidence) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    files = numbers.files
    preferences = {name: file for name, file in files.items() if kind_of(name) == "preference"}
    fewest = {"train": limits.min_train_rows, "eval": max(limits.min_eval_rows, fewest_rows(limits.confidence))}
    return [
        *(_count(name, _lists(files, attribute), remedy) for attribute, name, remedy in FORBIDDEN),
        *([_count("equal_answers", _lists(preferences, "same_answers"), UNEQUAL)] if preferences else []),
        *([_preferred(numbers.compared, limits.confidence)] if preferences else []),
        _share("duplicate_share", _lists(files, "duplicates"), files, limits.max_duplicate_share, DISTINCT),
        _share("near_duplicate_share", numbers.near_duplicates, files, limits.max_near_duplicate_share, DISTINCT),
        _too_long(files, limits.max_share_too_long),
        _count("shared_prompts", numbers.shared_prompts, DISJOINT),
        _count("answered_elsewhere", numbers.answered_elsewhere, UNANSWERED),
        _count("near_shared_prompts", numbers.near_shared_prompts, APART, limit=limits.max_near_shared_prompts),
        _left_out_keys(files),
        _personal_data(numbers.personal_data, refuse=limits.refuse_personal_data),
        *(
            [_share("unmatched_answers", numbers.unmatched, files, limits.max_unmatched_share, MATCHED)]
            if limits.matcher in config.MATCHERS
            else []
        ),
        *(_size(f"{side}_rows", files, side, limit) for side, limit in fewest.items()),
        *judge_evidence(numbers.supplies, evidence),
    ]


def judge_evidence(measured: list[Supply] | None, evidence: Evidence) -> list[Check]:
    """Checks that there are as many rows of each kind as the later gates need to decide, before anything trains."""
    return [
        at_least(
            f"enough_{supply.name}",
            supply.num_rows,
            supply.num_needed,
            detail="" if supply.num_rows is None else supply.counted,
            remedy=f"Among the limits of later gates, {supply.shortage}: {supply.remedy}." if supply.is_short else "",
        )
        for supply in (supplies(evidence, {}, {}) if measured is None else measured)
    ]


def numbers_of(numbers: Numbers) -> dict[str, float]:
    """Numbers that the verdict shows beside its checks."""
    files = {name: file for name, file in numbers.files.items() if file}
    shown = {f"{name}_num_rows": file.num_rows for name, file in files.items()}
    shown |= {f"{name}_max_tokens": file.max_tokens for name, file in files.items()}
    shown["num_left_out_keys"] = len({key for file in files.values() for key in file.left_out})
    personal = Counter()
    for by_pattern in (numbers.personal_data or {}).values():
        personal.update({pattern: len(ids) for pattern, ids in by_pattern.items()})
    return finite(shown | {f"rows_with_{re.sub('[^a-z]', '_', name.lower())}": n for name, n in personal.items()})


def _prefers_nothing(row: dict) -> bool:
    chosen, rejected = (
        [looks(as_seen(message_text(message))) for message in row[key]] for key in ANSWER_KEYS["preference"]
    )
    return chosen == rejected


def _words(message: dict) -> str:
    """Everything that a message says: its thoughts are learned as well."""
    return "\n".join([message_text(message), *(message[key] for key in FOR_TEMPLATE if key in message)])


def _problem(row: dict, kind: str) -> str | None:
    try:
        check_row(row, kind)
    except ValueError as error:
        return str(error)
    return None


def _unended(tokenizer, answer: list[int]) -> str | None:
    """The last token of an answer that is more than white space, or None if it ends the turn."""
    said = (id_ for id_ in reversed(answer) if tokenizer.decode([id_]).strip())
    last = next(said, None)
    return None if last in tokenizer.end_token_ids else "" if last is None else tokenizer.decode([last])


def _lists(files: Files, attribute: str) -> Lists:
    return {name: file and getattr(file, attribute) for name, file in files.items()}


def _examples(lists: Lists | None) -> str:
    """`sft_train has 5: a, b, c`, for each file that has any."""
    return "; ".join(f"{name} has {len(rows)}: {', '.join(rows[:3])}" for name, rows in (lists or {}).items() if rows)


def _measured(value: float, lists: Lists | None, limit: float) -> float | None:
    """The value, or None where a file could not be measured and the others alone do not break the limit."""
    return None if value <= limit and (not lists or None in lists.values()) else value


def _count(name: str, lists: Lists | None, remedy: str, *, limit: int = 0) -> Check:
    count = sum(len(rows or []) for rows in (lists or {}).values())
    return at_most(name, _measured(count, lists, limit), limit, detail=_examples(lists), remedy=remedy)


def _share(name: str, lists: Lists | None, files: Files, limit: float, remedy: str) -> Check:
    """Checks the worst file's share. Without its number of rows, a file has no share."""
    lists = lists and {file: rows if files[file] else None for file, rows in lists.items()}
    shares = [len(rows) / max(1, files[file].num_rows) for file, rows in (lists or {}).items() if rows is not None]
    worst = max(shares, default=0.0)
    return at_most(name, _measured(worst, lists, limit), limit, detail=_examples(lists), remedy=remedy)


def _too_long(files: Files, limit: float) -> Check:
    """Checks the share per data set: among the few held-out rows, a single one may exceed the limit."""
    lists, shares = _lists(files, "too_long"), []
    for kind in {kind_of(name) for name in files}:
        known = [file for name, file in files.items() if file and kind_of(name) == kind]
        num_rows = sum(file.num_rows for file in known)
        shares.append(sum(len(file.too_long) for file in known) / max(1, num_rows))
    worst = max(shares, default=0.0)
    return at_most("too_long_share", _measured(worst, lists, limit), limit, detail=_left_out(lists), remedy=SHORT)


def _left_out(lists: Lists) -> str:
    examples = _examples(lists)
    return examples and f"left out, {examples}"


def _left_out_keys(files: Files) -> Check:
    """Names the keys of raw rows that no training and no gate sees. They fail no run: what has a meaning is refused."""
    detail = "; ".join(
        f"left out of {name}: {', '.join(f'{key} ({count} rows)' for key, count in sorted(file.left_out.items()))}"
        for name, file in files.items()
        if file and file.left_out
    )
    is_known = bool(files) and None not in files.values()
    return holds("left_out_keys", True if is_known else None, detail=detail)


def _preferred(by_file: dict[str, Compared | None] | None, confidence: float) -> Check:
    """Checks that chosen answers are more often the better ones, in files where enough pairs can be told apart."""
    is_known = bool(by_file) and None not in by_file.values()
    judged = {name: one for name, one in (by_file or {}).items() if one and one.num_pairs >= fewest_rows(confidence)}
    wrong = {name: one for name, one in judged.items() if 2 * len(one.reversed) >= one.num_pairs}
    detail = "; ".join(
        f"in {name} the rejected answer is the better one in {len(one.reversed)} of {one.num_pairs} pairs: "
        f"{', '.join(one.reversed[:3])}"
        for name, one in wrong.items()
    )
    return holds("preferred_answers", not wrong if is_known or wrong else None, detail=detail, remedy=SWAPPED)


def _personal_data(by_file: dict[str, dict[str, list[str]]] | None, *, refuse: bool) -> Check:
    """Returns a warning, unless the limits refuse such data. The detail says where it is, never what it is."""
    name, remedy = "secrets_and_personal_data", "Remove these rows, or replace the values with invented ones."
    kinds, num_rows = [], 0
    for file, by_pattern in (by_file or {}).items():
        num_rows += len({row_id for ids in by_pattern.values() for row_id in ids})
        kinds += [
            f"{pattern} in {len(ids)} rows of {file}: {', '.join(ids[:3])}" for pattern, ids in by_pattern.items()
        ]
    detail = "; ".join(kinds)
    if refuse:
        return at_most(name, num_rows if by_file else None, 0, detail=detail, remedy=remedy)
    return holds(name, True if by_file else None, detail=f"warning: {detail}" if detail else "", remedy=remedy)


def _size(name: str, files: Files, side: str, limit: int) -> Check:
    """Checks the number of rows that remain in the smallest file."""
    sizes = {file: numbers and numbers.num_fitting for file, numbers in files.items() if file.endswith(f"_{side}")}
    known = [size for size in sizes.values() if size is not None]
    least = min(known, default=None)
    value = None if None in sizes.values() and (least or 0) >= limit else least
    detail = ", ".join(f"{file} {size}" for file, size in sizes.items())
    way_out = {"train": "lower validation.min_train_rows", "eval": "raise data.eval_fraction"}[side]
    return at_least(name, value, limit, detail=detail, remedy=f"Add rows, or {way_out}.")


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of the base model's tokenizer")
    for name in FILES:
        parser.add_argument(f"--{name.replace('_', '-')}", help="prepared rows, JSONL; omitted in a graph without them")
    parser.add_argument("--manifest", required=True, help="output: hashes of all prompts with their row ids, JSON")
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckDataStep, args.config, args.overrides)
    paths = {name: path for name in FILES if (path := getattr(args, name))}
    with tempfile.TemporaryDirectory() as folder:
        asked = prompts.bring(step.validation, Path(folder), step.allowed_prefixes)
        checks.run_gate(
            args,
            inputs={"tokenizer": args.tokenizer, **paths, **asked},
            config=step,
            work=partial(decide, args, paths, asked, step),
            outputs={"manifest": args.manifest},
        )


def decide(
    args: argparse.Namespace, paths: dict[str, str], asked: dict[str, str], step: config.CheckDataStep, running: Running
) -> checks.GateVerdict:
    """Measures and judges; writes the manifest."""
    rows, asked_rows = ({name: readable(path) for name, path in some.items()} for some in (paths, asked))
    load_tokenizer = cache(partial(chat.ChatTokenizer, args.tokenizer))
    if chat.asks_for_date(load_tokenizer().chat_template):
        logger.warning("the chat template writes today's date: training and every gate use %s instead", chat.DATE)
    measured = measure(load_tokenizer, rows, asked_rows, step, manifest=args.manifest)
    numbers = measured.read(Numbers)
    if numbers.shared_prompts is None:  # the manifest is missing or incomplete
        overlap.write_manifest(args.manifest, {})
    return checks.GateVerdict(
        gate=running.step,
        subject=running.inputs,
        checks=(*judge(numbers, step.validation, step.evidence), *measured.failures),
        numbers=numbers_of(numbers),
        confidence=step.validation.confidence,
        seconds=measured.seconds,
    )


def readable(path: str) -> JsonLines:
    """The rows of a file, read to its end once: a gate cannot judge a file that it cannot read."""
    rows = JsonLines(path)
    for _ in rows:
        pass
    return rows


if __name__ == "__main__":
    main()
