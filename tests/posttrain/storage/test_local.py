import os
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


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes first, then the name, then the folder that has the name."""
    events, fsync = [], os.fsync

    def synced(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"w")
    storage.write_bytes(tmp_path / "a" / "COMPLETE.json", b"{}", if_absent=True)
    storage.write_bytes(tmp_path / "b" / "record.json", b"{}")
    storage.upload_file(tmp_path / "source" / "weights", tmp_path / "c" / "weights")
    for folder in ("a", "b", "c"):
        stage, named = (event for event in events if event.is_relative_to(tmp_path / folder))
        assert (stage.suffix, named) == (".part", tmp_path / folder)
    events.clear()
    storage.upload_folder(tmp_path / "source", tmp_path / "kept" / "model")
    weights, stage, *named = events
    assert (weights.name, weights.parent) == ("weights", stage)
    assert stage.suffix == ".part"
    assert set(named) == {tmp_path / "kept" / "model", tmp_path / "kept"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.storage.local.temporary", lambda folder: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    (tmp_path / "weights").write_bytes(b"w")
    for write in (
        lambda: storage.write_bytes(tmp_path / "record.json", b"{}"),
        lambda: storage.upload_file(tmp_path / "weights", tmp_path / "record.json"),
    ):
        with pytest.raises(OSError, match=r"No space left on device: '.*record\.json'"):
            write()
    monkeypatch.setattr("posttrain.storage.files.temporary", lambda folder: Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        storage.download_file(tmp_path / "weights", tmp_path / "copy")


def test_a_full_disk_is_an_error_with_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        storage.write_text("/dev/full", "x")
    storage.write_text(tmp_path / "umlaut.txt", "ä\n")
    assert (tmp_path / "umlaut.txt").read_bytes() == b"\xc3\xa4\n"
