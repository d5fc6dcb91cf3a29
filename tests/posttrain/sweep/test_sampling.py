import pytest

from posttrain.config.sweep import SweepConfig
from posttrain.sweep.ranking import Candidate, Measure
from posttrain.sweep.sampling import settings_of

SPACE = {
    "sft.learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
    "sft.lora_r": {"min": 4, "max": 64},
    "sft.target_modules": ["all-linear", ["q_proj"]],
}


def sweep(sampler, num_trials=20):
    return SweepConfig(space=SPACE, sampler=sampler, num_trials=num_trials)


def ask(settings, at, ended=(), running=()):
    return settings_of(settings, settings.trials[at], ended=ended, running=running)


def ended(name, settings, value, status="qualified"):
    measures = {} if value is None else {"check_sft.held_out_loss": Measure(value=value)}
    return Candidate(
        name=name, run_id=name, settings=settings, status=status, measures=measures, objective="check_sft.held_out_loss"
    )


def test_a_grid_has_every_combination_once():
    grid = SweepConfig(space={"sft.lora_r": [8, 16], "sft.epochs": [1, 2, 3]})
    found = [tuple(ask(grid, at).values()) for at in range(6)]
    assert sorted(found) == [(8, 1), (8, 2), (8, 3), (16, 1), (16, 2), (16, 3)]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_chosen_lies_in_the_space_is_not_the_same_and_is_so_again(sampler):
    settings = sweep(sampler)
    found = [ask(settings, at) for at in range(6)]
    assert found == [ask(settings, at) for at in range(6)]
    assert len({repr(one) for one in found}) == 6
    for one in found:
        assert 1e-5 <= one["sft.learning_rate"] <= 1e-2
        assert isinstance(one["sft.lora_r"], int) and 4 <= one["sft.lora_r"] <= 64
        assert one["sft.target_modules"] in ("all-linear", ["q_proj"])


def test_tpe_looks_where_it_was_good_and_not_where_trials_did_not_qualify():
    settings = sweep("tpe")
    first = [ask(sweep("random"), at) for at in range(15)]
    # Good at small rates; those that diverged have none, and no value.
    rows = [
        ended(f"t{at}", one, one["sft.learning_rate"])
        if one["sft.learning_rate"] < 1e-3
        else ended(f"t{at}", one, None, "diverged")
        for at, one in enumerate(first)
    ]
    asked = [ask(settings, at, ended=rows, running=first[:1])["sft.learning_rate"] for at in range(15, 20)]
    assert max(asked) < 1e-3
    assert sorted(asked)[2] < sorted(one["sft.learning_rate"] for one in first)[7]
