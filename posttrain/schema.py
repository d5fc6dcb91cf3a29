"""The JSON schema of verdict.json, for whoever reads one without this code.

the type in `posttrain.verdict` -> schemas/verdict.v1.json

python -m posttrain.schema    writes it again, after a wanted change of the type
"""

import json
from pathlib import Path
from typing import Any

from posttrain.verdict import SCHEMA_VERSION, Verdict

PATH = Path(__file__).parent / "schemas" / f"verdict.v{SCHEMA_VERSION}.json"
ABOUT = (
    "What a gate of the post-training line found: checks, each with what was measured, its limit and the remedy, "
    "bound by SHA-256 to what was judged. The run goes on only where `passed` is true."
)
VERDICT = {
    "schema_version": "Of this form. A reader refuses a version that it does not know.",
    "gate": "Name of the step that judged.",
    "subject": "What was judged: name of the input -> SHA-256 of the file, or of a folder's sorted list of files.",
    "checks": "Everything that was looked at, passed or not, in the order of the gate.",
    "numbers": "What was measured beside the checks. Finite: a NaN is a failed check and stands nowhere else.",
    "confidence": "Of the intervals.",
    "answer_match": "What compared the models' answers with the references: the name of a matcher. none: nobody judged "
    "the content of the answers. null: no answers were judged.",
    "seconds": "Measurement -> how long it took.",
    "passed": "Every check has passed.",
    "outcome": "undecided: nothing is wrong, but too few rows were held out to say that all is well. It stops the run.",
}
CHECK = {
    "name": "Of the check, the same in every run.",
    "status": "undecided: the interval reaches over the limit. timed out: ended at its time limit. "
    "not run: something that it needs was not there. Only passed lets the run go on.",
    "value": "What was measured; null where there was no finite number.",
    "limit": "What it was held against; null for a check that holds or does not.",
    "relation": "Of value to limit, for the check to pass; empty without a limit.",
    "interval": "Low and high end of the value's confidence interval; null where there is none.",
    "more_rows": "If undecided: about so many more held-out rows would decide, if the value stays.",
    "detail": "What was seen. Text that may quote data: escape it.",
    "remedy": "What to do if the check does not pass.",
}
# What `passed` says must follow from the checks: a forged one does not fit the schema.
CONSISTENT = {
    "if": {"properties": {"passed": {"const": True}}},
    "then": {
        "properties": {
            "outcome": {"const": "passed"},
            "checks": {"items": {"properties": {"status": {"const": "passed"}}}},
        }
    },
    "else": {
        "properties": {
            "outcome": {"enum": ["failed", "undecided"]},
            "checks": {"contains": {"not": {"properties": {"status": {"const": "passed"}}}}},
        }
    },
}


def schema() -> dict[str, Any]:
    """Draft 2020-12."""
    found = Verdict.model_json_schema(mode="serialization")
    _describe(found, VERDICT)
    _describe(found["$defs"]["Check"], CHECK)
    found["$defs"]["Check"]["description"] = "One thing that was measured against one limit."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:posttrain:verdict:v{SCHEMA_VERSION}",
        **found,
        "title": "Verdict of a gate",
        "description": ABOUT,
        **CONSISTENT,
    }


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2) + "\n"


def _describe(found: dict[str, Any], descriptions: dict[str, str]) -> None:
    """Adds what each field means. None is ever left out of a file, so none has a default."""
    for name, field in found["properties"].items():
        field.pop("title", None)
        field.pop("default", None)
        field["description"] = descriptions[name]
    found["required"] = list(found["properties"])


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
