"""Fixtures of the tests that need a GPU: `make test-gpu`. Stages that run as commands all start at once.

`make rehearse-gpu` runs the same tests on the stand-in of card.py.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest

from examples.task_api.tiny import build_tiny_model
from posttrain.train import backend
from tests.gpu.card import Card, StandIn, is_rehearsed
from tests.stages import Rows, run_stage, write_rows

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
COMMANDS = {
    "sft on the CPU": ("sft", "peft", NO_GPU, {}),
    "dpo on the CPU": ("dpo", "peft", NO_GPU, {}),
    "sft": ("sft", "unsloth", {}, {}),
    "sft in 4 bits": ("sft", "unsloth", {}, {"load_in_4bit": True}),
    "dpo": ("dpo", "unsloth", {}, {}),
}


@pytest.fixture(scope="session", autouse=True)
def card() -> Iterator[Card]:
    """The GPU. This process trains on it with peft, where unsloth may be installed too."""
    import torch

    if not (torch.cuda.is_available() or is_rehearsed()):
        pytest.skip("there is no GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.BACKEND_ENV, "peft")
        backend.current.cache_clear()
        yield StandIn() if is_rehearsed() else Card()


@pytest.fixture(autouse=True)
def on_the_card(card: Card) -> Iterator[None]:
    with card.instead() if isinstance(card, StandIn) else nullcontext():
        yield
    backend.free_memory()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, task_api_files: Path) -> Rows:
    return write_rows(tmp_path_factory.mktemp("rows"), task_api_files)


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model whose activations take far more memory than its weights. Read only."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 8}
    return build_tiny_model(tmp_path_factory.mktemp("deep") / "model", seed=0, **shape)


@pytest.fixture(scope="session")
def commands(
    card: Card, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows: Rows
) -> Iterator[dict[str, tuple[Path, Future]]]:
    """Folder, and future log and text, of each of `COMMANDS`; without those of unsloth if it is not installed."""
    folder, started = tmp_path_factory.mktemp("commands"), {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (kind, library, env, changes) in COMMANDS.items():
            if library == "unsloth":
                if not find_spec("unsloth"):
                    continue
                env = env | {"UNSLOTH_COMPILE_LOCATION": str(folder / name / "compiled")}
            place = {"runner": card.runner if library == "unsloth" else (), "env": env}
            future = pool.submit(run_stage, kind, library, tiny_model, rows, folder / name, **place, **changes)
            started[name] = (folder / name, future)
        yield started


@pytest.fixture
def ended(commands: dict[str, tuple[Path, Future]]) -> Callable[[str], tuple[Path, list[dict], str]]:
    """Waits for one of `COMMANDS`, and gives its folder, the log of its steps, and what it printed."""

    def wait(name: str) -> tuple[Path, list[dict], str]:
        if name not in commands:
            pytest.skip("unsloth is not installed")
        folder, future = commands[name]
        return folder, *future.result()

    return wait
