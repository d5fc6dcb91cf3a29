"""The user's own checks: functions of a module in the training image that judge a model's generated answers.

`package.module:function` from `validation.custom_checks`, judged answers -> one check for each, and its seconds

    def function(prompts: list[list[dict[str, str]]], answers: list[str], context: Context) -> Check

Each runs in a process of its own under its time limit. One that raises, hangs, dies, cannot be imported or gives
anything but a check called like the function is a failed check of its name, never a pass. A verdict with such checks is
not reused in a later run: what they do may have changed.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from posttrain.config import BUILT_IN_CHECKS, AnswerLimits
from posttrain.verdict import Check
from validators import checks, measuring
from validators.answers import JudgedAnswer, Message

IMPORT_SECONDS = 120  # an import may bring torch


@dataclass(frozen=True)
class Context:
    """What a check may want to know beside prompts and answers."""

    gate: str  # step name: check_sft, check_alignment or check_safety
    stopped: list[bool]  # for each answer, whether it ended by itself
    confidence: float  # of every interval in this gate, for `validators.intervals`


CustomCheck = Callable[[list[list[Message]], list[str], Context], Check]


def run(
    limits: AnswerLimits, answered: list[JudgedAnswer] | None, *, gate: str
) -> tuple[list[Check], dict[str, float]]:
    """The user's own among `limits.custom_checks`, in that order. Without answers they are not run."""
    names = own(limits.custom_checks)
    if not answered:
        return measuring.not_run(names, "no answers were generated").failures, {}
    context = Context(gate, [one.answer.stopped for one in answered], limits.confidence)
    prompts, texts = [one.prompt for one in answered], [one.answer.text for one in answered]
    parts = {name: partial(_judge, name, prompts, texts, context) for name in names}
    measured = measuring.side_by_side(parts, checks.timeouts(limits))
    found = {check.name: check for check in measured.failures}
    found |= {name: Check.model_validate(check) for name, check in measured.numbers.items()}
    return [found[name] for name in names], measured.seconds


def check_importable(names: list[str]) -> None:
    """Raises ValueError where one of the user's own checks cannot be imported here; built-in names are passed over."""
    parts = {name: partial(_import, name) for name in own(names)}
    for check in measuring.side_by_side(parts, measuring.Timeouts(IMPORT_SECONDS)).failures:
        raise ValueError(
            f"validation.custom_checks: {check.name!r}: {check.detail}: "
            "give package.module:function of a module that is installed or on PYTHONPATH"
        )


def own(names: list[str]) -> list[str]:
    """The user's, without the built-in ones."""
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
    """In the check's own process: what it found, under the name of the configuration."""
    found, wanted = load(name)(prompts, answers, context), name.partition(":")[2]
    if not isinstance(found, Check):
        raise TypeError(f"gave {type(found).__name__}, not a posttrain.verdict.Check")
    if found.name != wanted:
        raise ValueError(f"gave a check called {found.name!r}: call it {wanted!r}, like the function")
    return {name: Check.model_validate(found.model_dump() | {"name": name})}
