"""The user's own checks: functions of a module in the training image that judge a model's generated answers.

`package.module:function` from `validation.custom_checks`, judged answers -> one check for each, and its seconds

    def function(prompts: list[list[dict[str, str]]], answers: list[str], context: Context) -> Check

Each runs in its own process under its time limit. If it raises, hangs, dies, cannot be imported or returns anything but
a check named after the function, a failed check takes its place, never a pass. A verdict with such checks is not reused
in a later run: their code may have changed.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from posttrain.config import BUILT_IN_CHECKS, AnswerLimits
from posttrain.verdict import Check
from validators import checks, measuring
from validators.answers import JudgedAnswer, Message

IMPORT_SECONDS = 120  # an import may bring torch


@dataclass(frozen=True)
class Context:
    """Context that a check receives beside prompts and answers."""

    gate: str  # step name: check_sft, check_alignment or check_safety
    stopped: list[bool]  # of each answer: whether it ended by itself
    confidence: float  # of every interval in this gate, for `validators.intervals`
    references: list[list[Any]] = field(default_factory=list)  # for each answer, what counts as right
    scores: list[float] | None = None  # of each answer, by validation.answer_match; None: nobody judges the content
    base_answers: list[str] | None = None  # of the base to the same prompts; None: it was not asked
    previous_answers: list[str] | None = None  # of the model before this training, which may be the base


CustomCheck = Callable[[list[list[Message]], list[str], Context], Check]


def run(
    limits: AnswerLimits, answered: list[JudgedAnswer] | None, context: Context
) -> tuple[list[Check], dict[str, float]]:
    """Runs the user's own checks among `limits.custom_checks`, in that order; without answers none of them."""
    names = own(limits.custom_checks)
    if not answered:
        return measuring.not_run(names, "no answers were generated").failures, {}
    prompts, texts = [one.prompt for one in answered], [one.answer.text for one in answered]
    parts = {name: partial(_judge, name, prompts, texts, context) for name in names}
    measured = measuring.side_by_side(parts, checks.timeouts(limits))
    by_name = {check.name: check for check in measured.failures}
    by_name |= {name: Check.model_validate(check) for name, check in measured.numbers.items()}
    return [by_name[name] for name in names], measured.seconds


def check_importable(names: list[str]) -> None:
    """Raises ValueError if one of the user's own checks cannot be imported here; built-in names are skipped."""
    parts = {name: partial(_import, name) for name in own(names)}
    for check in measuring.side_by_side(parts, measuring.Timeouts(IMPORT_SECONDS)).failures:
        raise ValueError(
            f"validation.custom_checks: {check.name!r}: {check.detail}: "
            "name a package.module:function whose module is installed or on PYTHONPATH"
        )


def own(names: list[str]) -> list[str]:
    """The user's own checks, without the built-in ones."""
    return [name for name in names if name not in BUILT_IN_CHECKS]


def load(name: str) -> CustomCheck:
    """The function that `package.module:function` names.

    Raises:
        ValueError: the module has no such function.
        whatever importing the module raises.
    """
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise ValueError(f"module {module} has no function {attribute}")
    return function


def _import(name: str) -> None:
    load(name)


def _judge(name: str, prompts: list[list[Message]], answers: list[str], context: Context) -> dict[str, Check]:
    """Calls the function in the check's own process, and names its check as the configuration does."""
    check, wanted = load(name)(prompts, answers, context), name.partition(":")[2]
    if not isinstance(check, Check):
        raise TypeError(f"returned {type(check).__name__}, not a posttrain.verdict.Check")
    if check.name != wanted:
        raise ValueError(f"returned a check named {check.name!r}: name it {wanted!r}, like the function")
    return {name: Check.model_validate(check.model_dump() | {"name": name})}
