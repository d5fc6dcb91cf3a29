"""Writes a run as JUnit XML for CI: a test suite for each gate, a test case for each check, and one for the run itself.

result of a run -> XML

The mapping follows how CI reads the file. CI takes "skipped" for no failure, so only a gate that the run did not reach
is skipped: a check that did not run in a gate that did is an error. The run's own case fails unless the model was
promoted, so that a run whose model is published, but not made current, is not green.
"""

from pathlib import Path
from xml.etree import ElementTree

from posttrain import storage
from posttrain.config.line import is_gate
from posttrain.config.masking import mask
from posttrain.pages import wording
from posttrain.report import PipelineResult, StepResult, headline
from posttrain.verdict import Check, Verdict

# Status of a check that did not pass -> element. A failure is a judgement, an error is the lack of one.
ELEMENTS = {"failed": "failure", "undecided": "failure", "timed out": "error", "not run": "error"}
COUNTED = {"tests": ".//testcase", "failures": ".//failure", "errors": ".//error"}


def write(file: str | None, text: str) -> None:
    """Writes the XML to the file of `--junit`, if there is one; raises ValueError if it cannot be written."""
    if not file:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(file, text)
    except OSError as error:
        raise ValueError(f"--junit {file}: cannot be written, {error.strerror}: give another file") from error


def of_run(result: PipelineResult) -> str:
    """Returns the XML of a run with all of its gates, also those that it did not reach."""
    gates = [step for step in result.steps if is_gate(step.name)]
    suites = [_gate_suite(step, result.gates.get(step.name)) for step in gates]
    return _xml(result.pipeline_id, [_run_suite(result), *suites])


def of_error(cause: str) -> str:
    """Returns the XML of a run that left no result."""
    suite = _suite("run", 0.0)
    _add_problem(_case(suite, "model promoted"), "error", "failed", cause)
    return _xml("run", [suite])


def _run_suite(result: PipelineResult) -> ElementTree.Element:
    suite = _suite("run", result.total_time_seconds)
    _add(suite, "system-out", "\n".join(map(_step_line, result.steps)))
    case = _case(suite, "model promoted", result.total_time_seconds)
    if result.success:
        _add(case, "system-out", result.final_model_path)
    else:
        element = "failure" if result.stopped_by else "error"
        _add_problem(case, element, result.outcome, headline(result), "\n".join(result.errors))
    return suite


def _step_line(step: StepResult) -> str:
    """Returns `train_dpo: succeeded, 43 s, 2 attempts, from step 1734, step 4000/4000`."""
    parts = [step.status]
    if step.num_attempts:
        parts.append(wording.duration(step.seconds))
    if step.num_attempts > 1:
        parts.append(f"{step.num_attempts} attempts")
    if step.progress and step.progress.resumed_at:
        parts.append(f"from step {step.progress.resumed_at}")
    if step.progress:
        parts.append(step.progress.words)
    return f"{step.name}: {', '.join(parts)}"


def _gate_suite(step: StepResult, verdict: Verdict | None) -> ElementTree.Element:
    suite = _suite(step.name, step.seconds)
    if verdict:
        properties = ElementTree.SubElement(suite, "properties")
        judged = {f"sha256 of {name}": sha256 for name, sha256 in verdict.subject.items()}
        for name, value in ({"outcome": verdict.outcome} | judged).items():
            ElementTree.SubElement(properties, "property", name=wording.line(name), value=wording.line(value))
        for check in verdict.checks:
            _add_check(suite, check, verdict.seconds.get(check.name, 0.0))
    if step.status == "not run":
        _add_problem(_case(suite, "verdict"), "skipped", "not reached", "the run ended before this gate")
    elif not (step.is_done and verdict):
        _add_problem(_case(suite, "verdict"), "error", step.status, step.error or "left no verdict")
    return suite


def _add_check(suite: ElementTree.Element, check: Check, seconds: float) -> None:
    case = _case(suite, check.name, seconds)
    if check.status == "passed":
        _add(case, "system-out", check.sentence)
    else:
        _add_problem(case, ELEMENTS[check.status], check.status, check.sentence, check.remedy)


def _suite(name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.Element("testsuite", name=name, time=f"{seconds:.3f}")


def _case(suite: ElementTree.Element, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", name=wording.line(name), classname=suite.get("name"), time=f"{seconds:.3f}"
    )


def _add_problem(case: ElementTree.Element, element: str, kind: str, message: str, text: str = "") -> None:
    _add(case, element, text or message).attrib.update(type=kind, message=wording.line(mask(message)))


def _add(case: ElementTree.Element, element: str, text: str) -> ElementTree.Element:
    """Adds an element with this text. XML allows no control characters, escaped or not: they are spelled out."""
    added = ElementTree.SubElement(case, element)
    added.text = wording.visible(mask(text))
    return added


def _xml(name: str, suites: list[ElementTree.Element]) -> str:
    root = ElementTree.Element("testsuites", name=name)
    root.extend(suites)
    for element in (root, *suites):
        element.attrib |= {counted: str(len(element.findall(path))) for counted, path in COUNTED.items()}
    for suite in suites:
        suite.set("skipped", str(len(suite.findall(".//skipped"))))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'
