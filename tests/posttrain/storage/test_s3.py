import itertools
import re
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from posttrain import storage
from posttrain.step import digests
from posttrain.storage import s3
from tests.posttrain.storage import faults
from tests.posttrain.storage.faults import Fault, Proxy, every_third, nth

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.mark.parametrize("fault", [503, "drop", "cut"])
def test_folder_arrives_though_every_third_request_fails(
    fault: Fault, s3_proxy: Proxy, s3_root: str, folder: Path, tmp_path: Path
) -> None:
    s3_proxy.rule = every_third(fault)
    sent = storage.upload_folder(folder, s3_root)
    arrived = storage.download_folder(s3_root, tmp_path / "back")
    assert sent == arrived == digests.file_digests(tmp_path / "back") == digests.file_digests(folder)
    assert len(s3_proxy.faults) > 3


def test_busy_server_is_told_of_in_one_line(
    s3_proxy: Proxy, s3_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "posttrain")
    s3_proxy.rule = every_third(503)
    for i in range(9):
        storage.write_bytes(tmp_path / "folder" / f"{i}.json", b"{}")
    storage.upload_folder(tmp_path / "folder", s3_root)
    (told,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert re.fullmatch(r"s3:// at http://\S+: the server answers 503; asking again for up to 5 minutes", told)
    assert re.search(r"upload to s3://.*: 9 of 9 files, .* MB/s, \d+ requests repeated", caplog.text)


def test_server_that_is_busy_for_long_is_waited_for(s3_proxy: Proxy, s3_root: str) -> None:
    storage.write_bytes(f"{s3_root}/a.json", b"content")
    num_busy = itertools.count()
    s3_proxy.rule = lambda request: 503 if next(num_busy) < 12 else None  # botocore alone gives up after 5
    assert storage.read_bytes(f"{s3_root}/a.json") == b"content"
    assert len(s3_proxy.faults) == 12


def test_object_that_never_comes_whole_is_given_up(
    s3_proxy: Proxy, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3._FileSystem, "retries", 2)
    storage.write_bytes(f"{s3_root}/a.json", b"whole")
    s3_proxy.rule = lambda request: "cut" if request.method == "GET" else None
    for fetch in (storage.read_bytes, lambda uri: storage.download_file(uri, tmp_path / "a.json")):
        with pytest.raises(OSError, match=rf"^{s3_root}/a.json: \S.*$"):
            fetch(f"{s3_root}/a.json")
    assert not list(tmp_path.iterdir())


def test_writer_whose_answer_got_lost_has_won(s3_proxy: Proxy, s3_root: str) -> None:
    uri = storage.join(s3_root, "COMPLETE.json")
    s3_proxy.rule = nth(1, "PUT", "COMPLETE.json", "lose")
    storage.write_bytes(uri, b"ours", if_absent=True)
    assert len(s3_proxy.faults) == 1
    with pytest.raises(FileExistsError, match=re.escape(uri)):
        storage.write_bytes(uri, b"ours", if_absent=True)


def test_damaged_object_never_reaches_its_final_name(s3_root: str, tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "folder" / "a.json", b"last")
    storage.upload_folder(tmp_path / "folder", s3_root)
    key = f"{s3_root.removeprefix('s3://')}/a.json"
    s3.S3()._fs.pipe_file(key, b"LAST", Metadata={"crc32c": s3._checksums(tmp_path / "folder" / "a.json")[0]})
    with pytest.raises(OSError, match=re.escape(f"{s3_root}/a.json: damaged")):
        storage.download_folder(s3_root, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_names_that_lead_elsewhere_are_refused_on_download(s3_root: str, tmp_path: Path) -> None:
    bucket, name = s3_root.removeprefix("s3://").split("/")
    s3.S3()._fs.call_s3("put_object", Bucket=bucket, Key=f"{name}/a/../../evil", Body=b"")
    with pytest.raises(ValueError, match="is not a relative file name"):
        storage.download_folder(s3_root, tmp_path / "in" / "target")
    assert not list(tmp_path.iterdir())


def test_without_s3fs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "posttrain.storage.s3")
    with pytest.raises(ModuleNotFoundError, match="pip install s3fs"):
        storage.read_bytes("s3://bucket/a")


def test_a_server_that_ignores_conditional_writes_is_refused(s3_proxy: Proxy, s3_root: str, monkeypatch) -> None:
    storage.check_writable(s3_root)
    forward = faults._Handler._forward

    def without_condition(self, body):
        del self.headers["If-None-Match"]
        return forward(self, body)

    monkeypatch.setattr(faults._Handler, "_forward", without_condition)
    with pytest.raises(ValueError, match="of two writers of one file both win .*; choose a storage that has them"):
        storage.check_writable(s3_root)


def test_credentials_that_have_expired_are_told_as_that() -> None:
    answer = {"Error": {"Code": "ExpiredToken", "Message": "The provided token has expired."}}
    error = s3._error(ClientError(answer, "PutObject"), "s3://b/a")
    assert str(error).startswith("s3://b/a: the credentials have expired: ") and "renew" in str(error)
    error = s3._error(PermissionError("The provided token has expired."), "s3://b/a")
    assert "allow s3:GetObject" not in str(error) and "renew" in str(error)
