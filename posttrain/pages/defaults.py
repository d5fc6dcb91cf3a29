"""Finds the limits that a configuration made weaker than the defaults, so that no page conceals them.

check of a verdict -> the default of its limit, if that is stricter
"""

import math
from collections.abc import Iterable

from posttrain.config import Validation
from posttrain.pages import wording
from posttrain.verdict import Check, Verdict

# Name of a check -> key of its limit in `validation`. Checks whose limit nobody can set are left out.
KEYS = {
    "answer_correct": "min_answer_accuracy",
    "accuracy_gain": "min_accuracy_gain",
    "accuracy_drop": "max_accuracy_drop",
    "drop_from_published": "max_drop_from_published",
    "loss_above_published": "max_loss_above_published",
    "distinct_answers": "min_distinct_answers",
    "one_answer_to_all": "max_one_answer_share",
    "echoes_prompt": "max_echo_share",
    "answers_follow_prompts": "min_following",
    "output_format_valid": "min_format_valid_rate",
    "output_format_drop": "max_format_drop",
    "answers_stop": "min_stopped_rate",
    "repetition_rate": "max_repetition_rate",
    "length_ratio": "max_length_ratio",
    "length_ratio_shorter": "max_length_ratio",
    "held_out_loss": "max_loss",
    "held_out_loss_below_base": "min_loss_gain",
    "gradient_norm": "max_gradient_norm",
    "reward_accuracy": "min_accuracy",
    "reward_margin": "min_margin",
    "preference_shift": "min_preference_shift",
    "start_loss_deviation": "max_start_deviation",
    "chosen_drop": "max_chosen_drop",
    "start_kl": "max_start_kl",
    "sft_loss_increase": "max_sft_loss_increase",
    "no_harmful_content": "min_harmless_rate",
    "harmless_drop": "max_harmless_drop",
    "harmless_drop_from_base": "max_harmless_drop_from_base",
    "over_refusal": "max_over_refusal_rate",
    "off_topic_call_rate": "max_off_topic_call_rate",
    "size_deviation": "max_size_deviation",
    "merge_kl": "max_merge_kl",
    "merge_agreement": "min_merge_agreement",
    "merge_loss_difference": "max_merge_loss_difference",
    "train_rows": "min_train_rows",
    "duplicate_share": "max_duplicate_share",
    "near_duplicate_share": "max_near_duplicate_share",
    "too_long_share": "max_share_too_long",
    "near_shared_prompts": "max_near_shared_prompts",
    "unmatched_answers": "max_unmatched_share",
}
SKILL = ("skill_", "max_skill_drop")  # prefix of a suite's check, key of the limit of all of them
CONFIDENCE = Validation.model_fields["confidence"].default
RECIPROCAL = "length_ratio_shorter"  # its limit is 1 / that of the key


def stricter_default(check: Check) -> float | None:
    """Returns the default of the check's limit if it is stricter than the limit; otherwise None."""
    default = _default(check.name)
    if default is None or check.limit is None or math.isclose(check.limit, default, abs_tol=1e-12):
        return None
    is_weaker = check.limit > default if check.relation in ("<", "<=") else check.limit < default
    return default if is_weaker else None


def weaker(verdicts: Iterable[Verdict]) -> list[tuple[str, str, str]]:
    """Lists each limit weaker than its default once, as name, limit, default: `answer_correct`, `≥ 0`, `≥ 0.5`."""
    lines = {}
    for verdict in verdicts:
        if verdict.confidence < CONFIDENCE:
            lines["confidence", f"{verdict.confidence:g}", f"{CONFIDENCE:g}"] = None
        for check in verdict.checks:
            if default := shown_default(check):
                lines[check.name, wording.limit(check), default] = None
    return list(lines)


def shown_default(check: Check) -> str:
    """Formats the default of a limit that is weaker than it, `≥ 0.9`; empty for all other limits."""
    default = stricter_default(check)
    return "" if default is None else f"{wording.sign(check.relation)} {wording.number(default)}"


def key_of(name: str) -> str | None:
    """The key in `validation` of the limit of the check of this name."""
    prefix, key = SKILL
    return KEYS.get(name) or (key if name.startswith(prefix) else None)


def _default(name: str) -> float | None:
    field = Validation.model_fields.get(key_of(name) or "")
    if field is None or not isinstance(field.default, int | float):
        return None
    return 1 / field.default if name == RECIPROCAL else float(field.default)
