"""A version is registered by hand or by its run; a registry that is away costs nothing, and no token gets out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from posttrain.config import PipelineConfig, RegisterStep, load_config
from posttrain.config.servers import TOKEN_ENVS, Servers
from posttrain.registries import api, register, register_model
from tests import model_registry
from tests.posttrain.line import Line

TOKEN = "a-token-of-the-registry"
AWAY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def receipt(tmp_path_factory) -> dict:
    """The receipt of a published version."""
    line = Line(tmp_path_factory.mktemp("line")).run()
    return line.publish(str(line.folder / "published"))


@pytest.fixture
def registry(monkeypatch) -> Iterator[model_registry.ModelRegistry]:
    monkeypatch.setenv(TOKEN_ENVS["model_registry"], TOKEN)
    with model_registry.serve(token=TOKEN) as registry:
        yield registry


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(api, "TRY_SECONDS", 0.05)
    monkeypatch.setattr(api, "FIRST_WAIT_SECONDS", 0.01)


def configuration(folder: Path, **registries) -> str:
    file = folder / "registries.yaml"
    file.write_text(yaml.safe_dump({"registries": registries} if registries else {"pipeline_id": "m"}))
    return str(file)


def by_hand(version: str, folder: Path, **registries) -> int:
    return register.main([version, "--config", configuration(folder, **registries)])


def settings(**registries) -> RegisterStep:
    return RegisterStep(registries=registries)


def test_a_version_is_registered_from_its_folder_alone(receipt, registry, tmp_path, capsys):
    copy = shutil.copytree(receipt["uri"], tmp_path / "copy")
    assert by_hand(str(copy), tmp_path, model_registry={"url": registry.url}) == 0
    assert capsys.readouterr().out.startswith(
        f"Kubeflow Model Registry: {registry.url}/api/model_registry/v1/model_ver"
    )
    assert registry.artifacts[0][1]["uri"] == copy.as_uri()


def test_a_version_that_is_not_whole_is_not_registered(receipt, registry, tmp_path, capsys):
    copy = shutil.copytree(receipt["uri"], tmp_path / "copy")
    (copy / "config.json").write_text("other")
    assert by_hand(str(copy), tmp_path, model_registry={"url": registry.url}) == 1
    assert "is not registered: config.json: was changed" in capsys.readouterr().err
    assert registry.requests == []


def test_by_hand_a_configuration_without_registries_is_an_error(receipt, tmp_path, capsys):
    assert by_hand(receipt["uri"], tmp_path) == 1
    assert "has no section registries" in capsys.readouterr().err


def test_a_folder_that_is_no_version_is_an_error(registry, tmp_path, capsys):
    assert by_hand(str(tmp_path), tmp_path, model_registry={"url": registry.url}) == 1
    assert "is not a published model" in capsys.readouterr().err


def test_a_registry_that_is_away_costs_a_run_nothing(receipt, caplog):
    measured = register_model.register_published(receipt, settings(model_registry={"url": AWAY}))
    assert measured["registered"] == {}
    (error,) = measured["errors"]
    uri, away = receipt["uri"], "127.0.0.1:1: cannot be reached: [Errno 111] Connection refused"
    assert error == (
        f"published in {uri}, but not registered in Kubeflow Model Registry: {away}; "
        f"to register it later: python -m posttrain.registries.register {uri} --config FILE"
    )
    assert error in caplog.text


def test_with_required_it_fails_the_step(receipt):
    with pytest.raises(ValueError, match="published in .*, but not registered in Kubeflow Model Registry"):
        register_model.register_published(receipt, settings(model_registry={"url": AWAY}, required=True))


def test_one_that_is_away_keeps_no_other_from_having_it(receipt, registry):
    both = {"model_registry": {"url": registry.url}, "mlflow": {"tracking_uri": AWAY}}
    with pytest.raises(ValueError, match="not registered in MLflow"):
        register_model.register_published(receipt, settings(**both, required=True))
    assert len(registry.artifacts) == 1


def test_one_that_comes_back_is_asked_again(receipt, registry, monkeypatch):
    monkeypatch.setattr(api, "TRY_SECONDS", 10)
    registry.statuses += [503, 429, 0, 500]
    measured = register_model.register_published(receipt, settings(model_registry={"url": registry.url}))
    assert list(measured["registered"]) == ["model_registry"]
    assert len(registry.versions) == 1


def test_a_version_that_was_replaced_since_is_refused(receipt, registry):
    with pytest.raises(ValueError, match="not 0000 as when this run published it"):
        register_model.entry_of(receipt | {"manifest_sha256": "0000"})


def test_the_step_leaves_where_it_is_registered(receipt, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    (tmp_path / "receipt").write_text(json.dumps(receipt))
    config = settings(model_registry={"url": registry.url}).model_dump_json(exclude_none=True)
    register_model.main([
        "--step", "register_model", "--storage-root", str(tmp_path / "storage"), "--config", config,
        "--receipt", str(tmp_path / "receipt"), "--registration", str(tmp_path / "registration"),
    ])  # fmt: skip
    registered = json.loads((tmp_path / "registration").read_text())
    assert registered == {"registered": {"model_registry": registered["registered"]["model_registry"]}, "errors": []}
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(TOKEN in text for text in written)


@pytest.mark.parametrize(
    "status, words",
    [(403, "answers 403: the token is missing, or may not do this"), (302, "it wants people to sign in"),
     (400, "answers 400"), (404, "has none of /api/model_registry/v1, /api/model_registry/v1alpha3")],
)  # fmt: skip
def test_what_no_other_attempt_can_mend_is_asked_once(receipt, registry, status, words, monkeypatch):
    monkeypatch.setattr(api, "TRY_SECONDS", 60)
    registry.statuses += [status] * 2
    outcome = register.register(register_model.entry_of(receipt), Servers(model_registry={"url": registry.url}))
    assert outcome.registered == {}
    assert words in outcome.errors[0]
    assert len(registry.requests) <= 2


def test_a_wrong_token_is_refused_and_not_shown(receipt, registry, monkeypatch):
    monkeypatch.setenv(TOKEN_ENVS["model_registry"], "another-token")
    outcome = register.register(register_model.entry_of(receipt), Servers(model_registry={"url": registry.url}))
    assert "answers 401" in outcome.errors[0]
    assert "another-token" not in outcome.errors[0]


def test_a_token_is_not_sent_in_plain_text(receipt, registry):
    """Neither is one of this machine's own variable."""
    outcome = register.register(
        register_model.entry_of(receipt), Servers(model_registry={"url": "http://registry.acme.com"})
    )
    assert "the token would cross a network in plain text" in outcome.errors[0]


