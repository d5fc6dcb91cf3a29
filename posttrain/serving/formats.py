"""Knows each format of `export.formats`: what it can hold, what writes it, and where it is stored.

model folder -> <export>/model-<format>.gguf for llama.cpp, <export>/fp8/ for vLLM
"""

from importlib.util import find_spec
from pathlib import Path

from posttrain.config.serving import GGUF, Export
from posttrain.serving import fp8, gguf
from posttrain.weights.targets import Layout

LIBRARIES = {"gguf": ("gguf", "xllamacpp"), "fp8": ("vllm",)}  # that write a format, or serve it
REMEDIES = {
    "gguf": "install posttrain[export], for a cluster in both images",
    "fp8": "install vllm, for a cluster in both images",
}


def path_of(export: Path, kind: str) -> Path:
    """Returns where a format lies in the folder of exported files."""
    return export / (f"model-{kind}.gguf" if kind in GGUF else kind)


def check_installed(export: Export) -> None:
    """Refuses formats whose writer or engine is missing: no gate could judge them.

    Raises:
        ValueError: naming format, library and remedy.
    """
    for kind in export.formats:
        family = "gguf" if kind in GGUF else kind
        if missing := [name for name in LIBRARIES[family] if find_spec(name) is None]:
            remedy = f"{REMEDIES[family]}, or leave {kind} out of export.formats"
            raise ValueError(f"export.formats: {kind} needs {' and '.join(missing)}, not installed here; {remedy}")


def check_model(folder: Path, layout: Layout, export: Export) -> None:
    """Refuses a model that one of the formats cannot hold, by what is in its way.

    Raises:
        ValueError: naming the first thing that the format has no place for.
    """
    if export.gguf:
        gguf.check(folder, layout)
    if "fp8" in export.formats:
        fp8.check(layout)


def write(model: Path, export: Path, kinds: list[str]) -> None:
    """Writes the model in each of these formats."""
    export.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        if kind in GGUF:
            gguf.write(model, path_of(export, kind), kind=kind)
        else:
            fp8.write(model, path_of(export, kind))
