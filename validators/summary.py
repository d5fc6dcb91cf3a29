"""Renders a verdict as Markdown, for the Kubeflow UI, a pull request or a terminal.

verdict -> Markdown: the outcome, what to do, every check against its limit

Generated answers appear on the page only. Text quoted here, such as the id of a row, is untrusted too and is escaped.
"""

from posttrain.pages import skills, wording
from posttrain.pages.wording import markdown as quoted
from posttrain.pages.wording import markdown_name as named
from posttrain.verdict import Check, Verdict

HEAD = "| Check | Status | Value | Limit | Interval | Detail |\n|:--|:--|--:|--:|:-:|:--|"
SKILLS_HEAD = "| Suite | Base | This model | Rows |\n|:--|--:|--:|:--|"


def markdown(verdict: Verdict) -> str:
    """The verdict as Markdown; checks that did not pass come first, in the table too."""
    passed = [check for check in verdict.checks if check.status == "passed"]
    stopped = verdict.failed_checks
    parts = [f"# {named(verdict.gate)}: {verdict.outcome}"]
    parts.append(f"**{quoted(wording.headline(verdict))}.** {wording.conclusion(verdict)}")
    if remedies := [f"- **{named(check.name)}**: {quoted(check.remedy)}" for check in stopped if check.remedy]:
        parts += ["## What to do", "\n".join(remedies)]
    parts += ["## Checks", "\n".join([HEAD, *map(_row, (*stopped, *passed))])]
    if scores := skills.scores(verdict.numbers):
        parts += ["## General skills", "\n".join([SKILLS_HEAD, *map(_skill_row, scores)])]
    if verdict.seconds:
        took = (f"{named(name)} {wording.duration(seconds)}" for name, seconds in verdict.seconds.items())
        parts.append(f"Time: {', '.join(took)}.")
    if verdict.subject:
        judged = (f"{named(name)} `{sha256[:12]}`" for name, sha256 in verdict.subject.items())
        parts.append(f"Judged, by SHA-256: {', '.join(judged)}.")
    return "\n\n".join(parts) + "\n"


def _row(check: Check) -> str:
    status = check.status if check.status == "passed" else f"**{check.status}**"
    numbers = (wording.measured(check), quoted(wording.limit(check)), wording.interval(check))
    numbers = (number.replace(" ", "\u00a0") for number in numbers)  # a narrow table breaks none of them
    return f"| {' | '.join((named(check.name), status, *numbers, quoted(check.detail)))} |"


def _skill_row(score: skills.SkillScore) -> str:
    name, *cells = skills.cells(score)
    return f"| {' | '.join((named(name), *(cell.replace(' ', chr(160)) for cell in cells)))} |"
