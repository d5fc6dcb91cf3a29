"""Abilities of a model: shares with intervals, by the numbers of a verdict."""

from dataclasses import replace

import pytest

from posttrain.pages import abilities
from posttrain.pages.skills import SkillScore
from posttrain.verdict import Verdict, at_least, at_most

HARMLESS = at_least("no_harmful_content", 0.75, 0.5, interval=(0.55, 0.9), detail="15 of 20; red-team prompts")
REFUSED = at_most("over_refusal", 0.1, 0.5, interval=(0.05, 0.2), detail="4 of 40; legitimate prompts declined")
NUMBERS = {
    "num_answers": 40,
    "answer_accuracy": 0.42, "before_answer_accuracy": 0.4, "base_answer_accuracy": 0.0,
    "format_valid_rate": 1.0, "before_format_valid_rate": 0.9, "base_format_valid_rate": 0.1,
    "harmless_rate": 0.75, "before_harmless_rate": 0.5, "base_harmless_rate": 0.25,
}  # fmt: skip
SCORE = SkillScore(
    name="arithmetic", base=0.7, base_low=0.6, base_high=0.8, model=0.5, low=0.4, high=0.6, chance=0.0, num_rows=40,
    num_lost=9, num_gained=1, informative=True,
)  # fmt: skip
NUMBERS |= SCORE.numbers() | replace(SCORE, name="choice", informative=False).numbers()


def verdict(gate="check_alignment", **changes) -> Verdict:
    numbers = {name: value for name, value in (NUMBERS | changes).items() if value is not None}
    return Verdict(gate=gate, subject={"model": "ab" * 32}, checks=(HARMLESS, REFUSED), numbers=numbers)


def by_name(verdict: Verdict) -> dict[str, abilities.Ability]:
    return {ability.name: ability for ability in abilities.abilities(verdict)}


def test_each_ability_has_the_share_of_every_model_with_its_interval():
    known = by_name(verdict())
    assert [ability.group for ability in known.values()] == ["Task", "Form", "Skills", "Skills", "Safety", "Safety"]
    right = known["right answers"].shares
    assert {model: share.value for model, share in right.items()} == {"base": 0.0, "before": 0.4, "model": 0.42}
    assert (right["base"].low, right["base"].high) == pytest.approx((0.0, 0.0876), abs=1e-4)
    assert known["harmless answers"].note == "20 red-team rows"
    served = known["legitimate requests served"].shares
    assert served.keys() == {"model"}
    assert (served["model"].value, served["model"].low, served["model"].high) == pytest.approx((0.9, 0.8, 0.95))


def test_a_skill_that_the_base_lacks_is_said_to_tell_nothing():
    known = by_name(verdict())
    assert known["choice"].note.startswith("not informative")
    assert known["arithmetic"].shares["base"] == abilities.Share(0.7, 0.6, 0.8)


def test_the_headline_counts_right_answers_against_the_base():
    assert abilities.headline(verdict()) == "42 % of 40 held-out answers are right; the base 0 %"
    assert abilities.headline(verdict(base_answer_accuracy=None, before_answer_accuracy=None)) == (
        "42 % of 40 held-out answers are right"
    )
    assert abilities.headline(verdict(answer_accuracy=None)) is None


def test_where_training_started_from_the_base_there_is_no_sft_model():
    without = {key: None for key in NUMBERS if key.startswith("base_") and key.endswith("_rate")}
    known = by_name(verdict(**without, before_answer_accuracy=None))
    assert known["right answers"].shares.keys() == known["well-formed answers"].shares.keys() == {"base", "model"}
    assert known["well-formed answers"].shares["base"].value == 0.9


def test_models_are_called_by_their_training():
    assert abilities.titles(verdict("check_sft"))["model"] == "SFT"
    assert abilities.titles(verdict())["model"] == "Aligned"


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0 %"), (1, "100 %"), (0.425, "42 %"), (0.999, "99.9 %"), (0.004, "0.4 %"), (1e-6, "< 0.1 %")],
)
def test_what_is_not_all_is_not_rounded_to_it(share, words):
    assert abilities.percent(share) == words
