"""Judges general skills: in no suite may the model have lost more than `max_skill_drop` of what its base can do.

scores of base and model by suite, limits -> a check per suite, the numbers of `posttrain.pages.skills`, what was lost

Base and model answer the same rows, and the difference is judged on them with an exact paired test
(`validators.paired`). With the defaults, 40 rows and a limit of 0.2 at a confidence of 0.95:

    rows lost, gained    drop, its interval        the check
    0, 0                 0.00 (-0.09 to 0.09)      passes: 16 rows are enough for that
    4, 2                 0.05 (-0.09 to 0.19)      passes
    6, 2                 0.10 (-0.05 to 0.25)      is undecided: with 90 rows of the same it would pass
    13, 0                0.33 (0.20 to 0.48)       fails

A limit of 0.1 takes 80 rows or more: of these 2 lost and none gained pass, 4 lost and 2 gained are undecided.

A suite in which the base is not better than chance, or by no more than the limit, cannot show a loss: it is *not
informative*, stands among the numbers as such and has no check. Where no suite is informative nothing is known of the
model's skills, and the check `skills_informative` fails.
"""

from dataclasses import dataclass

from posttrain.config.limits import SkillLimits
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer
from posttrain.pages.skills import SkillScore
from posttrain.verdict import Check, holds
from validators import intervals, paired
from validators.answers import JudgedAnswer
from validators.skills import suites

INFORMATIVE = "skills_informative"
LOST = (
    "Training took this skill away: lower learning_rate or epochs, or add general rows to sft_dataset. If the product "
    "does not need it, leave the suite out of validation.skills."
)
NOTHING_TO_LOSE = (
    "In none of these suites is the base right often enough to show a loss: name others in validation.skills, or set "
    "it to false to publish without knowing."
)

Answers = dict[str, list[JudgedAnswer]]  # by suite, in the order of its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How a model did in one suite, or in a task of lm-evaluation-harness."""

    scores: list[float] | None = None  # from 0 to 1, row by row; None: it ended without its metric
    chance: float = 0.0  # mean score that guessing reaches
    error: str = ""  # why there are no scores


def scored(answers: Answers) -> dict[str, Scored]:
    """The answers to the bundled suites as scores."""
    return {
        name: Scored(scores=[float(one.fault is None) for one in some], chance=suites.load(name, len(some)).chance)
        for name, some in answers.items()
    }


def checks(
    base: dict[str, Scored] | None, model: dict[str, Scored] | None, limits: SkillLimits, *, confidence: float
) -> list[Check]:
    """A check for each suite that is informative or has no scores, and one on whether any is informative.

    Args:
        base: None, and so `model`: it could not be asked.
    """
    if base is None or model is None:
        return [holds(INFORMATIVE, None, detail="base or model could not be asked")]
    known = scores(base, model, limits, confidence=confidence)
    informative = [score.name for score in known if score.informative]
    any_is = holds(INFORMATIVE, bool(informative), detail=_listed(known), remedy=NOTHING_TO_LOSE)
    missing = [_no_scores(name, base[name], model[name]) for name in base if _error(base[name], model[name])]
    return [any_is, *missing, *(_drop(name, base[name], model[name], limits, confidence) for name in informative)]


def scores(
    base: dict[str, Scored] | None, model: dict[str, Scored] | None, limits: SkillLimits, *, confidence: float
) -> list[SkillScore]:
    """Scores of base and model, suite by suite; a suite without scores is left out."""
    names = [name for name in base or {} if model and not _error(base[name], model[name])]
    return [_score(name, base[name], model[name], limits, confidence) for name in names]


def lost(base: Answers | None, model: Answers | None, checks: list[Check]) -> list[AnsweredPrompt]:
    """Lists prompts that the base answers rightly and the model does not, in the suites that have a check."""
    names = [name for check in checks if (name := check.name.removeprefix("skill_")) in (base or {}) and model]
    return [
        AnsweredPrompt(
            source="skill prompt",
            prompt=row.prompt,
            references=[row.reference],
            base=_shown(old),
            model=_shown(new, fault=f"{name}: wrong, where the base is right"),
        )
        for name in names
        for row, old, new in zip(suites.load(name, len(base[name])).rows, base[name], model[name], strict=True)
        if old.fault is None and new.fault is not None
    ]


def _shown(answer: JudgedAnswer, fault: str | None = None) -> ModelAnswer:
    score = float(answer.fault is None)
    return ModelAnswer(text=answer.answer.text, stopped=answer.answer.stopped, score=score, fault=fault)


def _drop(name: str, base: Scored, model: Scored, limits: SkillLimits, confidence: float) -> Check:
    check = paired.paired_difference(
        f"skill_{name}",
        base.scores,
        model.scores,
        "<=",
        limits.max_skill_drop,
        confidence=confidence,
        detail="base against model",
        remedy=LOST,
        more_rows_by="raise validation.skill_rows",
    )
    has = suites.num_rows(name) if name in suites.MAX_NEW_TOKENS else len(base.scores)
    if check.more_rows is None or len(base.scores) + check.more_rows <= has:
        return check
    advice = "" if check.value <= check.limit else f" {LOST}"
    remedy = f"All {has} rows that there are would not decide, if the value stays.{advice}"
    return check.model_copy(update={"remedy": remedy, "more_rows": None})


def _score(name: str, base: Scored, model: Scored, limits: SkillLimits, confidence: float) -> SkillScore:
    share, (base_low, base_high) = _share(base.scores, confidence)
    value, (low, high) = _share(model.scores, confidence)
    pairs = [*zip(base.scores, model.scores, strict=True)]
    return SkillScore(
        name=name,
        base=share,
        base_low=base_low,
        base_high=base_high,
        model=value,
        low=low,
        high=high,
        chance=base.chance,
        num_rows=len(pairs),
        num_lost=sum(old > new for old, new in pairs),
        num_gained=sum(old < new for old, new in pairs),
        informative=base_low > base.chance and share - base.chance > limits.max_skill_drop,
    )


def _share(scores: list[float], confidence: float) -> tuple[float, tuple[float, float]]:
    """Mean score with its interval. Where rows are too few for a bootstrap it may lie anywhere."""
    mean = sum(scores) / len(scores)
    if all(score in (0, 1) for score in scores):
        return mean, intervals.wilson(sum(scores), len(scores), confidence)
    return mean, intervals.mean_interval(scores, confidence) or (0.0, 1.0)


def _error(base: Scored, model: Scored) -> str:
    return base.error or model.error


def _no_scores(name: str, base: Scored, model: Scored) -> Check:
    return holds(f"skill_{name}", False, detail=_error(base, model), remedy="See the log of the gate.")


def _listed(scores: list[SkillScore]) -> str:
    """`arithmetic, reading; not informative: choice (base 20%)`: no suite is passed over in silence."""
    good = ", ".join(score.name for score in scores if score.informative) or "none"
    bad = ", ".join(f"{score.name} (base {score.base:.0%})" for score in scores if not score.informative)
    return f"{good}; not informative: {bad}" if bad else good
