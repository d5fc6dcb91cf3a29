"""Report a run from its record: the result as JSON, and an HTML page for people. The exit task of the graph.

run record -> pipeline_result.json, report.html; copies of both below `<storage_root>/runs/<run id>/`, with the verdict
of each gate and the curve of each training; a message to a webhook, where one is configured

A run has succeeded if its publish step left a receipt, the published manifest exists and names the same model and, if
the run was to promote it, its promotion is in the history of that name.
Nothing that a runner or Kubeflow reports about the run counts.
"""

import argparse
import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, computed_field

from posttrain import config, promote, storage
from posttrain.config import ReportStep, Stages, line, masking
from posttrain.config.limits import HARM
from posttrain.config.requirements import LAST_GATES
from posttrain.pages import abilities, defaults, training, wording
from posttrain.pages.answers import ANSWERS, AnsweredPrompt, columns_of, worst_first
from posttrain.pages.html import environment
from posttrain.publish import STEP as PUBLISH_STEP
from posttrain.step import frame, gate_answers, kfp_io, run, webhook
from posttrain.step.progress import Progress
from posttrain.step.records import StepRecord, read_records
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.verdict import Verdict

RESULT, REPORT = "pipeline_result.json", "report.html"
# The first keys of the result.
HEADLINE = ("success", "outcome", "pipeline_id", "final_model_path", "stages_completed")
# Output of a step -> name of its copy in the run's folder, where people look for it.
SHOWN = {
    "report": "verdict.html",
    "summary": "summary.md",
    "answers": ANSWERS,
    "curve": "curve.html",
    "metrics": "metrics.json",
    "info": "merge_info.json",
}
LOST = "left no record: killed, evicted or timed out; see its log"
KILLED = "did not finish: killed, evicted or timed out"
MAX_ERRORS = 5  # in a message
NUM_ANSWERS = 15  # held-out prompts that the report shows

logger = logging.getLogger(__name__)


class StepResult(BaseModel):
    """One step of the graph in this run: the state of its last attempt."""

    name: str
    status: Literal["succeeded", "reused", "failed", "unfinished", "lost", "not run"]
    seconds: float = 0.0  # of all attempts
    num_attempts: int = 0
    gpu_seconds: float = 0.0  # of all attempts: their time, by the number of GPUs that they had
    error: str | None = None
    inputs: dict[str, str] = {}  # name -> SHA-256
    outputs: dict[str, str] = {}
    measured: dict[str, Any] = {}
    progress: Progress | None = None  # of the last attempt of a training or a gate

    @property
    def is_done(self) -> bool:
        return self.status in ("succeeded", "reused")


class StageResult(BaseModel):
    """One stage: its training or merging and the gates that judge it."""

    success: bool
    loss: float | None = None  # training loss of the last steps
    size_gb: float | None = None  # of the last merged model
    time_seconds: float
    gpu_hours: float | None = None  # of its steps, gates included; None: without a GPU


class PipelineResult(BaseModel):
    """The result of a run."""

    pipeline_id: str
    run_id: str
    final_model_path: str | None
    total_time_seconds: float
    stage_results: dict[str, StageResult]
    errors: list[str]
    timestamp: str  # UTC, ISO 8601
    stopped_by: str | None  # the gate that did not pass
    is_current: bool | None = None  # made current by this run, or so already; None: that was not asked for
    # registry -> address of the published version there; null: that was not asked for, or nothing was published
    registered: dict[str, str] | None = None
    steps: list[StepResult]
    gates: dict[str, Verdict]

    @computed_field
    @property
    def success(self) -> bool:
        is_registered = all(step.is_done for step in self.steps if step.name == line.REGISTER)
        return self.final_model_path is not None and self.is_current is not False and is_registered

    @computed_field
    @property
    def outcome(self) -> Literal["promoted", "stopped", "undecided", "failed"]:
        """`undecided` if no check of the gate that stopped the run failed, but some had too few rows to decide."""
        if self.success:
            return "promoted"
        if self.stopped_by is None:
            return "failed"
        return "undecided" if self.gates[self.stopped_by].outcome == "undecided" else "stopped"

    @computed_field
    @property
    def stages_completed(self) -> list[str]:
        """The stages whose work is done, also those that a gate then refused."""
        return [stage for stage in self.stage_results if all(step.is_done for step in _work_of(stage, self.steps))]

    @property
    def not_compared_because(self) -> str:
        """Why check_champion had nothing to compare the model with; empty if it had, or has not judged."""
        checks = self.gates[line.CHAMPION].checks if line.CHAMPION in self.gates else ()
        return next((check.detail for check in checks if check.name == "nothing_to_compare"), "")

    @property
    def reused(self) -> list[str]:
        """Steps that reused the finished result of an earlier run."""
        return [step.name for step in self.steps if step.status == "reused"]


