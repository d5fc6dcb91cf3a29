"""Finds models that have collapsed: one answer to everything, an echo of the prompt, answers that ignore the prompt.

held-out rows with a model's answers -> a check for each way to collapse, whose sentence shows the answer

Four checks, because none sees everything: a constant that is the commonest label is right on most rows, objects made at
random differ from each other, an echo differs with each prompt. Each compares the answers with the references, which
may themselves be few, mostly alike, or copies of the prompt.

    distinct_answers        number of different answers, divided by that of different references
    one_answer_to_all       share of the rows that want another answer, and are given the commonest one
    echoes_prompt           share of rows answered with the prompt or its last user turn, less the share whose reference
                            is such a copy
    answers_follow_prompts  how much nearer the answers are to their own references than to those of other rows: 1 for
                            the references themselves, 0 for answers dealt out at random

A good model passes on labels of 90 : 10; one that always gives the commonest label does not. Where the rows are too few
to tell the two apart, a check is undecided. All of it is pure: the same rows give the same checks.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

from posttrain.config import AnswerLimits
from posttrain.config.masking import mask
from posttrain.pages.wording import line
from posttrain.rows.formats import normalise
from posttrain.verdict import Check, above, at_least, at_most, holds
from validators import intervals, paired, personal_data
from validators.answers import Message, more_answers
from validators.matching.structured import NO_JSON, parse

NUM_SHUFFLES = 1_000
SEED = 0  # the same rows give the same shuffles
MIN_COPIED = 0.8  # share of an answer, or of the prompt, that a copy is
MAX_COMPARED = 2_000  # characters of a text
MAX_SHOWN = 60  # characters of an answer in a check's sentence
REMEDY = (
    "Look at the answers and at the rows: lower learning_rate or epochs, and see that rows differ in their answers."
)


@dataclass(frozen=True)
class Row:
    """A held-out row and a model's answer to it."""

    prompt: list[Message]
    answer: str
    references: list[str]  # as texts; the first is the one that the model was to learn
    is_right: bool = False  # by the matcher: then this answer is wanted, however it is spelled


def checks(rows: list[Row] | None, limits: AnswerLimits) -> list[Check]:
    """All four; not run without rows."""
    return [
        distinct_check(rows, limits),
        one_answer_check(rows, limits),
        echo_check(rows, limits),
        following_check(rows, limits),
    ]


def distinct_check(rows: list[Row] | None, limits: AnswerLimits) -> Check:
    """distinct_answers. It has no interval: counts say nothing about answers that were not seen."""
    if not rows:
        return at_least("distinct_answers", None, limits.min_distinct_answers, remedy=REMEDY)
    num_answers = len({canonical(row.answer) for row in rows})
    num_references = len({canonical(row.references[0]) for row in rows})
    return at_least(
        "distinct_answers", num_answers / num_references, limits.min_distinct_answers,
        detail=f"{num_answers} different answers, {num_references} different references; {_commonest(rows)}",
        remedy=REMEDY,
    )  # fmt: skip


def one_answer_check(rows: list[Row] | None, limits: AnswerLimits) -> Check:
    """one_answer_to_all, with its Wilson interval."""
    name, answers = "one_answer_to_all", Counter(canonical(row.answer) for row in rows or [])
    if not rows:
        return at_most(name, None, limits.max_one_answer_share, remedy=REMEDY)
    [(commonest, _)] = answers.most_common(1)
    others = [row for row in rows if not _accepts(row, commonest)]
    if not others:
        return holds(name, True, detail=f"every row accepts the commonest answer; {_commonest(rows)}")
    return intervals.share(
        name, sum(canonical(row.answer) == commonest for row in others), len(others), "<=", limits.max_one_answer_share,
        confidence=limits.confidence, detail=f"rows that want another answer are given this one; {_commonest(rows)}",
        more_rows_by=more_answers(rows, limits), remedy=REMEDY,
    )  # fmt: skip


def echo_check(rows: list[Row] | None, limits: AnswerLimits) -> Check:
    """echoes_prompt, row by row against the references."""
    name, words = "echoes_prompt", {"confidence": limits.confidence, "remedy": REMEDY}
    words["more_rows_by"] = more_answers(rows, limits)
    if not rows:
        return paired.paired_difference(name, None, None, "<=", limits.max_echo_share, **words)
    wanted = [any(is_copy(reference, row.prompt) for reference in row.references) for row in rows]
    echoes = [is_copy(row.answer, row.prompt) for row in rows]
    examples = [row.answer for row, echo, asked in zip(rows, echoes, wanted, strict=True) if echo and not asked]
    seen = f"{sum(echoes)} of {len(rows)} answers copy the prompt, {sum(wanted)} references do"
    return paired.paired_difference(
        name, [float(echo) for echo in echoes], [float(asked) for asked in wanted], "<=", limits.max_echo_share,
        detail=seen + (f"; for example {shown(examples[0])}" if examples else ""), **words,
    )  # fmt: skip


