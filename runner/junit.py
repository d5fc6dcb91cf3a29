"""A run as JUnit XML, for CI: a test suite for each gate, a test case for each check, and one for the run itself.

result of a run -> XML

How CI reads it decides what stands for what. Skipped is no failure to it, so it stands only for a gate that the run did
not reach: a check that did not run in a gate that did is an error. And the run's own case fails wherever nothing was
published, so that no end of a run but promotion is green.
"""

from xml.etree import ElementTree

from posttrain.config.line import is_gate
from posttrain.pages import wording
from posttrain.report import PipelineResult, StepResult, headline
from posttrain.verdict import Check, Verdict

# Status of a check that did not pass -> element. A failure is a judgement, an error the lack of one.
ELEMENTS = {"failed": "failure", "undecided": "failure", "timed out": "error", "not run": "error"}
COUNTED = {"tests": ".//testcase", "failures": ".//failure", "errors": ".//error"}


def of_run(result: PipelineResult) -> str:
    """All gates of the run, those that it did not reach too."""
    gates = [step for step in result.steps if is_gate(step.name)]
    return _xml(result.pipeline_id, [_run(result), *(_gate(step, result.gates.get(step.name)) for step in gates)])


def of_error(cause: str) -> str:
    """A run that left no result."""
    suite = _suite("run", 0.0)
    _tell(_case(suite, "model published"), "error", "failed", cause)
    return _xml("run", [suite])


def _run(result: PipelineResult) -> ElementTree.Element:
    suite = _suite("run", result.total_time_seconds)
    case = _case(suite, "model published", result.total_time_seconds)
    if result.success:
        _add(case, "system-out", result.final_model_path)
    else:
        element = "failure" if result.stopped_by else "error"
        _tell(case, element, result.outcome, headline(result), "\n".join(result.errors))
    return suite


def _gate(step: StepResult, verdict: Verdict | None) -> ElementTree.Element:
    suite = _suite(step.name, step.seconds)
    if verdict:
        properties = ElementTree.SubElement(suite, "properties")
        judged = {f"sha256 of {name}": sha256 for name, sha256 in verdict.subject.items()}
        for name, value in ({"outcome": verdict.outcome} | judged).items():
            ElementTree.SubElement(properties, "property", name=wording.line(name), value=wording.line(value))
        for check in verdict.checks:
            _check(suite, check, verdict.seconds.get(check.name, 0.0))
    if step.status == "not run":
        _tell(_case(suite, "verdict"), "skipped", "not reached", "the run ended before this gate")
    elif not (step.is_done and verdict):
        _tell(_case(suite, "verdict"), "error", step.status, step.error or "left no verdict")
    return suite


def _check(suite: ElementTree.Element, check: Check, seconds: float) -> None:
    case = _case(suite, check.name, seconds)
    if check.status == "passed":
        _add(case, "system-out", check.sentence)
    else:
        _tell(case, ELEMENTS[check.status], check.status, check.sentence, check.remedy)


def _suite(name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.Element("testsuite", name=name, time=f"{seconds:.3f}")


def _case(suite: ElementTree.Element, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", name=wording.line(name), classname=suite.get("name"), time=f"{seconds:.3f}"
    )


def _tell(case: ElementTree.Element, element: str, kind: str, message: str, text: str = "") -> None:
    _add(case, element, text or message).attrib.update(type=kind, message=wording.line(message))


def _add(case: ElementTree.Element, element: str, text: str) -> ElementTree.Element:
    """XML holds no control characters, escaped or not: they are spelled out."""
    found = ElementTree.SubElement(case, element)
    found.text = wording.visible(text)
    return found


def _xml(name: str, suites: list[ElementTree.Element]) -> str:
    root = ElementTree.Element("testsuites", name=name)
    root.extend(suites)
    for element in (root, *suites):
        element.attrib |= {counted: str(len(element.findall(path))) for counted, path in COUNTED.items()}
    for suite in suites:
        suite.set("skipped", str(len(suite.findall(".//skipped"))))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'
