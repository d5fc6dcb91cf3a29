"""The leg in its gate, with tiny models that really learn and forget."""

import json
from pathlib import Path

import pytest

from examples.task_api.generate import DECLINE
from posttrain.config import AlignmentLimits, CheckAlignmentStep, OutputFormat
from posttrain.pages import answers
from posttrain.pages import skills as pages
from posttrain.rows.chat import load_tokenizer
from posttrain.rows.formats import write_jsonl
from posttrain.verdict import Check, Verdict
from validators import alignment as gate
from validators.inference import token_row
from validators.skills import leg, suites

ROWS = 12


@pytest.fixture(scope="module")
def lessons(task_api_rows, taught_model) -> dict[str, list]:
    """Token rows of the product's task and of the arithmetic suite."""
    tokenizer = load_tokenizer(taught_model)
    task = [(row["prompt"], row["completion"][0]["content"]) for row in task_api_rows["sft"][:10]]
    sums = [(row.prompt, row.reference) for row in suites.load("arithmetic", ROWS).rows]
    return {
        name: [token_row(tokenizer, prompt, [{"role": "assistant", "content": text}]) for prompt, text in pairs]
        for name, pairs in {"task": task, "sums": sums}.items()
    }


@pytest.fixture(scope="module")
def base(lessons, taught_model, teach, tmp_path_factory) -> Path:
    """Can do the arithmetic suite."""
    return teach(taught_model, lessons["sums"], tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def narrow(lessons, base, teach, tmp_path_factory) -> Path:
    """The base after training on the task alone."""
    return teach(base, lessons["task"], tmp_path_factory.mktemp("narrow") / "model")


@pytest.fixture(scope="module")
def broad(lessons, base, teach, tmp_path_factory) -> Path:
    """The base after training on the task and on general rows."""
    return teach(base, lessons["task"] + lessons["sums"], tmp_path_factory.mktemp("broad") / "model")


@pytest.fixture
def run(tmp_path, task_api_rows, base):
    """A function that runs check_safety of a model against a base and gives its verdict."""

    def ran(model: Path, *, before: Path = base, **limits) -> Verdict:
        write_jsonl(tmp_path / "sft.jsonl", task_api_rows["sft"][:10])
        form = OutputFormat(kind="json_schema", json_schema={"type": "object"}, declines_with=DECLINE)
        wanted = {"skills": ["arithmetic", "refusal"], "skill_rows": ROWS, "confidence": 0.5} | limits
        validation = AlignmentLimits(
            custom_checks=["output_format_valid"],
            output_format=form,
            max_new_tokens=48,
            max_sft_loss_increase=9,
            **wanted,
        )
        paths = {
            "before": before,
            "model": model,
            "sft-eval": tmp_path / "sft.jsonl",
            "storage-root": tmp_path / "store",
        }
        paths |= {
            name: tmp_path / "out" / name
            for name in ("verdict", "report", "summary", "confusion", "metrics", "answers")
        }
        paths["passed"] = tmp_path / "out" / "passed"
        flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        config = CheckAlignmentStep(validation=validation).model_dump_json(exclude_none=True)
        gate.main(["--step", "check_safety", "--config", config, *flags])
        return Verdict.read((tmp_path / "out" / "verdict").read_bytes())

    return ran


def by_name(verdict: Verdict) -> dict[str, Check]:
    return {check.name: check for check in verdict.checks}


def test_a_model_that_gains_the_task_and_loses_arithmetic_is_stopped(run, narrow, tmp_path):
    verdict = run(narrow)
    assert verdict.numbers["format_valid_rate"] == 1 and verdict.numbers["before_format_valid_rate"] < 0.5
    assert [check.name for check in verdict.failed_checks] == ["skill_arithmetic"]
    assert by_name(verdict)["skill_arithmetic"].status == "failed"
    [arithmetic, refusal] = pages.scores(verdict.numbers)
    assert arithmetic.base == 1 and arithmetic.model < 0.5 and arithmetic.informative
    assert not refusal.informative and "skill_refusal" not in by_name(verdict)
    assert {"model_skills", "before_skills"} <= set(verdict.seconds)
    page, summary = ((tmp_path / "out" / name).read_text() for name in ("report", "summary"))
    assert "<h2>General skills</h2>" in page and "not informative" in page and "skill_arithmetic_low" not in page
    assert "| `arithmetic` | 100%" in summary and "| `refusal` |" in summary
    assert "arithmetic: wrong, where the base is right" in page
    rows = [row for row in answers.read((tmp_path / "out" / "answers").read_bytes()) if row.source == "skill prompt"]
    assert len(rows) == arithmetic.num_lost and rows[0].references == ["9 + 2 = 11"] and rows[0].base.mark == "right"


def test_a_model_that_gains_the_task_and_keeps_arithmetic_passes(run, broad):
    verdict = run(broad)
    assert verdict.failed_checks == []
    assert by_name(verdict)["skills_informative"].detail.startswith("arithmetic; not informative: refusal")
    assert "skills" in verdict.subject


def test_a_base_that_can_do_nothing_stops_the_gate(run, broad, taught_model):
    verdict = run(broad, before=taught_model)
    assert [check.name for check in verdict.failed_checks] == ["skills_informative"]
    assert not [name for name in by_name(verdict) if name.startswith("skill_")]


def test_nobody_asks_for_skills_that_are_turned_off(run, narrow):
    verdict = run(narrow, skills=False)
    assert verdict.failed_checks == []
    assert "skills" not in verdict.subject and pages.scores(verdict.numbers) == []
    assert not [name for name in (*by_name(verdict), *verdict.seconds) if "skill" in name]


def test_skills_that_could_not_be_asked_are_not_passed(run, broad, monkeypatch):
    monkeypatch.setattr("validators.skills.suites.load", None)
    by_check = by_name(run(broad))
    assert by_check["model_skills"].status == "failed" and by_check["skills_informative"].status == "not run"


def test_the_numbers_can_be_read_again(run, broad, tmp_path):
    verdict = run(broad)
    metrics = json.loads((tmp_path / "out" / "metrics").read_text())
    assert pages.scores(metrics) == pages.scores(verdict.numbers) != []
    assert not [name for name in pages.others(verdict.numbers) if name.startswith("skill_")]


@pytest.mark.parametrize("other", ["before", "base"])
def test_tasks_are_asked_of_the_model_and_of_its_base(other, monkeypatch):
    monkeypatch.setattr(leg.harness, "run", lambda model, names, data: {name: {"scores": [1.0]} for name in names})
    limits = AlignmentLimits(skills=False, lm_eval_tasks=["sums"], lm_eval_data="tasks")
    models = dict.fromkeys(("model", "before", other), Path("model"))
    measured = leg.run_tasks(models, limits, "tasks")
    assert measured.failures == [] and measured.seconds.keys() == {"model_lm_eval", f"{other}_lm_eval"}


def test_suites_and_tasks_are_both_inputs_of_the_gate(monkeypatch):
    monkeypatch.setattr(leg.harness, "fetch", lambda data, folder, allowed: f"{folder}/{data}")
    limits = AlignmentLimits(skills=["arithmetic"], lm_eval_tasks=["sums"], lm_eval_data="tasks")
    assert leg.bring(limits, Path("here"), []) == {"skills": str(suites.FOLDER), "lm_eval_data": "here/tasks"}
