"""The limits that a gate decides on rows, and how many rows each needs in a given line or sweep.

configuration -> `Requirement`s, the `Evidence` that preflight and data gate look for, what could never be decided

A limit that is judged on rows has a row in `LIMITS`. Those of files and weights need none; of what a user's own check
needs nothing is known.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.config.evidence import (
    BOOTSTRAP,
    CEILING,
    COUNT,
    FLOOR,
    GAIN,
    PERMUTATION,
    Evidence,
    Need,
    Of,
    Part,
    Statistic,
)
from posttrain.config.limits import Validation
from posttrain.config.line import EXPORT_GATE, LINE
from posttrain.config.serving import Export
from posttrain.config.stages import Stages
from posttrain.config.sweep import SweepConfig

if TYPE_CHECKING:
    from posttrain.config.pipeline import PipelineConfig

STAGES = {"sft_rows": "sft", "sft_prompts": "sft", "preference_rows": "dpo"}  # whose held-out rows these are
ANSWERED: tuple[Of, ...] = ("sft_prompts", "prompts")  # of these at most num_generated_answers
HELD_OUT: tuple[Of, ...] = ("sft_rows", "sft_prompts", "preference_rows", "prompts")  # what a sweep divides
DATA_GATES = ("check_data", "check_sft_data", "check_preference_data")
LAST_GATES = ("check_alignment", "check_safety")
NOUNS = {
    "sft_rows": "held-out SFT rows",
    "sft_prompts": "different held-out SFT prompts",
    "preference_rows": "held-out preference rows",
    "prompts": "different held-out prompts",
    "red_team_prompts": "different red-team prompts",
    "off_topic_prompts": "different off-topic prompts",
    "benign_prompts": "different benign prompts",
    "skill_rows": "rows of each suite of skills",
}
PARTS = {"held_out": "", "selection": " that choose among trials", "unseen": " that judge the winner"}


def _always(_: Validation) -> bool:
    return True


def _judges_form(validation: Validation) -> bool:
    return "output_format_valid" in validation.custom_checks


def _judges_harm(validation: Validation) -> bool:
    return "no_harmful_content" in validation.custom_checks


def _judges_loss(validation: Validation) -> bool:
    return validation.answer_match == "none"


def _judges_content(validation: Validation) -> bool:
    return validation.answer_match != "none"


@dataclass(frozen=True)
class Limit:
    """A row of the table."""

    key: str
    of: Of
    statistic: Statistic
    gates: tuple[str, ...]  # those of them that a graph has judge it
    is_asked: Callable[[Validation], bool] = _always
    section: str = "validation"  # of the configuration, in which the key stands


LIMITS = (
    Limit("min_eval_rows", "sft_rows", COUNT, DATA_GATES),
    Limit("min_eval_rows", "preference_rows", COUNT, DATA_GATES),
    Limit("max_loss", "sft_rows", BOOTSTRAP, ("check_sft",)),
    Limit("min_loss_gain", "sft_rows", BOOTSTRAP, ("check_sft",)),
    Limit("min_stopped_rate", "sft_prompts", FLOOR, ("check_sft",)),
    Limit("min_format_valid_rate", "sft_prompts", FLOOR, ("check_sft",), _judges_form),
    Limit("min_answer_accuracy", "sft_prompts", FLOOR, ("check_sft",), _judges_content),
    Limit("min_accuracy_gain", "sft_prompts", GAIN, ("check_sft",), _judges_content),
    # Only the rows count that want another answer than the commonest: no fewer will do.
    Limit("max_one_answer_share", "sft_prompts", CEILING, ("check_sft",)),
    Limit("max_echo_share", "sft_prompts", CEILING, ("check_sft",)),
    Limit("min_following", "sft_prompts", PERMUTATION, ("check_sft",)),
    Limit("max_merge_kl", "sft_rows", BOOTSTRAP, ("check_sft_merge",)),
    Limit("min_merge_agreement", "sft_rows", BOOTSTRAP, ("check_sft_merge",)),
    Limit("max_merge_loss_difference", "sft_rows", BOOTSTRAP, ("check_sft_merge",)),
    Limit("max_merge_kl", "preference_rows", BOOTSTRAP, ("check_dpo_merge",)),
    Limit("min_merge_agreement", "preference_rows", BOOTSTRAP, ("check_dpo_merge",)),
    Limit("max_merge_loss_difference", "preference_rows", BOOTSTRAP, ("check_dpo_merge",)),
    Limit("min_accuracy", "preference_rows", FLOOR, ("check_alignment",)),
    Limit("min_margin", "preference_rows", BOOTSTRAP, ("check_alignment",)),
    Limit("min_preference_shift", "preference_rows", BOOTSTRAP, ("check_alignment",)),
    Limit("max_chosen_drop", "preference_rows", BOOTSTRAP, ("check_alignment",)),
    Limit("max_start_kl", "prompts", BOOTSTRAP, ("check_alignment",)),
    Limit("max_length_ratio", "prompts", BOOTSTRAP, ("check_alignment",)),
    Limit("max_sft_loss_increase", "sft_rows", BOOTSTRAP, LAST_GATES),
    Limit("min_stopped_rate", "prompts", FLOOR, LAST_GATES),
    Limit("max_repetition_rate", "prompts", CEILING, LAST_GATES),
    Limit("min_format_valid_rate", "prompts", FLOOR, LAST_GATES, _judges_form),
    Limit("max_format_drop", "prompts", BOOTSTRAP, LAST_GATES, _judges_form),
    Limit("min_answer_accuracy", "prompts", FLOOR, LAST_GATES, _judges_content),
    Limit("max_accuracy_drop", "prompts", CEILING, LAST_GATES, _judges_content),
    Limit("max_one_answer_share", "prompts", CEILING, LAST_GATES),
    Limit("max_echo_share", "prompts", CEILING, LAST_GATES),
    Limit("min_following", "prompts", PERMUTATION, LAST_GATES),
    Limit("min_harmless_rate", "red_team_prompts", FLOOR, LAST_GATES, _judges_harm),
    Limit("max_harmless_drop", "red_team_prompts", BOOTSTRAP, LAST_GATES, _judges_harm),
    Limit("max_harmless_drop_from_base", "red_team_prompts", BOOTSTRAP, LAST_GATES, _judges_harm),
    # Of the held-out prompts only those count that are not to be declined: no fewer will do.
    Limit("max_over_refusal_rate", "prompts", CEILING, LAST_GATES, lambda v: _judges_harm(v) and not v.benign_prompts),
    Limit("max_over_refusal_rate", "benign_prompts", CEILING, LAST_GATES,
          lambda v: _judges_harm(v) and bool(v.benign_prompts)),
    # SkillLimits itself refuses too few of them.
    Limit("max_skill_drop", "skill_rows", CEILING, LAST_GATES, lambda v: bool(v.suites)),
    Limit("max_off_topic_call_rate", "off_topic_prompts", CEILING, LAST_GATES, lambda v: bool(v.off_topic_prompts)),
    Limit("max_export_drop", "prompts", CEILING, (EXPORT_GATE,), section="export"),
    Limit("max_export_loss_rise", "sft_rows", BOOTSTRAP, (EXPORT_GATE,), _judges_loss, section="export"),
    Limit("max_export_loss_rise", "preference_rows", BOOTSTRAP, (EXPORT_GATE,), _judges_loss, section="export"),
    Limit("max_drop_from_published", "prompts", CEILING, ("check_champion",), _judges_content),
    Limit("max_loss_above_published", "sft_rows", BOOTSTRAP, ("check_champion",), _judges_loss),
    Limit("max_loss_above_published", "preference_rows", BOOTSTRAP, ("check_champion",), _judges_loss),
)  # fmt: skip
STATISTICS = {limit.key: limit.statistic for limit in LIMITS}
SECTIONS = {limit.key: limit.section for limit in LIMITS}


@dataclass(frozen=True)
class Requirement:
    """Rows that one limit of one gate needs."""

    gate: str
    key: str  # of validation
    limit: float
    of: Of
    num_rows: int | None  # at a perfect score; None: no number would do


def requirements(
    stages: Stages, validation: Validation, *, promote: bool = True, export: Export | None = None
) -> list[Requirement]:
    """Lists the rows that each limit needs in the graph with these stages, in the order of its gates."""
    shape = {"promote": promote, "sections": ["export"] if export else []}
    gates = [step.name for step in LINE if step.kind == "gate" and step.is_in(stages, **shape)]
    sections = {"validation": validation, "export": export}
    return [
        Requirement(
            gate=gate,
            key=limit.key,
            limit=getattr(sections[limit.section], limit.key),
            of=limit.of,
            num_rows=limit.statistic.rows(getattr(sections[limit.section], limit.key), validation.confidence),
        )
        for gate in gates
        for limit in LIMITS
        if gate in limit.gates and limit.is_asked(validation) and _has_rows(stages, limit.of)
    ]


def _asked(config: "PipelineConfig") -> list[Requirement]:
    """Lists the rows that each limit needs in the line of a configuration."""
    return requirements(config.stages, config.validation, promote=config.promote, export=config.export)


def evidence_of(config: "PipelineConfig") -> Evidence:
    """Returns the evidence that the gates of a line need."""
    asked = [one for one in _of_data(config) if config.stages.has("brought_pairs") or one.of != "preference_rows"]
    return _evidence(config, _needs(asked, "held_out"))


def evidence_of_pairs(config: "PipelineConfig") -> Evidence:
    """Returns the evidence that gates behind check_pairs need of the pairs, which no earlier step can count."""
    asked = [one for one in _of_data(config) if one.of == "preference_rows"]
    return _evidence(config, _needs(asked, "held_out"))


def evidence_of_sweep(config: "PipelineConfig", sweep: SweepConfig) -> Evidence:
    """Returns the evidence that a sweep needs: one part of the held-out rows judges trials, the other the winner."""
    asked = _of_data(config)
    whole = [one for one in asked if one.gate in DATA_GATES or one.of not in HELD_OUT]
    parted = [one for one in asked if one not in whole]
    gates = [step.name for step in LINE]
    until = gates.index(sweep.objective.gate)
    by_trials = [one for one in parted if gates.index(one.gate) <= until]
    by_winner = parted if sweep.continue_with_best else by_trials
    needs = _needs(whole, "held_out") + _needs(by_trials, "selection") + _needs(by_winner, "unseen")
    return _evidence(config, needs, unseen_fraction=sweep.unseen_fraction)


def check_decidable(config: "PipelineConfig") -> None:
    """Refuses limits that no data could decide.

    Raises:
        ValueError: on one line, with each limit, how many answers it needs, and the keys to change.
    """
    asked = _asked(config)
    problems = [
        *dict.fromkeys(_never(one, config.validation.confidence) for one in asked if one.num_rows is None),
        *_too_few_answers(asked, config.validation),
    ]
    if problems:
        raise ValueError("; ".join(problems))


def shortage(needs: Iterable[Need], num_rows: int, confidence: float) -> tuple[str, str]:
    """`(what needs more rows than there are, how to change the limits instead)`."""
    short = {key: (limit, need.num_rows) for need in needs if need.num_rows > num_rows
             for key, limit in need.limits.items()}  # fmt: skip
    needed = _listed([f"{SECTIONS[key]}.{key} = {limit:g} needs {num}" for key, (limit, num) in short.items()])
    changes = _listed([change for key in short if (change := _change(key, num_rows, confidence))])
    if all(STATISTICS[key] is COUNT for key in short):
        return needed, f"otherwise {changes}"
    needed = f"at confidence {confidence:g}, {needed} even if every answer is right"
    return needed, f"otherwise {', or '.join(filter(None, [changes, 'lower validation.confidence']))}"


def table(config: "PipelineConfig") -> str:
    """Every limit that is judged on rows, with the number that it needs."""
    asked = _asked(config)
    rows = [(one.gate, f"{one.key} {one.limit:g}", str(one.num_rows), NOUNS[one.of]) for one in asked]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {gate:<{widths[0]}}  {limit:<{widths[1]}}  {num:>{widths[2]}} {noun}" for gate, limit, num, noun in rows
    ]
    return "\n".join([_head(config), *lines])


def summary(config: "PipelineConfig") -> str:
    """For each kind of rows the largest number that a limit needs, and that limit."""
    largest: dict[Of, Need] = {}
    for need in evidence_of(config).needs:
        largest[need.of] = max(largest.get(need.of, need), need, key=lambda one: one.num_rows)
    rows = [
        (str(need.num_rows), NOUNS[of], _first_of(need.limits)) for of, need in largest.items() if need.num_rows > 1
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [_head(config), *(f"  {num:>{widths[0]}} {noun:<{widths[1]}}  {keys}" for num, noun, keys in rows)]
    )


def summary_of_sweep(config: "PipelineConfig", sweep: SweepConfig) -> str:
    """How many prompts must be held out for each of a sweep's two parts of them to be large enough."""
    shares = {"selection": 1 - sweep.unseen_fraction, "unseen": sweep.unseen_fraction}
    parted = [need for need in evidence_of_sweep(config, sweep).needs if need.part in shares]
    num_rows = max(math.ceil(need.num_rows / shares[need.part]) for need in parted)
    return (
        f"A sweep needs about {num_rows} held-out prompts, for trials and winner are judged on different ones "
        f"(unseen_fraction {sweep.unseen_fraction:g})."
    )


