import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.cloud.storage import Client

from posttrain import storage
from posttrain.step import digests
from posttrain.storage import gcs, transfer
from tests.posttrain.storage.faults import Fault, GcsServer, Proxy, Request, every_third, nth, proxy

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("sockets_are_collected"),
]


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in log.records if line.levelname == "WARNING"]


@pytest.mark.parametrize("fault", [503, "drop", "cut"])
def test_folder_arrives_though_every_third_request_fails(
    fault: Fault, gs_proxy: Proxy, gs_root: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "posttrain")
    gs_proxy.rule = every_third(fault)
    sent = storage.upload_folder(folder, gs_root)
    arrived = storage.download_folder(gs_root, tmp_path / "back")
    assert sent == arrived == digests.file_digests(tmp_path / "back") == digests.file_digests(folder)
    assert len(gs_proxy.faults) > 5
    (told,) = warnings(caplog)
    assert re.fullmatch(r"gs:// at http://\S+: (the server answers 503|no answer \(\w+\)); asking again for .*", told)
    assert re.search(r"download from gs://.*: 7 of 7 files, 11\.5 MB, [\d.]+ MB/s, \d+ requests repeated", caplog.text)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`outage(seconds)` stops the server of the bucket `own` that long, at the third chunk of an upload."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")  # so that it is afterwards what it was
    with GcsServer() as server, proxy(server.url) as between:
        client = Client(project="test")
        client.create_bucket("own")
        client.close()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.address)
        is_third_chunk = nth(3, "PUT", "upload_id", "drop")

        def begin(seconds: int) -> None:
            def stop(request: Request) -> Fault:
                if not is_third_chunk(request):
                    return None
                server.go_away()
                threading.Timer(seconds, server.come_back).start()
                return "drop"

            between.rule = stop

        yield begin
        assert len(between.faults) == 1


def check_upload_through_outage(folder: Path) -> None:
    storage.upload_folder(folder, "gs://own/model")
    storage.download_folder("gs://own/model", folder.with_name("back"))
    assert digests.digest(folder.with_name("back")) == digests.digest(folder)


def test_upload_goes_on_when_the_server_is_back(
    impatient: None, outage: Callable[[int], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage(2)
    check_upload_through_outage(folder)
    assert len(warnings(caplog)) == 1


@pytest.mark.chaos
def test_upload_goes_on_after_a_minute_without_a_server(
    outage: Callable[[int], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage(60)
    check_upload_through_outage(folder)
    assert 1 <= len(warnings(caplog)) <= 2


def test_writer_whose_answer_got_lost_has_won(gs_proxy: Proxy, gs_root: str) -> None:
    uri = storage.join(gs_root, "COMPLETE.json")
    gs_proxy.rule = nth(1, "POST", "upload", "lose")
    storage.write_bytes(uri, b"ours", if_absent=True)
    assert len(gs_proxy.faults) == 1
    with pytest.raises(FileExistsError, match=re.escape(uri)):
        storage.write_bytes(uri, b"ours", if_absent=True)


def test_upload_whose_last_answer_got_lost_begins_again(gs_proxy: Proxy, gs_root: str, folder: Path) -> None:
    gs_proxy.rule = nth(3, "PUT", "upload_id", "lose")
    path, uri = folder / "model.safetensors", storage.join(gs_root, "model.safetensors")
    assert storage.upload_file(path, uri) == digests.digest(path)
    assert len(gs_proxy.faults) == 1
    assert storage.read_bytes(uri) == path.read_bytes()


def test_upload_that_always_breaks_off_is_given_up(gs_proxy: Proxy, gs_root: str, folder: Path) -> None:
    gs_proxy.rule = lambda request: 410 if request.method == "PUT" else None
    with pytest.raises(
        OSError, match=rf"^{gs_root}/x: the upload was interrupted {gcs.NUM_STARTS} times; try again later$"
    ):
        storage.upload_file(folder / "model.safetensors", f"{gs_root}/x")
    assert len(gs_proxy.faults) == gcs.NUM_STARTS


def test_server_that_stays_away_is_given_up(
    gs_proxy: Proxy, gs_root: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_SECONDS", 0.3)
    gs_proxy.rule = lambda request: 503
    for call in (storage.read_bytes, lambda uri: storage.upload_file(folder / "small-1.json", uri)):
        with pytest.raises(OSError, match=rf"^{gs_root}/x: the server answers 503 for 0 minutes; try again later$"):
            call(f"{gs_root}/x")


@pytest.mark.parametrize("name", ["small-5.json", "model.safetensors"])
def test_truncated_object_never_reaches_its_final_name(name: str, gs_root: str, gcs_files: Path, folder: Path) -> None:
    storage.upload_folder(folder, gs_root)
    stored = gcs_files / gs_root.rpartition("/")[2] / name
    stored.write_bytes(stored.read_bytes()[:1000])
    with pytest.raises(OSError, match=rf"^{gs_root}/{name}: damaged: .*upload it again$"):
        storage.download_folder(gs_root, folder.with_name("target"))
    with pytest.raises(OSError, match="damaged"):
        storage.read_bytes(f"{gs_root}/{name}")
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_object_that_is_replaced_meanwhile_is_no_missing_one(gs_proxy: Proxy, gs_root: str, folder: Path) -> None:
    storage.upload_folder(folder, gs_root)
    gs_proxy.rule = nth(2, "GET", "safetensors?alt=media", 404)  # what asking for the old generation gives
    with pytest.raises(OSError, match=r"model.safetensors: was replaced or removed while it was downloaded") as error:
        storage.download_folder(gs_root, folder.with_name("target"))
    assert not isinstance(error.value, FileNotFoundError)


def test_damage_shows_though_the_first_answer_was_cut(gs_proxy: Proxy, gs_root: str, gcs_files: Path) -> None:
    storage.write_bytes(f"{gs_root}/a.json", b"a" * 100_000)
    (gcs_files / gs_root.rpartition("/")[2] / "a.json").write_bytes(b"a" * 99_999 + b"b")
    gs_proxy.rule = nth(1, "GET", "alt=media", "cut")
    with pytest.raises(OSError, match=rf"^{gs_root}/a.json: damaged"):
        storage.read_bytes(f"{gs_root}/a.json")
    assert len(gs_proxy.faults) == 1