def test_a_password_is_sent_with_its_user(monkeypatch):
    monkeypatch.setenv("TOKEN", "s3:cret\n")
    assert api.authorization("TOKEN", "ann") == "Basic YW5uOnMzOmNyZXQ="
    assert api.authorization("TOKEN") == "Bearer s3:cret"
    assert api.authorization("GONE") == ""
    monkeypatch.setenv("TOKEN", "two\nlines")
    with pytest.raises(ValueError, match="TOKEN: holds no token"):
        api.authorization("TOKEN")


@pytest.mark.parametrize(
    "registries, words",
    [
        ({}, "names no registry: give model_registry or mlflow"),
        ({"model_registry": {"url": "registry:8080"}}, "is not the address of a server"),
        ({"model_registry": {"url": "https://ann:secret@registry"}}, "put the password into a Kubernetes secret"),
        ({"model_registry": {"url": "https://registry", "secret": "registry"}}, "give both, or neither"),
        ({"mlflow": {"tracking_uri": "http://mlflow.acme.com", "secret": "a", "key": "b"}}, "in plain text"),
        ({"mlflow": {"tracking_uri": "http://acme.com:5000", "secret": "a", "key": "b"}}, "in plain text"),
        ({"mlflow": {"tracking_uri": "file:///mlruns"}}, "is not the address of a server"),
    ],
)
def test_settings_that_cannot_work_are_refused(registries, words, tmp_path):
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"registries": registries}))
    with pytest.raises(ValueError, match=words) as caught:
        load_config(file)
    assert "ann:secret" not in str(caught.value)


def test_the_secret_goes_to_the_step_that_registers_and_to_preflight():
    named = {"url": "http://registry.kubeflow.svc.cluster.local:8080", "secret": "registry", "key": "token"}
    config = PipelineConfig(registries={"model_registry": named})
    steps = ["preflight", "publish_model", "register_model", "report_run"]
    assert {step: [one.env for one in config.secrets_of(step)] for step in steps} == {
        "preflight": ["POSTTRAIN_MODEL_REGISTRY_TOKEN"], "publish_model": [],
        "register_model": ["POSTTRAIN_MODEL_REGISTRY_TOKEN"], "report_run": [],
    }  # fmt: skip
    assert config.unplaced().secrets_of("register_model") == []
    assert config.unplaced().variables_of("register_model") == ["POSTTRAIN_MODEL_REGISTRY_TOKEN"]
