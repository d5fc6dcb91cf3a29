"""An input that lies beside the storage root stays where it is; anything else is uploaded, once."""

import json
from pathlib import Path

import pytest

from posttrain.nodes import inputs
from posttrain.step import digests
from posttrain.step.running import Running


@pytest.fixture
def running(tmp_path) -> Running:
    """A step with a folder and a file as inputs."""
    (tmp_path / "model" / "deep").mkdir(parents=True)
    for name, text in {"model/config.json": "{}", "model/deep/weights": "w", "train.jsonl": "row"}.items():
        (tmp_path / name).write_text(text)
    sha256 = {"model": digests.digest(tmp_path / "model"), "train": digests.digest(tmp_path / "train.jsonl")}
    return Running("train_sft", str(tmp_path / "root"), "f", inputs=sha256)


def addresses(running: Running, tmp_path: Path, **artifacts: list[str]) -> dict[str, str]:
    """Where each input is said to be; `artifacts` are the addresses that Kubeflow gives for it."""
    passed = {name: {"artifacts": [{"uri": uri} for uri in uris]} for name, uris in artifacts.items()}
    paths = {"model": str(tmp_path / "model"), "train": str(tmp_path / "train.jsonl")}
    executor_input = json.dumps({"inputs": {"artifacts": passed}} if artifacts else {})
    kept = inputs.addresses(running, paths, run_id="run-1", executor_input=executor_input)
    assert {name: one.sha256 for name, one in kept.items()} == running.inputs
    return {name: one.uri for name, one in kept.items()}


def test_what_is_nowhere_in_the_bucket_is_uploaded_once(running, tmp_path, monkeypatch):
    first = addresses(running, tmp_path)
    assert (Path(first["model"]) / "deep" / "weights").read_text() == "w" and Path(first["train"]).read_text() == "row"
    assert all(f"runs/run-1/nodes/train_sft/inputs/{name}/{running.inputs[name]}" in first[name] for name in first)
    for upload in ("upload_file", "upload_folder"):
        monkeypatch.setattr(inputs.storage, upload, None)  # nothing calls it
    assert addresses(running, tmp_path) == first


def test_a_copy_in_the_bucket_stays_where_it_is(running, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_is_beside", lambda uri, root: "elsewhere" not in uri)
    copies = [str(tmp_path / "model"), str(tmp_path / "elsewhere")]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    found = addresses(running, tmp_path, model=[str(tmp_path / "other"), *copies], train=[str(tmp_path / "gone")])
    assert found["model"] == copies[0]
    assert found["train"].startswith(running.storage_root)


@pytest.mark.parametrize("change", ["missing", "larger", "added"])
def test_a_folder_with_other_files_is_no_copy(running, tmp_path, change):
    (uri := tmp_path / "uri").mkdir()
    (uri / "config.json").write_text("{  }" if change == "larger" else "{}")
    if change != "missing":
        (uri / "deep").mkdir()
        (uri / "deep" / "weights").write_text("w")
    if change == "added":
        (uri / "more").write_text("x")
    assert not inputs._is_copy(str(uri), tmp_path / "model")


@pytest.mark.parametrize(
    ("uri", "root", "is_beside"),
    [
        ("gs://acme/artifacts/model", "gs://acme/runs", True),
        ("s3://acme/artifacts/model", "s3://acme/runs", True),
        ("gs://other/artifacts/model", "gs://acme/runs", False),
        ("s3://acme/artifacts/model", "gs://acme/runs", False),
        ("minio://acme/artifacts/model", "minio://acme/runs", False),
        ("hf://acme/model", "hf://acme/other", False),
        ("/mnt/artifacts/model", "/mnt/artifacts", False),
    ],
)
def test_only_the_bucket_of_the_storage_root_can_be_read_by_all_workers(uri, root, is_beside):
    assert inputs._is_beside(uri, root) is is_beside
