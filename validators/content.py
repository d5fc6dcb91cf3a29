"""Judges the content of answers: are they right by the references, and has the model collapsed?

held-out rows, answers of several models -> scores by the matcher of `validation.answer_match`; checks; answers.jsonl

    answer_correct   mean score of the answers
    accuracy_gain    by how much it lies above the base's, row by row (check_sft)
    accuracy_drop    by how much it lies below that of the model before, row by row (the gates before publishing)

and the four of `validators.collapse`, which are there even where `answer_match` is none. Scoring has a process of its
own: a matcher meets hostile text, and may be the user's function or a model.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.config import MATCHERS, AlignmentLimits, AnswerLimits, Matching, SamplingLimits, Selection, SftLimits
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer, Source
from posttrain.rows.formats import references_of
from posttrain.verdict import Check
from validators import answers, calls, checks, collapse, custom, judges, matching, measuring, paired
from validators.answers import JudgedAnswer
from validators.matching import Reference, function, pairwise, structured
from validators.safety import RedTeam

JUDGE = "matching_judge"  # name of the input that is the model which compares answers
MODELS = ("base", "before", "model")
Scoring = AnswerLimits | SamplingLimits | Selection
LOOK = "Look at the wrong answers in answers.jsonl"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The held-out rows that were asked, and what each model answered. None: not asked, or not measured."""

    references: list[list[Reference]]  # of each row
    model: list[JudgedAnswer] | None  # the one that the gate judges
    before: list[JudgedAnswer] | None = None  # the one that its training started from, where that is not the base
    base: list[JudgedAnswer] | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)  # by model; empty where nobody judges the content
    scores_of_wrong: list[float] | None = None  # what a judge model gives to answers that are known to be wrong

    @property
    def answered(self) -> dict[str, list[JudgedAnswer]]:
        """The answers by model, of those that have answered."""
        return {name: answers for name in MODELS if (answers := getattr(self, name))}


def references_by_row(asked: list[dict], rows: list[dict]) -> list[list[Reference]]:
    """Accepted answers of each row that was asked: its own references, and those of all rows with its prompt."""
    by_prompt: dict[str, dict[str, Reference]] = {}
    for row in rows:
        accepted = by_prompt.setdefault(_key(row["prompt"]), {})
        accepted |= {_key(reference): reference for reference in references_of(row)}
    own = [{_key(reference): reference for reference in references_of(row)} for row in asked]
    return [[*(first | by_prompt.get(_key(row["prompt"]), {})).values()] for row, first in zip(asked, own, strict=True)]


def bring_judge(limits: Matching, folder: Path, allowed_prefixes: list[str]) -> dict[str, str]:
    """The local folder of the model that compares answers, as an input of the gate; empty where none does."""
    if not limits.matching_judge:
        return {}
    key, uri = "validation.match_options.judge_model", limits.matching_judge
    return {JUDGE: judges.bring_model(uri, folder / JUDGE, allowed_prefixes, key=key)}


def is_reusable(limits: Scoring) -> bool:
    """Tells whether a later run is sure to judge the same: it is not where code of the user's has a say."""
    own_checks = custom.own(getattr(limits, "custom_checks", []))
    return limits.matcher in (*MATCHERS, "judge", "none") and not own_checks


def score(content: Content, limits: Scoring, judge_model: str | None = None) -> tuple[Content, measuring.Measured]:
    """The content with the scores of every model's answers, and how that was measured; none where nobody judges."""
    if limits.matcher == "none" or not content.answered:
        return content, measuring.Measured()
    flat = _flat(content)
    timeouts = checks.timeouts(limits)
    if limits.matcher in MATCHERS:
        parts = {"answers_scored": partial(_by_matcher, limits, *flat)}
        measured = measuring.side_by_side(parts, timeouts)
    elif limits.matcher == "judge":
        measured = measuring.in_order({"answers_compared": partial(_by_judge, judge_model, content, *flat)}, timeouts)
    else:
        measured = function.scores(limits.matcher, *flat, timeouts)
    return _scored(content, measured), measured


def judge(content: Content, limits: AnswerLimits) -> list[Check]:
    """Pure: the same content and limits give the same checks."""
    checks = collapse.checks(_rows(content), limits)
    if limits.matcher == "none":
        return checks
    if limits.matcher == "judge":
        checks.append(pairwise.discerning_check(content.scores_of_wrong, confidence=limits.confidence))
    return [_correct_check(content, limits), _change_check(content, limits), *checks]


def numbers_of(content: Content) -> dict[str, float | None]:
    """Mean scores for the verdict: `answer_accuracy`, `before_answer_accuracy`, `base_answer_accuracy`."""
    prefixes = {"model": "", "before": "before_", "base": "base_"}
    return {f"{prefixes[name]}answer_accuracy": sum(some) / len(some) for name, some in content.scores.items() if some}


