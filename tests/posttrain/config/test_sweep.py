import pytest

from posttrain.config import Stages, Validation
from posttrain.config.sweep import Range, SweepConfig, nested

SPACE = {"sft.learning_rate": [1e-4, 2e-4], "sft.lora_r": [8, 16]}


def test_the_committed_sweep_is_valid():
    sweep = SweepConfig.read("configs/sweep_config.yaml")
    assert [(rung.share, rung.num_trials) for rung in sweep.rungs] == [(pytest.approx(1 / 3), 12), (1, 4)]
    assert sweep.trials[:2] == ["trial_01", "trial_02"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, "space: is empty"),
        ({"space": {"sft.learning_rat": [1]}}, "'sft.learning_rat' is not a setting of sft or dpo"),
        ({"space": {"validation.max_loss": [1]}}, "'validation.max_loss' is not a setting"),
        ({"space": {"sft.learning_rate": []}}, "sft.learning_rate has no values"),
        ({"space": {"sft.learning_rate": [2.0]}}, "overrides.sft: learning_rate = '2.0'"),
        ({"space": {"sft.lora_r": {"min": 8, "max": 4}}}, "min 8 is not below max 4"),
        ({"space": {"sft.weight_decay": {"min": 0, "max": 1.0, "log": True}}}, "log needs a min above 0"),
        ({"space": {"sft.lora_r": {"min": 4, "max": 8}}}, "is a range: give num"),
        ({"num_trials": 3}, "the space has 4 trials, num_trials is 3"),
        ({"sampler": "random"}, "sampler random needs num_trials"),
        ({"halving": {"reduction_factor": 3, "num_rungs": 3}}, "leaves none of 4 trials"),
        ({"constraints": [{"metric": "answers_stop"}]}, "check_sft.answers_stop has no bound"),
        ({"objective": {"gate": "train_sft"}}, "objective.gate"),
        (
            {"space": {"dpo.beta": [0.1, 0.2]}, "objective": {"gate": "check_alignment", "metric": "reward_margin"}},
            "a larger dpo.beta always wins",
        ),
        (
            {"objective": {"metric": "held_out_los"}},
            "'held_out_los' is not measured by check_sft; did you mean held_out_",
        ),
        ({"objective": {"gate": "check_alignment"}}, "'held_out_loss' is not measured by check_alignment"),
        (
            {"constraints": [{"gate": "check_sfd", "metric": "answers_stop", "min": 1}]},
            "constraints[0].gate: 'check_sfd' is not a gate that a trial can come to; did you mean check_sft?",
        ),
        ({"constraints": [{"metric": "merge_kl", "max": 1}]}, "constraints[0].metric: 'merge_kl' is not measured"),
        ({"paralelism": 2}, "did you mean parallelism?"),
    ],
)
def test_what_makes_no_sweep_is_one_line_with_its_key(tmp_path, changes, words):
    import yaml

    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"space": SPACE} | changes))
    with pytest.raises(ValueError) as caught:
        SweepConfig.read(file)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_range_is_spaced_evenly_or_by_logarithm_with_both_its_ends():
    assert Range(min=1, max=5, num=3).spaced() == [1, 3, 5]
    assert Range(min=1e-5, max=1e-3, log=True, num=3).spaced() == [1e-5, pytest.approx(1e-4), 1e-3]
    assert Range(min=1, max=2, num=5).spaced() == [1, 2]


def test_rungs_say_how_many_go_on_and_how_far():
    space = {"sft.lora_r": list(range(1, 9))}
    sweep = SweepConfig(space=space, halving={"reduction_factor": 2, "num_rungs": 3})
    assert [(rung.share, rung.num_trials) for rung in sweep.rungs] == [(0.25, 8), (0.5, 4), (1, 2)]
    assert sweep.slots(sweep.rungs[2]) == ["rung_3_rank_1", "rung_3_rank_2"]
    assert sweep.rung_of("rung_2_rank_4").number == 1
    assert sweep.rung_of("judge_winner") is None


@pytest.mark.parametrize(
    ("stages", "answer_match", "objective"),
    [
        ({}, "exact", ("check_sft.answer_correct", -1)),
        ({}, "auto", ("check_sft.answer_correct", -1)),
        ({}, "none", ("check_sft.held_out_loss", 1)),
        ({"sft": {"enabled": False}}, "exact", ("check_alignment.answer_correct", -1)),
        ({"sft": {"enabled": False}}, "none", ("check_alignment.preference_shift", -1)),
    ],
)
def test_trials_are_compared_by_right_answers_unless_nobody_judges_them(stages, answer_match, objective):
    line = (Stages.model_validate(stages), Validation(answer_match=answer_match))
    found = SweepConfig(space={"dpo.lora_r": [4, 8]}).for_line(*line)
    assert (found.objective.name, found.objective.sign) == objective
    assert found.for_line(Stages(), Validation(answer_match="none")) == found  # once set, it stays
    chosen = SweepConfig(space=SPACE, objective={"metric": "answers_stop"})
    assert chosen.for_line(*line) == chosen


def test_settings_become_overrides():
    assert nested({"sft.lora_r": 8, "sft.epochs": 1, "dpo.beta": 0.2}) == {
        "sft": {"lora_r": 8, "epochs": 1},
        "dpo": {"beta": 0.2},
    }
