"""Lists what a published model was made of, as a CycloneDX bill of materials of machine learning.

model folder, chain -> text of bom.cdx.json, CycloneDX 1.6, https://cyclonedx.org/capabilities/mlbom/

The same model, published at the same time, has the same bill to the byte.
"""

import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from posttrain.step.provenance import Provenance
from posttrain.weights.tensors import read_json

NAMESPACE = uuid.UUID("6f0d2a4e-6f43-5b0b-9d6b-3a2f8f1f5a10")  # of serial numbers, one for each model

JUDGING = ("judge_model", "matching_judge", "harm_judge", "reward_model")  # ends of the names of models that judge

Json = dict[str, Any]


def text(model: Path, chain: Provenance, files: dict[str, str]) -> str:
    """Returns the bill of a model whose chain has its name, version and time."""
    return json.dumps(bill(model, chain, files), indent=2) + "\n"


def bill(model: Path, chain: Provenance, files: dict[str, str]) -> Json:
    """Returns the bill: the model with its card, the base and the data sets it came from, and the libraries."""
    component = _model(model, chain, files)
    bases, data_sets = _sources(chain)
    libraries = _libraries(chain)
    parts = [*bases, *data_sets, *libraries]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, chain.sha256)}",
        "version": 1,
        "metadata": {"timestamp": chain.published_at, "component": component},
        "components": parts,
        "dependencies": [{"ref": component["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model(model: Path, chain: Provenance, files: dict[str, str]) -> Json:
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model {chain.sha256}",
        "name": chain.model_name,
        "version": chain.version,
        "modelCard": {
            "modelParameters": _parameters(model, chain),
            "quantitativeAnalysis": {"performanceMetrics": _metrics(chain)},
        },
        "components": [_file(name, sha256) for name, sha256 in sorted(files.items())],
    }


def _parameters(model: Path, chain: Provenance) -> Json:
    config = read_json(model / "config.json") if (model / "config.json").is_file() else {}
    known = {
        "architectureFamily": config.get("model_type"),
        "modelArchitecture": next(iter(config.get("architectures") or []), None),
    }
    stages = [link.step.removeprefix("train_") for link in chain.links if link.step.startswith("train_")]
    return {
        "approach": {"type": "supervised" if stages == ["sft"] else "reinforcement-learning"},
        "task": "text-generation",
        **{name: value for name, value in known.items() if value},
        "datasets": [{"ref": data_set["bom-ref"]} for data_set in _sources(chain)[1]],
    }


def _metrics(chain: Provenance) -> list[Json]:
    """Returns what the gates measured against a limit, as text: the format has no numbers there."""
    return [
        {"type": check.name, "value": f"{check.value:.6g}", "slice": gate} | _interval(check.interval)
        for gate, verdict in chain.gates.items()
        for check in verdict.checks
        if check.value is not None
    ]


def _interval(interval: tuple[float, float] | None) -> Json:
    if interval is None:
        return {}
    low, high = (f"{bound:.6g}" for bound in interval)
    return {"confidenceInterval": {"lowerBound": low, "upperBound": high}}


def _sources(chain: Provenance) -> tuple[list[Json], list[Json]]:
    """Returns the models and the data sets from outside the run."""
    models = {link.step for link in chain.links if link.source and "model" in link.outputs}
    bases, data_sets = [], []
    for step, source in chain.sources.items():
        is_model = step in models or step.endswith(JUDGING)
        kind = {"type": "machine-learning-model"} if is_model else _data_set(source.address)
        component = (
            kind
            | {
                "bom-ref": f"{step} {source.sha256}",
                "name": source.address,
                "hashes": [{"alg": "SHA-256", "content": source.sha256}],
            }
            | ({"version": source.commit} if source.commit else {})
        )
        (bases if is_model else data_sets).append(component)
    return bases, data_sets


def _data_set(address: str) -> Json:
    return {"type": "data", "data": [{"type": "dataset", "name": address, "contents": {"url": quote(address, ":/@")}}]}


def _libraries(chain: Provenance) -> list[Json]:
    """Returns the releases that ran, each once."""
    ran = {(name, release) for releases in chain.releases for name, release in releases.items() if release != "absent"}
    return [
        {"type": "library", "bom-ref": purl, "name": name, "version": release, "purl": purl}
        for name, release in sorted(ran)
        for purl in [f"pkg:pypi/{name}@{quote(release)}"]
    ]


def _file(name: str, sha256: str) -> Json:
    return {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}
