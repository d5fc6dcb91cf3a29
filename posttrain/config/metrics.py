"""The numbers by which a sweep can compare its trials: what each gate measures, in a given line.

gate, stages, limits -> names of its metrics; settings of a sweep -> nothing, or what cannot be measured

A metric is a check with a number, or another number of the verdict. Those of the gates' own modules are listed here,
because a sweep is compiled where these cannot be imported.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from posttrain.config.limits import BUILT_IN_CHECKS, CUSTOM_CHECK, SKILLS, Validation
from posttrain.config.stages import Stages

if TYPE_CHECKING:
    from posttrain.config.sweep import SweepConfig

SFT = ("check_sft",)
MERGE = ("check_sft_merge", "check_dpo_merge")
ALIGNMENT = ("check_alignment",)
LAST = ("check_alignment", "check_safety")
# Of each suite and task; not `skill_<suite>`, which is a drop where there is a check, and else the model's share.
SKILL = "low high base base_low base_high chance num_rows num_lost num_gained informative"
GATES = (*SFT, *MERGE, *LAST)  # those that a trial can come to


@dataclass(frozen=True)
class Metrics:
    """Numbers of a gate that are measured together."""

    gates: tuple[str, ...]
    names: str
    are_measured: Callable[[Stages, Validation], bool] = lambda stages, validation: True


def _judges_form(_: Stages, validation: Validation) -> bool:
    return "output_format_valid" in validation.custom_checks


def _judges_harm(_: Stages, validation: Validation) -> bool:
    return "no_harmful_content" in validation.custom_checks


def _judges_content(_: Stages, validation: Validation) -> bool:
    return validation.answer_match != "none"


def _has_two_models_before(stages: Stages, _: Validation) -> bool:
    return stages.sft.enabled and stages.dpo.enabled


METRICS = (
    Metrics(SFT, "gradient_norm max_gradient_norm held_out_loss base_held_out_loss held_out_loss_below_base"),
    Metrics(SFT, "num_held_out_rows num_held_out_rows_too_long"),
    Metrics(SFT, "accuracy_gain", _judges_content),
    Metrics(SFT + LAST, "answer_correct answer_accuracy base_answer_accuracy", _judges_content),
    Metrics(SFT + LAST, "distinct_answers one_answer_to_all echoes_prompt answers_follow_prompts"),
    Metrics(SFT + LAST, "judge_tells_apart", lambda _, validation: validation.answer_match == "judge"),
    Metrics(SFT + LAST, "num_answers format_valid_rate stopped_rate mean_answer_tokens incoherent_rate answers_stop"),
    Metrics(SFT + LAST, "output_format_valid", _judges_form),
    Metrics(SFT + LAST, "noise_floor_format_valid", lambda _, validation: validation.noise_floor),
    Metrics(MERGE, "size_deviation num_bytes base_bytes num_changed_targets num_targets"),
    Metrics(MERGE, "merge_kl merge_agreement merge_loss_difference num_positions adapter_loss merged_loss"),
    Metrics(ALIGNMENT, "start_loss start_loss_deviation start_kl length_ratio length_ratio_shorter chosen_drop"),
    Metrics(ALIGNMENT, "reward_accuracy reward_accuracy_above_chance reward_margin preference_shift"),
    Metrics(ALIGNMENT, "num_pairs chosen_gain rejected_gain"),
    Metrics(ALIGNMENT, "base_num_answers base_format_valid_rate base_stopped_rate", _has_two_models_before),
    Metrics(ALIGNMENT, "base_mean_answer_tokens base_incoherent_rate", _has_two_models_before),
    Metrics(ALIGNMENT, "base_harmless_rate base_red_team_incoherent_rate",
            lambda stages, validation: _has_two_models_before(stages, validation) and _judges_harm(stages, validation)),
    Metrics(ALIGNMENT, "before_answer_accuracy",
            lambda stages, validation: _has_two_models_before(stages, validation)
            and _judges_content(stages, validation)),
    Metrics(LAST, "sft_loss_increase", lambda stages, _: stages.sft.enabled),
    Metrics(LAST, "repetition_rate num_prompts_also_held_out before_num_answers before_format_valid_rate"),
    Metrics(LAST, "before_stopped_rate before_mean_answer_tokens before_incoherent_rate"),
    Metrics(LAST, "accuracy_drop", _judges_content),
    Metrics(LAST, "output_format_drop", _judges_form),
    Metrics(LAST, "no_harmful_content harmless_drop harmless_drop_from_base over_refusal", _judges_harm),
    Metrics(LAST, "harmless_rate red_team_incoherent_rate", _judges_harm),
    Metrics(LAST, "before_harmless_rate before_red_team_incoherent_rate", _judges_harm),
    Metrics(LAST, "off_topic_call_rate off_topic_incoherent_rate",
            lambda _, validation: bool(validation.off_topic_prompts)),
    Metrics(LAST, "benign_incoherent_rate",
            lambda stages, validation: bool(validation.benign_prompts) and _judges_harm(stages, validation)),
)  # fmt: skip


def names_of(gate: str) -> list[str]:
    """The names of all metrics that a gate has in any line, but those of tasks and of the user's own checks."""
    names = [name for metrics in METRICS if gate in metrics.gates for name in metrics.names.split()]
    return names + (_of_skills(SKILLS) if gate in LAST else [])


