"""JUnit XML as CI reads it: by its elements, parsed anew."""

from xml.etree import ElementTree

import pytest

from posttrain.report import PipelineResult, StepResult
from posttrain.step.progress import Progress
from posttrain.verdict import Check, Verdict, at_least, at_most, holds
from runner import junit

GOOD = at_most("held_out_loss", 1.5, 2.0)
BAD = at_most("held_out_loss", 2.5, 2.0, detail="nats per token", remedy="Train longer.")
UNSURE = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
TIMED_OUT = Check(name="no_harmful_content", status="timed out", detail="ended after 5.0 s, its time limit is 5 s")
NOT_RUN = holds("over_refusal", None, detail="no_harmful_content did not give what it needs")


def run(steps: dict[str, str | list[Check]], *, model: str | None = None, errors: tuple[str, ...] = ()):
    """A run of steps: of a gate what it found, of another step its status; `broke` is a failure with an error."""
    gates = {
        step: Verdict(gate=step, subject={"model": "0" * 64}, checks=found, seconds={"held_out_loss": 3.5})
        for step, found in steps.items()
        if isinstance(found, list)
    }
    statuses = {step: "succeeded" if step in gates else found for step, found in steps.items()}
    results = [
        StepResult(name=step, status=status, seconds=1500.25, error="killed" if status in ("failed", "lost") else None)
        for step, status in statuses.items()
    ]
    return PipelineResult(
        pipeline_id="demo", run_id="r1", final_model_path=model, total_time_seconds=2, stage_results={},
        errors=list(errors), timestamp="", steps=results, gates=gates,
        stopped_by=next((name for name, verdict in gates.items() if not verdict.passed), None),
    )  # fmt: skip


def told(text: str) -> dict[str, dict[str, str | None]]:
    """Suite -> case -> the element that says it is not green and its type. The counts must be those of the elements."""
    root = ElementTree.fromstring(text.encode())
    for one in (root, *root):
        for attribute, tag in {"tests": "testcase", "failures": "failure", "errors": "error"}.items():
            assert int(one.get(attribute)) == len(list(one.iter(tag)))
    return {
        suite.get("name"): {
            case.get("name"): next((f"{one.tag}: {one.get('type')}" for one in case if one.tag != "system-out"), None)
            for case in suite.iter("testcase")
        }
        for suite in root
    }


def test_a_promoted_run_is_green():
    result = run({"train_sft": "reused", "check_sft": [GOOD], "check_sft_merge": [GOOD]}, model="/models/1")
    cases = {"held_out_loss": None}
    assert told(junit.of_run(result)) == {"run": {"model promoted": None}, "check_sft": cases, "check_sft_merge": cases}


def test_attempts_and_progress_of_the_steps_are_told_beside_the_run():
    result = run({"train_sft": "succeeded", "check_sft": "not run"})
    progress = Progress(done=4000, total=4000, text="loss 0.5", resumed_at=1734)
    steps = [result.steps[0].model_copy(update={"num_attempts": 2, "progress": progress}), result.steps[1]]
    root = ElementTree.fromstring(junit.of_run(result.model_copy(update={"steps": steps})))
    assert root.find(".//testsuite[@name='run']/system-out").text.splitlines() == [
        "train_sft: succeeded, 25 min 00 s, 2 attempts, from step 1734, step 4000/4000",
        "check_sft: not run",
    ]


def test_each_status_of_a_check_and_a_gate_that_was_not_reached():
    result = run({"check_sft": [GOOD, UNSURE, TIMED_OUT, NOT_RUN], "check_sft_merge": "not run"})
    assert told(junit.of_run(result)) == {
        "run": {"model promoted": "failure: stopped"},
        "check_sft": {
            "held_out_loss": None,
            "output_format_valid": "failure: undecided",
            "no_harmful_content": "error: timed out",
            "over_refusal": "error: not run",
        },
        "check_sft_merge": {"verdict": "skipped: not reached"},
    }


def test_a_failed_check_says_why_and_what_to_do():
    root = ElementTree.fromstring(junit.of_run(run({"check_sft": [GOOD.model_copy(update={"name": "x"}), BAD]})))
    failure = root.find(".//testsuite[@name='check_sft']//failure")
    assert failure.get("message") == BAD.sentence
    assert failure.text == "Train longer."
    assert root.find(".//testcase[@name='held_out_loss']").get("time") == "3.500"
    properties = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert properties == {"outcome": "failed", "sha256 of model": "0" * 64}


def test_an_undecided_gate_is_not_green():
    found = told(junit.of_run(run({"check_sft": [UNSURE]})))
    assert found["run"] == {"model promoted": "failure: undecided"}
    assert found["check_sft"] == {"output_format_valid": "failure: undecided"}


@pytest.mark.parametrize("status", ["failed", "lost"])
def test_a_gate_whose_process_died_is_an_error(status):
    found = told(junit.of_run(run({"check_sft": status, "check_sft_merge": "not run"}, errors=("check_sft: killed",))))
    assert found["run"] == {"model promoted": "error: failed"}
    assert found["check_sft"] == {"verdict": f"error: {status}"}


def test_the_verdict_of_an_earlier_attempt_does_not_make_a_gate_green_that_died():
    result = run({"check_sft": [GOOD]})
    died = result.steps[0].model_copy(update={"status": "failed", "error": "killed"})
    result = result.model_copy(update={"steps": [died]})
    assert told(junit.of_run(result))["check_sft"] == {"held_out_loss": None, "verdict": "error: failed"}


def test_a_gate_that_succeeded_without_a_verdict_is_an_error():
    assert told(junit.of_run(run({"check_sft": "succeeded"}, model="/models/1")))["check_sft"] == {
        "verdict": "error: succeeded"
    }


def test_a_run_whose_training_died_is_not_green_although_no_gate_failed():
    text = junit.of_run(run({"train_sft": "failed", "check_sft": "not run"}, errors=("train_sft: out of memory",)))
    assert told(text)["run"] == {"model promoted": "error: failed"}
    assert ElementTree.fromstring(text).find(".//error").text == "train_sft: out of memory"


def test_a_run_without_a_result_is_an_error():
    assert told(junit.of_error("sft.jsonl is not there")) == {"run": {"model promoted": "error: failed"}}


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\x0b", "\ufffe", "\ud800", "\u202e", "\x85"])
def test_no_character_breaks_the_file(char):
    hostile = f"]]></failure>{char}<b> & \"'"
    check = Check(name=hostile, status="failed", detail=hostile, remedy=hostile)
    errors = (f"x: {hostile}\n{hostile}",)
    for text in (junit.of_run(run({"check_sft": [check]}, errors=errors)), junit.of_error(hostile)):
        assert char not in text
        ElementTree.fromstring(text.encode())
        assert not list(ElementTree.fromstring(text).iter("b"))


def test_an_error_at_the_start_holds_no_secret():
    xml = junit.of_error("401 for hf_" + "a1" * 17)
    assert "hf_" not in xml and "401 for ***" in xml
