import argparse
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

from posttrain.config import Limits, SftLimits
from posttrain.pages.answers import AnsweredPrompt, ModelAnswer, read
from posttrain.step import digests, kfp_io, records
from posttrain.step.run import run_id
from posttrain.step.running import Running
from posttrain.verdict import Verdict, below, holds
from validators import checks
from validators.intervals import share


class NoSettings(BaseModel):
    """A configuration without keys."""


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "model").write_text("weights")
    parser = kfp_io.parser("validators.sft")
    checks.add_gate_flags(parser, with_answers=True)
    outputs = [
        part
        for name in ("verdict", "report", "summary", "answers", "metrics", "passed")
        for part in (f"--{name}", str(tmp_path / "out" / name))
    ]
    return parser.parse_args(["--step", "check_it", "--storage-root", str(tmp_path / "store"), *outputs])


def run(args: argparse.Namespace, *judged, numbers: dict | None = None) -> None:
    inputs = {"model": str(Path(args.verdict).parents[1] / "model"), "absent": None}

    def work(running: Running) -> checks.GateVerdict:
        return checks.GateVerdict(
            gate=args.step, subject=running.inputs, checks=judged, numbers=numbers or {}, seconds={"loss": 1.5}
        )

    checks.run_gate(args, inputs=inputs, config=NoSettings(), work=work)


@pytest.mark.parametrize(("loss", "passed"), [(1.0, True), (3.0, False), (None, False), (float("nan"), False)])
def test_a_gate_ends_well_with_its_verdict_in_every_form(args, loss, passed):
    run(args, below("held_out_loss", loss, 2.0), numbers={"num_rows": 4})
    verdict = json.loads(Path(args.verdict).read_text())
    assert verdict["passed"] is passed
    assert verdict["subject"] == {"model": digests.digest(Path(args.verdict).parents[1] / "model")}
    assert json.loads(Path(args.metrics).read_text()) == {"passed": passed, "num_rows": 4.0}
    assert Path(args.passed).read_text() == json.dumps(passed)
    assert verdict["seconds"] == {"loss": 1.5}
    assert "held_out_loss" in Path(args.report).read_text()
    assert Path(args.summary).read_text().splitlines()[0].endswith(": passed" if passed else ": failed")


def test_undecided_stops_and_is_named_so(args):
    run(args, share("rate", 47, 50, ">=", 0.9, confidence=0.95), holds("files", True))
    assert Path(args.passed).read_text() == "false"
    verdict = json.loads(Path(args.verdict).read_text())
    assert (verdict["outcome"], verdict["passed"]) == ("undecided", False)
    assert Path(args.summary).read_text().splitlines()[0].endswith(": undecided")


def test_every_check_is_logged_and_recorded(args, caplog):
    caplog.set_level(logging.INFO)
    run(args, below("held_out_loss", 3.0, 2.0, remedy="Train longer."), holds("files", True), holds("stops", False))
    assert "failed: held_out_loss: 3, not < 2. Train longer." in caplog.messages
    assert "passed: files" in caplog.messages
    assert "failed: stops" in caplog.messages
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert (levels["passed: files"], levels["failed: stops"]) == ("INFO", "ERROR")
    [record] = records.read_records(args.storage_root, run_id())
    assert (record.status, record.measured["passed"]) == ("succeeded", False)
    assert [check["name"] for check in record.verdict["checks"]] == ["held_out_loss", "files", "stops"]


def test_a_gate_that_cannot_measure_raises_and_leaves_no_verdict(args):
    def work(_: Running) -> Verdict:
        raise ValueError("no rows")

    with pytest.raises(ValueError, match="no rows"):
        checks.run_gate(args, inputs={}, config=NoSettings(), work=work)
    assert not Path(args.verdict).exists()
    assert not Path(args.passed).exists()
    [record] = records.read_records(args.storage_root, run_id())
    assert record.status == "failed"


def test_an_empty_list_of_checks_is_an_error(args):
    with pytest.raises(ValueError, match="at least 1 item"):
        run(args)
    assert not Path(args.passed).exists()


def test_answers_are_on_the_page_and_in_their_file_and_nowhere_else(args):
    answer = ModelAnswer(text="a telling answer", stopped=True, fault="is empty")
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What?"}]
    shown = AnsweredPrompt(source="held-out prompt", prompt=prompt, references=["this"], model=answer)

    def work(_: Running) -> checks.GateVerdict:
        judged = (holds("output_format_valid", False),)
        return checks.GateVerdict(gate=args.step, subject={}, checks=judged, answers=(shown,))

    checks.run_gate(args, inputs={}, config=NoSettings(), work=work)
    assert "a telling answer" in Path(args.report).read_text()
    assert read(Path(args.answers).read_bytes()) == [shown]
    for path in (args.verdict, args.summary, args.metrics):
        assert "a telling answer" not in Path(path).read_text()
    assert Verdict.read(Path(args.verdict).read_bytes()).passed is False


def test_further_outputs_are_recorded_and_kept_for_a_reuse(args, tmp_path):
    manifest = tmp_path / "out" / "manifest"

    def work(_: Running) -> checks.GateVerdict:
        manifest.write_text("[]")
        return checks.GateVerdict(gate=args.step, subject={}, checks=(holds("files", True),))

    checks.run_gate(args, inputs={}, config=NoSettings(), work=work, outputs={"manifest": str(manifest)})
    [record] = records.read_records(args.storage_root, run_id())
    assert record.outputs.keys() == {*checks.OUTPUTS, "answers", "manifest"}
    shutil.rmtree(tmp_path / "out")
    checks.run_gate(args, inputs={}, config=NoSettings(), work=None, outputs={"manifest": str(manifest)})
    assert manifest.read_text() == "[]"
    assert Path(args.passed).read_text() == "true"


