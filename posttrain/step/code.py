"""The code that runs, and the fingerprint of all that a result depends on."""

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.step.digests import digest, files_of

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "unsloth")  # another release may train otherwise


class Code(BaseModel):
    """What ran: other source, or another release of a library that trains, may give another result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    posttrain: str  # release of this package
    source: str  # SHA-256 of `posttrain` and `validators`, templates included
    libraries: dict[str, str]  # name -> release; `absent` where it is not installed

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def fingerprint(step: str, *, config: BaseModel, inputs: dict[str, str]) -> str:
    """SHA-256 of all that a result depends on: step, configuration, input digests, our source and the libraries."""
    return fingerprint_of(step, config=config.model_dump(mode="json"), inputs=inputs, code=code_version())


def fingerprint_of(step: str, *, config: dict[str, Any], inputs: dict[str, str], code: Code) -> str:
    """The same of what stands in a record."""
    parts = {"step": step, "config": config, "inputs": inputs, "code": code.sha256}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> Code:
    """The code that runs here."""
    here = Path(__file__).parents[1]
    files = [*files_of(here), *files_of(here.parent / "validators")]
    lines = [f"{file.relative_to(here.parent)} {digest(file)}" for file in files if file.suffix != ".pyc"]
    return Code(
        posttrain=_release("posttrain"),
        source=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        libraries={name: _release(name) for name in LIBRARIES},
    )


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
