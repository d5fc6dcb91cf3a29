"""Settings in the storage of a run: a step takes those that the graph was compiled with, and no others."""

import json
from pathlib import Path

import pytest

from posttrain.config import RUN_ID_ENV, table
from posttrain.step import kfp_io, settings

SETTINGS = {"check_sft": {"validation": {"max_loss": 1.5}}, "merge_sft": {"allowed_prefixes": ["/"]}}


@pytest.fixture
def config_of(tmp_path, monkeypatch):
    """Returns the settings that a step gets, as its parser does."""
    monkeypatch.setenv(RUN_ID_ENV, "run-1")

    def config_of(config: str) -> dict:
        flags = ["--step", "check_sft", "--storage-root", str(tmp_path), "--config", config]
        return json.loads(kfp_io.parser("validators.sft").parse_args(flags).config)

    return config_of


def files(root: Path) -> list[Path]:
    return sorted((root / "runs" / "run-1" / "settings").iterdir())


def test_each_step_gets_its_own_by_their_digest(config_of, tmp_path):
    settings.write(str(tmp_path), SETTINGS)
    settings.write(str(tmp_path), SETTINGS)  # another attempt of preflight
    assert [config_of(json.dumps(table.reference(one))) for one in SETTINGS.values()] == list(SETTINGS.values())
    assert len(files(tmp_path)) == 2


def test_settings_that_somebody_changed_are_refused(config_of, tmp_path):
    settings.write(str(tmp_path), SETTINGS)
    (file,) = [file for file in files(tmp_path) if "max_loss" in file.read_text()]
    file.write_text(file.read_text().replace("1.5", "9.5"))
    with pytest.raises(ValueError, match=f"{file}: is not what the graph was compiled with"):
        config_of(json.dumps(table.reference(SETTINGS["check_sft"])))


def test_settings_that_are_not_there_are_refused(config_of, tmp_path, monkeypatch):
    settings.write(str(tmp_path), SETTINGS)
    monkeypatch.setenv(RUN_ID_ENV, "run-2")  # each run has its own
    with pytest.raises(ValueError, match=r"run-2/settings/\w+.json: is not there; preflight writes it"):
        config_of(json.dumps(table.reference(SETTINGS["check_sft"])))


def test_a_step_that_is_started_by_hand_has_its_settings_on_its_command_line(config_of):
    assert config_of('{"validation": {"max_loss": 1.5}}') == {"validation": {"max_loss": 1.5}}


def test_a_step_of_a_graph_has_them_in_its_executor_input(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID_ENV, "run-1")
    settings.write(str(tmp_path), SETTINGS)
    values = {"config": table.reference(SETTINGS["check_sft"])}
    flags = ["--step", "check_sft", "--storage-root", str(tmp_path)]
    flags += ["--executor-input", json.dumps({"inputs": {"parameterValues": values}})]
    assert json.loads(kfp_io.parser("validators.sft").parse_args(flags).config) == SETTINGS["check_sft"]
    with pytest.raises(ValueError, match="--executor-input: .* is not JSON"):  # not the defaults
        kfp_io.parser("validators.sft").parse_args([*flags[:-1], "broken"])