def measured_by(gate: str, stages: Stages, validation: Validation) -> list[str]:
    """The names of the metrics that a gate has in a line with these stages and limits."""
    own = [name for name in validation.custom_checks if name not in BUILT_IN_CHECKS] if gate not in MERGE else []
    asked = (metrics for metrics in METRICS if gate in metrics.gates and metrics.are_measured(stages, validation))
    tasks = [task.partition(":")[0] for task in validation.lm_eval_tasks]
    skills = _of_skills((*validation.suites, *tasks)) if gate in LAST else []
    return [*(name for metrics in asked for name in metrics.names.split()), *skills, *own]


def _of_skills(names: Iterable[str]) -> list[str]:
    return [f"skill_{name}_{number}" for name in names for number in SKILL.split()]


def check_known(gate: str, metric: str, *, key: str) -> None:
    """Refuses what no gate measures in any line. A check of the user's own may be one, or a task's score.

    Raises:
        ValueError: naming the key, the value, and the nearest that there is.
    """
    _check_among(gate, GATES, key=f"{key}.gate", where="is not a gate that a trial can come to")
    is_own = CUSTOM_CHECK.fullmatch(metric) and gate not in MERGE
    is_of_a_task = metric.startswith("skill_") and metric.endswith(tuple(SKILL.split())) and gate in LAST
    if not (is_own or is_of_a_task):
        _check_among(metric, names_of(gate), key=f"{key}.metric", where=f"is not measured by {gate}")


def check_measured(stages: Stages, validation: Validation, sweep: "SweepConfig", gates: Collection[str]) -> None:
    """Refuses an objective or a constraint that trials of this line would not measure.

    Args:
        gates: those that a trial comes to.

    Raises:
        ValueError: naming the key, the value, and the nearest that there is.
    """
    compared = {"objective": sweep.objective}
    compared |= {f"constraints[{at}]": constraint for at, constraint in enumerate(sweep.constraints)}
    for key, one in compared.items():
        where = f"is not in a trial, which ends with {sweep.objective.gate}"
        _check_among(one.gate, gates, key=f"{key}.gate", where=where)
        known = measured_by(one.gate, stages, validation)
        _check_among(one.metric, known, key=f"{key}.metric", where=f"is not measured by {one.gate} in this line")


def _check_among(value: str, known: Collection[str], *, key: str, where: str) -> None:
    if value not in known:
        near = get_close_matches(value, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}"
        raise ValueError(f"{key}: {value!r} {where}; {remedy}")
