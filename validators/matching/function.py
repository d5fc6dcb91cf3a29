"""The user's own matcher: a function of a module in the training image that scores one answer against one reference.

`package.module:function` of `validation.answer_match`, rows with their answers -> the best score of each

    def function(prompt: list[dict[str, str]], answer: str, reference: str | dict | list) -> float

It gives a number from 0 (wrong) to 1 (right); True and False are 1 and 0. It runs in a process of its own under a time
limit. One that raises, hangs, dies, cannot be imported or gives anything else is a failed check of its name, and no
answer has a score. Answers that did not end by themselves are not shown to it: they score 0.
"""

import numbers
from collections.abc import Callable
from functools import partial

from validators import custom, measuring
from validators.answers import Message
from validators.inference import Answer
from validators.matching import Reference

ScoreOne = Callable[[list[Message], str, Reference], float]
SCORES = "answer_scores"  # under which the measurement gives them


def scores(
    name: str,
    prompts: list[list[Message]],
    answers: list[Answer],
    references: list[list[Reference]],
    timeouts: measuring.Timeouts,
) -> measuring.Measured:
    """The best score of each answer, as the number `answer_scores`; or the failed check that stands for them."""
    part = partial(_score_all, name, prompts, answers, references)
    return measuring.side_by_side({name: part}, timeouts)


def _score_all(
    name: str, prompts: list[list[Message]], answers: list[Answer], references: list[list[Reference]]
) -> dict[str, list[float]]:
    """In the process of its own."""
    function, rows = custom.load(name), zip(prompts, answers, references, strict=True)
    return {SCORES: [_best(function, prompt, answer, accepted) for prompt, answer, accepted in rows]}


def _best(function: ScoreOne, prompt: list[Message], answer: Answer, accepted: list[Reference]) -> float:
    if not answer.stopped:
        return 0.0
    return max(_checked(function(prompt, answer.text, reference)) for reference in accepted)


def _checked(score: object) -> float:
    """Raises where the user's function gave no score."""
    if not isinstance(score, numbers.Real):
        raise TypeError(f"gave {type(score).__name__}, not a number from 0 to 1")
    if not 0 <= score <= 1:  # NaN too
        raise ValueError(f"gave {score}: a score must lie between 0 and 1")
    return float(score)
