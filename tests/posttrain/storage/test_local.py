from pathlib import Path

import pytest

from posttrain import storage
from posttrain.storage.local import temporary


def test_leftovers_of_a_killed_process_are_not_listed(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "whole", b"")
    temporary(tmp_path).write_bytes(b"half")
    temporary(tmp_path).mkdir()
    storage.write_bytes(tmp_path / ".hidden.part", b"")
    assert storage.list_files(tmp_path) == [".hidden.part", "whole"]


def test_writer_whose_answer_got_lost_has_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Path.hardlink_to

    def answer_lost(path: Path, target: Path) -> None:
        link(path, target)
        raise FileExistsError

    monkeypatch.setattr(Path, "hardlink_to", answer_lost)
    storage.write_bytes(tmp_path / "COMPLETE.json", b"ours", if_absent=True)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="exists already"):
        storage.write_bytes(tmp_path / "COMPLETE.json", b"theirs", if_absent=True)
    assert storage.read_bytes(tmp_path / "COMPLETE.json") == b"ours"
    assert storage.list_files(tmp_path) == ["COMPLETE.json"]
