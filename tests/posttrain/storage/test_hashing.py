import hashlib
import random
from pathlib import Path

import pytest

from posttrain.storage import hashing

DATA = random.Random(0).randbytes(3 * hashing.BLOCK_BYTES + 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


@pytest.mark.parametrize("back_to", [0, 10, 1_000])
def test_what_is_read_again_counts_once_and_what_is_left_is_read(back_to: int, file: Path) -> None:
    with hashing.HashedFile(file) as hashed:
        hashed.read(1_000)
        hashed.seek(back_to)
        assert hashed.read(100_000) == DATA[back_to : back_to + 100_000]
        assert hashed.sha256() == hashlib.sha256(DATA).hexdigest() == hashing.sha256(file)


@pytest.mark.parametrize("size", [0, 1, hashing.BLOCK_BYTES, len(DATA)])
def test_a_copy_gives_its_digest(size: int, file: Path) -> None:
    file.write_bytes(DATA[:size])
    assert hashing.copy(file, file.with_name("copy")) == hashlib.sha256(DATA[:size]).hexdigest()
    assert file.with_name("copy").read_bytes() == DATA[:size]
