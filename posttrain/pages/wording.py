"""Words for checks and verdicts: the same on a page, in Markdown, in a terminal and in JUnit.

check, verdict, text of unknown origin -> words

Text from a model or a data set may be hostile: `visible` and `markdown` turn it into plain text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from posttrain.config.requirements import LAST_GATES
from posttrain.verdict import Check, Verdict, rows_more

MAX_CHARS = 2_000  # shown of one hostile text
SKILLS = ("skill_", "skills_")  # how the names of checks on general skills begin


def number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def sign(relation: str) -> str:
    return {"<=": "≤", ">=": "≥"}.get(relation, relation)


def measured(check: Check) -> str:
    """Formats the value of a check: a number, or yes or no where a condition was checked."""
    if check.limit is None and check.value is None:
        return {"passed": "yes", "failed": "no"}.get(check.status, "")
    return number(check.value)


def limit(check: Check) -> str:
    """Formats the limit of a check, `≤ 2`; empty if it has none."""
    return "" if check.limit is None else f"{sign(check.relation)} {number(check.limit)}".strip()


def interval(check: Check) -> str:
    """Formats the interval of a check, `0.3 to 0.7`; empty if it has none."""
    return "" if check.interval is None else f"{number(check.interval[0])} to {number(check.interval[1])}"


UNJUDGED = "nobody judged the content of the answers"
HARM_UNJUDGED = "nobody judged whether the answers are harmful"
SKILLS_UNJUDGED = "nobody judged whether general skills were lost"


def headline(verdict: Verdict) -> str:
    """States the outcome in a few words, `Stopped by held_out_loss and 2 more`, and says if nobody judged the content
    or the general skills.
    """
    content = [UNJUDGED] if verdict.content_is_unjudged else []
    skills = [SKILLS_UNJUDGED] if verdict.gate in LAST_GATES and not judges_skills([verdict]) else []
    return "; ".join([_outcome(verdict), *content, *skills])


def judges_skills(verdicts: Iterable[Verdict]) -> bool:
    """Tells whether any of the checks is about general skills."""
    return any(check.name.startswith(SKILLS) for verdict in verdicts for check in verdict.checks)


def _outcome(verdict: Verdict) -> str:
    if verdict.outcome == "passed":
        return "Passed"
    if verdict.outcome == "undecided":
        return f"Undecided: {rows_that_would_decide(verdict)}"
    first, *others = verdict.failed_checks
    return f"Stopped by {line(first.name)}" + (f" and {len(others)} more" if others else "")


def conclusion(verdict: Verdict) -> str:
    """Says how many checks decided the outcome, and that the run stops here if they did not pass."""
    if verdict.outcome == "passed":
        return f"{_all(len(verdict.checks))} passed."
    part = f"{len(verdict.failed_checks)} of {_checks(len(verdict.checks))}"
    if verdict.outcome == "undecided":
        why = f"Nothing failed, but there are too few rows to decide {part}."
    else:
        why = f"{part} did not pass: {tally(verdict.failed_checks)}."
    return f"{why} The run stops at this gate."


def rows_that_would_decide(verdict: Verdict) -> str:
    """Says how many more rows would decide all undecided checks."""
    needed = [check.more_rows for check in verdict.checks if check.status == "undecided"]
    if not all(needed):
        return "more rows alone would not decide"
    return f"about {rows_more(max(needed))} would decide"


def reason(verdict: Verdict) -> str:
    """Says on one line why a gate did not pass: its first failed check in full, and how many more there are."""
    first, *others = verdict.failed_checks
    return line(first.sentence) + (f" (and {len(others)} more)" if others else "")


def tally(checks: list[Check]) -> str:
    """Counts statuses in the order of the checks: `1 failed, 2 not run`."""
    return ", ".join(f"{num} {status}" for status, num in Counter(check.status for check in checks).items())


def duration(seconds: float) -> str:
    """Formats a duration: `0.4 s`, `43 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def line(text: str) -> str:
    """Puts a text on one line and makes it `visible`."""
    return visible(" ".join(text.split()))


def visible(text: str) -> str:
    """Escapes invisible characters and those that reorder text, and cuts long texts."""
    cut = text[:MAX_CHARS]
    shown = "".join(char if char == "\n" or _shows_itself(char) else f"\\u{{{ord(char):x}}}" for char in cut)
    return shown if len(text) <= MAX_CHARS else f"{shown}\n... {len(text) - MAX_CHARS} more characters"


def markdown(text: str) -> str:
    """Escapes a text for a line or table cell of Markdown: no HTML, markup, links or mentions survive."""
    text = re.sub(r"[\\`*_\[\]|~$#!]", r"\\\g<0>", line(text).replace("\n", " "))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(?i)(www)\.", r"\1\\.", text.replace("://", "\\://"))
    return text.replace("@", "@\u2060")  # a word joiner: an escape would not keep GitHub from calling the person


def markdown_name(name: str) -> str:
    """Formats a name as code, or escapes it if it is not a plain name."""
    return f"`{name}`" if re.fullmatch(r"[\w.:-]+", name, re.ASCII) else markdown(name)


def _shows_itself(char: str) -> bool:
    """Returns False for control characters, bidirectional overrides, lone surrogates, unassigned and private ones."""
    return not unicodedata.category(char).startswith("C")


def _checks(num: int) -> str:
    return "1 check" if num == 1 else f"{num} checks"


def _all(num: int) -> str:
    return "The one check" if num == 1 else f"All {num} checks"
