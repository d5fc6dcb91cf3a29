"""Tests which steps a chain holds, and their order; what is wrong with one is in test_publish.py and test_verify.py."""

import random

import pytest

from posttrain.step import provenance
from posttrain.step.provenance import Link, trace
from posttrain.step.records import StepRecord

END = Link(
    step="publish_model", fingerprint="f", code=None, inputs={"model": "aligned"}, outputs={},
    config={"required_gates": ["check_merge"], "judged_gates": ["check_merge"]},
)  # fmt: skip
NOON = "2026-01-01T12:00:00+00:00"


def done(step: str, inputs: list[str], outputs: list[str], *, attempt: int = 1, status: str = "succeeded", **more):
    return StepRecord(
        step=step, attempt=attempt, run_id="r", status=status, started_at=NOON, seconds=1.0, fingerprint="f",
        config={}, inputs={name: name for name in inputs}, outputs={name: name for name in outputs},
        measured={}, **more,
    )  # fmt: skip


LINE = [
    done("fetch_model", [], ["base"]),
    done("prepare", [], ["train", "eval"]),
    done("train", ["base", "train"], ["adapter"]),
    done("merge", ["base", "adapter"], ["aligned"]),
    done("check_merge", ["aligned", "eval"], ["verdict"], verdict={"passed": True}),
]


def steps(records: list) -> list[str]:
    return [link.step for link in trace(records, run_id="r", end=END).links]


@pytest.mark.parametrize("seed", range(10))
def test_links_follow_what_they_take_whatever_the_clocks_say(seed):
    records = random.Random(seed).sample(LINE, len(LINE))
    chain = steps(records)
    assert sorted(chain[:-1]) == sorted(step.step for step in LINE)
    assert chain[-1] == "publish_model"
    for before, after in (("fetch_model", "train"), ("prepare", "train"), ("train", "merge"), ("merge", "check_merge")):
        assert chain.index(before) < chain.index(after)


def test_a_link_says_by_which_processes_a_model_was_trained_on_several_nodes():
    ranks = {"num_nodes": 2, "num_ranks": 4, "train_job": "0b1e"}
    alone, together = (done("train", ["base"], ["adapter"]) for _ in range(2))
    together.measured.update(ranks | {"train_loss": 0.5})
    assert Link.of(together).trained_by.model_dump() == ranks
    assert Link.of(alone).trained_by is None


def test_what_the_model_does_not_rest_on_is_left_out():
    aside = [
        done("train_dpo", ["base"], ["another adapter"]),
        done("check_other", ["aligned"], ["another verdict"], verdict={"passed": True}),
        done("merge", ["base", "adapter"], ["half"], status="failed", attempt=2),
    ]
    assert steps([*LINE, *aside]) == steps(LINE)


def test_of_a_step_that_was_made_again_the_attempt_counts_whose_result_went_on():
    again = [done("train", ["base", "train"], ["better adapter"], attempt=2)]
    chain = trace([*LINE, *again], run_id="r", end=END)
    assert [link.outputs for link in chain.links if link.step == "train"] == [{"adapter": "adapter"}]


def test_of_a_gate_that_judged_again_the_last_verdict_counts():
    again = done("check_merge", ["aligned", "eval"], ["verdict"], verdict={"passed": False}, attempt=2)
    chain = trace([*LINE, again], run_id="r", end=END)
    assert [link.verdict for link in chain.links if link.verdict] == [{"passed": False}]


def test_a_step_that_gives_what_it_took_is_no_source_of_it():
    records = [done("train", ["adapter"], ["adapter"]) if step.step == "train" else step for step in LINE]
    named = provenance.faults(trace(records, run_id="r", end=END))
    assert "train: its adapter adapter is not an output of an earlier step of this run; run it again" in named


def test_sources_are_of_steps_that_take_nothing_and_of_prompts_that_a_gate_names():
    told = {"source": "org/name", "commit": "c0ffee", "digest": "d"}
    records = [step.model_copy(update={"measured": told}) for step in LINE]
    gate = records[-1].model_copy(
        update={
            "inputs": records[-1].inputs | {"red_team_prompts": "p"},
            "config": {"validation": {"red_team_prompts": "gs://acme/red.jsonl", "off_topic_prompts": "gs://acme/x"}},
        }
    )
    chain = trace([*records[:-1], gate], run_id="r", end=END)
    assert {name: str(source) for name, source in chain.sources.items()} == {
        "fetch_model": "org/name@c0ffee",
        "prepare": "org/name@c0ffee",
        "check_merge: red_team_prompts": "gs://acme/red.jsonl",
    }
    assert not any("took red_team_prompts" in fault for fault in provenance.faults(chain))


def test_each_of_several_data_sets_is_a_source():
    data_sets = [
        {"address": "a.jsonl", "commit": "", "sha256": "1", "weight": 2.0, "num_train_rows": 9},
        {"address": "org/rows", "commit": "c0ffee", "sha256": "2", "weight": 0.5, "num_train_rows": 9},
    ]
    told = {"source": "[...]", "commit": "", "digest": "d", "data_sets": data_sets}
    records = [step.model_copy(update={"measured": told}) if step.step == "prepare" else step for step in LINE]
    chain = trace(records, run_id="r", end=END)
    assert {name: (str(source), source.sha256) for name, source in chain.sources.items() if "prepare" in name} == {
        "prepare: 1": ("a.jsonl, weight 2", "1"),
        "prepare: 2": ("org/rows@c0ffee, weight 0.5", "2"),
    }
    assert provenance.Provenance.model_validate_json(chain.model_dump_json()) == chain


def test_models_and_prompts_from_outside_that_pairs_are_sampled_with_are_sources():
    config = {
        "reward_model": "org/reward", "judge_model": "org/guard", "match_options": {"judge_model": "org/judge"},
        "prompts": "gs://b/rows.jsonl",
    }  # fmt: skip
    names = ("model", "reward_model", "harm_judge", "matching_judge", "rows", "references")
    link = Link(
        step="sample_pairs",
        config=config,
        inputs={name: name for name in names},
        outputs={},
        fingerprint="f",
        code=None,
    )
    assert {name: source.address for name, source in link.named.items()} == {
        "reward_model": "org/reward", "harm_judge": "org/guard", "matching_judge": "org/judge",
        "rows": "gs://b/rows.jsonl", "references": "gs://b/rows.jsonl",
    }  # fmt: skip
    ours = link.model_copy(update={"config": config | {"prompts": ""}}).named
    assert "rows" not in ours and "references" not in ours  # then an earlier step of the run must have made them
    gate = link.model_copy(update={"step": "check_sft", "config": {"validation": config}})
    assert gate.named["matching_judge"].address == "org/judge"
    assert link.model_copy(update={"step": "train_dpo"}).named == {}
