"""Writes in-toto statements: what a published model is, how it was made, and what each gate measured.

manifest and chain of a published model -> in-toto statements: OpenSSF Model Signing, SLSA provenance, test results

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.1/provenance,
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md

Everything in them follows from manifest.json and provenance.json, so that whoever checks a model makes them again and
compares. A change of their content is a new BUILD_TYPE.
"""

import hashlib
import json
from typing import Any

from posttrain.step.provenance import Link, Provenance
from posttrain.step.published import ATTESTATIONS, MANIFEST, SIGNATURE, SUMS, Manifest

STATEMENT = "https://in-toto.io/Statement/v1"
MODEL_SIGNATURE = "https://model_signing/signature/v1.0"
SLSA = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "urn:posttrain:post-training-line:v1"
BUILDER = "urn:posttrain:publish_model:v1"
# As `model_signing` stores it; git's own files are those that a Hub adds.
SERIALIZATION = {
    "method": "files",
    "hash_type": "sha256",
    "allow_symlinks": False,
    "ignore_paths": [SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"],
}

Json = dict[str, Any]


def attestations(manifest: Manifest, chain: Provenance) -> list[Json]:
    """Returns the provenance of a model and the test result of each of its gates."""
    return [provenance(manifest, chain), *(test_result(link, chain) for link in chain.links if link.verdict)]


def provenance(manifest: Manifest, chain: Provenance) -> Json:
    """Returns how the model was made: SLSA provenance, its subjects the files of the model."""
    steps = {link.step: _step(link) for link in chain.links}
    named = {"model_name": manifest.model_name, "version": manifest.version}
    external = named | {step: str(source) for step, source in chain.sources.items()}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": external,
        "internalParameters": {"steps": steps},
        "resolvedDependencies": [*_sources(chain), *_images(chain), *_code(chain)],
    }
    details = {
        "builder": {"id": BUILDER, "version": {"posttrain": _release(chain)}},
        "metadata": {"invocationId": manifest.run_id, "finishedOn": manifest.published_at},
        "byproducts": _verdicts(chain),
    }
    subjects = [_resource(name, sha256) for name, sha256 in sorted(manifest.model_files.items())]
    return _statement(SLSA, subjects, {"buildDefinition": definition, "runDetails": details})


def test_result(gate: Link, chain: Provenance) -> Json:
    """Returns what a gate judged, by which limits, and which of its checks passed."""
    verdict = gate.judged
    named = {"passed": "PASSED", "failed": "FAILED", "undecided": "FAILED"}
    passed = [check.name for check in verdict.checks if check.status == "passed"]
    predicate = {
        "result": named[verdict.outcome],
        "configuration": [
            _resource(f"{gate.step}/config.json", _sha256(gate.config)),
            *(_resource(name, source.sha256, uri=str(source)) for name, source in gate.named.items()),
        ],
        "passedTests": passed,
        "failedTests": [check.name for check in verdict.checks if check.name not in passed],
        # Beside what the specification lists, which its readers skip: what was measured, and where it stands.
        "gate": gate.step,
        "invocationId": chain.run_id,
        "verdict": {"sha256": gate.outputs.get("verdict", ""), "checks": [_check(check) for check in verdict.checks]},
    }
    subjects = [_resource(name, sha256) for name, sha256 in sorted(verdict.subject.items())]
    return _statement(TEST_RESULT, subjects, predicate)


def model_signature(files: dict[str, str], *, model_name: str) -> Json:
    """Returns the statement of OpenSSF Model Signing on all files of a folder, name -> SHA-256."""
    ordered = sorted(files.items())
    root = hashlib.sha256(b"".join(bytes.fromhex(sha256) for _, sha256 in ordered)).hexdigest()
    resources = [{"name": name, "algorithm": "sha256", "digest": sha256} for name, sha256 in ordered]
    predicate = {"serialization": SERIALIZATION, "resources": resources}
    return _statement(MODEL_SIGNATURE, [_resource(model_name, root)], predicate)


def signed_files(manifest: Manifest, attested: str) -> dict[str, str]:
    """Returns name -> SHA-256 of all that the signature covers: every file of the folder but itself."""
    texts = {MANIFEST: manifest.json_bytes, SUMS: manifest.sums.encode(), ATTESTATIONS: attested.encode()}
    return manifest.files | {name: hashlib.sha256(content).hexdigest() for name, content in texts.items()}


def _statement(predicate_type: str, subjects: list[Json], predicate: Json) -> Json:
    return {"_type": STATEMENT, "subject": subjects, "predicateType": predicate_type, "predicate": predicate}


def _resource(name: str, sha256: str, **more: str) -> Json:
    return {"name": name, "digest": {"sha256": sha256}} | more


def _verdicts(chain: Provenance) -> list[Json]:
    gates = [link for link in chain.links if link.verdict]
    return [_resource(f"{gate.step}/verdict.json", gate.outputs.get("verdict", "")) for gate in gates]


def _step(link: Link) -> Json:
    return {"fingerprint": link.fingerprint, "config": link.config, "inputs": link.inputs, "outputs": link.outputs}


def _sources(chain: Provenance) -> list[Json]:
    return [_resource(step, source.sha256, uri=str(source)) for step, source in chain.sources.items()]


def _images(chain: Provenance) -> list[Json]:
    """Returns the images that the graph was compiled with; one that has no digest yet is only a tag."""
    images = (chain.links[-1].config.get("signing") or {}).get("images", {})
    parts = {name: reference.partition("@sha256:") for name, reference in images.items()}
    return [
        {"name": f"image {name}", "uri": uri} | ({"digest": {"sha256": sha256}} if sha256 else {})
        for name, (uri, _, sha256) in parts.items()
    ]


def _code(chain: Provenance) -> list[Json]:
    """Returns the modules of ours that each step could import, by their digest."""
    return [_resource(f"code of {link.step}", link.code.source) for link in chain.links if link.code]


def _release(chain: Provenance) -> str:
    end = chain.links[-1]
    return end.code.posttrain if end.code else "unknown"


def _check(check: Any) -> Json:
    return check.model_dump(mode="json", include={"name", "status", "value", "limit", "relation", "interval"})


def _sha256(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
