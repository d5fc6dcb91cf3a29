"""Gate check_data: are the prepared rows fit to train and to judge on? Loads the tokenizer, never a model.

tokenizer folder, SFT and preference rows (train, eval; a shorter graph has two of the four files) -> verdict

Each check looks at every row of every file; its value is that of the worst file, and its detail names a row to look at.
"""

import argparse
from dataclasses import dataclass
from itertools import product

from posttrain import config, data, kfp_io
from posttrain.verdict import Check, Verdict, at_least, at_most
from validators import checks

FILES = ("sft_train", "sft_eval", "preference_train", "preference_eval")

# What no row may be: attribute of FileNumbers, name of the check, remedy.
FORBIDDEN = (
    ("malformed", "malformed_rows", "Prepare the data set again: these rows were changed after it."),
    ("empty", "empty_turns", "Fill the turns in or remove the rows."),
    ("unrenderable", "rows_refused_by_template", "Bring the roles into the order that the chat template asks for."),
    ("untrainable", "untrainable_rows", "See whether the chat template leaves the answer out."),
    ("endless", "rows_without_end_of_turn", "Use a chat template whose assistant turn ends with the eos_token."),
)


@dataclass(frozen=True)
class RowTokens:
    """A row as the model sees it."""

    num_tokens: int  # prompt and answer; of a preference row with the longer answer
    num_trainable: int  # answer tokens; of a preference row those of the shorter answer
    ends: bool  # every answer holds the end-of-turn token


@dataclass(frozen=True)
class FileNumbers:
    """What was measured on one file. Lists hold `<id>` or `<id>: <what is wrong>`, in the file's order."""

    num_rows: int
    malformed: list[str]
    empty: list[str]
    unrenderable: list[str]  # refused by the chat template
    duplicates: list[str]  # repeats of an earlier row
    same_answers: list[str]  # chosen is rejected
    too_long: list[str]
    untrainable: list[str]
    endless: list[str]  # without end of turn
    max_tokens: int


@dataclass(frozen=True)
class Numbers:
    """What was measured: by file, and the prompts that a training and an evaluation file share."""

    files: dict[str, FileNumbers]
    shared_prompts: dict[tuple[str, str], list[str]]  # (train, eval) -> ids of the evaluation rows


def measure(tokenizer, paths: dict[str, str], *, max_lengths: dict[str, int]) -> Numbers:
    """Reads and renders every row.

    Args:
        tokenizer: the model's own, with its chat template.
        paths: JSONL files by their names in `FILES`.
        max_lengths: tokens, by kind: sft and preference.
    """
    rows = {name: data.read_jsonl(path) for name, path in paths.items()}
    files = {
        name: measure_file(tokenizer, rows[name], kind=_kind(name), max_length=max_lengths[_kind(name)])
        for name in rows
    }
    prompts = {name: _ids_by_prompt(rows[name], _kind(name)) for name in rows}
    pairs = product(
        [name for name in rows if name.endswith("_train")], [name for name in rows if name.endswith("_eval")]
    )
    shared = {
        (train, held_out): [row_id for key, row_id in prompts[held_out].items() if key in prompts[train]]
        for train, held_out in pairs
    }
    return Numbers(files=files, shared_prompts=shared)


def measure_file(tokenizer, rows: list[dict], *, kind: str, max_length: int) -> FileNumbers:
    """Every list but `malformed` is about well-formed rows; those about tokens leave out what cannot be rendered."""
    problems = {number: _problem(row, kind) for number, row in enumerate(rows, start=1)}
    sound = [row for row, problem in zip(rows, problems.values(), strict=True) if problem is None]
    tokens, unrenderable = _tokens(tokenizer, sound, kind)
    return FileNumbers(
        num_rows=len(rows),
        malformed=[f"row {number}: {problem}" for number, problem in problems.items() if problem],
        empty=[f"{row['id']}: {key!r}" for row in sound if (key := data.empty_key(row, kind))],
        unrenderable=unrenderable,
        duplicates=_duplicates(sound),
        same_answers=[row["id"] for row in sound if kind == "preference" and row["chosen"] == row["rejected"]],
        too_long=[f"{row_id}: {found.num_tokens} tokens" for row_id, found in tokens if found.num_tokens > max_length],
        untrainable=[row_id for row_id, found in tokens if found.num_trainable == 0],
        endless=[row_id for row_id, found in tokens if not found.ends],
        max_tokens=max((found.num_tokens for _, found in tokens), default=0),
    )


def judge(numbers: Numbers, limits: config.DataLimits) -> list[Check]:
    """Pure: the same numbers and limits give the same checks."""
    files = numbers.files
    preferences = {name: file for name, file in files.items() if _kind(name) == "preference"}
    found = [_none(files, attribute, name, remedy) for attribute, name, remedy in FORBIDDEN]
    if preferences:
        found.append(_none(preferences, "same_answers", "equal_answers", "Remove the pairs that prefer nothing."))
    length = "Shorten or remove the rows, or raise max_seq_length."
    return [
        *found,
        _share(files, "duplicates", "duplicate_share", limits.max_duplicate_share, "Remove repeated rows."),
        _share(files, "too_long", "too_long_share", limits.max_share_too_long, length),
        _disjoint(numbers.shared_prompts),
        *_sizes(files, limits),
    ]


