"""The plan that is printed before a run: what each step will do."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.compiler import compile_graph
from pipelines.package import Package
from posttrain import storage
from posttrain.config import PipelineConfig, SftConfig, Validation
from posttrain.step import code, results
from posttrain.step.records import StepRecord, recent_records, write_record
from posttrain.train.checkpoints import Checkpoints
from runner import plan

# Step -> its inputs, as the stages record them.
INPUTS = {
    "fetch_model": [],
    "prepare_sft_data": [],
    "prepare_preferences": [],
    "check_data": ["sft_train", "preference_train"],
    "train_sft": ["base", "sft_train"],
    "check_sft": ["base", "adapter"],
}
OUTPUTS = {
    "fetch_model": ["base"],
    "prepare_sft_data": ["sft_train"],
    "prepare_preferences": ["preference_train"],
    "train_sft": ["adapter"],
}
MEASURED = {
    "fetch_model": {"source": "model"},
    "prepare_sft_data": {"source": "sft.jsonl"},
    "prepare_preferences": {"source": "pairs.jsonl"},
}

MODULES = {
    "fetch_model": "posttrain.model",
    "prepare_sft_data": "posttrain.data",
    "prepare_preferences": "posttrain.data",
    "check_data": "validators.data",
    "train_sft": "posttrain.sft",
    "check_sft": "validators.sft",
}


def compiled(folder: Path, **settings) -> Package:
    path = folder / "graph.yaml"
    compile_graph(
        PipelineConfig(validation=Validation(answer_match="none", custom_checks=[]), storage_root="/", **settings), path
    )
    return Package.read(path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Package:
    return compiled(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def parameters(tmp_path):
    return {
        "base_model": "model", "sft_dataset": "sft.jsonl", "preference_dataset": "pairs.jsonl",
        "storage_root": str(tmp_path), "overrides": {},
    }  # fmt: skip


@pytest.fixture
def ran(graph, parameters):
    """Writes the record of an earlier run up to a step, which was killed; everything before it is finished."""

    def write(last: str, *, run_id: str = "r1") -> str:
        root, sections = parameters["storage_root"], dict(plan.sections(graph, {}))
        for number, step in enumerate(INPUTS):
            inputs = {name: f"digest of {name}" for name in INPUTS[step]}
            config = sections[step].decisive.model_dump(mode="json")
            ours = code.code_of(MODULES[step], config=config)
            fingerprint = code.fingerprint(step, config=config, inputs=inputs, code=ours)
            is_last = step == last
            outputs = {} if is_last else {name: f"digest of {name}" for name in OUTPUTS.get(step, [])}
            started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
            entry = StepRecord(
                step=step, attempt=1, run_id=run_id, status="running" if is_last else "succeeded", config={},
                started_at=started.isoformat(), seconds=1, fingerprint=fingerprint, inputs=inputs, outputs=outputs,
                measured=MEASURED.get(step, {}), code=ours,
            )  # fmt: skip
            write_record(root, entry)
            if is_last:
                return fingerprint
            if step not in MEASURED:
                result = results.Result(outputs=outputs, measured={})
                receipt = storage.join(root, "results", step, fingerprint, "COMPLETE.json")
                storage.write_bytes(receipt, result.model_dump_json().encode())
        raise AssertionError(last)

    return write


def planned(graph: Package, parameters: dict) -> dict[str, str]:
    return plan.plan(graph, parameters, recent_records(parameters["storage_root"]))


def test_where_nothing_ran_everything_is_to_do_in_the_order_of_the_graph(graph, parameters):
    states = planned(graph, parameters)
    assert set(states.values()) == {"to do"}
    assert list(states)[-3:] == ["publish_model", "check_champion", "promote_model"]


def test_what_is_finished_is_reused_and_what_was_killed_resumes(graph, parameters, ran, tmp_path):
    fingerprint = ran("train_sft")
    (tmp_path / "trainer_state.json").write_text("{}")
    checkpoints = Checkpoints(parameters["storage_root"], "train_sft", fingerprint, run_id="r1", limit=3)
    for step in (200, 300):
        checkpoints.publish(tmp_path, step=step)
    states = planned(graph, parameters)
    assert states["check_data"] == "reused"
    assert states["train_sft"] == "resuming at step 300"
    assert states["check_sft"] == states["publish_model"] == "to do"


def test_a_step_that_was_killed_before_its_first_checkpoint_is_to_do(graph, parameters, ran):
    ran("train_sft")
    assert planned(graph, parameters)["train_sft"] == "to do"


def test_other_data_is_another_training(graph, parameters, ran):
    ran("check_sft")
    assert planned(graph, parameters)["train_sft"] == "reused"
    states = planned(graph, parameters | {"sft_dataset": "other.jsonl"})
    assert states["check_data"] == states["train_sft"] == "to do"


def test_other_settings_are_another_training_and_the_data_gate_knows_them_too(graph, parameters, ran, tmp_path):
    ran("check_sft")
    overridden = planned(graph, parameters | {"overrides": {"sft": {"epochs": 9}}})
    assert overridden["train_sft"] == "to do"
    (tmp_path / "other").mkdir()
    recompiled = planned(compiled(tmp_path / "other", sft=SftConfig(epochs=9)), parameters)
    assert recompiled == overridden


def test_other_code_makes_everything_anew(graph, parameters, ran, monkeypatch):
    ran("check_sft")
    monkeypatch.setattr(code, "code_of", lambda *_, **__: code.Code(posttrain="9", source="another", libraries={}))
    assert set(planned(graph, parameters).values()) == {"to do"}


def test_a_step_that_is_to_do_costs_what_it_did_by_the_passes_of_now(graph, parameters, ran):
    ran("check_sft")
    records = [
        entry.model_copy(update={"work_seconds": 1.0, "measured": {"samples_processed": 30, "num_train_rows": 10}})
        if entry.step == "train_sft" else entry
        for entry in recent_records(parameters["storage_root"])
    ]  # fmt: skip
    costs = plan.costs(graph, parameters | {"overrides": {"sft": {"epochs": 9}}}, records)
    assert costs["train_sft"].seconds == pytest.approx(3.0)
    assert "check_sft" not in costs  # it was killed
    assert plan.costs(graph, parameters | {"base_model": "other"}, records) == {}


def test_where_the_newest_run_broke_off(parameters, ran):
    ran("train_sft", run_id="r1")
    last, is_published = plan.broken_off(recent_records(parameters["storage_root"]), ["publish_model"])
    assert (last.run_id, last.step, last.status, is_published) == ("r1", "train_sft", "running", False)


def test_a_run_broke_off_unless_it_published_and_promoted_what_it_was_to(parameters, ran):
    ran("check_sft")
    records = recent_records(parameters["storage_root"])
    steps = ["publish_model", "check_champion", "promote_model"]
    done = [records[-1].model_copy(update={"step": step, "status": "succeeded"}) for step in steps]
    assert plan.broken_off([*records, *done[:1]], steps[:1]) == (None, True)
    assert plan.broken_off([*records, *done[:2]], steps) == (done[1], True)
    assert plan.broken_off([*records, *done], steps) == (None, True)


def test_only_records_are_read(graph, parameters, ran, tmp_path):
    ran("train_sft")
    (tmp_path / "runs" / "r1" / "pipeline_result.json").write_text(json.dumps({"success": False}))
    (tmp_path / "runs" / "r0" / "logs").mkdir(parents=True)
    (tmp_path / "runs" / "r0" / "logs" / "train_sft.log").write_text("")
    assert {entry.run_id for entry in recent_records(parameters["storage_root"])} == {"r1"}
