"""What became of sampled prompts, and which checkpoint was kept, in words."""

from posttrain.pages import training
from posttrain.pages.training import Kept
from posttrain.verdict import Verdict, at_most

SAMPLING = {
    "num_prompts": 10, "num_sampled_answers": 40, "right_answer_rate": 0.25, "num_prompts_with_no_right_answer": 1,
    "num_prompts_with_no_wrong_answer": 2, "num_prompts_with_small_margin": 1, "num_sampled_pairs": 6,
    "num_pairs_with_reference": 2, "least_margin": 0.5, "mean_margin": 0.75, "num_train_pairs": 9,
    "num_brought_pairs": 4,
}  # fmt: skip
TRAINED = {"total_steps": 27, "kept_step": 13, "kept_because": "best of 2 checkpoints"}


def test_every_prompt_came_to_one_thing_and_what_is_trained_on_is_counted():
    checks = (at_most("pair_length_ratio", 1.25, 2.0),)
    gates = {"check_pairs": Verdict(gate="check_pairs", subject={"train": "0" * 64}, checks=checks)}
    sampled = training.sampled({"sample_pairs": SAMPLING}, gates)
    assert list(sampled.outcomes.values()) == [4, 2, 1, 2, 1] and sum(sampled.outcomes.values()) == sampled.num_prompts
    assert sampled.facts == {
        "Right answers": "25 %", "Mean margin": "0.75", "Least margin": "0.5", "Length ratio": "1.25",
        "Trained on": "5 of 9 pairs",
    }  # fmt: skip
    assert (sampled.num_trained_on, sampled.num_all) == (5, 9)


def test_a_sampling_without_a_pair_has_no_margin_and_before_its_gate_no_length_ratio():
    numbers = {key: value for key, value in SAMPLING.items() if not key.endswith("_margin")} | {"num_sampled_pairs": 2}
    sampled = training.sampled({"sample_pairs": numbers | {"num_prompts_with_small_margin": 0}}, {})
    assert sampled.facts.keys() == {"Right answers", "Trained on"}
    assert training.sampled({"train_dpo": TRAINED}, {}) is None


def test_answers_that_a_reward_model_scored_have_its_means_and_no_share_of_right_ones():
    rewards = {"mean_chosen_reward": 1.5, "mean_rejected_reward": -0.25}
    numbers = {key: value for key, value in SAMPLING.items() if key != "right_answer_rate"} | rewards
    sampled = training.sampled({"sample_pairs": numbers}, {})
    assert sampled.facts == {
        "Mean reward of the chosen answers": "1.5", "Mean reward of the rejected answers": "-0.25",
        "Mean margin": "0.75", "Least margin": "0.5", "Trained on": "5 of 9 pairs",
    }  # fmt: skip


def test_a_training_that_judged_checkpoints_says_which_it_kept():
    metrics = {"train_sft": {"total_steps": 9}, "train_dpo": TRAINED}
    assert training.kept(metrics) == {"train_dpo": Kept(step=13, num_steps=27, because="best of 2 checkpoints")}