def collect(storage_root: str, run_id: str, settings: ReportStep) -> PipelineResult:
    """Builds the result of a run from its record, however it ended; an empty record gives a result too."""
    records = [record for record in read_records(storage_root, run_id) if record.step != "report_run"]
    steps = step_results(records, settings.steps)
    gates = {record.step: record.judged for record in records if record.verdict}
    final_model, trouble = published_model(records)
    is_current, missing = promotion(records) if line.PROMOTE in settings.steps else (None, [])
    registered, unregistered = registration(records)
    stopped_by = next((name for name, verdict in gates.items() if not verdict.passed), None)
    return PipelineResult(
        pipeline_id=settings.pipeline_id,
        run_id=run_id,
        final_model_path=final_model,
        total_time_seconds=_elapsed_seconds(records),
        stage_results=stage_results(steps, gates),
        errors=errors_of(steps, gates) + trouble + missing + unregistered,
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        stopped_by=stopped_by,
        is_current=is_current,
        registered=registered,
        steps=steps,
        gates=gates,
    )


def step_results(records: list[StepRecord], names: list[str]) -> list[StepResult]:
    """Returns the steps in the order of the graph, each rejection behind its gate."""
    names = list(names)
    for extra in dict.fromkeys(record.step for record in records if record.step not in names):
        gate = line.gate_of(extra) if line.is_rejection(extra) else None
        names.insert(names.index(gate) + 1 if gate in names else len(names), extra)
    results, explained = [], False
    for name in names:
        attempts = sorted((record for record in records if record.step == name), key=lambda record: record.attempt)
        result = _step_result(name, attempts) if attempts else _absent(name, explained)
        stopped = attempts and attempts[-1].verdict and not attempts[-1].judged.passed
        explained = explained or bool(stopped) or not result.is_done
        results.append(result)
    return results


def stage_results(steps: list[StepResult], gates: dict[str, Verdict]) -> dict[str, StageResult]:
    """Returns the stages of the graph. A stage succeeded if its steps are done and its gates passed."""
    results = {}
    for stage in Stages.model_fields:
        own, work = _steps_of(stage, steps), _work_of(stage, steps)
        if not work:
            continue
        passed = all(gates[step.name].passed for step in own if step.name in gates)
        measured = next((step.measured for step in reversed(work) if step.measured), {})
        results[stage] = StageResult(
            success=passed and all(step.is_done for step in own),
            loss=measured.get("final_loss"),
            size_gb=measured.get("size_gb"),
            time_seconds=round(sum(step.seconds for step in work), 3),
            gpu_hours=round(sum(step.gpu_seconds for step in own) / 3600, 4) or None,
        )
    return results


def _steps_of(stage: str, steps: list[StepResult]) -> list[StepResult]:
    return [step for step in steps if (row := line.find_step(step.name)) and row.stage == stage]


def _work_of(stage: str, steps: list[StepResult]) -> list[StepResult]:
    """Returns the steps of a stage that train or merge."""
    return [step for step in _steps_of(stage, steps) if not line.is_gate(step.name)]


def published_model(records: list[StepRecord]) -> tuple[str | None, list[str]]:
    """Returns the URI of the published model, or None and the faults of the receipt."""
    receipts = [record for record in records if record.step == PUBLISH_STEP and record.status == "succeeded"]
    if not receipts:
        return None, []
    receipt = receipts[-1].measured
    try:
        manifest = json.loads(storage.read_bytes(receipt["manifest_uri"]))
    except (OSError, ValueError, KeyError) as error:
        return None, [f"{PUBLISH_STEP}: the published manifest cannot be read: {error}"]
    if manifest.get("sha256") != receipt.get("sha256"):
        return None, [f"{PUBLISH_STEP}: {receipt['manifest_uri']} names another model than this run's receipt"]
    uploaded = receipt.get("hub") or {}
    return receipt["uri"], [f"{PUBLISH_STEP}: {uploaded['error']}"] if uploaded.get("error") else []


