import gc
import hashlib
import http.server
import logging
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.storage import files, gcs, s3, transfer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files, among them an empty one, a nested one and one with every awkward character."""
    path = tmp_path / "folder"
    (path / "a" / "b").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 800)
    (path / "empty.json").write_bytes(b"")
    (path / "a" / "b" / "deep.txt").write_text("deep")
    (path / "a" / "ü [1]*#?%20+&.txt").write_text("awkward")
    (path / "z").write_text("last")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_bytes_come_back(root: str) -> None:
    uri = storage.join(root, "runs", "record.json")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"two"
    assert not storage.exists(storage.join(root, "runs")), "a folder is not a file"
    assert storage.list_files(root) == ["runs/record.json"]


def test_missing_names_its_uri(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "none.json")
    assert storage.list_files(root) == []
    for call in (storage.read_bytes, lambda uri: storage.download_file(uri, tmp_path / "x")):
        with pytest.raises(FileNotFoundError) as error:
            call(uri)
        assert uri in one_line(error)
    with pytest.raises(FileNotFoundError, match=re.escape(root)):
        storage.download_folder(root, tmp_path / "y")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_missing_bucket(scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{scheme}_root")
    with pytest.raises(FileNotFoundError, match=f"{scheme}://no-such-bucket/x"):
        storage.list_files(f"{scheme}://no-such-bucket/x")
    with pytest.raises(ValueError, match=f"{scheme}://no-such-bucket.*another place"):
        storage.check_writable(f"{scheme}://no-such-bucket")


def test_one_of_many_writers_wins(root: str) -> None:
    uri = storage.join(root, "COMPLETE.json")

    def write(writer: int) -> int | None:
        try:
            storage.write_bytes(uri, f"writer {writer}".encode(), if_absent=True)
        except FileExistsError as error:
            assert uri in str(error)
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(write, range(8)) if writer is not None]
    assert len(winners) == 1
    assert storage.read_bytes(uri) == f"writer {winners[0]}".encode()
    assert storage.list_files(root) == ["COMPLETE.json"]


def test_folder_goes_up_and_down(root: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "posttrain.storage.files")
    sent = storage.upload_folder(folder, storage.join(root, "model"))
    assert storage.list_files(storage.join(root, "model")) == sorted(contents(folder))
    arrived = storage.download_folder(storage.join(root, "model"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert sent == arrived == {name: hashlib.sha256(data).hexdigest() for name, data in contents(folder).items()}
    assert re.search(r"download from .*/model: 5 of 5 files, 0\.2 MB, [\d.]+ MB/s", caplog.text)
    assert not list(tmp_path.rglob(".*"))


def test_folder_over_another_replaces_its_files_and_keeps_the_rest(root: str, folder: Path, tmp_path: Path) -> None:
    uri, back = storage.join(root, "model"), tmp_path / "back"
    storage.write_bytes(storage.join(uri, "z"), b"old")
    storage.write_bytes(storage.join(uri, "more"), b"stays")
    storage.upload_folder(folder, uri)
    back.mkdir()
    (back / "z").write_text("old")
    storage.download_folder(uri, back)
    assert contents(back) == contents(folder) | {"more": b"stays"}
    assert not list(back.rglob(".*"))


def test_large_files_go_in_chunks(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(gcs, "UPLOAD_CHUNK_BYTES", 4 << 20)
    monkeypatch.setattr(gcs, "DOWNLOAD_CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = random.Random(0).randbytes((11 << 20) + 1)
    (tmp_path / "big").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert storage.upload_file(tmp_path / "big", storage.join(root, "model", "big")) == sha256
    assert storage.download_folder(storage.join(root, "model"), tmp_path / "folder") == {"big": sha256}
    assert storage.download_file(storage.join(root, "model", "big"), tmp_path / "new" / "big") == sha256
    assert (tmp_path / "folder" / "big").read_bytes() == data
    assert (tmp_path / "new" / "big").read_bytes() == data


def test_groups_hold_a_gigabyte_of_at_least_four_files() -> None:
    groups = list(files._groups({f"{i}": 700 << 20 for i in range(6)} | {"small": 1}))
    assert groups == [["0", "1", "2", "3"], ["4", "5", "small"]]


def test_remove_takes_a_folder_or_file_and_nothing_beside(root: str, folder: Path) -> None:
    storage.upload_folder(folder, storage.join(root, "run"))
    storage.write_bytes(storage.join(root, "run-2"), b"")
    storage.remove(storage.join(root, "run", "a"))
    assert storage.list_files(storage.join(root, "run")) == ["empty.json", "model.safetensors", "z"]
    storage.remove(storage.join(root, "run", "z"))
    storage.remove(storage.join(root, "run"))
    storage.remove(storage.join(root, "run"))
    assert storage.list_files(root) == ["run-2"]


@pytest.mark.parametrize("uri", ["gs://bucket", "s3://bucket/", "/", "gs://"])
def test_remove_refuses_all_there_is(uri: str) -> None:
    with pytest.raises(ValueError, match="is a bucket or file system"):
        storage.remove(uri)


def test_nothing_to_upload(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files to upload"):
        storage.upload_folder(tmp_path, tmp_path / "target")
    with pytest.raises(FileNotFoundError, match="no such file to upload"):
        storage.upload_file(tmp_path / "none", "gs://bucket/none")


def test_writable(root: str) -> None:
    storage.check_writable(root)
    assert storage.list_files(root) == []


def test_not_writable_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write, read and remove.*choose another place") as error:
        storage.check_writable(tmp_path / "file")
    one_line(error)


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of `server.answers`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # The client also asks for the bucket's location, in the background, for its traces.
        is_background = "projection=noAcl" in self.path
        status, body = (404, b"") if is_background else self.server.answers.pop(0)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, bytes]]]:
    """A server in the place of gs:// and s3:// that gives the answers put into this list."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.answers = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        yield server.answers
        server.shutdown()
    gc.collect()