def _head(config: "PipelineConfig") -> str:
    confidence = config.validation.confidence
    return f"Rows without which a gate cannot decide, even if every answer is right (confidence {confidence:g}):"


def _of_data(config: "PipelineConfig") -> list[Requirement]:
    """Requirements on data sets and prompt files, without those on the rows of suites, which are bundled."""
    return [one for one in _asked(config) if one.of != "skill_rows"]


def _has_rows(stages: Stages, of: Of) -> bool:
    return of not in STAGES or getattr(stages, STAGES[of]).enabled


def _needs(asked: list[Requirement], part: Part) -> list[Need]:
    """Groups the limits that need the same number of the same rows."""
    limits: dict[tuple[Of, int], dict[str, float]] = {}
    for one in asked:
        if one.num_rows is not None:
            limits.setdefault((one.of, one.num_rows), {})[one.key] = one.limit
    return [Need(of=of, part=part, num_rows=num, limits=group) for (of, num), group in limits.items()]


def _evidence(config: "PipelineConfig", needs: list[Need], **values: float) -> Evidence:
    fraction, confidence = config.data.eval_fraction, config.validation.confidence
    return Evidence(confidence=confidence, eval_fraction=fraction, needs=needs, **values)


def _never(one: Requirement, confidence: float) -> str:
    bound = "above 0" if STATISTICS[one.key] is CEILING else "below 1"
    return (
        f"{SECTIONS[one.key]}.{one.key} = {one.limit:g} cannot be decided by any number of rows: the interval of a "
        f"share, at confidence {confidence:g}, always reaches {bound}; set it {bound}"
    )


def _too_few_answers(asked: list[Requirement], validation: Validation) -> list[str]:
    there = validation.num_generated_answers
    needs = _needs([one for one in asked if one.of in ANSWERED], "held_out")
    largest = max((need.num_rows for need in needs), default=0)
    if largest <= there:
        return []
    needed, changes = shortage(needs, there, validation.confidence)
    return [
        f"validation.num_generated_answers = {there} is too few: {needed}; "
        f"set num_generated_answers to at least {largest}; {changes}"
    ]


def _change(key: str, num_rows: int, confidence: float) -> str:
    statistic = STATISTICS[key]
    if statistic.tightest is None or not num_rows:
        return ""
    return f"{statistic.remedy} {SECTIONS[key]}.{key} to {statistic.tightest(num_rows, confidence):g}"


def _first_of(limits: dict[str, float]) -> str:
    """`max_loss 2 and 5 more`."""
    (key, limit), *others = limits.items()
    return f"{key} {limit:g}" + (f" and {len(others)} more" if others else "")


def _listed(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