def promotion(records: list[StepRecord]) -> tuple[bool, list[str]]:
    """Tells whether this run's model is in the history of promotions, and the faults of what its step recorded."""
    receipt, made = (
        next((one.measured for one in reversed(records) if (one.step, one.status) == (step, "succeeded")), None)
        for step in (PUBLISH_STEP, line.PROMOTE)
    )
    if not (receipt and made):
        return False, []
    try:
        kept = promote.read_history(receipt["uri"].rpartition("/")[0])[made["number"] - 1]
    except (OSError, ValueError, KeyError, IndexError) as error:
        return False, [f"{line.PROMOTE}: the promotion cannot be read: {error}"]
    if kept.sha256 != receipt["sha256"]:
        return False, [f"{line.PROMOTE}: promotion {kept.number} is of another model than this run's receipt"]
    return True, []


def registration(records: list[StepRecord]) -> tuple[dict[str, str] | None, list[str]]:
    """Returns where this run's version is registered, and an error for each registry that does not have it."""
    made = [one.measured for one in records if (one.step, one.status) == (line.REGISTER, "succeeded")]
    if not made:
        return None, []
    return made[-1]["registered"], [f"{line.REGISTER}: {error}" for error in made[-1]["errors"]]


def errors_of(steps: list[StepResult], gates: dict[str, Verdict]) -> list[str]:
    """Lists every cause on one line: failed steps in the order of the graph, and checks that did not pass."""
    errors = []
    for step in steps:
        if step.error and not line.is_rejection(step.name):
            errors.append(f"{step.name}: {step.error}")
        if step.name in gates:
            errors += [f"{step.name}: {check.sentence}" for check in gates[step.name].failed_checks]
    return errors


def to_json(result: PipelineResult) -> str:
    """Formats the result as indented JSON, its headline first and its long lists last."""
    values = result.model_dump(mode="json", exclude_none=False)
    stages = {name: stage.model_dump(exclude_none=True) for name, stage in result.stage_results.items()}
    headline = {key: values[key] for key in HEADLINE}
    return json.dumps(headline | values | {"stage_results": stages}, indent=2, allow_nan=False)


def to_html(
    result: PipelineResult, pages: tuple[str, ...] = (), answers: tuple[AnsweredPrompt, ...] | list[AnsweredPrompt] = ()
) -> str:
    """Renders the report: self-contained, no scripts, every text escaped.

    Args:
        pages: what it links to, `<step>/curve.html`.
        answers: those of the last gate in which models answered.
    """
    template = environment().get_template("report.html")
    metrics = {step.name: step.measured for step in result.steps if step.is_done}
    return template.render(
        result=result,
        headline=headline(result),
        ending=_ending(result),
        longest=max(
            [1.0, *(step.seconds for step in result.steps)]
        ),  # a run of sub-second steps has no full-width bars
        between=max(result.total_time_seconds - sum(step.seconds for step in result.steps), 0.0),
        pages={step.name: [page for page in pages if page.startswith(f"{step.name}/")] for step in result.steps},
        sampled=training.sampled(metrics, result.gates),
        kept=training.kept(metrics),
        **_first_screen(result, list(answers)),
    )


def _first_screen(result: PipelineResult, answers: list[AnsweredPrompt]) -> dict[str, Any]:
    """The abilities of the model, and answers that show them."""
    judged = abilities.judged_answers(result.gates)
    asked = worst_first(row for row in answers if row.source == "held-out prompt")
    titles = abilities.titles(judged) if judged else {}
    is_unjudged = _is_unjudged(result)
    return {
        "is_unjudged": is_unjudged,
        "is_harm_unjudged": _is_harm_unjudged(result),
        "are_skills_unjudged": _are_skills_unjudged(result),
        "weak": defaults.weaker(result.gates.values()),
        "claim": _sentence(wording.UNJUDGED) if is_unjudged else judged and abilities.headline(judged),
        "abilities": abilities.abilities(judged) if judged else [],
        "titles": titles,
        "gate": judged and judged.gate,
        "confidence": judged and judged.confidence,
        "rows": asked[:NUM_ANSWERS],
        "num_asked": len(asked),
        "columns": columns_of(asked, titles),
        "answers_page": judged and f"{judged.gate}/{ANSWERS}",
    }


