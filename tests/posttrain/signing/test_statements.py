"""What is signed, to the word: whoever checks a model makes the statements again, so no check would see one change."""

import hashlib

import pytest

from posttrain.signing import statements
from posttrain.step.code import Code
from posttrain.step.provenance import Link, Provenance, Source
from posttrain.step.published import Manifest
from posttrain.verdict import Verdict, at_most, holds

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
IMAGES = {"cpu": f"registry.example.org/cpu@sha256:{C}", "train": "train:local"}
CODE = Code(module="posttrain.sft", source=B, posttrain="1.2.3", libraries={"trl": "1.0"})
CHECKS = (at_most("loss", 1.0, 2.0, interval=(0.5, 1.5), detail="d"), holds("finite", True))


def link(step: str, **changes) -> Link:
    values = {"step": step, "fingerprint": f"of {step}", "code": None, "config": {}, "inputs": {}, "outputs": {}}
    return Link(**values | changes)


def gate(*checks, **changes) -> Link:
    verdict = Verdict(gate="check_sft", subject={"model": A, "eval": B}, checks=checks or CHECKS)
    config = {"validation": {"judge_model": "hf://acme/judge"}}
    judged = {"inputs": {"model": A, "judge_model": C}, "outputs": {"verdict": B}}
    return link("check_sft", config=config, verdict=verdict.model_dump(mode="json"), **judged | changes)


FETCHED = link("fetch_model", source=Source(address="hf://acme/base", commit="c0ffee", sha256=C))
TRAINED = link("train_sft", code=CODE, config={"epochs": 1}, inputs={"base": C}, outputs={"adapter": B})
END = link("publish_model", code=CODE, config={"signing": {"images": IMAGES}})
MANIFEST = Manifest(
    model_name="m", version="v1", sha256=A, run_id="run-1", published_at="2026-01-01T00:00:00+00:00",
    files={"weights": B, "config.json": A, "README.md": C, "provenance.json": C},
)  # fmt: skip


def chain(*links: Link) -> Provenance:
    return Provenance(run_id="run-1", sha256=A, links=links)


def resource(name: str, sha256: str, **more: str) -> dict:
    return {"name": name, "digest": {"sha256": sha256}} | more


def test_the_provenance_to_the_word():
    made = statements.provenance(MANIFEST, chain(FETCHED, TRAINED, gate(), END))
    predicate = made.pop("predicate")
    assert made == {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": [resource("config.json", A), resource("weights", B)],
    }
    definition, details = predicate["buildDefinition"], predicate["runDetails"]
    assert definition["buildType"] == statements.BUILD_TYPE
    assert definition["externalParameters"] == {
        "model_name": "m", "version": "v1", "fetch_model": "hf://acme/base@c0ffee",
        "check_sft: judge_model": "hf://acme/judge",
    }  # fmt: skip
    steps = definition["internalParameters"]["steps"]
    assert list(steps) == ["fetch_model", "train_sft", "check_sft", "publish_model"]
    assert steps["train_sft"] == {
        "fingerprint": "of train_sft", "config": {"epochs": 1}, "inputs": {"base": C}, "outputs": {"adapter": B},
    }  # fmt: skip
    assert definition["resolvedDependencies"] == [
        resource("fetch_model", C, uri="hf://acme/base@c0ffee"),
        resource("check_sft: judge_model", C, uri="hf://acme/judge"),
        {"name": "image cpu", "uri": "registry.example.org/cpu", "digest": {"sha256": C}},
        {"name": "image train", "uri": "train:local"},
        resource("code of train_sft", B),
        resource("code of publish_model", B),
    ]
    assert details == {
        "builder": {"id": statements.BUILDER, "version": {"posttrain": "1.2.3"}},
        "metadata": {"invocationId": "run-1", "finishedOn": "2026-01-01T00:00:00+00:00"},
        "byproducts": [resource("check_sft/verdict.json", B)],
    }


def test_a_graph_without_images_and_code_names_none():
    predicate = statements.provenance(MANIFEST, chain(link("publish_model")))["predicate"]
    assert predicate["buildDefinition"]["resolvedDependencies"] == []
    assert predicate["runDetails"]["builder"]["version"] == {"posttrain": "unknown"}


def test_a_test_result_to_the_word():
    made = statements.test_result(gate(), chain(FETCHED))
    predicate = made.pop("predicate")
    assert made == {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "subject": [resource("eval", B), resource("model", A)],
    }
    settings = b'{"validation":{"judge_model":"hf://acme/judge"}}'
    assert predicate == {
        "result": "PASSED",
        "configuration": [
            resource("check_sft/config.json", hashlib.sha256(settings).hexdigest()),
            resource("judge_model", C, uri="hf://acme/judge"),
        ],
        "passedTests": ["loss", "finite"],
        "failedTests": [],
        "gate": "check_sft",
        "invocationId": "run-1",
        "verdict": {
            "sha256": B,
            "checks": [
                {"name": "loss", "status": "passed", "value": 1.0, "limit": 2.0, "relation": "<=",
                 "interval": [0.5, 1.5]},
                {"name": "finite", "status": "passed", "value": None, "limit": None, "relation": "", "interval": None},
            ],
        },
    }  # fmt: skip


@pytest.mark.parametrize("other", [holds("b", False), holds("b", None), at_most("b", 1.0, 2.0, interval=(0.0, 3.0))])
def test_a_gate_that_did_not_pass_failed(other):
    predicate = statements.test_result(gate(holds("a", True), other), chain(FETCHED))["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == ("FAILED", ["a"], ["b"])


def test_every_gate_and_nothing_else_has_a_test_result():
    kinds = [one["predicateType"] for one in statements.attestations(MANIFEST, chain(FETCHED, gate(), END))]
    assert kinds == [statements.SLSA, statements.TEST_RESULT]


def test_the_signature_covers_every_file_but_itself_in_the_order_of_names():
    files = statements.signed_files(MANIFEST, "attested")
    assert files.keys() == MANIFEST.files.keys() | {"manifest.json", "SHA256SUMS", "attestations.jsonl"}
    assert files["attestations.jsonl"] == hashlib.sha256(b"attested").hexdigest()
    made = statements.model_signature({"b": B, "a": A}, model_name="m")
    assert made["subject"] == [resource("m", hashlib.sha256(bytes.fromhex(A + B)).hexdigest())]
    assert made["predicate"]["resources"] == [
        {"name": name, "algorithm": "sha256", "digest": sha256} for name, sha256 in (("a", A), ("b", B))
    ]
    assert made["predicate"]["serialization"] == {
        "method": "files", "hash_type": "sha256", "allow_symlinks": False,
        "ignore_paths": ["model.sig", ".git", ".gitattributes", ".github", ".gitignore"],
    }  # fmt: skip
