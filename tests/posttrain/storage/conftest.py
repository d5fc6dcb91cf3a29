"""A folder of small and large files, storage behind a proxy that spoils answers, and limits that fit both."""

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore import retryhandler

from posttrain.storage import gcs, s3, transfer
from tests.posttrain.storage.faults import Proxy, proxy

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small files, and one of 11 MiB and a byte, which counts as large and goes in several chunks."""
    monkeypatch.setattr(transfer, "LARGE_FILE_BYTES", MIB)
    monkeypatch.setattr(gcs, "UPLOAD_CHUNK_BYTES", 4 * MIB)
    monkeypatch.setattr(gcs, "DOWNLOAD_CHUNK_BYTES", 2 * MIB)
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    path, randbytes = tmp_path / "folder", random.Random(0).randbytes
    path.mkdir()
    for i in range(6):
        (path / f"small-{i}.json").write_bytes(randbytes(1000 * i))
    (path / "model.safetensors").write_bytes(randbytes(11 * MIB + 1))
    return path


@pytest.fixture(scope="module")
def sockets_are_collected() -> Iterator[None]:
    """Clients leave a connection that broke to the garbage collector, which warns: here, not in a later module."""
    yield
    gc.collect()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask again after fractions of a second; for connections made after this."""
    monkeypatch.setattr(gcs, "FIRST_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(gcs, "MAX_DELAY_SECONDS", 0.2)
    monkeypatch.setattr(retryhandler.random, "random", lambda: 0.05)


@pytest.fixture
def gs_proxy(impatient: None, gs_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy through which `gs_root` is reached."""
    with proxy(os.environ["STORAGE_EMULATOR_HOST"]) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        yield server


@pytest.fixture
def s3_proxy(impatient: None, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy through which `s3_root` is reached."""
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        yield server
