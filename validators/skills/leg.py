"""The part of a gate on general skills: asks base and model, and judges their answers.

session with a model -> its answers by suite; what base and model gave, limits -> checks, numbers, answers for the page
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.config.limits import AlignmentLimits
from posttrain.pages.answers import AnsweredPrompt
from posttrain.verdict import Check
from validators import checks, inference, measuring
from validators.measuring import Measured
from validators.session import Session
from validators.skills import asking, harness, judging, suites
from validators.skills.judging import Answers, Scored

BATCH_SIZE = 32  # short prompts, short answers


@dataclass(frozen=True, kw_only=True)
class Skills:
    """Skill results of one model; None where it was not asked or could not be measured."""

    answers: Answers | None = None
    tasks: dict[str, Scored] | None = None  # of lm-evaluation-harness

    def scored(self, limits: AlignmentLimits) -> dict[str, Scored] | None:
        """All of it as scores; None where something is missing."""
        if (limits.suites and self.answers is None) or (limits.lm_eval_tasks and self.tasks is None):
            return None
        named = {f"lm_eval_{name}": one for name, one in (self.tasks or {}).items()}
        return judging.scored(self.answers or {}) | named


@dataclass(frozen=True)
class Leg:
    """Checks, numbers and lost answers that a gate shows of general skills."""

    checks: list[Check]
    numbers: dict[str, float]
    lost: list[AnsweredPrompt]  # what the base answers rightly and the model does not


def bring(limits: AlignmentLimits, folder: Path, allowed_prefixes: list[str]) -> dict[str, str]:
    """The suites and the tasks of lm-evaluation-harness as inputs of a gate: its verdict is bound to their content.

    Raises:
        ValueError: the tasks' data lies outside the allowed prefixes or is not there, or lm-eval is not installed.
    """
    bundled = {"skills": str(suites.FOLDER)} if limits.suites else {}
    if not limits.lm_eval_tasks:
        return bundled
    return bundled | {"lm_eval_data": harness.fetch(limits.lm_eval_data, folder, allowed_prefixes)}


def ask(session: Session, limits: AlignmentLimits) -> Answers:
    """The loaded model's answers."""
    here = partial(inference.generate, batch_size=BATCH_SIZE, name=session.name)
    generate = session.engine.generate if session.engine else here
    asked = [suites.load(name, limits.skill_rows) for name in limits.suites]
    declines_with = limits.output_format.declines_with
    return asking.ask(session.model, session.tokenizer, asked, generate=generate, declines_with=declines_with)


def run_tasks(models: dict[str, Path], limits: AlignmentLimits, data: str | None) -> Measured:
    """The tasks of lm-evaluation-harness, each model's in a process of its own after all else was measured.

    Args:
        models: as in `validators.observe.observe`.
    """
    if not limits.lm_eval_tasks:
        return Measured()
    names = ("model", "base" if "base" in models else "before")
    parts = {f"{name}_lm_eval": partial(_run_tasks, name, models[name], limits, data) for name in names}
    return measuring.in_order(parts, checks.timeouts(limits))


def judge(base: Skills, model: Skills, limits: AlignmentLimits) -> Leg:
    """Pure: the same answers and limits give the same checks."""
    if not (limits.suites or limits.lm_eval_tasks):
        return Leg([], {}, [])
    both, confidence = (base.scored(limits), model.scored(limits)), limits.confidence
    judged = judging.checks(*both, limits, confidence=confidence)
    known = judging.scores(*both, limits, confidence=confidence)
    numbers = {name: value for score in known for name, value in score.numbers().items()}
    return Leg(judged, numbers, judging.lost(base.answers, model.answers, judged))


def _run_tasks(name: str, model: Path, limits: AlignmentLimits, data: str) -> dict[str, Any]:
    return {name: {"skills": {"tasks": harness.run(model, limits.lm_eval_tasks, data)}}}
