"""Abilities of the models as a gate measured them: right answers, form, skills, safety, from base to last model.

verdict of a gate in which models answered -> `Ability`s, each a share of every model with its interval; a headline

The shares are numbers of the verdict, counted on the same rows for every model. Their intervals are Wilson's; where a
row scores between 0 and 1 they are wider than need be.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from posttrain.config.line import CHAMPION
from posttrain.pages import skills
from posttrain.pages.skills import SkillScore
from posttrain.verdict import COUNTS, Check, Verdict

MODELS = ("base", "before", "model")  # in the order in which they were made


@dataclass(frozen=True, slots=True)
class Share:
    """A share of rows, 0 to 1, and its interval if the rows are known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that models can do, and the share of rows on which each of them does it."""

    group: str
    name: str
    shares: dict[str, Share]  # by model
    note: str = ""


def judged_answers(gates: dict[str, Verdict]) -> Verdict | None:
    """Returns the verdict of the last gate that judged this run's own models by answers; None if there is none."""
    answered = [verdict for gate, verdict in gates.items() if gate != CHAMPION and "num_answers" in verdict.numbers]
    return answered[-1] if answered else None


def titles(verdict: Verdict) -> dict[str, str]:
    """Short names of the models on a page: base and trainings, or the version that is current and the new one."""
    if verdict.gate == CHAMPION:
        return {"base": "Current", "before": "Current", "model": "New"}
    is_sft = verdict.gate in ("check_sft", "check_safety")
    return {"base": "Base", "before": "SFT", "model": "SFT" if is_sft else "Aligned"}


def abilities(verdict: Verdict) -> list[Ability]:
    """Lists the measured abilities in the order of the page; those without a number are left out."""
    num_answers = verdict.numbers.get("num_answers")
    task = Ability("Task", "right answers", _of_answers(verdict, "answer_accuracy", num_answers), _rows(num_answers))
    form = Ability("Form", "well-formed answers", _of_answers(verdict, "format_valid_rate", num_answers))
    known = [task, form, *map(_skill, skills.scores(verdict.numbers)), *_safety(verdict)]
    return [ability for ability in known if ability.shares]


def headline(verdict: Verdict) -> str | None:
    """Says in a sentence how many answers are right, `42 % of 40 held-out answers are right; the base 0 %`."""
    task = next((ability for ability in abilities(verdict) if ability.group == "Task"), None)
    if task is None or "model" not in task.shares:
        return None
    right = f"{percent(task.shares['model'].value)} of {verdict.numbers['num_answers']:.0f} held-out answers are right"
    base = task.shares.get("base")
    return right if base is None else f"{right}; the base {percent(base.value)}"


def percent(share: float) -> str:
    """Formats a share. One that is almost 0 or 1 is not rounded to it."""
    rounded = round(100 * share)
    if rounded in (0, 100) and share not in (0, 1):
        return f"{100 * share:.1f} %" if 0.0005 <= share < 0.9995 else "> 99.9 %" if rounded else "< 0.1 %"
    return f"{rounded} %"


def wilson(share: float, num_rows: float | None, confidence: float) -> Share:
    """The share with its score interval (E. B. Wilson 1927); without rows, without one."""
    if not num_rows:
        return Share(share)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / num_rows
    centre = (share + z * z / (2 * num_rows)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_rows + z * z / (4 * num_rows * num_rows))
    return Share(share, max(centre - half, 0.0), min(centre + half, 1.0))


def _of_answers(verdict: Verdict, number: str, num_rows: float | None) -> dict[str, Share]:
    """The shares under `number`, `before_<number>` and `base_<number>`.

    In a graph where training started from the base, generated answers of the base stand under `before_` alone.
    """
    numbers = verdict.numbers
    keys = {"base": f"base_{number}", "before": f"before_{number}", "model": number}
    if not any(key.startswith("base_") and key.endswith("_rate") for key in numbers) and keys["base"] not in numbers:
        keys = {"base": f"before_{number}", "model": number}
    return {model: wilson(numbers[key], num_rows, verdict.confidence) for model, key in keys.items() if key in numbers}


def _skill(score: SkillScore) -> Ability:
    shares = {
        "base": Share(score.base, score.base_low, score.base_high),
        "model": Share(score.model, score.low, score.high),
    }
    note = _rows(score.num_rows) if score.informative else "not informative: too hard for the base"
    return Ability("Skills", score.name.replace("_", " "), shares, note)


def _safety(verdict: Verdict) -> list[Ability]:
    checks = {check.name: check for check in verdict.checks}
    num_asked = _num_counted(checks.get("no_harmful_content"))
    harmless = Ability(
        "Safety",
        "harmless answers",
        _of_answers(verdict, "harmless_rate", num_asked),
        _rows(num_asked, "red-team rows"),
    )
    return [harmless, *_kept(checks.get("over_refusal"), "legitimate requests served")]


def _kept(check: Check | None, name: str) -> list[Ability]:
    """The complement of a share that ought to be small, for the judged model alone."""
    if check is None or check.value is None:
        return []
    low, high = (1 - end for end in reversed(check.interval)) if check.interval else (None, None)
    share = Share(1 - check.value, low, high)
    return [Ability("Safety", name, {"model": share}, _rows(_num_counted(check)))]


def _num_counted(check: Check | None) -> float | None:
    counts = COUNTS.match(check.detail) if check else None
    return float(counts[2]) if counts else None


def _rows(number: float | None, what: str = "rows") -> str:
    return "" if not number else f"{number:.0f} {what}"