def test_a_verdict_is_reused_only_under_the_limits_that_it_was_found_with(args):
    """One that was found under a loose limit says nothing about the model under a strict one."""
    loss = 1.5

    def judge(limits: SftLimits, *, reusable: bool = True) -> tuple[str, bool]:
        def work(_: Running) -> checks.GateVerdict:
            return checks.GateVerdict(gate=args.step, subject={}, checks=[below("loss", loss, limits.max_loss)])

        checks.run_gate(args, inputs={}, config=limits, work=work, reusable=reusable)
        entry = records.read_records(args.storage_root, run_id())[-1]
        return entry.status, Verdict.read(Path(args.verdict).read_bytes()).passed

    assert judge(SftLimits(max_loss=2)) == ("succeeded", True)
    assert judge(SftLimits(max_loss=2)) == ("reused", True)
    assert judge(SftLimits(max_loss=1)) == ("succeeded", False)
    assert judge(SftLimits(max_loss=1)) == ("succeeded", False)  # one that stopped a run is found again
    assert judge(SftLimits(max_loss=2, confidence=0.9)) == ("succeeded", True)
    assert judge(SftLimits(max_loss=2), reusable=False) == ("succeeded", True)
    assert judge(SftLimits(max_loss=2, confidence=0.8), reusable=False) == ("succeeded", True)
    kept = records.read_records(args.storage_root, run_id())[-1].kept
    assert (Path(args.storage_root) / kept / "report").is_file()  # for people: its page and its answers
    assert judge(SftLimits(max_loss=2, confidence=0.8)) == ("succeeded", True)


def test_a_number_that_is_called_passed_says_nothing(args):
    run(args, below("loss", 3.0, 2.0), numbers={"passed": 1.0})
    assert json.loads(Path(args.metrics).read_text())["passed"] is False


@pytest.mark.parametrize(
    "limits",
    [
        {"check_nan": False},
        {"check_timeout_seconds": 0},
        {"check_timeouts": {"loss_measured": 0}},
        {"confidence": 0.4},
        {"confidence": 1.0},
        {"max_loss": math.inf},
        {"max_loss": math.nan},
        {"num_generated_answers": 0},
        {"max_new_tokens": 0},
        {"min_format_valid_rate": -0.1},
        {"max_gradient_norm": "infinity"},
    ],
)
def test_limits_that_would_judge_nothing_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        SftLimits(**limits)


def test_timeouts_are_those_of_the_configuration():
    limits = checks.timeouts(Limits(check_timeout_seconds=9, check_timeouts={"loss_measured": 3}))
    assert (limits.of("loss_measured"), limits.of("answers_generated")) == (3, 9)


def test_kubeflow_gets_passed_as_a_parameter(args, tmp_path):
    artifact = {"artifacts": [{"name": "metrics", "uri": "/m"}]}
    outputs = {
        "parameters": {"passed": {"outputFile": str(tmp_path / "out" / "passed")}},
        "artifacts": {"metrics": artifact},
        "outputFile": str(tmp_path / "out" / "executor.json"),
    }
    args.executor_input = json.dumps({"outputs": outputs})
    run(args, below("held_out_loss", 1.0, 2.0), numbers={"held_out_loss": 1.0})
    written = json.loads((tmp_path / "out" / "executor.json").read_text())
    assert written["parameterValues"] == {"passed": True}
    assert written["artifacts"]["metrics"]["artifacts"][0]["metadata"]["held_out_loss"] == 1.0


def test_a_secret_in_the_words_of_a_check_is_in_no_file(args, tmp_path, monkeypatch):
    secret = "hf_" + "a1" * 17
    monkeypatch.setenv("TRACKING_API_KEY", "looks like words")
    run(args, holds("mine", False, detail=f"refused: {secret}", remedy="tell looks like words"))
    (masked,) = Verdict.read(Path(args.verdict).read_bytes()).checks
    assert (masked.detail, masked.remedy, masked.status) == ("refused: ***", "tell ***", "failed")
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "refused: ***" in written and secret not in written and "looks like words" not in written


def test_a_verdict_that_says_otherwise_than_its_record_is_refused(args):
    run(args, below("loss", 1.5, 2.0))
    (receipt,) = Path(args.storage_root).glob("results/*/*/COMPLETE.json")
    stored = json.loads(receipt.read_text())
    receipt.write_text(json.dumps(stored | {"measured": stored["measured"] | {"passed": False}}))
    with pytest.raises(ValueError, match="says passed = True, its record says otherwise"):
        run(args, below("loss", 1.5, 2.0))


@pytest.mark.parametrize("with_answers", [False, True])
def test_a_gate_wants_a_place_for_each_of_its_outputs(with_answers, capsys):
    parser = argparse.ArgumentParser()
    checks.add_gate_flags(parser, **({"with_answers": True} if with_answers else {}))
    with pytest.raises(SystemExit):
        parser.parse_args([])
    flags = ", ".join(f"--{name}" for name in ("verdict", "report", "summary", "metrics", "passed"))
    wanted = f"{'--answers, ' * with_answers}{flags}"
    assert capsys.readouterr().err.endswith(f"the following arguments are required: {wanted}\n")


def test_a_gate_in_which_no_model_answers_writes_no_answers(args, tmp_path):
    del args.answers
    run(args, below("held_out_loss", 1.0, 2.0))
    assert Path(args.passed).read_text() == "true" and not (tmp_path / "out" / "answers").exists()


def test_outputs_may_lie_in_folders_that_are_not_there(args, tmp_path):
    for _ in range(2):
        args.passed = str(tmp_path / "kfp" / "outputs" / "passed")
        run(args, below("held_out_loss", 1.0, 2.0))
        assert Path(args.passed).read_text() == "true"
