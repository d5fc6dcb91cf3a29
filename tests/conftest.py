"""Fixtures shared by all tests: a tiny model, an adapter on it, and the Task API rows both are trained on."""

import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.task_api.generate import generate, write
from examples.task_api.tiny import build_tiny_model
from tests.tool_chat import model_that_calls

pytest_plugins = ["tests.hub_server", "tests.storage_servers"]

# Before torch is imported, and not `torch.set_num_threads`: a process forked after that cannot load a model.
os.environ["OMP_NUM_THREADS"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup: still not heard here, but by what tests start
    signal.signal(signal.SIGHUP, lambda *_: None)

MARKERS = {
    "docker": "needs a Docker engine",
    "chaos": "takes minutes",
    "cluster": "takes minutes",
    "long": "takes minutes",
    "unsloth": "needs unsloth beside the rest",
    "gpu": "needs a GPU",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, reason in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {reason}; runs with -m {name} alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [name for name in MARKERS if name not in config.getoption("markexpr")]
    deselected = [item for item in items if any(item.get_closest_marker(name) for name in left_out)]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


def stack(context: int = 1) -> list[inspect.FrameInfo]:
    """Returns the frames of the caller without their sources, which take `inspect.stack` 15 ms in the depths of pytest.

    kfp asks for one name of them at every setting of every task: more than half of what compiling took here.
    """
    frame, infos = sys._getframe(1), []
    while frame:
        code = frame.f_code
        infos.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return infos


inspect.stack = stack


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A step's `main`, called in this process, turns logging on: not for the tests that follow."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command's `main`, called in this process, sets handlers, one of which ends the process at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer Llama, hidden size 64, bfloat16, ChatML. Read only: copy it before changing it."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture(scope="session")
def calling_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of `tiny_model` with a chat template that renders tools and their calls. Read only."""
    return model_that_calls(tiny_model, tmp_path_factory.mktemp("tiny") / "calling")


@pytest.fixture(scope="session")
def taught_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` after 60 steps on other Task API rows: most answers have the form; SFT makes it nearly all."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "taught", seed=0, num_steps=60)


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a float32 LoRA adapter on `tiny_model`, r=4, all linear layers, B not zero. Read only."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("tiny") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def task_api_rows() -> dict[str, list[dict]]:
    """Rows of the Task API example by file: sft (48), preferences (32) and 8 of each other file. Read only."""
    return generate(num_sft=48, num_preferences=32, num_eval=8, num_red_team=8, num_off_topic=8, seed=0)


@pytest.fixture(scope="session")
def task_api_files(tmp_path_factory: pytest.TempPathFactory, task_api_rows: dict[str, list[dict]]) -> Path:
    """Folder with those rows as sft.jsonl and so on."""
    path = tmp_path_factory.mktemp("task_api")
    write(task_api_rows, path)
    return path
