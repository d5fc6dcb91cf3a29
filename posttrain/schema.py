"""Writes the JSON schema of verdict.json, for readers without this code.

the type in `posttrain.verdict` -> schemas/verdict.v1.json

python -m posttrain.schema    rewrites it after an intended change of the type
"""

import json
from pathlib import Path
from typing import Any

from posttrain.verdict import SCHEMA_VERSION, Verdict

PATH = Path(__file__).parent / "schemas" / f"verdict.v{SCHEMA_VERSION}.json"
ABOUT = (
    "The verdict of a gate in the post-training line: checks, each with its measured value, limit and remedy, "
    "bound by SHA-256 to what was judged. The run continues only if `passed` is true."
)
VERDICT = {
    "schema_version": "Version of this format. A reader refuses versions that it does not know.",
    "gate": "Name of the step that judged.",
    "subject": "What was judged: name of the input -> SHA-256 of the file, or of a folder's sorted list of files.",
    "checks": "Everything that the gate checked, passed or not, in its order.",
    "numbers": "Measured beside the checks. Always finite: a NaN is a failed check and appears nowhere else.",
    "confidence": "Confidence level of the intervals.",
    "answer_match": "Matcher that compared the models' answers with the references. none: nobody judged the content "
    "of the answers. null: no answers were judged.",
    "seconds": "Duration of each measurement.",
    "passed": "Whether every check passed.",
    "outcome": "undecided: no check failed, but some had too few rows to decide. The run stops.",
}
CHECK = {
    "name": "Name of the check, the same in every run.",
    "status": "undecided: the interval crosses the limit. timed out: stopped at its time limit. "
    "not run: something that it needs was missing. The run continues only if every check is passed.",
    "value": "Measured value; null if it is not a finite number.",
    "limit": "Limit for the value; null for a condition that holds or does not.",
    "relation": "Relation between value and limit if the check is to pass; empty without a limit.",
    "interval": "Low and high end of the value's confidence interval; null if it has none.",
    "more_rows": "If undecided: about how many more rows would decide, if the value stays.",
    "detail": "What the check saw. It may quote data: escape it.",
    "remedy": "What to do if the check does not pass.",
}
# `passed` must follow from the checks: a forged one does not match the schema.
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
    """Builds the schema, in draft 2020-12."""
    schema_ = Verdict.model_json_schema(mode="serialization")
    _describe(schema_, VERDICT)
    _describe(schema_["$defs"]["Check"], CHECK)
    schema_["$defs"]["Check"]["description"] = "One thing that was measured against one limit."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:posttrain:verdict:v{SCHEMA_VERSION}",
        **schema_,
        "title": "Verdict of a gate",
        "description": ABOUT,
        **CONSISTENT,
    }


def text() -> str:
    """Returns the schema as text of the file."""
    return json.dumps(schema(), indent=2) + "\n"


def _describe(schema_: dict[str, Any], descriptions: dict[str, str]) -> None:
    """Describes every field. All are required, without defaults: a file never omits one."""
    for name, field in schema_["properties"].items():
        field.pop("title", None)
        field.pop("default", None)
        field["description"] = descriptions[name]
    schema_["required"] = list(schema_["properties"])


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