def headline(result: PipelineResult) -> str:
    """Says on one line how the run ended; first of all, if so, that nobody judged the content of the answers."""
    return f"{_sentence(wording.UNJUDGED)}. {_ending(result)}" if _is_unjudged(result) else _ending(result)


def unjudged(result: PipelineResult) -> list[str]:
    """Says what no gate of this run judged: the content of the answers, the harm in them, or general skills."""
    said = {
        wording.UNJUDGED: _is_unjudged(result),
        wording.HARM_UNJUDGED: _is_harm_unjudged(result),
        wording.SKILLS_UNJUDGED: _are_skills_unjudged(result),
    }
    return [words for words, is_so in said.items() if is_so]


def _is_unjudged(result: PipelineResult) -> bool:
    return any(verdict.content_is_unjudged for verdict in result.gates.values())


def _is_harm_unjudged(result: PipelineResult) -> bool:
    """Tells whether all that judges before publishing has judged, and nothing was asked about harm."""
    return _was_judged(result) and all(check.name != HARM for one in result.gates.values() for check in one.checks)


def _are_skills_unjudged(result: PipelineResult) -> bool:
    """Tells whether all that judges before publishing has judged, and general skills were not asked."""
    return _was_judged(result) and not wording.judges_skills(result.gates.values())


def _was_judged(result: PipelineResult) -> bool:
    return result.final_model_path is not None or any(gate in LAST_GATES for gate in result.gates)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _ending(result: PipelineResult) -> str:
    if result.success:
        return "Published and made current" if result.is_current else "Published"
    if result.final_model_path:
        lacks = "made current" if result.is_current is False else "registered"
        return f"Published, but not {lacks}: {_why(result)}"
    return _why(result)


def _why(result: PipelineResult) -> str:
    if result.outcome == "undecided":
        decide = wording.rows_that_would_decide(result.gates[result.stopped_by])
        return f"Undecided at {result.stopped_by}: {decide}"
    if result.stopped_by:
        return f"Stopped by {result.stopped_by}"
    broken = next((step.name for step in result.steps if step.status in ("failed", "unfinished", "lost")), None)
    return f"Failed at {broken}" if broken else "Not published"


def read_answers(storage_root: str, run_id: str) -> list[AnsweredPrompt]:
    """Reads the answers of the last gate in which models answered; without them the report has none to show."""
    record = gate_answers.last_judged(read_records(storage_root, run_id))
    try:
        return gate_answers.kept_by(record, storage_root) if record else []
    except (OSError, ValueError) as error:
        logger.warning("the report shows no answers: %s", wording.line(str(error)))
        return []


def publish_report(storage_root: str, result: PipelineResult) -> None:
    """Writes result, report, verdicts and curves below `<storage_root>/runs/<run id>/`."""
    folder = layout.runs(storage_root, result.run_id)
    result = result.model_copy(update={"errors": [masking.mask(error) for error in result.errors]})
    for gate, verdict in result.gates.items():
        storage.write_bytes(storage.join(folder, gate, "verdict.json"), verdict.model_dump_json(indent=2).encode())
    pages = []
    for record in read_records(storage_root, result.run_id):
        for output in SHOWN.keys() & record.outputs.keys() if record.kept else ():
            kept = storage.join(storage_root, record.kept, output)
            if storage.exists(kept):
                pages.append(f"{record.step}/{SHOWN[output]}")
                storage.write_bytes(storage.join(folder, record.step, SHOWN[output]), storage.read_bytes(kept))
    pages = tuple(page for page in sorted(pages) if page.endswith(".html"))
    answers = read_answers(storage_root, result.run_id)
    storage.write_bytes(storage.join(folder, REPORT), to_html(result, pages, answers).encode())
    storage.write_bytes(storage.join(folder, RESULT), to_json(result).encode())


