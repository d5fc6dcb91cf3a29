"""Prints the start of a run, the plan and the result, and derives the exit code."""

import json
from pathlib import Path
from typing import Any

from pipelines.package import Package
from posttrain import report, storage
from posttrain.config.line import COMPARE_TRIALS, JUDGE_WINNER, STEPS, is_gate
from posttrain.config.mixture import parts_of
from posttrain.config.sweep import SweepConfig
from posttrain.config.unjudged import unjudged
from posttrain.pages import wording
from posttrain.step import cost
from posttrain.step.records import recent_records
from posttrain.storage import layout
from posttrain.sweep import compare
from posttrain.sweep.ranking import GATE_FAILED, QUALIFIED
from posttrain.sweep.study import Study
from posttrain.sweep.table import print_terminal
from posttrain.verdict import Check, Verdict
from runner import broken_off, plan
from runner.exit_codes import ERROR, PROMOTED, STOPPED
from runner.request import RunRequest
from runner.view import CheckRow, print_checks, print_pairs
from runner.watch import CAUSE_INTERRUPTED


def report_result(result: report.PipelineResult, request: RunRequest) -> int:
    """Prints the result of a run and returns its exit code."""
    sweep = request.sweep
    if sweep:
        print_sweep(result, request)
    if sweep and finds_winner_alone(result, sweep):
        return PROMOTED
    print_result(result, request.storage_root)
    return exit_code(result, sweep)


def finds_winner_alone(result: report.PipelineResult, sweep: SweepConfig) -> bool:
    """Tells whether the sweep was to end with a winner that qualifies on unseen rows too, and has done so."""
    is_compared = any(step.name == COMPARE_TRIALS and step.is_done for step in result.steps)
    return not sweep.continue_with_best and is_compared and status_on_unseen_rows(result) == QUALIFIED


def status_on_unseen_rows(result: report.PipelineResult) -> str | None:
    """Returns the status of a sweep's winner on the rows kept from the trials; None if it was not judged."""
    judged = next((step for step in result.steps if step.name == JUDGE_WINNER and step.is_done), None)
    return judged and str(judged.measured["status"])


def with_failed_winner(result: report.PipelineResult, sweep: SweepConfig | None) -> report.PipelineResult:
    """Adds an error to a sweep whose winner does not qualify on unseen rows."""
    status = status_on_unseen_rows(result) if sweep and not sweep.continue_with_best else None
    if status in (None, QUALIFIED):
        return result
    error = f"{JUDGE_WINNER}: the best trial does not qualify on unseen rows: {status}; see its verdicts"
    return result.model_copy(update={"errors": [*result.errors, error]})


def print_sweep(result: report.PipelineResult, request: RunRequest) -> None:
    """Prints the table of the trials and where it is kept, even if the sweep found no winner or was cut short."""
    sweep, storage_root = request.sweep, request.storage_root
    comparisons = [step for step in result.steps if STEPS[COMPARE_TRIALS].covers(step.name) and step.num_attempts]
    rows = [step.measured["row"] for step in result.steps if step.measured.get("row")]
    if not rows:
        return
    study = Study.of_result(storage_root, rows[0], sweep)
    folder = layout.runs(storage_root, result.run_id, comparisons[-1].name) if comparisons else ""
    if folder and storage.exists(storage.join(folder, compare.NAMES["csv"])):
        comparison = compare.compare(study, len(comparisons) - 1, "Sweep")
        places = places_of_table(folder)
    else:
        comparison, places = broken_off.write_table(study, result.run_id, request)
    print()
    print_terminal(comparison)
    judged = next((step.measured for step in result.steps if step.name == JUDGE_WINNER and step.measured), None)
    objective = sweep.objective.name
    print_pairs({"On unseen rows": judged and f"{judged['status']}, {objective} {judged.get(objective)}"} | places)


def places_of_table(folder: str) -> dict[str, str]:
    """Returns where a comparison of trials keeps its table in every form."""
    titles = {"table": "Table", "csv": "As CSV", "winner": "Winner's settings"}
    return {title: storage.join(folder, compare.NAMES[name]) for name, title in titles.items()}


def exit_code(result: report.PipelineResult, sweep: SweepConfig | None = None) -> int:
    if result.success:
        return PROMOTED
    is_judged = sweep and not sweep.continue_with_best and status_on_unseen_rows(result) == GATE_FAILED
    return STOPPED if result.stopped_by or is_judged else ERROR


def print_start(request: RunRequest, run_id: str, *, logs: Path | str, artifacts: str | None = None) -> None:
    """Prints what is about to run, on what, and where it goes."""
    config, parameters, stages = request.config, request.parameters, request.config.stages
    num_gates = sum(map(is_gate, request.steps))
    pairs = {
        "Run": run_id,
        "Pipeline": config.pipeline_id,
        "Base model": parameters["base_model"],
        "SFT data": data_sets(parameters["sft_dataset"]) if stages.sft.enabled else None,
        "Preferences": data_sets(parameters["preference_dataset"]) if stages.has("brought_pairs") else None,
        "Pairs": "sampled from the merged SFT model" if stages.pairs.enabled else None,
        "Overrides": json.dumps(parameters["overrides"]) if parameters["overrides"] else None,
        "Publishes to": layout.versions(request.storage_root, config.publish_root, parameters["model_name"]),
        "Storage": request.storage_root,
        "Artifacts": artifacts,
        "Logs": logs,
        "Steps": f"{len(request.steps)}, including {num_gates} gates",
    }
    print_pairs(pairs)
    for sentence in unjudged(config.validation):
        print(f"warning: {sentence}")
    print(flush=True)


