"""Says what happened: the start, the plan, the result, the exit code."""

import json
from pathlib import Path
from typing import Any

from posttrain import report, storage
from posttrain.config import PipelineConfig
from posttrain.config.line import COMPARE_TRIALS, JUDGE_WINNER, STEPS, is_gate
from posttrain.config.sweep import SweepConfig
from posttrain.pages import wording
from posttrain.storage import layout
from posttrain.sweep import compare
from posttrain.sweep.study import Study
from posttrain.sweep.table import print_terminal
from posttrain.verdict import Check, Verdict
from runner import plan
from runner.view import CheckRow, print_checks, print_pairs

PROMOTED, ERROR, STOPPED, INTERRUPTED = 0, 1, 2, 130


def tell_result(result: report.PipelineResult, storage_root: str, sweep: SweepConfig | None) -> int:
    """Says what a run came to, and gives its exit code."""
    if sweep:
        print_sweep(result, storage_root, sweep)
    if sweep and finds_winner_alone(result, sweep):
        return PROMOTED
    print_result(result, storage_root)
    return exit_code(result)


def finds_winner_alone(result: report.PipelineResult, sweep: SweepConfig) -> bool:
    """Whether this sweep was to end with a winner, and has done so."""
    ended = {step.name for step in result.steps if step.is_done}
    return not sweep.continue_with_best and {COMPARE_TRIALS, JUDGE_WINNER} <= ended


def print_sweep(result: report.PipelineResult, storage_root: str, sweep: SweepConfig) -> None:
    """The table of the trials, and where it lies; of a sweep without a winner too."""
    found = [step for step in result.steps if STEPS[COMPARE_TRIALS].covers(step.name) and step.num_attempts]
    if not found:
        return
    folder = layout.runs(storage_root, result.run_id, found[-1].name)
    rung = len(found) - 1
    places = [step.measured["row"] for step in result.steps if step.measured.get("row")]
    if places:
        study = Study.of_place(storage_root, places[0], sweep)
        print()
        print_terminal(compare.compare(study, rung, "Sweep"))
    judged = next((step for step in result.steps if step.name == JUDGE_WINNER and step.measured), None)
    told = judged and f"{judged.measured['status']}, {sweep.objective.name} {judged.measured.get(sweep.objective.name)}"
    print_pairs({
        "On unseen rows": told,
        "Table": storage.join(folder, compare.NAMES["table"]),
        "As CSV": storage.join(folder, compare.NAMES["csv"]),
        "Winner's settings": storage.join(folder, compare.NAMES["winner"]),
    })  # fmt: skip


def write_junit(file: str | None, text: str) -> None:
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")


def exit_code(result: report.PipelineResult) -> int:
    if result.success:
        return PROMOTED
    return STOPPED if result.stopped_by else ERROR


def print_start(
    config: PipelineConfig, parameters: dict[str, Any], run_id: str, *, logs: Path | str, steps: list[str]
) -> None:
    stages = config.stages
    publish_root = config.publish_root or layout.published(parameters["storage_root"])
    print_pairs({
        "Run": run_id,
        "Pipeline": config.pipeline_id,
        "Base model": parameters["base_model"],
        "SFT data": parameters["sft_dataset"] if stages.sft.enabled else None,
        "Preferences": parameters["preference_dataset"] if stages.dpo.enabled else None,
        "Overrides": json.dumps(parameters["overrides"]) if parameters["overrides"] else None,
        "Publishes to": f"{publish_root}/{parameters['model_name']}",
        "Storage": parameters["storage_root"],
        "Logs": logs,
        "Steps": f"{len(steps)}, {sum(map(is_gate, steps))} of them gates",
    })  # fmt: skip
    print(flush=True)


def print_plan(graph: Path, parameters: dict[str, Any]) -> set[str]:
    """What each step will do, where an earlier run has left something to go on with. Gives those that it has done."""
    records = plan.recent_records(parameters["storage_root"])
    states = plan.plan(graph, parameters, records)
    if set(states.values()) == {plan.TO_DO}:
        return set()
    if last := plan.broken_off(records):
        print_pairs({"Earlier run": f"{last.run_id} did not end with a published model; it came to {last.step}"})
    print_pairs({"Plan": "\n".join(f"{step:<20} {state}" for step, state in states.items())})
    print(flush=True)
    return {step for step, state in states.items() if state == plan.REUSED}


def print_result(result: report.PipelineResult, storage_root: str) -> None:
    """What the run came to; if a gate stopped it, each check that did not pass and where the evidence is."""
    stop = result.gates.get(result.stopped_by)
    told = (
        {f"{result.stopped_by}: {check.sentence}" for check in stop.failed_checks} if stop else set()
    )  # below, in full
    errors = [wording.line(error) for error in result.errors if error not in told]
    print("\nPIPELINE RESULT")
    print_pairs({
        "Success": "yes" if result.success else "no",
        "Stages completed": ", ".join(result.stages_completed) or "none",
        "Total time": wording.duration(result.total_time_seconds),
        "Final model": result.final_model_path or "none",
        "Errors": "\n".join(errors) or (None if stop else "none"),
        "Reused": ", ".join(result.reused) or None,
    })  # fmt: skip
    folder = layout.runs(storage_root, result.run_id)
    if stop:
        print_stop(stop, storage.join(folder, result.stopped_by))
    places = {"Report": storage.join(folder, report.REPORT), "Result": storage.join(folder, report.RESULT)}
    print_pairs({title: place for title, place in places.items() if storage.exists(place)})


def print_stop(verdict: Verdict, folder: str) -> None:
    """The gate that stopped the run: its outcome, its checks, its evidence."""
    print(f"\nSTOPPED BY {verdict.gate}")
    print_pairs({"Outcome": f"{wording.headline(verdict)}. {wording.conclusion(verdict)}"})
    print_checks([check_row(check) for check in verdict.failed_checks])
    places = {"Verdict": "verdict.json", "Its page": "verdict.html", "As Markdown": "summary.md"}
    places = {title: storage.join(folder, name) for title, name in places.items()}
    num_passed = len(verdict.checks) - len(verdict.failed_checks)
    print_pairs({"Checks passed": f"{num_passed} of {len(verdict.checks)}"})
    print_pairs({title: place for title, place in places.items() if storage.exists(place)})


def check_row(check: Check) -> CheckRow:
    return CheckRow(
        name=wording.line(check.name), status=check.status, value=wording.measured(check), limit=wording.limit(check),
        interval=wording.interval(check), seen=wording.line(check.detail), remedy=wording.line(check.remedy),
    )  # fmt: skip
