"""The published form of verdict.json: the file, the type and real verdicts say the same."""

import json
import math

import jsonschema
import pytest

from posttrain import schema
from posttrain.verdict import SCHEMA_VERSION, Check, Verdict, at_least, below, holds

PASSED = holds("tokenizer_unchanged", True)
UNSURE = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
FAILED = below("held_out_loss", math.nan, 2.0, remedy="Lower the learning rate.")
OTHERS = (Check(name="judge", status="timed out"), holds("over_refusal", None))


def written(*checks: Check) -> dict:
    verdict = Verdict(
        gate="check_sft", subject={"model": "0" * 64}, checks=checks, numbers={"rows": 8}, seconds={"loss": 1.5}
    )
    return json.loads(verdict.model_dump_json())


@pytest.fixture(scope="module")
def published() -> jsonschema.Draft202012Validator:
    content = json.loads(schema.PATH.read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


def test_the_published_file_is_what_the_code_says():
    assert schema.PATH.read_text() == schema.text(), "run `make golden`"
    assert schema.PATH.name == f"verdict.v{SCHEMA_VERSION}.json"
    assert schema.schema()["$id"].endswith(f"v{SCHEMA_VERSION}")


@pytest.mark.parametrize("checks", [[PASSED], [PASSED, UNSURE], [PASSED, UNSURE, FAILED, *OTHERS]])
def test_real_verdicts_fit(published, checks):
    published.validate(written(*checks))


def edited(**changes) -> dict:
    return written(PASSED, UNSURE) | changes


@pytest.mark.parametrize(
    "wrong",
    [
        edited(schema_version=2),
        edited(checks=[]),
        edited(outcome="promoted"),
        edited(passed=True),
        edited(passed=True, outcome="passed"),
        edited(outcome="passed"),
        edited(answers=["hostile"]),
        edited(numbers={"loss": "NaN"}),
        edited(checks=[{"name": "loss", "status": "green"}]),
        edited(checks=[written(UNSURE)["checks"][0] | {"interval": [0.1]}]),
        written(PASSED) | {"passed": False},
        {key: value for key, value in written(PASSED).items() if key != "schema_version"},
        {key: value for key, value in written(PASSED).items() if key != "subject"},
    ],
)
def test_a_wrong_or_forged_one_does_not(published, wrong):
    assert not published.is_valid(wrong)


def test_every_field_is_explained():
    current = schema.schema()
    for one in (current, current["$defs"]["Check"]):
        assert all(field["description"] for field in one["properties"].values())