def context(content: Content, limits: AnswerLimits, *, gate: str) -> custom.Context:
    """Builds the context that the user's own checks receive beside prompts and answers."""
    texts = {name: [one.answer.text for one in some] for name, some in content.answered.items()}
    return custom.Context(
        gate=gate,
        stopped=[one.answer.stopped for one in content.model or []],
        confidence=limits.confidence,
        references=content.references,
        scores=content.scores.get("model"),
        base_answers=texts.get("base"),
        previous_answers=texts.get("before", texts.get("base")),
    )


def shown(content: Content, red_team: dict[str, RedTeam] | None = None) -> tuple[AnsweredPrompt, ...]:
    """The rows of answers.jsonl: held-out prompts, then red-team prompts."""
    harmful = {name: side.faulty() for name, side in (red_team or {}).items()}
    asked = _shown("held-out prompt", content.answered, content.references, content.scores)
    return (*asked, *_shown("red-team prompt", {name: some for name, some in harmful.items() if some}))


def _correct_check(content: Content, limits: AnswerLimits) -> Check:
    return paired.mean_score(
        "answer_correct", content.scores.get("model"), ">=", limits.min_answer_accuracy, confidence=limits.confidence,
        detail=f"matcher: {limits.matcher}", more_rows_by=answers.more_answers(content.model, limits),
        remedy=f"{LOOK}: train longer or on more rows like them, or lower validation.min_answer_accuracy.",
    )  # fmt: skip


def _change_check(content: Content, limits: AnswerLimits) -> Check:
    """Against the base for the gate of the SFT stage, against the model before for those before publishing."""
    model, base = content.scores.get("model"), content.scores.get("base")
    if isinstance(limits, SftLimits):
        return paired.paired_difference(
            "accuracy_gain", model, base, ">", limits.min_accuracy_gain, confidence=limits.confidence,
            detail="above the base", more_rows_by=answers.more_answers(content.model, limits),
            remedy="Training corrected too few answers: train longer or on more rows; for a base that already knows "
            "the task, set validation.min_accuracy_gain below 0.",
        )  # fmt: skip
    assert isinstance(limits, AlignmentLimits)
    before = content.scores.get("before") or base
    return paired.paired_difference(
        "accuracy_drop", before, model, "<=", limits.max_accuracy_drop, confidence=limits.confidence,
        detail="below the model before", more_rows_by=answers.more_answers(content.model, limits),
        remedy=f"{LOOK} that were right before: lower dpo.learning_rate or epochs, raise dpo.beta, or add sft to "
        "dpo.loss_type.",
    )  # fmt: skip


def _flat(content: Content) -> tuple[list, list, list]:
    """Prompts, answers and references of all models, one model after the other."""
    answered = content.answered
    judged = [one for answers in answered.values() for one in answers]
    return [one.prompt for one in judged], [one.answer for one in judged], content.references * len(answered)


def _by_matcher(limits: Matching, prompts: list, answers: list, references: list) -> dict[str, list[float]]:
    asked = zip(prompts, answers, strict=True)
    read = [replace(answer, text=calls.as_json(answer.text, prompt)) for prompt, answer in asked]
    return {function.SCORES: matching.best_scores(limits, read, references)}


def _by_judge(judge_model: str | None, content: Content, *flat: list) -> dict[str, list[float]]:
    if judge_model is None:
        raise ValueError("no judge is configured: set validation.match_options.judge_model")
    judge = pairwise.load(judge_model)
    prompts = [one.prompt for one in next(iter(content.answered.values()))]
    return {
        function.SCORES: pairwise.scores(judge, *flat),
        "scores_of_wrong": pairwise.scores_of_wrong(judge, prompts, content.references),
    }


def _scored(content: Content, measured: measuring.Measured) -> Content:
    flat, num_rows = measured.numbers.get(function.SCORES, []), len(content.references)
    scores = {
        name: flat[at * num_rows : (at + 1) * num_rows] for at, name in enumerate(content.answered if flat else ())
    }
    return replace(content, scores=scores, scores_of_wrong=measured.numbers.get("scores_of_wrong"))


def _rows(content: Content) -> list[collapse.Row] | None:
    if not content.model:
        return None
    scores = content.scores.get("model") or [0.0] * len(content.model)
    return [
        collapse.Row(one.prompt, one.answer.text, [structured.sample_text(one_) for one_ in accepted], score == 1.0)
        for one, accepted, score in zip(content.model, content.references, scores, strict=True)
    ]


def _shown(
    source: Source,
    answered: dict[str, list[JudgedAnswer]],
    references: list[list[Reference]] | None = None,
    scores: dict[str, list[float]] | None = None,
) -> list[AnsweredPrompt]:
    num_rows = max(map(len, answered.values()), default=0)
    return [
        AnsweredPrompt(
            source=source,
            prompt=next(iter(answered.values()))[at].prompt,
            references=references[at] if references else [],
            **{
                name: ModelAnswer(
                    text=some[at].answer.text, stopped=some[at].answer.stopped, fault=some[at].fault,
                    score=scores[name][at] if scores and name in scores else None,
                )
                for name, some in answered.items()
            },
        )
        for at in range(num_rows)
    ]  # fmt: skip


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