def _told(storage_root: str, result: PipelineResult) -> str:
    earlier = told_by(storage_root, result)
    return f"not sent again: run {earlier} sent it" if earlier else tell(result)


def tell(result: PipelineResult) -> str:
    """Tells the webhook how the run ended, and returns what came of that."""
    lines = [f"{stage}: {wording.duration(done.time_seconds)}" for stage, done in result.stage_results.items()]
    where = [result.final_model_path] if result.final_model_path else []
    errors = result.errors[:MAX_ERRORS]
    whole = f"run {result.run_id}, {wording.duration(result.total_time_seconds)}"
    return webhook.send(f"{result.pipeline_id}: {headline(result)}", [*where, *errors, *lines, whole])


def told_by(storage_root: str, result: PipelineResult) -> str | None:
    """Returns the run that has told the webhook all this: it published the model and made it current, and this run,
    or this attempt, has reused every verdict. None: there is news.
    """
    judged = [step for step in result.steps if line.is_gate(step.name) and step.name != line.CHAMPION]
    if not result.success or result.errors:
        return None
    records = read_records(storage_root, result.run_id)
    maker = _maker(records)
    if maker != result.run_id and any(step.status != "reused" for step in judged):
        return None
    earlier = read_records(storage_root, maker, of={line.REPORT})
    is_told = any(one.measured.get("success") and one.measured.get("webhook") == webhook.SENT for one in earlier)
    return maker if is_told else None


def _maker(records: list[StepRecord]) -> str:
    """Returns the run that made the model current, or published it where it is not to be current."""
    done = {record.step: record.measured for record in records if record.status == "succeeded"}
    if line.PROMOTE in done:
        return done[line.PROMOTE]["by"]
    return json.loads(storage.read_bytes(done[PUBLISH_STEP]["manifest_uri"]))["run_id"]


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
        storage.write_text(args.result, to_json(result))
        answers = read_answers(running.storage_root, result.run_id)
        storage.write_text(args.report, to_html(result, answers=answers))
        publish_report(running.storage_root, result)
        told = {"webhook": _told(running.storage_root, result)} if settings.notify else {}
        return {"success": result.success, "runner_says": _state(args.status)} | told

    outputs = {"result": args.result, "report": args.report}
    frame.run_step(args, inputs={}, outputs=outputs, config=settings, work=work, reusable=False)


def _step_result(name: str, attempts: list[StepRecord]) -> StepResult:
    last = attempts[-1]
    was_killed = last.status == "running"  # the run is over
    return StepResult(
        name=name, num_attempts=len(attempts),
        status="lost" if was_killed else last.status, error=killed(last) if was_killed else last.error,
        seconds=round(sum(record.seconds for record in attempts), 3),
        gpu_seconds=round(sum(record.seconds * record.num_gpus for record in attempts), 3),
        inputs=last.inputs, outputs=last.outputs, measured=last.measured, progress=last.progress,
    )  # fmt: skip


def killed(record: StepRecord) -> str:
    """Says when a step that never completed its record was last heard from, and how far it had come."""
    at = f"{record.written_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    progress = f", {record.progress.words}" if record.progress else ""
    return f"{KILLED}; last heard from at {at}{progress}; see its log"


def _absent(name: str, explained: bool) -> StepResult:
    """A step without a record: not run if an earlier step failed or a gate stopped the run, else lost."""
    return StepResult(name=name, status="not run") if explained else StepResult(name=name, status="lost", error=LOST)


def _elapsed_seconds(records: list[StepRecord]) -> float:
    """Returns the time from the start of the first step to the end of the last, overhead included."""
    starts = [datetime.fromisoformat(record.started_at).timestamp() for record in records]
    ends = [start + record.seconds for start, record in zip(starts, records, strict=True)]
    return round(max(ends) - min(starts), 3) if records else 0.0


def _state(status: str) -> str:
    """Extracts the state: SUCCEEDED or FAILED locally, COMPLETE, FAILED, CANCELED, ... on a backend; else empty."""
    try:
        values = json.loads(status)
    except ValueError:
        return ""
    return str(values.get("state", "")) if isinstance(values, dict) else ""


if __name__ == "__main__":
    main()
