"""Fixtures of the tests that need unsloth, in an environment of their own: `make test-unsloth`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.train import backend
from tests.stages import Rows, write_rows


@pytest.fixture(scope="session", autouse=True)
def unsloth_first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process trains with unsloth, which comes before the libraries that it patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.BACKEND_ENV, "unsloth")
        patch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path_factory.mktemp("compiled")))
        backend.prepare()
        yield


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, task_api_files: Path) -> Rows:
    return write_rows(tmp_path_factory.mktemp("rows"), task_api_files)