def following_check(rows: list[Row] | None, limits: AnswerLimits) -> Check:
    """answers_follow_prompts, with the interval that answers dealt out at random span: a permutation test."""
    name = "answers_follow_prompts"
    if not rows:
        return above(name, None, limits.min_following, remedy=REMEDY)
    references = [canonical(row.references[0]) for row in rows]
    if len(set(references)) == 1:
        return holds(name, True, detail="all references are the same: there is nothing to follow")
    value, interval = following([canonical(row.answer) for row in rows], references, limits.confidence)
    return above(
        name, value, limits.min_following, interval=interval,
        more_rows=intervals.more_rows_of_mean(value, interval, len(rows), limits.min_following),
        more_rows_by=more_answers(rows, limits),
        detail=f"how much nearer answers are to their own references than to others'; {_commonest(rows)}",
        remedy=REMEDY,
    )  # fmt: skip


def following(answers: list[str], references: list[str], confidence: float) -> tuple[float, intervals.Interval]:
    """(nearness of answers to their own references, corrected for chance as Cohen's kappa is; its interval)."""
    import numpy as np

    near, reachable = _similarities(answers, references), _similarities(references, references)
    scale = float(np.trace(reachable) / len(references) - reachable.mean())
    rng, rows, by_chance = np.random.default_rng(SEED), np.arange(len(references)), near.mean()
    dealt = [near[rows, rng.permutation(rows)].mean() - by_chance for _ in range(NUM_SHUFFLES)]
    value = float(near[rows, rows].mean() - by_chance)
    low, high = np.quantile(dealt, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return _rounded(value / scale), (_rounded((value - high) / scale), _rounded((value - low) / scale))


def canonical(text: str) -> str:
    """Normal form of an answer: answers that differ in case, spacing or order of keys alone share it."""
    value = parse(text)
    return normalise(text) if value is NO_JSON else json.dumps(value, sort_keys=True, default=float)


def is_copy(text: str, prompt: list[Message]) -> bool:
    """Tells whether a text is a user's or system's turn of the prompt, or all of it, or hardly more or less."""
    text, turns = normalise(text), [(message["role"], normalise(message["content"])) for message in prompt]
    sources = [turn for role, turn in turns if role != "assistant"] + [" ".join(turn for _, turn in turns)]
    return bool(text) and any(_is_nearly(text, source) for source in sources)


def shown(text: str) -> str:
    """An answer in a sentence: on one line, shortened, without secrets and personal data."""
    if kinds := personal_data.found_in(text):
        return f"an answer that holds {', '.join(kinds)}"
    words = line(mask(text))
    if not words:
        return "an empty answer"
    return f"'{words}'" if len(words) <= MAX_SHOWN else f"'{words[: MAX_SHOWN - 3]}...'"


def _commonest(rows: list[Row]) -> str:
    """`'Yes.' answers 40 of 64 rows, the commonest reference 20`."""
    [(commonest, num)] = Counter(canonical(row.answer) for row in rows).most_common(1)
    example = next(row.answer for row in rows if canonical(row.answer) == commonest)
    [(_, num_references)] = Counter(canonical(row.references[0]) for row in rows).most_common(1)
    return f"{shown(example)} answers {num} of {len(rows)} rows, the commonest reference {num_references}"


def _accepts(row: Row, answer: str) -> bool:
    if any(canonical(reference) == answer for reference in row.references):
        return True
    return row.is_right and canonical(row.answer) == answer


def _is_nearly(text: str, source: str) -> bool:
    if not source:
        return False
    shorter, longer = sorted((text, source), key=len)
    return shorter in longer and len(shorter) >= MIN_COPIED * len(longer)


def _similarities(texts: list[str], others: list[str]) -> Any:
    """Cosine of each text to each other one, by their three-letter pieces: rare pieces weigh more, shared form less."""
    ours, theirs = ([_pieces(text) for text in side] for side in (texts, others))
    num_holding = Counter(piece for counts in theirs for piece in counts)
    columns = {piece: at for at, piece in enumerate(dict.fromkeys(chain.from_iterable(ours + theirs)))}
    weights = [math.log((1 + len(others)) / (1 + num_holding[piece])) + 1 for piece in columns]
    return (_matrix(ours, columns, weights) @ _matrix(theirs, columns, weights).T).toarray()


def _matrix(pieces: list[Counter[str]], columns: dict[str, int], weights: list[float]) -> Any:
    """A row of length 1 for each text."""
    from scipy.sparse import csr_array

    values, rows, of = [], [], []
    for row, counts in enumerate(pieces):
        weighed = [num * weights[columns[piece]] for piece, num in counts.items()]
        length = math.sqrt(sum(one * one for one in weighed)) or 1.0
        values += [one / length for one in weighed]
        rows += [row] * len(weighed)
        of += [columns[piece] for piece in counts]
    return csr_array((values, (rows, of)), shape=(len(pieces), len(columns)))


def _pieces(text: str) -> Counter[str]:
    text = f" {text[:MAX_COMPARED]} "
    return Counter(text[at : at + 3] for at in range(len(text) - 2))


def _rounded(value: float) -> float:
    """Without the last digits, in which a constant would seem to be a little nearer to one row than to another."""
    return round(value, 9)
