"""The step that exports writes each format, says how large it is, and refuses what nothing here can write."""

import json

import pytest

from posttrain.config import RUN_ID_ENV
from posttrain.serving import export, formats
from posttrain.step import digests, records


@pytest.fixture
def command(tmp_path, tiny_model, monkeypatch):
    """A function that exports the tiny model in some formats."""
    monkeypatch.setenv(RUN_ID_ENV, "run-1")

    def run(*kinds: str) -> records.StepRecord:
        export.main([
            "--step", "export_model", "--storage-root", str(tmp_path / "root"), "--model", str(tiny_model),
            "--export", str(tmp_path / "export"), "--config", json.dumps({"export": {"formats": kinds}}),
        ])  # fmt: skip
        return records.read_records(str(tmp_path / "root"), "run-1")[-1]

    return run


def test_the_command_writes_each_format_and_records_its_size(command, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(formats, "check_installed", lambda _: None)  # q8_0 is served by it, and written without
    record = command("f16", "q8_0")
    sizes = {name: (tmp_path / "export" / f"model-{name}.gguf").stat().st_size for name in ("f16", "q8_0")}
    model = sum(file.stat().st_size for file in tiny_model.iterdir())
    assert record.measured == {
        "model_gb": round(model / 1e9, 6),
        **{f"{name}_gb": round(size / 1e9, 6) for name, size in sizes.items()},
    }
    assert sizes["q8_0"] < sizes["f16"] and record.measured["q8_0_gb"] > 0
    assert record.inputs == {"model": digests.digest(tiny_model)}
    assert record.outputs == {"export": digests.digest(tmp_path / "export")}


def test_a_format_that_is_a_folder_has_the_size_of_its_files(tmp_path):
    (tmp_path / "fp8" / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (tmp_path / "fp8" / name).write_bytes(b"x" * 1_000_000)
    assert export._gigabytes(tmp_path / "fp8") == 0.002


def test_a_library_that_is_missing_is_said_before_anything_is_written(command, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="q8_0 needs gguf and xllamacpp, not installed here"):
        command("q8_0")
    assert not (tmp_path / "export").exists()
