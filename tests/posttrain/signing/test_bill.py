"""The bill of materials: every part of it, from a chain that has something of each kind."""

import json

import pytest

from posttrain.signing import bill
from posttrain.step.code import Code
from posttrain.step.provenance import Link, Mixture, Provenance, Source, Weighted
from posttrain.verdict import Verdict, at_most, holds

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
PARTS = (Weighted(address="gs://b/my rows.jsonl", sha256=A, weight=1), Weighted(address="hf://c/d", sha256=B, weight=2))


def link(step: str, **changes) -> Link:
    values = {"step": step, "fingerprint": "f", "code": None, "config": {}, "inputs": {}, "outputs": {}}
    return Link(**values | changes)


def code(**libraries: str) -> Code:
    return Code(module="m", source=A, posttrain="1.2.3", libraries=libraries)


def gate() -> Link:
    checks = (at_most("loss", 1.23456789, 2.0, interval=(0.1, 1.5)), at_most("late", 3.0, 5.0), holds("finite", True))
    verdict = Verdict(gate="check_sft", subject={}, checks=checks).model_dump(mode="json")
    limits = {"judge_model": "hf://acme/judge", "red_team_prompts": "gs://b/red.jsonl"}
    inputs = {"judge_model": A, "red_team_prompts": B}
    return link("check_sft", config={"validation": limits}, inputs=inputs, verdict=verdict)


def made(folder, *trainings: str) -> dict:
    base = Source(address="hf://acme/base", commit="c0ffee", sha256=C)
    links = [
        link("fetch_model", source=base, outputs={"model": C}, code=code(torch="2.0+cpu", trl="absent")),
        link("prepare_sft_data", source=Mixture(address="two", sha256=C, parts=PARTS), outputs={"train": A}),
        *(link(step, code=code(torch="2.1")) for step in trainings),
        gate(),
    ]
    chain = Provenance(
        run_id="r", sha256=A, model_name="m", version="v1", published_at="2026-01-01T00:00:00+00:00", links=tuple(links)
    )
    text = bill.text(folder, chain, {"b": B, "a": A})
    assert text == bill.text(folder, chain, {"b": B, "a": A}) and text.endswith("}\n")
    return json.loads(text)


def test_the_head_of_the_bill(tmp_path):
    head = made(tmp_path, "train_sft")
    component = head["metadata"]["component"]
    assert (head["bomFormat"], head["specVersion"], head["version"]) == ("CycloneDX", "1.6", 1)
    assert head["metadata"]["timestamp"] == "2026-01-01T00:00:00+00:00"
    assert (component["name"], component["version"], component["bom-ref"]) == ("m", "v1", f"model {A}")
    assert [file["name"] for file in component["components"]] == ["a", "b"]
    refs = [part["bom-ref"] for part in head["components"]]
    assert head["dependencies"] == [{"ref": component["bom-ref"], "dependsOn": refs}]
    assert len(refs) == len(set(refs)) == 8


def test_the_sources_are_models_or_data_and_the_libraries_stand_once(tmp_path):
    parts = {part["name"]: part for part in made(tmp_path, "train_sft")["components"] if part["type"] != "library"}
    assert {name: part["type"] for name, part in parts.items()} == {
        "hf://acme/base": "machine-learning-model",
        "hf://acme/judge": "machine-learning-model",
        "gs://b/my rows.jsonl": "data",
        "hf://c/d": "data",
        "gs://b/red.jsonl": "data",
    }
    assert parts["hf://acme/base"]["version"] == "c0ffee" and "version" not in parts["hf://acme/judge"]
    assert parts["hf://acme/base"]["hashes"] == [{"alg": "SHA-256", "content": C}]
    assert parts["gs://b/my rows.jsonl"]["data"][0]["contents"]["url"] == "gs://b/my%20rows.jsonl"
    libraries = [part["purl"] for part in made(tmp_path, "train_sft")["components"] if part["type"] == "library"]
    assert libraries == ["pkg:pypi/posttrain@1.2.3", "pkg:pypi/torch@2.0%2Bcpu", "pkg:pypi/torch@2.1"]


def test_the_metrics_are_what_was_measured(tmp_path):
    card = made(tmp_path, "train_sft")["metadata"]["component"]["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "loss", "value": "1.23457", "slice": "check_sft",
         "confidenceInterval": {"lowerBound": "0.1", "upperBound": "1.5"}},
        {"type": "late", "value": "3", "slice": "check_sft"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trainings", "approach"),
    [(["train_sft"], "supervised"), (["train_sft", "train_dpo"], "reinforcement-learning"),
     (["train_dpo"], "reinforcement-learning")],
)  # fmt: skip
def test_the_approach_is_that_of_the_trainings(tmp_path, trainings, approach):
    parameters = made(tmp_path, *trainings)["metadata"]["component"]["modelCard"]["modelParameters"]
    data_sets = [f"prepare_sft_data: 1 {A}", f"prepare_sft_data: 2 {B}", f"check_sft: red_team_prompts {B}"]
    assert parameters == {
        "approach": {"type": approach}, "task": "text-generation", "datasets": [{"ref": ref} for ref in data_sets],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"model_type": "llama", "architectures": ["A", "B"]},
         {"architectureFamily": "llama", "modelArchitecture": "A"}),
        ({"model_type": "llama", "architectures": []}, {"architectureFamily": "llama"}),
        ({}, {}),
    ],
)  # fmt: skip
def test_the_architecture_is_that_of_the_model_as_far_as_it_says(tmp_path, config, known):
    (tmp_path / "config.json").write_text(json.dumps(config))
    parameters = made(tmp_path, "train_sft")["metadata"]["component"]["modelCard"]["modelParameters"]
    assert {key: value for key, value in parameters.items() if "rchitecture" in key} == known
