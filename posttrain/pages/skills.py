"""Scores of general skills, among a verdict's numbers and in a table.

numbers of a verdict <-> `SkillScore`s; scores -> rows of a table

A suite `arithmetic` has these numbers:

    skill_arithmetic, skill_arithmetic_low, skill_arithmetic_high                  the model's share of right answers
    skill_arithmetic_base, skill_arithmetic_base_low, skill_arithmetic_base_high   the base's, on the same rows
    skill_arithmetic_chance         share that guessing reaches
    skill_arithmetic_num_rows       rows that both answered
    skill_arithmetic_num_lost       rows that only the base answers correctly; _num_gained: only the model
    skill_arithmetic_informative    1: the base can do it, so a check says whether it was lost; 0: nothing is known
"""

from dataclasses import asdict, dataclass

PREFIX = "skill_"


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillScore:
    """Shares of right answers that base and model reached in one suite, with their intervals."""

    name: str
    base: float
    base_low: float
    base_high: float
    model: float
    low: float
    high: float
    chance: float
    num_rows: int
    num_lost: int
    num_gained: int
    informative: bool

    def numbers(self) -> dict[str, float]:
        """The score as numbers of a verdict."""
        return {_key(self.name, field): float(value) for field, value in asdict(self).items() if field != "name"}

    @property
    def verdict(self) -> str:
        """Counts of lost and gained answers, in a few words."""
        return f"{self.num_lost} lost, {self.num_gained} gained" if self.informative else "not informative"


def scores(numbers: dict[str, float]) -> list[SkillScore]:
    """The scores among a verdict's numbers, in their order; none where no skill was asked."""
    suffix = "_informative"
    names = [key[len(PREFIX) : -len(suffix)] for key in numbers if key.startswith(PREFIX) and key.endswith(suffix)]
    return [_score(name, numbers) for name in names]


def others(numbers: dict[str, float]) -> dict[str, float]:
    """The numbers of a verdict without its scores."""
    taken = {key for score in scores(numbers) for key in score.numbers()}
    return {key: value for key, value in numbers.items() if key not in taken}


def cells(score: SkillScore) -> tuple[str, str, str, str]:
    """`arithmetic`, `55 % (40 to 69)`, `12 % (6 to 26)`, `19 lost, 2 gained`: one row of a table."""
    base = _share(score.base, score.base_low, score.base_high)
    return score.name, base, _share(score.model, score.low, score.high), score.verdict


def _score(name: str, numbers: dict[str, float]) -> SkillScore:
    kinds = SkillScore.__annotations__
    return SkillScore(
        name=name, **{field: kind(numbers[_key(name, field)]) for field, kind in kinds.items() if field != "name"}
    )


def _key(name: str, field: str) -> str:
    return f"{PREFIX}{name}" if field == "model" else f"{PREFIX}{name}_{field}"


def _share(value: float, low: float, high: float) -> str:
    return f"{value:.0%} ({100 * low:.0f} to {100 * high:.0f})"
