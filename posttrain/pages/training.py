"""Words for what a training learned from and what was kept of it: sampled pairs, the best checkpoint.

metrics of the steps, verdicts of the gates -> what became of the prompts, facts about the pairs, kept checkpoints
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.config.line import SAMPLING, SAMPLING_GATE, TRAININGS
from posttrain.pages import abilities, wording
from posttrain.verdict import Verdict

# What became of a prompt whose answers were sampled -> key of the sampling's metrics.
OUTCOMES = {
    "a pair": "num_sampled_pairs",
    "a pair, with the row's own answer as the chosen one": "num_pairs_with_reference",
    "no right answer": "num_prompts_with_no_right_answer",
    "no wrong answer that could be rejected": "num_prompts_with_no_wrong_answer",
    "scores too close": "num_prompts_with_small_margin",
}
RIGHT = "right_answer_rate"  # metric, unless a reward model scored the answers
NUMBERS = {
    "Mean reward of the chosen answers": "mean_chosen_reward",
    "Mean reward of the rejected answers": "mean_rejected_reward",
    "Mean margin": "mean_margin",
    "Least margin": "least_margin",
}
LENGTH_RATIO = "pair_length_ratio"  # check


@dataclass(frozen=True, slots=True)
class Sampled:
    """The pairs of a run that are its own model's answers."""

    num_prompts: int
    num_answers: int
    num_pairs: int
    num_trained_on: int  # of the pairs
    num_all: int  # trained on, brought ones included
    outcomes: dict[str, int]  # what became of the prompts, in words -> number of them
    facts: dict[str, str]  # about answers and pairs, in words


@dataclass(frozen=True, slots=True)
class Kept:
    """The checkpoint that a training kept."""

    step: int
    num_steps: int
    because: str


def sampled(metrics: Mapping[str, Mapping[str, Any]], gates: Mapping[str, Verdict]) -> Sampled | None:
    """Returns the outcome of the sampling of pairs; None if none were sampled.

    Args:
        metrics: those of each step, by its name.
    """
    numbers = metrics.get(SAMPLING)
    if not numbers:
        return None
    outcomes = {words: numbers.get(key, 0) for words, key in OUTCOMES.items()}
    outcomes["a pair"] -= numbers.get("num_pairs_with_reference", 0)
    facts = {"Right answers": abilities.percent(numbers[RIGHT])} if RIGHT in numbers else {}
    facts |= {words: wording.number(numbers[key]) for words, key in NUMBERS.items() if key in numbers}
    checks = gates[SAMPLING_GATE].checks if SAMPLING_GATE in gates else ()
    ratio = [wording.measured(check) for check in checks if check.name == LENGTH_RATIO]
    facts |= {"Length ratio": ratio[0]} if ratio else {}
    num_all, num_brought = numbers["num_train_pairs"], numbers["num_brought_pairs"]
    facts["Trained on"] = f"{num_all - num_brought:,} of {num_all:,} pairs"
    return Sampled(
        num_prompts=numbers["num_prompts"], num_answers=numbers["num_sampled_answers"],
        num_pairs=numbers["num_sampled_pairs"], num_trained_on=num_all - num_brought, num_all=num_all,
        outcomes=outcomes, facts=facts,
    )  # fmt: skip


def kept(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Kept]:
    """Returns the checkpoint that each training kept, where several were judged."""
    return {
        step: Kept(numbers["kept_step"], numbers["total_steps"], numbers["kept_because"])
        for step, numbers in metrics.items()
        if step in TRAININGS and "kept_step" in numbers
    }
