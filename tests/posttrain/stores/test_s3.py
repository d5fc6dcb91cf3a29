import re
import sys
from pathlib import Path

import pytest

from posttrain import record, storage
from posttrain.stores import s3
from tests.posttrain.stores.faults import Fault, Proxy, every_third, nth

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest.mark.parametrize("fault", [503, "drop"])
def test_folder_arrives_though_every_third_request_fails(
    fault: Fault, s3_proxy: Proxy, s3_root: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "posttrain")
    s3_proxy.rule = every_third(fault)
    storage.upload_folder(folder, s3_root)
    storage.download_folder(s3_root, tmp_path / "back")
    assert record.digest(tmp_path / "back") == record.digest(folder)
    assert len(s3_proxy.faults) > 5
    (told,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    assert re.fullmatch(r"s3:// at http://\S+: (the server answers 503|no answer \(\w+\)); asking again for .*", told)
    assert re.search(r"download from s3://.*: 7 of 7 files, 11\.5 MB, [\d.]+ MB/s, \d+ requests repeated", caplog.text)


def test_folder_arrives_though_every_third_answer_is_cut(
    s3_proxy: Proxy, s3_root: str, folder: Path, tmp_path: Path
) -> None:
    storage.upload_folder(folder, s3_root)
    s3_proxy.rule = every_third("cut")
    storage.download_folder(s3_root, tmp_path / "back")
    assert record.digest(tmp_path / "back") == record.digest(folder)
    assert len(s3_proxy.faults) > 3


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
    s3.S3()._fs.pipe_file(key, b"LAST", Metadata={"crc32c": s3._crc32c(tmp_path / "folder" / "a.json")})
    with pytest.raises(OSError, match=re.escape(f"{s3_root}/a.json: damaged")):
        storage.download_folder(s3_root, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_names_that_lead_elsewhere_are_refused_on_download(s3_root: str, tmp_path: Path) -> None:
    bucket, name = s3_root.removeprefix("s3://").split("/")
    s3.S3()._fs.call_s3("put_object", Bucket=bucket, Key=f"{name}/a/../../evil", Body=b"")
    with pytest.raises(ValueError, match="no relative file name"):
        storage.download_folder(s3_root, tmp_path / "in" / "target")
    assert not list(tmp_path.iterdir())


def test_without_s3fs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "posttrain.stores.s3")
    with pytest.raises(ModuleNotFoundError, match="pip install s3fs"):
        storage.read_bytes("s3://bucket/a")