def data_sets(dataset: str) -> str:
    """Returns the data sets of a parameter, one a line, with their weights."""
    parts = parts_of(dataset)
    return "\n".join(part.uri if part.weight == 1 else f"{part.uri}, weight {part.weight:g}" for part in parts)


def print_plan(package: Package, parameters: dict[str, Any]) -> set[str]:
    """Prints what each step will do if an earlier run left something to reuse; returns the steps that need not run."""
    records = recent_records(parameters["storage_root"])
    states = plan.plan(package, parameters, records)
    known = plan.costs(package, parameters, records)
    expected = {step: known[step] for step, state in states.items() if state == plan.TO_DO and step in known}
    if set(states.values()) == {plan.TO_DO} and not expected:
        return set()
    last, is_published = plan.broken_off(records, states)
    if last:
        lacks = "making its published model current" if is_published else "publishing a model"
        print_pairs({"Earlier run": f"{last.run_id} stopped at {last.step} without {lacks}"})
    words = {step: f", {expected[step].words}" if step in expected else "" for step in states}
    print_pairs({"Plan": "\n".join(f"{step:<20} {state}{words[step]}" for step, state in states.items())})
    print_pairs({"Cost": cost.sentence(expected) if expected else None})
    print(flush=True)
    return {step for step, state in states.items() if state == plan.REUSED}


def print_result(result: report.PipelineResult, storage_root: str) -> None:
    """Prints the result of the run; if a gate stopped it, each check that did not pass and where the evidence is."""
    stop = result.gates.get(result.stopped_by)
    # Each of these is printed by `print_stop` or `print_interrupt`.
    elsewhere = {f"{result.stopped_by}: {check.sentence}" for check in stop.failed_checks} if stop else set()
    elsewhere |= {f"{step}: {CAUSE_INTERRUPTED}" for step in interrupted_steps(result)}
    errors = [wording.line(error) for error in result.errors if error not in elsewhere]
    print("\nPIPELINE RESULT")
    pairs = {
        "Success": "yes" if result.success else "no",
        "Stages completed": ", ".join(result.stages_completed) or "none",
        "Total time": wording.duration(result.total_time_seconds),
        "Final model": result.final_model_path or "none",
        "Made current": made_current(result) if result.final_model_path else None,
        "Registered": "\n".join((result.registered or {}).values()) or None,
        "Not judged": "\n".join(report.unjudged(result)) or None,
        "Errors": "\n".join(errors) or ("none" if result.success else None),
        "Reused": ", ".join(result.reused) or None,
    }
    print_pairs(pairs)
    folder = layout.runs(storage_root, result.run_id)
    if stop:
        print_stop(stop, storage.join(folder, result.stopped_by))
    print_existing({"Report": storage.join(folder, report.REPORT), "Result": storage.join(folder, report.RESULT)})


def made_current(result: report.PipelineResult) -> str | None:
    """Says whether the published model is current now; None if that was not asked for."""
    if result.is_current is None:
        return None
    because = result.not_compared_because
    return "no" if not result.is_current else f"yes, without a comparison: {because}" if because else "yes"


def print_interrupt(result: report.PipelineResult, cause: str, command: str) -> None:
    """Prints where the run was interrupted, by what, and on the last line the command to continue with."""
    steps = " and ".join(interrupted_steps(result))
    print(f"\nInterrupted ({cause}){f' in {steps}' if steps else ''}. To continue, run:\n{command}")


def interrupted_steps(result: report.PipelineResult) -> list[str]:
    return [step.name for step in result.steps if step.error == CAUSE_INTERRUPTED]


def print_stop(verdict: Verdict, folder: str) -> None:
    """Prints the gate that stopped the run: its outcome, its checks, its evidence."""
    print(f"\nSTOPPED BY {verdict.gate}")
    print_pairs({"Outcome": f"{wording.headline(verdict)}. {wording.conclusion(verdict)}"})
    print_checks([check_row(check) for check in verdict.failed_checks])
    num_passed = len(verdict.checks) - len(verdict.failed_checks)
    print_pairs({"Checks passed": f"{num_passed} of {len(verdict.checks)}"})
    names = {"Verdict": "verdict.json", "Page": "verdict.html", "As Markdown": "summary.md"}
    print_existing({title: storage.join(folder, name) for title, name in names.items()})


def print_existing(places: dict[str, str]) -> None:
    """Prints those of the addresses at which there is a file."""
    print_pairs({title: place for title, place in places.items() if storage.exists(place)})


def check_row(check: Check) -> CheckRow:
    """Puts a check that did not pass into words."""
    return CheckRow(
        name=wording.line(check.name),
        status=check.status,
        value=wording.measured(check),
        limit=wording.limit(check),
        interval=wording.interval(check),
        seen=wording.line(check.detail),
        remedy=wording.line(check.remedy),
    )
