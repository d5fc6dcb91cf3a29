"""The jinja2 environment of all HTML pages, and how sizes and states look on them."""

from functools import cache
from pathlib import Path
from typing import Any

from posttrain.pages import abilities, answers, defaults, wording
from posttrain.rows.formats import message_text, user_text

TEMPLATES = Path(__file__).parent / "templates"
# Status of a step, a check or a run -> its CSS class. Any other status has no colour.
TONES = {
    "passed": "good", "succeeded": "good", "promoted": "good", "reused": "old", "undecided": "unsure",
    "unfinished": "unsure",
    "failed": "bad", "timed out": "bad", "stopped": "bad", "lost": "bad", "not run": "none",
}  # fmt: skip


@cache
def environment(*folders: Path) -> Any:
    """Returns a jinja2 environment that escapes everything, for templates in `folders` and ours, with our filters."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = ("number", "measured", "limit", "interval", "duration")
    words = (*numbers, "headline", "conclusion", "tally", "line", "visible")
    env.filters |= {name: getattr(wording, name) for name in words} | {"size": size, "tone": TONES.get}
    env.filters |= {"percent": abilities.percent, "user_text": user_text, "message_text": message_text}
    env.filters |= {"reference": answers.reference_text, "answer_tone": answers.tone, "marked": answers.marked}
    env.filters["stricter_default"] = defaults.shown_default
    return env


def size(gigabytes: float) -> str:
    """Formats a size for people: `6.17 GB`, `270 MB`."""
    return f"{gigabytes:.3g} GB" if gigabytes >= 1 else f"{gigabytes * 1000:.3g} MB"
