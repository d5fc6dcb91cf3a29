"""Scores a generated answer against the answers that count as right, from 0 (wrong) to 1 (right).

matcher of `validation.answer_match`, references of a held-out row, its answer -> score

    exact       the same text; width, ligatures and white space do not count
    contains    the reference stands in the answer, as whole words; case and punctuation do not count
    choice      names the same one of `choices`: a letter, or a word
    number      its last number is the reference's, within the tolerance
    json        the same JSON value, apart from `ignored_keys`
    tool_call   calls the same functions with accepted arguments; a sentence, where that is the reference
    judge       a model finds it as good as the reference (`validators.matching.pairwise`)
    package.module:function    a function of the user's (`validators.matching.function`)

A row may have several references: the best score counts. An answer that did not end by itself scores 0, whatever it
holds. References are a text, or the JSON value that the matcher compares with; `tool_call` knows three forms:

    {"name": "book", "arguments": {"seats": 2}}             this call
    {"name": "book", "accepted_arguments": {"seats": [2, 3], "row": ["A"]}, "optional_arguments": ["row"]}
                                                            each argument has one of these values, or may be left out
    [call, call]                                            these calls in any order, each in one of the forms above

A text that holds JSON counts as the JSON, so that a column of texts can hold every kind of reference.
"""

from collections.abc import Callable
from typing import Any

from posttrain.config import Matching, MatchOptions
from validators.inference import Answer

Reference = Any  # a text, or another JSON value
Scorer = Callable[[str], float]  # an answer's text -> its score against one reference


def scorer(name: str, reference: Reference, options: MatchOptions) -> Scorer:
    """Builds the scorer of answers against one reference, for a matcher that needs neither model nor user code.

    Raises:
        ValueError: the matcher cannot compare anything with this reference.
    """
    from validators.matching import choice, number, structured, text

    matchers = {
        "exact": text.exact,
        "contains": text.contains,
        "choice": choice.choice,
        "number": number.number,
        "json": structured.json_value,
        "tool_call": structured.tool_call,
    }
    return matchers[name](reference, options)


def scorer_of(rule: Matching, reference: Reference) -> Scorer:
    """Builds the scorer of answers against one reference that the configuration asks for.

    The declining sentence is matched exactly, whatever the matcher: where answers are JSON, it is not.

    Raises:
        ValueError: the matcher cannot compare anything with this reference.
    """
    from validators.matching.text import exact, plain

    sentence = rule.output_format.declines_with
    if sentence and isinstance(reference, str) and plain(reference) == plain(sentence):
        return exact(reference, rule.match_options)
    return scorer(rule.matcher, reference, rule.match_options)


def best_scores(rule: Matching, answers: list[Answer], references: list[list[Reference]]) -> list[float]:
    """For each answer its best score against the references of its row.

    Raises:
        ValueError: naming the row (from 1), a reference is of no use to the matcher, or there is none.
    """
    scores = []
    for number, (answer, accepted) in enumerate(zip(answers, references, strict=True), start=1):
        try:
            scorers = [scorer_of(rule, reference) for reference in accepted]
        except ValueError as error:
            raise ValueError(f"answer_match {rule.matcher}: held-out row {number}: {error}") from None
        if not scorers:
            raise ValueError(f"answer_match {rule.matcher}: held-out row {number} has no reference: give it an answer")
        scores.append(max(score(answer.text) for score in scorers) if answer.stopped else 0.0)
    return scores
