import argparse
import json
import logging
from pathlib import Path

import pytest
from pydantic import BaseModel

from posttrain import kfp_io, record
from posttrain.verdict import Verdict, below, holds
from validators import checks
from validators.page import ShownAnswer


class NoSettings(BaseModel):
    """A configuration without keys."""


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "model").write_text("weights")
    parser = kfp_io.parser("A gate.")
    checks.add_gate_flags(parser)
    outputs = [
        part
        for name in ("verdict", "report", "metrics", "passed")
        for part in (f"--{name}", str(tmp_path / "out" / name))
    ]
    return parser.parse_args(["--step", "check_it", "--storage-root", str(tmp_path / "store"), *outputs])


def run(args: argparse.Namespace, *found, numbers: dict | None = None) -> None:
    inputs = {"model": str(Path(args.verdict).parents[1] / "model"), "absent": None}

    def work() -> Verdict:
        return Verdict(gate=args.step, subject=checks.subject(inputs), checks=found, numbers=numbers or {})

    checks.run_gate(args, inputs=inputs, config=NoSettings(), work=work)


@pytest.mark.parametrize(("loss", "passed"), [(1.0, True), (3.0, False), (None, False), (float("nan"), False)])
def test_a_gate_ends_well_with_its_verdict_in_every_form(args, loss, passed):
    run(args, below("held_out_loss", loss, 2.0), numbers={"num_rows": 4})
    verdict = json.loads(Path(args.verdict).read_text())
    assert verdict["passed"] is passed
    assert verdict["subject"] == {"model": record.digest(Path(args.verdict).parents[1] / "model")}
    assert json.loads(Path(args.metrics).read_text()) == {"passed": passed, "num_rows": 4.0}
    assert Path(args.passed).read_text() == json.dumps(passed)
    assert "held_out_loss" in Path(args.report).read_text()


def test_every_check_is_logged_and_recorded(args, caplog):
    caplog.set_level(logging.INFO)
    run(args, below("held_out_loss", 3.0, 2.0, remedy="Train longer."), holds("files", True), holds("stops", False))
    assert "failed: held_out_loss: 3, not < 2. Train longer." in caplog.messages
    assert "passed: files" in caplog.messages
    assert "failed: stops" in caplog.messages
    [found] = record.read_records(args.storage_root, record.run_id())
    assert (found.status, found.measured["passed"]) == ("succeeded", False)
    assert [check["name"] for check in found.verdict["checks"]] == ["held_out_loss", "files", "stops"]


def test_a_gate_that_cannot_measure_raises_and_leaves_no_verdict(args):
    def work() -> Verdict:
        raise ValueError("no rows")

    with pytest.raises(ValueError, match="no rows"):
        checks.run_gate(args, inputs={}, config=NoSettings(), work=work)
    assert not Path(args.verdict).exists()
    assert not Path(args.passed).exists()
    [found] = record.read_records(args.storage_root, record.run_id())
    assert found.status == "failed"


def test_an_empty_list_of_checks_is_an_error(args):
    with pytest.raises(ValueError, match="at least 1 item"):
        run(args)
    assert not Path(args.passed).exists()


def test_answers_are_on_the_page_and_nowhere_else(args):
    shown = ShownAnswer(source="held-out prompt", prompt="What?", text="a telling answer", fault="is empty")

    def work() -> Verdict:
        found = (holds("output_format_valid", False),)
        return checks.VerdictOnAnswers(gate=args.step, subject={}, checks=found, answers=(shown,))

    checks.run_gate(args, inputs={}, config=NoSettings(), work=work)
    assert "a telling answer" in Path(args.report).read_text()
    assert "a telling answer" not in Path(args.verdict).read_text()
    assert Verdict.read(Path(args.verdict).read_bytes()).passed is False


def test_a_part_that_raises_fails_and_hides_no_other():
    def broken() -> dict:
        raise RuntimeError("out of memory\nin line two")

    measured, failures = checks.measure_each(
        {"loss": lambda: {"loss": 1.0}, "answers": broken, "files": lambda: {"num_files": 2}}
    )
    assert measured == {"loss": 1.0, "num_files": 2}
    [check] = failures
    assert (check.name, check.status) == ("answers", "failed")
    assert check.detail == "could not be measured, RuntimeError: out of memory in line two"


def test_an_interrupt_is_not_a_failed_check():
    def interrupted() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.measure_each({"loss": interrupted})


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
