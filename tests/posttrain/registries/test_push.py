"""A published model is pushed to a registry whole and once. The registry is Debian's docker-registry."""

import base64
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from posttrain import storage, verify
from posttrain.config import SigningStep
from posttrain.config.signing import SIGNING_KEY_ENV
from posttrain.registries import oci, push
from tests.posttrain.line import Line
from tests.posttrain.test_signing import write_keys

pytestmark = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs Debian's docker-registry")


@pytest.fixture(scope="module")
def version(tmp_path_factory) -> str:
    """The folder of a published version."""
    line = Line(tmp_path_factory.mktemp("line")).run()
    return line.publish(str(line.folder / "published"))["uri"]


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[str]:
    """A registry of its own."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder)}}, "http": {"addr": host},
        "log": {"level": "error", "accesslog": {"disabled": True}},
    }  # fmt: skip
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stderr=subprocess.DEVNULL
    ) as server:
        wait_for(host)
        yield host
        server.terminate()


def wait_for(host: str) -> None:
    name, port = host.split(":")
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex((name, int(port))) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(host)


def read(host: str, path: str, **headers: str) -> bytes:
    with requests.get(f"http://{host}/v2/{path}", headers=headers, timeout=10) as answered:
        assert answered.status_code == 200, answered.text
        return answered.content


def files_of(host: str, name: str) -> tuple[dict, dict[str, bytes]]:
    """The manifest of the image `v1` of this name, and the content of its files."""
    manifest = json.loads(read(host, f"{name}/manifests/v1", Accept=oci.MANIFEST))
    files = {}
    for layer in manifest["layers"]:
        content = read(host, f"{name}/blobs/{layer['digest']}")
        assert len(content) == layer["size"]
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            (member,) = archive.getmembers()
            files[member.name] = archive.extractfile(member).read()
    return manifest, files


def test_the_image_holds_every_file_of_the_version(version, host):
    address = oci.Address.parse(f"oci://{host}/models/m:v1")
    pushed = push.push(version, address)
    manifest, files = files_of(host, "models/m")
    wanted = {
        f"models/{file.relative_to(version)}": file.read_bytes() for file in Path(version).rglob("*") if file.is_file()
    }
    assert files == wanted
    assert pushed["num_uploaded"] == len(wanted)
    config = json.loads(read(host, f"models/m/blobs/{manifest['config']['digest']}"))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    with requests.head(f"http://{host}/v2/models/m/manifests/v1", headers={"Accept": oci.MANIFEST}) as answered:
        assert pushed["uri"] == f"oci://{host}/models/m@{answered.headers['Docker-Content-Digest']}"


@pytest.mark.long
def test_the_image_of_a_signed_version_is_verified_with_the_key(host, tmp_path, monkeypatch):
    keys = write_keys(tmp_path / "keys")
    monkeypatch.setenv(SIGNING_KEY_ENV, str(keys / "private.pem"))
    line = Line(tmp_path / "line").run()
    version = line.publish(str(tmp_path / "published"), signing=SigningStep(images={}))["uri"]
    push.push(version, oci.Address.parse(f"oci://{host}/models/signed:v1"))
    for name, content in files_of(host, "models/signed")[1].items():
        storage.write_bytes(str(tmp_path / name), content)
    assert verify.verify(str(tmp_path / push.ROOT), public_key=str(keys / "public.pem")).faults == []


def test_a_file_that_changes_after_it_was_verified_is_not_pushed(version, host, tmp_path, monkeypatch):
    folder, verified = shutil.copytree(version, tmp_path / "version"), verify.verify

    def change_after(published: str) -> verify.Findings:
        findings = verified(published)
        (folder / "model.safetensors").write_text("other")
        return findings

    monkeypatch.setattr(verify, "verify", change_after)
    with pytest.raises(ValueError, match="model.safetensors: was changed while it was pushed"):
        push.push(str(folder), oci.Address.parse(f"oci://{host}/models/late:v1"))


def test_a_second_push_uploads_nothing_and_has_the_same_digest(version, host):
    address = oci.Address.parse(f"oci://{host}/models/again:v1")
    first, second = push.push(version, address), push.push(version, address)
    assert second == first | {"num_uploaded": 0}


def test_the_command_says_where_the_image_is_and_how_much_was_sent(version, host, capsys):
    assert push.main([version, f"oci://{host}/models/told:v1"]) == 0
    num_files = sum(file.is_file() for file in Path(version).rglob("*"))
    said = capsys.readouterr().out
    assert said.startswith(f"oci://{host}/models/told@sha256:")
    assert said.endswith(f": {num_files} files uploaded, the others were there\n")


def test_a_changed_version_is_not_pushed(version, host, tmp_path, capsys):
    folder = shutil.copytree(version, tmp_path / "version")
    (folder / "config.json").write_text("other")
    assert push.main([str(folder), f"oci://{host}/models/changed:v1"]) == 1
    assert "is not pushed: config.json: was changed" in capsys.readouterr().err
    with requests.get(f"http://{host}/v2/models/changed/manifests/v1", timeout=10) as answered:
        assert answered.status_code == 404


def test_a_registry_that_is_away_is_an_error_in_one_line(version, capsys):
    assert push.main([version, "oci://127.0.0.1:1/models/m:v1"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("text", ["registry/m:v1", "oci://registry/m", "oci://registry/M:v1", "oci://registry:v1"])
def test_other_addresses_are_refused(text):
    with pytest.raises(ValueError, match="is not the address of an OCI artifact"):
        oci.Address.parse(text)


def test_credentials_are_those_of_docker(tmp_path, monkeypatch):
    auth = base64.b64encode(b"ann:s3:cret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.example.com": {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert oci.credentials("registry.example.com") == ("ann", "s3:cret")
    assert oci.credentials("other.example.com") is None
    assert oci.Address.parse("oci://registry.example.com/m:v1").url == "https://registry.example.com/v2/m"