def _kind(file: str) -> str:
    return file.split("_")[0]


def _problem(row: dict, kind: str) -> str | None:
    try:
        data.check_row(row, kind)
    except ValueError as error:
        return str(error)
    return None


def _tokens(tokenizer, rows: list[dict], kind: str) -> tuple[list[tuple[str, RowTokens]], list[str]]:
    from jinja2 import TemplateError

    rendered, refused = [], []
    for row in rows:
        try:
            rendered.append((row["id"], row_tokens(tokenizer, row, kind)))
        except TemplateError as error:
            refused.append(f"{row['id']}: {' '.join(str(error).split())}")
    return rendered, refused


def row_tokens(tokenizer, row: dict, kind: str) -> RowTokens:
    prompt = data.render(tokenizer, row["prompt"])
    wholes = [data.render(tokenizer, row["prompt"], row[key]) for key in data.ANSWER_KEYS[kind]]
    answers = [data.num_answer_tokens(prompt, whole, len(whole)) for whole in wholes]
    ends = all(tokenizer.eos_token_id in whole[len(whole) - num :] for whole, num in zip(wholes, answers, strict=True))
    return RowTokens(num_tokens=max(map(len, wholes)), num_trainable=min(answers), ends=ends)


def _duplicates(rows: list[dict]) -> list[str]:
    seen, repeated = set(), []
    for row in rows:
        key = data.content_key(row)
        if key in seen:
            repeated.append(row["id"])
        seen.add(key)
    return repeated


def _ids_by_prompt(rows: list[dict], kind: str) -> dict[str, str]:
    return {data.prompt_key(row): row["id"] for row in rows if _problem(row, kind) is None}


def _examples(found: dict[str, list[str]]) -> str:
    """`sft_train 3 of them: a, b, ...` for each file that has some."""
    return "; ".join(f"{name} has {len(rows)}: {', '.join(rows[:3])}" for name, rows in found.items() if rows)


def _none(files: dict[str, FileNumbers], attribute: str, name: str, remedy: str) -> Check:
    found = {file: getattr(numbers, attribute) for file, numbers in files.items()}
    return at_most(name, sum(map(len, found.values())), 0, detail=_examples(found), remedy=remedy)


def _share(files: dict[str, FileNumbers], attribute: str, name: str, limit: float, remedy: str) -> Check:
    found = {file: getattr(numbers, attribute) for file, numbers in files.items()}
    worst = max((len(rows) / max(1, files[file].num_rows) for file, rows in found.items()), default=None)
    return at_most(name, worst, limit, detail=_examples(found), remedy=remedy)


def _disjoint(shared: dict[tuple[str, str], list[str]]) -> Check:
    found = {f"{held_out} with {train}": rows for (train, held_out), rows in shared.items()}
    remedy = "Prepare both data sets with the same data.eval_fraction, and move no rows between the sides."
    return at_most("shared_prompts", sum(map(len, found.values())), 0, detail=_examples(found), remedy=remedy)


def _sizes(files: dict[str, FileNumbers], limits: config.DataLimits) -> list[Check]:
    found = []
    for side, limit in (("train", limits.min_train_rows), ("eval", limits.min_eval_rows)):
        sizes = {name: numbers.num_rows for name, numbers in files.items() if name.endswith(f"_{side}")}
        detail = ", ".join(f"{name} {size}" for name, size in sizes.items())
        remedy = f"Give more rows, or lower validation.min_{side}_rows."
        found.append(at_least(f"{side}_rows", min(sizes.values(), default=None), limit, detail=detail, remedy=remedy))
    return found


def numbers_of(measured: Numbers) -> dict[str, float]:
    """What the verdict shows beside its checks."""
    sizes = {f"{name}_num_rows": float(file.num_rows) for name, file in measured.files.items()}
    return sizes | {f"{name}_max_tokens": float(file.max_tokens) for name, file in measured.files.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__doc__)
    parser.add_argument("--tokenizer", required=True, help="folder of the base model's tokenizer")
    for name in FILES:
        parser.add_argument(
            f"--{name.replace('_', '-')}", help="prepared rows, JSONL; left out in a graph without them"
        )
    checks.add_gate_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.CheckDataStep, args.config, args.overrides)
    paths = {name: path for name in FILES if (path := getattr(args, name))}
    inputs = {"tokenizer": args.tokenizer, **paths}
    max_lengths = {"sft": step.sft.max_seq_length, "preference": step.dpo.max_seq_length}

    def work() -> Verdict:
        measured = measure(data.load_tokenizer(args.tokenizer), paths, max_lengths=max_lengths)
        found = judge(measured, step.validation)
        return Verdict(gate=args.step, subject=checks.subject(inputs), checks=found, numbers=numbers_of(measured))

    checks.run_gate(args, inputs=inputs, config=step, work=work)


if __name__ == "__main__":
    main()
