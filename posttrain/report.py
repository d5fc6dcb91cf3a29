"""What a run came to, told from its record: the result as JSON and a report that a person reads. The graph's exit task.

run record -> pipeline_result.json, report.html; both, with the verdict of each gate and the curve of each training,
also below `<storage_root>/runs/<run id>/`

A run has succeeded if its publish step left a receipt and the published manifest is there and names the same model.
Nothing that a runner or Kubeflow says about the run counts.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, computed_field

from posttrain import config, storage
from posttrain.config import ReportStep, Stages, line
from posttrain.pages import wording
from posttrain.pages.answers import ANSWERS
from posttrain.pages.html import environment
from posttrain.publish import STEP as PUBLISH_STEP
from posttrain.step import frame, kfp_io, run
from posttrain.step.records import StepRecord, read_records
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.verdict import Verdict

RESULT, REPORT = "pipeline_result.json", "report.html"
HEADLINE = ("success", "outcome", "pipeline_id", "final_model_path", "stages_completed")  # first in the result
# Output of a step -> its name in the run's folder, where a person looks for it.
SHOWN = {
    "report": "verdict.html",
    "summary": "summary.md",
    "answers": ANSWERS,
    "curve": "curve.html",
    "metrics": "metrics.json",
    "info": "merge_info.json",
}
LOST = "left no record: killed, evicted or timed out; see its log"
KILLED = "did not come to its end: killed, evicted or timed out; see its log"


class StepResult(BaseModel):
    """One step of the graph in this run, by its last attempt."""

    name: str
    status: Literal["succeeded", "reused", "failed", "unfinished", "lost", "not run"]
    seconds: float = 0.0  # of all attempts
    num_attempts: int = 0
    error: str | None = None
    inputs: dict[str, str] = {}  # name -> SHA-256
    outputs: dict[str, str] = {}
    measured: dict[str, Any] = {}

    @property
    def is_done(self) -> bool:
        return self.status in ("succeeded", "reused")


class StageResult(BaseModel):
    """One stage: its training or merging and the gates that judge it."""

    success: bool
    loss: float | None = None  # final training loss
    size_gb: float | None = None  # of the last merged model
    time_seconds: float


class PipelineResult(BaseModel):
    """What a run came to."""

    pipeline_id: str
    run_id: str
    final_model_path: str | None
    total_time_seconds: float
    stage_results: dict[str, StageResult]
    errors: list[str]
    timestamp: str  # UTC, ISO 8601
    stopped_by: str | None  # the gate that did not pass
    steps: list[StepResult]
    gates: dict[str, Verdict]

    @computed_field
    @property
    def success(self) -> bool:
        return self.final_model_path is not None

    @computed_field
    @property
    def outcome(self) -> Literal["promoted", "stopped", "undecided", "failed"]:
        """Undecided: the gate that stopped the run found nothing wrong, on too few rows to be sure."""
        if self.success:
            return "promoted"
        if self.stopped_by is None:
            return "failed"
        return "undecided" if self.gates[self.stopped_by].outcome == "undecided" else "stopped"

    @computed_field
    @property
    def stages_completed(self) -> list[str]:
        return [name for name, stage in self.stage_results.items() if stage.success]

    @property
    def reused(self) -> list[str]:
        """Steps whose finished result was taken over from an earlier run."""
        return [step.name for step in self.steps if step.status == "reused"]


def collect(storage_root: str, run_id: str, settings: ReportStep) -> PipelineResult:
    """Reads the record of a run, whatever its end; an empty record is an answer too."""
    records = [found for found in read_records(storage_root, run_id) if found.step != "report_run"]
    steps = step_results(records, settings.steps)
    gates = {record.step: record.judged for record in records if record.verdict}
    final_model, trouble = published_model(records)
    stopped_by = next((name for name, verdict in gates.items() if not verdict.passed), None)
    return PipelineResult(
        pipeline_id=settings.pipeline_id,
        run_id=run_id,
        final_model_path=final_model,
        total_time_seconds=_elapsed_seconds(records),
        stage_results=stage_results(steps, gates),
        errors=errors_of(steps, gates) + trouble,
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        stopped_by=stopped_by,
        steps=steps,
        gates=gates,
    )


def step_results(records: list[StepRecord], names: list[str]) -> list[StepResult]:
    """The steps in the order of the graph, a rejecting step behind its gate."""
    names = list(names)
    for extra in dict.fromkeys(found.step for found in records if found.step not in names):
        gate = line.gate_of(extra) if line.is_rejection(extra) else None
        names.insert(names.index(gate) + 1 if gate in names else len(names), extra)
    results, explained = [], False
    for name in names:
        attempts = sorted((found for found in records if found.step == name), key=lambda found: found.attempt)
        result = _step_result(name, attempts) if attempts else _absent(name, explained)
        stopped = attempts and attempts[-1].verdict and not attempts[-1].judged.passed
        explained = explained or bool(stopped) or not result.is_done
        results.append(result)
    return results


def stage_results(steps: list[StepResult], gates: dict[str, Verdict]) -> dict[str, StageResult]:
    """The stages that the graph has. A stage is a success when its steps are done and its gates have passed."""
    results = {}
    for stage in Stages.model_fields:
        own = [step for step in steps if (row := line.find_step(step.name)) and row.stage == stage]
        work = [step for step in own if not line.is_gate(step.name)]
        if not work:
            continue
        passed = all(gates[step.name].passed for step in own if step.name in gates)
        measured = next((step.measured for step in reversed(work) if step.measured), {})
        results[stage] = StageResult(
            success=passed and all(step.is_done for step in own),
            loss=measured.get("final_loss"),
            size_gb=measured.get("size_gb"),
            time_seconds=round(sum(step.seconds for step in work), 3),
        )
    return results


def published_model(records: list[StepRecord]) -> tuple[str | None, list[str]]:
    """The URI of the published model, or None and what is wrong with the receipt."""
    receipts = [found for found in records if found.step == PUBLISH_STEP and found.status == "succeeded"]
    if not receipts:
        return None, []
    receipt = receipts[-1].measured
    try:
        manifest = json.loads(storage.read_bytes(receipt["manifest_uri"]))
    except (OSError, ValueError, KeyError) as error:
        return None, [f"{PUBLISH_STEP}: the published manifest cannot be read: {error}"]
    if manifest.get("sha256") != receipt.get("sha256"):
        return None, [f"{PUBLISH_STEP}: {receipt['manifest_uri']} names another model than this run's receipt"]
    return receipt["uri"], []


def errors_of(steps: list[StepResult], gates: dict[str, Verdict]) -> list[str]:
    """Every cause on a line: failed steps in the order of the graph, and each check that did not pass."""
    errors = []
    for step in steps:
        if step.error and not line.is_rejection(step.name):
            errors.append(f"{step.name}: {step.error}")
        if step.name in gates:
            errors += [f"{step.name}: {check.sentence}" for check in gates[step.name].failed_checks]
    return errors


def to_json(result: PipelineResult) -> str:
    """The result as written: readable, its headline first, the long lists last."""
    values = result.model_dump(mode="json", exclude_none=False)
    stages = {name: stage.model_dump(exclude_none=True) for name, stage in result.stage_results.items()}
    headline = {key: values[key] for key in HEADLINE}
    return json.dumps(headline | values | {"stage_results": stages}, indent=2, allow_nan=False)


def to_html(result: PipelineResult, pages: tuple[str, ...] = ()) -> str:
    """The report: self-contained, without scripts, every text escaped. `pages` lie beside it: `<step>/curve.html`."""
    template = environment().get_template("report.html")
    return template.render(
        result=result,
        headline=headline(result),
        longest=max([1.0, *(step.seconds for step in result.steps)]),  # bars of a run of nothings stay short
        between=max(result.total_time_seconds - sum(step.seconds for step in result.steps), 0.0),
        pages={step.name: [page for page in pages if page.startswith(f"{step.name}/")] for step in result.steps},
    )


def headline(result: PipelineResult) -> str:
    """How the run ended, in one line; and if nobody judged the content of the answers, that."""
    is_unjudged = any(verdict.content_is_unjudged for verdict in result.gates.values())
    return _ending(result) + (f"; {wording.UNJUDGED}" if is_unjudged else "")


def _ending(result: PipelineResult) -> str:
    if result.success:
        return "Published"
    if result.outcome == "undecided":
        decide = wording.rows_that_would_decide(result.gates[result.stopped_by])
        return f"Undecided at {result.stopped_by}: {decide}"
    if result.stopped_by:
        return f"Stopped by {result.stopped_by}"
    broken = next((step.name for step in result.steps if step.status in ("failed", "unfinished", "lost")), None)
    return f"Failed at {broken}" if broken else "Not published"


def publish_report(storage_root: str, result: PipelineResult) -> None:
    """Writes result, report, verdicts and curves below `<storage_root>/runs/<run id>/`."""
    folder = layout.runs(storage_root, result.run_id)
    for gate, verdict in result.gates.items():
        storage.write_bytes(storage.join(folder, gate, "verdict.json"), verdict.model_dump_json(indent=2).encode())
    pages = []
    for found in read_records(storage_root, result.run_id):
        for output in SHOWN.keys() & found.outputs.keys() if found.kept else ():
            kept = storage.join(storage_root, found.kept, output)
            if storage.exists(kept):
                pages.append(f"{found.step}/{SHOWN[output]}")
                storage.write_bytes(storage.join(folder, found.step, SHOWN[output]), storage.read_bytes(kept))
    pages = tuple(page for page in sorted(pages) if page.endswith(".html"))
    storage.write_bytes(storage.join(folder, REPORT), to_html(result, pages).encode())
    storage.write_bytes(storage.join(folder, RESULT), to_json(result).encode())


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--status", default="{}", help="what Kubeflow says about the run, as JSON; kept, not trusted")
    parser.add_argument("--result", required=True, help="output: the result, JSON")
    parser.add_argument("--report", required=True, help="output: the report, HTML")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(ReportStep, args.config, args.overrides)

    def work(running: Running) -> dict[str, Any]:
        result = collect(running.storage_root, run.run_id(), settings)
        Path(args.result).write_text(to_json(result), encoding="utf-8")
        Path(args.report).write_text(to_html(result), encoding="utf-8")
        publish_report(running.storage_root, result)
        return {"success": result.success, "runner_says": _state(args.status)}

    outputs = {"result": args.result, "report": args.report}
    frame.run_step(args, inputs={}, outputs=outputs, config=settings, work=work, reusable=False)


def _step_result(name: str, attempts: list[StepRecord]) -> StepResult:
    last = attempts[-1]
    was_killed = last.status == "running"  # for the run is over
    return StepResult(
        name=name, num_attempts=len(attempts),
        status="lost" if was_killed else last.status, error=KILLED if was_killed else last.error,
        seconds=round(sum(found.seconds for found in attempts), 3),
        inputs=last.inputs, outputs=last.outputs, measured=last.measured,
    )  # fmt: skip


def _absent(name: str, explained: bool) -> StepResult:
    """A step without a record: after a step that failed or a gate that stopped the line it had no reason to run."""
    return StepResult(name=name, status="not run") if explained else StepResult(name=name, status="lost", error=LOST)


def _elapsed_seconds(records: list[StepRecord]) -> float:
    """From the start of the first step to the end of the last; what lies between steps counts too."""
    starts = [datetime.fromisoformat(found.started_at).timestamp() for found in records]
    ends = [start + found.seconds for start, found in zip(starts, records, strict=True)]
    return round(max(ends) - min(starts), 3) if records else 0.0


def _state(status: str) -> str:
    """SUCCEEDED or FAILED here, COMPLETE, FAILED, CANCELED, ... on the backend; empty when it says nothing."""
    try:
        found = json.loads(status)
    except ValueError:
        return ""
    return str(found.get("state", "")) if isinstance(found, dict) else ""


if __name__ == "__main__":
    main()