# The clients leave the connection of a refused or repeated request to the garbage collector.
leaves_sockets = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@leaves_sockets
def test_refused_access_says_what_to_grant(answers: list[tuple[int, bytes]]) -> None:
    answers.append((403, b'{"error": {"message": "no\\naccess ?upload_id=abc"}}'))
    with pytest.raises(
        PermissionError, match=r"^gs://bucket/a: access refused: .*grant roles/storage.objectUser"
    ) as error:
        storage.read_bytes("gs://bucket/a")
    assert "abc" not in one_line(error)
    assert error.value.__cause__ is None
    answers.append((403, b"<Error><Code>AccessDenied</Code><Message>no access</Message></Error>"))
    with pytest.raises(PermissionError, match=r"^s3://bucket/a: access refused: .*allow s3:GetObject") as error:
        storage.read_bytes("s3://bucket/a")
    assert "secret" not in one_line(error)


@leaves_sockets
def test_busy_server_is_asked_again(answers: list[tuple[int, bytes]]) -> None:
    answers += [(503, b""), (200, b"content")]
    assert storage.read_bytes("gs://bucket/a") == b"content"
    answers += [(503, b""), (200, b"content")]
    assert storage.read_bytes("s3://bucket/a") == b"content"


@pytest.mark.parametrize(
    "uri", ["gs:///a", "gs://bucket", "s3://bucket/"]
)  # fmt: skip
def test_uri_that_names_no_file(uri: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("gcs_files")
    with pytest.raises(ValueError, match=re.escape(uri.rstrip("/"))):
        storage.read_bytes(uri)


def test_hub_holds_no_files_of_a_run() -> None:
    with pytest.raises(ValueError, match="hf://org/name: the Hub does not store files"):
        storage.write_bytes("hf://org/name", b"")
