"""Fixtures of the tests that need unsloth, in an environment of their own: `make test-unsloth`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.train import backend


@pytest.fixture(scope="session", autouse=True)
def unsloth_first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process trains with unsloth, which comes before the libraries that it patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.BACKEND_ENV, "unsloth")
        patch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path_factory.mktemp("compiled")))
        backend.prepare()
        yield


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, task_api_files: Path) -> dict[str, dict[str, str]]:
    """Files of train and eval rows, by kind."""
    folder = tmp_path_factory.mktemp("rows")
    files = {}
    for kind, name in (("sft", "sft"), ("dpo", "preferences")):
        files[kind] = {part: str(folder / f"{kind}-{part}.jsonl") for part in ("train", "eval")}
        all_rows = read_jsonl(task_api_files / f"{name}.jsonl")
        write_jsonl(files[kind]["train"], all_rows[:16])
        write_jsonl(files[kind]["eval"], all_rows[16:20])
    return files
