"""Judges what training did to the likelihood of texts: preferences learned, chosen answers kept, nothing else lost.

log-probabilities of the model and of the previous model on the same held-out rows -> checks

Reward accuracy alone passes a model that learned nothing, and a margin can grow while the chosen answers become
unlikely (https://github.com/huggingface/trl/issues/800). Everything is pure: the same numbers give the same checks.
"""

import math

from posttrain.config import AlignmentLimits
from posttrain.verdict import Check, at_most
from validators import answers, intervals

Logprobs = list[tuple[float, int]]  # of each row's answer: sum in nats, number of tokens
Gains = list[tuple[float, float]]  # of each pair: nats that the chosen and the rejected answer gained

TEACH = "Raise dpo.epochs or dpo.learning_rate, or add pairs that differ more clearly."


def gains_of(
    before: tuple[Logprobs | None, Logprobs | None], after: tuple[Logprobs | None, Logprobs | None]
) -> Gains | None:
    """Nats by which each pair's (chosen, rejected) answer became likelier; None if either model was not measured."""
    columns = [*before, *after]
    if not all(columns):
        return None
    return [
        (chosen - chosen_before, rejected - rejected_before)
        for (chosen_before, _), (rejected_before, _), (chosen, _), (rejected, _) in zip(*columns, strict=True)
    ]


def learned_checks(gains: Gains | None, limits: AlignmentLimits, *, beta: float) -> list[Check]:
    """Reward accuracy, against its limit and against chance, and how far the model really moved."""
    shifts = gains and [chosen - rejected for chosen, rejected in gains]
    num_right = shifts and sum(shift > 0 for shift in shifts)
    total, confidence = len(shifts or []), limits.confidence
    return [
        intervals.share(
            "reward_accuracy",
            num_right,
            total,
            ">=",
            limits.min_accuracy,
            confidence=confidence,
            detail="held-out pairs",
            remedy=TEACH,
        ),
        intervals.share(
            "reward_accuracy_above_chance",
            num_right,
            total,
            ">",
            0.5,
            confidence=confidence,
            remedy=f"Pairs are ordered hardly better than by chance. {TEACH}",
        ),
        intervals.mean(
            "reward_margin",
            shifts and [beta * shift for shift in shifts],
            ">",
            limits.min_margin,
            confidence=confidence,
            detail="beta times the shift towards the chosen answers, mean over pairs",
            remedy=TEACH,
        ),
        intervals.mean(
            "preference_shift",
            shifts,
            ">",
            limits.min_preference_shift,
            confidence=confidence,
            detail="nats per pair; below the limit the model hardly changed, however accurate it is",
            remedy=TEACH,
        ),
    ]


def start_check(start_loss: float | None, limits: AlignmentLimits) -> Check:
    """start_loss_deviation: DPO's loss before its first step is ln 2, unless the reference was not the start model."""
    return at_most(
        "start_loss_deviation",
        None if start_loss is None else abs(start_loss - math.log(2)),
        limits.max_start_deviation,
        detail="" if start_loss is None else f"sigmoid loss before the first step {start_loss:.4f}, ln 2 is 0.6931",
        remedy="Train from the merged model's folder, with every dropout in its config.json set to 0.",
    )


def chosen_drop_check(gains: Gains | None, chosen: Logprobs | None, limits: AlignmentLimits) -> Check:
    """chosen_drop: how much less likely the chosen answers have become."""
    return intervals.ratio(
        "chosen_drop",
        gains and [-gain for gain, _ in gains],
        chosen and [float(num) for _, num in chosen],
        "<=",
        limits.max_chosen_drop,
        confidence=limits.confidence,
        detail="nats per token by which the chosen answers became less likely",
        remedy='Lower dpo.learning_rate, raise dpo.beta, or add "sft" to dpo.loss_type.',
    )


def start_kl_check(kl: Logprobs | None, limits: AlignmentLimits) -> Check:
    """start_kl: how far the model has moved from the previous one, along the answers that it gives itself."""
    return intervals.ratio(
        "start_kl",
        kl and [total for total, _ in kl],
        kl and [float(num) for _, num in kl],
        "<=",
        limits.max_start_kl,
        confidence=limits.confidence,
        more_rows_by=answers.more_answers(kl, limits),
        detail="KL divergence from the previous model, nats per token of the model's own answers",
        remedy="Raise dpo.beta, or lower dpo.learning_rate or dpo.epochs.",
    )


def sft_loss_check(before: Logprobs | None, after: Logprobs | None, limits: AlignmentLimits) -> Check:
    """sft_loss_increase: how much of what SFT taught the model has lost, row by row."""
    rises = weights = None
    if before and after:
        rises = [old - new for (old, _), (new, _) in zip(before, after, strict=True)]
        weights = [float(num) for _, num in after]
    return intervals.ratio(
        "sft_loss_increase",
        rises,
        weights,
        "<=",
        limits.max_sft_loss_increase,
        confidence=limits.confidence,
        detail="nats per token of the held-out SFT answers",
        remedy='Lower dpo.learning_rate, raise dpo.beta, or add "sft" to dpo.loss_type.',
    )
